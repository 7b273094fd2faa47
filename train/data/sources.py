"""The data that the options name: what is trained and evaluated on.

A data set is a name of the registry, `folder`, `coco_panoptic_json` or `hub:NAME` (a data set of the Hub, or a folder
that `datasets` reads); among `--data_sets`, `NAME=FILE` gives it a vocabulary of its own.
"""

from dataclasses import replace
from typing import Any

from maftplus.train.data.hub import HubDataset, load_hub
from maftplus.train.data.registry import (
    DATA_SETS,
    SegmentationDataset,
    load_coco_panoptic,
    load_data_set,
    load_folder,
)
from maftplus.train.options import DataArguments
from maftplus.vocabularies.files import VocabularyFile, load_vocabulary_file, with_prompts

HUB = "hub:"


def load_data(
    args: DataArguments,
    split: str,
    name: str | None = None,
    max_samples: int | None = None,
    is_evaluation: bool = False,
) -> SegmentationDataset | HubDataset:
    """
    The data set `name` (default `args.dataset`), cut to its first `max_samples`.

    Args:
        is_evaluation: Of `folder` and `coco_panoptic_json` take the files for evaluation, where they are given.

    Raises:
        ValueError: if an argument that this kind of data needs is missing.
    """
    name = name or args.dataset
    if name is not None and name.startswith(HUB):
        return _load_hub(
            args, split, name.removeprefix(HUB), load_vocabulary_file(_required(args, "vocabulary")), max_samples
        )
    if name in DATA_SETS:
        data = load_data_set(name, _required(args, "data_root"), split)
    elif name in ("folder", "coco_panoptic_json"):
        data = _load_files(args, name, is_evaluation)
    else:
        raise ValueError(
            f"`dataset` must be 'folder', 'coco_panoptic_json', 'hub:NAME' or one of {', '.join(DATA_SETS)}, "
            f"got {name!r}."
        )
    return data if max_samples is None else replace(data, items=data.items[:max_samples])


def _load_files(args: DataArguments, name: str, is_evaluation: bool) -> SegmentationDataset:
    """`folder` or `coco_panoptic_json`, from the folders named for it."""
    start = "eval_" if is_evaluation and args.eval_image_folder else ""
    images, labels = (_required(args, f"{start}{kind}_folder") for kind in ("image", "label"))
    vocabulary = load_vocabulary_file(_required(args, "vocabulary"))
    if name == "folder":
        return load_folder(images, labels, vocabulary, args.ignore_index, args.do_reduce_labels)
    return load_coco_panoptic(_required(args, f"{start}panoptic_json"), images, labels, vocabulary)


def _load_hub(
    args: DataArguments, split: str, name: str, vocabulary: VocabularyFile, max_samples: int | None = None
) -> HubDataset:
    options = {"image_column": args.image_column, "label_column": args.label_column, "streaming": args.streaming}
    options.update(ignore_index=args.ignore_index, do_reduce_labels=args.do_reduce_labels)
    data = load_hub(name, split, vocabulary, **options)
    return data if max_samples is None else replace(data, rows=data.rows.take(max_samples))


def load_entry(entry: str, args: DataArguments) -> SegmentationDataset | HubDataset:
    """
    One of `--data_sets`: NAME or NAME=VOCABULARY.

    `--vocabulary` is that of `folder` and `hub:`, and of a data set of the registry that is evaluated alone; for one
    of the registry a vocabulary means prompts, class by class.
    """
    name, _, own = entry.partition("=")
    is_alone = len(args.data_sets) == 1
    words = own or (args.vocabulary if is_alone or name not in DATA_SETS else None)
    if name.startswith(HUB):
        if not words:
            raise ValueError(f"{name} needs its classes: `{name}=FILE` or `--vocabulary FILE`.")
        return _load_hub(args, args.eval_split, name.removeprefix(HUB), load_vocabulary_file(words))
    data = load_data(replace(args, vocabulary=words), args.eval_split, name, is_evaluation=True)
    if not words or name not in DATA_SETS:
        return data
    return replace(data, vocabulary=with_prompts(data.vocabulary, load_vocabulary_file(words)))


def load_eval_data(args: DataArguments) -> SegmentationDataset | HubDataset | None:
    """What the trainer evaluates on; None where only `--data_sets` are asked for."""
    name = args.eval_dataset or args.dataset
    if name is None and args.data_sets:
        return None
    return load_data(args, args.eval_split, name, args.max_eval_samples, is_evaluation=True)


def is_stream(data: Any) -> bool:
    return isinstance(data, HubDataset) and not hasattr(data.rows, "__len__")


def _required(args: DataArguments, name: str) -> Any:
    value = getattr(args, name)
    if value is None:
        raise ValueError(f"`{name}` is missing: `dataset={args.dataset}` needs it.")
    return value
