"""SIGKILL while checkpoints are saved, full disks, cut files: nothing whole is lost, nothing half counts.

    python tests/chaos/killed_while_saving.py [--kills 30] [--least_hits 20]

Every function is one disaster. A child saves checkpoint after checkpoint; it is killed while files of the newest are
appearing. Then the newest whole checkpoint must be found, and load.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from training_tools import make_trainer, save_checkpoints

from maftplus.train.checkpoints import MARKER, checkpoint_fault, checkpoints_of, last_whole_checkpoint

logger = logging.getLogger("maftplus.chaos")
# When a child dies: before the marker of its third checkpoint, with half a file written, before a file, at any moment.
HIT_AT = ("marker", "half", "optimizer", "scheduler", "rng", "state", "safetensors")


def kill_while_saving(folder: Path, num_kills: int) -> int:
    """
    Kill a child `num_kills` times while it saves its third checkpoint; each time resume from what is whole.

    Returns:
        How many kills left a checkpoint that is not whole.

    Raises:
        AssertionError: if a whole checkpoint was lost, or one that is not whole would be resumed.
    """
    command = [sys.executable, str(Path(__file__)), "--kills", str(num_kills), "--only_kill", str(folder)]
    subprocess.run(command, check=True, timeout=60 + 30 * num_kills, capture_output=True)
    hits = 0
    for index in range(num_kills):
        output = folder / f"run{index}"
        hits += checkpoint_fault(checkpoints_of(output)[0]) is not None
        whole = last_whole_checkpoint(output)
        require(whole.name == "checkpoint-2", f"{whole} is taken, not checkpoint-2")
        trainer = make_trainer(output, max_steps=3)
        trainer.train(resume_from_checkpoint=str(whole))
        require(trainer.state.global_step == 3, "the resumed run did not reach its end")
        shutil.rmtree(output)
    return hits


def kill_children(folder: Path, num_kills: int) -> None:
    """
    Start and lose `num_kills` children, `run0` and so on below `folder`, one after the other.

    In a process of its own that has computed nothing yet: torch's threads would not survive a fork.
    """
    for index in range(num_kills):
        child = os.fork()
        if child == 0:
            _die_while_saving(folder / f"run{index}", HIT_AT[index % len(HIT_AT)])
        _, status = os.waitpid(child, 0)
        require(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the child was not killed")


def _die_while_saving(output: Path, moment: str) -> None:
    """In a child: train, and die at a moment of saving the third checkpoint; never returns."""
    import torch

    from maftplus.train import trainer as training

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def at_third(owner, name: str, how: Callable) -> None:
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            if self.state.global_step == 3:
                how(self, *args, **kwargs)
            return original(self, *args, **kwargs)

        setattr(owner, name, wrapped)

    def write_half(trainer, *args, **kwargs):
        target = output / "checkpoint-3"
        target.mkdir(parents=True, exist_ok=True)
        torch.save(trainer.model.state_dict(), target / "optimizer.pt")
        os.truncate(target / "optimizer.pt", (target / "optimizer.pt").stat().st_size // 2)
        die()

    kind = training.MaftPlusTrainer
    if moment == "marker":
        mark = training.mark_as_whole
        training.mark_as_whole = lambda folder: die() if folder.name == "checkpoint-3" else mark(folder)
    elif moment == "half":
        at_third(kind, "_save_optimizer_and_scheduler", write_half)
    elif moment == "state":
        at_third(kind, "_save_scaler", die)
    elif moment == "rng":
        at_third(kind, "_save_rng_state", die)
    elif moment == "scheduler":
        save = torch.save
        torch.save = lambda content, path, *a, **k: (
            die() if "checkpoint-3/scheduler" in str(path) else save(content, path, *a, **k)
        )
    elif moment == "optimizer":
        at_third(kind, "_save_optimizer_and_scheduler", die)
    else:
        _kill_when_it_appears(output / "checkpoint-3" / "model.safetensors")
    save_checkpoints(output, steps=4, save_total_limit=2)
    os._exit(1)


def _kill_when_it_appears(path: Path) -> None:
    """A second process kills this one as soon as a file is there, so as to hit it while it is written."""
    parent = os.getpid()
    if os.fork() == 0:
        while not path.exists() and os.getppid() == parent:
            time.sleep(0.0002)
        os.kill(parent, signal.SIGKILL)
        os._exit(0)


def disk_full(folder: Path) -> None:
    """No file may exceed some size (RLIMIT_FSIZE): training ends with an OSError, the checkpoint before stays."""
    save_checkpoints(folder, steps=2)
    largest = max(path.stat().st_size for path in (folder / "checkpoint-2").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        save_checkpoints(folder, steps=3, resume_from_checkpoint=str(folder / "checkpoint-2"))
    except OSError as error:
        logger.info("as wanted: %s", error)
    else:
        raise AssertionError("a full disk went unnoticed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    require(last_whole_checkpoint(folder).name == "checkpoint-2", "checkpoint-2 is lost")


def files_cut(folder: Path) -> None:
    """Every file of the newest checkpoint, cut at ten places: the one before is taken each time."""
    save_checkpoints(folder, steps=2)
    newest = folder / "checkpoint-2"
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for tenth in range(10):
            path.write_bytes(content[: len(content) * tenth // 10])
            require(last_whole_checkpoint(folder).name == "checkpoint-1", f"a cut {path.name} counts as whole")
        path.write_bytes(content)
    require((newest / MARKER).is_file() and last_whole_checkpoint(folder) == newest, "a whole one does not count")


def require(is_so: bool, otherwise: str) -> None:
    """Raises AssertionError."""
    if not is_so:
        raise AssertionError(otherwise)


def main() -> int:
    """Every disaster once; the counts as JSON, exit code 1 if too few kills hit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--least_hits", type=int, default=20)
    parser.add_argument("--only_kill", type=Path, help="make the killed runs below this folder, check nothing")
    options = parser.parse_args()
    if options.only_kill:
        kill_children(options.only_kill, options.kills)
        return 0
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        hits = kill_while_saving(Path(folder) / "killed", options.kills)
        disk_full(Path(folder) / "full")
        files_cut(Path(folder) / "cut")
    logger.info("%s", json.dumps({"kills": options.kills, "hit_half_a_checkpoint": hits, "lost": 0}))
    return int(hits < options.least_hits)


if __name__ == "__main__":
    sys.exit(main())
