"""Clips as files: frames upright and at their times, read and written one by one, sound copied packet by packet.

Needs PyAV (the extra [video]), which brings libav; imported when a clip is opened.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

MARK = "maftplus"  # in the comment of a clip that we wrote
CODEC, QUALITY = "libx264", "20"  # constant rate factor: 0 without loss, 51 worst
SOUND_CODECS = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "flac"})  # that mp4 holds
AV_TIME_BASE = 1_000_000  # of a container's own times


@dataclass
class ClipFrame:
    """A frame as it is meant to be seen. `index` counts from the first frame after `start`; `time` in seconds."""

    index: int
    time: float
    picture: Image.Image


def load_av() -> Any:
    """PyAV. Raises ValueError, in one line that names the extra, where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ValueError('Clips need PyAV: pip install "maftplus[video]"') from error
    return av


def check_span(every: int = 1, start: float = 0.0, end: float | None = None) -> None:
    """Raises ValueError on values that leave no frame of any clip."""
    if every < 1 or start < 0 or (end is not None and end <= start):
        raise ValueError(
            f"`every` must be at least 1, `start` at least 0 and `end` later, got {every}, {start} and {end}."
        )


def read_mark(path: str | Path) -> str | None:
    """The comment of a clip, which is `MARK` if we wrote it. Raises ValueError if it is no clip."""
    with ClipReader(path) as reader:
        return reader.comment


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
        check_span(every, start, end)
        av = load_av()
        self._libav_error = av.FFmpegError
        try:
            self._container = av.open(self.path)
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{self.path}: cannot be read as a clip ({_reason(error)}).") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self.path}: there is no picture in this file.")
        self.comment = self._container.metadata.get("comment")
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
        self._container.metadata["comment"] = MARK
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


__all__ = ["MARK", "ClipFrame", "ClipReader", "ClipWriter", "check_span", "load_av", "read_mark"]
