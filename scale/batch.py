"""A job on Ray Data: shards' numbers in, reports out; a pool of actors, each with a model of its own.

Ray starts an actor again that died, and gives it the shard once more; a shard's file appears when it is whole, so
doing it twice changes nothing. Its own checkpoints of rows are not used: they keep every key in memory.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.scale.worker import ShardReport, ShardWorker, Task, Words
from maftplus.words_maftplus import ClassName, parse_distractors, split_distractors

STARTS = 3  # of Ray on this machine, before that is given up
CPUS_A_WORKER = 4  # where there is no GPU
# Large maps come and go: memory that the system gets back each time costs up to a third of the network's time. glibc
# reads this when a process starts; others ignore it.
KEEP_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824"
OBJECT_STORE = 200 << 20  # bytes, where Ray runs here alone: words and reports are all that lies in it


@dataclass(frozen=True)
class Pool:
    """
    The actors.

    Args:
        num_workers: How many.
        cpus, gpus: What Ray sets aside for each.
    """

    num_workers: int
    cpus: int = 1
    gpus: int = 0


def encode_words(
    pipe: MaftPlusSegmentationPipeline,
    candidate_labels: Sequence[ClassName] | None = None,
    stuff_labels: Sequence[ClassName] | None = None,
    distractor_labels: Sequence[ClassName] | None = None,
) -> Words:
    """
    The words of a job, encoded; arguments are those of the pipeline.

    Raises:
        ValueError: on words that cannot be used, or without any.
    """
    classes, stuff_ids = pipe.classes_and_stuff(candidate_labels, stuff_labels)
    distractors = split_distractors(classes, parse_distractors(distractor_labels or []))[0]
    if candidate_labels is None and not distractors:
        return Words(classes, stuff_ids, {})  # the model has them encoded
    prompts = pipe.processor(text=[*classes, *distractors], return_tensors="pt")
    vocabulary = pipe.model.encode_vocabulary(**prompts)
    return Words(classes, stuff_ids, {name: value.cpu() for name, value in vocabulary.items()}, distractors)


@contextlib.contextmanager
def ray_session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """
    Ray on this machine, or the cluster at `address`; one that runs in this process already is used and left alone.

    Args:
        num_cpus: Processors to count on here; default: as many as there are.

    Raises:
        ValueError: if there is no cluster at the address.
        OSError: if Ray does not start here.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is raised
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _start(address, num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None, num_cpus: int | None) -> None:
    here = {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False, **({} if address else here))
            return
        except Exception as error:  # Ray raises a bare one where a busy machine takes more than its 30 seconds
            ray.shutdown()
            if address is not None:
                raise ValueError(f"--address {address}: Ray cannot be reached ({_last_line(error)}).") from error
            if attempt == STARTS:
                raise OSError(f"Ray does not start on this machine ({_last_line(error)})") from error


def plan_pool(device: str | None, num_workers: int | None, num_threads: int | None) -> Pool:
    """
    One actor a GPU of the cluster (or of this machine), with its share of its machine's processors; one for four
    processors if `device` is the CPU or there is no GPU. What is given is taken as it is.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [] if device == "cpu" else [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if with_gpus:
        shares = [machine.get("CPU", 1) // machine["GPU"] for machine in with_gpus]
        num_workers = num_workers or int(sum(machine["GPU"] for machine in with_gpus))
        return Pool(num_workers, num_threads or max(1, int(min(shares))), gpus=1)
    processors = [int(machine.get("CPU", 0)) for machine in machines]
    if num_threads is None:
        is_divided = num_workers is not None and len(machines) == 1
        num_threads = max(1, max(processors) // num_workers if is_divided else min(CPUS_A_WORKER, max(processors)))
    return Pool(num_workers or max(1, sum(count // num_threads for count in processors)), num_threads)


def run_shards(task: Task, words: Words, pool: Pool, shards: Sequence[int]) -> Iterator[ShardReport]:
    """
    The reports of shards, as they come. Stop reading, and the actors stop.

    Raises:
        OSError: if an actor dies again and again, or cannot start; the message is its last.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    reports = numbers.map_batches(
        ShardWorker,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(pool.num_workers, len(shards)), max_tasks_in_flight_per_actor=2),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        runtime_env={"env_vars": {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", KEEP_MEMORY)}},
        fn_constructor_kwargs={"task": replace(task, num_threads=pool.cpus), "words": words},
    )
    try:
        for row in reports.iter_rows():
            yield ShardReport(**{**row, "seconds": json.loads(row["seconds"])})
    except ray.exceptions.RayError as error:
        raise OSError(f"the workers failed: {_last_line(error)}") from error


def run_job(task: Task, words: Words, pool: Pool, num_shards: int) -> Iterator[ShardReport]:
    """The reports of all shards that have no file yet; after a fatal one nothing more is done. Raises as above."""
    for window in task.folder.missing_shards(num_shards):
        for report in run_shards(task, words, pool, window):
            yield report
            if report.is_fatal:
                return


def job_facts(task: Task, words: Words, **more: Any) -> dict[str, Any]:
    """What makes a job another job."""
    asked = {"source": task.source, "model": task.facts["model"], "options": task.options}
    told = {"labels": words.classes, "stuff_ids": words.stuff_ids, "distractors": words.distractors}
    return {**more, **asked, **told}


def _last_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
