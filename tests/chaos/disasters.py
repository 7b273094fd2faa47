"""Every disaster once, and a table of what came of it: `make chaos`, or

    python tests/chaos/disasters.py [--kills 30] [--least_hits 20] [--only servers_that_drip_and_flood ...]

A function is a disaster. It raises AssertionError where something whole was lost, something half-made counts, or
something hangs. Exit code 1 if one failed, or if too few kills hit a half-written checkpoint.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import killed_while_saving as saving
from chaos.full_disks import (
    convert_onto_full_disk,
    segment_onto_full_disk,
    train_into_read_only_folder,
    train_onto_full_disk,
)
from chaos.killed_commands import convert_killed, prepare_killed, segment_killed
from chaos.servers import servers_that_drip_and_flood
from chaos.tools import Outcome
from transformers.utils import logging as transformers_logging

logger = logging.getLogger("chaos")

ROW = "{:<32}{:>6}{:>6}{:>6}{:>9}  {}"


def train_killed_while_saving(folder: Path, kills: int = 30, least_hits: int = 20) -> Outcome:
    """Killed while the third checkpoint is written; the second is found, loads, and the run goes on to its end."""
    hits = saving.kill_while_saving(folder, kills)
    if hits < least_hits:
        raise AssertionError(f"{hits} of {kills} kills hit a half-written checkpoint, {least_hits} are wanted")
    return Outcome(kills, hits, "SIGKILL")


def train_with_files_limited(folder: Path) -> Outcome:
    """A limit on the size of files, which other systems than tmpfs have, too."""
    saving.disk_full(folder)
    return Outcome(1, 1, "RLIMIT_FSIZE")


def checkpoint_files_cut(folder: Path) -> Outcome:
    """Every file of the newest checkpoint, cut at ten places."""
    saving.files_cut(folder)
    files = len(list((folder / "checkpoint-2").iterdir()))
    return Outcome(10 * files, 10 * files, f"{files} files")


def disasters(kills: int, least_hits: int) -> dict[str, Callable[[Path], Outcome]]:
    rows: tuple[Callable[[Path], Outcome], ...] = (
        servers_that_drip_and_flood,
        convert_killed,
        segment_killed,
        prepare_killed,
        convert_onto_full_disk,
        segment_onto_full_disk,
        train_onto_full_disk,
        train_into_read_only_folder,
        train_with_files_limited,
        checkpoint_files_cut,
    )
    named = {function.__name__: function for function in rows}
    named["train_killed_while_saving"] = lambda folder: train_killed_while_saving(folder, kills, least_hits)
    return named


def run_all(wanted: dict[str, Callable[[Path], Outcome]]) -> list[str]:
    """Names of the disasters that failed."""
    failed = []
    logger.info(ROW.format("disaster", "cases", "hits", "lost", "seconds", "how"))
    for name, disaster in wanted.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = disaster(Path(folder) / "here")
            except Exception:
                failed.append(name)
                logger.error("%s FAILED\n%s", name, traceback.format_exc())
                continue
        seconds = f"{time.monotonic() - started:.1f}"
        logger.info(ROW.format(name, outcome.cases, outcome.hits, 0, seconds, outcome.how))
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of checkpoint saving")
    parser.add_argument("--least_hits", type=int, default=20, help="kills that must hit a half-written checkpoint")
    parser.add_argument("--only", nargs="+", help="names of disasters")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("maftplus").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    known = disasters(options.kills, options.least_hits)
    failed = run_all({name: known[name] for name in options.only or known})
    logger.info("%s", f"FAILED: {', '.join(failed)}" if failed else "nothing lost, nothing hangs")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
