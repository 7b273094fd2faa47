"""The house: which file may import which, and that every configuration field is read somewhere."""

import ast
import re
from pathlib import Path

import pytest

from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig

ROOT = Path(__file__).parent.parent
# File -> what it may import of ours (without the suffix `_maftplus`). Nothing goes back.
ARROWS = {
    "configuration": set(),
    "layers": set(),
    "clip": {"configuration", "layers"},
    "segmenter": {"configuration", "layers"},
    "proposer": {"configuration", "segmenter"},
    "loss": set(),
    "modeling": {"clip", "segmenter", "proposer", "loss", "configuration"},
    "postprocessing": set(),
    "image_processing": {"postprocessing"},
    "words": set(),
    "processing": {"image_processing", "words"},
}


def imported(path: Path) -> set[str]:
    """Names of the root modules that a root file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            names.add((node.module or "").removesuffix("_maftplus"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maftplus"):
            names.add(node.module.removeprefix("maftplus.").removesuffix("_maftplus"))
    return names


@pytest.mark.parametrize("name", ARROWS)
def test_files_that_travel_to_the_hub_import_downwards_only(name):
    assert imported(ROOT / f"{name}_maftplus.py") <= ARROWS[name]


def test_no_root_file_imports_the_training_code_but_the_command_line():
    for path in ROOT.glob("*_maftplus.py"):
        if path.name != "app/cli.py":
            assert not any(name.startswith("train") for name in imported(path)), path.name


def test_training_code_imports_the_package_absolutely():
    for path in (ROOT / "train").rglob("*.py"):
        relative = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if getattr(n, "level", 0)]
        assert not relative, path


@pytest.mark.parametrize("config", [MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig])
def test_every_configuration_field_is_read(config):
    paths = [*ROOT.glob("*.py"), *(ROOT / "train").glob("*.py")]
    code = "\n".join(re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8")) for path in paths)
    for field in config.__annotations__.keys() - {"initializer_range"}:  # transformers' own initialisation reads it
        assert re.search(rf"(\.{field}\b(?!\s*=[^=]))|(\"{field}\")", code), f"nothing reads `{field}`"


def test_nothing_stands_in_a_travelling_file_that_remote_code_cannot_import():
    for name in ARROWS:
        text = (ROOT / f"{name}_maftplus.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*from \.\w+\.\w+ import|^\s*from \.\. ?|^\s*from \. import", text, re.M), name
        assert "from __future__ import annotations" not in text
