"""Sentences on the scenes of the shapes world. They name everything in a scene, which captions of photographs do not;
natural ones leave things out, the ground more often than what stands on it.

Which words there are (synonyms, patterns): `scenes.py`.
"""

from dataclasses import dataclass

import numpy as np

from maftplus.shapes.scenes import CLASSES, Scene

IRREGULAR_PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}
OPENINGS = (
    "{}",
    "{}.",
    "a photo of {}",
    "a picture of {}.",
    "there is {}",
    "this is {}",
    "a scene with {}",
    "I see {}.",
)
JOINTS = ("on", "over", "in front of", "with", "above")
SHARE_LEFT_OUT = {"thing": 0.25, "stuff": 0.6}  # of what a natural caption could name


@dataclass
class Caption:
    """A sentence on a scene, and the phrases it is made of: `phrases[i]` speaks of class `phrase_classes[i]`."""

    text: str
    phrases: list[str]
    phrase_classes: list[int]


def _phrase(class_id: int, count: int, patterns: list[str], rng: np.random.Generator) -> str:
    """How somebody may speak of `count` things of a class: "a striped crimson ball", "two red circles"."""
    name = CLASSES[class_id].names[0] if rng.random() < 0.5 else rng.choice(CLASSES[class_id].names)
    if not CLASSES[class_id].isthing:
        return ("" if rng.random() < 0.7 else "the ") + name
    colour, noun = name.split(" ")
    words = [patterns[0]] if len(set(patterns)) == 1 and rng.random() < 0.3 else []
    if count == 1:
        words = [*words, colour, noun]
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([rng.choice([article, article, "the", "one"]), *words])
    number = ("two", "three", "four", "five", "six", "seven", "eight")[min(count, 8) - 2]
    return " ".join([number, *words, colour, IRREGULAR_PLURALS.get(noun, noun + "s")])


def _enumerate(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _worth_saying(class_ids: list[int], rng: np.random.Generator) -> list[int]:
    """What a natural caption names of a scene's classes: a part of them, at least one thing where there is one."""
    things = [index for index in class_ids if CLASSES[index].isthing]
    always = (things or class_ids)[0]
    shares = [SHARE_LEFT_OUT["thing" if CLASSES[index].isthing else "stuff"] for index in class_ids]
    return [c for c, share in zip(class_ids, shares) if rng.random() >= share or c == always]


def caption_scene(scene: Scene, rng: np.random.Generator, is_natural: bool = False) -> Caption:
    """
    Names what is in the scene, in chance order and words: everything, or a part where the caption `is_natural`.

    Raises:
        ValueError: if the scene has no segments.
    """
    if not scene.segments_info:
        raise ValueError("`scene` has no segments, so there is nothing to say.")
    groups: dict[int, list[str]] = {}
    for segment in scene.segments_info:
        groups.setdefault(segment["category_id"], []).append(segment["pattern"])
    order = [list(groups)[i] for i in rng.permutation(len(groups))]
    if is_natural:
        order = _worth_saying(order, rng)
    spoken = {c: _phrase(c, len(groups[c]), groups[c], rng) for c in order}
    things = [spoken[c] for c in order if CLASSES[c].isthing]
    stuff = [spoken[c] for c in order if not CLASSES[c].isthing]
    parts = [_enumerate(part) for part in (things, stuff) if part]
    text = rng.choice(OPENINGS).format(f" {rng.choice(JOINTS)} ".join(parts))
    return Caption(text, list(spoken.values()), list(spoken))
