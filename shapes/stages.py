"""Stages of a chain of trainings: a folder each, done once, and done again when its settings are others.

`stage.json` in a stage's folder says what was asked for, and, from the moment when everything else is written, that
it is finished. A stage that was stopped, by whatever, is therefore never taken for a finished one.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maftplus.pictures.files import write_atomically

if TYPE_CHECKING:
    from maftplus.train.trainer import MaftPlusTrainer

logger = logging.getLogger("maftplus.shapes")

MARKER = "stage.json"
TERMINATED = 128 + 15  # what a shell sees of a process that SIGTERM ended


def run_stage(
    folder: Path, settings: dict[str, Any], make: Callable[[], Any], goes_on: bool = False
) -> dict[str, Any]:
    """
    Let `make` fill `folder`, unless it is there and finished with the same settings.

    Args:
        folder: The stage's own. What an earlier run left there is removed first.
        settings: All that the result depends on, as JSON holds it: seed, recipe, settings of the stages before.
        make: Writes into `folder`; an exception leaves the stage unfinished.
        goes_on: Whether `make` wants what an earlier run left in `folder`.

    Returns: `settings` as a file gives them back, for the stages that start from this one.

    Raises:
        ValueError: if `folder` holds files and no stage made them.
    """
    settings = as_json(settings)
    if finished_settings(folder) == settings:
        logger.info("%s is finished with these settings", folder)
        return settings
    if not goes_on:
        clear_own_folder(folder)
    _write_marker(folder, settings, finished=False)
    make()
    _write_marker(folder, settings, finished=True)
    return settings


def finished_settings(folder: Path) -> dict[str, Any] | None:
    """What a finished stage was made with; `None` of one that is missing or was stopped."""
    path = folder / MARKER
    if not path.is_file():
        return None
    marker = json.loads(path.read_text(encoding="utf-8"))
    return marker["settings"] if marker["finished"] else None


def clear_own_folder(folder: Path) -> None:
    """
    An empty `folder`, made where it is missing.

    Raises:
        ValueError: if it holds files, but no marker of a stage: somebody else made them.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise ValueError(f"{folder} holds files, but no {MARKER}: nothing here made it. Move it, or name another.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def train_to_the_end(trainer: "MaftPlusTrainer") -> None:
    """
    Train and save the model.

    Raises:
        SystemExit: after SIGTERM, with the exit code that a shell expects; then nothing but a checkpoint is saved.
    """
    trainer.train()
    if trainer.sigterm.received:
        logger.warning("Stopped by SIGTERM: %s holds no finished model", trainer.args.output_dir)
        raise SystemExit(TERMINATED)
    trainer.save_model()


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a file gives them back: paths are strings, tuples lists, keys strings."""
    return json.loads(json.dumps(settings, default=str))


def _write_marker(folder: Path, settings: dict[str, Any], finished: bool) -> None:
    content = json.dumps({"finished": finished, "settings": settings}, indent=1) + "\n"
    write_atomically(folder / MARKER, content)
