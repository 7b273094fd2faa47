"""What is gained without training: the formulas, and pieces that are measured once."""

import json

import pytest
import torch

from maftplus.outputs_maftplus import MaftPlusModelOutput
from maftplus.shapes import gains


def test_objectness_lowers_void_by_the_share_of_the_best_class():
    answer = MaftPlusModelOutput(
        out_vocab_logits=torch.tensor([[[0.75, 0.25, 9.0]]]).log(),  # void's is not used
        void_probabilities=torch.tensor([[[0.4]]]),
    )
    scored = gains.score(answer, torch.tensor([True, False]), gains.Way(objectness=0.5))
    void = 0.4 * (1 - 0.5 * 0.75)
    expected = torch.tensor([[[0.75 * (1 - void), 0.25 * (1 - void), void]]])
    torch.testing.assert_close(scored["class_queries_logits"].exp(), expected)


def test_what_has_been_measured_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(gains, "WEIGHTS", (0.4, 1.0))
    monkeypatch.setattr(gains, "TIMED_SCENES", 1)
    which = {"model": gains.MODEL, "path": tmp_path / "gains.json", "num_chosen": 3, "num_scenes": 3}
    with torch.inference_mode():
        gains.run_missing(**which, seeds=[0])
    written = which["path"].read_text()
    monkeypatch.setattr(gains, "measure_time", None)
    monkeypatch.setattr(gains, "measure", None)
    assert json.dumps(gains.run_missing(**which, seeds=[0]), indent=1) + "\n" == written
    with pytest.raises(TypeError):
        gains.run_missing(**which, seeds=[0, 1])


def test_the_table_shows_differences_on_the_same_scenes():
    content = json.loads(gains.RESULTS.read_text(encoding="utf-8"))
    rows = {name: dict.fromkeys(gains.COLUMNS, 0.5) for name in gains.table_ways(content["chosen"])}
    better = {name: {**row, "pq": 0.75} if name == "flip, maps" else row for name, row in rows.items()}
    lines = gains.format_table({**content, "test": {"0": better, "1": rows}}).splitlines()
    assert "| 50.0 ± 0.0 | 50.0 ± 0.0 |" in lines[2]
    assert next(line for line in lines if line.startswith("| flip, maps")).startswith(
        "| flip, maps | +0.0 ± 0.0 | +12.5 ± 17.7 |"
    )
