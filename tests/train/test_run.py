"""train/run.py: recipes hold the published settings; one command trains, evaluates and leaves a model with a card."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForUniversalSegmentation, AutoProcessor

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.train.data.augmentation import build_transforms
from maftplus.train.data.sources import load_data
from maftplus.train.options import DataArguments, ModelArguments, parse_arguments
from maftplus.train.publish import MANIFEST
from maftplus.train.run import (
    _add_training_classes,
    build_processor,
    find_checkpoint,
    main,
)

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
PUBLISHED = {  # learning rate, weight decay, rate of the trunk, pictures a step, steps
    "maftplus_base": (1e-4, 2e-5, 0.1, 8, 60000),
    "maftplus_large": (1e-4, 2e-5, 0.1, 8, 55000),
    "maftplus_panoptic": (1e-4, 2e-5, 0.1, 8, 55000),
    "maft_vit_base": (1e-5, 1e-4, 1.0, 16, 1000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_hold_the_published_settings(name, tmp_path):
    model, data, args = parse_arguments(
        [str(RECIPES / f"{name}.yaml"), "--output_dir", str(tmp_path), "--bf16", "false"]
    )
    found = (
        args.learning_rate,
        args.weight_decay,
        args.trunk_lr_multiplier,
        args.total_train_batch_size,
        args.max_steps,
    )
    assert found == PUBLISHED[name]
    assert (args.max_grad_norm, args.lr_scheduler_kwargs) == (0.01, {"power": 0.9, "lr_end": 0.0})
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == PUBLISHED[name][3]
    assert build_transforms(data.augmentation)
    fields = {key: value for key, value in model.model_config.items() if key != "clip_config"}
    config = MaftPlusConfig(**fields)
    losses = (config.mask_aware_weight, config.compensation_weight, config.distillation_weight)
    assert losses == ((1.0, 0.0, 0.1) if name == "maft_vit_base" else (1.0, 0.1, 0.0))


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("output_dir: a\nmax_steps: 7\nlearning_rate: 0.5\nmodel_config: {num_queries: 9}\n")
    model, _, args = parse_arguments([str(recipe), "--max_steps", "3", "--use_cpu"])
    assert (args.max_steps, args.learning_rate, args.output_dir) == (3, 0.5, "a")
    assert model.model_config == {"num_queries": 9}


def test_an_unknown_option_in_a_recipe_is_refused(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("output_dir: a\nlearning_rat: 0.5\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments([str(recipe)])


def test_a_batch_that_processes_cannot_share_evenly_is_refused(tmp_path):
    with pytest.raises(ValueError, match="total_train_batch_size"):
        parse_arguments(
            ["--output_dir", str(tmp_path), "--total_train_batch_size", "5", "--per_device_train_batch_size", "2"]
        )


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    _, _, args = parse_arguments(["--output_dir", str(tmp_path / "none"), "--resume_from_checkpoint", "last"])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        find_checkpoint(args)


def test_one_command_trains_evaluates_and_leaves_what_it_would_push(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {**_write_data(tmp_path), "output_dir": tmp_path / "out", "hub_model_id": "somebody/tiny"}
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    tiny = ["--max_steps", "2", "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "true"]
    metrics = main([str(RECIPES / "overfit.yaml"), "--do_train", "--do_eval", "--push_to_hub", *given, *tiny])
    out = tmp_path / "out"
    assert 0 <= metrics["eval_mean_iou"] <= 1
    assert 0 <= metrics["eval_clip_mean_iou"] <= 1
    assert 0 <= metrics["eval_in_vocabulary_mean_iou"] <= 1
    assert metrics["eval_num_images"] == 2
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["repository"] == "somebody/tiny"
    assert {"model.safetensors", "config.json", "README.md", "loss_curves.png"} <= manifest["files"].keys()
    assert not any(name.startswith("checkpoint-") for name in manifest["files"])
    card = (out / "README.md").read_text()
    assert "model-index" in card
    assert "--do_train --do_eval" in card
    model = AutoModelForUniversalSegmentation.from_pretrained(out)
    assert model.config.id2label == {0: "cat", 1: "grass", 2: "sky"}
    assert model.config.seen_ids == [0, 1, 2]
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_processor.size["shortest_edge"] == 96
    assert processor(text=["kitten", "house"], return_tensors="pt")["seen_classes"].tolist() == [True, False]


def test_accelerate_launch_starts_processes_that_train_as_one(tmp_path):
    options = {**_write_data(tmp_path), "output_dir": tmp_path / "out", "per_device_train_batch_size": 1}
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    script = [str(RECIPES.parent / "run.py"), str(RECIPES / "overfit.yaml"), "--do_train", "--use_cpu", *given]
    settings = {
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }  # no `accelerate config` there
    command = [sys.executable, *launcher, *script, "--max_steps", "1", "--logging_steps", "1"]
    subprocess.run(command, check=True, env={**os.environ, **settings}, timeout=300, capture_output=True)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["epoch"] == 1  # both pictures, one on each process


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_data_of_the_hub_train_and_a_resumed_run_sees_the_same_pictures(tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    files = _write_data(tmp_path)
    rows = [
        {"file_name": name, **{kind: Image.open(tmp_path / f"{kind}s" / name) for kind in ("image", "label")}}
        for name in ("0.png", "1.png")
    ]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    options = {"dataset": f"hub:{tmp_path / 'data'}", "vocabulary": files["vocabulary"], "streaming": streaming}
    options.update(per_device_train_batch_size=1, save_strategy="steps", save_steps=2, logging_steps=1, max_steps=3)
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    common = [str(RECIPES / "overfit.yaml"), "--do_train", "--use_cpu", "--disable_tqdm", "true", *given]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main([*common, "--output_dir", str(whole)])
    main([*common, "--output_dir", str(resumed), "--resume_from_checkpoint", str(whole / "checkpoint-2")])
    assert ("streamed" in (whole / "README.md").read_text()) == (streaming == "true")
    last = [json.loads((folder / "trainer_state.json").read_text())["log_history"][2] for folder in (whole, resumed)]
    assert last[0]["loss"] == pytest.approx(last[1]["loss"], rel=1e-5)
    found = main([*common, "--do_eval", "--eval_split", "train", "--overwrite_output_dir", "--output_dir", str(whole)])
    assert found["eval_num_images"] == 2


def test_classes_that_a_zero_shot_setting_hides_do_not_count_as_trained(tmp_path):
    files = _write_data(tmp_path)
    files.pop("per_device_train_batch_size")
    model_args, data_args = ModelArguments(tokenizer_name_or_path="bytes"), DataArguments(dataset="folder", **files)
    data = replace(load_data(data_args, "train"), hidden=(1,))
    processor = build_processor(model_args, data_args)
    for _ in range(2):  # a second run on the same classes adds nothing
        _add_training_classes(processor, data, model_args)
    assert [words[0] for words in processor.training_classes] == ["cat", "sky"]


def _write_data(folder: Path) -> dict[str, Path]:
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
