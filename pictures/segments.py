"""The segments of one picture, and the picture of their ids.

A label picture follows COCO panoptic: a segment's id is R + 256 G + 256^2 B, 0 is void (arXiv 1801.00868 and its
format page). Shapes: masks are (height, width) bool; boxes are [x, y, width, height] in pixels, as in COCO.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Segment:
    """
    One segment of a picture. `score` in [0, 1], or None where the task gives none (semantic); `second_label` and its
    `second_score`: the next best word, None where there is none.
    """

    id: int
    label: str
    label_id: int
    isthing: bool
    score: float | None
    mask: np.ndarray
    second_label: str | None = None
    second_score: float | None = None

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def bbox(self) -> list[int]:
        """[x, y, width, height]; zeros for an empty mask."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return [0, 0, 0, 0]
        return [int(value) for value in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the mask, for JSON."""
        names = ("id", "label", "label_id", "isthing", "score", "second_label", "second_score", "area", "bbox")
        return {name: getattr(self, name) for name in names}


def segments_from_pipeline(results: Iterable[dict[str, Any]], stuff_ids: Sequence[int] = ()) -> list[Segment]:
    """
    What `MaftPlusSegmentationPipeline` returns for a picture -> segments, numbered from 1 in the same order; those of
    masks that were there already by their place among these.
    """
    return [
        Segment(
            id=result.get("mask_index", index - 1) + 1,
            label=result["label"],
            label_id=result["label_id"],
            isthing=result["label_id"] not in stuff_ids,
            score=result["score"],
            mask=np.asarray(result["mask"]) > 0,
            second_label=result["second_label"],
            second_score=result["second_score"],
        )
        for index, result in enumerate(results, start=1)
    ]


def label_image(segments: Sequence[Segment], size: tuple[int, int]) -> Image.Image:
    """
    Ids as an RGB picture of `size` (width, height). Where instances overlap, the better score lies on top.
    """
    ids = np.zeros(size[::-1], dtype=np.uint32)
    for segment in sorted(segments, key=lambda one: one.score or 0.0):
        ids[segment.mask] = segment.id
    return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8))


__all__ = ["Segment", "label_image", "segments_from_pipeline"]
