"""Train and evaluate: one entry, a recipe and overrides on the command line.

    accelerate launch train/run.py train/recipes/maftplus_base.yaml --do_train --do_eval \\
        --data_root datasets --clip_name_or_path converted/convnext_base --output_dir runs/base
    python train/run.py train/recipes/overfit.yaml --do_train --do_eval --image_folder IMAGES --label_folder LABEL_MAPS
    accelerate launch --multi_gpu --num_processes 2 train/run.py RECIPE ... --use_cpu    # two processes without GPUs
    python train/run.py train/recipes/maftplus_base.yaml --do_eval --data_root datasets --model_name_or_path runs/base
    accelerate launch train/run.py --do_eval --data_sets ade20k_150 pascal_context_459 --data_root datasets \\
        --model_name_or_path runs/base --output_dir runs/eval

A recipe is a flat YAML file: every key is an option (`options.py`), and the command line wins over it;
`data/sources.py` says how data are named. `--resume_from_checkpoint last` goes on where a killed run stopped. What a
user can cause ends in one line and exit code 2, SIGTERM in a checkpoint and exit code 143.
"""

import json
import logging
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForUniversalSegmentation, AutoTokenizer, set_seed

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig
from maftplus.conversion.tokenizer import END, START, build_clip_tokenizer, byte_tokens
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import write_atomically
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.train.checkpoints import MARKER, checkpoint_fault, checkpoints_of, disk_errors, last_whole_checkpoint
from maftplus.train.data.augmentation import (
    AugmentedDataset,
    AugmentedStream,
    TrainingCollator,
    build_transforms,
    void_value,
)
from maftplus.train.data.sources import is_stream, load_data, load_entry, load_eval_data
from maftplus.train.evaluation.evaluate import Evaluation, ModelPredictor, evaluate_data_sets, scalar_figures
from maftplus.train.evaluation.reports import format_table, write_report
from maftplus.train.finetuning.lora import add_adapter, describe_adapter, is_adapter, load_adapter
from maftplus.train.options import (
    DataArguments,
    ModelArguments,
    is_recipe,
    parse_arguments,
    recorded_command,
    recorded_recipe,
)
from maftplus.train.processes import process_state
from maftplus.train.publish import push_files, write_card
from maftplus.train.trainer import MaftPlusTrainer, MaftPlusTrainingArguments, NonFiniteLossError, check_trainable
from maftplus.vocabularies.files import VocabularyFile
from maftplus.words_maftplus import class_key, find_seen_classes

logger = logging.getLogger("maftplus.train")

BYTES = "bytes"
OF_CHECKPOINTS = (MARKER, "trainer_state.json")  # whoever else calls a folder checkpoint-1 keeps it
USER_ERROR = 2


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """
    Run what the command line asks for.

    Returns:
        The metrics.

    Raises:
        ValueError, OSError: for what a user can cause; one line.
        SystemExit: with 143 if SIGTERM stopped the training; a checkpoint is saved, nothing else.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    model_args, data_args, args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    push = _take_push_options(args)
    set_seed(args.seed)
    metrics, written = {}, []
    if args.do_eval and data_args.data_sets and not args.do_train:
        model, processor = build_model(model_args), build_processor(model_args, data_args)
        metrics, written = _evaluate_data_sets(model, processor, data_args, args, arguments)
    else:
        trainer = build_trainer(model_args, data_args, args)
        if args.do_train:
            written += _train(trainer, args)
        if trainer.eval_dataset is not None and args.do_eval:
            metrics = trainer.evaluate()
        if args.do_eval and data_args.data_sets:
            more = _evaluate_data_sets(trainer.model, trainer.processing_class, data_args, args, arguments)
            metrics, written = metrics | more[0], written + more[1]
        if trainer.is_world_process_zero():
            written += _write_results(arguments, metrics, trainer, data_args)
    if push and process_state().is_main_process:
        push_files(Path(args.output_dir), written, **push)
    return metrics


def _take_push_options(args: MaftPlusTrainingArguments) -> dict[str, Any] | None:
    """
    What `push_files` is given, None if nothing is pushed.

    It is pushed once, at the end, by ourselves: training must not need a network before, and `training_args.bin` must
    not hold the token.
    """
    push = None
    if args.push_to_hub:
        repository = args.hub_model_id or Path(args.output_dir).name
        push = {"repository": repository, "private": args.hub_private_repo, "token": args.hub_token}
    args.push_to_hub, args.hub_token = False, None
    return push


def _train(trainer: MaftPlusTrainer, args: MaftPlusTrainingArguments) -> list[Path]:
    """Train and save the model; returns the files written."""
    checkpoint = find_checkpoint(args)
    if trainer.is_world_process_zero():
        _make_room(args)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.sigterm.received:
        logger.warning("Stopped by SIGTERM; go on with --resume_from_checkpoint last.")
        raise SystemExit(128 + signal.SIGTERM)
    return save_whole(trainer, Path(args.output_dir))


def _make_room(args: MaftPlusTrainingArguments) -> None:
    """
    Deletes the checkpoints of an earlier run where `--overwrite_output_dir` says so.

    Raises:
        ValueError: if the output folder holds a model or checkpoints and nothing says what to do with them.
    """
    folder = Path(args.output_dir)
    old = [path for path in checkpoints_of(folder) if any((path / name).is_file() for name in OF_CHECKPOINTS)]
    has_model = (folder / "config.json").is_file() or is_adapter(folder)
    if find_checkpoint(args) is not None or not (old or has_model):
        return
    if not args.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds {'checkpoints' if old else 'a model'} of an earlier run: go on with "
            "--resume_from_checkpoint last, or start anew with --overwrite_output_dir, or in another --output_dir."
        )
    for path in old:
        shutil.rmtree(path)


def save_whole(trainer: MaftPlusTrainer, folder: Path) -> list[Path]:
    """
    Save model, processor and the trainer's state; on a full disk the old files stay as they are.

    Returns:
        The files written, on the main process.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    unfinished = folder / ".unfinished"
    is_main = trainer.is_world_process_zero()
    try:
        with disk_errors(folder):
            trainer.save_model(str(unfinished))
            trainer.save_state()
        trainer.accelerator.wait_for_everyone()
        names = sorted(path.name for path in unfinished.iterdir()) if is_main else []
        for name in names:
            (unfinished / name).replace(folder / name)
    finally:
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
    return [folder / name for name in (*names, "trainer_state.json")] if is_main else []


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: MaftPlusTrainingArguments
) -> MaftPlusTrainer:
    """
    Data, model, processor and teacher as the options name them, put together.

    Raises:
        ValueError: if there is nothing to do, and as `assemble_trainer`.
    """
    train_data = (
        load_data(data_args, data_args.train_split, max_samples=data_args.max_train_samples) if args.do_train else None
    )
    eval_data = load_eval_data(data_args) if args.do_eval or args.eval_strategy != "no" else None
    if train_data is None and eval_data is None:  # a stream has no length, so no truth value
        raise ValueError("Nothing to do: pass `--do_train`, `--do_eval` or both.")
    processor = build_processor(model_args, data_args)
    return assemble_trainer(build_model(model_args), processor, train_data, eval_data, model_args, data_args, args)


def assemble_trainer(
    model: MaftPlusForUniversalSegmentation,
    processor: MaftPlusProcessor,
    train_data: Any,
    eval_data: Any,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: MaftPlusTrainingArguments,
) -> MaftPlusTrainer:
    """
    A trainer of a model on data that are there already; the data's classes become the model's and the processor's.

    Args:
        train_data, eval_data: As `load_data` returns them; one of them may be `None`.

    Raises:
        ValueError: if there is not even one batch to train on, or nothing that the losses train.
    """
    data = eval_data if train_data is None else train_data
    if train_data is not None:
        _require_a_step(train_data, args)
        _add_training_classes(processor, train_data, model_args)
    store_vocabulary(model, processor, data.vocabulary, model_args)
    if train_data is not None:
        _put_adapter(model, model_args)
        check_trainable(model, args.freeze_trunk)
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
        do_compare_scores=data_args.do_compare_scores and model.config.proposer_config is None,
        processing_class=processor,
    )


def _put_adapter(model: MaftPlusForUniversalSegmentation, args: ModelArguments) -> None:
    """The adapter that `--lora` asks for, told on the main process. Raises ValueError without a model to adapt."""
    if args.lora is None:
        return
    if args.model_name_or_path is None:
        raise ValueError("`lora` adapts a model that is trained already: pass `model_name_or_path`.")
    add_adapter(model, args.lora, args.lora_rank, args.lora_alpha, args.lora_dropout)
    if process_state().is_main_process:
        logger.info("%s", describe_adapter(model))


def _require_a_step(data, args: MaftPlusTrainingArguments) -> None:
    """Raises ValueError if training would do nothing without a word: fewer pictures than a batch."""
    at_once = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and hasattr(data, "__len__") and not is_stream(data) and len(data) < at_once:
        raise ValueError(
            f"{len(data)} pictures are fewer than the {at_once} of a batch, so nothing would train: lower "
            "`per_device_train_batch_size`, or pass `--dataloader_drop_last false`."
        )


def _augmented(data, args: DataArguments, void: int, seed: int) -> AugmentedDataset | AugmentedStream:
    """Training samples with their augmentation; a stream is shuffled within a buffer, other data by the Trainer."""
    transforms = build_transforms(args.augmentation, ignore_index=void)
    if args.copy_paste:
        _require_things(data)
    if not is_stream(data):
        return AugmentedDataset(data, transforms, seed, args.copy_paste)
    if args.shuffle_buffer_size:
        data = replace(data, rows=data.rows.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size))
    return AugmentedStream(data, transforms, seed)


def _require_things(data) -> None:
    """Raises ValueError if `copy_paste` finds nothing to take from one picture to another."""
    wrong = None
    if is_stream(data):
        wrong = "a stream has no other picture at hand"
    elif data.task != "panoptic":
        wrong = "these label maps know no single objects"
    elif data.vocabulary.stuff is None:
        wrong = "nothing says what is stuff, so mark it in the vocabulary (`stuff: grass`)"
    if wrong is not None:
        raise ValueError(f"`copy_paste` lays things of one picture over another; {wrong}, or pass `--copy_paste 0`.")


def _add_training_classes(processor: MaftPlusProcessor, data, args: ModelArguments) -> None:
    """The processor remembers the classes that are learnt, not those that a zero-shot setting hides."""
    hidden, classes = getattr(data, "hidden", ()), list(processor.training_classes or [])
    known = {class_key(words) for words in classes}
    for index, words in enumerate(_class_words(data.vocabulary, args)):
        if index not in hidden and class_key(words) not in known:
            classes.append(words)
            known.add(class_key(words))
    processor.training_classes = classes


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
    """A whole model, or one with its adapter, or a new one around CLIP, or one with random weights throughout."""
    if args.model_name_or_path is not None and is_adapter(args.model_name_or_path):
        return load_adapter(args.model_name_or_path, **args.model_config)
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
    rows = _read_embeddings(args.class_embeddings)
    expected = (vocabulary.num_labels, model.config.clip_config.projection_dim)
    if tuple(rows.shape) != expected:
        raise ValueError(
            f"`class_embeddings` must be {expected} (classes, joint space), {args.class_embeddings} holds "
            f"{tuple(rows.shape)}."
        )
    names = [[name] for name in vocabulary.names]
    both = [[name, *synonyms] for name, synonyms in zip(vocabulary.names, classes)]  # some go by synonyms alone
    seen = find_seen_classes(both, processor.training_classes) if processor.training_classes else ()
    model.config.store_vocabulary(names, list(vocabulary.stuff or ()), np.flatnonzero(seen).tolist())
    model.vocabulary_embeds = F.normalize(rows, dim=-1)


def _read_embeddings(path: str) -> Tensor:
    """Raises ValueError, with the file's name, if it is no .npy file of numbers."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"`class_embeddings`: {path} is no .npy file of numbers ({error}).") from error


def find_checkpoint(args: MaftPlusTrainingArguments) -> str | None:
    """
    The checkpoint to go on from: a path, or the newest whole one of the output folder for `last`.

    Raises:
        FileNotFoundError: if there is none, or none that is whole.
        ValueError: if the one that is named lacks something that its marker lists.
    """
    wanted = args.resume_from_checkpoint
    if wanted in (None, "", False, "False", "false"):
        return None
    if wanted in (True, "last", "True", "true"):
        return str(last_whole_checkpoint(Path(args.output_dir)))
    if not Path(wanted).is_dir():
        raise FileNotFoundError(f"{wanted}: there is no such checkpoint.")
    fault = checkpoint_fault(Path(wanted)) if (Path(wanted) / MARKER).exists() else None
    if fault:
        raise ValueError(f"{wanted} is no whole checkpoint: {fault}.")
    return wanted


def _class_words(vocabulary: VocabularyFile, args: ModelArguments) -> list[list[str]]:
    return vocabulary.prompts if args.use_synonyms else [[name] for name in vocabulary.names]


def _evaluate_data_sets(
    model, processor, data_args: DataArguments, args: MaftPlusTrainingArguments, arguments: list[str]
) -> tuple[dict[str, float], list[Path]]:
    """Figures of `--data_sets`, called `DATASET_FIGURE`, and the files of the report in the output folder."""
    state, folder = process_state(), Path(args.output_dir)
    evaluations = evaluate_data_sets(
        ModelPredictor(model.to(state.device), processor),
        [load_entry(entry, data_args) for entry in data_args.data_sets],
        data_args.eval_tasks,
        data_args.data_set_batch_size,
        args.dataloader_num_workers,
        save_predictions=folder / "predictions" if data_args.save_predictions else None,
        num_examples=data_args.num_examples,
        max_samples=data_args.max_eval_samples,
    )
    facts = {"command": recorded_command(arguments), "model": getattr(model.config, "_name_or_path", "")}
    written = write_report(evaluations, folder, **facts)
    if state.is_main_process:
        logger.warning("Evaluation on %d processes\n%s", state.num_processes, format_table(evaluations))
    return _named_figures(evaluations), written


def _named_figures(evaluations: list[Evaluation]) -> dict[str, float]:
    return {f"{e.data_set}_{name}": value for e in evaluations for name, value in scalar_figures(e.figures).items()}


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
) -> list[Path]:
    """`metrics.json`, the loss curves and the model card, into the output folder; returns what was written."""
    folder, written = Path(trainer.args.output_dir), []
    folder.mkdir(parents=True, exist_ok=True)
    if metrics:
        written.append(folder / "metrics.json")
        write_atomically(written[0], json.dumps(metrics, indent=2))
        logger.info("%s", json.dumps(metrics, indent=2))
    if trainer.args.do_train:
        recipe = recorded_recipe(Path(arguments[0])) if is_recipe(arguments) else ""
        config = trainer.model.config
        classes = [config.id2label[index] for index in range(len(config.id2label))]
        stuff = [classes[index] for index in config.stuff_ids or ()]
        written += write_card(folder, trainer, metrics, data_args, recorded_command(arguments), recipe, classes, stuff)
    return written


def run(arguments: list[str] | None = None) -> int:
    """`main` for a shell: what a user can cause is one line on stderr. Returns the exit code."""
    try:
        main(arguments)
    except (ValueError, OSError, ImportError, NonFiniteLossError, SafetensorError) as error:
        logger.debug("The whole story:", exc_info=True)
        sys.stderr.write(f"error: {one_line(error)}\n")
        return USER_ERROR
    return 0


def one_line(error: BaseException) -> str:
    """An error's message without the traceback of the worker that it comes from, in one line."""
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:  # of a DataLoader's worker: the last line holds the message
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


if __name__ == "__main__":
    try:
        sys.exit(run())
    finally:
        process_state().destroy_process_group()  # its threads abort the process if they outlive the interpreter
