"""`maftplus segment` with masks, tiles, a style and a COCO document."""

import json

import numpy as np
import pytest
from docs_files import run_lengths
from PIL import Image
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.app.jobs import Job
from maftplus.app.masks import find_mask_files, load_masks


def make_masks():
    masks = np.zeros((2, 50, 70), dtype=bool)
    masks[0, :30], masks[1, 20:, :40] = True, True
    return masks


def run(*arguments):
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


def one_line(result):
    return " ".join(result.output.split())


def test_the_masks_of_a_file_become_segments_with_words(folder, picture, tmp_path):
    masks = make_masks()
    (tmp_path / "sam.json").write_text(json.dumps([{"segmentation": run_lengths(mask)} for mask in masks]))
    out = tmp_path / "out"
    result = run(picture, "--masks", tmp_path / "sam.json", "-l", "cat", "-l", "dog", "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "one.json").read_text())
    assert document["task"] == "masks"
    assert [(one["id"], one["area"]) for one in document["segments"]] == [(1, 30 * 70), (2, 30 * 40)]
    assert (out / "one_overlay.png").is_file()


def test_results_of_an_earlier_run_give_their_masks(folder, picture, tmp_path):
    for name, options in (("first", ["--task", "semantic"]), ("second", ["--masks", tmp_path / "first"])):
        result = run(picture, "-l", "cat", "-l", "dog", *options, "--model", folder, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    documents = [json.loads((tmp_path / name / "one.json").read_text()) for name in ("first", "second")]
    first, second = ([one["area"] for one in document["segments"]] for document in documents)
    assert first == second


@pytest.mark.parametrize("kind", ["array", "label map", "folder"])
def test_a_folder_of_masks_is_read_by_the_pictures_names(tmp_path, kind):
    masks, job = make_masks(), Job("photos/one.jpg", tmp_path / "out" / "one")
    if kind == "array":
        np.save(tmp_path / "one.npy", masks)
    elif kind == "label map":
        Image.fromarray(masks[0].astype(np.uint8) * 3).save(tmp_path / "one.png")
    else:
        (tmp_path / "one").mkdir()
        for index in (10, 9):
            Image.fromarray(masks[index - 9]).save(tmp_path / "one" / f"{index}.png")
    loaded = load_masks(find_mask_files(tmp_path, [job])[job])
    read = [loaded] if kind == "label map" else list(loaded)
    np.testing.assert_array_equal([np.asarray(mask) > 0 for mask in read], masks[: len(read)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("masks.json", "", "masks.json: cannot be read as JSON"),
        ("masks.json", '{"a": 1}', "'masks' or 'annotations'"),
        ("masks.npy", "no array", "masks.npy: cannot be read as an array"),
        ("masks.png", "no picture", "masks.png: cannot be read as a picture of masks"),
        ("masks.json", json.dumps([run_lengths(np.ones((9, 9), dtype=bool))]), "`masks[0]` is 9 x 9 pixels"),
    ],
)
def test_bad_masks_are_one_line_and_nothing_is_written(folder, picture, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    out = tmp_path / "out"
    result = run(picture, "--masks", tmp_path / name, "-l", "cat", "--model", folder, "--out", out)
    assert result.exit_code == 1
    assert message in one_line(result)
    assert "Traceback" not in result.output
    assert not out.exists()


def test_a_picture_without_masks_is_named_before_anything_is_computed(folder, picture, tmp_path):
    Image.open(picture).save(picture.with_name("two.png"))
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "one.npy", make_masks())
    options = ("-l", "cat", "--model", folder, "--out", tmp_path / "out")
    for masks, message in (("masks", "no masks of"), ("masks/one.npy", "give a folder"), ("nothing", "no such file")):
        result = run(picture.parent, "--masks", tmp_path / masks, *options)
        assert result.exit_code == 2
        assert message in one_line(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", 16], "`tile_size` must be at least 32 pixels"),
        (["--tile", 64, "--tile-overlap", 60], "`tile_overlap` must lie between 0 and half"),
        (["--tile-overlap", 8], "no effect without `tile_size`"),
        (["--tile", 64, "--heatmaps"], "leave `tile_size` out"),
        (["--tile", 64, "--masks", "."], "`tile_size` has no effect on `masks`"),
        (["--masks", ".", "--task", "instance"], "`subtask` has no effect on `masks`"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, picture, tmp_path, options, message):
    result = run(picture, "-l", "cat", *options, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in one_line(result)
    assert not (tmp_path / "out").exists()


def test_a_picture_in_tiles_and_a_document_of_all_pictures(folder, picture, tmp_path):
    Image.open(picture).resize((140, 100)).save(picture.with_name("two.png"))
    coco, out = tmp_path / "found.json", tmp_path / "out"
    arguments = (picture.parent, "-l", "cat", "-l", "grass", "--task", "semantic", "--tile", 64, "--coco", coco)
    arguments = (*arguments, "--style", "side-by-side", "--batch-size", 2, "--model", folder, "--out", out)
    for _ in range(2):  # ours is replaced
        result = run(*arguments)
        assert result.exit_code == 0, result.output
    document = json.loads(coco.read_text())
    assert [(one["width"], one["height"]) for one in document["images"]] == [(70, 50), (140, 100)]
    assert sum(one["area"] for one in document["annotations"]) == 70 * 50 + 140 * 100
    assert Image.open(out / "two_overlay.png").width > 2 * 480


def test_a_document_of_somebody_else_is_not_replaced(folder, picture, tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    result = run(picture, "-l", "cat", "--coco", tmp_path / "notes.json", "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert (tmp_path / "notes.json").read_text() == "{}"
    assert not (tmp_path / "out").exists()
