"""A tiny trainer on made-up pictures, and the worker that tests start as processes of its own.

python tests/training_tools.py OUTPUT_DIR '{"max_steps": 4, ...}'        # one run; prints nothing, saves weights
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_tools import tiny_config
from transformers import TrainerCallback

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.train.data.augmentation import AugmentedDataset, RandomFlip, TrainingCollator
from maftplus.train.finetuning.lora import add_adapter
from maftplus.train.processes import process_state
from maftplus.train.trainer import MaftPlusTrainer, MaftPlusTrainingArguments

CLASSES = [["cat"], ["dog", "puppy"], ["grass"], ["sky"]]


class Pictures(torch.utils.data.Dataset):
    """Eight pictures of 64 x 128 with four bands of classes; the last one is not annotated at all."""

    task, ignore_index = "semantic", 255

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        labels = np.repeat(rng.permutation(len(CLASSES)), 32)[None].repeat(64, 0)
        image = (labels[..., None] * 60 + rng.integers(0, 16, (64, 128, 3))).astype(np.uint8)
        labels = np.full_like(labels, 255) if index == 7 else labels
        return {"name": f"picture_{index}.jpg", "image": image, "segmentation_map": labels.astype(np.int32)}


class SelfDestruction(TrainerCallback):
    """Sends this very process a signal after a step: what a scheduler or a power cut does."""

    def __init__(self, step: int, signal_number: int):
        self.step, self.signal_number = step, signal_number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.signal_number)


def training_model(seed: int = 0, **config) -> MaftPlusForUniversalSegmentation:
    """A tiny model with a stored vocabulary of random embeddings."""
    torch.manual_seed(seed)
    config = {"vocabulary": CLASSES, "train_num_points": 64, "distillation_weight": 0.0, **config}
    model = MaftPlusForUniversalSegmentation(tiny_config(**config))
    with torch.no_grad():
        model.vocabulary_embeds.copy_(F.normalize(torch.randn_like(model.vocabulary_embeds), dim=-1))
    return model


def make_trainer(folder: Path | str, model=None, dataset=None, lora: str | None = None, processor=None, **arguments):
    """A trainer of `training_model`, or of an adapter in it, on `Pictures`, four at a time."""
    model = training_model() if model is None else model
    if lora is not None:
        add_adapter(model, lora)
    defaults = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        # A key's bias cancels in the softmax: its gradient is rounding alone, which Adam would blow up to full steps.
        "adam_epsilon": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return MaftPlusTrainer(
        model=model,
        args=MaftPlusTrainingArguments(**{**defaults, **arguments}),
        train_dataset=AugmentedDataset(dataset or Pictures(), [RandomFlip()], seed=3),
        data_collator=TrainingCollator(MaftPlusImageProcessorPil(do_resize=False), len(CLASSES)),
        processing_class=processor,
    )


def save_checkpoints(folder: Path, steps: int, resume_from_checkpoint: str | None = None, **arguments):
    """Train for some steps and save a checkpoint after each."""
    saving = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 1}
    trainer = make_trainer(folder, max_steps=steps, **{**saving, **arguments})
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)


def write_folder_data(folder: Path) -> dict[str, Path]:
    """Two pictures of 96 x 128 with label maps, and a vocabulary of three classes."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    labels = np.repeat(np.arange(3), 32)[:, None].repeat(128, 1).astype(np.uint8)
    for index in range(2):
        Image.fromarray(np.stack([labels * 60 + index] * 3, axis=-1)).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    (folder / "names.txt").write_text("cat,kitten\ngrass\nsky\n")
    return {
        "image_folder": folder / "images",
        "label_folder": folder / "labels",
        "vocabulary": folder / "names.txt",
        "per_device_train_batch_size": 2,
    }


def trained_state(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def logged_losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def run_worker(folder: Path, runs: dict[str, dict]) -> None:
    """Every run of `runs` (name -> arguments) one after the other; process 0 saves weights and losses."""
    for name, arguments in runs.items():
        kill_at = arguments.pop("kill_at", None)
        trainer = make_trainer(folder / name, **arguments)
        if kill_at is not None:
            trainer.add_callback(SelfDestruction(kill_at, signal.SIGKILL))
        trainer.train()
        if trainer.is_world_process_zero():
            torch.save(
                {"losses": logged_losses(trainer), "state": trained_state(trainer.model)}, folder / f"{name}.pt"
            )


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), json.loads(sys.argv[2]))
    process_state().destroy_process_group()
