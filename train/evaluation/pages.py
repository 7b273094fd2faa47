"""An evaluation as parts of an HTML report: figures, classes, what is taken for what, the best and worst pictures.

report = Report("my_pets", "...")
add_evaluation(report, evaluation)
"""

import math

import numpy as np

from maftplus.pictures.report import Report
from maftplus.train.evaluation.evaluate import Evaluation
from maftplus.train.evaluation.reports import COLUMNS, FOOTNOTE, draw_example

FIGURE = {"semantic": "mean_iou", "panoptic": "pq"}  # by which an evaluation goes
CLASS_FIGURE = {"semantic": "per_category_iou", "panoptic": "per_category_pq"}
CLASS_HEADING = {"semantic": "IoU", "panoptic": "PQ"}
VOID = "(void)"


def add_evaluation(report: Report, evaluation: Evaluation, title: str = "") -> None:
    """
    Add what was measured on one data set under one task.

    Args:
        title: What the headings call it; default: the data set's name.
    """
    title = title or evaluation.data_set
    figures, columns = evaluation.figures, COLUMNS[evaluation.task]
    cells = {columns[name]: _percent(figures[name]) for name in columns if name in figures}
    note = FOOTNOTE if evaluation.task == "semantic" else ""
    report.add_table(
        f"{title}: figures in percent", ["pictures", *cells], [[evaluation.num_images, *cells.values()]], note
    )
    report.add_table(f"{title}: classes, worst first", class_columns(evaluation), class_rows(evaluation))
    add_mistakes(report, evaluation, title)


def add_mistakes(report: Report, evaluation: Evaluation, title: str) -> None:
    """Add what stands beside the figures: which classes are taken for which, the best and the worst pictures."""
    heading = CLASS_HEADING[evaluation.task]
    pixels = evaluation if evaluation.task == "semantic" else evaluation.pixels
    if pixels is not None:
        columns = ["truth", "taken for", "of the truth's pixels", "of all wrong pixels"]
        report.add_table(f"{title}: what is taken for what", columns, worst_pairs(pixels))
    pictures = [(f"{e.name}: {heading} {_percent(e.score)}", draw_example(e, evaluation)) for e in evaluation.examples]
    note = "Picture, truth, prediction; the best of all that were measured first, the worst last."
    report.add_pictures(f"{title}: best and worst pictures", pictures, note, is_wide=True)


def class_columns(evaluation: Evaluation) -> list[str]:
    """Headings of `class_rows`."""
    counted = ["pixels"] if evaluation.task == "semantic" else ["found", "false", "missed"]
    return ["class", CLASS_HEADING[evaluation.task], *counted]


def class_rows(evaluation: Evaluation) -> list[list[str]]:
    """A row a class that the data or, for PQ, a prediction holds: its figure in percent, its counts; worst first."""
    values = evaluation.figures[CLASS_FIGURE[evaluation.task]]
    if evaluation.task == "semantic":
        counts = evaluation.counts[:, :-1].sum(axis=0)[:, None]
    else:
        counts = evaluation.counts[:, 1:]
    is_met = ~np.isnan(values) & counts.any(axis=1)
    order = sorted(np.flatnonzero(is_met), key=lambda index: values[index])
    names = evaluation.vocabulary.names
    return [[names[index], _percent(values[index]), *(str(int(one)) for one in counts[index])] for index in order]


def has_truth(evaluation: Evaluation) -> np.ndarray:
    """(K,) bool: which classes the pictures hold, whatever was predicted."""
    counts = evaluation.counts
    return counts[:, :-1].any(axis=0) if evaluation.task == "semantic" else counts[:, [1, 3]].any(axis=1)


def worst_pairs(evaluation: Evaluation, number: int = 10) -> list[list[str]]:
    """The confusions that cost most pixels: truth, prediction, their share of the truth's and of all wrong pixels."""
    counts = evaluation.counts[:, :-1].astype(np.float64)  # by prediction, void last, and truth
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    names, total = [*evaluation.vocabulary.names, VOID], wrong.sum()
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:number]:
        predicted, truth = np.unravel_index(place, wrong.shape)
        if wrong[predicted, truth]:
            shares = wrong[predicted, truth] / counts[:, truth].sum(), wrong[predicted, truth] / total
            rows.append([names[truth], names[predicted], *(f"{_percent(share)} %" for share in shares)])
    return rows


def figure_of(evaluation: Evaluation) -> float:
    """The one figure by which an evaluation goes: mIoU or PQ, a fraction of 1."""
    return float(evaluation.figures[FIGURE[evaluation.task]])


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


__all__ = [
    "FIGURE",
    "add_evaluation",
    "add_mistakes",
    "class_columns",
    "class_rows",
    "figure_of",
    "has_truth",
    "worst_pairs",
]
