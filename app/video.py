"""A clip in, the same clip with lasting, coloured, numbered segments out: `maftplus segment clip.mp4 ...`.

Written are `<name>_overlay.mp4` (H.264, the clip's own times, its sound kept as it is) and `<name>_tracks.jsonl`: one
line a segment of a frame. Frames are read, segmented, drawn and written in batches, so memory does not depend on the
clip's length. Needs PyAV (the extra [video]). `tracking.py` keeps the identities.
"""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maftplus.app.clips import MARK, ClipFrame, ClipReader, ClipWriter, read_mark
from maftplus.app.tracking import BATCH_SIZE, TrackOptions, track
from maftplus.pictures.overlay import paint_segments, segment_colour
from maftplus.pictures.segments import Segment
from maftplus.postprocessing_maftplus import coco_run_lengths

VIDEO_ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv"})
LINE_KEYS = ("frame", "time", "id", "word", "score", "box", "rle")  # of a line of the tracks


@dataclass
class TrackSummary:
    """One line of the table: which word, in which frames first and last, in how many."""

    id: int
    word: str
    first_frame: int
    last_frame: int
    num_frames: int


@dataclass
class VideoResult:
    """What became of a clip; `error` says why it ended early, if it did."""

    overlay: Path
    tracks: Path
    num_frames: int
    summaries: list[TrackSummary]
    error: str | None = None


def is_video(path: str | Path) -> bool:
    """By the ending of its name."""
    return Path(path).suffix.lower() in VIDEO_ENDINGS


def video_result_paths(stem: Path) -> dict[str, Path]:
    """Where the results of a clip go, by `"overlay"` and `"tracks"`."""
    return {
        "overlay": stem.with_name(f"{stem.name}_overlay.mp4"),
        "tracks": stem.with_name(f"{stem.name}_tracks.jsonl"),
    }


def is_video_result(path: Path) -> bool:
    """Whether we wrote a file: a clip that bears our mark, or lines of tracks."""
    try:
        if path.suffix == ".mp4":
            return read_mark(path) == MARK
        with path.open(encoding="utf-8") as lines:
            return tuple(json.loads(next(lines, "{}"))) in (LINE_KEYS, ())
    except (ValueError, OSError):
        return False


def segment_video(
    path: str | Path,
    stem: Path,
    segmenter: Any,
    candidate_labels: Any = None,
    stuff_labels: Any = None,
    subtask: str = "panoptic",
    every: int = 1,
    start: float = 0.0,
    end: float | None = None,
    batch_size: int = BATCH_SIZE,
    options: TrackOptions | None = None,
    progress: Callable[[ClipFrame], None] | None = None,
    **thresholds: float,
) -> VideoResult:
    """
    Segment a clip and write `<stem>_overlay.mp4` and `<stem>_tracks.jsonl`.

    A line of the latter: `frame`, `time` (seconds), `id`, `word`, `score` (`None` for semantic), `box` [x, y, width,
    height] and `rle` (COCO's compressed run lengths, columns first, `pycocotools.mask.decode` reads them).

    Args:
        path: The clip.
        stem: Folder and name without ending of the results; the folder is made.
        segmenter: A `MaftPlusSegmentationPipeline`.
        every, start, end: Which frames; see `ClipReader`.
        candidate_labels, stuff_labels, subtask, batch_size, options, thresholds: See `track`.
        progress: Called with every frame that is written.

    Returns:
        The result. If the clip is broken, what came before is written and `error` names the frame.

    Raises:
        ValueError: on what `ClipReader` or `track` refuse, or if there is no frame at all; then nothing is written.
        OSError: if the results cannot be written.
    """
    with ClipReader(path, every, start, end) as reader:
        for_network, for_eyes = itertools.tee(reader)
        found = track(
            (frame.picture for frame in for_network),
            segmenter,
            candidate_labels,
            stuff_labels,
            subtask,
            batch_size,
            options,
            **thresholds,
        )
        pairs = zip(found, for_eyes)
        first = next(pairs, None)
        if first is None:
            raise ValueError(reader.error or f"{path}: there is no frame between `start` and `end`.")
        canvas = paint_segments(first[1].picture, [], []).size
        return _write_results(reader, stem, itertools.chain([first], pairs), canvas, progress or (lambda frame: None))


def _write_results(
    reader: ClipReader,
    stem: Path,
    pairs: Iterator[tuple[list[Segment], ClipFrame]],
    canvas: tuple[int, int],
    progress: Callable[[ClipFrame], None],
) -> VideoResult:
    overlay, tracks = video_result_paths(stem).values()
    stem.parent.mkdir(parents=True, exist_ok=True)
    result = VideoResult(overlay, tracks, 0, [])
    summaries: dict[int, TrackSummary] = {}
    rate = reader.stream.average_rate or 25
    with _whole(overlay) as clip_path, _whole(tracks) as lines_path, lines_path.open("w", encoding="utf-8") as lines:
        writer = ClipWriter(clip_path, canvas, rate, reader.path, reader.start)
        for segments, frame in pairs:
            colours = [segment_colour(one.id - 1) for one in segments]
            writer.write(paint_segments(frame.picture, segments, colours), frame.time)
            lines.writelines(_track_lines(segments, frame))
            _note(summaries, segments, frame.index)
            result.num_frames += 1
            progress(frame)
        end = math.inf if reader.end is None else reader.end
        writer.close(sound_until=0.0 if reader.error else end)
    result.summaries, result.error = [summaries[id] for id in sorted(summaries)], reader.error
    return result


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; after an error neither is left."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _track_lines(segments: list[Segment], frame: ClipFrame) -> Iterator[str]:
    codes = coco_run_lengths(torch.from_numpy(np.stack([one.mask for one in segments]))) if segments else []
    for one, code in zip(segments, codes):
        values = (frame.index, round(frame.time, 6), one.id, one.label, one.score, one.bbox, code)
        yield json.dumps(dict(zip(LINE_KEYS, values)), ensure_ascii=False) + "\n"


def _note(summaries: dict[int, TrackSummary], segments: list[Segment], index: int) -> None:
    for one in segments:
        summary = summaries.setdefault(one.id, TrackSummary(one.id, one.label, index, index, 0))
        summary.word, summary.last_frame = one.label, index  # the last word is the one with most frames behind it
        summary.num_frames += 1


__all__ = ["TrackSummary", "VideoResult", "is_video", "is_video_result", "segment_video", "video_result_paths"]
