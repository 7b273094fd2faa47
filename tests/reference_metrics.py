"""Recorded metrics against ours: confusion matrices exactly, every figure within 1e-9, PQ tables of panopticapi."""

import json
from pathlib import Path

import numpy as np
from reference_tools import Comparison, compare, compare_equal, load_arrays

from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts, panoptic_figures, semantic_figures

TOLERANCE = 1e-9
# Recorded name -> ours. The recorded figures are percentages.
SEMANTIC = {
    "mIoU": "mean_iou",
    "fwIoU": "frequency_weighted_iou",
    "mACC": "mean_accuracy",
    "pACC": "overall_accuracy",
    "mIoU-base": "seen_mean_iou",
    "pAcc-base": "seen_overall_accuracy",
    "mIoU-unbase": "unseen_mean_iou",
    "pAcc-unbase": "unseen_overall_accuracy",
    "hIoU-base": "harmonic_mean_iou",
}


def check_mean_iou(path: Path) -> list[Comparison]:
    """Confusion matrix and the figures of the three recorded evaluators."""
    arrays, recorded = load_arrays(path), json.loads(path.with_suffix(".json").read_text())
    num_labels = int(arrays["num_classes"])
    matrix = np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64)
    for prediction, reference in zip(arrays["pred"], arrays["gt"]):
        confusion_matrix(prediction, reference, num_labels, 255, out=matrix)
    unseen = set(map(int, recorded.get("unseen_ids", arrays["unseen_ids"])))
    seen = [label for label in range(num_labels) if label not in unseen]
    ours = _as_recorded(semantic_figures(matrix, seen), seen, sorted(unseen))
    checks = [compare_equal("confusion", matrix.tolist(), arrays["conf_matrix_rows_pred_cols_gt"].tolist())]
    for evaluator in ("semantic_evaluator", "generalized_evaluation_set", "generalized_val_extra_classes"):
        table = recorded[evaluator]
        checks += [_compare_figures(evaluator, [ours[name] for name in table], list(table.values()))]
    return checks


def check_panoptic_quality(path: Path) -> list[Comparison]:
    """Per-category counts and the PQ table of panopticapi; and, where recorded, the truth against itself."""
    arrays, recorded = load_arrays(path), json.loads(path.with_suffix(".json").read_text())
    index = {category["id"]: i for i, category in enumerate(recorded["categories"])}
    stuff = [i for i, category in enumerate(recorded["categories"]) if not category["isthing"]]
    counts, perfect = (_count_all(arrays, recorded, index, source) for source in ("pred", "gt"))
    names = list(recorded["counts_per_category"])
    table = [[recorded["counts_per_category"][name][key] for key in ("iou", "tp", "fp", "fn")] for name in names]
    rows = counts[[index[int(name)] for name in names]]
    rest = np.delete(counts, [index[int(name)] for name in names], axis=0)
    checks = [
        compare("counts", rows, np.array(table, dtype=float), TOLERANCE),
        compare("unlisted", rest, rest * 0, 0.0),
    ]
    checks += _compare_tables("pq", panoptic_figures(counts, stuff), recorded["pq"], index)
    if "pq_of_gt_against_itself" in recorded:
        checks += _compare_tables("self", panoptic_figures(perfect, stuff), recorded["pq_of_gt_against_itself"], index)
    return checks


def _as_recorded(figures: dict, seen: list[int], unseen: list[int]) -> dict[str, float]:
    """Our figures under the recorded names, in percent."""
    ours = {name: figures[key] for name, key in SEMANTIC.items()}
    ours.update({f"IoU-class{i}": value for i, value in enumerate(figures["per_category_iou"])})
    ours.update({f"ACC-class{i}": value for i, value in enumerate(figures["per_category_accuracy"])})
    # This evaluator averages over the declared numbers of classes, so one absent class makes it NaN.
    a, b = (figures["per_category_iou"][ids].mean() for ids in (seen, unseen))
    ours.update({"seen_IoU": a, "unseen_IoU": b, "harmonic mean": 2 * a * b / (a + b)})
    return {name: 100 * value for name, value in ours.items()}


def _compare_figures(name: str, ours: list[float], recorded: list[float | None]) -> Comparison:
    """Null is NaN and must be NaN here too."""
    ours, recorded = np.array(ours, dtype=float), np.array(recorded, dtype=float)
    if not np.array_equal(np.isnan(ours), np.isnan(recorded)):
        return Comparison(f"{name} (undefined figures differ)", float("inf"), TOLERANCE)
    return compare(name, np.nan_to_num(ours), np.nan_to_num(recorded), TOLERANCE)


def _count_all(arrays: dict, recorded: dict, index: dict[int, int], source: str) -> np.ndarray:
    counts = np.zeros((len(index), 4))
    truths = recorded["gt_segments_info"]
    predictions = truths if source == "gt" else recorded["pred_segments_info"]
    for i, (truth, predicted) in enumerate(zip(truths, predictions)):
        maps = (
            arrays[f"{source}_ids_{i}"],
            _relabelled(predicted, index),
            arrays[f"gt_ids_{i}"],
            _relabelled(truth, index),
        )
        counts += panoptic_counts(*maps, num_labels=len(index), name=f"image {i}")
    return counts


def _relabelled(segments: list[dict], index: dict[int, int]) -> list[dict]:
    return [{**segment, "category_id": index[segment["category_id"]]} for segment in segments]


def _compare_tables(name: str, figures: dict, recorded: dict, index: dict[int, int]) -> list[Comparison]:
    checks = []
    for group, ending in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        ours = [figures[key + ending] for key in ("pq", "sq", "rq", "num_categories")]
        checks.append(
            compare(f"{name} {group}", ours, [recorded[group][key] for key in ("pq", "sq", "rq", "n")], TOLERANCE)
        )
    per_class = recorded.get("per_class", {})
    for key in ("pq", "sq", "rq") if per_class else ():
        ours = [figures[f"per_category_{key}"][index[int(category)]] for category in per_class]
        checks.append(compare(f"{name} per class {key}", ours, [row[key] for row in per_class.values()], TOLERANCE))
    return checks
