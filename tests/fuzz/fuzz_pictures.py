"""Damaged pictures: each is read as a picture and as a label map, or refused by name."""

import io
import warnings
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fuzz.mutations import Damage, damaged, damages
from fuzz.targets import Target, refused
from hypothesis import strategies as st
from PIL import Image

from maftplus.reading_maftplus import read_label_map, read_picture

# Twenty-two formats that PIL writes and reads.
FORMATS = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "EPS", "GIF", "ICNS", "ICO", "IM", "JPEG"),
    *("JPEG2000", "MSP", "PCX", "PNG", "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP"),
)
MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB")
# EXIF that says: turned by 90 degrees.
TURNED = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
VARIANTS = {
    "JPEG": [
        {},
        {"progressive": True},
        {"exif": TURNED},
    ],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}],
    "TGA": [{}, {"compression": "tga_rle"}],
    "PNG": [{}, {"optimize": True}],
}
MAX_PIXELS = 2_000_000  # PIL's own limit, lowered: files that unpack to much are slow, which is known


@cache
def originals() -> list[bytes]:
    """Every format in every mode and variant that it takes."""
    rng, result = np.random.default_rng(0), []
    pixels = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((64, 64))
    for kind in FORMATS:
        for mode in MODES:
            for options in VARIANTS.get(kind, [{}]):
                content = _encode(pixels, kind, mode, options)
                result += [content] if content else []
    return result


def _encode(pixels: Image.Image, kind: str, mode: str, options: dict) -> bytes | None:
    buffer = io.BytesIO()
    try:
        pixels.convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, kind, **options)
    except (OSError, ValueError, KeyError):  # not in this format
        return None
    return buffer.getvalue()


def check(case: tuple[int, list[Damage]], folder: Path) -> str:
    number, what = case
    path = folder / "picture.bin"
    path.write_bytes(damaged(originals()[number % len(originals())], what))
    with warnings.catch_warnings(), patch.object(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS):
        warnings.simplefilter("ignore")  # PIL's, about odd files
        outcome = _read(path)
    assert [file.name for file in folder.iterdir()] == [path.name]
    return outcome


def _read(path: Path) -> str:
    outcomes = set()
    try:
        picture = read_picture(str(path))
        assert picture.mode == "RGB"
        assert min(picture.size) > 0
        outcomes.add("taken")
    except ValueError as error:
        outcomes.add(refused(error, path))
    try:
        labels = read_label_map(path)
        assert labels.ndim == 2
        assert labels.dtype == np.int64
        outcomes.add("taken")
    except ValueError as error:
        outcomes.add(refused(error, path))
    return "taken" if "taken" in outcomes else "refused"


PICTURES = Target("pictures", st.tuples(st.integers(0, 10_000), damages()), check, originals)
