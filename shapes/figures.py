"""Every figure of the shipped model that its card, README and docs quote, measured again; --write updates the card.

    python shapes/figures.py             # measure and print them (`make figures`), as they stand in the card
    python shapes/figures.py --write     # put them into the card

500 scenes of the test split for quality, 500 for absent words (`evaluate.py`): about three minutes on one core.
"""

import argparse
import json
import re
from pathlib import Path

import torch
import typer
from transformers.utils import logging

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import write_atomically
from maftplus.processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline
from maftplus.shapes.evaluate import COLUMNS, absent_figures, evaluate

MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes"
NUM_SCENES = 500
ABSENT_COLUMNS = ("absent_other_colours", "absent_same_colours")
# Front matter of the card: metric type -> figure.
METRICS = {
    "mean_iou_seen": "seen",
    "mean_iou_unseen": "unseen",
    "mean_iou_novel": "novel",
    "mean_iou_harmonic": "harmonic",
    "panoptic_quality": "pq",
}


def measure(folder: Path, num_scenes: int = NUM_SCENES) -> dict[str, float]:
    """What `evaluate.py --split test --absent_words` prints, fractions of 1."""
    model = MaftPlusForUniversalSegmentation.from_pretrained(folder)
    processor = MaftPlusProcessor.from_pretrained(folder)
    figures = evaluate(model, processor, num_scenes, split="test")
    pipe = MaftPlusSegmentationPipeline(model=model, processor=processor)
    return {**figures, **absent_figures(pipe, num_scenes, "test")}


def table_row(figures: dict[str, float], columns: tuple[str, ...]) -> str:
    """Percentages as a row of a Markdown table."""
    return "| " + " | ".join(f"{100 * figures[name]:.1f}" for name in columns) + " |"


def update_card(card: str, figures: dict[str, float]) -> str:
    """
    The text of a model card with these figures in its front matter and in its two tables.

    Raises:
        ValueError: if the card lacks a place for one of them.
    """
    for metric, name in METRICS.items():
        card = _replace(card, rf"(type: {metric}, value: )[\d.]+", figures[name], rf"\g<1>{figures[name]:.4f}")
    for columns in (COLUMNS, ABSENT_COLUMNS):
        header = rf"(<!-- {' '.join(columns)} -->\n.*\n.*\n).*"
        card = _replace(card, header, columns, rf"\g<1>{table_row(figures, columns)}")
    return card


def _replace(card: str, pattern: str, name: object, replacement: str) -> str:
    card, count = re.subn(pattern, replacement, card)
    if count != 1:
        raise ValueError(f"The card has {count} places for {name}, not one ({pattern}).")
    return card


def main(arguments: list[str] | None = None) -> None:
    """Measures the shipped model, prints its figures, and with --write puts them into its card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--num_scenes", type=int, default=NUM_SCENES)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.num_threads)
    logging.disable_progress_bar()
    figures = measure(options.model, options.num_scenes)
    for columns in (COLUMNS, ABSENT_COLUMNS):
        typer.echo(f"| {' | '.join(columns)} |\n{table_row(figures, columns)}")
    typer.echo(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    if options.write:
        card = options.model / "README.md"
        write_atomically(card, update_card(card.read_text(encoding="utf-8"), figures))


if __name__ == "__main__":
    main()
