"""What the disasters share: outcomes, real small disks, and children that are killed."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """What a disaster did: how often it was tried, how often it hit something half-done, and what it was done with."""

    cases: int
    hits: int
    how: str = ""


def require(is_so: bool, otherwise: str) -> None:
    """Raises AssertionError."""
    if not is_so:
        raise AssertionError(otherwise)


class SmallDisk:
    """
    A disk of its own at a folder, whose size and state change at will: a tmpfs where this process may mount one.

    Elsewhere `is_real` is False and a limit on the size of every file stands in for the full disk.
    """

    def __init__(self, folder: Path, size: int = 256 << 20):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.is_real = _mount(f"size={size}", folder)
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @property
    def how(self) -> str:
        return "tmpfs" if self.is_real else "RLIMIT_FSIZE"

    def leave(self, num_bytes: int) -> None:
        """From now on so many bytes are free."""
        if not self.is_real:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, self._limits[1]))
            return
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        require(_mount(f"remount,size={used + max(4096, num_bytes)}", self.folder), "the disk cannot be resized")

    def grow(self) -> None:
        """There is room again."""
        if self.is_real:
            require(_mount(f"remount,rw,size={1 << 30}", self.folder), "the disk cannot be resized")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def protect(self) -> bool:
        """From now on nothing can be written. Returns whether that is so."""
        return self.is_real and _mount("remount,ro", self.folder)

    def remove(self) -> None:
        self.grow()
        if self.is_real:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        disk.remove()


def _mount(options: str, folder: Path) -> bool:
    try:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def kill_child(job: Callable[[], None], is_time: Callable[[], bool], delay: float = 0.0) -> bool:
    """
    Run `job` in a child and kill it (SIGKILL) `delay` seconds after `is_time()` comes true.

    To be called in a process that has computed nothing yet: torch's threads do not survive a fork.

    Returns:
        Whether it was killed; False if it had ended before.
    """
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            try:
                job()
            finally:
                os._exit(0)
    deadline = time.monotonic() + 300
    while not is_time() and os.waitpid(child, os.WNOHANG) == (0, 0):
        require(time.monotonic() < deadline, "the child neither ends nor does what is waited for")
        time.sleep(0.0005)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    return False
