"""Mean intersection over union as an `evaluate` module: one confusion matrix, streaming, for any vocabulary.

    metric = evaluate.load("train/metrics/mean_iou", num_labels=150, ignore_index=255)
    metric.add_batch(predictions=[maps of (H, W)], references=[maps of (H, W)])
    metric.compute()["mean_iou"]

Shapes: K classes; maps of any size, one an image. The counting is `maftplus.train.evaluation.counting`.
"""

import datasets
import evaluate
import numpy as np

from maftplus.train.evaluation.counting import StreamedCounts, check_ignore_index, confusion_matrix, semantic_figures

DESCRIPTION = (
    "Mean IoU in both conventions, accuracies, and seen, unseen and harmonic means, from one confusion matrix."
)
INPUTS = """
Args:
    predictions: list of label maps (H, W) of any integer type, 0..num_labels - 1.
    references: list of label maps of the same sizes; `ignore_index` marks unlabelled pixels.
Returns:
    mean_iou (a class that is only predicted counts as 0), mean_iou_present (classes of the truth only),
    frequency_weighted_iou, mean_accuracy, overall_accuracy, per_category_iou, per_category_accuracy; with `seen` also
    seen_, unseen_ and harmonic_ figures. Fractions of 1; undefined figures are NaN.
"""


class MeanIou(StreamedCounts, evaluate.Metric):
    """Counts label maps into one (K+1, K+1) confusion matrix; `seen` are the ids of the classes of training."""

    def __init__(self, *args, num_labels=None, ignore_index=255, seen=None, **kwargs):
        if num_labels is None:
            raise ValueError("Give `num_labels`: evaluate.load(..., num_labels=150).")
        check_ignore_index(num_labels, ignore_index)
        self.num_labels, self.ignore_index, self.seen = num_labels, ignore_index, seen
        self.counts = np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64, order="F")  # `confusion_matrix`: why
        super().__init__(*args, **kwargs)

    def _info(self):
        features = {"predictions": datasets.Value("binary"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _count(self, prediction, reference, name):
        confusion_matrix(prediction, reference, self.num_labels, self.ignore_index, name, out=self.counts)

    def _compute(self, predictions, references):
        return {**semantic_figures(self.merged(predictions), self.seen), "num_images": int(np.sum(references))}
