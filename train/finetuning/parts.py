"""What a form's reader finds in a folder, and how its pictures become a training and a validation part."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from maftplus.train.data.hub import HubDataset
from maftplus.train.data.registry import SegmentationDataset
from maftplus.train.finetuning.folders import TEST, TRAIN, VALIDATION, WHOLE
from maftplus.train.finetuning.names import Names
from maftplus.vocabularies.files import VocabularyFile

Data = SegmentationDataset | HubDataset
SHARE = 0.2  # of the pictures that are set aside where the form has no split of its own
NAMED = 5  # files that a message names


@dataclass
class Found:
    """
    A folder as one form reads it.

    Args:
        kind: What the form is called.
        parts: Its data by split: `"train"`, `"val"`, `"test"`, `""` where it has none.
        notes: What was assumed or left out, a sentence each.
        classes: Training ids by the name of the picture, as far as known; the split looks at them.
        split_name: What the split is called, if the form has its own.
        warnings: What was assumed and may as well be otherwise, a sentence each.
        has_maps: There are label maps, in which a value may mean unlabelled.
    """

    kind: str
    parts: dict[str, Data]
    notes: list[str] = field(default_factory=list)
    classes: dict[str, set[int]] = field(default_factory=dict)
    split_name: str = "the folder's own split"
    warnings: list[str] = field(default_factory=list)
    has_maps: bool = False


class Division(NamedTuple):
    """The parts, a sentence that says how they came about, and whether the data are divided so by themselves."""

    train: Data
    validation: Data
    test: Data | None
    split: str
    is_own: bool


def divide(found: Found, seed: int) -> Division:
    """
    The training, the validation and the test part.

    Without a split of its own about 20 % of the pictures are set aside, at least one: those with the lowest hashes of
    seed and name, whatever the order of the files. A picture stays in training where a class would have no other.
    """
    parts = {name: part for name, part in found.parts.items() if len(part)}
    validation = next((name for name in (VALIDATION, TEST) if name in parts), None)
    training = next((name for name in (TRAIN, WHOLE) if name in parts), None)
    if training is not None and validation is not None:
        train, held_out = parts[training], parts[validation]
        sentence = f"{found.split_name}: {len(train)} for training, {len(held_out)} held out"
        if validation == TEST:
            sentence += " (the part `test`: training chooses its best step and mixture on it, as there is no other)"
        return Division(train, held_out, parts.get(TEST), sentence, True)
    used = next(name for name in (TRAIN, WHOLE, VALIDATION, TEST) if name in parts)
    whole = parts[used]
    names = names_of(whole)
    chosen = set_aside(names, seed, found.classes)
    rest = [index for index in range(len(names)) if index not in set(chosen)]
    sentence = f"{len(chosen)} of {len(names)} pictures set aside by seed {seed}"
    test = parts.get(TEST) if used != TEST else None
    return Division(subset(whole, rest, TRAIN), subset(whole, chosen, VALIDATION), test, sentence, False)


def set_aside(names: Sequence[str], seed: int, classes: dict[str, set[int]], share: float = SHARE) -> list[int]:
    """Indices, ascending, of about `share` of the names, at least one (see `divide`)."""
    order = sorted(range(len(names)), key=lambda index: (_hash(seed, names[index]), index))
    left = Counter(label for name in names for label in classes.get(name, ()))
    wanted, chosen = max(1, round(share * len(names))), []
    for index in order:
        own = classes.get(names[index], ())
        if len(chosen) < wanted and all(left[label] > 1 for label in own):
            chosen.append(index)
            left.subtract(own)
    return sorted(chosen or order[:1])


def names_of(data: Data) -> list[str]:
    """What every sample is called; of rows their numbers."""
    return data.sample_names if isinstance(data, SegmentationDataset) else [str(i) for i in range(len(data))]


def subset(data: Data, indices: Sequence[int], split: str = "") -> Data:
    """Some samples of `data`, called by its name and the split's."""
    name = with_split(data.name, split)
    if isinstance(data, SegmentationDataset):
        return replace(data, name=name, items=[data.items[index] for index in indices])
    return replace(data, name=name, rows=data.rows.select(indices))


def join(first: Data, second: Data, name: str) -> Data:
    """Two parts of a form as one."""
    if isinstance(first, SegmentationDataset):
        return replace(first, name=name, items=[*first.items, *second.items])
    from datasets import concatenate_datasets

    return replace(first, name=name, rows=concatenate_datasets([first.rows, second.rows]))


def with_names(own: VocabularyFile, given: Names | None) -> VocabularyFile:
    """
    A form's own classes by the names of a file: matched by id where the file has ids, else in order.

    Raises:
        ValueError: if they do not fit each other; the message names both.
    """
    if given is None:
        return own
    other = given.vocabulary
    order = {raw: index for index, raw in enumerate(other.raw_ids)}
    if given.has_ids and set(own.raw_ids) <= set(order):
        places = [order[raw] for raw in own.raw_ids]
    elif other.num_labels == own.num_labels:
        places = list(range(own.num_labels))
    else:
        raise ValueError(
            f"{other.source} names {other.num_labels} classes, but {own.source} has {own.num_labels}; give one line a "
            "class, in its order or with its ids (`7: cat`)."
        )
    stuff = own.stuff if other.stuff is None else tuple(i for i, j in enumerate(places) if j in other.stuff)
    names, classes = (tuple(rows[j] for j in places) for rows in (other.names, other.classes))
    return replace(own, names=names, classes=classes, stuff=stuff, source=f"{own.source}; names of {other.source}")


def list_some(names: Sequence[Any]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(str(name) for name in names[:NAMED]) + more


def part_name(root: Path, split: str) -> str:
    """What a part of the folder is called: by the folder and, where there is one, the split."""
    return with_split(root.resolve().name or "data", split)


def with_split(name: str, split: str) -> str:
    """A name and, where there is one, the split."""
    return f"{name}_{split}" if split else name


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
