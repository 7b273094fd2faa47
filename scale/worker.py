"""One actor: a model, and shards through it. Threads read, decode and post-process while the network runs.

Decoded pictures stay on the machine of the network: they are many times the bytes of their files, and their
results are smaller again, so only names, files and results travel.
"""

import contextlib
import hashlib
import json
import re
import tarfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers.utils import ModelOutput

from maftplus.pictures.coco import run_lengths
from maftplus.pictures.segments import Segment, segments_from_pipeline
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.scale.job import JobFolder
from maftplus.scale.sources import Item, decode, read_shard

MOST_DEATHS = 5  # of workers over one shard
NO_SETTINGS = ("_name_or_path", "dtype", "transformers_version")  # of a configuration
STAGES = ("read", "decode", "network", "postprocess", "write")
RUN_LENGTHS = pa.struct({"size": pa.list_(pa.int32(), 2), "counts": pa.string()})
SEGMENT = pa.struct(
    {
        "label": pa.string(),
        "label_id": pa.int32(),
        "score": pa.float32(),
        "area": pa.int64(),
        "bbox": pa.list_(pa.int32(), 4),
        "rle": RUN_LENGTHS,
    }
)
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "segments": pa.list_(SEGMENT),
        "error": pa.string(),
        "model": pa.string(),
        "options": pa.string(),
    }
)


@dataclass(frozen=True)
class Words:
    """
    The words of a job, encoded once for all of it.

    Args:
        classes: Synonyms of every class that is reported.
        stuff_ids: Indices of stuff.
        vocabulary: What the network takes, as `encode_vocabulary` gives it; distractors stand after the classes.
        distractors: Their synonyms.
    """

    classes: list[list[str]]
    stuff_ids: list[int]
    vocabulary: dict[str, Tensor]
    distractors: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """
    What every actor is told.

    Args:
        source: Address of the pictures.
        folder: Where results go.
        load: Makes the pipeline.
        options: Of the pipeline's post-processing: `subtask`, thresholds.
        facts: `model` and `options` of every row.
        batch_size: Most pictures a step of the network; they share one padded size.
        num_threads: That read, decode and post-process, and on a CPU as many of the network's.
    """

    source: str
    folder: JobFolder
    load: Callable[[], MaftPlusSegmentationPipeline]
    options: dict[str, Any]
    facts: dict[str, str]
    batch_size: int = 1
    num_threads: int = 2


@dataclass
class ShardReport:
    """What became of a shard. `failure`: why it has no file; `is_fatal`: others will fare the same."""

    shard: int
    num_pictures: int = 0
    num_errors: int = 0
    num_bytes: int = 0
    failure: str | None = None
    is_fatal: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # of a processor, by stage


class ShardWorker:
    """
    Shards through one model.

    Args:
        task: See there.
        words: See there.
    """

    def __init__(self, task: Task, words: Words):
        self.task, self.words, self.pipe = task, words, task.load()
        device = self.pipe.device
        if device.type == "cpu":
            torch.set_num_threads(task.num_threads)
        self.vocabulary = {name: value.to(device) for name, value in words.vocabulary.items()}
        self.pool = ThreadPoolExecutor(task.num_threads)
        self.clock = _Clock()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """One shard's number -> its report, as Ray Data passes them."""
        (shard,) = batch["shard"]
        report = self.run(int(shard))
        return {name: [value] for name, value in {**vars(report), "seconds": json.dumps(report.seconds)}.items()}

    def run(self, shard: int) -> ShardReport:
        """Segment a shard and write its file. Nothing is raised for what a source or a disk can do."""
        self.clock = _Clock()
        report = ShardReport(shard, seconds=self.clock.seconds)
        try:
            if self.task.folder.count_begun(shard) >= MOST_DEATHS:
                report.failure = f"given up: the worker died over it {MOST_DEATHS} times"
            else:
                self._do(shard, report)
            self.task.folder.end(shard)
        except OSError as error:
            report.failure, report.is_fatal = f"cannot be written ({_reason(error)})", True
        return report

    def _do(self, shard: int, report: ShardReport) -> None:
        """Raises OSError if the results cannot be written."""
        try:
            rows = self.segment(read_shard(self.task.source, self.task.folder.read_shard(shard)))
        except (OSError, ValueError, tarfile.TarError) as error:
            report.failure = f"cannot be read ({_reason(error)})"
            return
        report.num_pictures, report.num_errors = len(rows), sum(row["error"] is not None for row in rows)
        with self.clock.measure("write"):
            report.num_bytes = self.task.folder.write_result(shard, pa.Table.from_pylist(rows, schema=SCHEMA))

    def segment(self, items: Iterator[Item]) -> list[dict[str, Any]]:
        """A row a picture, in the order of `items`."""
        rows, waiting = [], deque()
        for batch in self._batches(self._pictures(items)):
            waiting.extend(self.pool.submit(self._finish, *result) for result in self._run_network(batch))
            while len(waiting) > 2 * self.task.batch_size:
                rows.append(waiting.popleft().result())
        rows += [future.result() for future in waiting]
        return [row for _, row in sorted(rows, key=lambda pair: pair[0])]

    def _pictures(self, items: Iterator[Item]) -> Iterator["_Picture"]:
        """Pictures in order, read ahead by threads."""
        jobs = (self.pool.submit(self._read, index, item) for index, item in enumerate(items))
        futures = deque(islice(jobs, 2 * self.task.batch_size + self.task.num_threads))
        while futures:
            yield futures.popleft().result()
            futures.extend(islice(jobs, 1))

    def _read(self, index: int, item: Item) -> "_Picture":
        """Whatever is wrong with one picture stays with it; decoders raise whatever they like."""
        try:
            with self.clock.measure("read"):
                content = item.read()
            with self.clock.measure("decode"):
                return _Picture(index, item.key, self.pipe.preprocess(decode(item.key, content)))
        except Exception as error:
            return _Picture(index, item.key, error=_reason(error))

    def _batches(self, pictures: Iterable["_Picture"]) -> Iterator[list["_Picture"]]:
        """Pictures of one padded size, as many as fit or are at hand; one that is broken alone."""
        size, groups = self.task.batch_size, defaultdict(list)
        for picture in pictures:
            if picture.error is not None:
                yield [picture]
                continue
            group = groups[picture.inputs["inputs"]["pixel_values"].shape]
            group.append(picture)
            # With many sizes the network must not wait for equals.
            if len(group) == size or sum(map(len, groups.values())) >= 4 * size:
                yield groups.pop(max(groups, key=lambda shape: len(groups[shape])))
        yield from groups.values()

    def _run_network(self, batch: list["_Picture"]) -> list[tuple["_Picture", dict[str, Tensor] | None]]:
        """One picture must not take its batch with it: after an error each goes alone."""
        if batch[0].error is not None:
            return [(batch[0], None)]
        try:
            with self.clock.measure("network"):
                return list(zip(batch, self._forward(batch)))
        except (RuntimeError, ValueError) as error:
            if len(batch) > 1:
                return [result for picture in batch for result in self._run_network([picture])]
            batch[0].error = _reason(error)
            return [(batch[0], None)]

    @torch.inference_mode()
    def _forward(self, batch: list["_Picture"]) -> list[dict[str, Tensor]]:
        """The outputs of each picture on the CPU, as the pipeline hands them on."""
        results = self.pipe.segment([picture.inputs for picture in batch], self.vocabulary)
        return [{name: value[None].cpu() for name, value in outputs.items()} for outputs in results]

    @torch.inference_mode()
    def _finish(self, picture: "_Picture", outputs: dict[str, Tensor] | None) -> tuple[int, dict[str, Any]]:
        """A picture's place and its row."""
        segments, classes = [], self.words.classes
        try:
            if outputs is not None:
                with self.clock.measure("postprocess"):
                    stuff = [classes[index] for index in self.words.stuff_ids]
                    found = self.pipe.postprocess(ModelOutput(outputs), classes, stuff, **self.task.options)
                    segments = [_as_struct(one) for one in segments_from_pipeline(found)]
        except (RuntimeError, ValueError) as error:
            picture.error = _reason(error)
        height, width = (None, None) if picture.inputs is None else picture.inputs["target_size"]
        row = {"key": picture.key, "height": height, "width": width, "segments": segments, "error": picture.error}
        return picture.index, {**row, **self.task.facts}


@dataclass
class _Picture:
    """A picture on its way: its place, and what the network takes or what is wrong with it."""

    index: int
    key: str
    inputs: dict[str, Any] | None = None  # as the pipeline's `preprocess` gives them
    error: str | None = None


class _Clock:
    """Processor seconds by stage, of any threads."""

    def __init__(self):
        self.seconds, self._lock = dict.fromkeys(STAGES, 0.0), threading.Lock()

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        started = time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.thread_time() - started


def _as_struct(segment: Segment) -> dict[str, Any]:
    names = ("label", "label_id", "score", "area", "bbox")
    return {**{name: getattr(segment, name) for name in names}, "rle": run_lengths(segment.mask)}


def _reason(error: Exception) -> str:
    """One line that is the same in every run: no address in memory."""
    text = (str(error).splitlines() or [""])[0]
    text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "its bytes", text)
    return f"{type(error).__name__}: {text}".rstrip(": ")


def model_identity(pipe: MaftPlusSegmentationPipeline, name: str) -> str:
    """Name of a model, and a fingerprint of its weights, its configuration and its processor."""
    config = pipe.model.config.to_dict()
    settings = {key: config[key] for key in sorted(config) if key not in NO_SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in sorted(pipe.model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(pipe.processor.to_json_string().encode())
    return f"{name}@{digest.hexdigest()[:16]}"
