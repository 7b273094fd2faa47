"""Whatever holds a picture -> its pixels: files, URLs, `data:` strings, PIL pictures, arrays.

Inference, training, evaluation and the command line read pictures here, so they see the same pixels. Whatever a
decoder raises becomes a ValueError that names the picture.
Shapes: H x W the picture, upright.
"""

import base64
import os
import queue
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib import request
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from transformers.image_utils import ChannelDimension

URL_TIMEOUT = 60.0  # seconds for all of it: looking up the host, redirects, headers, the last byte
URL_MAX_BYTES = 256 << 20
CHUNK_BYTES = 1 << 16
RUN_BY_OTHERS = ("EPS",)  # programs, which PIL hands to Ghostscript
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # what stays as it is; spaces and letters beyond ASCII are escaped


@dataclass
class Picture:
    """RGB pixels: a PIL picture of 8 bits, or a float32 array (H, W, 3); `is_unit` if the floats lie in [0, 1]."""

    pixels: Image.Image | np.ndarray
    is_unit: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        pixels = self.pixels
        return pixels.shape[:2] if isinstance(pixels, np.ndarray) else (pixels.height, pixels.width)


def read_picture(image: Any, timeout: float | None = None, max_bytes: int | None = None) -> Image.Image:
    """
    One picture of any kind that the image processor's `images` may hold -> a PIL picture: RGB, 8 bits, upright.

    Args:
        image: PIL picture (any mode), path, URL, `data:` string, or array or tensor (H, W), (H, W, C), (C, H, W).
            16-bit numbers keep their high byte; 32-bit ones are 8-bit where none exceeds 255; floats lie in [0, 1] or
            [0, 255]. Transparency is dropped; of an animation the first frame counts.
        timeout: Seconds that fetching a URL may take in all; `None`: `URL_TIMEOUT` (60).
        max_bytes: Most bytes that a URL may hold; `None`: `URL_MAX_BYTES` (256 MiB).

    Raises:
        ValueError: if it cannot be read (broken, no picture, far too large, no such file); the message names it.
        TypeError: if it is none of these.
    """
    pixels = as_picture(image, timeout=timeout, max_bytes=max_bytes).pixels
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(to_8_bits(pixels))


def as_picture(
    image: Any,
    input_data_format: Any = None,
    timeout: float | None = None,
    max_bytes: int | None = None,
) -> Picture:
    """As `read_picture`, but float arrays stay floats. `input_data_format`: where an array's channels are."""
    if isinstance(image, (str, os.PathLike)):
        name = shown_name(os.fspath(image))
        with _open(os.fspath(image), timeout, max_bytes) as opened:
            return Picture(_convert(_decode(opened, name, ImageOps.exif_transpose), name))
    if isinstance(image, Image.Image):
        name = shown_name(getattr(image, "filename", "") or "a PIL picture")
        return Picture(_convert(_decode(image, name, ImageOps.exif_transpose), name))
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"`images` must be PIL pictures, paths, URLs, arrays or tensors, got {type(image).__name__}.")
    return _array_to_picture(image, input_data_format)


def read_label_map(item: Any) -> np.ndarray:
    """
    A label map as PIL picture, path, array or tensor -> (H, W) int64. Of a palette picture the indices count, of a
    1-bit one 0 and 1; nothing is turned.

    Raises:
        ValueError: if it cannot be read, has several channels or holds no integers; the message names the file.
    """
    name = "an array"
    if isinstance(item, (str, os.PathLike)):
        name = shown_name(os.fspath(item))
        item = decode_picture(item)
    elif isinstance(item, Image.Image):
        name = shown_name(getattr(item, "filename", "") or "a PIL picture")
        item = _decode(item, name, Image.Image.copy)
    array = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise ValueError(
            f"`segmentation_maps` must be (height, width) of integers; {name} is {array.shape} of {array.dtype}."
        )
    return array.astype(np.int64)


def decode_picture(source: str | os.PathLike) -> Image.Image:
    """
    A file, URL or `data:` string as its decoder leaves it: in its own mode, not turned.

    Raises:
        ValueError: if it cannot be read; the message names it.
    """
    source = os.fspath(source)
    with _open(source) as opened:
        return _decode(opened, shown_name(source), Image.Image.copy)


def is_url(source: str) -> bool:
    """Whether a string is an address that is fetched rather than a file's name."""
    return source[:8].lower().startswith(("http://", "https://"))


def shown_name(source: str | bytes) -> str:
    """A source as messages show it: `data:` strings are long."""
    source = os.fsdecode(source)
    return source if len(source) <= 300 else f"{source[:40]}..."


# --- Opening ---


def _open(source: str, timeout: float | None = None, max_bytes: int | None = None) -> Image.Image:
    """A lazy PIL picture of a file, URL, `data:` or base64 string."""
    name = shown_name(source)
    if is_url(source):
        source = BytesIO(fetch_bytes(source, timeout, max_bytes))
    elif not os.path.isfile(source):
        source = BytesIO(_embedded_bytes(source, name))
    opened = _guarded(lambda: Image.open(source), name)
    if opened.format in RUN_BY_OTHERS:
        raise ValueError(f"`images`: {name!r} is {opened.format}, which another program would run; save it as PNG.")
    return opened


def _embedded_bytes(source: str, name: str) -> bytes:
    """What a `data:` or base64 string holds. Anything else was meant for a file's name."""
    if os.path.exists(source):
        raise ValueError(f"`images`: cannot read {name!r} as a picture: this is no file.")
    is_data = source[:5].lower() == "data:"
    try:
        return base64.b64decode(source.partition(",")[2] if is_data else source, validate=not is_data)
    except ValueError as error:
        reason = "this is no base64" if is_data else "there is no such file"
        raise ValueError(f"`images`: cannot read {name!r} as a picture: {reason}.") from error


def _decode(picture: Image.Image, name: str, load: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`load`, which decodes all pixels and leaves a picture that no longer reads from its file."""
    if 0 in picture.size:
        raise ValueError(f"`images`: {name} has zero size {picture.size}.")
    return _guarded(lambda: load(picture), name)


def _guarded(decode: Callable[[], Image.Image], name: str) -> Image.Image:
    """Decoders raise anything on broken files: struct.error, SyntaxError, TypeError, AttributeError, MemoryError..."""
    try:
        return decode()
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"`images`: cannot read {name!r} as a picture: {reason}") from error


# --- Fetching ---


def fetch_bytes(url: str, timeout: float | None = None, max_bytes: int | None = None) -> bytes:
    """
    What an address (http or https, through at most ten redirects) holds; certificates and proxies as usual.

    A thread fetches while this one waits: no single step (looking up the host, headers that drip) knows of the total.

    Args:
        timeout, max_bytes: As in `read_picture`.

    Raises:
        ValueError: if it cannot be fetched, takes longer or holds more; the message names the address.
    """
    timeout = URL_TIMEOUT if timeout is None else timeout
    max_bytes = URL_MAX_BYTES if max_bytes is None else max_bytes
    if not 0 < timeout <= threading.TIMEOUT_MAX or max_bytes < 1:
        raise ValueError(f"`timeout` and `max_bytes` must be positive, got {timeout} and {max_bytes}.")
    deadline = time.monotonic() + timeout
    answers: queue.Queue[bytes | Exception] = queue.Queue()

    def fetch() -> None:
        try:
            answers.put(_download(url, deadline, max_bytes))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        answer = TimeoutError(_too_slow(timeout))
    if isinstance(answer, Exception):
        reason = _too_slow(timeout) if isinstance(answer, TimeoutError) else answer
        raise ValueError(f"{shown_name(url)}: cannot be fetched as a picture ({reason}).") from answer
    return answer


def _too_slow(timeout: float) -> str:
    return f"it took more than `timeout`, {timeout:g} seconds"


def _download(url: str, deadline: float, max_bytes: int) -> bytes:
    headers = {"User-Agent": "maftplus (picture reader)"}
    query = request.Request(quote(url, safe=URL_CHARACTERS), headers=headers)
    content = BytesIO()
    with _opener().open(query, timeout=max(0.001, deadline - time.monotonic())) as response:
        announced = int(response.headers.get("Content-Length") or 0)
        while (piece := response.read1(CHUNK_BYTES)) and max(announced, content.tell()) <= max_bytes:
            content.write(piece)
            if time.monotonic() > deadline:
                raise TimeoutError
    if max(announced, content.tell()) > max_bytes:
        raise ValueError(f"it holds more than `max_bytes`, {max_bytes} bytes")
    return content.getvalue()


def _opener() -> request.OpenerDirector:
    """http and https only: a redirect leads to no file and no FTP server."""
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())  # for systems without certificates of their own
    except ImportError:
        pass
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(context=context),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


# --- Pixels ---


def _convert(picture: Image.Image, name: str) -> Image.Image:
    """RGB. A MemoryError here is ours, not a decoder's, and stays one."""
    try:
        return _to_rgb(picture)
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        raise ValueError(f"`images`: cannot read {name!r} as a picture: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(to_8_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        return ImageCms.profileToProfile(
            picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if picture.mode == "P" and "transparency" in picture.info:  # PIL warns if asked for RGB at once
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """
    Numbers of any type -> uint8. 16-bit ones keep the high byte; wider ones count as 8-bit if none exceeds 255.

    Raises:
        ValueError: on integers outside of 0 to 65535, NaN and infinite numbers.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind == "f":
        _check_finite(pixels)
        scale = 255.0 if _is_unit(pixels) else 1.0 if pixels.max() <= 255 else 1 / 257
        return np.clip(pixels * scale + 0.5, 0, 255).astype(np.uint8)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"pixels must lie between 0 and 65535, got {pixels.min()} to {pixels.max()}")
    is_wide = pixels.dtype.itemsize == 2 and pixels.dtype.kind == "u" or pixels.max() > 255
    return (pixels >> 8 if is_wide else pixels).astype(np.uint8)


def _check_finite(pixels: np.ndarray) -> None:
    if not np.isfinite(pixels).all():
        raise ValueError("`images` holds NaN or infinite numbers.")


def _is_unit(pixels: np.ndarray) -> bool:
    """Whether floats lie in [0, 1], give or take rounding, rather than in [0, 255]."""
    return bool(pixels.max() <= 1.001)


def _array_to_picture(array: np.ndarray, input_data_format: Any) -> Picture:
    if array.size == 0:
        raise ValueError(f"`images` holds an array of zero size, shape {array.shape}.")
    if array.dtype.kind not in "buif":
        raise ValueError(f"`images` must hold numbers, got an array of {array.dtype}.")
    array = _channels_last(array, input_data_format)
    if array.dtype.kind != "f":
        return Picture(Image.fromarray(np.ascontiguousarray(to_8_bits(array))))
    _check_finite(array)
    return Picture(array.astype(np.float32, copy=False), _is_unit(array))


def _channels_last(array: np.ndarray, input_data_format: Any) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) with C = 1 to 4 -> (H, W, 3); grey is repeated, a fourth channel is dropped."""
    if array.ndim not in (2, 3):
        raise ValueError(f"`images` must be arrays of 2 or 3 axes a picture, got shape {array.shape}.")
    if array.ndim == 2:
        array = array[..., None]
    else:
        layout = input_data_format or _channel_layout(array.shape)
        array = np.moveaxis(array, 0, -1) if layout == ChannelDimension.FIRST else array
    channels = array.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"`images` must have 1 to 4 channels, got {channels}.")
    return np.broadcast_to(array[..., :1], (*array.shape[:2], 3)) if channels < 3 else array[..., :3]


def _channel_layout(shape: tuple[int, ...]) -> ChannelDimension:
    """Three or four channels are looked for before one or two; if both ends fit, the first, as in transformers."""
    for counts in ((3, 4), (1, 2)):
        for axis, layout in ((0, ChannelDimension.FIRST), (-1, ChannelDimension.LAST)):
            if shape[axis] in counts:
                return layout
    raise ValueError(f"`images` must have 1 to 4 channels, first or last, got an array of shape {shape}.")


__all__ = [
    "Picture",
    "as_picture",
    "decode_picture",
    "fetch_bytes",
    "is_url",
    "read_label_map",
    "read_picture",
    "shown_name",
    "to_8_bits",
]
