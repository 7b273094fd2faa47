"""What an evaluation leaves behind: table, `results.json`, a CSV by class, pictures of extremes, model-card entries.

`results.json` holds fractions of 1 (undefined figures are null); tables and cards show percentages.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maftplus.pictures.files import write_atomically
from maftplus.pictures.overlay import segment_colour
from maftplus.train.evaluation.evaluate import Evaluation, Example, scalar_figures
from maftplus.train.processes import process_state
from maftplus.train.publish import fenced

# Figure -> heading, in the order of the table.
COLUMNS = {
    "semantic": {
        "mean_iou": "mIoU",
        "mean_iou_present": "mIoU*",
        "frequency_weighted_iou": "fwIoU",
        "mean_accuracy": "mAcc",
        "overall_accuracy": "pAcc",
        "seen_mean_iou": "seen",
        "unseen_mean_iou": "unseen",
        "harmonic_mean_iou": "harmonic",
    },
    "panoptic": {
        "pq": "PQ",
        "sq": "SQ",
        "rq": "RQ",
        "pq_things": "PQ things",
        "sq_things": "SQ things",
        "rq_things": "RQ things",
        "pq_stuff": "PQ stuff",
        "sq_stuff": "SQ stuff",
        "rq_stuff": "RQ stuff",
    },
}
FOOTNOTE = (
    "mIoU counts a class that is only predicted as 0 (as published results do); "
    "mIoU* averages over the classes of the truth."
)
LISTED_CLASSES = 5
VOID = -1  # shown as the picture itself


def write_report(evaluations: Sequence[Evaluation], folder: str | Path, **facts: Any) -> list[Path]:
    """
    Write `results.json`, `model_card_lines.md` and for each data set and task `*_per_class.csv`, `*_examples.png`; on
    the main process only.

    Args:
        facts: What else `results.json` should say (model, command, versions); no secrets.

    Returns:
        The files written.
    """
    if not process_state().is_main_process:
        return []
    results = {**facts, "data_sets": [result_row(evaluation) for evaluation in evaluations]}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "results.json", folder / "model_card_lines.md"]
    write_atomically(written[0], json.dumps(results, indent=2))
    write_atomically(written[1], "\n".join(card_lines(evaluations, facts.get("command", ""))) + "\n")
    for evaluation in evaluations:
        stem = f"{evaluation.data_set}_{evaluation.task}"
        written.append(folder / f"{stem}_per_class.csv")
        write_per_class(evaluation, written[-1])
        if evaluation.examples:
            written.append(folder / f"{stem}_examples.png")
            draw_examples(evaluation).save(written[-1])
    return written


def result_row(evaluation: Evaluation) -> dict[str, Any]:
    """One data set as plain numbers, for JSON."""
    figures = scalar_figures(evaluation.figures)
    return {
        "data_set": evaluation.data_set,
        "task": evaluation.task,
        "num_images": evaluation.num_images,
        "num_classes": evaluation.vocabulary.num_labels,
        "vocabulary": evaluation.vocabulary.source,
        "seconds": round(evaluation.seconds, 3),
        "figures": {name: None if math.isnan(value) else value for name, value in figures.items()},
    }


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """The figures in percent, a table for each task."""
    parts = []
    for task, columns in COLUMNS.items():
        chosen = [evaluation for evaluation in evaluations if evaluation.task == task]
        if chosen:
            shown = [name for name in columns if any(name in evaluation.figures for evaluation in chosen)]
            rows = [["data_set", "images", *(columns[name] for name in shown)]]
            rows += [[e.data_set, str(e.num_images), *_cells(e.figures, shown)] for e in chosen]
            parts.append(_aligned(rows) + (f"\n{FOOTNOTE}" if task == "semantic" else ""))
    return "\n\n".join(parts)


def write_per_class(evaluation: Evaluation, path: Path) -> None:
    """One line a class: its name, group, figures as fractions (empty where undefined) and counts."""
    vocabulary, figures = evaluation.vocabulary, evaluation.figures
    names = [name for name, value in figures.items() if isinstance(value, np.ndarray)]
    counts = _class_counts(evaluation)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "name", "kind", "split", *(name.removeprefix("per_category_") for name in names), *counts]
        )
        for index, name in enumerate(vocabulary.names):
            values = ["" if np.isnan(figures[key][index]) else f"{figures[key][index]:.6f}" for key in names]
            kind = "" if vocabulary.stuff is None else "stuff" if index in vocabulary.stuff else "thing"
            split = "" if vocabulary.unseen is None else "unseen" if index in vocabulary.unseen else "seen"
            writer.writerow(
                [index, as_text_cell(name), kind, split, *values, *(int(column[index]) for column in counts.values())]
            )


def as_text_cell(text: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def card_lines(evaluations: Sequence[Evaluation], command: str) -> list[str]:
    """Markdown for a model card: the table and the command that measured it."""
    return [*fenced(format_table(evaluations)).splitlines(), "", "Measured with", "", *fenced(command).splitlines()]


def draw_examples(evaluation: Evaluation) -> Image.Image:
    """A row for each of the best and worst pictures, best first: picture, truth, prediction."""
    rows = [draw_example(example, evaluation) for example in evaluation.examples]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def draw_example(example: Example, evaluation: Evaluation, gap: int = 6, caption_height: int = 34) -> Image.Image:
    """Picture, truth and prediction side by side, under captions that name their largest classes."""
    height, width = example.truth.shape
    row = Image.new("RGB", (3 * width + 2 * gap, height + caption_height), "white")
    draw = ImageDraw.Draw(row)
    figure = "mIoU*" if evaluation.task == "semantic" else "PQ"
    captions = [f"{example.name}\n{figure} {100 * example.score:.1f}", "truth", "prediction"]
    if evaluation.task == "semantic":
        captions[1] += "\n" + _largest_classes(example.truth, evaluation)
        captions[2] += "\n" + _largest_classes(example.prediction, evaluation)
    labels = (_hide_void(values, evaluation) for values in (example.truth, example.prediction))
    pictures = (example.image, *(_paint(example.image, values) for values in labels))
    for column, (picture, caption) in enumerate(zip(pictures, captions)):
        left = column * (width + gap)
        row.paste(Image.fromarray(picture), (left, caption_height))
        draw.multiline_text((left, 2), caption, fill="black")
    return row


def _hide_void(labels: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    void = labels == 0 if evaluation.task == "panoptic" else labels >= evaluation.vocabulary.num_labels
    return np.where(void, VOID, labels)


def _paint(image: np.ndarray, labels: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """The picture under one colour for each value; truth and prediction of a semantic task share theirs."""
    values, positions = np.unique(labels, return_inverse=True)
    colours = np.array([segment_colour(int(value)) for value in values], dtype=np.float64)[positions]
    painted = (1 - opacity) * image + opacity * colours.reshape(image.shape)
    return np.where((labels == VOID)[..., None], image, painted).astype(np.uint8)


def _largest_classes(labels: np.ndarray, evaluation: Evaluation) -> str:
    values, counts = np.unique(labels[labels < evaluation.vocabulary.num_labels], return_counts=True)
    largest = values[np.argsort(-counts, kind="stable")][:LISTED_CLASSES]
    return ", ".join(evaluation.vocabulary.names[value].split(",")[0] for value in largest)


def _class_counts(evaluation: Evaluation) -> dict[str, np.ndarray]:
    counts = evaluation.counts
    if evaluation.task == "panoptic":
        return {name: counts[:, column] for column, name in enumerate(("tp", "fp", "fn"), start=1)}
    return {"pixels": counts[:, :-1].sum(axis=0), "predicted_pixels": counts[:-1, :-1].sum(axis=1)}


def _cells(figures: dict[str, Any], names: Iterable[str]) -> list[str]:
    values = (figures.get(name, math.nan) for name in names)
    return ["-" if math.isnan(value) else f"{100 * value:.2f}" for value in values]


def _aligned(rows: list[list[str]]) -> str:
    """Columns of equal width, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
