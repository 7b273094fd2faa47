"""Evaluation inside the Trainer: every sample becomes a row of counts, and the figures come from the sum of the rows.

The Trainer gathers exactly one row a sample over any number of processes; pictures and logits never travel. Counting
and figures are those of `maftplus.train.evaluation.counting`, so they equal the `evaluate` modules'.
Shapes: B samples, K classes; a row holds (K+1)^2 numbers of a confusion matrix, or (K, 4) of panoptic quality.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from maftplus.classifier_maftplus import class_log_probabilities
from maftplus.train.data.registry import semantic_labels
from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts, panoptic_figures, semantic_figures

SEMANTIC_KEYS = ("mean_iou", "mean_iou_present", "frequency_weighted_iou", "mean_accuracy", "overall_accuracy")
SEEN_KEYS = ("seen_mean_iou", "unseen_mean_iou", "harmonic_mean_iou")
PANOPTIC_KEYS = tuple(f"{key}{ending}" for ending in ("", "_things", "_stuff") for key in ("pq", "sq", "rq"))


@dataclass
class EvaluationCollator:
    """Samples of `maftplus.train.data.registry` as a batch: prepared pictures, and the annotations as `references`."""

    image_processor: Any

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.image_processor(images=[sample["image"] for sample in samples], return_tensors="pt")
        references = [{key: value for key, value in sample.items() if key != "image"} for sample in samples]
        return {**batch, "references": references}


@dataclass
class CountedEvaluation:
    """
    Counts of a batch (`rows`), their sum (calling it, as a Trainer's `compute_metrics`), and the `figures` of the sum.

    Args:
        image_processor: Post-processes the outputs.
        num_labels: K.
        task: `"semantic"` or `"panoptic"` (which also counts mIoU).
        ignore_index: Value of unlabelled pixels in semantic maps.
        stuff: Classes that are stuff.
        seen: Classes of training, for seen and unseen figures.
        do_compare_scores: Beside the final class scores (their ensemble, as the configuration weighs it) also count by
            CLIP's alone (`clip_...`) and by the segmenter's alone (`in_vocabulary_...`).
    """

    image_processor: Any
    num_labels: int
    task: str = "semantic"
    ignore_index: int = 255
    stuff: Sequence[int] = ()
    seen: Sequence[int] | None = None
    do_compare_scores: bool = False
    _sum: np.ndarray | None = field(default=None, init=False, repr=False)
    _num_samples: int = field(default=0, init=False, repr=False)

    def rows(self, outputs: Any, references: Sequence[dict[str, Any]]) -> Tensor:
        """(B, R) float64: confusion matrices by each kind of scores, then panoptic counts likewise."""
        kinds = [outputs, *_with_parts_of_the_scores(outputs)] if self.do_compare_scores else [outputs]
        pieces = [self._matrices(kind, references) for kind in kinds]
        if self.task == "panoptic":
            pieces += [self._panoptic_counts(kind, references) for kind in kinds]
        rows = np.concatenate([piece.reshape(len(references), -1) for piece in pieces], axis=1)
        return torch.from_numpy(rows.astype(np.float64))

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Adds the rows of a batch; the trainer asks for the `figures` when the loop is over."""
        rows = np.asarray(torch.as_tensor(prediction.predictions).cpu())
        self._sum = rows.sum(0) if self._sum is None else self._sum + rows.sum(0)
        self._num_samples += len(rows)
        return {}

    def figures(self) -> dict[str, float]:
        """Every figure of what was added; counting then starts anew."""
        if self._sum is None:
            return {"num_images": 0}
        figures = {"num_images": self._num_samples, **self._figures(self._sum)}
        self._sum, self._num_samples = None, 0
        return figures

    def _matrices(self, outputs: Any, references: Sequence[dict[str, Any]]) -> np.ndarray:
        truths = [semantic_labels(reference, self.ignore_index) for reference in references]
        sizes = [truth.shape for truth in truths]
        maps = self.image_processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return np.stack(
            [
                confusion_matrix(found, truth, self.num_labels, self.ignore_index, reference["name"])
                for found, truth, reference in zip(maps, truths, references)
            ]
        )

    def _panoptic_counts(self, outputs: Any, references: Sequence[dict[str, Any]]) -> np.ndarray:
        sizes = [reference["segmentation_map"].shape for reference in references]
        found = self.image_processor.post_process_panoptic_segmentation(
            outputs, target_sizes=sizes, label_ids_to_fuse=set(self.stuff)
        )
        return np.stack(
            [
                panoptic_counts(
                    result["segmentation"],
                    result["segments_info"],
                    reference["segmentation_map"],
                    reference["segments_info"],
                    self.num_labels,
                    reference["name"],
                )
                for result, reference in zip(found, references)
            ]
        )

    def _figures(self, counts: np.ndarray) -> dict[str, float]:
        prefixes = ("", "clip_", "in_vocabulary_") if self.do_compare_scores else ("",)
        side, figures = self.num_labels + 1, {}
        matrices = counts[: side**2 * len(prefixes)].reshape(-1, side, side)
        keys = SEMANTIC_KEYS if self.seen is None else SEMANTIC_KEYS + SEEN_KEYS
        for prefix, matrix in zip(prefixes, matrices):
            found = semantic_figures(matrix, self.seen)
            figures.update({prefix + key: float(found[key]) for key in keys if key in found})
        if self.task == "panoptic":
            for prefix, table in zip(prefixes, counts[matrices.size :].reshape(-1, self.num_labels, 4)):
                found = panoptic_figures(table, self.stuff)
                figures.update({prefix + key: float(found[key]) for key in PANOPTIC_KEYS})
        return figures


def _with_parts_of_the_scores(outputs: Any) -> tuple[Any, Any]:
    """The outputs with CLIP's class scores alone in place of the final ones, and with the segmenter's alone."""
    by_clip, by_segmenter = copy.copy(outputs), copy.copy(outputs)
    clip_scores = outputs["out_vocab_logits"], outputs["void_probabilities"]
    by_clip["class_queries_logits"] = class_log_probabilities(*clip_scores)
    by_segmenter["class_queries_logits"] = outputs["in_vocab_logits"].log_softmax(-1)
    return by_clip, by_segmenter
