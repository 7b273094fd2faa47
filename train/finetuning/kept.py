"""What a fine-tuned model still knows of other words: the same pictures under other words, before and after.

Two ways. Of the held-out pictures nobody knows the truth under other words, so the base model's own answers stand for
it: how far the fine-tuned model still agrees with them (`opinions`; a change need not be a loss, say where the base
took a new thing for an old one). Of labelled pictures of other classes (`--keep-data`) both have real figures.
Shapes: H x W the picture.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maftplus.train.data.registry import Sample
from maftplus.train.evaluation.evaluate import Evaluation, SampleStream, count_predictions, scalar_figures
from maftplus.train.finetuning.names import read_names
from maftplus.vocabularies.files import VocabularyFile
from maftplus.words_maftplus import find_seen_classes

MOST_PICTURES = 100  # whose maps are kept in memory
SEMANTIC = {"semantic": "semantic"}


@dataclass
class Kept:
    """
    Words that are not trained, and how the model does on them.

    Args:
        what: What the figures are, a sentence.
        data: What is measured: truth of its own, or the base model's answers.
        others: Ids of the classes of `data` that are not trained; the figures are of these.
        before, after: None before the base model's own answers, which agree with themselves.
        seconds: Of one pass over the data.
    """

    what: str
    data: Any
    others: list[int]
    before: Evaluation | None = None
    after: Evaluation | None = field(default=None, repr=False)
    seconds: float = 0.0

    @property
    def figures(self) -> list[str]:
        """mIoU and share of the pixels, before and after, in percent."""
        return [_cell(one and self.of_others(one)) for one in (self.before, self.after)]

    @property
    def metrics(self) -> dict[str, Any]:
        """For JSON: fractions of 1, of all classes and, under `others`, of those that are not trained."""
        both = {"before": self.before, "after": self.after}
        measured = {
            name: one and {**scalar_figures(one.figures), "others": self.of_others(one)} for name, one in both.items()
        }
        return {"what": self.what, **measured}

    def of_others(self, evaluation: Evaluation) -> dict[str, float]:
        """mIoU of the classes that are not trained, and the share of their pixels; empty where no picture has them."""
        counts = evaluation.counts  # by prediction, void last, and truth
        total, right = counts[:, self.others].sum(), counts[self.others, self.others].sum()
        if not total:
            return {}
        iou = np.nanmean(evaluation.figures["per_category_iou"][self.others])
        return {"mean_iou_present": float(iou), "overall_accuracy": float(right / total)}

    @property
    def line(self) -> str:
        """For the terminal."""
        before, after = self.figures
        return f"{self.what}: {before} before, {after} after"


def measure(
    predict: Any, data: Any, kinds: dict[str, str] | None = None, num_examples: int = 0
) -> dict[str, Evaluation]:
    """Counts of one pass over `data`, a picture at a time."""
    return count_predictions(predict, data, kinds or SEMANTIC, num_examples=num_examples)


def stored_vocabulary(config: Any) -> VocabularyFile | None:
    """The words that a model has stored, as a vocabulary."""
    if not config.vocabulary:
        return None
    names = tuple(words[0] for words in config.vocabulary)
    classes = tuple(tuple(words) for words in config.vocabulary)
    stuff = tuple(config.stuff_ids or ()) or None
    return VocabularyFile("the model's own words", names, classes, tuple(range(len(names))), stuff)


@dataclass
class Answers:
    """What a model said of the first pictures of `data`; a picture is read again when it is asked for."""

    data: Any
    maps: list[np.ndarray]

    def __iter__(self) -> Iterator[Sample]:
        for index, answer in enumerate(self.maps):
            sample = self.data[index]
            yield {"name": sample["name"], "image": sample["image"], "segmentation_map": answer}


def find_others(vocabulary: VocabularyFile, trained: VocabularyFile) -> list[int]:
    """Ids of the classes that share no name with a class that is trained."""
    is_trained = find_seen_classes(vocabulary.prompts, trained.prompts)
    return [index for index, known in enumerate(is_trained) if not known]


def opinions(predict: Any, data: Any, vocabulary: VocabularyFile, others: list[int]) -> Kept:
    """What the model sees in pictures under other words now, as the truth that it is held to later."""
    size = np.uint8 if vocabulary.num_labels < 255 else np.uint16
    void = int(np.iinfo(size).max)
    maps, start = [], time.perf_counter()
    for index in range(min(len(data), MOST_PICTURES)):
        (prediction,) = predict([data[index]], vocabulary, SEMANTIC)
        classes = np.asarray(prediction["semantic"])
        maps.append(np.where((classes >= 0) & (classes < vocabulary.num_labels), classes, void).astype(size))
    what = f"agreement with the base model under {len(others)} other words ({vocabulary.name})"
    stream = SampleStream(data.name, vocabulary, Answers(data, maps), ignore_index=void)
    return Kept(f"{what}{_left_out(vocabulary, others)}", stream, others, seconds=time.perf_counter() - start)


def truth(predict: Any, data: Any, others: list[int]) -> Kept:
    """Figures on labelled pictures of other classes."""
    (before,) = measure(predict, data).values()
    what = f"{len(others)} classes of {data.name} that were not trained{_left_out(data.vocabulary, others)}"
    return Kept(what, data, others, before, seconds=before.seconds)


def _left_out(vocabulary: VocabularyFile, others: list[int]) -> str:
    trained = vocabulary.num_labels - len(others)
    return f"; {trained} more are trained and not counted" if trained else ""


def find_vocabulary(config: Any, name_or_file: str | None) -> VocabularyFile | None:
    """The words to keep: those named, or those that the model has stored."""
    return stored_vocabulary(config) if name_or_file is None else read_names(name_or_file).vocabulary


def _cell(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "mIoU 100, 100 % of the pixels"
    if not figures:
        return "no pixel of them"
    return f"mIoU {100 * figures['mean_iou_present']:.1f}, {100 * figures['overall_accuracy']:.1f} % of the pixels"
