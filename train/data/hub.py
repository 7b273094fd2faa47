"""Data sets of the Hub, or folders that `datasets` reads, as samples for training and evaluation.

    dataset = load_hub("user/name", "validation", load_vocabulary_file("words.txt"), label_column="annotation")

Shapes: H x W the picture; label maps hold training ids 0..K-1 and `ignore_index`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from maftplus.image_processing_maftplus import read_picture
from maftplus.train.data.annotations import as_labels
from maftplus.train.data.registry import UNKNOWN, Sample, label_table, name_unknown_ids, void_and_unlabelled
from maftplus.vocabularies.files import VocabularyFile, map_ids

logger = logging.get_logger(__name__)
VALIDATION_NAMES = ("val", "validation", "dev", "test")  # what the same split is called, the likeliest first


@dataclass
class HubDataset(torch.utils.data.IterableDataset):
    """
    Samples of a `datasets` data set (or stream) with a picture and a label map a row, in the form of
    `SegmentationDataset`: one after the other, shared out among processes (`samples`), or, but for streams, by index.
    """

    name: str
    rows: Iterable[Mapping[str, Any]]
    vocabulary: VocabularyFile
    image_column: str = "image"
    label_column: str = "label"
    ignore_index: int = 255
    unlabelled: frozenset[int] = frozenset({255})
    do_reduce_labels: bool = False
    task: str = "semantic"

    def __iter__(self) -> Iterator[Sample]:
        return self.samples()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, self.rows[index])

    def samples(self, rank: int = 0, world: int = 1, max_samples: int | None = None) -> Iterator[Sample]:
        """Every `world`-th sample from `rank` on, of the first `max_samples`."""
        if hasattr(self.rows, "__len__"):  # not a stream: only its own rows are decoded
            for index in range(rank, min(len(self.rows), max_samples or len(self.rows)), world):
                yield self.sample(index, self.rows[index])
            return
        for index, row in enumerate(islice(self.rows, max_samples)):
            if index % world == rank:
                yield self.sample(index, row)

    def sample(self, index: int, row: Mapping[str, Any]) -> Sample:
        """One row as a sample; rows are called by their `image_id` or `file_name` column, or by number."""
        for column in (self.image_column, self.label_column):
            if column not in row:
                raise ValueError(f"{self.name} has the columns {sorted(row)}, not {column!r}; name them.")
        identity = row.get("file_name", row.get("image_id", index))
        where = f"{self.name}, row {identity}"
        raw = as_labels(row[self.label_column], where)
        table = label_table(self.vocabulary, self.unlabelled, self.ignore_index, self.do_reduce_labels)
        labels = map_ids(raw, table, UNKNOWN)
        if (labels == UNKNOWN).any():
            raise ValueError(f"{where}: {name_unknown_ids(raw, labels, self.vocabulary)}")
        image = read_row_picture(row[self.image_column], where)
        if labels.shape != (image.height, image.width):
            raise ValueError(f"{where}: the picture is {image.height} x {image.width}, its labels are {labels.shape}.")
        return {"name": str(identity), "image_id": identity, "image": image, "segmentation_map": labels}


def load_hub(name: str, split: str, vocabulary: VocabularyFile, streaming: bool = False, **options: Any) -> HubDataset:
    """
    A data set of the Hub or of a local folder that `datasets.load_dataset` reads; `options` as for `HubDataset`.

    Args:
        split: "val" also stands for "validation", "dev" or "test" where the data set has no such split.

    Raises:
        ImportError: without the library `datasets`.
        ValueError: if the data set has no such split; the message names those that it has.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise ImportError('Hub data sets need the `datasets` library: pip install "maftplus[train]"') from error
    void, unlabelled = void_and_unlabelled(vocabulary, options.pop("ignore_index", None))
    short_name = Path(name).name if Path(name).exists() else name.replace("/", "_")  # reports are files of this name
    split = find_split(name, split, get_dataset_split_names(name))
    return HubDataset(
        short_name,
        load_dataset(name, split=split, streaming=streaming),
        vocabulary,
        ignore_index=void,
        unlabelled=unlabelled,
        **options,
    )


def find_split(name: str, split: str, splits: list[str]) -> str:
    """
    `split` itself, or for "val" what the data set `name` calls it.

    Raises:
        ValueError: if it is not among `splits`.
    """
    if split.split("[")[0] in splits:
        return split
    others = [other for other in VALIDATION_NAMES if other in splits] if split == VALIDATION_NAMES[0] else []
    if not others:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
    logger.warning("%s has no split %r; %r is taken.", name, split, others[0])
    return others[0]


def read_row_picture(image: Any, where: str) -> Any:
    """A row's picture, RGB. Raises ValueError, beginning with `where`, if it cannot be read."""
    try:
        return read_picture(image)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
