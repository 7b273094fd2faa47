"""What a trained model leaves for others: its model card, and the push to the Hub of what the run itself wrote.

The card holds data, recipe, command (without secrets), versions, loss curves, metrics and what measured them. Without
a network, `hub_upload.json` says what would have been pushed.
"""

import json
import logging
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, HfApi, ModelCardData

from maftplus.pictures.files import write_atomically
from maftplus.train.finetuning.lora import base_of_adapter, has_adapter

logger = logging.getLogger(__name__)

CURVES, CARD, MANIFEST = "loss_curves.png", "README.md", "hub_upload.json"
NEVER_PUSHED = ("training_args.bin", MANIFEST)
SHOWN_CLASSES = 10
EXAMPLE_LABELS = ["person, man, woman", "dog", "grass"]

BODY = """---
{metadata}
---

# {title}
{base}
Open-vocabulary segmentation, trained with MAFT / MAFT+ ([arXiv 2310.00240](https://arxiv.org/abs/2310.00240),
[arXiv 2408.00744](https://arxiv.org/abs/2408.00744)).

{usage}

## Training

- Data: {data}, {num_samples} pictures, {num_classes} classes
- Steps: {steps}, {images_per_step} pictures a step
- Versions: {versions}

{command}

{recipe}

{curves}

## Results

{results}
"""
OF_A_MODEL = """from transformers import pipeline

segmenter = pipeline("image-segmentation", model={name}, trust_remote_code=True)
segmenter("picture.jpg", candidate_labels={labels}, stuff_labels={stuff})"""
OF_AN_ADAPTER = """# an adapter (LoRA) alone; its base is {base}
maftplus segment picture.jpg --model {folder}
maftplus merge {folder} merged  # an ordinary model folder"""


def write_card(
    folder: Path,
    trainer: Any,
    metrics: dict[str, float],
    data_args: Any,
    command: str,
    recipe: str,
    classes: Sequence[str] = (),
    stuff: Sequence[str] = (),
    title: str | None = None,
    base: str | None = None,
) -> list[Path]:
    """
    `README.md` and `loss_curves.png` in `folder`; returns what was written.

    Args:
        metrics: As `Trainer.evaluate` returned them; they become `model-index` entries.
        command: The command that trained and measured, without secrets.
        recipe: Text of the recipe used, without secrets; may be empty.
        classes, stuff: The model's own words for the card's example.
        title: What the model is called, where its folder's name says nothing; the example then names the whole path.
        base: What was trained on from here.
    """
    has_curves = draw_curves(trainer.state.log_history, folder / CURVES)
    args, data_name = trainer.args, escaped(data_args.dataset)
    path, title = (folder.name, folder.name) if title is None else (folder.as_posix(), title)
    card = BODY.format(
        metadata=_metadata(title, metrics, data_args.eval_dataset or data_args.dataset).to_yaml(),
        title=escaped(title),
        base="" if base is None else f"\nBase model: {escaped(base)}.\n",
        usage=_usage(path, trainer.model, classes[:SHOWN_CLASSES], stuff),
        data=data_name,
        num_samples=len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else "streamed",
        num_classes=trainer.data_collator.num_classes,
        steps=trainer.state.global_step,
        images_per_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        versions=_versions(),
        command=fenced(command),
        recipe=fenced(recipe.strip(), "yaml") if recipe.strip() else "",
        curves=f"![Losses]({CURVES})" if has_curves else "",
        results=_results_table(metrics, data_args),
    )
    write_atomically(folder / CARD, card)
    return [folder / CARD, *([folder / CURVES] if has_curves else [])]


def _usage(name: str, model: Any, classes: Sequence[str], stuff: Sequence[str]) -> str:
    """How to use what was trained, as a block of code."""
    if has_adapter(model):
        folder, base = shlex.quote(name), " ".join(str(base_of_adapter(model)).split())
        return fenced(OF_AN_ADAPTER.format(folder=folder, base=base), "bash")
    name, labels, stuff = (
        json.dumps(value, ensure_ascii=False)
        for value in (name, list(classes) or EXAMPLE_LABELS, [label for label in classes if label in stuff])
    )
    return fenced(OF_A_MODEL.format(name=name, labels=labels, stuff=stuff), "python")


def escaped(text: str) -> str:
    """A name as plain text in Markdown: no links, no markup, one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$])", r"\\\1", " ".join(str(text).split()))


def fenced(text: str, language: str = "") -> str:
    """Text in a code block that it cannot close itself."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def draw_curves(history: list[dict[str, float]], path: Path) -> bool:
    """Every loss over the steps as a picture; False where nothing was logged or matplotlib is missing."""
    rows = [row for row in history if "loss" in row]
    if not rows:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = [name for name in rows[-1] if name.startswith("loss_") and not name[-1].isdigit()]
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for name in ("loss", *sorted(names)):
        axes.plot([row["step"] for row in rows], [row.get(name) for row in rows], label=name)
    axes.set(xlabel="step", ylabel="weighted loss", yscale="log")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return True


def _versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"


def _metadata(name: str, metrics: dict[str, float], dataset: str) -> ModelCardData:
    figures = {key: value for key, value in _figures(metrics).items() if value == value}
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=key,
            metric_value=round(value, 6),
        )
        for key, value in figures.items()
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary-segmentation", "image-segmentation", "clip", "maftplus"],
        eval_results=results or None,
    )


def _results_table(metrics: dict[str, float], data_args: Any) -> str:
    figures = _figures(metrics)
    if not figures:
        return "Not evaluated."
    split = escaped(measured_pictures(data_args))
    rows = [f"| {key} | {value:.4f} |" for key, value in figures.items()]
    return "\n".join([f"On {split}, measured by the command above.", "", "| figure | value |", "|---|---|", *rows])


def measured_pictures(data_args: Any) -> str:
    """Which pictures the figures are of, in words; those that were trained on are called so."""
    name = data_args.eval_dataset or data_args.dataset
    if data_args.eval_image_folder:
        return f"the pictures of {data_args.eval_image_folder}"
    on_disk = name in ("folder", "coco_panoptic_json")
    if name == data_args.dataset and (on_disk or data_args.eval_split == data_args.train_split):
        return f"the training pictures ({name}), so they do not say how it does on others"
    return f"{name}, split {data_args.eval_split}"


def _figures(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of the task, without `eval_` and without timings."""
    figures = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    left_out = ("runtime", "samples_per_second", "steps_per_second", "epoch", "num_images", "model_preparation_time")
    return {key: value for key, value in figures.items() if key not in left_out and isinstance(value, float)}


# --- The Hub ---


def files_written(folder: Path, write: Callable[[], Any]) -> list[Path]:
    """The files of `folder` itself (not below it) that `write()` makes or changes, hidden ones left out."""
    before = _states(folder)
    write()
    return sorted(path for path, state in _states(folder).items() if before.get(path) != state)


def _states(folder: Path) -> dict[Path, tuple]:
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.stat().st_size) for path in files}


def push_files(
    folder: Path, files: Iterable[Path], repository: str, private: bool | None = None, token: str | None = None
) -> bool:
    """
    Upload what a run wrote to `repository` on the Hub: `files`, all below `folder`, and nothing else of it.

    Args:
        private: Whether a new repository is private; `None`: as the account's organisation has it.
        token: Of the account; `None`: the one that is logged in.

    Returns:
        Whether it was uploaded. Offline, `hub_upload.json` in the folder lists what would have been, with sizes.
    """
    names = sorted({path.relative_to(folder).as_posix() for path in files if path.name not in NEVER_PUSHED})
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "", "false"):
        return _write_manifest(folder, repository, names, "HF_HUB_OFFLINE is set")
    try:
        api = HfApi(token=token)
        url = api.create_repo(repository, private=private, token=token, exist_ok=True)
        if private and not api.repo_info(url.repo_id, token=token).private:
            return _write_manifest(folder, repository, names, "--hub_private_repo, but the repository is public")
        patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in names]  # a name is no pattern
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, allow_patterns=patterns, token=token)
    except Exception as error:  # each version of the client raises its transport's own errors; nothing is lost here
        reason = f"{type(error).__name__}: {error}"
        return _write_manifest(folder, repository, names, reason.replace(token, "***") if token else reason)
    logger.info("Pushed %d files to %s.", len(names), url)
    return True


def _write_manifest(folder: Path, repository: str, names: list[str], reason: str) -> bool:
    sizes = {name: (folder / name).stat().st_size for name in names}
    content = {"repository": repository, "reason": reason, "files": sizes}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2))
    logger.warning("Not pushed to %s (%s); %s lists what would be.", repository, reason, folder / MANIFEST)
    return False
