"""When do the papers' claims hold? Every part of MAFT+ and MAFT on CLIPs that learned from whole pictures, and on one
that learned from phrases and places; in pieces of a few minutes, over several seeds.

    python shapes/ablation.py --minutes 40        # goes on where the last call stopped, ends after a piece
    python shapes/ablation.py --only_finished     # table and picture of what has been measured so far
    python shapes/ablation.py --plan              # what is missing, and how long that takes

Sizes, steps and the CLIPs are in `recipes/ablation.yaml`. Every CLIP of a seed is a `Case`; its pieces leave their
figures in one small JSON of `--results`, and models in `--work`, which may be thrown away: where a missing piece needs
a model, that is made again. A ConvNeXt's rows go on from one segmenter on the frozen CLIP, the control as
long as the others. A ViT's rows stand behind one frozen proposer (`proposer.py`); what MAFT made of the ViT is then
put behind other masks, without further training. The learning rate of each row is the best of three on validation
scenes of the first seed, by panoptic quality over all classes: where a CLIP names no unseen thing, every harmonic mean
is 0. The table is of test scenes.

Sources of the claims: arXiv 2310.00240 (mask-aware loss; `mask_sensitivity` is what it says CLIP lacks) and
arXiv 2408.00744 (Representation Compensation, Content-Dependent Transfer).
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from transformers import CLIPTokenizer, set_seed

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import write_atomically
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.ablation_table import CLIP, TEST, VALIDATION, format_clips, format_rows, plot_gains
from maftplus.shapes.evaluate import evaluate
from maftplus.shapes.make_model import RECIPES, export, train
from maftplus.shapes.objective import Normalise, Objective
from maftplus.shapes.pretrain import load_recipe, mask_accuracy, pretrain_once, retrieval
from maftplus.shapes.proposer import train_proposer_once
from maftplus.shapes.scenes import Scene
from maftplus.shapes.stages import as_json, run_stage
from maftplus.shapes.vit import pool_patches
from maftplus.train.run import build_model, build_processor, parse_arguments

logger = logging.getLogger("maftplus.shapes")

RECIPE = RECIPES / "ablation.yaml"
RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 0  # on whose validation scenes learning rates are chosen
OUTSIDE = -10.0  # logit of a pixel outside a mask
SCENES = 2  # the seed of the scenes that models are judged on
Propose = Callable[[list[Scene]], dict[str, Tensor]]
MASK2FORMER, SEGMENTER, TRUTH = "Mask2Former", "the built-in segmenter", "true masks"


@dataclass(frozen=True)
class Row:
    """
    One row of the table: its name, the folder of its model, what it sets in the model's configuration. `trains` is off
    for a common start and for a model that another row trains; with `pools_patches` a ViT averages its patches under
    each mask, without mask-aware attention; `proposals` says whose masks a ViT stands behind.
    """

    name: str
    folder: str
    settings: dict = field(default_factory=dict)
    trains: bool = True
    pools_patches: bool = False
    proposals: str = MASK2FORMER


FROZEN = {"mask_aware_weight": 0.0, "compensation_weight": 0.0, "cdt_form": "off"}
MASK_AWARE = {**FROZEN, "mask_aware_weight": 1.0}
COMPENSATED = {**MASK_AWARE, "compensation_weight": 0.1}
CDT = {**COMPENSATED, "cdt_form": "panoptic", "cdt_num_attention_heads": 4}
ROWS = (
    Row("frozen", "start", trains=False),
    Row("control, as long", "control", FROZEN),
    Row("mask-aware", "mask_aware", MASK_AWARE),
    Row("+ compensation", "compensated", COMPENSATED),
    Row("+ CDT", "cdt", CDT),
)
VIT_ROWS = (
    Row("frozen, pooled patches", "start", trains=False, pools_patches=True),
    Row("mask-aware attention, untrained", "start", trains=False),
    Row("MAFT", "maft", {"distillation_weight": 0.0}),
    Row("MAFT + distillation", "distilled", {"distillation_weight": 0.1}),
    *(
        Row(f"{name}, {masks}", folder, trains=False, pools_patches=pools, proposals=masks)
        for masks in (SEGMENTER, TRUTH)
        for name, folder, pools in (
            ("frozen, pooled patches", "start", True),
            ("mask-aware attention, untrained", "start", False),
            ("MAFT + distillation", "distilled", False),
        )
    ),
)

# ------------------------------------------------------------------------------------------------------------ cases


@dataclass(frozen=True)
class Case:
    """One CLIP of one seed: its models in `work`, its figures in `results`; `experiment` is the whole recipe."""

    clip: str
    seed: int
    work: Path
    results: Path
    experiment: dict

    @property
    def recipe(self) -> dict[str, Any]:
        """What the figures of this CLIP depend on: what all have in common, and its own over it."""
        common = {name: value for name, value in self.experiment.items() if name != "clips"}
        own = self.experiment["clips"][self.clip]
        pretraining = {**common["pretraining"], **own.get("pretraining", {})}
        return {**common, **own, "pretraining": pretraining}

    @property
    def is_vit(self) -> bool:
        return self.clip.startswith("vit")

    @property
    def rows(self) -> tuple[Row, ...]:
        return VIT_ROWS if self.is_vit else ROWS

    @property
    def folder(self) -> Path:
        return self.work / f"{self.clip}_{self.seed}"

    @property
    def path(self) -> Path:
        """Where the figures are."""
        return self.results / f"{self.clip}_{self.seed}.json"

    def of(self, clip: str | None = None, seed: int | None = None) -> "Case":
        """Another CLIP or seed of the same experiment."""
        seed = self.seed if seed is None else seed
        return Case(clip or self.clip, seed, self.work, self.results, self.experiment)

    def pieces(self) -> dict[str, dict[str, Any]]:
        """Figures of the pieces that are finished, by their names; none if they were made by another recipe."""
        if not self.path.is_file():
            return {}
        content = json.loads(self.path.read_text(encoding="utf-8"))
        return content["pieces"] if content["recipe"] == as_json(self.recipe) else {}

    def keep(self, piece: str, figures: dict[str, Any]) -> None:
        """Adds a finished piece to the file."""
        content = {"recipe": self.recipe, "pieces": {**self.pieces(), piece: figures}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def trial_name(row: Row, rate: float) -> str:
    """The piece that tries a learning rate."""
    return f"{VALIDATION}{row.folder} at {rate:g}"


def table_name(row: Row) -> str:
    """The piece that fills a row of the table."""
    return f"{TEST}{row.name}"


def chosen_rate(case: Case, folder: str) -> float | None:
    """The learning rate that was best for the row of this folder; `None` for a start, which has none.

    Raises:
        ValueError: if the first seed has not tried them all.
    """
    row = next((row for row in case.rows if row.folder == folder and row.trains), None)
    if row is None:
        return None
    pieces, rates = case.of(seed=FIRST_SEED).pieces(), case.recipe["learning_rates"]
    missing = [rate for rate in rates if trial_name(row, rate) not in pieces]
    if missing:
        raise ValueError(f"Seed {FIRST_SEED} has not tried {missing} for {row.name!r} yet; name it among `--seeds`.")
    return max(rates, key=lambda rate: pieces[trial_name(row, rate)]["pq"])


def plan(case: Case) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work of every piece of a case, in the order in which one needs another."""
    yield CLIP, partial(judge_clip, case)
    trained = [row for row in case.rows if row.trains]
    for row in case.rows:
        if row.folder == "start":
            yield table_name(row), partial(judge_row, case, row)
    for rate in case.recipe["learning_rates"] if case.seed == FIRST_SEED else ():
        for row in trained:  # all rows at one rate first: half of the experiment is then a comparison already
            yield trial_name(row, rate), partial(try_rate, case, row, rate)
    for row in case.rows:
        if row.folder != "start":
            yield table_name(row), partial(judge_row, case, row)


def missing_pieces(cases: list[Case]) -> list[tuple[Case, str, Callable[[], dict[str, Any]]]]:
    """What `cases` lack, of their plans."""
    return [(case, name, work) for case in cases for name, work in plan(case) if name not in case.pieces()]


# ----------------------------------------------------------------------------------------------------------- models


def make_clip(case: Case) -> dict[str, Any]:
    """The CLIP of a case, in `clip` of its folder; returns the stage's settings."""
    return pretrain_once({**case.recipe["pretraining"], "seed": case.seed}, case.folder / "clip")


def make_data(case: Case) -> Path:
    """Training scenes of a seed, which all its CLIPs share."""
    folder = case.work / f"data_{case.seed}"
    return export(folder, case.recipe["num_training_scenes"], case.seed, case.recipe["layout"])


def make_start(case: Case) -> dict[str, Any]:
    """What the rows of a case go on from, in `start`: a segmenter on frozen CLIP, or a ViT behind its proposer."""
    clip, out = make_clip(case), case.folder / "start"
    if case.is_vit:
        settings = {"clip": clip, "proposer": make_proposer(case)}
        return run_stage(out, settings, partial(build_vit, out, case))
    start = {"clip_name_or_path": case.folder / "clip"}
    options = {"max_steps": case.recipe["segmenter_steps"], **picture_size(case)}
    return train("shapes_small.yaml", out, make_data(case), case.seed, start, clip, 0.0, options)


def make_proposer(case: Case) -> dict[str, Any]:
    """The one frozen proposer of all seeds, whose trunk starts from the dense ConvNeXt of the first."""
    teacher = case.of("convnext_dense", FIRST_SEED)
    make_clip(teacher)
    recipe = {**load_recipe(RECIPES / "shapes_proposer.yaml", []), **case.recipe["proposer"]}
    return train_proposer_once(recipe, make_data(teacher), case.work / "proposer", teacher.folder / "clip")


def build_vit(out: Path, case: Case) -> None:
    """The untrained model of a ViT's rows, and its processor."""
    size = case.recipe["layout"]["size"]
    fields = {**load_recipe(RECIPES / "shapes_maft.yaml", [])["model_config"], "clip_image_size": size}
    paths = {"clip_name_or_path": case.folder / "clip", "proposer_name_or_path": case.work / "proposer"}
    given = {**paths, "model_config": json.dumps(fields), "output_dir": out, **picture_size(case)}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    model_args, data_args, _ = parse_arguments([str(RECIPES / "shapes_maft.yaml"), *options])
    set_seed(case.seed)
    build_model(model_args).save_pretrained(out)
    build_processor(model_args, data_args).save_pretrained(out)


def picture_size(case: Case) -> dict[str, str]:
    """The option by which models see scenes as they are."""
    size = case.recipe["layout"]["size"]
    return {"eval_size": json.dumps({"shortest_edge": size, "longest_edge": 4 * size})}


def make_row(case: Case, row: Row, rate: float) -> Path:
    """The model of a row that trains, at this learning rate; the teacher is the CLIP that pre-training gave."""
    out, settings = case.folder / f"{row.folder}_{rate:g}", make_start(case)
    paths = {"model_name_or_path": case.folder / "start", "teacher_name_or_path": case.folder / "clip"}
    recipe, steps = "shapes_maft.yaml" if case.is_vit else "shapes.yaml", case.recipe["row_steps"]
    options = {"model_config": json.dumps(row.settings), "max_steps": steps, "learning_rate": rate, "warmup_steps": 20}
    options.update(picture_size(case))
    train(recipe, out, make_data(case), case.seed, paths, settings, 0.0, options)
    return out


# ---------------------------------------------------------------------------------------------------------- figures


def judge_clip(case: Case) -> dict[str, float]:
    """What a CLIP knows of fresh scenes: pictures and captions, masks, and how it tells masks apart."""
    make_clip(case)
    objective = load_objective(case)
    layout, num_scenes = case.recipe["layout"], case.recipe["num_test_scenes"]
    masks = mask_accuracy(objective, normaliser(case), num_scenes, SCENES, "test", **layout)
    return {**masks, "retrieval": judge_retrieval(case, objective)}


def load_objective(case: Case) -> Objective:
    """The CLIP of a case with its words."""
    folder = case.folder / "clip"
    model, tokenizer = MaftPlusCLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    return Objective(model, tokenizer, {}, use_bfloat16=False)


def normaliser(case: Case) -> Normalise:
    recipe = case.recipe["pretraining"]
    return Normalise(recipe["image_mean"], recipe["image_std"])


def judge_retrieval(case: Case, objective: Objective) -> float:
    """Recall at 1 of pictures and captions, on the scenes of the table."""
    layout, num_scenes = case.recipe["layout"], case.recipe["num_test_scenes"]
    return retrieval(objective, normaliser(case), num_scenes, SCENES, "test", **layout)


def try_rate(case: Case, row: Row, rate: float) -> dict[str, float]:
    """What the choice of a learning rate looks at."""
    return judge(case, row, make_row(case, row, rate), "validation", case.recipe["num_validation_scenes"])


def judge_row(case: Case, row: Row) -> dict[str, float]:
    """The figures of the table; a row that trains has its learning rate among them."""
    rate = chosen_rate(case, row.folder)
    if rate is None:
        make_start(case)
        return judge(case, row, case.folder / "start", "test", case.recipe["num_test_scenes"])
    trained = next(other for other in case.rows if other.folder == row.folder and other.trains)
    figures = judge(case, row, make_row(case, trained, rate), "test", case.recipe["num_test_scenes"])
    return {**figures, "learning_rate": rate}


def judge(case: Case, row: Row, folder: Path, split: str, num_scenes: int) -> dict[str, float]:
    """Segmentation of fresh scenes by the model in `folder` as the row uses it; its CLIP on true masks, captions."""
    model = MaftPlusForUniversalSegmentation.from_pretrained(folder)
    processor = MaftPlusProcessor.from_pretrained(folder)
    clip, layout = model.model.clip, case.recipe["layout"]
    objective = Objective(clip, processor.tokenizer, {}, use_bfloat16=False)
    named_right = mask_accuracy(objective, normaliser(case), num_scenes, SCENES, split, **layout)
    figures = {
        "masks_right": named_right["pooled" if row.pools_patches else "all"],
        "retrieval": judge_retrieval(case, objective),
    }
    if row.pools_patches:
        clip.embed_mask_logits = lambda vision, logits: pool_patches(clip, vision, logits.sigmoid())
    options = {"measure_sensitivity": True, "layout": layout, "propose": proposals_of(case, row)}
    return {**evaluate(model, processor, num_scenes, split, SCENES, **options), **figures}


def proposals_of(case: Case, row: Row) -> Propose | None:
    """Where the masks of a row come from, if not from its own model."""
    if row.proposals == TRUTH:
        return true_proposals
    return segmenter_proposals(case) if row.proposals == SEGMENTER else None


def true_proposals(batch: list[Scene]) -> dict[str, Tensor]:
    """The scenes' own masks as `proposal_logits` (B, Q, S, S), empty ones where another scene has more."""
    num_masks = max(len(scene.segments_info) for scene in batch)
    logits = torch.full((len(batch), num_masks, *batch[0].segmentation.shape), OUTSIDE)
    for scene, masks in zip(batch, logits):
        for segment, mask in zip(scene.segments_info, masks):
            mask[torch.from_numpy(scene.segmentation == segment["id"])] = -OUTSIDE
    return {"proposal_logits": logits}


def segmenter_proposals(case: Case) -> Propose:
    """Masks of the segmenter of the first seed's dense ConvNeXt; those that it takes for void come empty."""
    other = case.of("convnext_dense", FIRST_SEED)
    make_start(other)
    model = MaftPlusForUniversalSegmentation.from_pretrained(other.folder / "start").eval()
    processor = MaftPlusProcessor.from_pretrained(other.folder / "start")

    def propose(batch: list[Scene]) -> dict[str, Tensor]:
        outputs = model(**processor(images=[scene.image for scene in batch], return_tensors="pt"))
        is_void = outputs.in_vocab_logits.softmax(-1)[..., -1] > 0.5  # (B, Q)
        return {"proposal_logits": outputs.masks_queries_logits.masked_fill(is_void[..., None, None], OUTSIDE)}

    return propose


# ---------------------------------------------------------------------------------------------------------- command


def run_pieces(cases: list[Case], minutes: float) -> None:
    """Works off what is missing, piece by piece, until it is done or the time is over."""
    start = time.monotonic()
    for case, name, work in missing_pieces(cases):
        if time.monotonic() - start > 60 * minutes:
            logger.info("The time is over; the same command goes on.")
            return
        began = time.process_time()
        figures = {key: round(value, 5) for key, value in work().items()}
        case.keep(name, {**figures, "processor_seconds": round(time.process_time() - began)})
        logger.info("%s, seed %d, %s: %s", case.clip, case.seed, name, figures)


def format_plan(cases: list[Case]) -> str:
    """What is missing, and the processor time of it if every piece takes as long as those of its kind did."""
    missing = missing_pieces(cases)
    seconds: dict[str, list[float]] = {}
    for case in cases:
        for name, figures in case.pieces().items():
            if "processor_seconds" in figures:
                seconds.setdefault(kind_of(case, name), []).append(figures["processor_seconds"])
    kinds = [kind_of(case, name) for case, name, _ in missing]
    known = [sum(seconds[kind]) / len(seconds[kind]) for kind in kinds if kind in seconds]
    lines = [f"{case.clip}, seed {case.seed}: {name}" for case, name, _ in missing]
    unknown = f", and {len(kinds) - len(known)} of unknown length" if len(known) < len(kinds) else ""
    return "\n".join([*lines, f"{len(missing)} pieces: about {sum(known) / 60:.0f} minutes of a core{unknown}"])


def kind_of(case: Case, name: str) -> str:
    """Of pieces that take about as long as one another: a CLIP, a trial, a test, a test that has to train first."""
    is_trained = any(row.trains and name == table_name(row) for row in case.rows)
    return f"{'vit' if case.is_vit else 'convnext'} {name.split(',')[0]} {is_trained and case.seed != FIRST_SEED}"


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, then prints the tables and draws the picture of all that is there."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="Models; may be thrown away.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Figures, a JSON for each CLIP and seed.")
    parser.add_argument("--picture", type=Path, help="A PNG of the gains; needs matplotlib.")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--clips", nargs="+", help="Default: all of the recipe.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Stop after the piece that exceeds them.")
    parser.add_argument("--only_finished", action="store_true", help="Train and measure nothing, show what is there.")
    parser.add_argument("--plan", action="store_true", help="Only say what is missing.")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.num_threads)
    recipe = load_recipe(options.recipe, [])
    places = options.work, options.results, recipe
    cases = [Case(clip, seed, *places) for seed in options.seeds for clip in options.clips or recipe["clips"]]
    if options.plan:
        typer.echo(format_plan(cases))
        return
    if not options.only_finished:
        run_pieces(cases, options.minutes)
    finished = [(case.clip, case.seed, case.pieces()) for case in cases]
    typer.echo("\n\n".join((format_clips(finished), format_rows(finished), format_rows(finished, VALIDATION))))
    if options.picture:
        plot_gains(finished, options.picture)


if __name__ == "__main__":
    main()
