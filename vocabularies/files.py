"""Vocabularies: the classes of a benchmark with synonyms, thing or stuff, seen or unseen, and files of your own.

    vocabulary = load_vocabulary_file("ade20k_150")              # a file of vocabularies
    vocabulary = load_vocabulary_file("my_words.txt")             # `id:name,synonym,...` or one class a line
    prompts = processor(text=vocabulary.classes, return_tensors="pt")

Official class names are facts of the data sets (each file says which); synonyms beside them are the project's own.
Shapes: K classes, in training-id order.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from maftplus.words_maftplus import canonical_name

logger = logging.get_logger(__name__)

FOLDER = Path(__file__).parent
LOOK_UP_LIMIT = 1 << 16  # label maps have at most two bytes
INVALID_NAME = "invalid_class_id"  # what published prompt files call the id of unlabelled pixels


@dataclass(frozen=True)
class VocabularyFile:
    """
    Classes in training-id order.

    Args:
        name: What tables call it.
        names: Official name of every class, (K,).
        classes: Synonyms of every class; what the text tower reads.
        raw_ids: Value of every class in raw annotations.
        stuff: Training ids of stuff; None where the data set does not say.
        unseen: Training ids of the classes kept from zero-shot training; None without such a split.
        source: Where the names come from.
    """

    name: str
    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    raw_ids: tuple[int, ...]
    stuff: tuple[int, ...] | None = None
    unseen: tuple[int, ...] | None = None
    source: str = ""

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def seen(self) -> tuple[int, ...] | None:
        """Training ids that are not unseen; None without a zero-shot split."""
        return None if self.unseen is None else tuple(i for i in range(self.num_labels) if i not in set(self.unseen))

    @property
    def things(self) -> tuple[int, ...] | None:
        return None if self.stuff is None else tuple(i for i in range(self.num_labels) if i not in set(self.stuff))

    @property
    def prompts(self) -> list[list[str]]:
        """The classes as the processor takes them: a list of synonyms each, in which nothing is split."""
        return [list(synonyms) for synonyms in self.classes]

    def class_of(self, name: str) -> int:
        """
        The class that has `name` among its synonyms or as its official name; of several, the first.

        Raises:
            KeyError: if there is none.
        """
        wanted = canonical_name(name)
        for index, synonyms in enumerate(self.classes):
            if wanted in map(canonical_name, (self.names[index], *synonyms)):
                return index
        raise KeyError(f"{name!r} is no class of the vocabulary {self.name!r}.")

    def repeated_names(self) -> dict[str, list[int]]:
        """Names that stand for several classes, and which; the scores of these classes tie and the first one wins."""
        users: dict[str, list[int]] = {}
        for index, synonyms in enumerate(self.classes):
            for name in dict.fromkeys(map(canonical_name, synonyms)):
                users.setdefault(name, []).append(index)
        return {name: indices for name, indices in users.items() if len(indices) > 1}


def available_vocabularies() -> list[str]:
    """Names of the vocabularies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_vocabulary_file(name_or_file: str | Path) -> VocabularyFile:
    """
    A vocabulary that comes with the package, by name, or a file: our JSON, `id:name,synonym,...` lines, or one class
    (with synonyms after commas) a line.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if a line cannot be read; the message names the file and the line.
    """
    known, path = FOLDER / f"{name_or_file}.json", Path(name_or_file)
    if known.is_file():
        return _from_json(known)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name_or_file} is neither a file nor one of the vocabularies {', '.join(available_vocabularies())}."
        )
    return _from_json(path) if path.suffix == ".json" else _from_lines(path)


def with_prompts(vocabulary: VocabularyFile, other: VocabularyFile) -> VocabularyFile:
    """
    The classes of `vocabulary` with the synonyms of `other`, class by class in order (`--vocabulary FILE`).

    Raises:
        ValueError: if the numbers of classes differ.
    """
    if vocabulary.num_labels != other.num_labels:
        raise ValueError(
            f"The vocabulary {other.source or other.name} has {other.num_labels} classes, but {vocabulary.name} has "
            f"{vocabulary.num_labels}; give one line a class, in the benchmark's order."
        )
    return replace(vocabulary, classes=other.classes, source=f"{vocabulary.source}; prompts of {other.source}")


def raw_to_training(raw_ids: Iterable[int], ignored: Iterable[int] = ()) -> dict[int, int]:
    """Training id of every raw id, leaving out the training ids in `ignored`."""
    ignored = set(ignored)
    return {raw: index for index, raw in enumerate(raw_ids) if index not in ignored}


def map_ids(labels: np.ndarray, table: dict[int, int], other: int) -> np.ndarray:
    """`labels` (H, W), any integer type, looked up in `table` value by value; `other` where it has none. int32."""
    highest = int(labels.max(initial=0))
    if highest < LOOK_UP_LIMIT and int(labels.min(initial=0)) >= 0:
        lookup = np.full(highest + 1, other, dtype=np.int32)
        for value, index in table.items():
            if 0 <= value <= highest:
                lookup[value] = index
        return lookup[labels]
    values, positions = np.unique(labels, return_inverse=True)
    found = np.array([table.get(int(value), other) for value in values], dtype=np.int32)
    return found[positions].reshape(labels.shape)


def _from_json(path: Path) -> VocabularyFile:
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content["classes"]
    return VocabularyFile(
        name=content.get("name", path.stem),
        names=tuple(row["name"] for row in rows),
        classes=tuple(tuple(row.get("synonyms") or [row["name"]]) for row in rows),
        raw_ids=tuple(int(row.get("id", index)) for index, row in enumerate(rows)),
        stuff=_ids_where(rows, "isthing", False),
        unseen=_ids_where(rows, "unseen", True),
        source=content.get("source", str(path)),
    )


def _ids_where(rows: list[dict[str, Any]], key: str, value: bool) -> tuple[int, ...] | None:
    if not all(key in row for row in rows):
        return None
    return tuple(index for index, row in enumerate(rows) if bool(row[key]) == value)


def _from_lines(path: Path) -> VocabularyFile:
    """`id:name,synonym,...` (ids in any order; rows keep the file's order), or names alone, numbered from 0."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    lines = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    has_ids = bool(lines) and all(line.split(":", 1)[0].strip().isdigit() and ":" in line for _, line in lines)
    rows = []
    for number, line in lines:
        raw_id, names = line.split(":", 1) if has_ids else (len(rows), line)
        if names.strip() != INVALID_NAME:
            rows.append((int(raw_id), _split_names(names, f"{path}, line {number}")))
    if not rows:
        raise ValueError(
            f"{path} holds no class; write one line a class, `id:name,synonym,...` or `name,synonym,...`."
        )
    raw_ids, classes = (tuple(column) for column in zip(*rows))
    if len(set(raw_ids)) < len(raw_ids):
        raise ValueError(f"{path} gives the id {max(raw_ids, key=raw_ids.count)} twice; every class needs its own.")
    vocabulary = VocabularyFile(path.stem, tuple(names[0] for names in classes), classes, raw_ids, source=str(path))
    _tell_repeated_names(vocabulary)
    return vocabulary


def _split_names(names: str, where: str) -> tuple[str, ...]:
    parts = {}
    for part in names.split(","):
        parts.setdefault(canonical_name(part), part.strip())
    parts.pop("", None)
    if not parts:
        raise ValueError(f"{where}: a class without a name; write `id:name,synonym,...`.")
    return tuple(parts.values())


def _tell_repeated_names(vocabulary: VocabularyFile) -> None:
    repeated = vocabulary.repeated_names()
    if repeated:
        examples = ", ".join(f"{name!r} (classes {indices})" for name, indices in list(repeated.items())[:3])
        logger.warning(
            "%s: %d names stand for several classes; the first class wins: %s",
            vocabulary.source,
            len(repeated),
            examples,
        )
