"""The words of `maftplus segment` and `maftplus words`: files, vocabularies, distractors, and how they are refused."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_tools import save_tiny
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.app.models import resolve_model
from maftplus.app.words import gather_distractors, gather_words
from maftplus.vocabularies.files import available_vocabularies, load_labels, load_vocabulary_file
from maftplus.words_maftplus import parse_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), ["cat, kitten", "grass"], stuff=["grass"])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_labels_come_from_a_file_with_stuff_and_ids(folder, picture, tmp_path):
    (tmp_path / "names.txt").write_text("7: cat, kitten\n9: stuff: grass, lawn\n")
    words = ("--labels-file", tmp_path / "names.txt")
    result = run("segment", picture, *words, "--task", "semantic", "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "one.json").read_text())
    assert document["labels"] == [["cat", "kitten"], ["grass", "lawn"]]
    assert all(found["isthing"] == (found["label"] == "cat") for found in document["segments"])


def test_labels_of_the_options_a_file_and_a_vocabulary_add_up(tmp_path):
    (tmp_path / "names.txt").write_text("stuff: lawn\n")
    words = gather_words(["unicorn"], tmp_path / "names.txt", "pascal_voc_20")
    assert words["candidate_labels"][:2] == ["unicorn", ["lawn"]]
    assert len(words["candidate_labels"]) == 22
    assert words["stuff_labels"] == [["lawn"]]
    assert gather_words(None) == {"candidate_labels": None, "stuff_labels": None}


@pytest.mark.parametrize("name", available_vocabularies())
def test_every_vocabulary_can_be_asked_for_and_printed_lines_are_read_back(name, tmp_path):
    result = run("words", name, "--format", "lines")
    assert result.exit_code == 0, result.output
    (tmp_path / "names.txt").write_text(result.output, encoding="utf-8")
    again, known = load_vocabulary_file(tmp_path / "names.txt"), load_vocabulary_file(name)
    assert (again.classes, again.raw_ids) == (known.classes, known.raw_ids)
    assert (again.stuff or ()) == (known.stuff or ())
    assert len(parse_classes(load_labels(name)["candidate_labels"])) == known.num_labels


def test_words_lists_the_vocabularies_and_prints_one_as_a_table():
    assert "coco_panoptic_133: 133 classes" in run("words").output
    lines = run("words", "coco_panoptic_133").output.splitlines()
    assert any("person" in line and "thing" in line for line in lines)
    assert any("stuff" in line for line in lines)


def test_an_unknown_vocabulary_ends_in_one_line_with_the_known_ones():
    result = run("words", "coco")
    assert result.exit_code == 2
    assert "coco_panoptic_133" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "names.txt"], "--labels-file names.txt"),
        (["--labels", "coco_panoptic_133"], "--vocabulary coco_panoptic_133"),
        (["--labels", "cat", "--stuff", "names.txt"], "--labels-file names.txt"),
        (["--labels", "cat", "--distractors", "coco_panoptic_133"], "--distractor-vocabulary coco_panoptic_133"),
        (["--labels-file", "coco_panoptic_133"], "goes to --vocabulary"),
        (["--labels-file", "missing.txt"], "missing.txt: there is no such file"),
        (["--vocabulary", "coco"], "coco is neither"),
        (["--labels-file", "bad.txt"], "bad.txt, line 2: a class without a name"),
        (["--labels-file", "mixed.txt"], "mixed.txt, line 2 gives no id"),
        (["--labels-file", "ids.txt"], "ids.txt, line 3 gives the id 1 a second time"),
        (["--labels-file", "empty.txt"], "empty.txt holds no class"),
        (["--labels-file", "double.txt"], "double.txt, line 3 repeats the class 'cat' of"),
        (["--labels", "cat", "--distractor-vocabulary", "empty.txt"], "empty.txt holds no class"),
        (["--labels", "cat", "--distractors", ""], "--distractors: Label 0 ('') is empty"),
        (["--labels", "cat", "--min-margin", "0.5", "--task", "semantic"], "`min_margin` has no effect on semantic"),
    ],
)
def test_words_that_cannot_be_used_end_in_one_line_and_write_nothing(
    folder, picture, tmp_path, monkeypatch, arguments, message
):
    contents = {"bad": "cat\n , \n", "mixed": "1: cat\ndog\n", "ids": "1: cat\n2: dog\n1: cow\n", "empty": "\n"}
    for name, content in {**contents, "double": "cat\n\ncat\n", "names": "cat\n"}.items():
        (tmp_path / f"{name}.txt").write_text(content)
    monkeypatch.chdir(tmp_path)
    result = run("segment", picture, *arguments, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_distractor_that_is_also_a_label_is_left_out_and_said(capsys):
    found = gather_distractors(["Kitten, cub", "tree", "tree"], None, ["cat, kitten"])
    assert found == {"distractor_labels": [["Kitten", "cub"], ["tree"]]}
    assert capsys.readouterr().out == "left out of the distractors, as labels have their names: Kitten\n"
    assert len(gather_distractors(["tree"], "pascal_voc_20", ["cat"], is_quiet=True)["distractor_labels"]) == 21
    assert capsys.readouterr().out == ""


def test_distractors_are_never_in_the_results(folder, picture, tmp_path):
    options = ("--labels", "cat", "--distractors", "dog", "--distractors", "tree", "--task", "semantic")
    result = run("segment", picture, *options, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "one.json").read_text())
    assert {found["label"] for found in document["segments"]} <= {"cat"}
    assert document["labels"] == [["cat"]]
    assert document["distractors"] == [["dog"], ["tree"]]


def test_heat_maps_are_written_for_every_word_and_never_over_a_strangers_file(folder, picture, tmp_path):
    options = ("--labels", "cat/kitten", "--labels", "cat kitten", "--model", folder, "--heatmaps")
    out = tmp_path / "out"
    out.mkdir()
    (out / "one_heatmap_cat-kitten_2.png").write_bytes(b"mine")
    refused = run("segment", picture, *options, "--out", out)
    assert refused.exit_code == 2
    assert "one_heatmap_cat-kitten_2.png" in refused.output.replace("\n", "")
    (out / "one_heatmap_cat-kitten_2.png").unlink()
    assert run("segment", picture, *options, "--out", out).exit_code == 0
    drawn = ["one_heatmap_cat-kitten.png", "one_heatmap_cat-kitten_2.png", "one_confidence.png"]
    assert json.loads((out / "one.json").read_text())["heatmaps"] == drawn
    assert all(min(Image.open(out / name).size) >= 480 for name in drawn)


def test_a_second_word_stands_in_the_json(folder, picture, tmp_path):
    options = ("--labels", "cat", "--labels", "dog", "--task", "instance", "--threshold", "0", "--model", folder)
    assert run("segment", picture, *options, "--out", tmp_path / "out").exit_code == 0
    for found in json.loads((tmp_path / "out" / "one.json").read_text())["segments"]:
        assert {found["label"], found["second_label"]} == {"cat", "dog"}
        assert 0 <= found["second_score"] <= 1


def test_without_a_model_the_option_is_named(picture):
    result = run("segment", picture, "--labels", "cat")
    assert result.exit_code == 2
    assert "--model is missing" in result.output
    assert "--model shapes" in result.output


def test_the_shipped_model_has_a_name(tmp_path):
    assert (tmp_path / resolve_model("shapes") / "config.json").is_file()
    assert resolve_model("./shapes") == "./shapes"
