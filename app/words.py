"""The words of a call of the command: from its options and files to what the pipeline takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from maftplus.vocabularies.files import available_vocabularies, load_labels, load_vocabulary_file
from maftplus.words_maftplus import canonical_name, class_key, find_label_ids, parse_classes, split_distractors

FILE_ENDINGS = (".txt", ".json", ".csv", ".tsv", ".names", ".labels")


def gather_words(
    labels: Sequence[str] | None,
    labels_file: Path | None = None,
    vocabulary: str | None = None,
    stuff: Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    Labels and stuff of a call: those of `--labels`, then of the file, then of the vocabulary.

    Returns:
        `candidate_labels` and `stuff_labels`; `None` where nothing is given, which leaves it to the stored words.

    Raises:
        ValueError: on words that cannot be used, a file with a bad line (the message names both), a label that is the
            name of a file or of a vocabulary, and stuff that is no label.
        OSError: if a file is missing.
    """
    for option, words in (("--labels", labels), ("--stuff", stuff)):
        _refuse_sources(words, option, "--labels-file", "--vocabulary")
    given = {"candidate_labels": list(labels or []), "stuff_labels": list(stuff or [])}
    if labels_file is not None:
        _refuse_missing(labels_file)
    files = [_load(source) for source in (labels_file, vocabulary) if source is not None]
    found = {key: [word for source in (given, *files) for word in source[key]] for key in given}
    if found["candidate_labels"]:
        find_label_ids(parse_classes(found["candidate_labels"]), found["stuff_labels"])
    return {name: words or None for name, words in found.items()}


def gather_distractors(
    distractors: Sequence[str] | None,
    vocabulary: str | None,
    labels: Sequence[str | Sequence[str]] | None,
    is_quiet: bool = False,
) -> dict[str, Any]:
    """
    Distractors of a call; says in one line which are left out because they share a name with a label.

    Returns:
        `distractor_labels`, `None` where there are none.

    Raises:
        ValueError, OSError: as `gather_words`.
    """
    _refuse_sources(distractors, "--distractors", "--distractor-vocabulary", "--distractor-vocabulary")
    words = list(distractors or [])
    if vocabulary is not None:
        words += _load(vocabulary)["candidate_labels"]
    if not words:
        return {"distractor_labels": None}
    unique = {class_key(synonyms): synonyms for word in words for synonyms in _parse([word], "--distractors")}
    left_out = split_distractors(parse_classes(labels) if labels else [], list(unique.values()))[1]
    if left_out and not is_quiet:
        names = ", ".join(synonyms[0] for synonyms in left_out)
        typer.echo(f"left out of the distractors, as labels have their names: {names}")
    return {"distractor_labels": list(unique.values())}


def first_names(labels: Sequence[str | Sequence[str]] | None) -> list[str]:
    """What results call each label; none for the stored words, which only the model knows."""
    return [synonyms[0] for synonyms in parse_classes(labels)] if labels else []


def format_lines(classes: Sequence[Sequence[str]], raw_ids: Sequence[int], stuff: Sequence[int]) -> list[str]:
    """
    A vocabulary as lines of a labels file.

    Raises:
        ValueError: for a name with a comma, which a line cannot hold.
    """
    lines = []
    for index, (synonyms, raw_id) in enumerate(zip(classes, raw_ids)):
        with_comma = [name for name in synonyms if "," in name]
        if with_comma:
            raise ValueError(f"{with_comma[0]!r} has a comma, which a line cannot hold; take the JSON file as it is.")
        lines.append(f"{raw_id}: {'stuff: ' if index in stuff else ''}{', '.join(synonyms)}")
    return lines


def _parse(words: Sequence[str | Sequence[str]], source: str) -> list[list[str]]:
    try:
        return parse_classes(words)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _load(name_or_file: str | Path) -> dict[str, list[list[str]]]:
    """`load_labels`, but a class given a second time, which some data sets have, is an error that names its line."""
    vocabulary, first = load_vocabulary_file(name_or_file), {}
    for synonyms, place in zip(vocabulary.classes, vocabulary.places):
        known = first.setdefault(class_key(synonyms), place)
        if known != place:
            raise ValueError(f"{place} repeats the class {', '.join(synonyms)!r} of {known}; give every label once.")
    return load_labels(name_or_file)


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        hint = " (a vocabulary's name goes to --vocabulary)" if str(path) in available_vocabularies() else ""
        raise FileNotFoundError(f"--labels-file {path}: there is no such file{hint}.")


def _refuse_sources(words: Sequence[str] | None, option: str, file_option: str, vocabulary_option: str) -> None:
    """A word that is rather the name of a file or of a vocabulary would be searched for in the picture."""
    vocabularies = {canonical_name(name): name for name in available_vocabularies()}
    for word in words or ():
        if canonical_name(word) in vocabularies:
            raise ValueError(f"{option} {word}: this is a vocabulary's name; give it as {vocabulary_option} {word}.")
        if _looks_like_file(word):
            raise ValueError(f"{option} {word}: this is the name of a file; give it as {file_option} {word}.")


def _looks_like_file(word: str) -> bool:
    path = Path(word)
    return path.suffix.lower() in FILE_ENDINGS or (len(path.parts) > 1 and len(word) < 1000 and path.is_file())
