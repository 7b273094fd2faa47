"""Names to synonyms to prompts, and which classes a label names: nothing but strings.

Sources: arXiv 2408.00744, section 4.1 (prompts and synonyms); the 14 templates are ViLD's, arXiv 2104.13921.
A class is a string with synonyms separated by commas ("person, man, woman"), or a list of synonyms, in which nothing
is split. Every synonym is put into every template; `&amp;` and its like are read as in CLIP, twice.
Shapes: K classes, P synonyms, N prompts (P times the number of templates).
"""

import html
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


class Prompts(NamedTuple):
    """Every template of every synonym: class by class, synonym by synonym, template by template. Lists of length N."""

    texts: list[str]
    class_ids: list[int]
    synonym_ids: list[int]


def parse_classes(labels: ClassName | Sequence[ClassName]) -> list[list[str]]:
    """
    Synonyms of every class, spaces around them stripped.

    Args:
        labels: One entry a class: a string with synonyms separated by commas, or a list of synonyms (nothing is
            split). A string alone is *one* class: "cat, kitten" is not two.

    Raises:
        ValueError: without labels, with an empty label or synonym, or if two labels have the same synonyms.
    """
    labels = as_list(labels)
    if not labels:
        raise ValueError("`text` (the labels) is empty; give at least one class name.")
    classes = [_synonyms(label, index) for index, label in enumerate(labels)]
    first_index = {}
    for index, synonyms in enumerate(classes):
        key = frozenset(map(canonical_name, synonyms))
        if key in first_index:
            raise ValueError(
                f"Label {index} ({', '.join(synonyms)!r}) repeats label {first_index[key]}; give every label once."
            )
        first_index[key] = index
    return classes


def as_list(texts: str | Iterable) -> list:
    """One text, or any number of them, which may be a generator -> a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def _synonyms(label: ClassName, index: int) -> list[str]:
    if not isinstance(label, (str, list, tuple)) or not all(isinstance(name, str) for name in label):
        raise ValueError(f"Label {index} must be a string or a list of strings, got {label!r}.")
    synonyms = label.split(",") if isinstance(label, str) else label
    synonyms = [name.strip() for name in synonyms]
    if not synonyms or not all(map(canonical_name, synonyms)):  # "&nbsp;" is empty too
        raise ValueError(f"Label {index} ({label!r}) is empty or has an empty synonym; remove it or the extra comma.")
    return synonyms


def canonical_name(name: str) -> str:
    """What the tokenizer makes of a name before it cuts it into tokens: names that agree here are the same name."""
    return " ".join(unescape(name).split()).lower()


def unescape(text: str) -> str:
    return html.unescape(html.unescape(text))


def find_label_ids(classes: list[list[str]], labels: Sequence[ClassName] | None) -> list[int]:
    """
    Index of every class that `labels` (the stuff, say) names, ascending: by all its synonyms or by its first one.

    Raises:
        ValueError: if a label is not among the classes.
    """
    if labels is None or not (labels := as_list(labels)):
        return []
    names: dict[tuple[str, ...], set[int]] = {}
    for index, synonyms in enumerate(classes):
        key = tuple(map(canonical_name, synonyms))
        names.setdefault(key, set()).add(index)
        names.setdefault(key[:1], set()).add(index)
    found = set()
    for synonyms in parse_classes(labels):
        key = tuple(map(canonical_name, synonyms))
        if key not in names:
            raise ValueError(f"Stuff label {', '.join(synonyms)!r} is not among the labels; add it there.")
        found |= names[key]
    return sorted(found)


def find_seen_classes(classes: list[list[str]], training_classes: Sequence[ClassName]) -> list[bool]:
    """Which classes share a synonym with a training class, (K,) (arXiv 2308.02487, "Geometric ensemble")."""
    known = {canonical_name(name) for synonyms in parse_classes(training_classes) for name in synonyms}
    return [any(canonical_name(name) in known for name in synonyms) for synonyms in classes]


def build_prompts(classes: list[list[str]], templates: str | Sequence[str] | None = VILD_TEMPLATES) -> Prompts:
    """
    Args:
        classes: Synonyms of every class, as `parse_classes` returns them.
        templates: Sentences with `{}` for the name, or a single one; `None` or none at all: the name itself.

    Raises:
        ValueError: if a template lacks `{}`.
    """
    templates = as_list(templates or "{}")
    for template in templates:
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
    "find_label_ids",
    "find_seen_classes",
    "parse_classes",
]
