"""A Space of the Hub: a folder with the page of one model, which runs on its own there or anywhere else.

    maftplus page --model shapes --space my_space
    cd my_space && pip install -r requirements.txt && python app.py

Sources: the Hub's reference of a Space's metadata (README.md's header). A Space installs requirements.txt before its
files are there, so app.py itself unpacks the project's wheel, and requirements.txt lists what the wheel needs.
"""

import configparser
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

from maftplus.app.models import check_model_folder, resolve_whole_model
from maftplus.conversion.registry import SHIPPED

ROOT = Path(__file__).parents[1]  # of the checkout
EXTRAS = ("", "page", "video")  # what a Space needs of the project
PYTHON_VERSION = "3.12"
ROOT_FILES = ("*.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "py.typed")
SMALL_FILES = 10_000_000  # bytes; what is larger needs Git LFS
APP = '''"""Serves the page. The project's wheel is unpacked here: requirements are installed before files are."""

import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
WHEEL = HERE / "{wheel}"
site = tempfile.mkdtemp(prefix="maftplus-")
zipfile.ZipFile(WHEEL).extractall(site)
sys.path.insert(0, site)

import maftplus  # noqa: E402
from maftplus.app.page import serve  # noqa: E402

maftplus.register_auto_classes()
serve({model})
'''
README = """---
title: Segment with your own words
emoji: 🖍️
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
{models}short_description: Open-vocabulary segmentation with your own words
---

A page of [maftplus](https://pypi.org/project/maftplus): a picture or a clip, words, and what is found of them.
It runs anywhere: `pip install -r requirements.txt` and `python app.py`.
"""


def write_space(folder: Path, model: str | None) -> list[Path]:
    """
    Write a Space: app.py, requirements.txt, README.md, the project's wheel, and the model where it is a folder.

    Args:
        folder: Where to; it must be empty or not be there.
        model: "shapes" (inside the wheel), a folder or a name of `maftplus get` (copied), or a name of the Hub, which
            the Space fetches.

    Raises:
        ValueError: if `folder` holds something, there is no such model, or the package is not a checkout.
        OSError: if something cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: there is something in it; give --space a new folder.")
    source = resolve_whole_model(model)
    check_model_folder(source)
    check_checkout()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(folder)
    expression, is_remote = _place_model(folder, str(model), source)
    (folder / "app.py").write_text(APP.format(wheel=wheel.name, model=expression), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(wheel_requirements(wheel)) + "\n", encoding="utf-8")
    models = f"models:\n- {model}\n" if is_remote else ""
    header = README.format(gradio=version("gradio"), python=PYTHON_VERSION, models=models)
    (folder / "README.md").write_text(header, encoding="utf-8")
    return sorted(folder.iterdir())


def check_checkout() -> None:
    """Raises ValueError where the package is installed: a wheel is built from the project's sources."""
    if not (ROOT / "setup.cfg").is_file():
        raise ValueError(
            "--space builds the project's wheel, for which this installation lacks the sources: clone the project, "
            'run `pip install -e ".[page]"` in the clone and give the command again.'
        )


def build_wheel(folder: Path) -> Path:
    """
    The project's wheel, built from a copy of the checkout's sources, so that nothing is left in the checkout.

    Raises:
        ValueError: with pip's last words, if it cannot be built.
    """
    with tempfile.TemporaryDirectory() as copy:
        _copy_sources(Path(copy))
        options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
        line = (sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), copy)
        result = subprocess.run(line, capture_output=True, text=True, check=False, cwd=copy)
    wheels = list(folder.glob("maftplus-*.whl"))
    if result.returncode or not wheels:
        last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"The project's wheel could not be built ({last}); `pip install pip setuptools` may help.")
    return wheels[0]


def _copy_sources(folder: Path) -> None:
    """The root's files and the folders that setup.cfg packs."""
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    packed = [line.partition("=")[2].strip() for line in options["options"]["package_dir"].strip().splitlines()]
    for path in {path for pattern in ROOT_FILES for path in ROOT.glob(pattern)}:
        shutil.copy(path, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in {Path(name).parts[0] for name in packed if name != "."} | {"models"}:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def wheel_requirements(wheel: Path) -> list[str]:
    """What a wheel and its `EXTRAS` need, a line each as pip reads them."""
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        header = HeaderParser().parsestr(content.read(name).decode("utf-8"))
    found = []
    for requirement in map(Requirement, header.get_all("Requires-Dist", [])):
        is_needed = not requirement.marker or any(requirement.marker.evaluate({"extra": one}) for one in EXTRAS)
        if is_needed and requirement.name != "maftplus":
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def _place_model(folder: Path, model: str, source: str) -> tuple[str, bool]:
    """The model as app.py writes it, and whether it is fetched from the Hub; one that is a folder is copied."""
    if model in SHIPPED:
        return repr(model), False
    if not Path(source).is_dir():
        return repr(source), True
    shutil.copytree(source, folder / "model", ignore=shutil.ignore_patterns("__pycache__"))
    if any(path.stat().st_size > SMALL_FILES for path in (folder / "model").rglob("*") if path.is_file()):
        lines = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        (folder / ".gitattributes").write_text(lines, encoding="utf-8")
    return 'str(HERE / "model")', False


__all__ = ["build_wheel", "check_checkout", "wheel_requirements", "write_space"]
