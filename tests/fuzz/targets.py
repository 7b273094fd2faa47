"""What every fuzz target is, and how one is run for a while: cases from hypothesis, a limit of time for each, counts.

A check gets a case and an empty folder. It returns a word that is counted ("taken", "refused", "tied", ...); anything
that it raises is a finding.
"""

import contextlib
import logging
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

logger = logging.getLogger("fuzz")

CASE_SECONDS, CASE_SECONDS_OF_CLOCK = 30, 240  # of computing, and by the clock, which a busy machine stretches
LEAST_CASES = 3  # also on a machine so busy that the time is over before them
CASES_A_ROUND = 20
SHOWN_FINDINGS = 5
IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Target:
    """`check(case, folder)` for every case of `cases`; `prepare()` makes what checks need, once."""

    name: str
    cases: SearchStrategy
    check: Callable[[Any, Path], str]
    prepare: Callable[[], Any] = dict


class TakesTooLong(BaseException):
    """Raised in a check by a timer. No Exception, which the code under test would catch."""


def refused(error: Exception, *names: Any) -> str:
    """
    The outcome of an expected ValueError or OSError.

    Raises:
        AssertionError: if its message names none of `names`, or is empty.
    """
    message = str(error)
    if not any(str(name) in message for name in names):
        raise AssertionError(f"{type(error).__name__} names none of {names}: {message[:500]!r}") from error
    return "refused"


def run_target(target: Target, seconds: float, first_seed: int = 0) -> Counter:
    """Outcomes of as many cases as `seconds` allow; findings are "FOUND", "slowest_ms" is the slowest case's time."""
    target.prepare()
    counts, deadline, number = Counter(), time.monotonic() + seconds, first_seed
    with _working_folder() as folder, _quiet():
        while number == first_seed or time.monotonic() < deadline:
            try:
                _run_round(target, folder, counts, deadline, number)
            except Exception:
                counts["FOUND"] += 1
                if counts["FOUND"] <= SHOWN_FINDINGS:
                    logger.error("%s, seed %d:\n%s", target.name, number, traceback.format_exc(limit=-8))
            number += 1
    return counts


def _run_round(target: Target, folder: Path, counts: Counter, deadline: float, number: int) -> None:
    """A few cases of one seed. Raises what a check raised, with the smallest case that does in its notes."""

    @seed(number)
    @settings(
        max_examples=CASES_A_ROUND,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def one_round(case: Any) -> None:
        if time.monotonic() < deadline or counts.total() - counts["slowest_ms"] < LEAST_CASES:
            _run_case(target, case, folder, counts)

    one_round()


def _run_case(target: Target, case: Any, folder: Path, counts: Counter) -> None:
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    started = time.process_time()
    with _time_limit():
        outcome = target.check(case, place)
    counts[outcome] += 1
    counts["slowest_ms"] = max(counts["slowest_ms"], round(1000 * (time.process_time() - started)))


@contextlib.contextmanager
def _working_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of ours, which would be thousands."""
    ours = logging.getLogger("maftplus")
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Raises AssertionError after `CASE_SECONDS`."""
    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, CASE_SECONDS),
        signal.ITIMER_REAL: (signal.SIGALRM, CASE_SECONDS_OF_CLOCK),
    }
    before = {number: signal.signal(number, _stop) for number, _ in timers.values()}
    try:
        for timer, (_, limit) in timers.items():
            signal.setitimer(timer, limit)
        yield
    except TakesTooLong:
        raise AssertionError(f"hangs: more than {CASE_SECONDS} seconds of computing") from None
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(*_: Any) -> None:
    raise TakesTooLong
