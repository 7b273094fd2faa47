"""The one evaluation loop: predictions of samples become counts, exactly once each, on any number of processes.

    predict = ModelPredictor(model, processor)
    evaluations = evaluate_data_sets(predict, [load_data_set("ade20k_150", root)])       # on every process
    write_report(evaluations, "runs/eval")                                               # reports.py

    rows = SampleStream("scenes", vocabulary, samples, task="panoptic")                  # anything that makes samples
    counted = count_predictions(predict, rows, {"semantic": "semantic", "clip_semantic": "semantic"}, batch_size=10)
    counted["clip_semantic"].figures["mean_iou"]                                         # counts: .counts

A predictor is any function (samples, vocabulary, kinds) -> one dictionary a sample, with a prediction for each name in
`kinds` (name -> task), in the size of the sample's own map; so one pass of a model may be counted in several ways.
Every process takes every n-th sample of a data set and reduces it to counts (`counting.py`); only counts are
exchanged, so no sample is padded, repeated or left out. The Trainer, the command line and the experiments use this
loop. Class embeddings are computed once for each vocabulary.
Shapes: B images of a batch, K classes, H x W the picture.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers.utils import logging

from maftplus.classifier_maftplus import class_log_probabilities
from maftplus.train.data.registry import Sample, semantic_labels
from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts, panoptic_figures, semantic_figures
from maftplus.train.evaluation.predictions import PredictionWriter
from maftplus.train.processes import process_state
from maftplus.vocabularies.files import VocabularyFile
from maftplus.words_maftplus import class_key

logger = logging.get_logger(__name__)

TASKS = ("semantic", "panoptic")
CLIP, IN_VOCABULARY = "clip_", "in_vocabulary_"  # before a task: by CLIP's scores alone, by the segmenter's alone
Prediction = dict[str, Any]  # by kind: a label map (H, W), or `segmentation` (H, W) and `segments_info`


class Predictor(Protocol):
    """What is evaluated: samples in, one prediction a sample out, in the size of the sample's own map."""

    def __call__(
        self, samples: list[Sample], vocabulary: VocabularyFile, kinds: Mapping[str, str]
    ) -> list[Prediction]: ...


@dataclass
class SampleStream:
    """
    Samples from any source as a data set that can be counted.

    Args:
        name: What tables call it.
        vocabulary: Its K classes.
        samples: Dictionaries with `name`, `image`, `segmentation_map` (H, W) and, for panoptic tasks, `segments_info`.
        task: `"semantic"` or `"panoptic"`.
        ignore_index: Value of unlabelled pixels in semantic maps.
    """

    name: str
    vocabulary: VocabularyFile
    samples: Iterable[Sample]
    task: str = "semantic"
    ignore_index: int = 255

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


@dataclass
class Example:
    """A picture among the best or worst of a data set: small copies of picture, truth and prediction."""

    score: float
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@dataclass
class Evaluation:
    """
    One data set under one task: `counts` summed over all processes, and what the report needs beside them.

    `counts` is (K+1, K+1) for semantic, (K, 4) for panoptic; `examples` the best and worst pictures, best first.
    `pixels` is what a panoptic evaluation knows of single pixels: the semantic one of the same predictions.
    """

    data_set: str
    task: str
    vocabulary: VocabularyFile
    counts: np.ndarray
    num_images: int = 0
    seconds: float = 0.0
    examples: list[Example] = field(default_factory=list)
    pixels: "Evaluation | None" = None

    @property
    def figures(self) -> dict[str, Any]:
        """Every figure of the counts; see `semantic_figures` and `panoptic_figures`."""
        return figures_of(self.counts, self.vocabulary, self.task)


class ModelPredictor:
    """
    A `MaftPlusForUniversalSegmentation` and its processor as a `Predictor`.

    Kinds are `"semantic"` and `"panoptic"`, or one of them behind `"clip_"` or `"in_vocabulary_"`: by CLIP's class
    scores alone, by the segmenter's alone. A subclass may score in other ways (`with_scores`) or look at the outputs
    (`forward`).

    Args:
        model, processor: As loaded; the model stays on its device and is put into evaluation mode.
        encoded: What the model is given as words, in place of a vocabulary's names: keyword arguments of `forward`; an
            empty dictionary stands for the words that the model has stored.
        forward_context: Makes the context of the forward pass, say autocast.
        post_processing: Arguments of panoptic post-processing (`threshold`, `overlap_mask_area_threshold`, ...).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        encoded: Mapping[str, torch.Tensor] | None = None,
        forward_context: Callable[[], AbstractContextManager] = nullcontext,
        **post_processing: Any,
    ):
        self.model, self.processor, self.post_processing = model.eval(), processor, post_processing
        self.encoded, self.forward_context = encoded, forward_context
        self._vocabularies: dict[tuple, Mapping[str, torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(
        self, samples: list[Sample], vocabulary: VocabularyFile, kinds: Mapping[str, str]
    ) -> list[Prediction]:
        outputs = self.forward(samples, vocabulary)
        sizes = [tuple(sample["segmentation_map"].shape) for sample in samples]
        results = {
            name: self._post_process(self.with_scores(outputs, name), sizes, vocabulary, task)
            for name, task in kinds.items()
        }
        return [dict(zip(results, values)) for values in zip(*results.values())]

    def forward(self, samples: list[Sample], vocabulary: VocabularyFile) -> Any:
        """
        The model's outputs.

        Raises:
            ValueError: if they are not finite; the message names the picture.
        """
        inputs = self.processor(images=[sample["image"] for sample in samples], return_tensors="pt")
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with self.forward_context():
            outputs = self.model(**inputs, **self.encode(vocabulary))
        _require_finite(outputs, samples)
        return outputs

    def with_scores(self, outputs: Any, kind: str) -> Any:
        """The outputs with the class scores that `kind` is about; the final ones, unless its name says otherwise."""
        if not kind.startswith((CLIP, IN_VOCABULARY)):
            return outputs
        scored = copy.copy(outputs)
        if kind.startswith(CLIP):
            scores = class_log_probabilities(outputs["out_vocab_logits"], outputs["void_probabilities"])
        else:
            scores = outputs["in_vocab_logits"].log_softmax(-1)
        scored["class_queries_logits"] = scores
        return scored

    def encode(self, vocabulary: VocabularyFile) -> Mapping[str, torch.Tensor]:
        """
        Class embeddings of a vocabulary, computed once. Of classes with exactly the same names the first one gets the
        prompts; the others are never predicted.
        """
        if self.encoded is not None:
            return self.encoded
        if vocabulary.classes not in self._vocabularies:
            kept = _first_of_equal(vocabulary.classes)
            prompts = self.processor(text=[list(vocabulary.classes[i]) for i in kept], return_tensors="pt")
            encoded = self.model.encode_vocabulary(**prompts)
            kept = torch.tensor(kept, device=encoded["text_class_ids"].device)
            seen = encoded["seen_classes"].new_zeros(vocabulary.num_labels)
            seen[kept] = encoded["seen_classes"]
            ids = kept[encoded["text_class_ids"]]
            self._vocabularies[vocabulary.classes] = {**encoded, "text_class_ids": ids, "seen_classes": seen}
        return self._vocabularies[vocabulary.classes]

    def _post_process(
        self, outputs: Any, sizes: list[tuple[int, int]], vocabulary: VocabularyFile, task: str
    ) -> list[Any]:
        if task == "semantic":
            return self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        options = {"label_ids_to_fuse": set(vocabulary.stuff or ()), **self.post_processing}
        return self.processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes, **options)


def evaluate_data_sets(
    predict: Predictor,
    datasets: Iterable[Any],
    tasks: Sequence[str] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    save_predictions: str | Path | None = None,
    num_examples: int = 3,
    max_samples: int | None = None,
) -> list[Evaluation]:
    """
    Evaluate on several data sets, one after the other; call it on every process, the result is the same on all.

    Args:
        datasets: `SegmentationDataset`s or `HubDataset`s.
        tasks: `"semantic"`, `"panoptic"`; default: each data set's own task.
        batch_size: Pictures a step. Padding to a common size changes results a little; 1 is how papers measure.
        num_workers: Processes that read pictures, for each evaluating process.
        save_predictions: Folder for all predictions in COCO's formats.
        num_examples: How many of the best and of the worst pictures to keep for the report.
        max_samples: Only the first ones of each data set.

    Raises:
        ValueError: on a sample or prediction that cannot be counted; the message names the picture.
    """
    evaluations = []
    for dataset in datasets:
        own_tasks = tuple(tasks or (dataset.task,))
        _check_tasks(dataset, own_tasks)
        folder = Path(save_predictions) / dataset.name if save_predictions else None
        writer = folder and PredictionWriter(folder, dataset.vocabulary, getattr(dataset, "sample_names", None))
        kinds = dict(zip(own_tasks, own_tasks))
        counted = count_predictions(
            predict, dataset, kinds, batch_size, num_workers, num_examples, max_samples, writer
        )
        evaluations += counted.values()
    return evaluations


def count_predictions(
    predict: Predictor,
    dataset: Any,
    kinds: Mapping[str, str],
    batch_size: int = 1,
    num_workers: int = 0,
    num_examples: int = 0,
    max_samples: int | None = None,
    writer: PredictionWriter | None = None,
) -> dict[str, "Evaluation"]:
    """
    Predict every sample of a data set once and count the predictions; call it on every process.

    Args:
        dataset: Samples by index or one after the other, with `name`, `vocabulary`, `ignore_index`: a
            `SegmentationDataset`, `HubDataset` or `SampleStream`.
        kinds: What the predictor is asked for, name -> the task that it is counted under.
        batch_size, num_workers, num_examples, max_samples: As for `evaluate_data_sets`.
        writer: Gets every prediction, too.

    Returns:
        Counts by name of the kind, summed over all processes.

    Raises:
        ValueError: on a sample or prediction that cannot be counted; the message names the picture.
    """
    counters = {name: DataSetCounter(dataset, task, num_examples) for name, task in kinds.items()}
    start, num_batches, samples = time.perf_counter(), 0, []
    for samples in _batches(dataset, batch_size, num_workers, max_samples):
        num_batches += 1
        predictions = predict(samples, dataset.vocabulary, kinds)
        for sample, prediction in zip(samples, predictions, strict=True):
            for name, counter in counters.items():
                counter.add(sample, prediction[name])
                if writer:
                    writer.add(sample, prediction[name], counter.task)
    for _ in range(_largest_over_processes(num_batches) - num_batches):
        if samples:  # not counted: a sharded model needs every process in every pass
            predict(samples, dataset.vocabulary, kinds)
    if writer:
        writer.finish()
    return {name: counter.merged(time.perf_counter() - start) for name, counter in counters.items()}


class DataSetCounter:
    """Counts of one data set under one task on this process."""

    def __init__(self, dataset: Any, task: str, num_examples: int = 0):
        self.task, self.num_examples = task, num_examples
        self.vocabulary, self.ignore_index = dataset.vocabulary, dataset.ignore_index
        self.evaluation = Evaluation(dataset.name, task, self.vocabulary, empty_counts(self.vocabulary, task))

    def add(self, sample: Sample, prediction: Any) -> None:
        """
        Count one prediction.

        Raises:
            ValueError: if it does not fit the sample; the message names the picture.
        """
        counts = sample_counts(sample, prediction, self.vocabulary, self.task, self.ignore_index)
        self.evaluation.counts += counts
        self.evaluation.num_images += 1
        if self.num_examples:
            self._keep_if_extreme(sample, prediction, counts)

    def merged(self, seconds: float) -> Evaluation:
        """Sum of all processes, on every process; collective."""
        examples = self.evaluation.examples
        if process_state().num_processes > 1:
            examples = gather_object(examples)
        return Evaluation(
            self.evaluation.data_set,
            self.task,
            self.vocabulary,
            _sum_over_processes(self.evaluation.counts),
            int(_sum_over_processes(np.array([self.evaluation.num_images]))[0]),
            seconds,
            _extremes(examples, self.num_examples),
        )

    def _keep_if_extreme(self, sample: Sample, prediction: Any, counts: np.ndarray) -> None:
        figures = figures_of(counts, self.vocabulary, self.task)
        score = figures["mean_iou_present" if self.task == "semantic" else "pq"]
        kept = self.evaluation.examples
        if np.isnan(score):
            return
        num = self.num_examples
        if len(kept) < 2 * num or score > kept[num - 1].score or score < kept[num].score:
            example = _example(score, sample, prediction, self.task, self.ignore_index)
            self.evaluation.examples = _extremes([*kept, example], num)


def sample_counts(
    sample: Sample, prediction: Any, vocabulary: VocabularyFile, task: str, ignore_index: int
) -> np.ndarray:
    """Counts of one picture: (K+1, K+1) for semantic, (K, 4) for panoptic. Raises ValueError, naming the picture."""
    num_labels, name = vocabulary.num_labels, sample["name"]
    if task == "semantic":
        return confusion_matrix(prediction, semantic_labels(sample, ignore_index), num_labels, ignore_index, name)
    truth = sample["segmentation_map"], sample["segments_info"]
    return panoptic_counts(prediction["segmentation"], prediction["segments_info"], *truth, num_labels, name)


def figures_of(counts: np.ndarray, vocabulary: VocabularyFile, task: str) -> dict[str, Any]:
    """Figures of summed counts, as the Trainer and the `evaluate` modules compute them."""
    if task == "semantic":
        return semantic_figures(counts, vocabulary.seen)
    return panoptic_figures(counts, vocabulary.stuff or ())


def empty_counts(vocabulary: VocabularyFile, task: str) -> np.ndarray:
    if task == "semantic":
        return np.zeros((vocabulary.num_labels + 1, vocabulary.num_labels + 1), dtype=np.int64)
    return np.zeros((vocabulary.num_labels, 4))


def scalar_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Without the arrays by class."""
    return {name: value for name, value in figures.items() if not isinstance(value, np.ndarray)}


def _batches(dataset: Any, batch_size: int, num_workers: int, max_samples: int | None) -> Iterator[list[Sample]]:
    """Batches of this process's samples: every n-th one, whatever the number of processes."""
    state = process_state()
    rank, world = state.process_index, state.num_processes
    total = None
    if isinstance(dataset, SampleStream):
        samples = islice(dataset, rank, max_samples, world)
    elif hasattr(dataset, "samples"):  # of the Hub, perhaps a stream: it knows which rows need not be decoded
        samples = dataset.samples(rank, world, max_samples)
    else:
        own = range(rank, min(len(dataset), max_samples or len(dataset)), world)
        total = len(own)
        samples = DataLoader(Subset(dataset, own), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)
    progress = tqdm(samples, total=total, desc=dataset.name, unit="image", disable=not state.is_main_process)
    samples = iter(progress)
    while batch := list(islice(samples, batch_size)):
        yield batch


def _sum_over_processes(counts: np.ndarray) -> np.ndarray:
    state = process_state()
    if state.num_processes == 1:
        return counts
    return reduce(torch.from_numpy(counts).to(state.device), "sum").cpu().numpy()


def _largest_over_processes(number: int) -> int:
    return max(gather_object([number])) if process_state().num_processes > 1 else number


def _as_it_is(sample: Sample) -> Sample:
    return sample


def _check_tasks(dataset: Any, tasks: Sequence[str]) -> None:
    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise ValueError(f"`tasks` holds {sorted(unknown)}; there are {', '.join(TASKS)}.")
    if "panoptic" in tasks and dataset.task != "panoptic":
        raise ValueError(f"{dataset.name} has label maps without segments; evaluate it with the task semantic.")


def _require_finite(outputs: Any, samples: list[Sample]) -> None:
    for name in ("class_queries_logits", "masks_queries_logits"):
        is_finite = torch.isfinite(outputs[name]).flatten(1).all(dim=1).tolist()
        for sample, finite in zip(samples, is_finite):
            if not finite:
                raise ValueError(f"{sample['name']}: the model's `{name}` hold NaN or infinite values.")


def _first_of_equal(classes: Sequence[Sequence[str]]) -> list[int]:
    """Indices of the classes whose set of names no earlier class has."""
    first: dict[frozenset[str], int] = {}
    for index, names in enumerate(classes):
        first.setdefault(class_key(names), index)
    return sorted(first.values())


def _extremes(examples: list[Example], number: int) -> list[Example]:
    """The `number` best and `number` worst, best first."""
    ordered = sorted(examples, key=lambda example: (-example.score, example.name))
    return ordered if len(ordered) <= 2 * number else ordered[:number] + ordered[-number:]


def _example(score: float, sample: Sample, prediction: Any, task: str, ignore_index: int, side: int = 320) -> Example:
    """Small copies: every `step`-th pixel of picture and label maps."""
    truth = semantic_labels(sample, ignore_index) if task == "semantic" else sample["segmentation_map"]
    predicted = prediction if task == "semantic" else prediction["segmentation"]
    step = max(1, -(-max(truth.shape) // side))
    maps = (np.asarray(values)[::step, ::step].astype(np.int64) for values in (truth, predicted))
    return Example(float(score), sample["name"], np.asarray(sample["image"])[::step, ::step], *maps)
