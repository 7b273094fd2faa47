"""Masks from files, for pictures of a call of the command: which file goes with which picture, and what it holds."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from maftplus.app.jobs import Job
from maftplus.reading_maftplus import is_url

ENDINGS = ("_labels.png", ".json", ".npy", ".png")  # what a folder holds for a picture, by its name without ending


def find_mask_files(source: Path, jobs: Sequence[Job]) -> dict[Job, Path]:
    """
    The file (or folder of PNGs) with every picture's masks.

    Args:
        source: A file, for one picture; or a folder with `<name>_labels.png`, `<name>.json`, `<name>.npy`,
            `<name>.png` or a folder `<name>` of PNGs for each; the first of them that is there.

    Raises:
        ValueError: for one file and several pictures, or a picture without masks; the message names it.
    """
    if source.is_dir():
        return {job: _find(source, job) for job in jobs}
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file or folder of masks.")
    if len(jobs) > 1:
        raise ValueError(f"{source}: one file holds the masks of one picture, not of {len(jobs)}; give a folder.")
    return {jobs[0]: source}


def _find(folder: Path, job: Job) -> Path:
    name = Path(urlsplit(job.path).path if is_url(job.path) else job.path).stem
    for path in (*(folder / f"{name}{ending}" for ending in ENDINGS), folder / name):
        if path.exists():
            return path
    expected = ", ".join(f"{name}{ending}" for ending in ENDINGS)
    raise ValueError(f"{folder}: no masks of {job.path} are here; expected {expected} or a folder {name}.")


def load_masks(path: Path) -> Any:
    """
    What a file holds, as the pipeline's `masks` takes it: a JSON document, an array, a label map, or of a folder its
    PNGs in the order of the numbers in their names.

    Raises:
        ValueError: if it cannot be read as that; the message names it.
    """
    if path.is_dir():
        files = sorted(path.glob("*.png"), key=_natural_key)
        if not files:
            raise ValueError(f"{path}: this folder of masks holds no PNG.")
        return [_load(file) for file in files]
    return _load(path)


def _natural_key(path: Path) -> list[int | str]:
    """`10.png` after `9.png`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def _load(path: Path) -> Any:
    ending = path.suffix.lower()
    try:
        if ending == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if ending == ".npy":
            return np.load(path, allow_pickle=False)
        with Image.open(path) as image:
            return image.copy()
    except (OSError, ValueError, EOFError) as error:
        kind = {".json": "JSON", ".npy": "an array"}.get(ending, "a picture of masks (or .json, .npy)")
        raise ValueError(f"{path}: cannot be read as {kind}: {error}") from error


__all__ = ["find_mask_files", "load_masks"]
