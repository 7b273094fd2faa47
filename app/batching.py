"""What `maftplus batch` does: one model for words and fingerprint here, then the pictures are left to the actors."""

import functools
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import Progress

from maftplus.app.models import load_pipeline
from maftplus.scale.addresses import absolute
from maftplus.scale.batch import encode_words, job_facts, plan_pool, ray_session, run_job
from maftplus.scale.job import JobFolder
from maftplus.scale.sources import is_hub_name, list_shards
from maftplus.scale.worker import ShardReport, Task, Words, model_identity


@dataclass(frozen=True)
class Batch:
    """One call of the command; names are those of its options."""

    source: str
    out: str
    model: str
    words: dict[str, Any]
    options: dict[str, Any]
    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 1
    shard_size: int = 500
    column: str | None = None
    workers: int | None = None
    threads: int | None = None
    address: str | None = None


@dataclass
class Totals:
    """Sums over the shards that were done in this call."""

    num_shards: int
    counts: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    first_seen: float | None = None  # when the first shard came
    last_seen: float = 0.0
    num_first: int = 0  # its pictures

    def add(self, report: ShardReport) -> None:
        """Take in what a shard came to."""
        self.last_seen = time.perf_counter()
        if self.first_seen is None:
            self.first_seen, self.num_first = self.last_seen, report.num_pictures
        if report.failure is not None:
            self.failures.append(f"shard {report.shard} {report.failure}")
            return
        numbers = {"pictures": report.num_pictures, "errors": report.num_errors, "bytes": report.num_bytes}
        self.counts += Counter(shards=1, **numbers)
        self.seconds += Counter(report.seconds)

    def summary(self) -> list[str]:
        done = f"{self.counts['shards']} of {self.num_shards} shards done in this call"
        return [f"{done}: {self.counts['pictures']} pictures, {self.counts['errors']} of them with an error"]

    def profile(self) -> list[str]:
        """Processor seconds by stage, of the threads that lead each."""
        pictures = max(1, self.counts["pictures"])
        stages = [f"{name} {1000 * value / pictures:.2f}" for name, value in self.seconds.items()]
        per_picture = f"{self.counts['bytes'] / pictures:.0f} bytes of results a picture"
        lines = [f"processor milliseconds a picture: {', '.join(stages)}; {per_picture}"]
        if self.counts["shards"] > 1:
            rate = (pictures - self.num_first) / (self.last_seen - self.first_seen)
            lines.append(f"pictures a second after the first shard: {rate:.1f}")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return [*lines, f"most memory of this process: {memory:.0f} MiB"]


def run_batch(asked: Batch, is_resumed: bool = False, is_quiet: bool = False) -> Totals:
    """
    Do the shards of a job that have no file yet.

    Raises:
        ValueError: on a source, words, model or cluster that cannot be used, and on another job in the folder.
        OSError: if the folder cannot be written.
    """
    model = _find_model(asked.model)
    pipe = load_pipeline(model, asked.device, asked.dtype)
    words = encode_words(pipe, **asked.words)
    dtype = str(pipe.model.dtype).removeprefix("torch.")  # the same for all actors, also where "auto" would differ
    task = Task(
        source=asked.source if is_hub_name(asked.source) else absolute(asked.source),
        folder=JobFolder(asked.out),
        load=functools.partial(load_pipeline, model, asked.device, dtype),
        options=asked.options,
        facts={
            "model": model_identity(pipe, os.path.basename(model)),
            "options": json.dumps({**asked.options, "dtype": dtype}),
        },
        batch_size=asked.batch_size,
    )
    del pipe
    shards = list_shards(task.source, asked.shard_size, asked.column, skip=task.folder.address)
    facts = job_facts(task, words, shard_size=asked.shard_size, dtype=dtype)
    num_shards = task.folder.begin(facts, shards, is_resumed)
    totals = Totals(num_shards)
    if any(task.folder.missing_shards(num_shards)):
        for report in _with_progress(_run(asked, task, words, num_shards), num_shards, is_quiet):
            totals.add(report)
    return totals


def _find_model(model: str) -> str:
    """A folder as other processes find it; a name on the Hub as it is."""
    return absolute(model) if os.path.isdir(model) else model


def _run(asked: Batch, task: Task, words: Words, num_shards: int) -> Iterator[ShardReport]:
    wanted = None if asked.workers is None else max(os.cpu_count(), asked.workers * (asked.threads or 1))
    with ray_session(asked.address, wanted):
        pool = plan_pool(asked.device, asked.workers, asked.threads)
        yield from run_job(task, words, pool, num_shards)


def _with_progress(reports: Iterator[ShardReport], num_shards: int, is_quiet: bool) -> Iterator[ShardReport]:
    with Progress(console=Console(stderr=True), refresh_per_second=1, disable=is_quiet) as progress:
        bar = progress.add_task("Shards", total=num_shards)
        for report in reports:
            progress.advance(bar)
            yield report
