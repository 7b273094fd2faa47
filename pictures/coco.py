"""What was found in many pictures as one document in COCO's format: images, annotations, categories.

Source: COCO's data and result formats (arXiv 1405.0312 and its format page). Every annotation has its mask as COCO's
compressed run lengths, and its score, so that the document can be read as ground truth or as results.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maftplus.pictures.files import write_atomically
from maftplus.pictures.results import JSON_KEY, MARK
from maftplus.pictures.segments import Segment


class CocoDocument:
    """
    Grows by a picture at a time; masks are kept as run lengths only.

    Args:
        classes: Synonyms of every class. A category's id is the class's index plus one, as COCO counts from 1.
        stuff_ids: Indices of stuff.
    """

    def __init__(self, classes: Sequence[Sequence[str]], stuff_ids: Sequence[int] = ()):
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [
            {"id": index + 1, "name": names[0], "synonyms": list(names), "isthing": int(index not in stuff_ids)}
            for index, names in enumerate(classes)
        ]

    def add(self, file_name: str, size: tuple[int, int], segments: Sequence[Segment]) -> None:
        """A picture of `size` (width, height) and what was found in it."""
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "width": size[0], "height": size[1]})
        self.annotations.extend(self._annotations(image_id, segments))

    def _annotations(self, image_id: int, segments: Sequence[Segment]) -> Iterator[dict[str, Any]]:
        for number, segment in enumerate(segments, start=len(self.annotations) + 1):
            annotation = {"id": number, "image_id": image_id, "category_id": segment.label_id + 1, "iscrowd": 0}
            annotation |= {"segmentation": run_lengths(segment.mask), "area": segment.area, "bbox": segment.bbox}
            yield annotation if segment.score is None else {**annotation, "score": segment.score}

    def write(self, path: Path) -> None:
        """The document as a JSON file that appears whole or not at all. Raises OSError as `write_atomically`."""
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({JSON_KEY: MARK, **content}, ensure_ascii=False))


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (h, w) bool as COCO's compressed run lengths, with text for `counts` so that they fit into JSON."""
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(edge) for edge in code["size"]], "counts": code["counts"].decode("ascii")}


__all__ = ["CocoDocument", "run_lengths"]
