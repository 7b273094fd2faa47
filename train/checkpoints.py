"""Which checkpoints are whole: a marker, written last, lists every file with its size.

A run that is killed while it saves leaves a checkpoint without a marker, a cut file one that differs from its marker.
Neither counts: `--resume_from_checkpoint last` goes on from the newest whole one.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from maftplus.pictures.files import write_atomically

logger = logging.getLogger("maftplus.train")

MARKER = "checkpoint_complete.json"
DISK_ERRORS = ("PytorchStreamWriter", "inline_container", "unexpected pos", "os error", "I/O error", "No space left")


def mark_as_whole(folder: Path) -> None:
    """Write the marker of a checkpoint; nothing may be written into it afterwards."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    sizes.pop(MARKER, None)
    write_atomically(folder / MARKER, json.dumps({"files": sizes}, indent=2))


def checkpoint_fault(folder: Path) -> str | None:
    """Why a checkpoint is not whole, in words; None if it is."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it lacks {MARKER}, which is written last"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MARKER} cannot be read ({error})"
    for name, size in sizes.items():
        try:
            with (folder / name).open("rb") as file:
                file.read(1)
            actual = (folder / name).stat().st_size
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if actual != size:
            return f"{name} has {actual} bytes in place of {size}"
    return None


def checkpoints_of(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, the newest first."""
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*")]
    steps = {int(match[1]): path for match, path in numbered if match and path.is_dir()}
    return [steps[step] for step in sorted(steps, reverse=True)]


def last_whole_checkpoint(output_dir: Path) -> Path:
    """
    The newest checkpoint that is whole; a warning names it and the broken ones after it.

    Raises:
        FileNotFoundError: if there is none; the message says what is wrong with the newest.
    """
    faults = {}
    for folder in checkpoints_of(output_dir):
        fault = checkpoint_fault(folder)
        if fault is None:
            for broken, reason in faults.items():
                logger.warning("%s is left out: %s. Going on from %s.", broken, reason, folder)
            return folder
        faults[folder] = fault
    if not faults:
        raise FileNotFoundError(f"{output_dir} holds no checkpoint to resume from.")
    newest, reason = next(iter(faults.items()))
    raise FileNotFoundError(
        f"{output_dir} holds no whole checkpoint: {newest.name}: {reason}. Give one by its path to go on from it all "
        "the same."
    )


def remove_oldest(output_dir: Path, keep: int | None, best: str | None) -> None:
    """Delete all checkpoints but the newest `keep` whole ones and the `best`; broken ones do not count."""
    if not keep or keep < 1:
        return
    whole = [folder for folder in checkpoints_of(output_dir) if checkpoint_fault(folder) is None]
    best_folder = Path(best).resolve() if best else None
    others = [folder for folder in whole if folder.resolve() != best_folder]
    num_kept = keep - 1 if len(others) < len(whole) else keep
    for folder in others[max(1, num_kept) :]:
        (folder / MARKER).unlink()  # first, so that half of it never counts
        shutil.rmtree(folder)


@contextlib.contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """
    Raises:
        OSError: in place of what torch and safetensors raise when a file cannot be written; it names `folder`.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not any(sign in str(error) for sign in DISK_ERRORS):
            raise
        reason = str(error).splitlines()[0]
        raise OSError(f"{folder}: a file could not be written, the disk may be full ({reason}).") from error
