"""`maftplus finetune`: your labelled pictures in, a model that knows their classes out."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from maftplus.app.command import command
from maftplus.app.options import Precision, Task

DATA, TRAINING, OTHERS = "Data", "Training", "Other words"  # panels of the help


class Preset(str, Enum):
    quick = "quick"
    full = "full"
    lora = "lora"


def _option(panel: str, *names: str, help: str, **more: Any) -> typer.models.OptionInfo:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@command()
def finetune(
    data: Annotated[str, _option(DATA, help="Folder of labelled pictures in any usual form, or hub:NAME.")],
    out: Annotated[Path, _option(DATA, help="Folder for the report, the model and, with LoRA, the adapter.")],
    model: Annotated[str, _option(TRAINING, help="A model's name or folder, or scratch: from random weights.")],
    labels_file: Annotated[
        Path | None, _option(DATA, help="Names of the classes, a line each, where the data have none.")
    ] = None,
    ignore_value: Annotated[
        int | None, _option(DATA, min=0, help="Value of the label maps that means unlabelled, beside 255.")
    ] = None,
    image_column: Annotated[str | None, _option(DATA, help="hub: the column of pictures.")] = None,
    label_column: Annotated[str | None, _option(DATA, help="hub: the column of label maps.")] = None,
    task: Annotated[Task | None, _option(DATA, help="Default: what the data hold.")] = None,
    preset: Annotated[
        Preset | None, _option(TRAINING, help="quick (default): trunk frozen; full: as published; lora: adapters.")
    ] = None,
    minutes: Annotated[float | None, _option(TRAINING, help="About how long. Default: the preset's.")] = None,
    max_steps: Annotated[int | None, _option(TRAINING, min=1, help="So many steps, whatever the minutes.")] = None,
    batch_size: Annotated[int | None, _option(TRAINING, min=1, help="Pictures a step.")] = None,
    learning_rate: Annotated[float | None, _option(TRAINING, help="Peak learning rate.")] = None,
    image_size: Annotated[int | None, _option(TRAINING, min=32, help="Shorter side of a picture, in pixels.")] = None,
    lora: Annotated[
        str | None,
        _option(TRAINING, metavar="PARTS", help="Where adapters go: all, trunk, segmenter, segmenter-mlp, cdt, text."),
    ] = None,
    lora_rank: Annotated[int, _option(TRAINING, min=1, help="Width of the adapters' matrices.")] = 8,
    compensation_weight: Annotated[
        float | None, _option(TRAINING, min=0, help="How firmly the trunk is held to the original one.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, _option(TRAINING, "--gradient-checkpointing", help="Less memory, slower steps.")
    ] = False,
    dtype: Annotated[
        Precision, _option(TRAINING, help="auto: bfloat16 where the machine computes it.")
    ] = Precision.auto,
    copy_paste: Annotated[
        float | None,
        _option(TRAINING, min=0, max=1, help="How often things of another picture are laid over one. Default: 0.8."),
    ] = None,
    patience: Annotated[
        int | None, _option(TRAINING, min=0, help="Stop after so many measurements without a better one; 0: never.")
    ] = None,
    seed: Annotated[int, _option(TRAINING, help="Of the split, the order and the weights.")] = 0,
    keep_labels: Annotated[
        str | None,
        _option(OTHERS, help="Words, by name or file, compared before and after. Default: stored ones."),
    ] = None,
    keep_data: Annotated[
        str | None, _option(OTHERS, help="Labelled pictures of other classes, measured before and after.")
    ] = None,
    resume: Annotated[bool, _option(TRAINING, "--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Annotated[bool, _option(DATA, "--overwrite", help="Replace what an earlier run left there.")] = False,
) -> None:
    """Fine-tune a model on your own labelled pictures, or train one from scratch; measured before and after."""
    _run(dict(locals()))


def _run(given: dict[str, Any]) -> None:
    """Raises ValueError, OSError for what a user can cause."""
    import torch

    from maftplus.app.models import check_model_folder, resolve_model
    from maftplus.deploy.precision import choose_dtype
    from maftplus.train.finetuning.finetune import finetune as run
    from maftplus.train.finetuning.presets import SCRATCH, FinetuneOptions
    from maftplus.train.trainer import NonFiniteLossError

    model, preset, task = given["model"], given["preset"], given["task"]
    if model == SCRATCH and preset is not None:
        raise ValueError("--preset is for a trained model; leave it out with --model scratch.")
    given.update(preset=(preset or Preset.quick).value, task=task and task.value)
    if model != SCRATCH:
        check_model_folder(resolve_model(model))
    precision = choose_dtype(None, given.pop("dtype").value)
    if precision == torch.float16:
        raise ValueError("--dtype float16 does not train; take bfloat16 or float32.")
    try:
        run(
            FinetuneOptions(**given, bf16=precision == torch.bfloat16, use_cpu=not torch.accelerator.is_available()),
            typer.echo,
        )
    except NonFiniteLossError as error:
        raise ValueError(str(error)) from error
