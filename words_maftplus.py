"""Names to synonyms to prompts, and which classes a label names: nothing but strings.

Sources: arXiv 2408.00744, section 4.1 (prompts and synonyms); the 14 templates are ViLD's, arXiv 2104.13921.
A class is a string with synonyms separated by commas ("person, man, woman"), or a list of synonyms, in which nothing
is split. Every synonym is put into every template; `&amp;` and its like are read as in CLIP, twice.
Shapes: K classes, P synonyms, N prompts (P times the number of templates).
"""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

VILD_TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)

ClassName = str | Sequence[str]
MAX_NAME_LENGTH = 1_000  # characters of a synonym or template; a prompt is cut at 77 tokens anyway
MAX_SYNONYMS = 100_000  # of all classes of a call


class Prompts(NamedTuple):
    """Every template of every synonym: class by class, synonym by synonym, template by template. Lists of length N."""

    texts: list[str]
    class_ids: list[int]
    synonym_ids: list[int]


def parse_classes(labels: ClassName | Sequence[ClassName], do_split_synonyms: bool = True) -> list[list[str]]:
    """
    Synonyms of every class, spaces around them stripped.

    Args:
        labels: One entry a class: a string with synonyms separated by commas, or a list of synonyms (nothing is
            split). A string alone is *one* class: "cat, kitten" is not two.
        do_split_synonyms: `False`: a string is one name, commas included (MAFT, arXiv 2310.00240, released code).

    Raises:
        ValueError: without labels, with an empty label or synonym, one of more than 1,000 characters or with half a
            surrogate pair, more than 100,000 synonyms, or if two labels have the same synonyms in whatever order.
    """
    labels = as_list(labels)
    if not labels:
        raise ValueError("`text` (the labels) is empty; give at least one class name.")
    names = [_split_label(label, index, do_split_synonyms) for index, label in enumerate(labels)]
    if (total := sum(map(len, names))) > MAX_SYNONYMS:
        raise ValueError(f"The labels have {total:,} synonyms; at most {MAX_SYNONYMS:,} are taken at once.")
    classes = [_strip_names(synonyms, f"Label {index}") for index, synonyms in enumerate(names)]
    first_index = {}
    for index, synonyms in enumerate(classes):
        first = first_index.setdefault(class_key(synonyms), index)
        if first != index:
            raise ValueError(f"Label {index} ({', '.join(synonyms)!r}) repeats label {first}; give every label once.")
    return classes


def as_list(texts: str | Iterable) -> list:
    """One text, or any number of them, which may be a generator -> a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def _split_label(label: ClassName, index: int, do_split: bool) -> Sequence[str]:
    if not isinstance(label, (str, list, tuple)) or not all(isinstance(name, str) for name in label):
        raise ValueError(f"Label {index} must be a string or a list of strings, got {label!r}.")
    if isinstance(label, str):
        return label.split(",") if do_split else [label]
    return label


def _strip_names(synonyms: Sequence[str], what: str) -> list[str]:
    for name in synonyms:
        check_text(name, what)
    if not synonyms or not all(map(canonical_name, synonyms)):  # "&nbsp;" is empty too
        shown = ", ".join(synonyms)[:200]
        raise ValueError(f"{what} ({shown!r}) is empty or has an empty synonym; remove it or the extra comma.")
    return [name.strip() for name in synonyms]


def check_text(text: str, what: str) -> None:
    """Raise ValueError, naming `what`, if `text` is longer than a label may be or cannot be encoded."""
    if len(text) > MAX_NAME_LENGTH:
        raise ValueError(f"{what} has {len(text):,} characters, at most {MAX_NAME_LENGTH:,} are taken: {text[:40]!r}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} ({text!r}) holds half a surrogate pair, which is no text; mend it.") from error


def canonical_name(name: str) -> str:
    """What the tokenizer makes of a name before it cuts it into tokens: names that agree here are the same name."""
    return " ".join(unicodedata.normalize("NFC", unescape(name)).split()).lower()


def class_key(synonyms: Iterable[str]) -> frozenset[str]:
    """Its names in canonical form: classes whose keys agree are the same, in whatever order their synonyms are."""
    return frozenset(map(canonical_name, synonyms))


def unescape(text: str) -> str:
    """HTML's entities read as CLIP reads them, twice."""
    return html.unescape(html.unescape(text))


def find_label_ids(classes: list[list[str]], labels: Sequence[ClassName] | None) -> list[int]:
    """
    Index of every class that `labels` (the stuff, say) names, ascending: by all its synonyms, in any order, or by
    its first one.

    Raises:
        ValueError: if a label is not among the classes.
    """
    if labels is None or not (labels := as_list(labels)):
        return []
    indices: dict[frozenset[str], set[int]] = {}
    for index, synonyms in enumerate(classes):
        for names in (synonyms, synonyms[:1]):
            indices.setdefault(class_key(names), set()).add(index)
    label_ids = set()
    for synonyms in parse_classes(labels):
        key = class_key(synonyms)
        if key not in indices:
            raise ValueError(f"Stuff label {', '.join(synonyms)!r} is not among the labels; add it there.")
        label_ids |= indices[key]
    return sorted(label_ids)


def parse_distractors(
    labels: ClassName | Sequence[ClassName] | None, do_split_synonyms: bool = True
) -> list[list[str]]:
    """
    Synonyms of every distractor: a class that competes with the labels and is never reported; none for `None` or [].

    Raises:
        ValueError: as `parse_classes`, naming `distractor_labels`.
    """
    labels = [] if labels is None else as_list(labels)
    try:
        return parse_classes(labels, do_split_synonyms) if labels else []
    except ValueError as error:
        raise ValueError(f"`distractor_labels`: {error}") from error


def split_distractors(
    classes: list[list[str]], distractors: list[list[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """The distractors that compete, and those left out because they share a name with one of the classes."""
    known = {canonical_name(name) for synonyms in classes for name in synonyms}
    is_label = [any(canonical_name(name) in known for name in synonyms) for synonyms in distractors]
    kept, left_out = ([one for one, flag in zip(distractors, is_label) if flag is wanted] for wanted in (False, True))
    return kept, left_out


def find_seen_classes(classes: list[list[str]], training_classes: Sequence[ClassName]) -> list[bool]:
    """Which classes share a synonym with a training class, (K,) (arXiv 2308.02487, "Geometric ensemble")."""
    known = {canonical_name(name) for synonyms in parse_classes(training_classes) for name in synonyms}
    return [any(canonical_name(name) in known for name in synonyms) for synonyms in classes]


def build_prompts(classes: list[list[str]], templates: str | Sequence[str] | None = VILD_TEMPLATES) -> Prompts:
    """
    Every synonym in every template.

    Args:
        classes: Synonyms of every class, as `parse_classes` returns them.
        templates: Sentences with `{}` for the name, or a single one; `None` or none at all: the name itself.

    Raises:
        ValueError: if a template lacks `{}` or is no text of at most 1,000 characters.
    """
    templates = as_list(templates or "{}")
    for template in templates:
        check_text(template, "A template")
        if "{}" not in template:
            raise ValueError(f"Template {template!r} has no `{{}}` for the class name.")
    synonyms = [(index, name) for index, names in enumerate(classes) for name in names]
    prompts = [
        (template.replace("{}", name), class_id, synonym_id)
        for synonym_id, (class_id, name) in enumerate(synonyms)
        for template in templates
    ]
    return Prompts(*map(list, zip(*prompts)))


__all__ = [
    "VILD_TEMPLATES",
    "ClassName",
    "Prompts",
    "build_prompts",
    "canonical_name",
    "check_text",
    "class_key",
    "find_label_ids",
    "find_seen_classes",
    "parse_classes",
    "parse_distractors",
    "split_distractors",
]
