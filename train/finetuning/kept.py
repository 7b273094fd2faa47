"""What a fine-tuned model still knows of other words: the same pictures under other words, before and after.

Two ways. Of the held-out pictures nobody knows the truth under other words, so the base model's own answers stand for
it: how far the fine-tuned model still agrees with them (`opinions`; a change need not be a loss, say where the base
took a new thing for an old one). Of labelled pictures of other classes (`--keep-data`) both have real figures.
Shapes: H x W the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from maftplus.train.evaluation.evaluate import Evaluation, SampleStream, count_predictions, scalar_figures
from maftplus.vocabularies.files import VocabularyFile, load_vocabulary_file

MOST_PICTURES = 100  # whose maps are kept in memory
SEMANTIC = {"semantic": "semantic"}
Measure = Callable[[Any, dict[str, str]], dict[str, Evaluation]]


@dataclass
class Kept:
    """
    Words that are not trained, and how the model does on them.

    Args:
        what: What the figures are, a sentence.
        data: What is measured: truth of its own, or the base model's answers.
        before, after: None before the base model's own answers, which agree with themselves.
    """

    what: str
    data: Any
    before: Evaluation | None = None
    after: Evaluation | None = field(default=None, repr=False)

    @property
    def figures(self) -> list[str]:
        """mIoU and share of the pixels, before and after, in percent."""
        return [_cell(self.before), _cell(self.after)]

    @property
    def metrics(self) -> dict[str, Any]:
        """For JSON: fractions of 1."""
        both = {"before": self.before, "after": self.after}
        return {"what": self.what, **{name: one and scalar_figures(one.figures) for name, one in both.items()}}

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


def opinions(predict: Any, data: Any, vocabulary: VocabularyFile) -> Kept:
    """What the model sees in pictures under other words now, as the truth that it is held to later."""
    size = np.uint8 if vocabulary.num_labels < 255 else np.uint16
    void = int(np.iinfo(size).max)
    samples = []
    for sample in islice(iter(data[index] for index in range(len(data))), MOST_PICTURES):
        (prediction,) = predict([sample], vocabulary, SEMANTIC)
        classes = np.asarray(prediction["semantic"])
        classes = np.where((classes >= 0) & (classes < vocabulary.num_labels), classes, void).astype(size)
        samples.append({"name": sample["name"], "image": sample["image"], "segmentation_map": classes})
    what = f"agreement with the base model under {vocabulary.num_labels} other words ({vocabulary.name})"
    return Kept(what, SampleStream(data.name, vocabulary, samples, ignore_index=void))


def truth(predict: Any, data: Any) -> Kept:
    """Figures on labelled pictures of other classes."""
    (before,) = measure(predict, data).values()
    return Kept(f"{data.vocabulary.num_labels} classes of {data.name} that were not trained", data, before)


def find_vocabulary(config: Any, name_or_file: str | None) -> VocabularyFile | None:
    """The words to keep: those named, or those that the model has stored."""
    return stored_vocabulary(config) if name_or_file is None else load_vocabulary_file(name_or_file)


def _cell(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "mIoU 100, 100 % of the pixels"
    figures = evaluation.figures
    return f"mIoU {100 * figures['mean_iou_present']:.1f}, {100 * figures['overall_accuracy']:.1f} % of the pixels"
