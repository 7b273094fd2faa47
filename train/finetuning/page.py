"""The report of a fine-tuning as one HTML page: data, training, before and after, what is confused, pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maftplus.pictures.report import Report
from maftplus.train.evaluation.evaluate import Evaluation, scalar_figures
from maftplus.train.evaluation.reports import COLUMNS as FIGURES
from maftplus.train.evaluation.reports import draw_example
from maftplus.train.finetuning.survey import COLUMNS

if TYPE_CHECKING:
    from maftplus.train.finetuning.finetune import Story

NUM_PAIRS = 15
FIGURE_OF_CLASS = {"semantic": "per_category_iou", "panoptic": "per_category_pq"}
SHORT = {"semantic": "IoU", "panoptic": "PQ"}
NO_TRUTH = (
    "The held-out pictures have no truth under other words. Where the base model's own answers stand for it, a change "
    "need not be a loss: it may have taken new things for old ones."
)


def write_page(story: "Story", path: Path) -> None:
    """Raises OSError if the file cannot be written."""
    options = story.options
    report = Report("Fine-tuning", options.command())
    report.add_facts("Data", story.survey.facts)
    report.add_text("Suspicious", *story.form.notes, *story.survey.warnings)
    report.add_table("Classes in the data", COLUMNS, story.survey.rows)
    report.add_facts("Training", _facts(story))
    _add_curves(report, story)
    _add_figures(report, story)
    _add_classes(report, story)
    if story.after.task == "semantic":
        rows = confused_pairs(story.after)
        report.add_table("Most confused", ["truth", "taken for", "share of the truth's pixels", "pixels"], rows)
    rows = [[one.what, *one.figures] for one in story.kept]
    report.add_table("Other words", ["", "before", "after"], rows, NO_TRUTH)
    _add_pictures(report, story.after)
    report.write(path)


def _facts(story: "Story") -> dict[str, str]:
    stopped = story.num_steps < story.plan.max_steps
    share = story.num_trained / max(story.num_parameters, 1)
    return {
        "model": f"{story.options.model}, {story.options.recipe}",
        "trained parameters": f"{story.num_trained:,} of {story.num_parameters:,} ({share:.1%})",
        "steps": f"{story.num_steps} of {story.plan.max_steps}" + (", stopped early" if stopped else ""),
        "kept": f"the state after step {story.best_step}, the best on the held-out pictures",
        "time": f"{story.seconds / 60:.1f} minutes (estimated {story.plan.seconds / 60:.1f})",
        "largest memory": f"{story.peak_bytes / 1e9:.2f} GB",
        "measured": f"{story.after.num_images} held-out pictures; {story.form.split}",
    }


def _add_curves(report: Report, story: "Story") -> None:
    rows = [row for row in story.history if "loss" in row]
    names = sorted({name for row in rows for name in row if name.startswith("loss") and not name[-1].isdigit()})
    curves = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    report.add_curves("Losses on the training pictures", curves, "Weighted, by step.")
    figure = {"semantic": "eval_mean_iou", "panoptic": "eval_pq"}[story.after.task]
    points = [(row["step"], 100 * row[figure]) for row in story.history if figure in row]
    report.add_curves("On the held-out pictures", {figure.removeprefix("eval_"): points}, "In percent, by step.")


def _add_figures(report: Report, story: "Story") -> None:
    columns = FIGURES[story.after.task]
    evaluations = {"before": story.before, "after": story.after}
    figures = {name: scalar_figures(one.figures) for name, one in evaluations.items() if one is not None}
    shown = [key for key in columns if key in figures["after"] and not np.isnan(figures["after"][key])]
    rows = [[name, *(f"{100 * values[key]:.1f}" for key in shown)] for name, values in figures.items()]
    report.add_table("Held-out pictures", ["", *(columns[key] for key in shown)], rows, "In percent.")


def _add_classes(report: Report, story: "Story") -> None:
    key, short = FIGURE_OF_CLASS[story.after.task], SHORT[story.after.task]
    evaluations = [one for one in (story.before, story.after) if one is not None]
    columns = [one.figures[key] for one in evaluations]
    rows = [
        [name, *("-" if np.isnan(values[index]) else f"{100 * values[index]:.1f}" for values in columns)]
        for index, name in enumerate(story.after.vocabulary.names)
    ]
    heads = [f"{short} before", f"{short} after"][-len(columns) :]
    report.add_table("Classes", ["class", *heads], rows, "In percent; - where no held-out picture has the class.")


def confused_pairs(evaluation: Evaluation, number: int = NUM_PAIRS) -> list[list[str]]:
    """The pairs of classes with the largest share of one's pixels taken for the other: rows of a table."""
    names = [*evaluation.vocabulary.names, "(none)"]
    pixels = evaluation.counts[:, :-1].astype(np.float64)  # (K+1 predicted, K true)
    shares = pixels / np.maximum(pixels.sum(axis=0), 1)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:number]
    places = [np.unravel_index(index, shares.shape) for index in order]
    return [
        [names[true], names[predicted], f"{shares[predicted, true]:.1%}", f"{int(pixels[predicted, true]):,}"]
        for predicted, true in places
        if shares[predicted, true] > 0
    ]


def _add_pictures(report: Report, evaluation: Evaluation) -> None:
    half = (len(evaluation.examples) + 1) // 2
    for heading, examples in (("Best", evaluation.examples[:half]), ("Worst", evaluation.examples[half:][::-1])):
        pictures = [(f"{one.name}: {100 * one.score:.1f}", draw_example(one, evaluation)) for one in examples]
        report.add_pictures(f"{heading} pictures", pictures, "Picture, truth, prediction.")
