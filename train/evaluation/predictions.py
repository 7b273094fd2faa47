"""Predictions on disk in COCO's formats, for evaluation servers and other tools.

Semantic: a PNG of training ids a picture, and the COCO-Stuff results format (one run-length mask a class and picture).
Panoptic: a PNG of segment ids a picture, and the COCO panoptic results format. Category ids are the data set's own.
Source: cocodataset.org, "Results Format". Shapes: H x W the picture.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from maftplus.pictures.files import write_atomically
from maftplus.train.data.annotations import panoptic_colours, save_png
from maftplus.train.evaluation.counting import as_label_map
from maftplus.train.processes import process_state
from maftplus.vocabularies.files import VocabularyFile


class PredictionWriter:
    """
    Writes below `folder`: `semantic/*.png`, `semantic.json`, `panoptic/*.png`, `panoptic.json`.

    Args:
        names: What all samples are called, where that is known beforehand. A PNG has its picture's path with another
            ending; where two pictures differ in their ending alone, or nothing is known, the whole name and `.png`.
    """

    def __init__(self, folder: Path, vocabulary: VocabularyFile, names: Iterable[str] | None = None):
        self.folder, self.vocabulary = folder, vocabulary
        self._num_of_stem = None if names is None else Counter(str(_inside(name).with_suffix("")) for name in names)
        self.records: dict[str, list[dict[str, Any]]] = {}

    def add(self, sample: dict[str, Any], prediction: Any, task: str) -> None:
        """Write one picture's PNG now and keep its JSON entries."""
        name = self._png_name(sample["name"])
        path = self.folder / task / name
        path.parent.mkdir(parents=True, exist_ok=True)
        records = self.records.setdefault(task, [])
        if task == "semantic":
            labels = as_label_map(prediction, name=sample["name"])
            save_png(path, labels.astype(np.uint8 if self.vocabulary.num_labels <= 256 else np.uint16))
            records += self._semantic_records(sample, labels)
        else:
            save_png(path, panoptic_colours(as_label_map(prediction["segmentation"], name=sample["name"])))
            records.append(self._panoptic_record(sample, prediction, name))

    def finish(self) -> None:
        """Write the JSON files with the entries of all processes; collective."""
        state = process_state()
        for task in ("semantic", "panoptic"):
            records = self.records.get(task, [])
            records = gather_object(records) if state.num_processes > 1 else records
            records = sorted(records, key=lambda record: (str(record["image_id"]), record.get("category_id", 0)))
            if records and state.is_main_process:
                content = records if task == "semantic" else {"annotations": records}
                write_atomically(self.folder / f"{task}.json", json.dumps(content))

    def _png_name(self, name: str) -> str:
        path = _inside(name)
        stem = str(path.with_suffix(""))
        is_alone = path.suffix == ".png" if self._num_of_stem is None else self._num_of_stem[stem] <= 1
        return f"{stem}.png" if is_alone else f"{path}.png"

    def _semantic_records(self, sample: dict[str, Any], labels: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "image_id": sample["image_id"],
                "category_id": self.vocabulary.raw_ids[label],
                "segmentation": run_lengths(labels == label),
            }
            for label in np.unique(labels).tolist()
            if label < self.vocabulary.num_labels
        ]

    def _panoptic_record(self, sample: dict[str, Any], prediction: Any, file_name: str) -> dict[str, Any]:
        segments = [
            {"id": int(segment["id"]), "category_id": self.vocabulary.raw_ids[segment["label_id"]]}
            for segment in prediction["segments_info"]
        ]
        return {"image_id": sample["image_id"], "file_name": file_name, "segments_info": segments}


def _inside(name: str) -> PurePosixPath:
    """A sample's name as a path that does not lead out of its folder."""
    parts = [part for part in PurePosixPath(str(name)).parts if part not in ("/", "..")]
    return PurePosixPath(*parts or ["unnamed"])


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as an uncompressed COCO run length: columns first, starting with the number of zeros."""
    values = mask.reshape(-1, order="F")
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [len(values)]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(values) and values[0] else counts}
