"""Data sets on disk for training and evaluation: the registry, folders, and COCO panoptic JSON (`hub.py`: the Hub's).

    dataset = load_data_set("ade20k_150", "datasets", split="val")
    sample = dataset[0]    # name, image_id, image, segmentation_map, segments_info (panoptic)

One row of `DATA_SETS` is one data set: its vocabulary, its official layout on disk and how its annotations are read.
Raw annotations are read as they were published; `maftplus verify NAME ROOT` says what is missing or wrong.
Shapes: H x W the picture; label maps hold training ids 0..K-1 and `ignore_index`, id maps segment ids and 0 for void.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from maftplus.train.data import annotations
from maftplus.train.data.annotations import Item
from maftplus.train.data.layouts import (
    SPLITS,
    ade_full_items,
    ade_items,
    ade_panoptic_items,
    coco_panoptic_folder_items,
    coco_panoptic_items,
    coco_stuff_items,
    context_59_items,
    context_459_items,
    list_files,
    read_ade_full,
    read_coco_panoptic,
    read_context_59,
    read_context_459,
    read_labels,
    voc_items,
)
from maftplus.vocabularies.files import VocabularyFile, load_vocabulary_file, map_ids

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
UNKNOWN = -1  # what an id outside the vocabulary maps to until it is reported
Sample = dict[str, Any]


@dataclass(frozen=True)
class DataSetRow:
    """
    One row of the registry.

    Args:
        vocabulary: Name of its vocabulary.
        folder: Its folder below ROOT; ROOT may also be that folder itself.
        layout: (folder, split) -> items.
        read: Item -> raw label map (H, W), or for panoptic tasks (ids, segments_info with category_id).
        num_images: Published number of pictures by split; `verify` compares.
        task: `"semantic"` or `"panoptic"`.
        unlabelled: Raw values that mean unlabelled; None: every value outside the vocabulary does.
        max_short_side: Larger pictures and maps are shrunk to it, as earlier work does before evaluating.
        only_seen: Labels of unseen classes are hidden from training (zero-shot settings).
        has_overlaps: Listed areas and segments may be covered by others in the map.
    """

    vocabulary: str
    folder: str
    layout: Callable[[Path, str], list[Item]]
    read: Callable[[Item], Any]
    num_images: Mapping[str, int]
    task: str = "semantic"
    unlabelled: frozenset[int] | None = frozenset()
    max_short_side: int | None = None
    only_seen: bool = False
    has_overlaps: bool = False


@dataclass
class SegmentationDataset(torch.utils.data.Dataset):
    """
    Samples of one data set, read when asked for.

    `dataset[i]` is a dictionary: `name` (its path in the data set, what errors and predictions call it), `image_id`,
    `image` (RGB), `segmentation_map` (H, W) int32, and for panoptic tasks `segments_info` (`id`, `label_id`,
    `iscrowd`, perhaps `area`).

    Raises (when a sample is read):
        FileNotFoundError, ValueError: on a missing or unreadable file, an annotation of another size, an id outside
            the vocabulary or a segment that is not listed; the message names the file.
    """

    name: str
    task: str
    vocabulary: VocabularyFile
    items: list[Item]
    read: Callable[[Item], Any]
    ignore_index: int
    unlabelled: frozenset[int] | None = frozenset()
    max_short_side: int | None = None
    hidden: tuple[int, ...] = ()
    do_reduce_labels: bool = False
    table: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self):
        unlabelled = self.unlabelled or ()
        self.table = label_table(self.vocabulary, unlabelled, self.ignore_index, self.do_reduce_labels, self.hidden)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def sample_names(self) -> list[str]:
        """What every sample is called: its picture's path in the data set."""
        return [item.called for item in self.items]

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        image = annotations.open_image(item.image)
        sample = {"name": item.called, "image_id": item.image_id, **self.read_labels(index)}
        _require_same_size(image, sample["segmentation_map"], item)
        if self.max_short_side is not None:
            image, sample["segmentation_map"] = shrink(image, sample["segmentation_map"], self.max_short_side)
        return {**sample, "image": image}

    def read_labels(self, index: int) -> Sample:
        """`segmentation_map` and, for panoptic tasks, `segments_info` of one sample, in the annotation's own size."""
        item = self.items[index]
        if self.task == "panoptic":
            ids, segments = self.read(item)
            segments = listed_segments(ids, segments, self.table, item.annotation)
            return {"segmentation_map": ids.astype(np.int32), "segments_info": segments}
        other = self.ignore_index if self.unlabelled is None else UNKNOWN
        labels = map_ids(self.read(item), self.table, other)
        if (labels == UNKNOWN).any():
            raise ValueError(f"{item.annotation}: {name_unknown_ids(self.read(item), labels, self.vocabulary)}")
        return {"segmentation_map": labels}


def load_data_set(name: str, root: str | Path, split: str = "val") -> SegmentationDataset:
    """
    A data set from its official layout below `root` (or from `root` itself).

    Raises:
        ValueError: if `name` is not in the registry or `split` is neither `"train"` nor `"val"`.
        FileNotFoundError: if the layout is not there; the message says what was looked for.
    """
    row, folder = find_row(name), data_set_folder(name, root)
    if split not in SPLITS:
        raise ValueError(f'`split` must be "train" or "val", got {split!r}.')
    items = row.layout(folder, split)
    if not items:
        raise FileNotFoundError(
            f"{folder} holds no picture of {name}, split {split}; see `maftplus verify {name} {root}`."
        )
    vocabulary = load_vocabulary_file(row.vocabulary)
    hidden = (vocabulary.unseen or ()) if row.only_seen and split == "train" else ()
    options = {"unlabelled": row.unlabelled, "max_short_side": row.max_short_side, "hidden": hidden}
    return SegmentationDataset(name, row.task, vocabulary, items, row.read, ignore_value(vocabulary), **options)


def find_row(name: str) -> DataSetRow:
    """The registry's row called `name`."""
    if name not in DATA_SETS:
        raise ValueError(f"No data set is called {name!r}; there are {', '.join(DATA_SETS)}.")
    return DATA_SETS[name]


def data_set_folder(name: str, root: str | Path) -> Path:
    """The data set's folder below `root`, or `root` where that folder is `root` itself."""
    below = Path(root) / find_row(name).folder
    folder = below if below.is_dir() else Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist.")
    return folder


def load_folder(
    images: str | Path,
    labels: str | Path,
    vocabulary: VocabularyFile,
    ignore_index: int | None = None,
    do_reduce_labels: bool = False,
    name: str = "folder",
) -> SegmentationDataset:
    """
    A folder of pictures and one of label maps with the same stems (PNG or TIFF, 8 or 16 bits).

    Args:
        vocabulary: Its `raw_ids` are the values of the label maps.
        ignore_index: Value of unlabelled pixels; default 255, or 65535 above 255 classes.
        do_reduce_labels: 0 is unlabelled and every other value one less (files numbered from 1).

    Raises:
        FileNotFoundError: if a folder holds no picture, or a picture has no label map.
    """
    maps = _label_maps(labels)
    items = [_folder_item(path, maps, labels) for path in list_files(images, IMAGE_ENDINGS)]
    if not items:
        raise FileNotFoundError(f"{images} holds no picture ({', '.join(IMAGE_ENDINGS)}).")
    void, unlabelled = void_and_unlabelled(vocabulary, ignore_index)
    options = {"unlabelled": unlabelled, "do_reduce_labels": do_reduce_labels}
    return SegmentationDataset(name, "semantic", vocabulary, items, read_labels, void, **options)


def load_coco_panoptic(
    json_file: str | Path,
    images: str | Path,
    maps: str | Path,
    vocabulary: VocabularyFile,
    name: str = "coco_panoptic",
) -> SegmentationDataset:
    """Any data set in COCO's panoptic format: its JSON, the folder of pictures and that of PNGs."""
    items = coco_panoptic_items(Path(json_file), Path(images), Path(maps))
    return SegmentationDataset(name, "panoptic", vocabulary, items, read_coco_panoptic, ignore_value(vocabulary))


def ignore_value(vocabulary: VocabularyFile) -> int:
    """255, or 65535 where 255 could be a class."""
    return 255 if vocabulary.num_labels <= 255 else 65535


def void_and_unlabelled(vocabulary: VocabularyFile, ignore_index: int | None) -> tuple[int, frozenset[int]]:
    """
    What unlabelled pixels hold in training maps, and which values of raw maps mean unlabelled.

    Both are `ignore_index` (default `ignore_value`), unless it is the training id of a class: that class must not
    vanish because 0, say, means unlabelled in the files.
    """
    usual = ignore_value(vocabulary)
    raw = usual if ignore_index is None else ignore_index
    return usual if 0 <= raw < vocabulary.num_labels else raw, frozenset({raw})


def label_table(
    vocabulary: VocabularyFile,
    unlabelled: Iterable[int],
    void: int,
    do_reduce_labels: bool = False,
    hidden: Iterable[int] = (),
) -> dict[int, int]:
    """
    Training id of every raw value. What means unlabelled does so even if a class has the same number.

    Args:
        unlabelled: Raw values that become `void`.
        do_reduce_labels: 0 becomes `void`, every other value counts down by one before it is looked up.
        hidden: Training ids that become `void`.
    """
    hidden, shift = set(hidden), int(do_reduce_labels)
    table = {raw + shift: void if index in hidden else index for index, raw in enumerate(vocabulary.raw_ids)}
    return {**table, **dict.fromkeys(unlabelled, void), **({0: void} if do_reduce_labels else {})}


def semantic_labels(sample: Sample, ignore_index: int) -> np.ndarray:
    """Training ids (H, W) of a sample of either task; void is `ignore_index`."""
    if "segments_info" not in sample:
        return sample["segmentation_map"]
    table = {segment["id"]: segment["label_id"] for segment in sample["segments_info"]}
    return map_ids(sample["segmentation_map"], table, ignore_index)


def shrink(image: Image.Image, labels: np.ndarray, max_short_side: int) -> tuple[Image.Image, np.ndarray]:
    """Picture (bilinear, not antialiased) and map (nearest, the upper left pixel) with short side `max_short_side`."""
    height, width = labels.shape
    short = min(height, width)
    if short <= max_short_side:
        return image, labels
    new = [max_short_side if side == short else round(side / float(short) * max_short_side) for side in labels.shape]
    rows, columns = (np.arange(n) * side // n for n, side in zip(new, (height, width)))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=new, mode="bilinear", align_corners=False)[0].round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()), labels[rows[:, None], columns[None, :]]


def listed_segments(
    ids: np.ndarray, segments: list[Mapping], table: dict[int, int], where: Path
) -> list[dict[str, Any]]:
    """
    `segments_info` with training ids.

    Raises:
        ValueError: on a category outside the vocabulary, an id that is listed twice, or one of the map that is not.
    """
    listed = []
    twice = [name for name, count in Counter(segment["id"] for segment in segments).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: the segment ids {twice[:5]} are listed twice.")
    for segment in segments:
        if segment["category_id"] not in table:
            raise ValueError(f"{where}: segment {segment['id']} has the unknown category {segment['category_id']}.")
        kept = {key: segment[key] for key in ("id", "area") if key in segment}
        listed.append({**kept, "label_id": table[segment["category_id"]], "iscrowd": int(segment.get("iscrowd", 0))})
    unlisted = sorted(set(np.unique(ids).tolist()) - {0} - {segment["id"] for segment in listed})
    if unlisted:
        raise ValueError(f"{where}: the segment ids {unlisted[:5]} are in the map but not in the list.")
    return listed


def _folder_item(image: Path, maps: dict[str, Path], labels: str | Path) -> Item:
    if image.stem not in maps:
        raise FileNotFoundError(f"{image} has no label map in {labels} (looked for {image.stem}.png and the like).")
    return Item(image, maps[image.stem], image.stem)


def _label_maps(folder: str | Path) -> dict[str, Path]:
    """Label maps by stem. Raises ValueError if two have the same, as `a.png` and `a.tif`."""
    maps: dict[str, Path] = {}
    for path in list_files(folder, IMAGE_ENDINGS):
        if path.stem in maps:
            raise ValueError(
                f"{folder} holds {maps[path.stem].name} and {path.name}: which is the label map? Remove one."
            )
        maps[path.stem] = path
    return maps


def _require_same_size(image: Image.Image, labels: np.ndarray, item: Item) -> None:
    if labels.shape != (image.height, image.width):
        where = item.annotation if item.annotation.suffix != ".json" else f"{item.annotation}, picture {item.called},"
        raise ValueError(
            f"{where} is {labels.shape[0]} x {labels.shape[1]} (height x width), "
            f"but {item.image} is {image.height} x {image.width}."
        )


def name_unknown_ids(raw: np.ndarray, labels: np.ndarray, vocabulary: VocabularyFile) -> str:
    ids = np.unique(raw[labels == UNKNOWN]).tolist()
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return (
        f"the ids {', '.join(map(str, ids[:5]))}{more} are not in the vocabulary {vocabulary.name}; name them there "
        f"with an id on every line (`{ids[0]}: NAME`), or pass `--ignore-value {ids[0]}` where they are unlabelled."
    )


ADE_COUNTS = {"train": 20210, "val": 2000}
CONTEXT_COUNTS = {"train": 4998, "val": 5104}
COCO_COUNTS = {"train": 118287, "val": 5000}
VOC_COUNTS = {"train": 10582, "val": 1449}
ADE, ADE_FULL, COCO = "ADEChallengeData2016", "ADE20K_2021_17_01", "coco"
VOC_2010, VOC_2012 = "VOCdevkit/VOC2010", "VOCdevkit/VOC2012"

_ADE_FULL = DataSetRow(
    "ade20k_847", ADE_FULL, ade_full_items, read_ade_full, {"val": 2000}, unlabelled=None, max_short_side=512
)
_COCO_STUFF = DataSetRow(
    "coco_stuff_171", COCO, coco_stuff_items, read_labels, COCO_COUNTS, unlabelled=frozenset({255})
)
_VOC = DataSetRow("pascal_voc_20", VOC_2012, voc_items, read_labels, VOC_COUNTS, unlabelled=frozenset({0, 255}))

DATA_SETS: dict[str, DataSetRow] = {
    "ade20k_150": DataSetRow("ade20k_150", ADE, ade_items, read_labels, ADE_COUNTS, unlabelled=frozenset({0})),
    "ade20k_847": _ADE_FULL,
    "ade20k_572_275": replace(_ADE_FULL, only_seen=True),
    "pascal_context_59": DataSetRow(
        "pascal_context_59", VOC_2010, context_59_items, read_context_59, CONTEXT_COUNTS, unlabelled=None
    ),
    "pascal_context_459": DataSetRow(
        "pascal_context_459", VOC_2010, context_459_items, read_context_459, CONTEXT_COUNTS, unlabelled=frozenset({0})
    ),
    "pascal_voc_20": _VOC,
    "pascal_voc_15_5": replace(_VOC, only_seen=True),
    "coco_stuff_171": _COCO_STUFF,
    "coco_stuff_156_15": replace(_COCO_STUFF, only_seen=True),
    "coco_panoptic": DataSetRow(
        "coco_panoptic_133", COCO, coco_panoptic_folder_items, read_coco_panoptic, COCO_COUNTS, task="panoptic"
    ),
    "ade20k_panoptic": DataSetRow(
        "ade20k_panoptic_150",
        ADE,
        ade_panoptic_items,
        read_coco_panoptic,
        ADE_COUNTS,
        task="panoptic",
        has_overlaps=True,
    ),
}
