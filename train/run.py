"""Train and evaluate: one entry, a recipe and overrides on the command line.

    accelerate launch train/run.py train/recipes/maftplus_base.yaml --do_train --do_eval \\
        --data_root datasets --clip_name_or_path converted/convnext_base --output_dir runs/base
    python train/run.py train/recipes/overfit.yaml --do_train --do_eval --image_folder IMAGES --label_folder LABEL_MAPS
    accelerate launch --multi_gpu --num_processes 2 train/run.py RECIPE ... --use_cpu    # two processes without GPUs
    python train/run.py train/recipes/maftplus_base.yaml --do_eval --data_root datasets --model_name_or_path runs/base
    accelerate launch train/run.py --do_eval --benchmarks ade20k_150 pascal_context_459 --data_root datasets \\
        --model_name_or_path runs/base --output_dir runs/eval

A recipe is a flat YAML file: every key is an option below, and the command line wins over it.
`--resume_from_checkpoint last` goes on where a killed run stopped.
"""

import json
import logging
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn import functional as F
from transformers import AutoModelForUniversalSegmentation, AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig
from maftplus.conversion.tokenizer import END, START, build_clip_tokenizer, byte_tokens
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.train.card import write_card
from maftplus.train.data.augmentation import (
    AugmentedDataset,
    AugmentedStream,
    TrainingCollator,
    build_transforms,
    void_value,
)
from maftplus.train.data.registry import (
    BENCHMARKS,
    HubDataset,
    SegmentationDataset,
    load_benchmark,
    load_coco_panoptic,
    load_folder,
    load_hub,
)
from maftplus.train.evaluation.datasets import HUB, BenchmarkArguments, run_benchmarks
from maftplus.train.evaluation.evaluate import scalar_figures
from maftplus.train.evaluation.trainer_metrics import CountedEvaluation, EvaluationCollator
from maftplus.train.processes import process_state
from maftplus.train.publish import push_folder
from maftplus.train.trainer import MaftPlusTrainer, MaftPlusTrainingArguments
from maftplus.vocabularies.files import VocabularyFile, load_vocabulary_file
from maftplus.words_maftplus import find_seen_classes

logger = logging.getLogger("maftplus.train")
BYTES = "bytes"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class ModelArguments:
    """Where the model comes from. Without any path it starts from random weights, as `model_config` says."""

    model_name_or_path: str | None = field(default=None, metadata=_help("A MAFT+ model with its processor."))
    clip_name_or_path: str | None = field(default=None, metadata=_help("CLIP's weights (converted, or of the Hub)."))
    tokenizer_name_or_path: str | None = field(
        default=None, metadata=_help("Default: CLIP's. 'bytes': one token a byte, for models from scratch.")
    )
    proposer_name_or_path: str | None = field(
        default=None, metadata=_help("Frozen Mask2Former or MaskFormer that proposes masks (MAFT).")
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata=_help("The original CLIP. Default: the CLIP that the model starts with.")
    )
    model_config: dict | str | None = field(default=None, metadata=_help("JSON; fields of MaftPlusConfig."))
    use_synonyms: bool = field(default=True, metadata=_help("False: a class goes by its official name alone."))
    class_embeddings: str | None = field(
        default=None, metadata=_help("A .npy file (K, D) in place of what the text tower makes of the class names.")
    )

    def __post_init__(self):
        self.model_config = _parse_json(self.model_config) or {}


@dataclass
class DataArguments(BenchmarkArguments):
    """What to train and to evaluate on."""

    dataset: str | None = field(
        default=None,
        metadata=_help(f"'folder', 'coco_panoptic_json', 'hub:NAME' (training) or one of {', '.join(BENCHMARKS)}."),
    )
    data_root: str | None = field(default=None, metadata=_help("Folder of the benchmark's official layout."))
    train_split: str = field(default="train", metadata=_help("Split to train on."))
    eval_split: str = field(default="val", metadata=_help("Split to evaluate on."))
    eval_dataset: str | None = field(default=None, metadata=_help("Default: the training data set."))
    image_folder: str | None = field(default=None, metadata=_help("'folder', 'coco_panoptic_json': pictures."))
    label_folder: str | None = field(default=None, metadata=_help("The same: label maps or panoptic PNGs."))
    panoptic_json: str | None = field(default=None, metadata=_help("'coco_panoptic_json': the JSON file."))
    vocabulary: str | None = field(default=None, metadata=_help("Vocabulary of these two: a name or a file."))
    shuffle_buffer_size: int = field(
        default=1000, metadata=_help("'hub:NAME' with --streaming: pictures kept at hand to draw from; 0: in order.")
    )
    ignore_index: int | None = field(default=None, metadata=_help("'folder': value of unlabelled pixels."))
    do_reduce_labels: bool = field(default=False, metadata=_help("'folder': 0 is unlabelled, others count from 1."))
    max_train_samples: int | None = field(default=None, metadata=_help("Train on the first so many samples."))
    max_eval_samples: int | None = field(default=None, metadata=_help("Evaluate on the first so many samples."))
    augmentation: list | str | None = field(
        default=None, metadata=_help("JSON; a list of transforms, see train/data/augmentation.py.")
    )
    eval_size: dict | str | None = field(
        default=None, metadata=_help('JSON; {"shortest_edge": 800, "longest_edge": 1333} of evaluation and use.')
    )
    do_compare_scores: bool = field(
        default=False, metadata=_help("Evaluate by CLIP's and by the segmenter's class scores apart, too.")
    )

    def __post_init__(self):
        self.augmentation = _parse_json(self.augmentation) or []
        self.eval_size = _parse_json(self.eval_size)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run what the command line asks for; returns the metrics."""
    arguments = sys.argv[1:] if arguments is None else arguments
    model_args, data_args, args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    push_to = (args.hub_model_id or Path(args.output_dir).name) if args.push_to_hub else None
    args.push_to_hub = False  # pushed once, at the end, by ourselves: it must not need a network before
    set_seed(args.seed)
    if args.do_eval and data_args.benchmarks and not args.do_train:
        return _evaluate(build_model(model_args), build_processor(model_args, data_args), data_args, args, arguments)
    trainer = build_trainer(model_args, data_args, args)
    if args.do_train:
        trainer.train(resume_from_checkpoint=find_checkpoint(args))
        if trainer.sigterm.received:
            logger.warning("Stopped by SIGTERM; go on with --resume_from_checkpoint last.")
            return {}
        trainer.save_model()
        trainer.save_state()
    metrics = trainer.evaluate() if trainer.eval_dataset is not None and args.do_eval else {}
    if args.do_eval and data_args.benchmarks:
        metrics |= _evaluate(trainer.model, trainer.processing_class, data_args, args, arguments)
    if trainer.is_world_process_zero():
        _write_results(arguments, metrics, trainer, data_args)
        if push_to:
            push_folder(Path(args.output_dir), push_to)
    return metrics


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, MaftPlusTrainingArguments]:
    """
    Options of an optional recipe (first argument, `*.yaml`) and of the command line, which wins.

    Raises:
        ValueError: if the recipe is not a flat mapping.
    """
    if _is_recipe(arguments):
        arguments = [*read_recipe(Path(arguments[0])), *arguments[1:]]
    parser = HfArgumentParser((ModelArguments, DataArguments, MaftPlusTrainingArguments), allow_abbrev=False)
    return parser.parse_args_into_dataclasses(arguments)


def read_recipe(path: Path) -> list[str]:
    """A recipe as command-line options; lists and mappings become JSON."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: a recipe is a mapping of options, got {type(recipe).__name__}.")
    options = []
    for name, value in recipe.items():
        if value is not None:
            options += [f"--{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
    return options


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: MaftPlusTrainingArguments
) -> MaftPlusTrainer:
    """Data, model, processor and teacher, put together."""
    train_data = load_data(data_args, data_args.train_split) if args.do_train else None
    eval_data = _eval_data(data_args) if args.do_eval or args.eval_strategy != "no" else None
    data = eval_data if train_data is None else train_data  # a stream has no length, so no truth value
    if data is None:
        raise ValueError("Nothing to do: pass `--do_train`, `--do_eval` or both.")
    processor = build_processor(model_args, data_args)
    model = build_model(model_args)
    if train_data is not None:
        _add_training_classes(processor, train_data, model_args)
    store_vocabulary(model, processor, data.vocabulary, model_args)
    void = void_value(data)
    if train_data is not None:
        train_data = _augmented(train_data, data_args, void, args.seed)
    return MaftPlusTrainer(
        model=model,
        args=args,
        teacher=_teacher(model_args),
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=TrainingCollator(processor.image_processor, data.vocabulary.num_labels, void),
        eval_collator=EvaluationCollator(processor.image_processor),
        compute_metrics=None if eval_data is None else _counted_evaluation(model, processor, eval_data, data_args),
        processing_class=processor,
    )


def load_data(args: DataArguments, split: str, name: str | None = None) -> SegmentationDataset | HubDataset:
    """
    The data set `name` (default `args.dataset`), cut to its first samples where asked for.

    Raises:
        ValueError: if an argument that this kind of data needs is missing.
    """
    name = name or args.dataset
    if name in BENCHMARKS:
        data = load_benchmark(name, _required(args, "data_root"), split)
    elif name == "folder":
        data = load_folder(
            _required(args, "image_folder"),
            _required(args, "label_folder"),
            load_vocabulary_file(_required(args, "vocabulary")),
            args.ignore_index,
            args.do_reduce_labels,
        )
    elif name == "coco_panoptic_json":
        files = [_required(args, key) for key in ("panoptic_json", "image_folder", "label_folder")]
        data = load_coco_panoptic(*files, load_vocabulary_file(_required(args, "vocabulary")))
    elif name is not None and name.startswith(HUB):
        return _load_hub(args, split, name.removeprefix(HUB))
    else:
        raise ValueError(
            f"`dataset` must be 'folder', 'coco_panoptic_json', 'hub:NAME' or one of {', '.join(BENCHMARKS)}, "
            f"got {name!r}."
        )
    most = args.max_train_samples if split == args.train_split else args.max_eval_samples
    return data if most is None else replace(data, items=data.items[:most])


def _load_hub(args: DataArguments, split: str, name: str) -> HubDataset:
    """Samples of the Hub to train on."""
    options = {"image_column": args.image_column, "label_column": args.label_column, "streaming": args.streaming}
    options.update(ignore_index=args.ignore_index, do_reduce_labels=args.do_reduce_labels)
    data = load_hub(name, split, load_vocabulary_file(_required(args, "vocabulary")), **options)
    most = args.max_train_samples
    return data if most is None else replace(data, rows=data.rows.take(most))


def _augmented(data, args: DataArguments, void: int, seed: int) -> AugmentedDataset | AugmentedStream:
    """Training samples with their augmentation; a stream is shuffled within a buffer, other data by the Trainer."""
    transforms = build_transforms(args.augmentation, ignore_index=void)
    if not (isinstance(data, HubDataset) and args.streaming):
        return AugmentedDataset(data, transforms, seed)
    if args.shuffle_buffer_size:
        data = replace(data, rows=data.rows.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size))
    return AugmentedStream(data, transforms, seed)


def _add_training_classes(processor: MaftPlusProcessor, data, args: ModelArguments) -> None:
    """The processor remembers the classes that are learnt, not those that a zero-shot setting hides."""
    hidden, known = getattr(data, "hidden", ()), list(processor.training_classes or [])
    learnt = [words for index, words in enumerate(_class_words(data.vocabulary, args)) if index not in hidden]
    processor.training_classes = known + [words for words in learnt if words not in known]


def build_processor(model_args: ModelArguments, data_args: DataArguments) -> MaftPlusProcessor:
    """The model's processor, or a new one around the tokenizer; pictures are prepared at `eval_size`."""
    if model_args.model_name_or_path is not None:
        processor = MaftPlusProcessor.from_pretrained(model_args.model_name_or_path)
    else:
        processor = MaftPlusProcessor(MaftPlusImageProcessorPil(), _tokenizer(model_args))
    if data_args.eval_size is not None:
        fields = {**processor.image_processor.to_dict(), "size": data_args.eval_size}
        processor.image_processor = MaftPlusImageProcessorPil.from_dict(fields)
    return processor


def build_model(args: ModelArguments) -> MaftPlusForUniversalSegmentation:
    """A whole model, or a new one around CLIP (and a proposer), or one with random weights throughout."""
    if args.model_name_or_path is not None:
        return MaftPlusForUniversalSegmentation.from_pretrained(args.model_name_or_path, **args.model_config)
    fields = dict(args.model_config)
    clip_fields = fields.pop("clip_config", {})
    clip = proposer = None
    if args.clip_name_or_path is not None:
        clip = MaftPlusCLIPModel.from_pretrained(args.clip_name_or_path, **clip_fields)
    if args.proposer_name_or_path is not None:
        proposer = AutoModelForUniversalSegmentation.from_pretrained(args.proposer_name_or_path)
        fields["proposer_config"] = proposer.config
    clip_config = MaftPlusCLIPConfig(**clip_fields) if clip is None else clip.config
    model = MaftPlusForUniversalSegmentation(MaftPlusConfig(clip_config=clip_config, **fields))
    if clip is not None:
        model.model.clip = clip
    if proposer is not None:
        model.model.proposer = proposer
    return model


def store_vocabulary(
    model: MaftPlusForUniversalSegmentation,
    processor: MaftPlusProcessor,
    vocabulary: VocabularyFile,
    args: ModelArguments,
) -> None:
    """
    The classes of the data become the model's: names, synonyms, stuff and embeddings are saved with it.

    Those among the processor's `training_classes` count as seen, which the geometric ensemble reads.

    Raises:
        ValueError: if `class_embeddings` do not fit the classes and the model.
    """
    classes = _class_words(vocabulary, args)
    stuff = [classes[index] for index in vocabulary.stuff or ()]
    if args.class_embeddings is None:
        with torch.no_grad():
            model.eval().set_vocabulary(processor, classes, stuff=stuff)
        return
    rows = torch.from_numpy(np.load(args.class_embeddings)).float()
    expected = (vocabulary.num_labels, model.config.clip_config.projection_dim)
    if tuple(rows.shape) != expected:
        raise ValueError(
            f"`class_embeddings` must be {expected} (classes, joint space), {args.class_embeddings} holds "
            f"{tuple(rows.shape)}."
        )
    names = [[name] for name in vocabulary.names]
    seen = find_seen_classes(names, processor.training_classes) if processor.training_classes else ()
    model.config.store_vocabulary(names, list(vocabulary.stuff or ()), np.flatnonzero(seen).tolist())
    model.vocabulary_embeds = F.normalize(rows, dim=-1)


def find_checkpoint(args: MaftPlusTrainingArguments) -> str | None:
    """
    The checkpoint to go on from: a path, or the newest of the output folder for `last`.

    Raises:
        FileNotFoundError: if there is none.
    """
    if args.resume_from_checkpoint in (None, "", "False", "false"):
        return None
    if args.resume_from_checkpoint not in ("last", "True", "true"):
        return args.resume_from_checkpoint
    checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if checkpoint is None:
        raise FileNotFoundError(f"{args.output_dir} holds no checkpoint to resume from.")
    return checkpoint


def _class_words(vocabulary: VocabularyFile, args: ModelArguments) -> list[list[str]]:
    return vocabulary.prompts if args.use_synonyms else [[name] for name in vocabulary.names]


def _eval_data(args: DataArguments) -> SegmentationDataset | None:
    """What the trainer evaluates on; data of the Hub are for `--benchmarks`."""
    name = args.eval_dataset or args.dataset
    if name is not None and name.startswith(HUB):
        if not args.benchmarks:
            raise ValueError(f"Evaluate {name} with `--benchmarks {name}=VOCABULARY`, or name an `eval_dataset`.")
        return None
    return load_data(args, args.eval_split, name)


def _evaluate(
    model, processor, data_args: DataArguments, args: MaftPlusTrainingArguments, arguments: list[str]
) -> dict:
    """Figures of `--benchmarks`, called `BENCHMARK_FIGURE`; the report lies in the output folder."""
    evaluations = run_benchmarks(
        model,
        processor,
        data_args,
        lambda name: load_data(data_args, data_args.eval_split, name),
        args.output_dir,
        data_args.vocabulary,
        data_args.eval_split,
        shlex.join(["train/run.py", *arguments]),
        data_args.max_eval_samples,
        num_workers=args.dataloader_num_workers,
        ignore_index=data_args.ignore_index,
        do_reduce_labels=data_args.do_reduce_labels,
    )
    return {f"{e.benchmark}_{name}": value for e in evaluations for name, value in scalar_figures(e.figures).items()}


def _counted_evaluation(model, processor, data: SegmentationDataset, args: DataArguments) -> CountedEvaluation:
    vocabulary = data.vocabulary
    seen = tuple(model.config.seen_ids or ()) or vocabulary.seen
    return CountedEvaluation(
        processor.image_processor,
        vocabulary.num_labels,
        data.task,
        data.ignore_index,
        stuff=vocabulary.stuff or (),
        seen=None if seen is None or len(seen) == vocabulary.num_labels else seen,
        do_compare_scores=args.do_compare_scores and model.config.proposer_config is None,
    )


def _teacher(args: ModelArguments) -> MaftPlusCLIPModel | None:
    if args.teacher_name_or_path is None:
        return None
    return MaftPlusCLIPModel.from_pretrained(args.teacher_name_or_path)


def _tokenizer(args: ModelArguments):
    source = args.tokenizer_name_or_path or args.clip_name_or_path
    if source is None:
        raise ValueError("`tokenizer_name_or_path` is missing: a folder, a Hub name, or 'bytes'.")
    if source == BYTES:
        return build_clip_tokenizer({token: index for index, token in enumerate([*byte_tokens(), START, END])}, [])
    return AutoTokenizer.from_pretrained(source)


def _write_results(
    arguments: list[str], metrics: dict[str, float], trainer: MaftPlusTrainer, data_args: DataArguments
) -> None:
    """`metrics.json`, the loss curves and the model card, into the output folder."""
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
        logger.info("%s", json.dumps(metrics, indent=2))
    if trainer.args.do_train:
        recipe = Path(arguments[0]).read_text(encoding="utf-8") if _is_recipe(arguments) else ""
        write_card(folder, trainer, metrics, data_args, shlex.join(["python", "train/run.py", *arguments]), recipe)


def _is_recipe(arguments: list[str]) -> bool:
    return bool(arguments) and arguments[0].endswith((".yaml", ".yml"))


def _required(args: DataArguments, name: str) -> Any:
    value = getattr(args, name)
    if value is None:
        raise ValueError(f"`{name}` is missing: `dataset={args.dataset}` needs it.")
    return value


def _parse_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


if __name__ == "__main__":
    main()
    process_state().destroy_process_group()  # its threads abort the process if they outlive the interpreter
