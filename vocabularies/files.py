"""Vocabulary files: the classes of a data set with synonyms, thing or stuff, seen or unseen, and files of your own.

    vocabulary = load_vocabulary_file("ade20k_150")               # one that comes with the package
    vocabulary = load_vocabulary_file("my_words.txt")             # a file of your own
    segmenter(picture, **load_labels("coco_panoptic_133"))        # as the pipeline takes them

A file of your own has one class a line, with synonyms after commas; `stuff:` before them marks stuff, and a number
and a colon before all of it is the class's value in label maps:

    cat, kitten
    stuff: grass, lawn

or JSON: `{"classes": [{"name": "cat", "id": 0, "synonyms": ["cat", "kitten"], "isthing": true}, ...]}`, of which only
`name` must be there. Both are UTF-8.

Official class names are facts of the data sets (each file says which); synonyms beside them are the project's own.
Shapes: K classes, in training-id order.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from maftplus.words_maftplus import canonical_name, check_text

logger = logging.get_logger(__name__)

FOLDER = Path(__file__).parent
LOOK_UP_LIMIT = 1 << 16  # label maps have at most two bytes
LARGEST_FILE = 10_000_000  # bytes
ID_AND_NAMES = re.compile(r"\s*([0-9]{1,9})\s*:(.*)")
STUFF_MARK = re.compile(r"\s*stuff\s*:(.*)", re.IGNORECASE)
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
        places: File and line of every class, for messages; empty where nobody knows.
    """

    name: str
    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    raw_ids: tuple[int, ...]
    stuff: tuple[int, ...] | None = None
    unseen: tuple[int, ...] | None = None
    source: str = ""
    places: tuple[str, ...] = ()

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

    def repeated_names(self) -> dict[str, list[int]]:
        """Names that stand for several classes, and which; the scores of these classes tie and the first one wins."""
        users: dict[str, tuple[str, list[int]]] = {}
        for index, synonyms in enumerate(self.classes):
            for key, name in {canonical_name(name): name for name in reversed(synonyms)}.items():
                users.setdefault(key, (name, []))[1].append(index)
        return {name: indices for name, indices in users.values() if len(indices) > 1}


def available_vocabularies() -> list[str]:
    """Names of the vocabularies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_vocabulary_file(name_or_file: str | Path) -> VocabularyFile:
    """
    A vocabulary that comes with the package, by name, or a file: our JSON, or one class a line (see the module).

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if it cannot be read; the message names the file and, where there is one, the line.
    """
    known, path = FOLDER / f"{name_or_file}.json", Path(name_or_file)
    if known.is_file():
        return _from_json(known)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name_or_file} is neither a file nor one of the vocabularies {', '.join(available_vocabularies())}."
        )
    return _from_json(path) if path.suffix == ".json" else _from_lines(path)


def load_labels(name_or_file: str | Path) -> dict[str, list[list[str]]]:
    """
    A vocabulary file as arguments of the pipeline: `segmenter(picture, **load_labels("coco_panoptic_133"))`.

    Args:
        name_or_file: As `load_vocabulary_file` takes it, and with its errors.

    Returns:
        `"candidate_labels"`, the synonyms of every class, and `"stuff_labels"`, those of the stuff among them (none
        where the file does not say).
    """
    return to_labels(load_vocabulary_file(name_or_file))


def parse_lines(lines: Iterable[str], source: str, name: str = "") -> VocabularyFile:
    """
    Lines of a labels file (see the module): ids in any order (rows keep the lines' order), or numbered from 0.

    Args:
        source: Where they come from, for messages.

    Raises:
        ValueError: if they hold no class, or on a line that is none; the message names the source and the line.
    """
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = [row for number, line in numbered if (row := _parse_line(line, f"{source}, line {number}"))]
    if not rows:
        raise ValueError(
            f"{source} holds no class; write one line a class, `id:name,synonym,...` or `name,synonym,...`."
        )
    raw_ids, classes, is_stuff, places = (tuple(column) for column in zip(*rows))
    if None in raw_ids:
        raw_ids = _number_rows(raw_ids, places)
    _refuse_repeated_ids(raw_ids, places)
    stuff = tuple(index for index, value in enumerate(is_stuff) if value) or None
    names = tuple(synonyms[0] for synonyms in classes)
    vocabulary = VocabularyFile(name, names, classes, raw_ids, stuff, source=source, places=places)
    _tell_repeated_names(vocabulary)
    return vocabulary


def parse_classes(content: Any, path: Path) -> VocabularyFile:
    """
    What a JSON file of ours holds (see the module), read already.

    Args:
        path: Its file, for messages and as name and source where `content` gives none.

    Raises:
        ValueError: if it holds no class, or one that is none; the message names the file and the class.
    """
    rows = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{path} holds no class; write {{"classes": [{{"name": "cat", "synonyms": [...]}}, ...]}}.')
    names = tuple(_row_name(row, f"{path}, class {index}") for index, row in enumerate(rows))
    raw_ids = tuple(_row_id(row, index, path) for index, row in enumerate(rows))
    places = tuple(f"{path}, class {index}" for index in range(len(rows)))
    _refuse_repeated_ids(raw_ids, places)
    return VocabularyFile(
        name=str(content.get("name", path.stem)),
        names=names,
        classes=tuple(_row_synonyms(row, f"{path}, class {index}") for index, row in enumerate(rows)),
        raw_ids=raw_ids,
        stuff=_ids_where(rows, "isthing", False, path),
        unseen=_ids_where(rows, "unseen", True, path),
        source=str(content.get("source", path)),
        places=places,
    )


def to_labels(vocabulary: VocabularyFile) -> dict[str, list[list[str]]]:
    """What `load_labels` gives, of a vocabulary that is read already."""
    prompts = vocabulary.prompts
    return {"candidate_labels": prompts, "stuff_labels": [prompts[index] for index in vocabulary.stuff or ()]}


def with_prompts(vocabulary: VocabularyFile, other: VocabularyFile) -> VocabularyFile:
    """
    The classes of `vocabulary` with the synonyms of `other`, class by class in order (`--vocabulary FILE`).

    Raises:
        ValueError: if the numbers of classes differ.
    """
    if vocabulary.num_labels != other.num_labels:
        raise ValueError(
            f"The vocabulary {other.source or other.name} has {other.num_labels} classes, but {vocabulary.name} has "
            f"{vocabulary.num_labels}; give one line a class, in the data set's order."
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
    return parse_classes(read_json_file(path), path)


def read_json_file(path: Path) -> Any:
    """What a JSON file of names holds. Raises ValueError, naming the file and the line, if it is none."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: this is no JSON ({error.msg}).") from error
    except ValueError as error:  # such as a number of thousands of digits
        raise ValueError(f"{path}: this JSON cannot be read ({error}).") from error
    except RecursionError as error:
        raise ValueError(f"{path}: this JSON is nested too deep.") from error


def _row_name(row: Any, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise ValueError(f'{where}: expected an object with a `name`, as {{"name": "cat"}}.')
    return _check_name(row["name"], where)


def _row_synonyms(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """A list of names, or a string with commas between them, as everywhere; the name alone if there is none."""
    synonyms = row.get("synonyms") or [row["name"]]
    if isinstance(synonyms, str):
        return _split_names(synonyms, where)
    if not isinstance(synonyms, list) or not all(isinstance(name, str) for name in synonyms):
        raise ValueError(f"{where}: `synonyms` must be a list of names, got {synonyms!r:.80}.")
    return tuple(_check_name(name, where) for name in synonyms)


def _row_id(row: dict[str, Any], index: int, path: Path) -> int:
    raw_id = row.get("id", index)
    if type(raw_id) is not int or raw_id < 0:
        raise ValueError(f"{path}, class {index}: `id` must be a whole number from 0, got {raw_id!r:.80}.")
    return raw_id


def _ids_where(rows: list[dict[str, Any]], key: str, value: bool, path: Path) -> tuple[int, ...] | None:
    """Indices of the rows whose `key` is `value`; None where no row has it."""
    lacking = [index for index, row in enumerate(rows) if key not in row]
    if len(lacking) == len(rows):
        return None
    if lacking:
        raise ValueError(f"{path}, class {lacking[0]}: `{key}` is missing; give it to every class or to none.")
    wrong = [index for index, row in enumerate(rows) if row[key] not in (0, 1)]
    if wrong:
        raise ValueError(f"{path}, class {wrong[0]}: `{key}` must be true or false, got {rows[wrong[0]][key]!r:.80}.")
    return tuple(index for index, row in enumerate(rows) if bool(row[key]) == value)


def _from_lines(path: Path) -> VocabularyFile:
    return parse_lines(read_text(path).split("\n"), str(path), path.stem)


def _parse_line(line: str, where: str) -> tuple[int | None, tuple[str, ...], bool, str] | None:
    """Raw id (None without one), synonyms, whether it is stuff, and `where`; None for the id of unlabelled pixels."""
    with_id = ID_AND_NAMES.fullmatch(line)
    raw_id, names = (int(with_id[1]), with_id[2]) if with_id else (None, line)
    marked = STUFF_MARK.fullmatch(names)
    names = marked[1] if marked else names
    return None if names.strip() == INVALID_NAME else (raw_id, _split_names(names, where), marked is not None, where)


def _number_rows(raw_ids: Sequence[int | None], places: Sequence[str]) -> tuple[int, ...]:
    given = [raw_id for raw_id in raw_ids if raw_id is not None]
    if given:
        raise ValueError(
            f"{places[raw_ids.index(None)]} gives no id, other classes have one ({given[0]}); every class needs one, "
            "or none."
        )
    return tuple(range(len(raw_ids)))


def _refuse_repeated_ids(raw_ids: Sequence[int], places: Sequence[str]) -> None:
    seen: set[int] = set()
    for raw_id, place in zip(raw_ids, places):
        if raw_id in seen:
            raise ValueError(f"{place} gives the id {raw_id} a second time; every class needs its own.")
        seen.add(raw_id)


def read_text(path: Path) -> str:
    """The file's text, with `\\n` for every end of line. Raises ValueError if it is too large or not UTF-8."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} is larger than {LARGEST_FILE // 1_000_000} MB; this is no vocabulary file.")
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save the file as UTF-8.") from error


def _split_names(names: str, where: str) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(part.strip() for part in names.split(",") if part.strip()))
    if not parts:
        raise ValueError(f"{where}: a class without a name; write `id:name,synonym,...`.")
    return tuple(_check_name(part, where) for part in parts)


def _check_name(name: str, where: str) -> str:
    check_text(name, f"{where}: a name")
    if not canonical_name(name):
        raise ValueError(f"{where}: a class has an empty name.")
    return name


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


__all__ = [
    "VocabularyFile",
    "available_vocabularies",
    "load_labels",
    "load_vocabulary_file",
    "map_ids",
    "parse_classes",
    "parse_lines",
    "raw_to_training",
    "read_json_file",
    "read_text",
    "to_labels",
    "with_prompts",
]
