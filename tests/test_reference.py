"""The recorded numbers of the original code, on copies in `fixtures/`; and that the check itself can fail."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import check_reference
import pytest
import text_tools
import torch
from check_reference import CHECKS, check_folder
from reference_maft import _without_ties
from reference_tools import Comparison, compare

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("folder", sorted({pattern.split("/")[0] for pattern in CHECKS}))
def test_our_numbers_equal_the_recorded_ones(folder, capsys):
    assert check_folder(FIXTURES, only=f"{folder}/*") == 0, capsys.readouterr().out


def test_an_unknown_file_fails_the_check(tmp_path, capsys):
    shutil.copytree(FIXTURES / "functions", tmp_path / "functions")
    (tmp_path / "functions" / "surprise.npz").touch()
    assert check_folder(tmp_path) == 1
    assert "UNKNOWN" in capsys.readouterr().out


def test_an_empty_folder_fails_the_check(tmp_path, capsys):
    assert check_folder(tmp_path) == 1
    assert "nothing was checked" in capsys.readouterr().out


def test_a_golden_that_gives_nothing_to_compare_fails_the_check(tmp_path, capsys, monkeypatch):
    shutil.copytree(FIXTURES / "functions", tmp_path / "functions")
    (tmp_path / "functions" / "nothing.npz").touch()
    stand_in = SimpleNamespace(check=lambda path: [] if path.stem == "nothing" else [Comparison("x", 0.0, 1.0)])
    monkeypatch.setattr(check_reference.importlib, "import_module", lambda name: stand_in)
    monkeypatch.setattr(check_reference, "CHECKS", {"functions/*.npz": "reference_functions:check"})
    assert check_folder(tmp_path) == 1
    assert "nothing compared" in capsys.readouterr().out
    (tmp_path / "functions" / "nothing.npz").unlink()
    assert check_folder(tmp_path) == 0


def test_a_check_that_is_gone_fails(tmp_path, capsys, monkeypatch):
    shutil.copytree(FIXTURES / "functions", tmp_path / "functions")
    monkeypatch.setattr(check_reference, "CHECKS", {"functions/*.npz": "reference_lost:check"})
    assert check_folder(tmp_path) == 1
    assert "reference_lost.py, is gone" in capsys.readouterr().out


def test_words_that_need_the_whole_vocabulary_are_named_and_fail(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text_tools, "find_bpe", lambda: None)
    (tmp_path / "text").mkdir()
    recorded = json.loads((FIXTURES / "text" / "text.json").read_text(encoding="utf-8"))
    recorded["prompts"] += ["a photo of a wombat."]
    (tmp_path / "text" / "text.json").write_text(json.dumps(recorded))
    assert check_folder(tmp_path) == 1
    output = capsys.readouterr().out
    assert "needs CLIP's whole vocabulary" in output
    assert "wombat" in output
    assert "MAFTPLUS_BPE" in output


def test_patches_at_the_threshold_are_counted_and_their_masks_left_out():
    tied = torch.tensor([[False, True, False]])
    features = torch.ones(1, 3, 2)
    assert _without_ties(tied, 2, "out/mask_features", features).sum(-1).tolist() == [[2.0, 0.0, 2.0]]
    tokens = torch.ones(5, 1, 2)  # of every eighth token: the first mask's, and four patches
    assert _without_ties(tied[:, 1:], 2, "mid/block_2_tokens_every8", tokens).sum(-1).flatten().tolist() == [
        0,
        2,
        2,
        2,
        2,
    ]
    assert _without_ties(tied, 2, "mid/block_1_tokens_every8", tokens) is tokens  # no mask acts before block 2


def test_a_difference_over_the_tolerance_fails():
    assert compare("x", [1.0, 2.0], [1.0, 2.1], 0.01).ratio > 1
    assert compare("x", [1.0, float("nan")], [1.0, 2.0], 0.01).ratio == float("inf")
    assert compare("x", [1.0], [1.0, 2.0], 0.01).ratio == float("inf")
    assert Comparison("x", 0.0, 0.0).ratio == 0.0
