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
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from maftplus.app.tracking import BATCH_SIZE, TrackOptions, track
from maftplus.pictures.overlay import paint_segments, segment_colour
from maftplus.pictures.segments import Segment
from maftplus.postprocessing_maftplus import run_lengths

logger = logging.get_logger(__name__)

VIDEO_ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv"})
CODEC, QUALITY = "libx264", "20"  # constant rate factor: 0 without loss, 51 worst
SOUND_CODECS = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "flac"})  # that mp4 holds
AV_TIME_BASE = 1_000_000  # of a container's own times


@dataclass
class ClipFrame:
    """A frame as it is meant to be seen. `index` counts from the first frame after `start`; `time` in seconds."""

    index: int
    time: float
    picture: Image.Image


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


def load_av() -> Any:
    """PyAV. Raises ValueError, in one line that names the extra, where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ValueError('Clips need PyAV: pip install "maftplus[video]"') from error
    return av


class ClipReader:
    """
    The frames of a clip between two times, upright, one after the other.

    Args:
        path: A file that libav reads.
        every: Give only every so-manieth frame.
        start, end: Seconds from the beginning of the clip; `end` itself is left out, `None` is the clip's end.

    A clip that breaks off does not raise while it is read: the frames before are given, then `error` names the frame.

    Raises:
        ValueError: without PyAV, on a file that is no clip, or on values that leave no frame.
    """

    def __init__(self, path: str | Path, every: int = 1, start: float = 0.0, end: float | None = None):
        self.path, self.every, self.start, self.end = str(path), every, start, end
        self.error: str | None = None
        if every < 1 or start < 0 or (end is not None and end <= start):
            raise ValueError(
                f"`every` must be at least 1, `start` at least 0 and `end` later, got {every}, {start} and {end}."
            )
        av = load_av()
        self._libav_error = av.FFmpegError
        try:
            self._container = av.open(self.path)
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{self.path}: cannot be read as a clip ({_reason(error)}).") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self.path}: there is no picture in this file.")
        self.stream = self._container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self._step = 1 / float(self.stream.average_rate or 25)
        self.origin = (self._container.start_time or 0) / AV_TIME_BASE

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[ClipFrame]:
        index, time, size = 0, self.start, None
        try:
            for frame, time in self._decode():
                if index % self.every == 0:
                    picture = _upright(frame)
                    size = size or picture.size  # a few clips change it on their way
                    yield ClipFrame(index, time, picture if picture.size == size else picture.resize(size))
                index += 1
        except self._libav_error as error:
            self.error = f"{self.path}: broken at frame {index} (after {time:.2f} s): {_reason(error)}"
            return
        if self.end is None and not self.start and self._lacks_frames(index, time):
            self.error = f"{self.path}: broken off at frame {index} (after {time:.2f} s) of {self.stream.frames}"

    def _lacks_frames(self, count: int, time: float) -> bool:
        """Whether the file announced more (mp4 does). Both must be short: frames may be left out by an edit list."""
        announced = float((self.stream.duration or 0) * self.stream.time_base)
        return count < self.stream.frames and time + 2 * self._step < announced

    def _decode(self) -> Iterator[tuple[Any, float]]:
        """Frames from `start` to before `end`, each with its time in seconds."""
        if self.start:
            self._container.seek(int((self.start + self.origin) * AV_TIME_BASE))  # to a key frame at or before it
        time = self.start - self._step
        for frame in self._container.decode(self.stream):
            time = time + self._step if frame.time is None else frame.time - self.origin
            if self.end is not None and time >= self.end:
                return
            if time >= self.start - 1e-6:
                yield frame, time


def _upright(frame: Any) -> Image.Image:
    """RGB, turned as the display matrix says (quarter turns, counterclockwise)."""
    turns = round(frame.rotation / 90) % 4
    return Image.fromarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class ClipWriter:
    """
    Pictures at their times as an H.264 clip, with the sound of another file copied packet by packet.

    Args:
        path: Ends in `.mp4`.
        size: (width, height) of the pictures; odd edges lose their last line, as H.264 needs even ones.
        rate: Frames a second where they are regular; each frame still has its own time.
        sound: A clip whose first sound track is kept, from `start` seconds on.
    """

    TIME_BASE = Fraction(1, 90_000)

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        rate: Fraction | int = 25,
        sound: str | Path | None = None,
        start: float = 0.0,
    ):
        self._av = load_av()
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream(CODEC, rate=rate, options={"crf": QUALITY})
        self._stream.width, self._stream.height = (edge - edge % 2 for edge in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self.TIME_BASE
        self._start, self._last = start, -1
        self._sound = None if sound is None else _SoundCopy(self._av, sound, self._container, start)

    def write(self, picture: Image.Image, time: float) -> None:
        """Add a picture at its time in seconds, later than the one before."""
        frame = self._av.VideoFrame.from_image(picture.crop((0, 0, self._stream.width, self._stream.height)))
        frame.time_base = self.TIME_BASE
        frame.pts = self._last = max(self._last + 1, round((time - self._start) / self.TIME_BASE))
        self._container.mux(self._stream.encode(frame))
        if self._sound is not None:
            self._sound.copy_until(time)

    def close(self, sound_until: float = 0.0) -> None:
        """Write what is still held back, and the rest of the sound up to a time in seconds."""
        self._container.mux(self._stream.encode())
        if self._sound is not None:
            self._sound.copy_until(sound_until)
            self._sound.close()
        self._container.close()


class _SoundCopy:
    """The first sound track of a file, as it is, into an open container, as far as the pictures have come."""

    def __init__(self, av: Any, path: str | Path, container: Any, start: float):
        self._container, self._start, self._error = container, start, av.FFmpegError
        self._source = av.open(str(path))
        self._origin = (self._source.start_time or 0) / AV_TIME_BASE
        self._packets, self._next = iter(()), None
        if not self._source.streams.audio:
            return
        stream = self._source.streams.audio[0]
        if stream.codec_context is None or stream.codec_context.name not in SOUND_CODECS:
            logger.warning(f"{path}: its sound does not go into an mp4 file as it is, so it is left out.")
            return
        self._copy = container.add_stream_from_template(stream)
        if start:
            self._source.seek(int((start + self._origin) * AV_TIME_BASE))
        self._packets = self._source.demux(stream)

    def copy_until(self, time: float) -> None:
        """Packets that begin before `time` (seconds). Sound that breaks off ends there, without an error."""
        with contextlib.suppress(self._error):
            while (packet := self._next or next(self._packets, None)) is not None:
                self._next = None
                begins = None if packet.pts is None else float(packet.pts * packet.time_base) - self._origin
                if begins is not None and begins > time:
                    self._next = packet
                    return
                if begins is not None and (begins >= self._start or not self._start):  # the first may lie before 0
                    self._mux(packet)

    def _mux(self, packet: Any) -> None:
        shift = round((self._start + self._origin) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = self._copy
        self._container.mux(packet)

    def close(self) -> None:
        self._source.close()


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
        return _write_results(reader, stem, itertools.chain([first], pairs), first[1].picture.size)


def _write_results(
    reader: ClipReader, stem: Path, pairs: Iterator[tuple[list[Segment], ClipFrame]], size: tuple[int, int]
) -> VideoResult:
    overlay, tracks = (stem.with_name(stem.name + ending) for ending in ("_overlay.mp4", "_tracks.jsonl"))
    stem.parent.mkdir(parents=True, exist_ok=True)
    result = VideoResult(overlay, tracks, 0, [])
    summaries: dict[int, TrackSummary] = {}
    canvas = paint_segments(Image.new("RGB", size), [], []).size
    rate = reader.stream.average_rate or 25
    with _whole(overlay) as clip_path, _whole(tracks) as lines_path, lines_path.open("w", encoding="utf-8") as lines:
        writer = ClipWriter(clip_path, canvas, rate, reader.path, reader.start)
        for segments, frame in pairs:
            colours = [segment_colour(one.id - 1) for one in segments]
            writer.write(paint_segments(frame.picture, segments, colours), frame.time)
            lines.writelines(_track_lines(segments, frame))
            _note(summaries, segments, frame.index)
            result.num_frames += 1
        end = math.inf if reader.end is None else reader.end
        writer.close(sound_until=0.0 if reader.error else end)
    result.summaries, result.error = list(summaries.values()), reader.error
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
    codes = run_lengths(torch.from_numpy(np.stack([one.mask for one in segments]))) if segments else []
    for one, code in zip(segments, codes):
        line = {"frame": frame.index, "time": round(frame.time, 6), "id": one.id, "word": one.label}
        yield json.dumps({**line, "score": one.score, "box": one.bbox, "rle": code}, ensure_ascii=False) + "\n"


def _note(summaries: dict[int, TrackSummary], segments: list[Segment], index: int) -> None:
    for one in segments:
        summary = summaries.setdefault(one.id, TrackSummary(one.id, one.label, index, index, 0))
        summary.word, summary.last_frame = one.label, index  # the last word is the one with most frames behind it
        summary.num_frames += 1


__all__ = [
    "ClipFrame",
    "ClipReader",
    "ClipWriter",
    "TrackSummary",
    "VideoResult",
    "is_video",
    "segment_video",
]
