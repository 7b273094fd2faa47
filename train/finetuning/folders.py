"""Which folders below a data set's root hold pictures and which their annotations, and for which split.

    for place in find_places(root): place.folder, place.role, place.split, place.rest

The words in a folder's path decide: `train/images`, `images/train` and `train_img` are all pictures for training, and
belong to the annotations whose path differs in nothing but its role (`rest` is what is left of the path).
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from maftplus.train.data.registry import IMAGE_ENDINGS

# In order of preference, where several folders would do.
IMAGE_WORDS = (
    *("images", "image", "imgs", "img", "jpegimages", "pictures", "picture", "photos", "photo", "frames"),
    *("rgb", "leftimg8bit", "inputs", "input"),
)
LABEL_WORDS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "annots", "annot", "segmentationclassaug"),
    *("segmentationclass", "segmentations", "segmentation", "seg", "gt", "groundtruth", "targets", "target"),
    *("labelmaps", "labelmap", "stuffthingmaps", "pixelmaps", "maps"),
)
TRAIN, VALIDATION, TEST, WHOLE = "train", "val", "test", ""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset"), VALIDATION),
    **dict.fromkeys(("test", "testing", "testset"), TEST),
}
IMAGES, LABELS, NEITHER = "images", "labels", ""
DEPTH = 5  # folders below the root
SIGNS = re.compile(r"[/\\_\-. ]+")


class Place(NamedTuple):
    """A folder: its role, its split, the place of its role's word in the preferences, and the other words."""

    folder: Path
    role: str
    split: str
    rank: int
    rest: tuple[str, ...]


def find_places(root: Path) -> list[Place]:
    """The root and every folder below it, hidden ones left out, in alphabetical order."""
    places = []
    for folder, names, _ in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        names[:] = sorted(name for name in names if not name.startswith(".")) if depth < DEPTH else []
        places.append(_describe(Path(folder), root))
    return places


def split_of(path: Path, root: Path) -> str:
    """The split that a path below `root` speaks of, `WHOLE` without one; the last word that does counts."""
    found = [SPLIT_WORDS[word] for word in words_of(path, root) if word in SPLIT_WORDS]
    return found[-1] if found else WHOLE


def words_of(path: Path, root: Path) -> list[str]:
    """The words of a path below `root`, in lower case and without the years that COCO and VOC add."""
    words = SIGNS.split(str(path.relative_to(root)).lower())
    return [re.sub(r"(19|20)\d\d$", "", word) for word in words if word]


def list_by_stem(folders: Iterable[Path], endings: Sequence[str] = IMAGE_ENDINGS) -> dict[str, Path]:
    """Files of some folders by name without ending. Raises ValueError if two have the same."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in endings or path.name.startswith("."):
                continue
            if path.stem in files:
                raise ValueError(f"{files[path.stem]} and {path} have the same name: which one is meant? Remove one.")
            files[path.stem] = path
    return files


def holds(folder: Path, endings: Sequence[str]) -> bool:
    """Whether a folder holds, by itself, a file with one of these endings."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(tuple(endings)) for entry in entries)


def find_holder(root: Path, names: Sequence[str], avoid: Iterable[Path] = (), hint: str = "") -> Path | None:
    """
    The folder below which most of the files `names` lie; None where no folder has any.

    Args:
        names: Relative paths; a few are enough.
        avoid: Folders that are not asked.
        hint: Of folders with as many files the one whose path holds this is taken.
    """
    avoid = set(avoid)
    counts = []
    for place in find_places(root):
        if place.folder not in avoid:
            count = sum((place.folder / name).is_file() for name in names)
            counts.append((count, hint in str(place.folder), place.folder))
    best = max(counts, key=lambda entry: entry[:2], default=(0, False, None))
    return best[2] if best[0] else None


def _describe(folder: Path, root: Path) -> Place:
    roles = {
        **{word: (IMAGES, rank) for rank, word in enumerate(IMAGE_WORDS)},
        **{word: (LABELS, rank) for rank, word in enumerate(LABEL_WORDS)},
    }
    words = words_of(folder, root) if folder != root else []
    role, rank = next((roles[word] for word in reversed(words) if word in roles), (NEITHER, 0))
    rest = tuple(word for word in words if word not in roles and word not in SPLIT_WORDS and word)
    return Place(folder, role, split_of(folder, root), rank, rest)


def pair_folders(root: Path, label_endings: Sequence[str]) -> dict[str, list[tuple[Path, Path]]]:
    """
    Folders of pictures with the folder of their annotations, by split; where several would do, the preferred word's.

    Without a folder whose name speaks of pictures, one that only speaks of a split will do (`train2017`).
    """
    places = find_places(root)
    labels = [place for place in places if place.role == LABELS and holds(place.folder, label_endings)]
    for role in (IMAGES, NEITHER):
        images = [place for place in places if place.role == role and holds(place.folder, IMAGE_ENDINGS)]
        pairs: dict[str, list[tuple[Path, Path]]] = {}
        for key in sorted({(place.split, place.rest) for place in images} & {(p.split, p.rest) for p in labels}):
            chosen = (_preferred(candidates, key) for candidates in (images, labels))
            pairs.setdefault(key[0], []).append(tuple(chosen))
        if pairs:
            return pairs
    return {}


def _preferred(places: list[Place], key: tuple[str, tuple[str, ...]]) -> Path:
    matching = [place for place in places if (place.split, place.rest) == key]
    return min(matching, key=lambda place: (place.rank, str(place.folder))).folder
