"""Panoptic quality as an `evaluate` module, with the void and crowd rules of the COCO panoptic API, streaming.

    metric = evaluate.load("train/metrics/panoptic_quality", num_labels=133, stuff_ids=range(80, 133))
    metric.add_batch(predictions=processor.post_process_panoptic_segmentation(...), references=[...])
    metric.compute()["pq"]

Source: arXiv 1801.00868. Shapes: K classes; id maps of any size, one an image. Counts: `train/evaluation/counting.py`.
"""

import datasets
import evaluate
import numpy as np

from maftplus.train.evaluation.counting import StreamedCounts, panoptic_counts, panoptic_figures

DESCRIPTION = "PQ, SQ and RQ over all classes, things and stuff."
INPUTS = """
Args:
    predictions: list of dictionaries with `segmentation` (H, W), segment ids, 0 void, and `segments_info`, a list with
        `id` and `label_id` (or `category_id`), 0..num_labels - 1.
    references: the same for the truth; `iscrowd` marks crowd segments.
Returns:
    pq, sq, rq, num_categories, the same with the endings _things and _stuff, and per_category_pq, _sq, _rq. Fractions
    of 1; an average over no category is NaN.
"""


class PanopticQuality(StreamedCounts, evaluate.Metric):
    """Counts pairs of id maps into a (K, 4) table: sum of IoU, true positives, false positives, false negatives."""

    def __init__(self, *args, num_labels=None, stuff_ids=(), **kwargs):
        if num_labels is None:
            raise ValueError("Give `num_labels`: evaluate.load(..., num_labels=133).")
        self.num_labels, self.stuff_ids = num_labels, list(stuff_ids)
        self.counts = np.zeros((num_labels, 4), dtype=np.float64)
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
        maps = (
            prediction["segmentation"],
            prediction["segments_info"],
            reference["segmentation"],
            reference["segments_info"],
        )
        self.counts += panoptic_counts(*maps, self.num_labels, name)

    def _compute(self, predictions, references):
        figures = panoptic_figures(self.merged(predictions), self.stuff_ids)
        return {**figures, "num_images": int(np.sum(references))}
