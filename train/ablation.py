"""The papers' claims in the shapes world: what each part of MAFT+ adds, on fresh scenes, over several seeds.

    python train/ablation.py --work runs/ablation --seeds 0 1 2 --out runs/ablation/ablation
    python train/ablation.py --seeds 0 --base runs/shapes_model     # one seed, on a finished make_shapes_model.py

For every seed one pre-training and one segmenter on frozen CLIP (the first two steps of `make_shapes_model.py`, then
`--base_steps` on whole scenes); every row then goes on from there for `--steps` on seen pairs, the control too, so
that all rows have seen the same scenes as often. Steps are fixed, not minutes. Each run's figures are kept in its
folder and not computed again.

Sources of the claims: arXiv 2310.00240 (mask-aware loss; `mask_sensitivity` is what it says CLIP lacks) and
arXiv 2408.00744 (Representation Compensation, Content-Dependent Transfer).
"""

import argparse
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.train.make_shapes_model import RECIPES, SMALL_LAYOUT, export, train
from maftplus.train.pretrain import load_recipe, pretrain
from maftplus.train.shapes_evaluation import evaluate

logger = logging.getLogger("maftplus.train")

COLUMNS = ("seen", "unseen", "novel", "harmonic", "pq", "mask_sensitivity")


@dataclass(frozen=True)
class Row:
    """
    One row of the table: its name, what it sets in the model's configuration and in the recipe; `trains` is off for
    the common start.
    """

    name: str
    settings: dict = field(default_factory=dict)
    options: tuple[str, ...] = ()
    trains: bool = True


FROZEN = {"mask_aware_weight": 0.0, "compensation_weight": 0.0, "cdt_form": "off"}
MASK_AWARE = {**FROZEN, "mask_aware_weight": 1.0}
COMPENSATED = {**MASK_AWARE, "compensation_weight": 0.1}
CDT = {**COMPENSATED, "cdt_form": "panoptic", "cdt_num_attention_heads": 4}
ROWS = (
    Row("frozen CLIP", trains=False),
    Row("control: as long, no mask-aware loss", FROZEN),
    Row("+ mask-aware loss", MASK_AWARE),
    Row("+ compensation", COMPENSATED),
    Row("+ CDT (true pixels)", CDT),
    Row("+ CDT (released token order)", {**CDT, "cdt_token_order": "released"}),
    Row("mask-aware loss alone, trunk ten times slower", MASK_AWARE, ("--trunk_lr_multiplier", "0.03")),
)


def prepare(work: Path, seed: int, base_steps: int, base: Path | None = None) -> tuple[Path, Path, Path]:
    """CLIP, the segmenter on it, and the training scenes of a seed; `base` holds some of them already."""
    source = work if base is None else base
    clip, small, start = source / "clip", source / "small", work / "start"
    if not (clip / "config.json").is_file():
        pretrain(load_recipe(RECIPES / "shapes_clip.yaml", [f"seed={seed}"]), clip)
    if not (small / "config.json").is_file():
        data = export(source / "small_data", 12000, seed, SMALL_LAYOUT)
        train("shapes_small.yaml", small, data, seed, "--clip_name_or_path", str(clip), dropped=0.0)
    data = export(source / "data", 6000, seed, {})
    if not (start / "config.json").is_file():
        run_row(Row("start", FROZEN), start, small, clip, data, seed, base_steps)
    return clip, start, data


def run_row(row: Row, output: Path, start: Path, clip: Path, data: Path, seed: int, num_steps: int) -> None:
    """Trains one row from `start`; the teacher is the CLIP that pre-training gave."""
    options = {
        "model_name_or_path": start,
        "teacher_name_or_path": clip,
        "model_config": json.dumps(row.settings),
        "max_steps": num_steps,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    train("shapes.yaml", output, data, seed, *arguments, *row.options)


def measure(folder: Path, num_scenes: int) -> dict[str, float]:
    """Figures of the model in `folder` on scenes of the test split, from its `figures.json` if that is there."""
    path = folder / f"figures_{num_scenes}.json"
    if path.is_file():
        return json.loads(path.read_text())
    model = MaftPlusForUniversalSegmentation.from_pretrained(folder)
    processor = MaftPlusProcessor.from_pretrained(folder)
    figures = evaluate(model, processor, num_scenes, split="test", seed=1, measure_sensitivity=True)
    path.write_text(json.dumps(figures))
    return figures


def measure_seed(work: Path, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every row of one seed: name -> figures."""
    clip, start, data = prepare(work, seed, options.base_steps, options.base)
    table = {}
    for index, row in enumerate(ROWS):
        folder = work / f"row_{index}" if row.trains else start
        if row.trains and not (folder / "config.json").is_file():
            run_row(row, folder, start, clip, data, seed, options.steps)
        table[row.name] = measure(folder, options.num_scenes)
        logger.info("seed %d, %s: %s", seed, row.name, {k: round(v, 3) for k, v in table[row.name].items()})
    return table


def format_markdown(tables: list[dict[str, dict[str, float]]]) -> str:
    """Mean, and deviation where there are several seeds, in percent (mask sensitivity: correlation times 100)."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in tables[0]:
        cells = [_cell([100 * table[name][column] for table in tables]) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def plot(tables: list[dict[str, dict[str, float]]], path: Path) -> None:
    """Bars of every column, a group a row, with the deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(tables[0])
    figure, axes = pyplot.subplots(figsize=(11, 4.5))
    width = 0.8 / len(COLUMNS)
    for index, column in enumerate(COLUMNS):
        values = 100 * np.array([[table[name][column] for name in names] for table in tables])
        error = values.std(0, ddof=1) if len(tables) > 1 else None
        axes.bar(np.arange(len(names)) + (index - 2.5) * width, values.mean(0), width, yerr=error, label=column)
    axes.set_xticks(range(len(names)), [name.replace(" (", "\n(").replace(": ", ":\n") for name in names], fontsize=8)
    axes.set_ylabel("percent")
    axes.legend(ncols=len(COLUMNS), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes it with a plot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation/ablation"), help="Name without an ending.")
    parser.add_argument("--base", type=Path, help="With one seed: a folder of make_shapes_model.py to start from.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base_steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--num_scenes", type=int, default=300)
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.base is not None and len(options.seeds) > 1:
        raise ValueError("`--base` holds the pre-training of one seed; give one `--seeds`, or leave `--base` out.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.num_threads)
    tables = [measure_seed(options.work / f"seed_{seed}", seed, options) for seed in options.seeds]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = format_markdown(tables)
    options.out.with_suffix(".md").write_text(text + "\n")
    plot(tables, options.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
