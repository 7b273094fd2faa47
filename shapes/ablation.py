"""The papers' claims in the shapes world: what each part of MAFT+ and MAFT adds, on fresh scenes, over several seeds.

    python shapes/ablation.py --work runs/ablation --seeds 0 1 2 --out runs/ablation/ablation
    python shapes/ablation.py --seeds 0 --base runs/shapes_model     # one seed, on a finished make_model.py
    python shapes/ablation.py --only_finished                        # the table of what has been measured so far

For every seed one pre-training and one segmenter on frozen CLIP (the first two steps of `make_model.py`, then
`--base_steps` on whole scenes); every row then goes on from there for `--steps` on seen pairs, the control too, so
that all rows have seen the same scenes as often. The rows of the ViT have a pre-training of their own
(`vit.py`), train for `--vit_steps` and share one frozen proposer over all seeds, trained by
`proposer.py` from the first seed's ConvNeXt: nothing but the scores of the same masks differs between them.
Steps are fixed, not minutes. A stage that has finished with the same settings is not run again, nor measured again.

Sources of the claims: arXiv 2310.00240 (mask-aware loss; `mask_sensitivity` is what it says CLIP lacks) and
arXiv 2408.00744 (Representation Compensation, Content-Dependent Transfer).
"""

import argparse
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from transformers import set_seed

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import write_atomically
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import evaluate
from maftplus.shapes.make_model import RECIPES, export, make_clip, make_small, train
from maftplus.shapes.pretrain import load_recipe, pretrain_once
from maftplus.shapes.proposer import train_proposer_once
from maftplus.shapes.stages import finished_settings, run_stage
from maftplus.shapes.vit import pool_patches
from maftplus.train.run import build_model, build_processor, parse_arguments

logger = logging.getLogger("maftplus.shapes")

COLUMNS = ("seen", "unseen", "novel", "harmonic", "pq", "mask_sensitivity")


@dataclass(frozen=True)
class Row:
    """
    One row of the table: its name, the folder of its model, what it sets in the model's configuration. `trains` is off
    for a common start; with `pools_patches` a ViT averages its patches under each mask, without mask-aware attention.
    """

    name: str
    folder: str
    settings: dict = field(default_factory=dict)
    trains: bool = True
    pools_patches: bool = False


FROZEN = {"mask_aware_weight": 0.0, "compensation_weight": 0.0, "cdt_form": "off"}
MASK_AWARE = {**FROZEN, "mask_aware_weight": 1.0}
COMPENSATED = {**MASK_AWARE, "compensation_weight": 0.1}
CDT = {**COMPENSATED, "cdt_form": "panoptic", "cdt_num_attention_heads": 4}
ROWS = (
    Row("frozen CLIP", "start", trains=False),
    Row("control: as long, no mask-aware loss", "row_1", FROZEN),
    Row("+ mask-aware loss", "row_2", MASK_AWARE),
    Row("+ compensation", "row_3", COMPENSATED),
    Row("+ CDT (true pixels)", "row_4", CDT),
    Row("+ CDT (released token order)", "row_5", {**CDT, "cdt_token_order": "released"}),
)
VIT_ROWS = (
    Row("ViT: frozen CLIP", "vit_start", trains=False, pools_patches=True),
    Row("ViT: mask-aware attention, untrained", "vit_start", trains=False),
    Row("ViT: MAFT without distillation", "vit_maft", {"distillation_weight": 0.0}),
    Row("ViT: MAFT with distillation", "vit_maft_distilled", {"distillation_weight": 0.1}),
)


@dataclass(frozen=True)
class Start:
    """What rows go on from: a model, the CLIP that teaches, the training scenes; `settings` of the model's stage."""

    model: Path
    clip: Path
    data: Path
    settings: dict[str, Any]


def prepare(work: Path, seed: int, base_steps: int, base: Path | None = None) -> Start:
    """CLIP, the segmenter on it, and the training scenes of a seed; `base` holds some of them already."""
    source = work if base is None else base
    clip = make_clip(source, seed)
    small = make_small(source, seed, clip)
    data = export(source / "data", 6000, seed, {})
    before = Start(source / "small", source / "clip", data, small)
    settings = run_row(Row("start", "start", FROZEN), work, before, seed, base_steps)
    return Start(work / "start", source / "clip", data, settings)


def prepare_vit(work: Path, seed: int, teacher: Path, proposer: Path, data: Path) -> Start:
    """The ViT's CLIP of a seed, and the untrained model of it and the proposer."""
    clip, start = work / "vit_clip", work / "vit_start"
    recipe = load_recipe(RECIPES / "shapes_clip_vit.yaml", [f"seed={seed}"])
    settings = {"clip": pretrain_once(recipe, clip, teacher=teacher), "proposer": finished_settings(proposer)}
    settings = run_stage(start, settings, partial(build_vit, start, clip, proposer, seed))
    return Start(start, clip, data, settings)


def build_vit(out: Path, clip: Path, proposer: Path, seed: int) -> None:
    """The untrained model of the ViT's rows, and its processor."""
    paths = ["--clip_name_or_path", str(clip), "--proposer_name_or_path", str(proposer)]
    model_args, data_args, _ = parse_arguments([str(RECIPES / "shapes_maft.yaml"), *paths, "--output_dir", str(out)])
    set_seed(seed)
    build_model(model_args).save_pretrained(out)
    build_processor(model_args, data_args).save_pretrained(out)


def run_row(row: Row, work: Path, start: Start, seed: int, num_steps: int) -> dict[str, Any]:
    """Trains one row from `start`, unless that is done; the teacher is the CLIP that pre-training gave."""
    paths = {"model_name_or_path": start.model, "teacher_name_or_path": start.clip}
    options = {"model_config": json.dumps(row.settings), "max_steps": num_steps}
    recipe, dropped = ("shapes_maft.yaml", 0.0) if row in VIT_ROWS else ("shapes.yaml", 0.5)
    return train(recipe, work / row.folder, start.data, seed, paths, start.settings, dropped, options)


def figures_path(folder: Path, num_scenes: int, pools_patches: bool = False) -> Path:
    """Where the figures of a model are kept, beside it."""
    return folder / f"figures_{num_scenes}{'_pooled' if pools_patches else ''}.json"


def finished(work: Path, num_scenes: int) -> dict[str, dict[str, float]]:
    """The rows of a seed that have been measured: name -> figures."""
    rows = {row.name: (work / row.folder, num_scenes, row.pools_patches) for row in (*ROWS, *VIT_ROWS)}
    figures = {name: read_figures(*which) for name, which in rows.items()}
    return {name: values for name, values in figures.items() if values is not None}


def read_figures(folder: Path, num_scenes: int, pools_patches: bool = False) -> dict[str, float] | None:
    """Figures that were measured on the model that is in `folder` now, if there are any."""
    path, settings = figures_path(folder, num_scenes, pools_patches), finished_settings(folder)
    if settings is None or not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["figures"] if content["settings"] == settings else None


def measure(folder: Path, num_scenes: int, pools_patches: bool = False) -> dict[str, float]:
    """Figures of the model in `folder` on scenes of the test split; measured once, kept beside the model."""
    figures = read_figures(folder, num_scenes, pools_patches)
    if figures is not None:
        return figures
    model = MaftPlusForUniversalSegmentation.from_pretrained(folder)
    processor = MaftPlusProcessor.from_pretrained(folder)
    if pools_patches:
        clip = model.model.clip
        clip.embed_mask_logits = lambda vision, logits: pool_patches(clip, vision, logits.sigmoid())
    figures = evaluate(model, processor, num_scenes, split="test", seed=1, measure_sensitivity=True)
    content = json.dumps({"settings": finished_settings(folder), "figures": figures})
    write_atomically(figures_path(folder, num_scenes, pools_patches), content)
    return figures


def measure_seed(work: Path, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every row of one seed: name -> figures."""
    start = prepare(work, seed, options.base_steps, options.base)
    proposer = options.work / "proposer"  # of the first seed that comes by
    if finished_settings(proposer) is None:
        train_proposer_once(load_recipe(RECIPES / "shapes_proposer.yaml", []), start.data, proposer, start.clip)
    vit_start = prepare_vit(work, seed, start.clip, proposer, start.data)
    plan = [(row, start, options.steps) for row in ROWS] + [(row, vit_start, options.vit_steps) for row in VIT_ROWS]
    table = {}
    for row, begin, num_steps in plan:
        if row.trains:
            run_row(row, work, begin, seed, num_steps)
        table[row.name] = measure(work / row.folder, options.num_scenes, row.pools_patches)
        logger.info("seed %d, %s: %s", seed, row.name, {k: round(v, 3) for k, v in table[row.name].items()})
    return table


def collect(tables: list[dict[str, dict[str, float]]]) -> dict[str, np.ndarray]:
    """Figures of every row in percent, (seeds that have it, columns)."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [[table[name][column] for column in COLUMNS] for table in tables if name in table] for name in names}
    return {name: 100 * np.array(values) for name, values in rows.items()}


def format_markdown(tables: list[dict[str, dict[str, float]]]) -> str:
    """Mean, and deviation where there are several seeds, in percent (mask sensitivity: correlation times 100)."""
    lines = ["| | " + " | ".join(COLUMNS) + " | seeds |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, values in collect(tables).items():
        cells = [_cell(column) for column in values.T]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(values)} |")
    return "\n".join(lines)


def _cell(values: np.ndarray) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def plot(tables: list[dict[str, dict[str, float]]], path: Path) -> None:
    """Bars of every column, a group a row, with the deviation over seeds; ConvNeXt above, ViT below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = collect(tables)
    halves = [[row.name for row in rows if row.name in values] for rows in (ROWS, VIT_ROWS)]
    figure, all_axes = pyplot.subplots(2, figsize=(11, 8), sharey=True)
    width = 0.8 / len(COLUMNS)
    for names, axes in zip(halves, all_axes):
        means = np.array([values[name].mean(0) for name in names]).reshape(-1, len(COLUMNS))
        errors = [values[name].std(0, ddof=1) if len(values[name]) > 1 else np.zeros(len(COLUMNS)) for name in names]
        errors = np.array(errors).reshape(-1, len(COLUMNS))
        for index, column in enumerate(COLUMNS):
            places = np.arange(len(names)) + (index - 2.5) * width
            axes.bar(places, means[:, index], width, yerr=errors[:, index], label=column)
        labels = [name.replace(" (", "\n(").replace(": ", ":\n").replace(", ", ",\n") for name in names]
        axes.set_xticks(range(len(names)), labels, fontsize=8)
        axes.set_ylabel("percent")
        axes.grid(axis="y", alpha=0.3)
    all_axes[0].legend(ncols=len(COLUMNS), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes it with a plot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation/ablation"), help="Name without an ending.")
    parser.add_argument("--base", type=Path, help="With one seed: a folder of make_model.py to start from.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base_steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--vit_steps", type=int, default=150, help="Steps of MAFT's rows.")
    parser.add_argument("--num_scenes", type=int, default=300)
    parser.add_argument("--only_finished", action="store_true", help="Train and measure nothing, show what is there.")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.base is not None and len(options.seeds) > 1:
        raise ValueError("`--base` holds the pre-training of one seed; give one `--seeds`, or leave `--base` out.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.num_threads)
    folders = {seed: options.work / f"seed_{seed}" for seed in options.seeds}
    if options.only_finished:
        tables = [finished(folder, options.num_scenes) for folder in folders.values()]
    else:
        tables = [measure_seed(folder, seed, options) for seed, folder in folders.items()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = format_markdown(tables)
    options.out.with_suffix(".md").write_text(text + "\n")
    plot(tables, options.out.with_suffix(".png"))
    typer.echo(text)


if __name__ == "__main__":
    main()
