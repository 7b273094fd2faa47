"""README's first minute at full size: what `maftplus get NAME` and `maftplus segment` take in time, memory and disk.

    python tests/first_minute.py FOLDER --picture photo.jpg

The original is a file of random weights with the recorded names and shapes, served on the loopback in Drive's place
and cut once half-way. Either command is a process of its own. Memory: the most that lay in memory at once, pages of
mapped files included; disk: the most that lay in `MAFTPLUS_HOME`, and what is left. Needs about three times the file.
"""

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from drive_server import routed, serve
from PIL import Image
from text_tools import load_tokenizer

from maftplus.conversion.registry import HOME_VARIABLE, RELEASES

KEYS = Path(__file__).parent / "fixtures" / "keys"
RECORDED = {
    "maftplus-base": "maft_plus_convnext_base_w_320_semantic171",
    "maftplus-large": "maft_plus_convnext_large_d_320_semantic171",
    "fcclip-large": "fcclip_convnext_large_d_320_panoptic133",
}


def random_tensor(name: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """As networks are initialised: products keep their size, norms start as identities."""
    if name.endswith("logit_scale"):
        return torch.full(shape, math.log(1 / 0.07))
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.ones(shape) if name.endswith(("weight", "gamma")) else torch.randn(shape, generator=generator) / 50


def write_random(path: Path, recorded: str) -> None:
    """A checkpoint of the recorded names and shapes in the original's layout."""
    with gzip.open(KEYS / f"{recorded}.json.gz", "rt") as file:
        shapes = json.load(file)
    generator = torch.Generator().manual_seed(0)
    torch.save({"model": {name: random_tensor(name, shape, generator) for name, (shape, _) in shapes.items()}}, path)


def size_of(folder: Path) -> int:
    """Bytes in a folder that other processes write to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # gone meanwhile
            continue
    return total


def run_command(arguments: Sequence[str], address: str, home: Path) -> None:
    """Run `maftplus ARGUMENTS` in a process of its own and print what it took."""
    environment = {**os.environ, HOME_VARIABLE: str(home), "HF_HUB_OFFLINE": "1"}
    start, sizes, has_ended = time.perf_counter(), [0], threading.Event()

    def watch() -> None:
        while not has_ended.wait(0.5):
            sizes.append(size_of(home))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process = subprocess.Popen([sys.executable, __file__, "--routed", address, *arguments], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    has_ended.set()
    watcher.join()
    seconds, computing = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"maftplus {' '.join(arguments)}: exit code {process.returncode}")
    print(f"  {seconds:.0f} s ({computing:.0f} s of computing); {usage.ru_maxrss * 1024 / 1e9:.2f} GB of memory")
    print(f"  disk: {max(sizes) / 1e9:.2f} GB at most, {size_of(home) / 1e9:.2f} GB left", flush=True)


def run_routed(address: str, arguments: list[str]) -> None:
    """`maftplus ARGUMENTS` in this process, with Drive's hosts at `address`."""
    from maftplus.app.cli import main

    sys.argv = ["maftplus", *arguments]
    with routed(address):
        main()


def main() -> None:
    if sys.argv[1:2] == ["--routed"]:
        return run_routed(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", choices=RECORDED, default="maftplus-large")
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    original, tokenizer = options.folder / RELEASES[options.name].file_name, options.folder / "tokenizer"
    if not original.is_file():
        write_random(original, RECORDED[options.name])
    load_tokenizer().save_pretrained(tokenizer)
    size = original.stat().st_size
    pixels = Image.open(options.picture).size
    print(f"{original.name}: {size / 1e9:.2f} GB; {options.picture.name}: {pixels} pixels", flush=True)
    home, out = options.folder / "home", str(options.folder / "out")
    with serve(original) as drive:
        drive.cuts = [size // 2]
        run_command(["get", options.name, "--tokenizer", str(tokenizer)], drive.address, home)
        print(f"  transfers began at bytes {drive.starts}", flush=True)
        labels = ["-l", "dog, puppy", "-l", "grass"]
        arguments = ["segment", str(options.picture), *labels, "--model", options.name, "--out", out, "--overwrite"]
        run_command(arguments, drive.address, home)


if __name__ == "__main__":
    main()
