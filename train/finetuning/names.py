"""Names of a folder's classes: where they stand, and which values of the label maps they are for.

    names = find_names(root)                  # names.txt, classes.json, ...: None where there is no such file
    vocabulary, unlabelled, notes, warnings = fit_names(names, values)

Beside the forms of `vocabularies/files.py`, read here: "id name" and "name,id" lines, names with colours (CVAT's
`labelmap.txt`, `name,r,g,b`), `#` for remarks, JSON lists and
mappings of names, COCO's `categories`, and the YAML of YOLO.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from maftplus.train.finetuning.folders import SPLIT_WORDS
from maftplus.vocabularies.files import (
    FOLDER,
    ID_AND_NAMES,
    VocabularyFile,
    load_vocabulary_file,
    parse_classes,
    parse_lines,
    read_json_file,
    read_text,
)

# Words in the name of a file of names, the likeliest first.
NAME_WORDS = ("names", "classes", "classnames", "labels", "categories", "class", "label", "vocabulary", "id2label")
NAME_ENDINGS = (".txt", ".json", ".csv", ".names", ".yaml", ".yml")
NOT_NAMES = {
    "readme",
    "license",
    "licence",
    "requirements",
    "provenance",
    "notes",
    "list",
    "trainval",
    "all",
    *SPLIT_WORDS,
}
VOID_WORDS = {"unlabelled", "unlabeled", "void", "ignore", "ignored", "unannotated", "unknown"}
BESIDE_VOID = {"label", "pixels", "pixel", "region", "regions", "area", "class", "or", "and", "is"}
UNLABELLED = (255, 65535)  # of label maps of 8 and of 16 bits
WITH_IDS = "give every name its id (`0: NAME`)"
ID_THEN_NAME = re.compile(r"\s*([0-9]{1,9})[\s,;]+(\S.*)")
HEADER = re.compile(r"\W*(id|index|value|name|label|class)\w*\W.*", re.IGNORECASE)
# name:r,g,b:... as CVAT writes it, name,r,g,b as in CSV files, "r g b name" as of CamVid
COLOUR = r"([0-9]{1,3})[\s,;]+([0-9]{1,3})[\s,;]+([0-9]{1,3})"
NAME_AND_COLOUR = (
    re.compile(rf"\s*(?P<name>[^:,;]*[^:,;\s0-9][^:,;]*?)\s*[:,;]\s*{COLOUR}\s*(:.*)?"),
    re.compile(rf"\s*{COLOUR}[\s,;]+(?P<name>\S.*?)\s*"),
)
NAME_THEN_ID = re.compile(r"(.*\S)\s*[,;:=\t]\s*([0-9]{1,9})\s*")
NESTED = ("classes", "categories", "names", "id2label", "label2id", "labels")  # keys of JSON under which names may lie


@dataclass(frozen=True)
class Names:
    """
    Classes as their file lists them.

    Args:
        has_ids: The file says which values of label maps they are.
        colours: (red, green, blue) of every class in coloured label maps, where the file gives them.
    """

    vocabulary: VocabularyFile
    has_ids: bool
    colours: tuple[tuple[int, int, int], ...] | None = None


class Fitted(NamedTuple):
    """
    Names that fit label maps.

    Args:
        vocabulary: The classes with the values that mean them.
        unlabelled: The values that mean unlabelled.
        notes: What is assumed, a sentence each.
        warnings: What is assumed and may as well be otherwise, a sentence each.
    """

    vocabulary: VocabularyFile
    unlabelled: frozenset[int]
    notes: list[str]
    warnings: list[str]


def find_names(root: Path) -> Names | None:
    """
    The names in a file of the folder, or of one directly below it.

    The preferred word in its name decides; without one a text file that is alone in the folder will do. A folder that
    is called like a split may have its names beside it.
    """
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    folders += [root.resolve().parent] if root.resolve().name.lower() in SPLIT_WORDS else []
    files = [path for folder in folders for path in _candidates(folder)]
    for word in NAME_WORDS:
        for path in files:
            if word in _stem_words(path) and (names := _try(path)):
                return names
    texts = [path for path in files if path.parent == root and path.suffix.lower() == ".txt"]
    alone = [path for path in texts if not set(_stem_words(path)) & NOT_NAMES]
    yaml = [path for path in (root / "data.yaml", root / "dataset.yaml") if path.is_file()]
    return read_names(alone[0]) if len(alone) == 1 else _try(yaml[0]) if yaml else None


def read_names(source: str | Path) -> Names:
    """
    Names from a file, or the vocabulary of that name.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it holds no names; the message names it.
    """
    path = Path(source)
    if (FOLDER / f"{source}.json").is_file() or not path.is_file():
        return Names(load_vocabulary_file(source), has_ids=True)
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        content = read_json_file(path) if path.suffix.lower() == ".json" else _read_yaml(path)
        rows = _as_rows(content, path)
        content = content if isinstance(content, dict) and "classes" in content else {"name": path.stem}
        return Names(parse_classes({**content, "classes": rows}, path), all("id" in row for row in rows))
    lines = [line if line.lstrip()[:1] != "#" else "" for line in read_text(path).split("\n")]
    coloured = _with_colours(lines)
    if coloured is not None:
        return Names(parse_lines(coloured, str(path), path.stem), False, tuple(coloured.values()))
    lines = _with_colons(lines)
    has_ids = any(ID_AND_NAMES.fullmatch(line) for line in lines)
    return Names(parse_lines(lines, str(path), path.stem), has_ids)


def fit_names(names: Names, values: Iterable[int], ignore_value: int | None = None) -> Fitted:
    """
    The classes with the values that mean them in label maps, the values that mean unlabelled, and what is assumed.

    Args:
        values: What the label maps hold. 255 and 65535 without a name are unlabelled. Names without ids count from 0;
            from 1 where the largest value is their number, and 0 is unlabelled then. Of one class alone 0 is the
            background, else there would be nothing to tell it from.
        ignore_value: One more value that is unlabelled, whatever the names say.
    """
    values, notes, warnings, vocabulary = set(values), [], [], names.vocabulary
    if not names.has_ids:
        vocabulary, notes, warnings = _number(vocabulary, values, ignore_value)
    named_void = [
        i
        for i, (name, raw) in enumerate(zip(vocabulary.names, vocabulary.raw_ids))
        if _means_void(name) or raw == ignore_value
    ]
    unlabelled = {vocabulary.raw_ids[i] for i in named_void}
    if named_void and len(named_void) < vocabulary.num_labels:
        notes.append(f"{vocabulary.names[named_void[0]]!r} is no class: its pixels count as unlabelled.")
        vocabulary = keep_classes(vocabulary, [i for i in range(vocabulary.num_labels) if i not in named_void])
    for value in UNLABELLED if ignore_value in (None, *UNLABELLED) else (*UNLABELLED, ignore_value):
        if value not in vocabulary.raw_ids:
            unlabelled.add(value)
            if value in values:
                notes.append(f"{value} counts as unlabelled.")
    if 0 in values and 0 not in vocabulary.raw_ids and 0 not in unlabelled:
        unlabelled.add(0)
        notes.append("0 has no name and counts as unlabelled; if it is a class, say `0: background` in the names.")
    return Fitted(vocabulary, frozenset(unlabelled), notes, warnings)


def keep_classes(vocabulary: VocabularyFile, kept: list[int]) -> VocabularyFile:
    """Only some classes, by training id."""
    places = {old: new for new, old in enumerate(kept)}

    def ids(old: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if old is None else tuple(places[index] for index in old if index in places)

    def rows(old: tuple) -> tuple:
        return tuple(old[index] for index in kept) if old else old

    fields = {name: rows(getattr(vocabulary, name)) for name in ("names", "classes", "raw_ids", "places")}
    return replace(vocabulary, **fields, stuff=ids(vocabulary.stuff), unseen=ids(vocabulary.unseen))


def _number(
    vocabulary: VocabularyFile, values: set[int], ignore_value: int | None
) -> tuple[VocabularyFile, list[str], list[str]]:
    """Names without ids: which values they stand for, a note where not 0, 1, 2, ..., a warning where it is a guess."""
    number, used = vocabulary.num_labels, values - {*UNLABELLED, ignore_value}
    if number <= 2 and values - {ignore_value} == {0, 255}:
        named = vocabulary if number == 2 else _with_background(vocabulary)
        return replace(named, raw_ids=(0, 255)), [f"The label maps hold 0 and 255: 255 is {named.names[1]!r}."], []
    if number == 1 and used == {0, 1}:
        named = _with_background(vocabulary)
        return replace(named, raw_ids=(0, 1)), [f"0 is taken for background, 1 is {named.names[1]!r}."], []
    largest = max(used, default=0)
    if largest == number or (ignore_value == 0 and largest < number):
        note = f"The label maps count from 1: {vocabulary.names[0]!r} is 1."
        doubt = f"the label maps hold 0 too, and there are {number} names without ids; if 0 is a class, {WITH_IDS}."
        return replace(vocabulary, raw_ids=tuple(range(1, number + 1))), [note], [doubt] if 0 in used else []
    doubt = f"the names count from 0, which no label map holds; if {vocabulary.names[0]!r} is 1, {WITH_IDS}."
    return vocabulary, [], [doubt] if used and 0 not in used else []


def _with_background(vocabulary: VocabularyFile) -> VocabularyFile:
    names, classes = ("background", *vocabulary.names), (("background",), *vocabulary.classes)
    places = ("", *vocabulary.places) if vocabulary.places else ()
    return replace(vocabulary, names=names, classes=classes, raw_ids=(0, 1), stuff=(0,), places=places)


def _means_void(name: str) -> bool:
    words = set(re.findall("[a-z]+", name.lower()))
    return bool(words & VOID_WORDS) and words <= VOID_WORDS | BESIDE_VOID


def _with_colours(lines: list[str]) -> dict[str, tuple[int, int, int]] | None:
    """Names and their colours, where every line but a header has both and no colour comes twice."""
    filled = _without_header([line for line in lines if line.strip()], NAME_AND_COLOUR[0])
    for pattern in NAME_AND_COLOUR:
        found = [pattern.fullmatch(line) for line in filled]
        if filled and all(found):
            colours = {match["name"]: tuple(int(match[i]) for i in _colour_groups(pattern)) for match in found}
            if len(set(colours.values())) == len(found) and max(map(max, colours.values())) <= 255:
                return colours
    return None


def _colour_groups(pattern: re.Pattern) -> tuple[int, int, int]:
    return (2, 3, 4) if pattern is NAME_AND_COLOUR[0] else (1, 2, 3)


def _without_header(filled: list[str], pattern: re.Pattern) -> list[str]:
    """The lines without a first one that names columns, as of a CSV file."""
    is_header = len(filled) > 1 and HEADER.fullmatch(filled[0]) and not pattern.fullmatch(filled[0])
    return filled[1:] if is_header and all(pattern.fullmatch(line) for line in filled[1:]) else filled


def _with_colons(lines: list[str]) -> list[str]:
    """Lines "id name" or "name,id" as "id: name", where every line is so and no id comes twice."""
    filled = [line for line in lines if line.strip()]
    for pattern, order in ((ID_THEN_NAME, (1, 2)), (NAME_THEN_ID, (2, 1))):
        found = [pattern.fullmatch(line) for line in _without_header(filled, pattern)]
        if filled and all(found) and len({match[order[0]] for match in found}) == len(found):
            return [f"{match[order[0]]}: {match[order[1]]}" for match in found]
    return lines


def _as_rows(content: Any, path: Path) -> list[dict[str, Any]]:
    """JSON or YAML of any usual kind as rows with `name` and perhaps `id`, `isthing`. Raises ValueError, naming it."""
    if isinstance(content, dict):
        nested = [content[key] for key in NESTED if isinstance(content.get(key), list | dict)]
        if nested:
            return _as_rows(nested[0], path)
        if content and all(str(key).isdigit() and isinstance(name, str) for key, name in content.items()):
            return [{"id": int(key), "name": name} for key, name in content.items()]
        if content and all(type(value) is int for value in content.values()):
            return [{"id": value, "name": str(name)} for name, value in content.items()]
    elif isinstance(content, list) and content:
        if all(isinstance(row, str) for row in content):
            return [{"name": name} for name in content]
        if all(isinstance(row, dict) and "name" in row for row in content):
            kept = ("id", "name", "synonyms", "isthing", "unseen")
            return [{key: row[key] for key in kept if key in row} for row in content]
    raise ValueError(
        f'{path}: no names of classes; write ["cat", "grass"], {{"0": "cat", "1": "grass"}} or a text file with one '
        "name a line."
    )


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: this YAML cannot be read ({' '.join(str(error).split())}).") from error


def _try(path: Path) -> Names | None:
    """Names of a file that may hold something else; None where it does. Text is taken at its word."""
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return read_names(path)
    try:
        return read_names(path)
    except ValueError:
        return None


def _stem_words(path: Path) -> list[str]:
    stem = path.stem.lower()
    return [*re.split(r"[_\-. ]+", stem), stem.replace("_", "")]


def _candidates(folder: Path, most: int = 50) -> list[Path]:
    """Files that may hold names, by name; of a kind that comes more than `most` times none: those are annotations."""
    files = {ending: [] for ending in NAME_ENDINGS}
    with os.scandir(folder) as entries:
        for entry in entries:
            own = files.get(os.path.splitext(entry.name)[1].lower())
            if own is not None and not entry.name.startswith("."):
                own.append(folder / entry.name)
    return [path for own in files.values() if len(own) <= most for path in sorted(own)]
