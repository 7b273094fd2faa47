"""What the page answers, without a browser (`tests/page/` drives it in one), and the Space that is written of it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maftplus.app import space
from maftplus.app.models import load_pipeline
from maftplus.app.page_answers import KEPT_PICTURES, OWN_WORDS, Visit, read_options, words_of
from maftplus.pictures.colours import class_colours

WORDS = ["blue circle, azure ball", "stuff: grass"]


@pytest.fixture(scope="module")
def pipe():
    import maftplus

    maftplus.register_auto_classes()
    return load_pipeline("models/shapes")


def picture(index: int = 2) -> Image.Image:
    with Image.open(f"models/shapes/example_{index}.png") as opened:
        return opened.convert("RGB")


def options(words=WORDS, task="panoptic"):
    return read_options(words, None, task, None, None)


def test_words_are_lines_of_a_labels_file():
    found = read_options(["cat, kitten", "stuff: lawn"], ["dog"], "panoptic", 0.4, None)
    assert found["candidate_labels"] == [["cat", "kitten"], ["lawn"]]
    assert found["stuff_labels"] == [["lawn"]]
    assert found["distractor_labels"] == [["dog"]]
    assert found["threshold"] == 0.4
    assert "min_margin" not in found


def test_thresholds_that_the_task_does_not_read_are_left_out():
    assert "threshold" not in read_options(["cat"], None, "semantic", 0.4, 0.1)


def test_a_word_without_a_name_is_named_by_its_place():
    with pytest.raises(ValueError, match="Words, line 2"):
        read_options(["cat", "stuff:"], None, "panoptic", None, None)


def test_an_answer_has_a_row_and_a_coloured_mask_for_every_segment(pipe):
    answer = Visit().ask(pipe, picture(), options())
    shown, masks, colours = answer.annotations()
    assert [row[1] for row in answer.rows()] == [one.label for one in answer.segments]
    assert "blue circle" in {one.label for one in answer.segments}
    assert all(mask.shape == (shown.height, shown.width) for mask, _ in masks)
    red, green, blue = class_colours(answer.names)["blue circle"]
    of_word = {colours[text] for _, text in masks if "blue circle" in text}
    assert of_word == {f"#{red:02x}{green:02x}{blue:02x}"}


def test_other_words_do_not_run_the_trunk_again(pipe, monkeypatch):
    visit = Visit()
    first = visit.ask(pipe, picture(), options())
    monkeypatch.setattr(pipe, "encode", lambda picture: pytest.fail("the picture was read again"))
    second = visit.ask(pipe, picture(), options(["green ring", "stuff: water"]))
    assert {one.label for one in first.segments} != {one.label for one in second.segments}


def test_a_visit_keeps_few_pictures(pipe):
    visit = Visit()
    for value in range(KEPT_PICTURES + 1):
        visit.ask(pipe, Image.new("RGB", (32, 32), (value, 0, 0)), options())
    assert len(visit.pictures) == KEPT_PICTURES


def test_a_heat_map_needs_an_answer_and_one_of_its_words(pipe):
    visit = Visit()
    with pytest.raises(ValueError, match="Segment a picture first"):
        visit.heat_map(pipe, "grass")
    visit.ask(pipe, picture(), options())
    assert visit.heat_map(pipe, "grass").size > (0, 0)
    with pytest.raises(ValueError, match="'sand' is none"):
        visit.heat_map(pipe, "sand")


def test_a_large_picture_is_shrunk_where_it_is_shown_alone(pipe):
    answer = Visit().ask(pipe, picture().resize((1280, 640)), options())
    shown, masks, _ = answer.annotations()
    assert shown.size == (1024, 512) == masks[0][0].shape[::-1]
    assert answer.segments[0].mask.shape == (640, 1280)


def test_a_picture_of_too_many_pixels_is_refused(pipe, monkeypatch):
    monkeypatch.setattr("maftplus.app.page_answers.MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="128 x 128 pixels"):
        Visit().ask(pipe, picture(), options())


def test_downloads_are_overlay_labels_json_and_coco(pipe, tmp_path):
    answer = Visit().ask(pipe, picture(), options())
    names = [path.rpartition("/")[2] for path in answer.write(tmp_path)]
    assert names == ["picture_overlay.png", "picture_labels.png", "picture.json", "picture_coco.json"]
    assert all((tmp_path / name).stat().st_size for name in names)


@pytest.mark.parametrize("vocabulary", [OWN_WORDS, "coco_panoptic_133"])
def test_a_vocabulary_becomes_words_that_are_read_back(pipe, vocabulary):
    words = words_of(pipe, vocabulary)
    assert len(read_options(words, None, "panoptic", None, None)["candidate_labels"]) == len(words)
    assert any(word.startswith("stuff: ") for word in words)


def test_files_of_an_answer_are_gone_when_it_has_been_sent(pipe):
    pytest.importorskip("gradio")
    from maftplus.app.page import Page

    answers = Page(pipe).segment(None, picture(), WORDS, [], "panoptic", None, None)
    files = [Path(path) for path in next(answers)[-1]]
    assert all(path.is_file() for path in files)
    assert list(answers) == []
    assert not any(path.parent.exists() for path in files)


def test_what_is_not_the_visitors_fault_is_told_without_details(pipe, monkeypatch):
    gradio = pytest.importorskip("gradio")
    from maftplus.app.page import FAILED, Page

    monkeypatch.setattr(Visit, "ask", lambda *_: 1 / 0)
    with pytest.raises(gradio.Error, match=FAILED):
        next(Page(pipe).segment(None, picture(), WORDS, [], "panoptic", None, None))


def test_the_page_fetches_no_address():
    gradio = pytest.importorskip("gradio")
    from maftplus.app.page import refuse_addresses

    with gradio.Blocks(analytics_enabled=False):
        component = gradio.Image()
    refuse_addresses(component)
    with pytest.raises(gradio.Error, match="no addresses"):
        component.async_move_resource_to_block_cache("https://example.com/a.png").send(None)  # runs the coroutine


def test_a_file_that_is_no_picture_is_named_without_its_place_on_the_server(tmp_path):
    gradio = pytest.importorskip("gradio")
    from maftplus.app.page import read_upload

    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(gradio.Error, match="broken.png") as caught:
        read_upload(gradio.FileData(path=str(path)))
    assert str(tmp_path) not in str(caught.value)


def fake_wheel(folder):
    path = folder / "maftplus-0-py3-none-any.whl"
    lines = ("Name: maftplus", "Requires-Dist: torch>=2.11", 'Requires-Dist: gradio>=6; extra == "page"')
    lines += ('Requires-Dist: maftplus[video]; extra == "page"', 'Requires-Dist: ruff; extra == "test"')
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("maftplus-0.dist-info/METADATA", "\n".join(lines) + "\n\n")
    return path


def test_a_space_requires_what_the_page_needs_and_no_more(tmp_path):
    assert space.wheel_requirements(fake_wheel(tmp_path)) == ["torch>=2.11", "gradio>=6"]


def test_a_space_of_a_model_folder_holds_a_copy_of_it(tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setattr(space, "build_wheel", fake_wheel)
    written = space.write_space(tmp_path / "space", "models/shapes")
    names = {path.name for path in written}
    assert names == {"README.md", "app.py", "maftplus-0-py3-none-any.whl", "model", "requirements.txt"}
    assert (tmp_path / "space" / "model" / "model.safetensors").is_file()
    compile((tmp_path / "space" / "app.py").read_text(), "app.py", "exec")


def test_a_space_is_not_written_into_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="give --space a new folder"):
        space.write_space(tmp_path, "shapes")


def test_a_space_without_a_checkout_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(space, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="clone the project"):
        space.write_space(tmp_path / "space", "shapes")


def test_masks_of_small_pictures_are_shown_as_they_are(pipe):
    answer = Visit().ask(pipe, picture(), options())
    for one, (mask, _) in zip(answer.segments, answer.annotations()[1]):
        assert np.array_equal(mask > 0, one.mask)
