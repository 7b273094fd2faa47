"""The house: which file may import which, how large files and functions may grow, and that nothing is forgotten.

The tables here are the arrows of the design, written once: who needs another arrow changes them with a reason.
"""

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig

ROOT = Path(__file__).parents[1]
SAVED_MODEL = ROOT / "models" / "shapes"

# Travelling file (without `_maftplus.py`) -> those that it may import. Nothing goes back.
_WORDS_AND_PIXELS = {"image_processing", "postprocessing", "predictions", "reading", "words"}
TRAVELLING = {
    "configuration": set(),
    "words": set(),
    "layers": set(),
    "loss": set(),
    "predictions": set(),
    "postprocessing": {"predictions"},
    "towers": {"layers"},
    "clip": {"configuration", "layers", "towers"},
    "segmenter": {"configuration", "layers"},
    "proposer": {"configuration", "layers", "segmenter"},
    "classifier": {"configuration", "layers"},
    "outputs": set(),
    "modeling": {
        *{"classifier", "clip", "configuration", "layers", "loss", "outputs", "proposer", "segmenter", "towers"},
    },
    "reading": set(),
    "image_processing": {"postprocessing", "predictions", "reading"},
    "processing": {*_WORDS_AND_PIXELS, "pipeline", "masks", "tiles"},
    "pipeline": {*_WORDS_AND_PIXELS, "masks", "tiles"},
    "masks": _WORDS_AND_PIXELS,
    "tiles": _WORDS_AND_PIXELS,
}
# Room -> rooms that it may import beside itself and the root.
_LIBRARY = {"vocabularies", "pictures", "conversion"}
ROOMS = {
    "vocabularies": set(),
    "pictures": set(),
    "conversion": {"vocabularies"},
    "deploy": _LIBRARY,
    "train": _LIBRARY,
    "scale": {*_LIBRARY, "deploy"},
    "app": {*_LIBRARY, "deploy", "train", "scale"},
    "shapes": {*_LIBRARY, "deploy", "train", "scale", "app"},
}
FREE_ROOMS = {"benchmarks", "tests"}  # may import anything
OTHER_FOLDERS = {"models", "docs", "out", "runs", "build", "dist"}  # without code of ours

LONGEST_FILE, LONGEST_FUNCTION, GUIDE = 550, 60, 40  # lines; functions without their docstring
# Over the guide, each for a reason.
LONG_FUNCTIONS = {
    "modeling_maftplus.py:forward",  # its signature is the public interface
    "app/commands/segment.py:segment",  # its signature is the command line
    "app/commands/finetune.py:finetune",  # the same
}


REPEATED_LINES = 6
PARAMETER = re.compile(r"\**\w+(: [^=]+)?( ?= ?[\w.]+)?,")  # of a signature or a call
MAY_REPEAT = {
    ("train/metrics/mean_iou/mean_iou.py", "train/metrics/panoptic_quality/panoptic_quality.py"),  # each travels alone
}


def production_files() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; relative ones begin with a dot."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            is_package = module == "maftplus" or not node.module  # then the names may be modules
            yield from (f"{module.rstrip('.')}.{alias.name}" for alias in node.names) if is_package else [module]


def own_parts(path: Path) -> set[str]:
    """First part below `maftplus` of every import of ours: a room, a travelling file, or a public name."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("maftplus.")}


def test_the_root_holds_what_travels_and_nothing_else():
    names = {path.name for path in ROOT.glob("*.py")} - {"__init__.py"}
    assert names <= {f"{name}_maftplus.py" for name in TRAVELLING}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*_maftplus.py")), ids=lambda path: path.stem)
def test_files_that_travel_import_their_neighbours_downwards_only(path):
    modules = list(imports(path))
    relative = {name[1:].removesuffix("_maftplus") for name in modules if name.startswith(".")}
    assert relative <= TRAVELLING[path.stem.removesuffix("_maftplus")]
    assert not [name for name in modules if name.split(".")[0] == "maftplus"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("*_maftplus.py")), ids=lambda path: path.stem)
def test_remote_code_sees_the_imports_of_a_travelling_file_as_python_does(path):
    """transformers looks for lines with a pattern, in docstrings too, and copies the files that they name."""
    text = path.read_text(encoding="utf-8")
    seen = set(
        re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.M) + re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.M)
    )
    assert seen == {name[1:] for name in imports(path) if name.startswith(".")}
    assert "from __future__ import annotations" not in text


def test_the_package_imports_travelling_files_and_what_it_registers_or_offers_only():
    modules = {name for name in imports(ROOT / "__init__.py") if name.startswith(".")}
    allowed = {f".{name}_maftplus" for name in TRAVELLING} | {".vocabularies.files", ".deploy"}
    assert modules <= allowed


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_its_arrows_say(room):
    allowed = {room, *ROOMS[room], *(f"{name}_maftplus" for name in TRAVELLING)}
    rooms = {*ROOMS, *FREE_ROOMS}
    for path in (ROOT / room).rglob("*.py"):
        wrong = {part for part in own_parts(path) if part in rooms or part.endswith("_maftplus")} - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("room", [*ROOMS, "benchmarks"])
def test_rooms_import_the_package_absolutely(room):
    for path in (ROOT / room).rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith(".")], path.relative_to(ROOT)


def test_every_folder_with_code_is_a_room_of_the_table():
    folders = {
        path.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py") if "site-packages" not in path.parts
    }
    assert folders <= {*ROOMS, *FREE_ROOMS, *OTHER_FOLDERS}


def test_every_package_is_in_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = sorted(path.parent for room in ROOMS for path in (ROOT / room).rglob("__init__.py"))
    places = {f"maftplus.{'.'.join(folder.relative_to(ROOT).parts)}": folder.relative_to(ROOT) for folder in folders}
    lines = [f"{name} = {folder.as_posix()}" for name, folder in places.items()]
    options = setup["options"]
    assert sorted(options["package_dir"].split("\n")[1:]) == sorted(["maftplus = .", *lines])
    assert sorted(options["packages"].split("\n")[1:]) == sorted(["maftplus", *places])


@pytest.mark.parametrize("path", sorted(ROOT.glob("*_maftplus.py")), ids=lambda path: path.stem)
def test_the_shipped_model_links_to_every_travelling_file(path):
    link = SAVED_MODEL / path.name
    assert link.is_symlink()
    assert link.resolve() == path.resolve()


def test_the_shipped_model_has_no_dead_links():
    assert [path.name for path in SAVED_MODEL.iterdir() if not path.exists()] == []


def test_no_file_is_too_long_to_read():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in production_files()
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_function_is_too_long_to_read():
    lengths = {
        f"{path.relative_to(ROOT).as_posix()}:{node.name}": code_lines(node)
        for path in production_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
    assert {name for name, length in lengths.items() if length > GUIDE} <= LONG_FUNCTIONS


def blocks(path: Path) -> Iterator[tuple[str, ...]]:
    """Every run of `REPEATED_LINES` lines; empty ones, brackets and parameters alone are left out."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if re.search(r"\w{2}", line) and not PARAMETER.fullmatch(line)]
    return zip(*(lines[start:] for start in range(REPEATED_LINES)))


def test_no_block_of_six_lines_stands_twice():
    first: dict[tuple[str, ...], str] = {}
    for path in production_files():
        name = path.relative_to(ROOT).as_posix()
        for block in blocks(path):
            other = first.get(block)
            assert other is None or (other, name) in MAY_REPEAT, f"{other} and {name} share:\n" + "\n".join(block)
            first[block] = name


@pytest.mark.parametrize("config", [MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig])
def test_every_configuration_field_is_read(config):
    paths = [*ROOT.glob("*.py"), *(ROOT / "train").rglob("*.py")]
    code = "\n".join(re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8")) for path in paths)
    for field in config.__annotations__.keys() - {"initializer_range"}:  # transformers' own initialisation reads it
        assert re.search(rf"(\.{field}\b(?!\s*=[^=]))|(\"{field}\")", code), f"nothing reads `{field}`"
