"""One actor: a model, and shards through it. Threads read, decode and post-process while the network runs.

Decoded pictures stay on the machine of the network: they are many times the bytes of their files, and their
results are smaller again, so only names, files and results travel.
"""

import hashlib
import json
import re
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
from maftplus.pipeline_maftplus import KEPT_OUTPUTS, MaftPlusSegmentationPipeline
from maftplus.reading_maftplus import read_picture
from maftplus.scale.job import JobFolder
from maftplus.scale.sources import Item, decode, read_shard

MOST_DEATHS = 5  # of workers over one shard
NO_SETTINGS = ("_name_or_path", "dtype", "transformers_version")  # of a configuration
STAGES = ("read", "decode", "network", "postprocess", "write")
SEGMENT = pa.struct(
    [
        ("label", pa.string()),
        ("label_id", pa.int32()),
        ("score", pa.float32()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.int32(), 4)),
        ("rle", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("segments", pa.list_(SEGMENT)),
        ("error", pa.string()),
        ("model", pa.string()),
        ("options", pa.string()),
    ]
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
        num_threads: That read, decode and post-process.
        network_threads: Threads of the network's arithmetic on a CPU; `None`: torch's choice.
    """

    source: str
    folder: JobFolder
    load: Callable[[], MaftPlusSegmentationPipeline]
    options: dict[str, Any]
    facts: dict[str, str]
    batch_size: int = 1
    num_threads: int = 2
    network_threads: int | None = None


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
        if task.network_threads is not None:
            torch.set_num_threads(task.network_threads)
        self.task, self.words, self.pipe = task, words, task.load()
        device = self.pipe.device
        self.vocabulary = {name: value.to(device) for name, value in words.vocabulary.items()}
        self.pool = ThreadPoolExecutor(task.num_threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """One shard's number -> its report, as Ray Data passes them."""
        (shard,) = batch["shard"]
        report = self.run(int(shard))
        return {name: [value] for name, value in {**vars(report), "seconds": json.dumps(report.seconds)}.items()}

    def run(self, shard: int) -> ShardReport:
        """Segment a shard and write its file. Nothing is raised for what a source or a disk can do."""
        report = ShardReport(shard, seconds=dict.fromkeys(STAGES, 0.0))
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
            items = read_shard(self.task.source, self.task.folder.read_shard(shard))
            rows = self.segment(items, report.seconds)
        except (OSError, ValueError, tarfile.TarError) as error:
            report.failure = f"cannot be read ({_reason(error)})"
            return
        report.num_pictures, report.num_errors = len(rows), sum(row["error"] is not None for row in rows)
        clock = _Clock("write")
        report.num_bytes = self.task.folder.write_result(shard, pa.Table.from_pylist(rows, schema=SCHEMA))
        clock.lap("write")
        _add(report.seconds, clock.seconds)

    def segment(self, items: Iterator[Item], seconds: dict[str, float]) -> list[dict[str, Any]]:
        """A row a picture, in the order of `items`; adds to the seconds by stage."""
        rows: dict[int, dict[str, Any]] = {}
        waiting: deque[Future] = deque()
        for batch in self._batches(items, rows, seconds):
            waiting.extend(self._run_network(batch, rows, seconds))
            while len(waiting) > 2 * self.task.batch_size:
                _collect(waiting.popleft(), rows, seconds)
        while waiting:
            _collect(waiting.popleft(), rows, seconds)
        return [rows[index] for index in sorted(rows)]

    def _batches(
        self, items: Iterator[Item], rows: dict[int, dict[str, Any]], seconds: dict[str, float]
    ) -> Iterator[list["_Decoded"]]:
        """Pictures of one padded size, as many as fit or are at hand; those that are broken become rows."""
        size, groups = self.task.batch_size, {}
        for decoded in self._decoded(items):
            _add(seconds, decoded.seconds)
            if decoded.inputs is None:
                rows[decoded.index] = self._row(decoded, [], decoded.error)
                continue
            shape = decoded.inputs["pixel_values"].shape
            group = groups.setdefault(shape, [])
            group.append(decoded)
            if len(group) == size:
                yield groups.pop(shape)
            elif sum(map(len, groups.values())) >= 4 * size:  # many sizes: the network must not wait for equals
                yield groups.pop(max(groups, key=lambda shape: len(groups[shape])))
        yield from groups.values()

    def _decoded(self, items: Iterator[Item]) -> Iterator["_Decoded"]:
        """Pictures in order, read ahead by threads."""
        ahead = 2 * self.task.batch_size + self.task.num_threads
        jobs = (self.pool.submit(self._decode, index, item) for index, item in enumerate(items))
        futures = deque(islice(jobs, ahead))
        while futures:
            yield futures.popleft().result()
            futures.extend(islice(jobs, 1))

    def _decode(self, index: int, item: Item) -> "_Decoded":
        """Whatever is wrong with one picture stays with it; decoders raise whatever they like."""
        clock = _Clock("read", "decode")
        decoded = _Decoded(index, item.key, clock.seconds)
        try:
            content = item.read()
            clock.lap("read")
            picture = read_picture(decode(item.key, content))
            decoded.size = (picture.height, picture.width)
            decoded.inputs = dict(self.pipe.processor(images=picture, return_tensors="pt"))
        except Exception as error:
            decoded.error = _reason(error)
        clock.lap("decode")
        return decoded

    def _run_network(
        self, batch: list["_Decoded"], rows: dict[int, dict[str, Any]], seconds: dict[str, float]
    ) -> list[Future]:
        """One picture must not take its batch with it: after an error each goes alone."""
        clock = _Clock("network")
        try:
            outputs = self._forward(batch)
        except (RuntimeError, ValueError) as error:
            if len(batch) == 1:
                rows[batch[0].index] = self._row(batch[0], [], _reason(error))
                return []
            return [future for one in batch for future in self._run_network([one], rows, seconds)]
        clock.lap("network")
        _add(seconds, clock.seconds)
        return [self.pool.submit(self._finish, one, outputs_of_one) for one, outputs_of_one in zip(batch, outputs)]

    @torch.inference_mode()
    def _forward(self, batch: list["_Decoded"]) -> list[dict[str, Tensor]]:
        """The outputs of each picture, with a batch axis of one, on the CPU: as the pipeline hands them on."""
        inputs = {
            name: torch.cat([one.inputs[name] for one in batch]).to(self.pipe.device, non_blocking=True)
            for name in ("pixel_values", "pixel_mask")
        }
        inputs["pixel_values"] = inputs["pixel_values"].to(self.pipe.model.dtype)
        outputs = self.pipe.model(**inputs, **self.vocabulary)
        kept = {name: torch.as_tensor(outputs[name]).cpu() for name in KEPT_OUTPUTS}
        kept["target_sizes"] = torch.tensor([one.size for one in batch])
        return [{name: value[index : index + 1] for name, value in kept.items()} for index in range(len(batch))]

    @torch.inference_mode()
    def _finish(self, decoded: "_Decoded", outputs: dict[str, Tensor]) -> tuple[int, dict[str, Any], dict[str, float]]:
        """A picture's outputs -> its row."""
        clock = _Clock("postprocess")
        classes, stuff_ids = self.words.classes, self.words.stuff_ids
        stuff = [classes[index] for index in stuff_ids]
        try:
            result = self.pipe.postprocess(ModelOutput(outputs), classes, stuff, **self.task.options)
            row = self._row(decoded, [_as_struct(one) for one in segments_from_pipeline(result, stuff_ids)])
        except (RuntimeError, ValueError) as error:
            row = self._row(decoded, [], _reason(error))
        clock.lap("postprocess")
        return decoded.index, row, clock.seconds

    def _row(self, decoded: "_Decoded", segments: list[dict[str, Any]], error: str | None = None) -> dict[str, Any]:
        height, width = decoded.size
        facts = {"key": decoded.key, "height": height, "width": width, "segments": segments, "error": error}
        return {**facts, **self.task.facts}


@dataclass
class _Decoded:
    """A picture on its way: its size, and what the network takes or what is wrong with it."""

    index: int
    key: str
    seconds: dict[str, float]
    size: tuple[int | None, int | None] = (None, None)
    inputs: dict[str, Tensor] | None = None
    error: str | None = None


class _Clock:
    """Processor seconds of this thread, by stage."""

    def __init__(self, *stages: str):
        self.seconds, self._last = dict.fromkeys(stages, 0.0), time.thread_time()

    def lap(self, stage: str) -> None:
        now = time.thread_time()
        self.seconds[stage] += now - self._last
        self._last = now


def _add(seconds: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        seconds[name] += value


def _collect(future: Future, rows: dict[int, dict[str, Any]], seconds: dict[str, float]) -> None:
    index, rows[index], more = future.result()
    _add(seconds, more)


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
