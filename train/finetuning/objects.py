"""Label maps as objects: a thing's pixels that hang together are one object, where the names say what is stuff.

A label map does not tell two cats apart. Trained on it as it is, a model that knows single objects learns to take all
cats of a picture for one, and the mask-aware loss asks the mask of one cat for its share of them all.
Shapes: H x W the picture.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from maftplus.train.data.registry import Sample

SMALLEST = 16  # pixels of an object of its own; what is smaller belongs to the class's largest one
NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass
class Objects:
    """Semantic data whose `vocabulary` says what is stuff, as panoptic data by index."""

    data: Any
    task: str = "panoptic"

    @property
    def vocabulary(self) -> Any:
        return self.data.vocabulary

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        if "segments_info" in sample:  # the data know their objects, only what is measured does not
            return sample
        ids, segments = find_objects(sample["segmentation_map"], self.vocabulary)
        return {**sample, "segmentation_map": ids, "segments_info": segments}


def find_objects(labels: np.ndarray, vocabulary: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids (H, W) from 1, 0 without a class, and their `segments_info`; classes lie below `num_labels`."""
    ids, segments = np.zeros(labels.shape, dtype=np.int32), []
    for label in np.unique(labels[(labels >= 0) & (labels < vocabulary.num_labels)]).tolist():
        is_class = labels == label
        parts = is_class.astype(np.int32) if label in (vocabulary.stuff or ()) else _connected(is_class)
        ids = np.where(is_class, parts + len(segments), ids)
        segments += [{"id": len(segments) + number, "label_id": label, "iscrowd": 0} for number in _count(parts)]
    return ids, segments


def _count(parts: np.ndarray) -> range:
    return range(1, int(parts.max()) + 1)


def _connected(is_class: np.ndarray) -> np.ndarray:
    """Numbers of the connected parts from 1, specks as part of the largest."""
    parts, count = ndimage.label(is_class, NEIGHBOURS)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = np.flatnonzero(sizes >= SMALLEST) if sizes.max() >= SMALLEST else np.array([sizes.argmax()])
    table = np.full(count + 1, np.searchsorted(kept, sizes.argmax()) + 1)
    table[kept] = np.arange(1, len(kept) + 1)
    table[0] = 0
    return table[parts]
