"""What the page answers: a visitor's picture, words and numbers in, segments, drawings and files out; no web in here.

A `Visit` is all that is kept of a visitor: pictures that the network has read, so that other words do not run its
trunk again. Shapes: h x w the picture as it is shown.
"""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maftplus.pictures.coco import CocoDocument
from maftplus.pictures.colours import class_colours
from maftplus.pictures.heatmap import heatmap_image
from maftplus.pictures.results import write_results
from maftplus.pictures.segments import Segment, segments_from_pipeline
from maftplus.pipeline_maftplus import THRESHOLDS, EncodedPicture, MaftPlusSegmentationPipeline
from maftplus.vocabularies.files import load_labels, parse_lines, to_labels

KEPT_PICTURES = 2  # of a visitor; each is a few megabytes
DISPLAY_SIDE, HEAT_SIDE = 1024, 512  # pixels; a drawn mask takes 32 bytes a pixel, heat maps 4 a pixel and word
MAX_PIXELS = 40_000_000  # of a picture
OWN_WORDS = "the model's own words"
TABLE_COLUMNS = ("id", "word", "kind", "score", "next best word", "share of the picture")


@dataclass
class Answer:
    """One segmented picture; `classes` are the synonyms of every word that was asked for."""

    picture: Image.Image
    segments: list[Segment]
    classes: list[list[str]]
    stuff_ids: list[int]
    task: str

    @property
    def names(self) -> list[str]:
        """What every word is called: its first synonym."""
        return [synonyms[0] for synonyms in self.classes]

    def annotations(self) -> tuple[Image.Image, list[tuple[np.ndarray, str]], dict[str, str]]:
        """The picture as it is shown, its masks (h, w) with what hovering says, and the colour of each text."""
        shown, colours = shrink(self.picture, DISPLAY_SIDE), class_colours(self.names)
        texts = [_describe(one) for one in self.segments]
        masks = [(_fit(one.mask, shown.size), text) for one, text in zip(self.segments, texts)]
        return shown, masks, {text: _hex(colours[one.label]) for one, text in zip(self.segments, texts)}

    def rows(self) -> list[list[Any]]:
        """The table, a row a segment, in `TABLE_COLUMNS`."""
        return [
            [
                one.id,
                one.label,
                "thing" if one.isthing else "stuff",
                "" if one.score is None else f"{one.score:.3f}",
                one.second_label or "",
                f"{one.area / max(1, one.mask.size):.1%}",
            ]
            for one in self.segments
        ]

    def write(self, folder: Path) -> list[str]:
        """Overlay, label PNG, JSON and COCO, as `maftplus segment` writes them. Returns their paths."""
        about = {"task": self.task, "labels": self.classes}
        written = write_results(folder / "picture", self.picture, self.segments, about)
        document = CocoDocument(self.classes, self.stuff_ids)
        document.add("picture", self.picture.size, self.segments)
        document.write(folder / "picture_coco.json")
        return [str(path) for path in (*written.values(), folder / "picture_coco.json")]


@dataclass
class Visit:
    """What the page keeps of one visitor, who alone can reach it: pictures as read, and the last question."""

    pictures: OrderedDict[str, EncodedPicture] = field(default_factory=OrderedDict)
    shown: Image.Image | None = None
    last: EncodedPicture | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def ask(self, pipe: MaftPlusSegmentationPipeline, picture: Image.Image, options: dict[str, Any]) -> Answer:
        """
        Args:
            options: As `read_options` gives them.

        Raises:
            ValueError: for words that cannot be used, and pictures of too many pixels.
        """
        classes, stuff_ids = pipe.classes_and_stuff(options["candidate_labels"], options["stuff_labels"])
        encoded = self._encode(pipe, picture)
        segments = segments_from_pipeline(pipe(encoded, **options), stuff_ids)
        self.shown, self.last, self.options = shrink(picture, HEAT_SIDE), encoded, options
        return Answer(picture, segments, classes, stuff_ids, options["subtask"])

    def heat_map(self, pipe: MaftPlusSegmentationPipeline, word: str) -> Image.Image:
        """How much one of the last question's words is believed in. Raises ValueError without a question."""
        if self.last is None or self.shown is None:
            raise ValueError("Segment a picture first; then choose one of its words.")
        small = dataclasses.replace(self.last, target_size=self.shown.size[::-1])
        result = pipe(small, **self.options, return_score_maps=True)
        if word not in result["labels"]:
            raise ValueError(f"{word!r} is none of the last answer's words; choose one of those in the list.")
        return heatmap_image(self.shown, result["score_maps"][result["labels"].index(word)].numpy(), word)

    def _encode(self, pipe: MaftPlusSegmentationPipeline, picture: Image.Image) -> EncodedPicture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"The picture has {picture.width} x {picture.height} pixels; this page takes {MAX_PIXELS / 1e6:.0f} "
                "million, make it smaller."
            )
        key = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        if key not in self.pictures:
            self.pictures[key] = pipe.encode(picture)
        self.pictures.move_to_end(key)
        while len(self.pictures) > KEPT_PICTURES:
            self.pictures.popitem(last=False)
        return self.pictures[key]


def read_options(
    words: Sequence[str] | None,
    distractors: Sequence[str] | None,
    task: str,
    threshold: float | None,
    min_margin: float | None,
) -> dict[str, Any]:
    """
    The pipeline's arguments. A word is a line of a labels file: "cat, kitten", "stuff: grass".

    Args:
        words: None at all: those stored in the model.
        threshold, min_margin: `None`: the pipeline's own; left out where the task reads none.

    Raises:
        ValueError: for words that are no such lines.
    """
    options = to_labels(parse_lines(words, "Words")) if words else {"candidate_labels": None, "stuff_labels": None}
    options["distractor_labels"] = parse_lines(distractors, "Distractors").prompts if distractors else None
    numbers = {"threshold": threshold, "min_margin": min_margin}
    read = {name: value for name, value in numbers.items() if value is not None and name in THRESHOLDS[task]}
    return {**options, "subtask": task, **read}


def words_of(pipe: MaftPlusSegmentationPipeline, vocabulary: str) -> list[str]:
    """A vocabulary as words to start from: the model's own, or one that comes with the package."""
    if vocabulary == OWN_WORDS:
        classes, stuff_ids = pipe.classes_and_stuff()
    else:
        labels = load_labels(vocabulary)
        classes, stuff_ids = pipe.classes_and_stuff(labels["candidate_labels"], labels["stuff_labels"])
    return [("stuff: " if index in stuff_ids else "") + ", ".join(names) for index, names in enumerate(classes)]


def shrink(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a longest side of at most `side` pixels."""
    if max(picture.size) <= side:
        return picture
    scale = side / max(picture.size)
    return picture.resize([max(1, round(edge * scale)) for edge in picture.size], Image.Resampling.BICUBIC)


def _fit(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (height, width) bool -> (h, w) of 0 and 1, for `size` (w, h)."""
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=np.float32)


def _describe(segment: Segment) -> str:
    score = "" if segment.score is None else f" {segment.score:.2f}"
    return f"{segment.id} {segment.label}{score}"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


__all__ = ["OWN_WORDS", "TABLE_COLUMNS", "Answer", "Visit", "read_options", "shrink", "words_of"]
