"""`maftplus evaluate`: figures of a model on a folder, whose words are the folder's names."""

import json

import pytest
from form_tools import make_label_maps
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.shapes.scenes import export_coco_panoptic


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    export_coco_panoptic(folder, "test", 5)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_the_shipped_model_is_measured_on_its_own_world_with_a_report(scenes, tmp_path):
    result = run("--data", scenes, "--model", "shapes", "--split", "all", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (
        "measured on all pictures: a model that was trained on some of them looks better than it is" in result.output
    )
    results = json.loads((tmp_path / "results.json").read_text())
    measured = {row["task"]: row for row in results["data_sets"]}
    assert measured["semantic"]["num_images"] == measured["panoptic"]["num_images"] == 5
    assert measured["semantic"]["figures"]["mean_iou"] > 0.6
    assert measured["panoptic"]["figures"]["pq"] > 0.5
    page = (tmp_path / "report.html").read_text()
    assert "Measured on all pictures" in page
    assert "what is taken for what" in page
    assert page.count("<img") == 10  # every picture, once a task


def test_held_out_pictures_are_measured_unless_others_are_asked_for(scenes):
    result = run("--data", scenes, "--model", "shapes", "--task", "semantic", "--quiet")
    assert result.exit_code == 0, result.output
    assert "set aside by seed 0); held out only if the model was trained with that seed" in result.output
    assert "_val" in result.output
    assert "PQ" not in result.output


def test_figures_of_training_pictures_are_called_so(scenes):
    result = run("--data", scenes, "--model", "shapes", "--split", "train", "--max-pictures", 1, "--quiet")
    assert result.exit_code == 0, result.output
    assert "measured on training pictures: a model that was trained on them looks better than it is" in result.output


def test_bad_data_end_in_one_line_that_names_the_file(tmp_path):
    make_label_maps(tmp_path, values=(0, 77))
    result = run("--data", tmp_path, "--model", "shapes")
    assert result.exit_code == 2
    assert "the ids 77 are not in the vocabulary names" in result.output
    assert "Traceback" not in result.output


def test_a_file_is_no_folder_for_the_report(tmp_path):
    (tmp_path / "report").write_text("mine")
    result = run("--data", tmp_path, "--model", "shapes", "--out", tmp_path / "report")
    assert result.exit_code == 2
    assert "is a file; --out is a folder" in result.output


def test_the_test_part_is_measured_where_there_is_one(scenes, tmp_path):
    result = run("--data", scenes, "--model", "shapes", "--split", "test", "--quiet")
    assert result.exit_code == 2
    assert "have no part called `test`" in result.output


def test_a_folder_that_fits_no_form_is_told_what_was_looked_for(tmp_path):
    result = run("--data", tmp_path, "--model", "shapes")
    assert result.exit_code == 2
    assert "has none of the forms that are known" in result.output
