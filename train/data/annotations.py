"""Raw annotations of the data sets, read as their authors publish them, and pictures.

Sources (format descriptions): ADE20K, `index_ade20k` documentation ("R/10 * 256 + G is the class"); PASCAL-Context,
`LabelMap` in one .mat a picture and the merged JSON with COCO run lengths; COCO panoptic, "id = R + 256 G + 256^2 B";
ADE20K instances (scene parsing challenge 2017), "R is the category of 100, G the instance".
Shapes: H x W the picture. Every reader names the file in its errors.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maftplus.pictures.files import write_atomically
from maftplus.reading_maftplus import decode_picture, read_picture
from maftplus.train.data.mat_files import read_matrix

LARGEST_MASK, LARGEST_CATEGORY = 1 << 28, (1 << 31) - 1  # pixels; int32
MOST_CHARACTERS = 8  # of a compressed run, 40 bits
# What rows of PASCAL-Context's merged JSON hold.
MERGED_IMAGE = {"image_id": int | str, "file_name": str, "phase": str, "height": int, "width": int}
MERGED_ANNOTATION = {"image_id": int | str, "category_id": int, "segmentation": dict}


@dataclass(frozen=True)
class Item:
    """One sample on disk: the picture, its annotation, and what else its reader needs."""

    image: Path
    annotation: Path
    image_id: str | int
    extra: Any = None
    name: str = ""

    @property
    def called(self) -> str:
        """The picture's path in its data set, by default its file name."""
        return self.name or self.image.name


def open_image(path: Path) -> Image.Image:
    """
    A picture as inference sees it: RGB, 8 bits, turned as its EXIF entry says.

    Raises:
        FileNotFoundError, ValueError: if it is missing or cannot be read; the message names the file.
    """
    return _read_named(read_picture, path)


def read_label_png(path: Path) -> np.ndarray:
    """
    Values of a one-channel image (H, W), 8 or 16 bits; of a palette image the indices, not the colours.

    Raises:
        ValueError: if it has several channels, or numbers that are no integers.
    """
    return as_labels(open_map(path), path)


def as_labels(picture: Any, where: str | Path) -> np.ndarray:
    """A label map as an array of integers (H, W); of a map with one bit 0 and 1. Raises as `read_label_png`."""
    labels = np.asarray(picture)
    if labels.ndim != 2:
        raise ValueError(f"{where}: a label map has one channel, this has shape {labels.shape}.")
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: a label map holds integers, this holds numbers of type {labels.dtype}.")
    return labels


def read_ade_full(path: Path) -> np.ndarray:
    """ADE20K's `*_seg.png`: class index R // 10 * 256 + G, (H, W) int32; 0 is unlabelled."""
    red, green, _ = _read_rgb(path)
    return red // 10 * 256 + green


def read_panoptic_png(path: Path) -> np.ndarray:
    """COCO panoptic: segment ids R + 256 G + 65536 B, (H, W) int32; 0 is void."""
    red, green, blue = _read_rgb(path)
    return red + 256 * green + 65536 * blue


def panoptic_colours(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H, W), below 256^3, as the pixels (H, W, 3) uint8 of a COCO panoptic PNG."""
    ids = np.asarray(ids)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def save_png(path: Path, values: np.ndarray) -> None:
    """An array (H, W) or (H, W, 3) as a PNG that appears whole."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def read_context_mat(path: Path) -> np.ndarray:
    """
    PASCAL-Context: `LabelMap` of a .mat file, (H, W), 1 to 459; 0 is unlabelled.

    Raises:
        ValueError: if the file is no .mat file or lacks `LabelMap`.
    """
    _require_file(path)
    try:
        return read_matrix(path.read_bytes(), "LabelMap")
    except ValueError as error:
        raise ValueError(f"{path}: no .mat file with a `LabelMap` ({error}).") from error


@dataclass(frozen=True)
class MergedJson:
    """PASCAL-Context's merged JSON: pictures and, by picture, run-length masks with `category_id`."""

    path: Path
    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]

    def read(self, image_id: Any) -> np.ndarray:
        """Category ids (H, W) int32; where masks overlap the later one stays, 0 is unlabelled. Raises ValueError."""
        where, image = f"{self.path}, image {image_id}", self.images[image_id]
        labels = np.zeros(_mask_size([image["height"], image["width"]], where), dtype=np.int32)
        for annotation in self.annotations.get(image_id, []):
            mask = decode_run_lengths(annotation["segmentation"], where)
            if mask.shape != labels.shape:
                raise ValueError(f"{where}: a mask is {mask.shape}, the picture {labels.shape}.")
            if not 0 <= annotation["category_id"] <= LARGEST_CATEGORY:
                raise ValueError(f"{where}: there is no category {annotation['category_id']}.")
            labels[mask] = annotation["category_id"]
        return labels


@lru_cache(maxsize=2)
def load_merged_json(path: Path) -> MergedJson:
    """
    Raises:
        FileNotFoundError, ValueError: if the file is missing or lacks `images` or `annos_segmentation`, or one of them
            what it needs.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annos_segmentation"} <= set(content):
        raise ValueError(f"{path}: no merged JSON of PASCAL-Context; it lacks `images` or `annos_segmentation`.")
    images = check_rows(content["images"], MERGED_IMAGE, f"{path}, `images`")
    annotations: dict[Any, list[dict[str, Any]]] = {}
    for annotation in check_rows(content["annos_segmentation"], MERGED_ANNOTATION, f"{path}, `annos_segmentation`"):
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    return MergedJson(path, {image["image_id"]: image for image in images}, annotations)


def check_rows(rows: Any, kinds: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """`rows` themselves. Raises ValueError unless they are a list of objects that have the fields of `kinds`."""
    if not isinstance(rows, list):
        raise ValueError(f"{where} must be a list, got {rows!r:.80}.")
    for index, row in enumerate(rows):
        wrong = [key for key, kind in kinds.items() if not isinstance(row, dict) or not isinstance(row.get(key), kind)]
        if wrong:
            raise ValueError(f"{where} {index}: `{wrong[0]}` is missing or of another type.")
    return rows


def decode_run_lengths(rle: dict[str, Any], where: str) -> np.ndarray:
    """
    A COCO run-length mask, compressed or not, as (H, W) bool.

    Our own, because pycocotools leaves the pixels after too few runs as they happen to lie in memory, and ends the
    process over some sizes.

    Raises:
        ValueError: if it is none, or its runs do not add up to its size; the message begins with `where`.
    """
    try:
        size, counts = rle["size"], rle["counts"]
        counts = np.array(counts, ndmin=1) if isinstance(counts, list) else _decode_counts(counts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: a mask is no COCO run length ({error or type(error).__name__}).") from error
    height, width = _mask_size(size, where)
    is_whole = counts.dtype.kind in "iu" or not counts.size
    if not is_whole or counts.min(initial=0) < 0 or sum(counts.tolist()) != height * width:
        raise ValueError(f"{where}: a mask is no COCO run length (its runs do not add up to {height} x {width}).")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts.astype(np.int64))
    return pixels.reshape(width, height).T


def _decode_counts(text: str | bytes) -> np.ndarray:
    """COCO's compressed runs: 5 bits a character, low ones first; from the fourth on the change since two before."""
    characters = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(characters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends + 1 - starts
    if not len(ends) or ends[-1] + 1 < len(characters) or characters.min() < 0 or lengths.max() > MOST_CHARACTERS:
        raise ValueError("damaged characters")
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    values = np.add.reduceat((characters & 31) << shifts, starts)
    values -= np.where(characters[ends] & 16, 1 << 5 * lengths, 0)  # the last character holds the sign
    for first in (1, 2):
        values[first::2] = values[first::2].cumsum()
    return values


def _mask_size(size: Any, where: str) -> tuple[int, int]:
    """Height and width. Raises ValueError if they are none, or far larger than any picture."""
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(type(edge) is int for edge in size)
    if not is_pair or min(size) < 0 or size[0] * size[1] > LARGEST_MASK:
        raise ValueError(
            f"{where}: the size of a mask is [height, width], at most {LARGEST_MASK} pixels: {size!r:.80}."
        )
    return size[0], size[1]


def combine_ade_panoptic(
    semantic: np.ndarray, instances: np.ndarray, things: tuple[int, ...]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """
    ADE20K's semantic and instance annotations as one panoptic map: stuff is pasted first, then things over it.

    Args:
        semantic: (H, W), 1 to 150, 0 unlabelled.
        instances: (H, W, 3), red the category among `things` from 1, green the instance from 1.
        things: Training ids of the 100 things, ascending.

    Returns:
        Segment ids (H, W) int32 and `segments_info` with `category_id` from 0. As in the published conversion, `area`
        is that of the annotation before things cover it.
    """
    ids = np.zeros(semantic.shape, dtype=np.int32)
    segments: list[dict[str, Any]] = []

    def paste(mask: np.ndarray, category: int) -> None:
        ids[mask] = len(segments) + 1
        area = int(mask.sum())
        segments.append({"id": len(segments) + 1, "category_id": category, "area": area, "iscrowd": 0})

    for value in np.unique(semantic):
        if value and value - 1 not in things:
            paste(semantic == value, int(value) - 1)
    for instance in np.unique(instances[..., 1]):
        if instance:
            mask = instances[..., 1] == instance
            categories = np.unique(instances[..., 0][mask])
            if len(categories) > 1 or not 1 <= categories[0] <= len(things):
                raise ValueError(
                    f"instance {instance} has the categories {categories.tolist()}, wanted one of 1 to 100."
                )
            paste(mask, things[categories[0] - 1])
    return ids, segments


def read_json(path: Path) -> Any:
    """
    Raises:
        FileNotFoundError, ValueError: if the file is missing or no JSON; the message names it.
    """
    _require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise ValueError(f"{path}: not a JSON file ({error}).") from error


def read_rgb_array(path: Path) -> np.ndarray:
    """A three-channel image as it is, (H, W, 3) uint8."""
    values = np.asarray(open_map(path))
    if values.ndim != 3 or values.shape[-1] < 3:
        raise ValueError(f"{path}: expected three channels, this has shape {values.shape}.")
    return values[..., :3]


def _read_rgb(path: Path) -> np.ndarray:
    """(3, H, W) int32."""
    return np.moveaxis(read_rgb_array(path), -1, 0).astype(np.int32)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")


def open_map(path: Path) -> Image.Image:
    """A map as its decoder leaves it, in its own mode. Raises as `open_image`."""
    return _read_named(decode_picture, path)


def _read_named(read: Callable[[Path], Image.Image], path: Path) -> Image.Image:
    _require_file(path)
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error.__cause__ or error}).") from error
