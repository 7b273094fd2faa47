"""What fine-tuning on three new shapes costs and gains: each preset, several seeds, the old words before and after.

    python shapes/new_things_runs.py --out runs/new_things_runs [--seeds 0 1 2] [--max_steps 300]
    python shapes/new_things_runs.py --out runs/new_things_runs --only_finished      # the table so far

Each run is `maftplus finetune` in a process of its own, so that its largest memory is its own, and leaves a JSON; a
finished one is not run again. Figures on fresh scenes (test split), in percent:
- new: mIoU of the three shapes where the words are those of the label maps (30; 9 with --only_new),
- new among all: the same in scenes with the old things, where the words are the world's 42 and the three,
- old seen, unseen, harmonic: `shapes/evaluate.py` on scenes without the new shapes, all 42 names.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from transformers.utils import logging

from maftplus.conversion.registry import SHIPPED
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import write_atomically
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import all_names, evaluate
from maftplus.shapes.new_things import NEW_CLASSES, NUM_NEW, new_scenes, write
from maftplus.shapes.scenes import CLASSES, COLOURS, KINDS, NEW_SHAPES
from maftplus.train.data.registry import load_folder
from maftplus.train.evaluation.evaluate import ModelPredictor, SampleStream, count_predictions
from maftplus.vocabularies.files import VocabularyFile, load_vocabulary_file

PRESETS = ("lora", "full", "quick")
BASE = "shipped model"
FIGURES = ("new", "new_among_all", "seen", "unseen", "harmonic")
COSTS_FILE = "costs.json"
COSTS = ("trained", "peak_gb", "minutes")


def run_once(data: Path, folder: Path, preset: str, seed: int, max_steps: int, options: list[str]) -> dict[str, Any]:
    """Fine-tune once in a process of its own, unless that is done; its costs. Raises CalledProcessError."""
    if (folder / COSTS_FILE).is_file():
        return json.loads((folder / COSTS_FILE).read_text())
    command = [sys.executable, "-m", "maftplus.app.cli", "finetune", "--data", str(data / "train")]
    command += ["--labels-file", str(data / "names.txt"), "--model", "shapes", "--preset", preset, "--seed", str(seed)]
    command += ["--max-steps", str(max_steps), "--out", str(folder), "--overwrite", *options]
    log = folder.with_suffix(".log")
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command, log.read_text()[-2000:])
    metrics = json.loads((folder / "metrics.json").read_text())
    costs = {
        "trained": metrics["num_trained"],
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "minutes": (usage.ru_utime + usage.ru_stime) / 60,  # of one core
        "clock_minutes": (time.monotonic() - start) / 60,
        "steps": metrics["num_steps"],
        "best_step": metrics["best_step"],
        "held_out": metrics["after"]["mean_iou"],
    }
    write_atomically(folder / COSTS_FILE, json.dumps(costs))
    return costs


@torch.no_grad()
def measure(model_folder: Path, data: Path, num_scenes: int) -> dict[str, float]:
    """`FIGURES` of a model on fresh scenes, fractions of 1."""
    model = MaftPlusForUniversalSegmentation.from_pretrained(model_folder).eval()
    processor = MaftPlusProcessor.from_pretrained(model_folder)
    predict, kinds = ModelPredictor(model, processor), {"semantic": "semantic"}
    own = load_folder(data / "test/images", data / "test/labels", load_vocabulary_file(data / "names.txt"))
    own.items = own.items[:num_scenes]
    own_iou = count_predictions(predict, own, kinds)["semantic"].figures["per_category_iou"]
    every = SampleStream("mixed", _all_words(), _mixed(num_scenes))
    every_iou = count_predictions(predict, every, kinds)["semantic"].figures["per_category_iou"]
    old = evaluate(model, processor, num_scenes, split="test", seed=1)
    new = {"new": own_iou[:NUM_NEW], "new_among_all": every_iou[len(CLASSES) :]}
    return {
        **{name: float(np.nanmean(values)) for name, values in new.items()},
        **{name: old[name] for name in FIGURES[2:]},
    }


def _all_words() -> VocabularyFile:
    classes = tuple(tuple(names) for names in [*all_names(), *([shape] for shape in NEW_SHAPES)])
    return VocabularyFile("all", tuple(names[0] for names in classes), classes, tuple(range(len(classes))))


def _mixed(num_scenes: int) -> Iterator[dict[str, Any]]:
    """Fresh scenes with old and new things; a new shape is one class, whatever its colour."""
    table = np.arange(256, dtype=np.uint8)
    table[len(CLASSES) + np.arange(len(NEW_CLASSES))] = len(CLASSES) + np.repeat(np.arange(NUM_NEW), len(COLOURS))
    for index, scene in enumerate(new_scenes("test", num_scenes, seed=1, kinds=KINDS)):
        yield {"name": str(index), "image": scene.image, "segmentation_map": table[scene.semantic]}


def run_all(
    out: Path,
    seeds: list[int],
    presets: list[str],
    max_steps: int,
    num_scenes: int,
    options: list[str],
    only_new: bool = False,
) -> None:
    """Whatever of the runs is not there yet, a JSON each."""
    data, runs = out / "data", out / "runs"
    write(data, only_new=only_new)
    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / "base.json").is_file():
        figures = measure(Path(SHIPPED["shapes"]), data, num_scenes)
        write_atomically(runs / "base.json", json.dumps({"name": BASE, **figures}))
    for seed in seeds:
        for preset in presets:
            folder = runs / f"{preset}_{seed}"
            if folder.with_suffix(".json").is_file():
                continue
            costs = run_once(data, folder, preset, seed, max_steps, options)
            figures = measure(folder / "model", data, num_scenes)
            about = {"name": preset, "seed": seed, "max_steps": max_steps, "options": options}
            write_atomically(folder.with_suffix(".json"), json.dumps({**about, **figures, **costs}))
            typer.echo(f"{preset}, seed {seed}: { {name: round(100 * figures[name], 1) for name in FIGURES} }")


def format_markdown(rows: list[dict[str, Any]]) -> str:
    """Mean, and deviation over seeds, of every preset; figures in percent."""
    lines = ["| | " + " | ".join((*FIGURES, *COSTS)) + " | seeds |", "|---" * (len(FIGURES) + len(COSTS) + 2) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        cells = [_cell([100 * row[key] for row in own], 1) for key in FIGURES]
        cells += ["-"] * 3 if "trained" not in own[0] else _costs(own)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(own)} |")
    return "\n".join(lines)


def _costs(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{rows[0]['trained']:,}", *(_cell([row[key] for row in rows], 2) for key in COSTS[1:])]


def _cell(values: list[float], digits: int) -> str:
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, then prints the table; unknown options go to `maftplus finetune`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--num_scenes", type=int, default=200)
    parser.add_argument("--only_new", action="store_true", help="No old things in the pictures that are trained on.")
    parser.add_argument("--only_finished", action="store_true")
    known, options = parser.parse_known_args(arguments)
    logging.disable_progress_bar()
    if not known.only_finished:
        run_all(known.out, known.seeds, known.presets, known.max_steps, known.num_scenes, options, known.only_new)
    rows = [json.loads(path.read_text()) for path in sorted((known.out / "runs").glob("*.json"))]
    typer.echo(format_markdown(sorted(rows, key=lambda row: (row["name"] != BASE, row["name"]))))


if __name__ == "__main__":
    main()
