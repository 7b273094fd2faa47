"""Training, converting and segmenting onto a disk that is full or cannot be written: one error, nothing half-made.

The disks are real ones (tmpfs) where this process may mount them; `SmallDisk` says so.
"""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import torch
from chaos.killed_commands import run_command
from chaos.tools import Outcome, require, small_disk
from conversion_tools import open_clip_state
from PIL import Image
from tiny_tools import save_tiny
from training_tools import save_checkpoints

from maftplus.train.checkpoints import last_whole_checkpoint


def train_onto_full_disk(folder: Path) -> Outcome:
    """The third checkpoint finds no room, at five fillings: OSError; the second counts, and goes on with room."""
    hits = 0
    with small_disk(folder) as disk:
        save_checkpoints(folder / "run", steps=2)
        whole = folder / "run" / "checkpoint-2"
        sizes = sorted(path.stat().st_size for path in whole.iterdir())
        for free in (0, sizes[0], sizes[-1] // 2, sizes[-1], sizes[-1] + sizes[-2] // 2):
            disk.leave(free if disk.is_real else min(free, sizes[-1] // 2))
            try:
                save_checkpoints(folder / "run", steps=3, resume_from_checkpoint=str(whole))
            except OSError:
                hits += 1
            else:
                raise AssertionError(f"with {free} bytes a full disk went unnoticed")
            require(last_whole_checkpoint(folder / "run") == whole, "the checkpoint before is lost")
            disk.grow()
            shutil.rmtree(folder / "run" / "checkpoint-3", ignore_errors=True)
        save_checkpoints(folder / "run", steps=3, resume_from_checkpoint=str(whole))
        require(last_whole_checkpoint(folder / "run").name == "checkpoint-3", "training does not go on")
        return Outcome(5, hits, disk.how)


def train_into_read_only_folder(folder: Path) -> Outcome:
    """OSError that names the folder, before or after computing; nothing else."""
    with small_disk(folder) as disk:
        if not disk.protect():
            return Outcome(0, 0, "needs the right to mount")
        try:
            save_checkpoints(folder / "run", steps=1)
        except OSError as error:
            require(str(folder) in str(error), f"the error names no folder: {error}")
            return Outcome(1, 1, disk.how)
    raise AssertionError("a read-only disk went unnoticed")


def convert_onto_full_disk(folder: Path) -> Outcome:
    """Full while it writes, at six fillings: exit code 2 and an empty disk; with room again it converts."""
    source = folder / "source"
    source.mkdir(parents=True)
    torch.save(open_clip_state(), source / "clip.pth")
    (source / "heads.json").write_text(json.dumps({"text_config": {"num_attention_heads": 2}}))
    options = ("--config", source / "heads.json", "--tokenizer", "none")
    weights, hits = (source / "clip.pth").stat().st_size, 0
    for index, free in enumerate((0, 4096, 100_000, weights // 4, weights // 2, weights - 100_000)):
        with small_disk(folder / f"disk{index}") as disk:
            disk.leave(free)
            with patch("maftplus.conversion.convert.require_space"):  # which would say so before anything is written
                code = run_command("convert", source / "clip.pth", disk.folder / "out", *options)
            require(code == 2, f"with {free} bytes the exit code is {code}")
            require(not list(disk.folder.iterdir()), f"left behind: {list(disk.folder.iterdir())}")
            disk.grow()
            require(run_command("convert", source / "clip.pth", disk.folder / "out", *options) == 0, "it stays broken")
            hits += 1
    return Outcome(6, hits, disk.how)


def segment_onto_full_disk(folder: Path) -> Outcome:
    """At five fillings: exit code 1 or 2, results whole or not there, no hidden remains; with room all are there."""
    folder.mkdir(parents=True)
    save_tiny(folder / "model", ["cat", "grass"])
    (folder / "pictures").mkdir()
    for index in range(3):
        Image.effect_noise((200, 150), 60).convert("RGB").save(folder / "pictures" / f"{index}.png")
    hits = 0
    for index, free in enumerate((4096, 20_000, 60_000, 120_000, 200_000)):
        with small_disk(folder / f"disk{index}") as disk:
            disk.leave(free)
            code = run_command("segment", folder / "pictures", "--model", folder / "model", "--out", disk.folder, "-q")
            require(code in (1, 2), f"with {free} bytes the exit code is {code}")
            for path in disk.folder.iterdir():
                require(not path.name.startswith("."), f"left behind: {path}")
                json.loads(path.read_text()) if path.suffix == ".json" else Image.open(path).load()
            disk.grow()
            code = run_command("segment", folder / "pictures", "--model", folder / "model", "--out", disk.folder, "-q")
            require(code == 0 and len(list(disk.folder.iterdir())) == 9, "results are lost")
            hits += 1
    return Outcome(5, hits, disk.how)
