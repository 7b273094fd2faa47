"""`maftplus convert`, `segment` and `prepare`, killed at many moments: a second call mends all.

Children are forked by a process of its own, which has computed nothing:

    python tests/chaos/killed_commands.py convert FOLDER 20
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from chaos.tools import Outcome, kill_child, require
from conversion_tools import open_clip_state
from data_set_tools import make_ade_panoptic
from PIL import Image
from safetensors.torch import load_file
from tiny_tools import save_tiny
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.conversion.checkpoint import STAGING_ENDING
from maftplus.train.data.registry import load_data_set

NUM_PICTURES = 6
NUM_SCENES = 40


def run_command(*arguments: object) -> int:
    """The exit code of `maftplus ...`."""
    return CliRunner().invoke(app, [str(part) for part in arguments]).exit_code


# --- Converting ---


def convert_killed(folder: Path, kills: int = 20) -> Outcome:
    """Killed while it writes: no output folder, or a whole one; the next call removes what was left and ends well."""
    folder.mkdir()
    torch.save(open_clip_state(), folder / "clip.pth")
    (folder / "heads.json").write_text(json.dumps({"text_config": {"num_attention_heads": 2}}))
    _kill_in_a_process("convert", folder, kills)
    hits = 0
    for index in range(kills):
        place = folder / f"run{index}"
        hits += any(place.glob(f".*{STAGING_ENDING}"))
        if not (place / "out").exists():
            require(_convert(folder, index) == 0, "the second call fails")
        require([path.name for path in place.iterdir()] == ["out"], f"left behind: {list(place.iterdir())}")
        require(len(load_file(place / "out" / "model.safetensors")) > 10, "the weights are not whole")
        shutil.rmtree(place)
    return Outcome(kills, hits)


def _convert(folder: Path, index: int) -> int:
    options = ("--config", folder / "heads.json", "--tokenizer", "none")
    return run_command("convert", folder / "clip.pth", folder / f"run{index}" / "out", *options)


def _kill_convert(folder: Path, index: int) -> None:
    place = folder / f"run{index}"
    kill_child(lambda: _convert(folder, index), lambda: any(place.glob(f".*{STAGING_ENDING}")), delay=0.001 * index)


# --- Segmenting ---


def segment_killed(folder: Path, kills: int = 20) -> Outcome:
    """Killed between and inside pictures: every result is whole, a second call writes the rest."""
    folder.mkdir()
    save_tiny(folder / "model", ["cat", "grass"], stuff=["grass"])
    (folder / "pictures").mkdir()
    for index in range(NUM_PICTURES):
        pixels = np.random.default_rng(index).integers(0, 255, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{index}.png")
    _kill_in_a_process("segment", folder, kills)
    hits = 0
    for index in range(kills):
        found = _check_results(folder / f"run{index}")
        hits += 0 < found < 3 * NUM_PICTURES
        require(_segment(folder, index) == 0, "the second call fails")
        require(_check_results(folder / f"run{index}") == 3 * NUM_PICTURES, "results are lost")
        shutil.rmtree(folder / f"run{index}")
    return Outcome(kills, hits)


def _segment(folder: Path, index: int) -> int:
    options = ("--model", folder / "model", "--out", folder / f"run{index}", "-q")
    return run_command("segment", folder / "pictures", *options)


def _kill_segment(folder: Path, index: int) -> None:
    wanted, place = 1 + index % (3 * NUM_PICTURES - 1), folder / f"run{index}"
    kill_child(lambda: _segment(folder, index), lambda: len([*place.glob("*"), *place.glob(".*.part")]) >= wanted)


def _check_results(folder: Path) -> int:
    """How many results there are; each must be whole."""
    paths = [path for path in folder.glob("[!.]*") if path.is_file()]
    for path in paths:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            Image.open(path).load()
    return len(paths)


# --- Preparing ---


def prepare_killed(folder: Path, kills: int = 10) -> Outcome:
    """Killed while it converts annotations: a second call ends with the samples of an undisturbed one."""
    folder.mkdir()
    _write_scenes(folder / "whole")
    require(_prepare(folder / "whole") == 0, "preparing fails")
    whole = _samples(folder / "whole")
    _kill_in_a_process("prepare", folder, kills)
    hits = 0
    for index in range(kills):
        place = folder / f"run{index}"
        hits += _num_prepared(place) < NUM_SCENES or not list(place.rglob("ade20k_panoptic_*.json"))
        require(_prepare(place) == 0, "the second call fails")
        require(_samples(place) == whole, "samples are lost or changed")
        shutil.rmtree(place)
    return Outcome(kills, hits)


def _write_scenes(root: Path) -> None:
    """One scene of ADE20K under many names."""
    make_ade_panoptic(root)
    for path in sorted(root.rglob("ADE_val_00000001.*")):
        for index in range(2, NUM_SCENES + 1):
            shutil.copy(path, path.with_name(path.name.replace("00000001", f"{index:08}")))


def _prepare(root: Path) -> int:
    return run_command("prepare", "ade20k_panoptic", root, "--workers", 1)


def _kill_prepare(folder: Path, index: int) -> None:
    place = folder / f"run{index}"
    _write_scenes(place)
    wanted = 1 + 4 * index % NUM_SCENES
    kill_child(lambda: _prepare(place), lambda: _num_prepared(place) >= wanted)


def _num_prepared(root: Path) -> int:
    return sum(1 for _ in root.rglob("ade20k_panoptic_val/*.png"))


def _samples(root: Path) -> list:
    data = load_data_set("ade20k_panoptic", root, "val")
    samples = (data[index] for index in range(len(data)))
    return [(sample["name"], np.asarray(sample["segmentation_map"]).tolist()) for sample in samples]


# --- The process that kills ---


def _kill_in_a_process(name: str, folder: Path, kills: int) -> None:
    command = [sys.executable, str(Path(__file__)), name, str(folder), str(kills)]
    subprocess.run(command, check=True, timeout=60 + 60 * kills, capture_output=True)


KILL: dict[str, Callable[[Path, int], None]] = {
    "convert": _kill_convert,
    "segment": _kill_segment,
    "prepare": _kill_prepare,
}

if __name__ == "__main__":
    for number in range(int(sys.argv[3])):
        KILL[sys.argv[1]](Path(sys.argv[2]), number)
