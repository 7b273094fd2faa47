"""Overlays: what they show, in which colours, and words in any script."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maftplus.pictures import fonts
from maftplus.pictures.coco import CocoDocument
from maftplus.pictures.colours import class_colours
from maftplus.pictures.legend import SPELLED, legend_rows
from maftplus.pictures.overlay import overlay_image
from maftplus.pictures.segments import Segment


def segment(id=1, label="cat", label_id=0, box=(10, 10, 50, 90), size=(60, 100), score=0.5):
    mask = np.zeros(size, dtype=bool)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return Segment(id=id, label=label, label_id=label_id, isthing=True, score=score, mask=mask)


@pytest.fixture
def no_fonts(monkeypatch):
    """A system without font files."""
    monkeypatch.setattr(fonts, "font_paths", lambda: ())
    for cached in (fonts.find_font, fonts._has):
        cached.cache_clear()
    yield
    for cached in (fonts.find_font, fonts._has):
        cached.cache_clear()


def test_a_class_has_its_colour_whatever_the_other_classes_are():
    alone = class_colours(["cat"])["cat"]
    assert class_colours(["dog", "grass", "cat"])["cat"] == alone
    assert class_colours([" CAT"])[" CAT"] == alone


def test_classes_of_one_vocabulary_share_no_colour_while_the_palette_lasts():
    names = [f"class {index}" for index in range(54)]
    colours = class_colours(names)
    assert len(set(colours.values())) == 54
    assert class_colours(names) == colours
    more = class_colours([f"class {index}" for index in range(200)])
    assert len(more) == 200
    assert all(more[name] == colours[name] for name in names)


def test_the_swatch_of_a_segment_has_the_colour_of_its_region():
    colour = class_colours(["cat"])["cat"]
    sheet = np.asarray(overlay_image(Image.new("RGB", (100, 60)), [segment()]))
    width, height = 800, 480
    assert (sheet[height:] == colour).all(-1).sum() > 100  # in the legend
    inside = sheet[int(15 / 60 * height), int(20 / 100 * width)]
    np.testing.assert_allclose(inside, np.array(colour) / 2, atol=2)  # half see-through on black


def test_regions_are_filled_unless_outlines_are_asked_for():
    place = int(15 / 60 * 480), int(20 / 100 * 800)
    picture = Image.new("RGB", (100, 60))
    assert np.asarray(overlay_image(picture, [segment()], "fill"))[place].any()
    outlined = np.asarray(overlay_image(picture, [segment()], "outline"))
    assert not outlined[place].any()
    assert outlined[80, 400].any()  # the border


def test_side_by_side_shows_the_bare_picture_first():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
    one = segment(size=(480, 640), box=(100, 100, 300, 500))
    sheet, filled = (np.asarray(overlay_image(picture, [one], style)) for style in ("side-by-side", "fill"))
    np.testing.assert_array_equal(sheet[:480, :640], np.asarray(picture))
    np.testing.assert_array_equal(sheet[:480, 644:1284], filled[:480])


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="`style` must be one of fill, outline, side-by-side, got 'neon'"):
        overlay_image(Image.new("RGB", (10, 10)), [], "neon")


@pytest.mark.parametrize(("size", "edge"), [((64, 48), 640), ((3000, 2000), 2048), ((4000, 100), 2048)])
def test_small_pictures_grow_and_large_ones_shrink(size, edge):
    one = segment(size=size[::-1], box=(1, 1, size[1] // 2, size[0] // 2))
    assert overlay_image(Image.new("RGB", size), [one]).width >= edge


def test_words_that_no_font_draws_are_spelled_out_and_the_legend_says_so(no_fonts):
    assert fonts.spell("dog") == "dog"
    assert fonts.spell("🐶 dog") == "[dog face] dog"
    assert fonts.spell("猫") == "[U+732B]"
    assert fonts.spell("고양이") == "[go-yang-i]"
    assert fonts.spell("बिल्ली") == "[ba-i-la-la-ii]"
    rows = legend_rows([segment(label="猫")], [(1, 2, 3)])
    assert [row.name for row in rows] == ["segment", "1  [U+732B]", SPELLED]
    assert len(legend_rows([segment(label="dog")], [(1, 2, 3)])) == 2


def test_a_font_of_the_system_draws_what_pillows_own_does_not():
    paths = [path for path in fonts.font_paths() if fonts._has(path, "й")]
    if not paths:
        pytest.skip("no font with Cyrillic letters is here")
    assert fonts.spell("собака") == "собака"
    canvas = Image.new("L", (200, 40))
    fonts.Lettering(20).write(ImageDraw.Draw(canvas), (5, 20), "собака", (255,))
    assert 0 < canvas.getbbox()[2] <= 5 + fonts.Lettering(20).width("собака") + 2


def test_overlays_of_any_script_are_drawn(no_fonts):
    words = ["собака", "猫, дом", "كلب", "🐶", "", "a" * 200, "e\u0301"]
    segments = [segment(index + 1, word, index) for index, word in enumerate(words)]
    assert overlay_image(Image.new("RGB", (100, 60)), segments).width >= 800


def test_a_coco_document_holds_every_picture_and_reads_back(tmp_path):
    from pycocotools.coco import COCO

    document = CocoDocument([["cat", "kitten"], ["grass"]], stuff_ids=[1])
    document.add("a.jpg", (100, 60), [segment(), segment(2, "grass", 1, (0, 0, 60, 5), score=None)])
    document.add("b.jpg", (100, 60), [])
    document.add("c.jpg", (100, 60), [segment(box=(1, 2, 3, 4))])
    document.write(tmp_path / "deep" / "found.json")
    found = COCO(str(tmp_path / "deep" / "found.json"))
    assert [one["file_name"] for one in found.loadImgs(found.getImgIds())] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [(one["name"], one["isthing"]) for one in found.loadCats([1, 2])] == [("cat", 1), ("grass", 0)]
    annotations = found.loadAnns(found.getAnnIds())
    ids = [[one[name] for name in ("id", "image_id", "category_id")] for one in annotations]
    assert ids == [[1, 1, 1], [2, 1, 2], [3, 3, 1]]
    assert [one.get("score") for one in annotations] == [0.5, None, 0.5]
    assert annotations[2]["bbox"] == [2, 1, 2, 2]
    np.testing.assert_array_equal(found.annToMask(annotations[0]), segment().mask)
    assert json.loads((tmp_path / "deep" / "found.json").read_text())["written_by"] == "maftplus"
