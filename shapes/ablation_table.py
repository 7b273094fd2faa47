"""Tables and picture of the experiment on the papers' claims, from the figures that `ablation.py` left.

A case is a CLIP's name, a seed and its pieces: figures (fractions of 1) by the piece's name ("clip", "test, ...").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maftplus.shapes.evaluate import COLUMNS as FIGURES

FiguresOfCase = tuple[str, int, Mapping[str, Mapping[str, float]]]

CLIP_COLUMNS = ("retrieval", "all", "seen", "unseen", "novel", "stuff", "spread", "pooled", "pooled_spread")
COLUMNS = (*FIGURES, "mask_sensitivity", "masks_right", "retrieval")
CLIP, VALIDATION, TEST = "clip", "validation, ", "test, "  # how the names of pieces begin
CONTROL = TEST + "control, as long"
GAINS = ("mask-aware", "+ compensation", "+ CDT")  # over the control, of a ConvNeXt
MISSING = "-"


def format_clips(cases: Sequence[FiguresOfCase]) -> str:
    """What each CLIP knows before it meets masks: mean, and deviation where there are several seeds, in percent."""
    return _table({clip: _of_piece(cases, clip, CLIP) for clip in _clips(cases)}, CLIP_COLUMNS)


def format_rows(cases: Sequence[FiguresOfCase], split: str = TEST) -> str:
    """
    Every row of every CLIP, as `format_clips` (mask sensitivity: correlation times 100).

    Args:
        split: Which pieces: `TEST`, or `VALIDATION` for the trials of learning rates.
    """
    rows = {}
    for clip in _clips(cases):
        names = dict.fromkeys(piece for other, _, pieces in cases if other == clip for piece in pieces)
        for piece in [name for name in names if name.startswith(split)]:
            rows[f"{clip}: {piece.removeprefix(split)}"] = _of_piece(cases, clip, piece)
    return _table(rows, COLUMNS)


def gains(cases: Sequence[FiguresOfCase]) -> dict[str, list[tuple[float, float]]]:
    """
    For each row of a ConvNeXt the frozen CLIP's share of masks named right, in percent, and what the row gains over
    the control, in points of panoptic quality over all classes, of every case that has both.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for _, _, pieces in cases:
        for name in GAINS:
            if {CLIP, CONTROL, TEST + name} <= pieces.keys():
                gain = pieces[TEST + name]["pq"] - pieces[CONTROL]["pq"]
                points.setdefault(name, []).append((100 * pieces[CLIP]["all"], 100 * gain))
    return points


def plot_gains(cases: Sequence[FiguresOfCase], path: Path) -> None:
    """Draws `gains` as a PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.6))
    for (name, points), marker in zip(gains(cases).items(), "osD"):
        axes.scatter(*zip(*points), marker=marker, label=name, alpha=0.8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("masks that the frozen CLIP names right, percent")
    axes.set_ylabel("PQ over the control, points")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _clips(cases: Sequence[FiguresOfCase]) -> list[str]:
    return list(dict.fromkeys(clip for clip, _, pieces in cases if pieces))


def _of_piece(cases: Sequence[FiguresOfCase], clip: str, piece: str) -> list[Mapping[str, float]]:
    """A piece's figures of every seed that has it."""
    return [pieces[piece] for other, _, pieces in cases if other == clip and piece in pieces]


def _table(rows: Mapping[str, Sequence[Mapping[str, float]]], columns: Sequence[str]) -> str:
    lines = ["| | " + " | ".join(columns) + " | seeds |", "|---" * (len(columns) + 2) + "|"]
    for name, seeds in rows.items():
        cells = [_cell([100 * figures[column] for figures in seeds if column in figures]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(seeds)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
