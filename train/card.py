"""The model card of a trained model: data, recipe, command, versions, loss curves, metrics and what measured them."""

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

CURVES = "loss_curves.png"

BODY = """---
{metadata}
---

# {title}

Open-vocabulary segmentation, trained with MAFT / MAFT+ ([arXiv 2310.00240](https://arxiv.org/abs/2310.00240),
[arXiv 2408.00744](https://arxiv.org/abs/2408.00744)).

```python
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{title}", trust_remote_code=True)
segmenter("picture.jpg", candidate_labels=["person, man, woman", "dog", "grass"], stuff_labels=["grass"])
```

## Training

- Data: {data}, {num_samples} pictures, {num_classes} classes
- Steps: {steps}, {images_per_step} pictures a step
- Versions: {versions}

```
{command}
```

```yaml
{recipe}
```

{curves}

## Results

{results}
"""


def write_card(
    folder: Path, trainer: Any, metrics: dict[str, float], data_args: Any, command: str, recipe: str
) -> None:
    """
    `README.md` and `loss_curves.png` in `folder`.

    Args:
        metrics: As `Trainer.evaluate` returned them; they become `model-index` entries.
        command: The command that trained and measured.
        recipe: Text of the recipe used.
    """
    history = trainer.state.log_history
    has_curves = draw_curves(history, folder / CURVES)
    data_name = data_args.dataset
    card = BODY.format(
        metadata=_metadata(folder.name, metrics, data_args.eval_dataset or data_name).to_yaml(),
        title=folder.name,
        data=data_name,
        num_samples=len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else "streamed",
        num_classes=trainer.data_collator.num_classes,
        steps=trainer.state.global_step,
        images_per_step=trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
        versions=_versions(),
        command=command,
        recipe=recipe.strip(),
        curves=f"![Losses]({CURVES})" if has_curves else "",
        results=_results_table(metrics, data_args, command),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


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


def _results_table(metrics: dict[str, float], data_args: Any, command: str) -> str:
    figures = _figures(metrics)
    if not figures:
        return "Not evaluated."
    split = f"{data_args.eval_dataset or data_args.dataset}, split {data_args.eval_split}"
    rows = [f"| {key} | {value:.4f} |" for key, value in figures.items()]
    return "\n".join([f"On {split}, measured by the command above.", "", "| figure | value |", "|---|---|", *rows])


def _figures(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of the task, without `eval_` and without timings."""
    figures = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    left_out = ("runtime", "samples_per_second", "steps_per_second", "epoch", "num_images", "model_preparation_time")
    return {key: value for key, value in figures.items() if key not in left_out and isinstance(value, float)}
