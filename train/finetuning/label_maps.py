"""Forms with a label map a picture: folders of pictures and of maps, and Pascal VOC.

Shapes: H x W the picture; label maps (H, W) of the names' values.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maftplus.train.data import annotations
from maftplus.train.data.annotations import Item
from maftplus.train.data.layouts import read_list
from maftplus.train.data.registry import IMAGE_ENDINGS, SegmentationDataset
from maftplus.train.data.registry import ignore_value as void_value
from maftplus.train.finetuning.folders import TEST, TRAIN, VALIDATION, WHOLE, list_by_stem, pair_folders
from maftplus.train.finetuning.names import Names, find_names, fit_names
from maftplus.train.finetuning.parts import Found, list_some, part_name
from maftplus.vocabularies.files import VocabularyFile, map_ids

MAP_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")
SUFFIXES = ("labelids", "label", "labels", "mask", "masks", "gt", "seg", "segmentation", "annotation", "l")
MOST_SCANNED = 2000  # label maps that are read to see which values they hold
LISTS = ("ImageSets/Segmentation", "ImageSets", "splits", "lists", ".")

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_PROMPTS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
VOC_BOUNDARY = 255
BACKGROUND_SEGMENT = 1 << 16  # above every object of an 8 or 16-bit map


@cache
def voc_colours(number: int = 256) -> tuple[tuple[int, int, int], ...]:
    """The colours that VOC's development kit gives the indices: bits 0, 1, 2 are the highest of red, green, blue."""
    colours = []
    for index in range(number):
        channels = [0, 0, 0]
        for position in range(24):
            channels[position % 3] |= (index >> position & 1) << (7 - position // 3)
        colours.append(tuple(channels))
    return tuple(colours)


# ------------------------------------------------------------------------------------------- pictures and label maps


def read_label_folders(root: Path, names: Names | None, ignore_value: int | None = None) -> Found | None:
    """
    `images` and `labels` (or other usual names) with a map a picture; None where there are no such folders.

    Raises:
        ValueError: without names, or if no picture has a map.
    """
    pairs = pair_folders(root, MAP_ENDINGS)
    items, notes = {}, []
    for split, folders in pairs.items():
        items[split], problems = _match(folders, root)
        notes += problems
    items = {split: own for split, own in items.items() if own}
    if not items:
        return None
    if set(items) == {WHOLE}:
        items = _divide_by_lists(items[WHOLE], root)
    names = names or find_names(root)
    read = read_values if names is None or names.colours is None else partial(read_values, colours=names.colours)
    values = scan_values([item for own in items.values() for item in own], read)
    used = set().union(*values.values())
    fitted = fit_names(_require_names(names, root, used), used, ignore_value)
    vocabulary, unlabelled = fitted.vocabulary, fitted.unlabelled
    options = {"ignore_index": void_value(vocabulary), "unlabelled": unlabelled}
    parts = {
        split: SegmentationDataset(part_name(root, split), "semantic", vocabulary, own, read, **options)
        for split, own in items.items()
    }
    images, labels = (_common_name(pairs, side, root) for side in (0, 1))
    kind = f"pictures in {images} and label maps in {labels}"
    classes = class_sets(values, vocabulary, unlabelled)
    return Found(kind, parts, notes + fitted.notes, classes, warnings=fitted.warnings, has_maps=True)


def read_values(item: Item, colours: Sequence[tuple[int, int, int]] | None = None) -> np.ndarray:
    """A label map's values (H, W), see `read_map`."""
    return read_map(item.annotation, colours)


def read_map(path: Path, colours: Sequence[tuple[int, int, int]] | None) -> np.ndarray:
    """
    Values (H, W) of a map: of one channel as they are, of three equal ones one of them, of colours their places.

    Args:
        colours: (red, green, blue) of every value in coloured maps.

    Raises:
        ValueError: if it is coloured and nobody knows the colours, or one of them; the message names the file.
    """
    values = np.asarray(annotations.open_map(path))
    if values.ndim == 2 or values.shape[-1] < 3:
        return annotations.as_labels(values, path)
    if colours is not None:
        return _by_colour(values, colours, path)
    if (values[..., :1] == values[..., :3]).all():
        return values[..., 0]
    raise ValueError(
        f"{path}: the label map is a colour picture; save it with one channel (grey or palette) that holds the number "
        "of the class, or give the colours in the names file (`cat,255,0,0`)."
    )


def _by_colour(values: np.ndarray, colours: Sequence[tuple[int, int, int]], path: Path) -> np.ndarray:
    pixels = values[..., 0].astype(np.int64) << 16 | values[..., 1].astype(np.int64) << 8 | values[..., 2]
    table = {red << 16 | green << 8 | blue: index for index, (red, green, blue) in enumerate(colours)}
    indices = map_ids(pixels, table, -1)
    if (indices < 0).any():
        unknown = int(pixels[indices < 0][0])
        colour = unknown >> 16, unknown >> 8 & 255, unknown & 255
        raise ValueError(f"{path}: the colour {colour} stands for no class; name it, or save the map with a palette.")
    return indices


def scan_values(items: list[Item], read: Any = read_values) -> dict[str, set[int]]:
    """Values of the label maps by picture, of `MOST_SCANNED` of them at most; unreadable ones are the survey's."""
    if len(items) > MOST_SCANNED:
        items = sorted(items, key=lambda item: hashlib.sha256(item.called.encode()).digest())[:MOST_SCANNED]
    found = {}
    for item in tqdm(items, desc="reading label maps", unit="map", delay=2):
        try:
            found[item.called] = set(distinct(read(item)))
        except (OSError, ValueError):
            continue
    return found


def distinct(values: np.ndarray) -> list[int]:
    """The distinct numbers of a map, quickly where they are small."""
    if values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(values.ravel())).tolist()
    return np.unique(values).tolist()


def _match(folders: list[tuple[Path, Path]], root: Path) -> tuple[list[Item], list[str]]:
    """Items of pictures that have a map, and a note on what has no partner."""
    images = list_by_stem((pair[0] for pair in folders), IMAGE_ENDINGS)
    maps = list_by_stem(dict.fromkeys(pair[1] for pair in folders), MAP_ENDINGS)
    by_core = {_core(stem): path for stem, path in maps.items()}
    items, lonely = [], []
    for stem, path in sorted(images.items()):
        label = maps.get(stem) or by_core.get(_core(stem))
        if label is None:
            lonely.append(path)
        else:
            items.append(Item(path, label, stem, name=path.relative_to(root).as_posix()))
    used = {item.annotation for item in items}
    orphans = [path for path in maps.values() if path not in used]
    return items, [
        *_tell(lonely, "pictures have no label map", root),
        *_tell(orphans, "label maps have no picture", root),
    ]


def _tell(paths: list[Path], what: str, root: Path) -> list[str]:
    names = [path.relative_to(root).as_posix() for path in paths]
    return [f"{len(names)} {what} and are left out: {list_some(names)}."] if names else []


def _core(stem: str) -> str:
    """A file's name without what marks it as a label map: `a_mask` and `a` belong together."""
    start, _, end = stem.rpartition("_")
    return start if start and end.lower() in SUFFIXES else stem


def _divide_by_lists(items: list[Item], root: Path) -> dict[str, list[Item]]:
    """By the lists train.txt and val.txt or test.txt where the folder has both."""
    names = {TRAIN: (TRAIN,), VALIDATION: (VALIDATION, "validation"), TEST: (TEST,)}
    lists = {split: path for split in names if (path := find_list(root, names[split])) is not None}
    stems = {split: set(read_list(path)) for split, path in lists.items()}
    parts = {split: [item for item in items if item.image.stem in own] for split, own in stems.items()}
    parts = {split: own for split, own in parts.items() if own}
    return parts if TRAIN in parts and len(parts) > 1 else {WHOLE: items}


def find_list(root: Path, names: Iterable[str]) -> Path | None:
    """A list of pictures by its name, where VOC and others keep theirs."""
    paths = (root / folder / f"{name}.txt" for name in names for folder in LISTS)
    return next((path for path in paths if path.is_file()), None)


def _require_names(names: Names | None, root: Path, values: set[int]) -> Names:
    if names is None:
        raise ValueError(
            f"{root}: no file names the classes. The label maps hold {list_some(sorted(values))}: write a line for "
            "each into names.txt there (`0: cat`), or pass `--labels-file FILE`."
        )
    return names


def class_sets(
    values: dict[str, set[int]], vocabulary: VocabularyFile, unlabelled: frozenset[int]
) -> dict[str, set[int]]:
    """Training ids by picture, from the values of its label map."""
    table = {raw: index for index, raw in enumerate(vocabulary.raw_ids) if raw not in unlabelled}
    return {name: {table[value] for value in own if value in table} for name, own in values.items()}


def _common_name(pairs: dict[str, list[tuple[Path, Path]]], side: int, root: Path) -> str:
    """The folders of pictures or of maps for people, the splits together."""
    folders = sorted({pair[side].relative_to(root).as_posix() for own in pairs.values() for pair in own})
    return list_some(folders)


# ------------------------------------------------------------------------------------------------------- Pascal VOC


def read_voc(root: Path, names: Names | None, ignore_value: int | None = None) -> Found | None:
    """JPEGImages and SegmentationClass, with SegmentationObject panoptic; None where there are no such folders."""
    folders = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("*/VOC*"))]
    folder = next((path for path in folders if (path / "JPEGImages").is_dir() and _class_maps(path)), None)
    if folder is None:
        return None
    maps = _class_maps(folder)
    objects = folder / "SegmentationObject"
    pictures, by_stem = list_by_stem([folder / "JPEGImages"]), list_by_stem([maps], MAP_ENDINGS)
    has_objects = objects.is_dir() and all((objects / path.name).is_file() for path in by_stem.values())
    vocabulary = _voc_vocabulary(names or find_names(root))
    stems = _voc_splits(folder, list(by_stem))
    unlabelled = frozenset({VOC_BOUNDARY} if ignore_value is None else {VOC_BOUNDARY, ignore_value})
    read = partial(read_voc_objects, objects=objects, void=unlabelled) if has_objects else read_voc_classes
    parts = {}
    for split, own in stems.items():
        items = [_voc_item(stem, pictures, maps, folder) for stem in own]
        options = {"ignore_index": void_value(vocabulary), "unlabelled": unlabelled}
        task = "panoptic" if has_objects else "semantic"
        parts[split] = SegmentationDataset(part_name(root, split), task, vocabulary, items, read, **options)
    values = scan_values([item for part in parts.values() for item in part.items], read_voc_classes)
    classes = class_sets(values, vocabulary, unlabelled)
    kind = f"Pascal VOC: JPEGImages and {maps.name}" + (" with SegmentationObject" if has_objects else "")
    return Found(kind, parts, ["255, the outline of objects, counts as unlabelled."], classes, has_maps=True)


def read_voc_classes(item: Item) -> np.ndarray:
    """Class indices (H, W) of a palette PNG, or of one that was saved in VOC's colours."""
    return read_map(item.annotation, voc_colours())


def read_voc_objects(
    item: Item, objects: Path, void: frozenset[int] = frozenset({VOC_BOUNDARY})
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """
    Segment ids and `segments_info`: an object each, and the background as one segment.

    Args:
        objects: The folder of the maps of objects.
        void: Class values that are unlabelled.

    Raises:
        ValueError: if the two maps do not fit each other.
    """
    labels = read_map(item.annotation, voc_colours()).astype(np.int32)
    path = objects / item.annotation.name
    ids = read_map(path, voc_colours()).astype(np.int32)
    if ids.shape != labels.shape:
        raise ValueError(f"{path} is {ids.shape} (height, width), but {item.annotation} is {labels.shape}.")
    is_void = np.isin(labels, list(void)) | (ids == VOC_BOUNDARY)
    ids = np.where(is_void, 0, np.where(labels == 0, BACKGROUND_SEGMENT, ids))
    segments = []
    for segment in distinct(ids):
        if segment:
            category = int(np.bincount(labels[ids == segment]).argmax())
            segments.append({"id": segment, "category_id": category})
    return ids, segments


def _class_maps(folder: Path) -> Path | None:
    return next((folder / n for n in ("SegmentationClass", "SegmentationClassAug") if (folder / n).is_dir()), None)


def _voc_vocabulary(names: Names | None) -> VocabularyFile:
    if names is not None:
        return fit_names(names, range(names.vocabulary.num_labels)).vocabulary
    classes = tuple((VOC_PROMPTS.get(name, name),) for name in VOC_NAMES)
    source = "Pascal VOC 2012 development kit"
    return VocabularyFile("pascal_voc_21", VOC_NAMES, classes, tuple(range(21)), stuff=(0,), source=source)


def _voc_splits(folder: Path, stems: list[str]) -> dict[str, list[str]]:
    lists = {split: find_list(folder, (split,)) for split in (TRAIN, VALIDATION)}
    found = {split: read_list(path) for split, path in lists.items() if path is not None}
    return found or {WHOLE: stems}


def _voc_item(stem: str, pictures: dict[str, Path], maps: Path, folder: Path) -> Item:
    image = pictures.get(stem, folder / "JPEGImages" / f"{stem}.jpg")
    return Item(image, maps / f"{stem}.png", stem, name=image.relative_to(folder).as_posix())
