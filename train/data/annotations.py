"""Raw annotations of the data sets, read as their authors publish them, and pictures.

Sources (format descriptions): ADE20K, `index_ade20k` documentation ("R/10 * 256 + G is the class"); PASCAL-Context,
`LabelMap` in one .mat a picture and the merged JSON with COCO run lengths; COCO panoptic, "id = R + 256 G + 256^2 B";
ADE20K instances (scene parsing challenge 2017), "R is the category of 100, G the instance".
Shapes: H x W the picture. Every reader names the file in its errors.
"""

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maftplus.image_processing_maftplus import read_picture
from maftplus.pictures.files import write_atomically


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
    _require_file(path)
    try:
        return read_picture(path)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error.__cause__ or error}).") from error


def read_label_png(path: Path) -> np.ndarray:
    """
    Values of a one-channel image (H, W), 8 or 16 bits; of a palette image the indices, not the colours.

    Raises:
        ValueError: if it has several channels, or numbers that are no integers.
    """
    return as_labels(_load(path), path)


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
    from scipy.io import loadmat

    _require_file(path)
    try:
        return np.asarray(loadmat(path)["LabelMap"])
    except (KeyError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path}: no .mat file with a `LabelMap` ({error}).") from error


@dataclass(frozen=True)
class MergedJson:
    """PASCAL-Context's merged JSON: pictures and, by picture, run-length masks with `category_id`."""

    path: Path
    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]

    def read(self, image_id: Any) -> np.ndarray:
        """Category ids (H, W) int32; where masks overlap the later one stays, 0 is unlabelled."""
        image = self.images[image_id]
        labels = np.zeros((image["height"], image["width"]), dtype=np.int32)
        for annotation in self.annotations.get(image_id, []):
            mask = decode_run_lengths(annotation["segmentation"], f"{self.path}, image {image_id}")
            if mask.shape != labels.shape:
                raise ValueError(f"{self.path}, image {image_id}: a mask is {mask.shape}, the picture {labels.shape}.")
            labels[mask] = annotation["category_id"]
        return labels


@lru_cache(maxsize=2)
def load_merged_json(path: Path) -> MergedJson:
    """
    Raises:
        FileNotFoundError, ValueError: if the file is missing or lacks `images` or `annos_segmentation`.
    """
    content = read_json(path)
    if not {"images", "annos_segmentation"} <= set(content):
        raise ValueError(f"{path}: no merged JSON of PASCAL-Context; it lacks `images` or `annos_segmentation`.")
    annotations: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annos_segmentation"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    return MergedJson(path, {image["image_id"]: image for image in content["images"]}, annotations)


def decode_run_lengths(rle: dict[str, Any], where: str) -> np.ndarray:
    """A COCO run-length mask, compressed or not, as (H, W) bool."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("Run-length masks need pycocotools: pip install pycocotools") from error
    try:
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, *rle["size"])
        return coco_mask.decode(rle).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: a mask is no COCO run length ({error}).") from error


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
    values = np.asarray(_load(path))
    if values.ndim != 3 or values.shape[-1] < 3:
        raise ValueError(f"{path}: expected three channels, this has shape {values.shape}.")
    return values[..., :3]


def _read_rgb(path: Path) -> np.ndarray:
    """(3, H, W) int32."""
    return np.moveaxis(read_rgb_array(path), -1, 0).astype(np.int32)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")


def _load(path: Path) -> Image.Image:
    _require_file(path)
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # decoders raise anything, from struct.error to AttributeError
        raise ValueError(f"{path}: cannot be read as a picture ({error or type(error).__name__}).") from error
    return image
