"""The benchmarks of one command: load them, evaluate, leave a report.

    accelerate launch train/run.py --do_eval --model_name_or_path MODEL --data_root datasets \\
        --benchmarks ade20k_150 pascal_context_459 --output_dir runs/eval --save_predictions

A benchmark is a name of the registry, `folder`, or `hub:NAME` (a data set of the Hub, or a folder that `datasets`
reads). `NAME=FILE` gives it a vocabulary of its own: the prompts of a registry benchmark, class by class, or the
classes of the others. `--vocabulary` does so for `folder` and `hub:`, and for a registry benchmark evaluated alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from maftplus.train.data.registry import BENCHMARKS, load_hub
from maftplus.train.evaluation.evaluate import Evaluation, ModelPredictor, evaluate_benchmarks
from maftplus.train.evaluation.reports import format_table, write_report
from maftplus.train.processes import process_state
from maftplus.vocabularies.files import load_vocabulary_file, with_prompts

logger = logging.get_logger(__name__)
HUB = "hub:"


@dataclass
class BenchmarkArguments:
    """What `--do_eval` does on benchmarks."""

    benchmarks: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the registry, folder, hub:NAME; each may end in =FILE, its vocabulary."},
    )
    eval_tasks: list[str] | None = field(
        default=None, metadata={"help": "semantic, panoptic. Default: each benchmark's own task."}
    )
    benchmark_batch_size: int = field(
        default=1,
        metadata={"help": "Pictures a step; padding to a common size changes results, papers measure with 1."},
    )
    save_predictions: bool = field(default=False, metadata={"help": "Write all predictions in COCO's formats."})
    num_examples: int = field(default=3, metadata={"help": "How many of the best and worst pictures to draw."})
    image_column: str = field(default="image", metadata={"help": "hub: column of the pictures."})
    label_column: str = field(default="label", metadata={"help": "hub: column of the label maps."})
    streaming: bool = field(default=False, metadata={"help": "hub: read while evaluating, without a download first."})


def run_benchmarks(
    model: Any,
    processor: Any,
    arguments: BenchmarkArguments,
    load: Callable[[str], Any],
    output_dir: str | Path,
    vocabulary: str | None = None,
    split: str = "val",
    command: str = "",
    max_samples: int | None = None,
    num_workers: int = 0,
    **hub_options: Any,
) -> list[Evaluation]:
    """
    Evaluate a model on `arguments.benchmarks` and write the report; call it on every process.

    Args:
        load: A name of the registry (or "folder") -> its data set.
        vocabulary: A vocabulary's name or file: prompts of registry benchmarks, classes of Hub data sets.
        max_samples, num_workers: As for `evaluate_benchmarks`.
        hub_options: For `HubDataset` (`ignore_index`, `do_reduce_labels`).
    """
    state = process_state()
    predict = ModelPredictor(model.to(state.device), processor)
    columns = {"image_column": arguments.image_column, "label_column": arguments.label_column}
    hub_options = {**columns, "streaming": arguments.streaming, "split": split, **hub_options}
    entries = arguments.benchmarks or ()
    datasets = [_load(entry, load, vocabulary, len(entries) == 1, hub_options) for entry in entries]
    folder = Path(output_dir)
    evaluations = evaluate_benchmarks(
        predict,
        datasets,
        arguments.eval_tasks,
        arguments.benchmark_batch_size,
        num_workers,
        save_predictions=folder / "predictions" if arguments.save_predictions else None,
        num_examples=arguments.num_examples,
        max_samples=max_samples,
    )
    write_report(evaluations, folder, command=command, model=getattr(model.config, "_name_or_path", ""))
    if state.is_main_process:
        logger.warning("Evaluation on %d processes\n%s", state.num_processes, format_table(evaluations))
    return evaluations


def _load(entry: str, load: Callable, vocabulary: str | None, is_alone: bool, hub_options: dict[str, Any]) -> Any:
    name, _, own = entry.partition("=")
    words = own or (vocabulary if is_alone or name not in BENCHMARKS else None)
    words = load_vocabulary_file(words) if words else None
    if name.startswith(HUB):
        if words is None:
            raise ValueError(f"{name} needs its classes: `{name}=FILE` or `--vocabulary FILE`.")
        return load_hub(name.removeprefix(HUB), vocabulary=words, **hub_options)
    dataset = load(name)
    if words is None or name not in BENCHMARKS:
        return dataset
    return replace(dataset, vocabulary=with_prompts(dataset.vocabulary, words))
