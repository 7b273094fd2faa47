"""The report of a fine-tuning as one HTML page: data, training, before and after, other words, what came out."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from maftplus.pictures.report import Report
from maftplus.train.evaluation.evaluate import scalar_figures
from maftplus.train.evaluation.pages import CLASS_FIGURE, CLASS_HEADING, FIGURE, add_mistakes, has_truth
from maftplus.train.evaluation.reports import COLUMNS as FIGURES
from maftplus.train.finetuning.survey import COLUMNS

if TYPE_CHECKING:
    from maftplus.train.finetuning.finetune import Story

NO_TRUTH = (
    "The held-out pictures have no truth under other words. Where the base model's own answers stand for it, a change "
    "need not be a loss: it may have taken new things for old ones."
)
HELD_OUT = "On the held-out pictures"


def write_page(story: "Story", path: Path) -> None:
    """Raises OSError if the file cannot be written."""
    report = Report("Fine-tuning", story.options.command())
    report.add_facts("Data", story.survey.facts)
    report.add_text("Notes", *story.form.notes)
    report.add_text("Suspicious", *story.survey.warnings)
    report.add_table("Classes in the data", COLUMNS, story.survey.rows)
    report.add_facts("Training", _facts(story))
    _add_curves(report, story)
    _add_changes(report, story)
    rows = [[one.what, *one.figures] for one in story.kept]
    report.add_table("Other words", ["", "before", "after"], rows, NO_TRUTH)
    add_mistakes(report, story.after, "After")
    report.write(path)


def _facts(story: "Story") -> dict[str, str]:
    stopped = story.num_steps < story.plan.max_steps
    share = story.num_trained / max(story.num_parameters, 1)
    return {
        "model": f"{story.options.model}, {story.options.recipe}",
        "trained parameters": f"{story.num_trained:,} of {story.num_parameters:,} ({share:.1%})",
        "steps": f"{story.num_steps} of {story.plan.max_steps}" + (", stopped early" if stopped else ""),
        "kept": f"the state after step {story.best_step}, the best on the held-out pictures",
        "CLIP's weight": f"{story.mixture} for trained classes (`ensemble_alpha`), the best on the held-out pictures",
        "time": f"{story.seconds / 60:.1f} minutes (estimated {story.plan.seconds / 60:.1f})",
        "largest memory": f"{story.peak_bytes / 1e9:.2f} GB",
        "measured": f"{story.after.num_images} held-out pictures; {story.form.split}",
    }


def _add_curves(report: Report, story: "Story") -> None:
    rows = [row for row in story.history if "loss" in row]
    names = sorted({name for row in rows for name in row if name.startswith("loss") and not name[-1].isdigit()})
    curves = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    report.add_curves("Losses on the training pictures", curves, "Weighted, by step.")
    figure = FIGURE[story.after.task]
    points = [(row["step"], 100 * row[f"eval_{figure}"]) for row in story.history if f"eval_{figure}" in row]
    report.add_curves(HELD_OUT, {figure: points}, f"In percent, by step, on {story.num_watched} pictures.")


def _add_changes(report: Report, story: "Story") -> None:
    """The figures of all classes together, then class by class, before and after."""
    both = {"before": story.before, "after": story.after}
    measured = {name: one for name, one in both.items() if one is not None}
    task, columns = story.after.task, FIGURES[story.after.task]
    figures = {name: scalar_figures(one.figures) for name, one in measured.items()}
    shown = [key for key in columns if not math.isnan(figures["after"].get(key, math.nan))]
    rows = [[name, *(f"{100 * values[key]:.1f}" for key in shown)] for name, values in figures.items()]
    report.add_table(
        f"{HELD_OUT}, before and after",
        ["", *(columns[key] for key in shown)],
        rows,
        " ".join(["In percent.", *story.caveats]),
    )
    by_class, is_held = [one.figures[CLASS_FIGURE[task]] for one in measured.values()], has_truth(story.after)
    rows = [
        [name, *(f"{100 * values[index]:.1f}" if is_held[index] else "-" for values in by_class)]
        for index, name in enumerate(story.after.vocabulary.names)
    ]
    heads = [f"{CLASS_HEADING[task]} {name}" for name in measured]
    report.add_table("Classes", ["class", *heads], rows, "In percent; - where no held-out picture has the class.")
