"""`maftplus finetune` as a command: what it refuses in one line, and that it hands on what it is told."""

import pytest
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.train.finetuning import finetune as module


def invoke(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def test_what_is_no_data_set_ends_in_one_line(tmp_path):
    result = invoke("--data", tmp_path / "nothing", "--model", "scratch", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is no folder" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_named_before_the_data_are_read(tmp_path):
    result = invoke("--data", tmp_path, "--model", tmp_path / "none", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "there is no such model folder" in result.output


def test_the_options_reach_the_library(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(module, "finetune", lambda options, tell: given.append(options))
    more = [
        "--preset",
        "full",
        "--max-steps",
        "7",
        "--task",
        "instance",
        "--compensation-weight",
        "0.5",
        "--ignore-value",
        "0",
    ]
    result = invoke("--data", "d", "--model", "shapes", "--out", tmp_path, "--dtype", "float32", *more)
    assert result.exit_code == 0, result.output
    (options,) = given
    assert (options.preset, options.max_steps, options.task, options.bf16) == ("full", 7, "instance", False)
    assert options.compensation_weight == 0.5
    assert options.patience is None
    assert (options.ignore_value, options.lora) == (0, None)


def test_a_preset_from_random_weights_is_refused(tmp_path):
    result = invoke("--data", "d", "--model", "scratch", "--out", tmp_path, "--preset", "quick")
    assert result.exit_code == 2
    assert "leave it out" in result.output


@pytest.mark.parametrize("option", ["--max-steps", "--batch-size", "--lora-rank"])
def test_counts_are_positive(tmp_path, option):
    assert invoke("--data", "d", "--model", "shapes", "--out", tmp_path, option, "0").exit_code == 2
