"""What a preset trains and how: its recipe (`train/recipes/finetune_*.yaml`), and what the command line changes of it.

`quick` trains what stands behind the trunk, `full` everything as published, `lora` adapters; `--model scratch` starts
from random weights with settings of its own.
"""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from maftplus.train.options import DataArguments, ModelArguments, parse_arguments
from maftplus.train.trainer import MaftPlusTrainingArguments

RECIPES = Path(__file__).parent.parent / "recipes"
SCRATCH, LORA = "scratch", "lora"
MINUTES = {"quick": 10, "full": 45, LORA: 30, SCRATCH: 55}
SCALES = (0.8, 1.0, 1.25)  # of a training picture's shorter side; a square of the evaluation's size is cut out
PATIENCE = {"quick": 6, "full": 6, LORA: 6, SCRATCH: 0}  # of ten; from scratch the best figures come at the end
MIXTURES = (0.0, 0.4, 1.0)  # weights of CLIP's scores for trained classes: none, FC-CLIP's (arXiv 2308.02487), MAFT+'s
NOT_RECORDED = ("bf16", "use_cpu", "resume", "overwrite")
PATHS = ("data", "model", "labels_file", "keep_data", "keep_labels")  # options that may name something on disk
HOLDS_TRUNK = ("full", LORA)  # presets in which the trunk trains, held to the original one
Arguments = tuple[ModelArguments, DataArguments, MaftPlusTrainingArguments]


@dataclass
class FinetuneOptions:
    """
    What `maftplus finetune` is asked for. `None` leaves a setting to the preset.

    Args:
        data: Folder in any form that `read_form` knows, or a data set of the Hub.
        out: Folder for `report.html`, `model/`, `metrics.json`, and `adapter/` with LoRA.
        model: Folder or Hub name of a model, or `"scratch"`.
        task: `"semantic"`, `"instance"`, `"panoptic"`.
        max_steps, minutes: How long; steps win over minutes.
        ignore_value: Value of label maps that means unlabelled, beside those that `read_form` knows.
        lora: Parts of the model that get adapters, joined by `+` (`lora.match_modules`).
        image_size: Shorter side of a picture, in training, evaluation and use.
        keep_labels: Vocabulary (name or file) whose results are compared before and after; default: the stored one.
        keep_data: Labelled pictures of other classes that are measured before and after.
        copy_paste: Probability that things of another picture are laid over one, where the data know single objects.
        patience: Measurements without a better figure after which training stops, 0: never; default `PATIENCE`.
    """

    data: str
    out: Path
    model: str = SCRATCH
    labels_file: Path | None = None
    ignore_value: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    task: str | None = None
    preset: str = "quick"
    max_steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    compensation_weight: float | None = None
    copy_paste: float | None = None
    image_size: int | None = None
    lora: str | None = None
    lora_rank: int = 8
    keep_labels: str | None = None
    keep_data: str | None = None
    patience: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    use_cpu: bool = False
    seed: int = 0
    resume: bool = False
    overwrite: bool = False

    @property
    def recipe(self) -> str:
        """The preset, or `"scratch"`."""
        return SCRATCH if self.model == SCRATCH else self.preset

    def check(self) -> None:
        """Raises ValueError for an unknown preset, options that do not go with it, and numbers below their limits."""
        if self.preset not in MINUTES or self.preset == SCRATCH:
            raise ValueError(f"`preset` must be quick, full or lora, got {self.preset!r}.")
        if self.recipe == SCRATCH and self.preset != "quick":
            raise ValueError(f"`preset` {self.preset} is for a trained model; leave it out with --model scratch.")
        if self.compensation_weight is not None and self.recipe not in HOLDS_TRUNK:
            raise ValueError(
                f"--compensation-weight does nothing with {self.recipe}: take it with preset full or lora."
            )
        if self.lora is not None and self.recipe != LORA:
            raise ValueError(f"--lora does nothing with {self.recipe}: take it with preset lora.")
        for name in ("minutes", "learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be more than 0, got {value}.")

    def recorded(self) -> dict[str, str]:
        """What a run that goes on shares with the one that began: all options but those of the machine and `out`."""
        names = (field.name for field in fields(self) if field.name not in (*NOT_RECORDED, "out"))
        return {name: str(getattr(self, name)) for name in names}

    def command(self) -> str:
        """The command line of these options, what is at its default left out."""
        parts = ["maftplus", "finetune"]
        always = ("model",) if self.model == SCRATCH else ("model", "preset")
        for field in (field for field in fields(self) if field.name not in NOT_RECORDED):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value != field.default or field.name in always:
                parts += [flag] if value is True else [flag, str(value)]
        return shlex.join(parts)


def make_arguments(options: FinetuneOptions, figure: str, num_train: int) -> Arguments:
    """
    Options of `train/run.py`: the recipe, and what the command line says.

    Args:
        figure: What tells the best model.
        num_train: Pictures of the training part; a batch holds no more of them.

    Raises:
        ValueError, OSError: as `parse_arguments`.
    """
    options.check()
    given = {
        "output_dir": options.out,
        "seed": options.seed,
        "bf16": options.bf16,
        "use_cpu": options.use_cpu,
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "copy_paste": options.copy_paste,
        "lora": options.lora,
        "lora_rank": options.lora_rank,
        "gradient_checkpointing": options.gradient_checkpointing or None,
        "metric_for_best_model": figure,
        "report_to": "none",
        **dict.fromkeys(("do_train", "do_eval", "load_best_model_at_end", "greater_is_better"), True),
        **dict.fromkeys(("eval_strategy", "save_strategy"), "steps"),
        **dict.fromkeys(("save_total_limit", "max_steps"), 1),  # the plan knows how many
        "overwrite_output_dir": options.overwrite,
        "resume_from_checkpoint": "last" if options.resume else None,
    }
    parts = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    recipe = str(RECIPES / f"finetune_{options.recipe}.yaml")
    model_args, data_args, args = parse_arguments([recipe, *parts])
    args.per_device_train_batch_size = min(args.per_device_train_batch_size, num_train)
    if options.recipe != SCRATCH:
        model_args = _with_model(model_args, options)
    if options.image_size is not None:
        data_args.eval_size = {"shortest_edge": options.image_size, "longest_edge": options.image_size * 5 // 3}
        data_args.augmentation = []
    return model_args, data_args, args


def _with_model(model_args: ModelArguments, options: FinetuneOptions) -> ModelArguments:
    """Which model, and the weights of its losses."""
    changes: dict[str, Any] = {**model_args.model_config, "dtype": "float32"}
    if options.compensation_weight is not None:
        changes["compensation_weight"] = options.compensation_weight
    return replace(model_args, model_name_or_path=options.model, model_config=changes)


def let_segmenter_speak(config: Any, recipe: str) -> None:
    """
    Trained classes go by the segmenter's own class scores while they are learnt, in place; a preset only.

    CLIP's scores, which alone count in MAFT+, learn a new word slowly: a softmax that is sure of old words gives the
    mask-aware loss hardly a gradient. What CLIP's scores are worth in the end `finetune` measures.
    """
    if recipe == SCRATCH or not config.has_segmenter:
        return
    config.ensemble_alpha = 0.0
    if recipe == "quick" and config.cdt_form == "off":
        config.mask_aware_weight = 0.0  # nothing that it reaches would train


def training_transforms(size: dict[str, int]) -> list[dict[str, Any]]:
    """Scale, place and side by chance, for pictures that are evaluated at `size`."""
    side = size["shortest_edge"]
    return [
        {"name": "resize_shortest_edge", "shortest": [round(side * scale) for scale in SCALES], "longest": 4 * side},
        {"name": "random_crop", "size": side},
        {"name": "random_flip"},
    ]
