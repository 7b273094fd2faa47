"""Evaluation of a model on benchmarks: one pass over each, exact sample counts on any number of processes.

    predict = ModelPredictor(model, processor)
    evaluations = evaluate_benchmarks(predict, [load_benchmark("ade20k_150", root)])     # on every process
    write_report(evaluations, "runs/eval")                                               # reports.py

Every process takes every n-th sample of a data set and reduces it to counts (`counting.py`); only counts are
exchanged, so no sample is padded, repeated or left out. Class embeddings are computed once for each vocabulary.
Shapes: B images of a batch, K classes, H x W the picture.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from torch.utils.data import DataLoader, IterableDataset, Subset
from tqdm import tqdm
from transformers.utils import logging

from maftplus.train.data.registry import Sample, semantic_labels
from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts, panoptic_figures, semantic_figures
from maftplus.train.evaluation.predictions import PredictionWriter
from maftplus.train.processes import process_state
from maftplus.vocabularies.files import VocabularyFile
from maftplus.words_maftplus import class_key

logger = logging.get_logger(__name__)

TASKS = ("semantic", "panoptic")
Prediction = dict[str, Any]  # by task: a label map (H, W), or `segmentation` (H, W) and `segments_info`


class Predictor(Protocol):
    """What is evaluated: samples in, one prediction a sample out, in the size of the sample's own map."""

    def __call__(
        self, samples: list[Sample], vocabulary: VocabularyFile, tasks: Sequence[str]
    ) -> list[Prediction]: ...


@dataclass
class Example:
    """A picture among the best or worst of a benchmark: small copies of picture, truth and prediction."""

    score: float
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@dataclass
class Evaluation:
    """
    One benchmark under one task: `counts` summed over all processes, and what the report needs beside them.

    `counts` is (K+1, K+1) for semantic, (K, 4) for panoptic; `examples` the best and worst pictures, best first.
    """

    benchmark: str
    task: str
    vocabulary: VocabularyFile
    counts: np.ndarray
    num_images: int = 0
    seconds: float = 0.0
    examples: list[Example] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """Every figure of the counts; see `semantic_figures` and `panoptic_figures`."""
        return figures_of(self.counts, self.vocabulary, self.task)


class ModelPredictor:
    """
    A `MaftPlusForUniversalSegmentation` and its processor as a `Predictor`.

    Args:
        model, processor: As loaded; the model stays on its device and is put into evaluation mode.
        post_processing: Arguments of panoptic post-processing (`threshold`, `overlap_mask_area_threshold`, ...).
    """

    def __init__(self, model: Any, processor: Any, **post_processing: Any):
        self.model, self.processor, self.post_processing = model.eval(), processor, post_processing
        self._vocabularies: dict[tuple, dict[str, torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, samples: list[Sample], vocabulary: VocabularyFile, tasks: Sequence[str]) -> list[Prediction]:
        inputs = self.processor(images=[sample["image"] for sample in samples], return_tensors="pt")
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        outputs = self.model(**inputs, **self.encode(vocabulary))
        _require_finite(outputs, samples)
        sizes = [tuple(sample["segmentation_map"].shape) for sample in samples]
        results = {task: self._post_process(outputs, sizes, vocabulary, task) for task in tasks}
        return [dict(zip(results, values)) for values in zip(*results.values())]

    def encode(self, vocabulary: VocabularyFile) -> dict[str, torch.Tensor]:
        """
        Class embeddings of a vocabulary, computed once. Of classes with exactly the same names the first one gets the
        prompts; the others are never predicted.
        """
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


def evaluate_benchmarks(
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
        writer = (
            PredictionWriter(Path(save_predictions) / dataset.name, dataset.vocabulary) if save_predictions else None
        )
        counted = [BenchmarkCounter(dataset, task, num_examples) for task in own_tasks]
        start = time.perf_counter()
        for samples in _batches(dataset, batch_size, num_workers, max_samples):
            _count_batch(predict, samples, dataset.vocabulary, counted, writer)
        if writer:
            writer.finish()
        evaluations += [counter.merged(time.perf_counter() - start) for counter in counted]
    return evaluations


class BenchmarkCounter:
    """Counts of one data set under one task on this process; the Trainer may use it for its own loop."""

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
            self.evaluation.benchmark,
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


def _count_batch(predict, samples, vocabulary, counters: list[BenchmarkCounter], writer) -> None:
    tasks = [counter.task for counter in counters]
    predictions = predict(samples, vocabulary, tasks)
    for sample, prediction in zip(samples, predictions, strict=True):
        for counter in counters:
            counter.add(sample, prediction[counter.task])
            if writer:
                writer.add(sample, prediction[counter.task], counter.task)


def _batches(dataset: Any, batch_size: int, num_workers: int, max_samples: int | None) -> Iterator[list[Sample]]:
    """Batches of this process's samples: every n-th one, whatever the number of processes."""
    state = process_state()
    rank, world = state.process_index, state.num_processes
    if isinstance(dataset, IterableDataset):
        samples = dataset.samples(rank, world, max_samples)
        total = None
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
