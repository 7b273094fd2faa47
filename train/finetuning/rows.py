"""Forms of `datasets`: a folder of `save_to_disk` or a name of the Hub; a picture and a label map or objects a row.

Two layouts of columns: an image column and a label-map column (also an image), or an image column and a column of
objects, each with a category and polygons or a run length (`objects`: a list of dictionaries or a dictionary of
lists). Columns are recognised by their features; names come from `ClassLabel`, or a file of names.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maftplus.train.data.annotations import as_labels
from maftplus.train.data.hub import HubDataset, read_row_picture
from maftplus.train.data.registry import Sample, label_table, listed_segments, semantic_labels
from maftplus.train.data.registry import ignore_value as void_value
from maftplus.train.finetuning.folders import SPLIT_WORDS, TRAIN, WHOLE
from maftplus.train.finetuning.label_maps import MOST_SCANNED, class_sets, distinct
from maftplus.train.finetuning.names import Names, find_names, fit_names, read_names
from maftplus.train.finetuning.parts import Found, with_names, with_split
from maftplus.train.finetuning.segments import paint_objects, polygons_outside
from maftplus.vocabularies.files import VocabularyFile

HUB = "hub:"
MASK_WORDS = ("segmentation", "segmentations", "mask", "masks", "polygon", "polygons", "rle", "rles", "counts")
CATEGORY_WORDS = ("category", "category_id", "categories", "label", "labels", "class", "class_id", "classes")
LABEL_COLUMNS = (
    "label",
    "labels",
    "annotation",
    "mask",
    "segmentation",
    "segmentation_map",
    "label_map",
    "gt",
    "target",
)
IMAGE_COLUMNS = ("image", "pixel_values", "img", "picture", "photo", "rgb", "input")
STATE_FILES = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Columns:
    """
    Which columns hold what; `masks` and `category` are fields of the objects, None for label maps.

    Args:
        names: Categories that are words, in the order of the vocabulary; None where they are numbers.
    """

    image: str
    labels: str
    masks: str | None = None
    category: str | None = None
    names: tuple[str, ...] | None = None


@dataclass
class ObjectRows(HubDataset):
    """Rows with objects in place of label maps: panoptic samples, in which unlabelled pixels are void."""

    columns: Columns | None = None
    task: str = "panoptic"

    def sample(self, index: int, row: Mapping[str, Any]) -> Sample:
        """As of `HubDataset`; raises ValueError on a category without a name or a mask that is none."""
        identity = row.get("file_name", row.get("image_id", index))
        where = f"{self.name}, row {identity}"
        image = read_row_picture(row[self.image_column], where)
        objects = _as_objects(row[self.label_column], self.columns, where)
        size = image.height, image.width
        kept = [one for one in objects if not polygons_outside(one["segmentation"], size, where)[0]]
        ids, segments = paint_objects(kept, size, where)
        table = label_table(self.vocabulary, (), self.ignore_index)
        segments = listed_segments(ids, segments, table, where)
        sample = {"name": str(identity), "image_id": identity, "image": image, "segmentation_map": ids}
        sample["segments_info"] = [one for one in segments if self.task == "panoptic" or not one["iscrowd"]]
        if self.task == "panoptic":
            return sample
        labels = semantic_labels(sample, self.ignore_index)
        return {key: value for key, value in {**sample, "segmentation_map": labels}.items() if key != "segments_info"}


def is_rows(name: str) -> bool:
    """Whether a name means rows of `datasets`: `hub:NAME`, or a folder of `save_to_disk`."""
    return name.startswith(HUB) or any((Path(name) / file).is_file() for file in STATE_FILES)


def read_rows(
    name: str,
    names: Names | None,
    image_column: str | None = None,
    label_column: str | None = None,
    ignore_value: int | None = None,
) -> Found:
    """
    Args:
        ignore_value: A value of label maps that is unlabelled.

    Raises:
        ImportError: without the library `datasets`.
        ValueError: if no columns fit, or the classes have no names; the message lists the columns.
    """
    splits = _load(name)
    first = next(iter(splits.values()))
    columns = find_columns(first.features, name, image_column, label_column)
    short = Path(name.removeprefix(HUB)).name or "data"
    found = Found("", {}, split_name="the data set's own splits")
    if columns.masks is None:
        found.kind = f"a data set with pictures ({columns.image}) and label maps ({columns.labels})"
        found.has_maps = True
        make = _label_map_rows(splits, columns, names or _names_beside(name), found, name, ignore_value)
    else:
        found.kind = f"a data set with pictures ({columns.image}) and objects ({columns.labels})"
        make = _object_rows(splits, columns, names or _names_beside(name), name)
    for split, rows in splits.items():
        found.parts[split] = replace(make, name=with_split(short, split), rows=rows)
    return found


def find_columns(
    features: Mapping[str, Any], name: str, image_column: str | None = None, label_column: str | None = None
) -> Columns:
    """
    The columns by their features; those that are named win.

    Raises:
        ValueError: if there are none; the message lists the columns that there are.
    """
    from datasets import Image

    for column in (image_column, label_column):
        if column is not None and column not in features:
            raise ValueError(f"{name} has the columns {', '.join(features)}, not {column!r}.")
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    objects = {column: fields for column in features if (fields := _object_fields(features[column]))}
    image = image_column or _first_of(IMAGE_COLUMNS, [column for column in images if column != label_column])
    maps = [column for column in images if column != image]
    labels = label_column or _first_of(LABEL_COLUMNS, maps) or next(iter(objects), None)
    if image is None or labels is None:
        raise ValueError(
            f"{name} has the columns {', '.join(features)}; wanted are one of pictures and one of label maps (images "
            f"too) or of objects with a category ({', '.join(CATEGORY_WORDS[:3])}, ...) and masks "
            f"({', '.join(MASK_WORDS[:3])}, ...). Name them: --image-column, --label-column."
        )
    return Columns(image, labels, *objects.get(labels, (None, None)))


def _load(name: str) -> dict[str, Any]:
    """Rows by our names of the splits."""
    try:
        from datasets import Dataset, load_dataset, load_from_disk
    except ImportError as error:
        raise ImportError('Data sets of rows need the `datasets` library: pip install "maftplus[train]"') from error
    loaded = load_dataset(name.removeprefix(HUB)) if name.startswith(HUB) else load_from_disk(name)
    if isinstance(loaded, Dataset):
        return {WHOLE: loaded}
    named = {SPLIT_WORDS.get(split.lower(), split): rows for split, rows in loaded.items()}
    known = {split: rows for split, rows in named.items() if split in SPLIT_WORDS.values()}
    return known or {TRAIN: next(iter(named.values()))}


def _object_fields(feature: Any) -> tuple[str, str] | None:
    """Names of an object's masks and category, None if a column holds no objects."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    if not isinstance(inner, Mapping):
        return None
    masks, category = _first_of(MASK_WORDS, list(inner), True), _first_of(CATEGORY_WORDS, list(inner), True)
    return (masks, category) if masks and category else None


def _first_of(words: tuple[str, ...], columns: list[str], only: bool = False) -> str | None:
    by_name = {column.lower(): column for column in reversed(columns)}
    known = next((by_name[word] for word in words if word in by_name), None)
    return known if known or only or not columns else columns[0]


def _leaf(feature: Any) -> Any:
    """What lists are made of, however deep it lies."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature


def _class_names(feature: Any) -> list[str] | None:
    """Names of a `ClassLabel`, however deep it lies."""
    names = getattr(_leaf(feature), "names", None)
    return None if names is None else list(names)


def _category_words(splits: dict[str, Any], columns: Columns) -> list[str]:
    """The categories of all rows, where they are words, in alphabetical order."""
    rows = (row for part in splits.values() for row in part.select_columns([columns.labels]))
    lists = (_as_list(row[columns.labels], columns, columns.labels) for row in rows)
    return sorted({one[columns.category] for objects in lists for one in objects if one[columns.category] is not None})


def _names_beside(name: str) -> Names | None:
    """A file of names in a local folder; that of the Hub's usual `id2label.json`."""
    if not name.startswith(HUB):
        return find_names(Path(name))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return read_names(hf_hub_download(name.removeprefix(HUB), "id2label.json", repo_type="dataset"))
    except (HfHubHTTPError, OSError):
        return None


def _label_map_rows(
    splits: dict[str, Any],
    columns: Columns,
    names: Names | None,
    found: Found,
    name: str,
    ignore_value: int | None,
) -> HubDataset:
    values = {(split, index): own for split, rows in splits.items() for index, own in _scan(rows, columns, name)}
    used = set().union(*values.values())
    if names is None:
        raise ValueError(
            f"{name}: the classes have no names; pass `--labels-file FILE` (the maps hold {sorted(used)})."
        )
    vocabulary, unlabelled, notes, warnings = fit_names(names, used, ignore_value)
    found.notes += notes
    found.warnings += warnings
    only = {str(index): own for (split, index), own in values.items() if len(splits) == 1}  # who has splits keeps them
    found.classes.update(class_sets(only, vocabulary, unlabelled))
    options = {"ignore_index": void_value(vocabulary), "unlabelled": unlabelled}
    return HubDataset("", [], vocabulary, columns.image, columns.labels, **options)


def _scan(rows: Any, columns: Columns, name: str) -> Iterator[tuple[int, set[int]]]:
    """Number and values of the label maps, of `MOST_SCANNED` at most, evenly spread."""
    chosen = range(0, len(rows), max(1, -(-len(rows) // MOST_SCANNED)))
    maps = rows.select_columns([columns.labels]).select(chosen)
    for index, row in zip(chosen, tqdm(maps, desc="reading label maps", unit="map", delay=2)):
        yield index, set(distinct(as_labels(np.asarray(row[columns.labels]), f"{name}, row {index}")))


def _object_rows(splits: dict[str, Any], columns: Columns, names: Names | None, name: str) -> ObjectRows:
    feature = next(iter(splits.values())).features[columns.labels]
    category = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)[columns.category]
    own, source = _class_names(category), f"{name}, ClassLabel"
    if own is None and _leaf(category).dtype in ("string", "large_string"):
        own, source = _category_words(splits, columns), f"{name}, {columns.category}"
        columns = replace(columns, names=tuple(own))
    if own is None and names is None:
        raise ValueError(f"{name}: the categories have no names (no ClassLabel); pass `--labels-file FILE`.")
    if own is None:
        vocabulary = names.vocabulary
    else:
        ids, classes = tuple(range(len(own))), tuple((word,) for word in own)
        vocabulary = with_names(VocabularyFile(name, tuple(own), classes, ids, source=source), names)
    vocabulary = replace(vocabulary, stuff=vocabulary.stuff or ())
    options = {"ignore_index": void_value(vocabulary), "unlabelled": frozenset()}
    return ObjectRows("", [], vocabulary, columns.image, columns.labels, **options, columns=columns)


def _as_objects(value: Any, columns: Columns, where: str) -> list[dict[str, Any]]:
    """Objects of a row, with the fields of COCO's."""
    objects = []
    for number, one in enumerate(_as_list(value, columns, where)):
        mask, category = one[columns.masks], one[columns.category]
        if mask is None or category is None:
            raise ValueError(f"{where}: object {number} has no {columns.masks!r} or no {columns.category!r}.")
        is_text = isinstance(mask, str) and mask.lstrip()[:1] in ("[", "{")
        category = category if columns.names is None else columns.names.index(category)
        fields = {"segmentation": _plain(json.loads(mask) if is_text else mask), "category_id": category}
        objects.append({**fields, "iscrowd": one.get("iscrowd") or one.get("is_crowd") or 0})
    return objects


def _as_list(value: Any, columns: Columns, where: str) -> list[dict[str, Any]]:
    """A list of dictionaries, also of a dictionary of lists. Raises ValueError if these differ in length."""
    if not isinstance(value, Mapping):
        return list(value or ())
    if len({len(column) for column in value.values() if isinstance(column, list)}) > 1:
        raise ValueError(f"{where}: the lists of {columns.labels!r} have different lengths.")
    return [dict(zip(value, fields)) for fields in zip(*value.values())]


def _plain(mask: Any) -> Any:
    """A run length without the fields that `datasets` fills with None."""
    if isinstance(mask, Mapping):
        return {key: value for key, value in mask.items() if value is not None}
    return mask
