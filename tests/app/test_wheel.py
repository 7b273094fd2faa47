"""The built wheel, installed outside of the checkout: an editable install hides files that `setup.cfg` forgets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).parents[2]
PARTS = ("*.py", "*.cfg", "*.toml", "README.md", "LICENSE", "py.typed")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "out", "runs")
IN_A_FRESH_PROCESS = """
import json, sys
from pathlib import Path
import maftplus
from maftplus.shapes import demo
from maftplus.vocabularies.files import available_vocabularies

demo.main(["--out", sys.argv[1], "--num_scenes", "1"])
folder = Path(maftplus.__file__).parent
recipes = sorted(path.name for path in folder.rglob("recipes/*.yaml"))
metrics = sorted(path.name for path in folder.rglob("metrics/*/*.py"))
vocabularies = available_vocabularies()
print(json.dumps({"folder": str(folder), "recipes": recipes, "metrics": metrics, "vocabularies": vocabularies}))
"""


def call(*line, cwd, **environment):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    result = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's packages and its command."""
    source, work = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("work")
    for path in {path for pattern in PARTS for path in ROOT.glob(pattern)}:
        shutil.copy(path, source)
    for path in ROOT.iterdir():
        if path.is_dir() and path.name[0] != "." and path.name not in ("tests", "benchmarks", "docs", "out", "runs"):
            shutil.copytree(path, source / path.name, symlinks=True, ignore=IGNORED)
    options = ("--quiet", "--no-deps", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    call(*pip, "wheel", *options, "--no-build-isolation", "--wheel-dir", str(work), str(source), cwd=work)
    wheel = next(work.glob("maftplus-*.whl"))
    call(*pip, "install", *options, "--no-compile", "--target", str(work / "site"), str(wheel), cwd=work)
    return work / "site"


def test_the_installed_wheel_runs_the_demo_and_finds_its_files(installed, tmp_path):
    line = (sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / "out"))
    found = json.loads(call(*line, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()[-1])
    assert Path(found["folder"]) == installed / "maftplus"
    assert json.loads((tmp_path / "out" / "scene.json").read_text())["segments"]
    assert found["vocabularies"] == sorted(path.stem for path in (ROOT / "vocabularies").glob("*.json"))
    for name, pattern in (("recipes", "recipes/*.yaml"), ("metrics", "metrics/*/*.py")):
        folders = (ROOT / "train", ROOT / "shapes")
        assert found[name] == sorted(path.name for folder in folders for path in folder.glob(pattern))


def test_the_installed_command_answers_from_anywhere(installed, tmp_path):
    command = (sys.executable, str(installed / "bin" / "maftplus"), "--version")
    assert call(*command, cwd=tmp_path, PYTHONPATH=str(installed)).startswith("maftplus ")
