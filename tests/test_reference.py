"""The recorded numbers of the original code, on copies in `fixtures/`; and that the check itself can fail."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import check_reference
import pytest
from check_reference import CHECKS, check_folder
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


def test_a_difference_over_the_tolerance_fails():
    assert compare("x", [1.0, 2.0], [1.0, 2.1], 0.01).ratio > 1
    assert compare("x", [1.0, float("nan")], [1.0, 2.0], 0.01).ratio == float("inf")
    assert compare("x", [1.0], [1.0, 2.0], 0.01).ratio == float("inf")
    assert Comparison("x", 0.0, 0.0).ratio == 0.0
