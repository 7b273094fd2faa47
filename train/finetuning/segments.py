"""Objects given as polygons or run lengths -> segment ids and `segments_info`, clipped to their picture.

    checked, notes = check_objects(objects, (height, width), where)     # once: what lies outside, what is no polygon
    ids, segments = paint_objects(checked, (height, width), where)      # (H, W) int32, 0 is void

An object is a dictionary with `segmentation` (polygons [x1, y1, x2, y2, ...] or a COCO run length), `category_id`
and perhaps `iscrowd`. Large objects are painted first, crowds before all, so that small ones stay visible.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maftplus.train.data.annotations import decode_run_lengths

FARTHEST = 100_000  # pixels; farther corners cost memory and are surely wrong
Object = dict[str, Any]


def paint_objects(
    objects: Iterable[Object], size: tuple[int, int], where: str
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """
    Segment ids (H, W) int32 from 1, 0 where there is no object, and the segments that have a pixel.

    Raises:
        ValueError: on a mask of another size, or one that is none; the message begins with `where`.
    """
    masks = [(object_mask(one, size, where), one) for one in objects]
    masks.sort(key=lambda pair: (not pair[1].get("iscrowd"), -int(pair[0].sum())))
    ids = np.zeros(size, dtype=np.int32)
    for number, (mask, _) in enumerate(masks, start=1):
        ids[mask] = number
    visible = np.bincount(ids.ravel(), minlength=len(masks) + 1)
    segments = [
        {"id": number, "category_id": one["category_id"], "iscrowd": int(bool(one.get("iscrowd", 0)))}
        for number, (_, one) in enumerate(masks, start=1)
        if visible[number]
    ]
    return ids, segments


def object_mask(one: Object, size: tuple[int, int], where: str) -> np.ndarray:
    """An object's pixels, (H, W) bool."""
    segmentation = one["segmentation"]
    if isinstance(segmentation, dict):
        mask = decode_run_lengths(segmentation, where)
        if mask.shape != size:
            raise ValueError(f"{where}: a mask is {mask.shape} (height, width), its picture {size}.")
        return mask
    polygons = [polygon for polygon in as_polygons(segmentation, where) if not _is_outside(polygon, size)]
    if not polygons:
        return np.zeros(size, dtype=bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def as_polygons(segmentation: Any, where: str) -> list[list[float]]:
    """
    Polygons as lists [x1, y1, ...] of at least three corners; one alone need not stand in a list of its own.

    Raises:
        ValueError: if they are none.
    """
    if isinstance(segmentation, list | tuple) and segmentation and isinstance(segmentation[0], int | float):
        segmentation = [segmentation]
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise ValueError(f"{where}: no polygons and no run length: {segmentation!r:.80}.")
    return [_as_polygon(polygon, where) for polygon in segmentation]


def polygons_outside(segmentation: Any, size: tuple[int, int], where: str) -> tuple[bool, bool]:
    """Whether an object's polygons lie wholly outside the picture, and whether a corner does by more than a pixel."""
    if isinstance(segmentation, dict):
        return False, False
    polygons = as_polygons(segmentation, where)
    height, width = size
    beyond = any(
        x < -1 or x > width + 1 or y < -1 or y > height + 1
        for polygon in polygons
        for x, y in zip(polygon[::2], polygon[1::2])
    )
    return all(_is_outside(polygon, size) for polygon in polygons), beyond


def _as_polygon(polygon: Any, where: str) -> list[float]:
    values = list(polygon) if isinstance(polygon, list | tuple | np.ndarray) else []
    if len(values) and isinstance(values[0], list | tuple | np.ndarray):  # corners as pairs
        values = [value for corner in values for value in corner]
    if not all(isinstance(v, int | float | np.number) and math.isfinite(v) and abs(v) <= FARTHEST for v in values):
        raise ValueError(f"{where}: a polygon holds something that is no coordinate: {polygon!r:.80}.")
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{where}: a polygon needs at least three corners x, y; this has {len(values)} numbers.")
    return [float(value) for value in values]


def _is_outside(polygon: Sequence[float], size: tuple[int, int]) -> bool:
    height, width = size
    xs, ys = polygon[::2], polygon[1::2]
    return max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height
