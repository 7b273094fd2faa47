"""A small random data set and predictors for it, for tests of the evaluation; light to import in other processes."""

from pathlib import Path

import numpy as np
from PIL import Image

from maftplus.train.data.annotations import Item
from maftplus.train.data.registry import SegmentationDataset, semantic_labels
from maftplus.vocabularies.files import VocabularyFile

NAMES = ("cat", "dog", "grass", "sky")
WORDS = VocabularyFile("words", NAMES, tuple((name,) for name in NAMES), (10, 20, 30, 40), stuff=(2, 3), unseen=(1,))


def make_maps(item: Item):
    """Random blocks of the four classes and of unlabelled pixels; as segments one for each class, cats a crowd."""
    rng = np.random.default_rng(item.extra)
    labels = rng.choice([10, 20, 30, 40, 255], size=(3, 4)).repeat(5, 0).repeat(6, 1)
    if item.annotation.name == "semantic":
        return labels
    segments = [{"id": i, "category_id": i, "iscrowd": i == 10} for i in np.unique(labels).tolist() if i != 255]
    return np.where(labels == 255, 0, labels), segments


def make_dataset(folder: Path, num_samples: int, task: str = "semantic", name: str = "blocks") -> SegmentationDataset:
    items = []
    for index in range(num_samples):
        path = folder / f"{index:03d}.png"
        Image.new("RGB", (24, 15), (40 * index % 256, 90, 10)).save(path)
        items.append(Item(path, Path(task), index, index))
    return SegmentationDataset(name, task, WORDS, items, make_maps, 255, frozenset({255}))


def truth(samples, vocabulary, tasks):
    """The truth as prediction; crowds are left out, as nobody predicts them."""
    results = []
    for sample in samples:
        result = {"semantic": semantic_labels(sample, 255)}
        if "segments_info" in sample:
            kept = [segment for segment in sample["segments_info"] if not segment["iscrowd"]]
            ids = sample["segmentation_map"]
            ids = np.where(np.isin(ids, [segment["id"] for segment in kept]), ids, 0)
            result["panoptic"] = {"segmentation": ids, "segments_info": kept}
        results.append(result)
    return results


def shifted(samples, vocabulary, tasks):
    """The truth with its rows moved down by two."""
    return [{"semantic": np.roll(result["semantic"], 2, axis=0)} for result in truth(samples, vocabulary, tasks)]
