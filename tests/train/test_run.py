"""train/run.py: recipes hold the published settings; one command trains, evaluates and leaves a model with a card."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_set_tools import make_coco_stuff, picture
from PIL import Image
from tiny_tools import tiny_model, tiny_processor
from training_tools import write_folder_data
from transformers import AutoModelForUniversalSegmentation, AutoProcessor

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.train.data.augmentation import build_transforms
from maftplus.train.data.sources import load_data, load_eval_data
from maftplus.train.options import DataArguments, ModelArguments, parse_arguments
from maftplus.train.publish import MANIFEST
from maftplus.train.run import (
    _add_training_classes,
    build_processor,
    find_checkpoint,
    main,
    store_vocabulary,
)
from maftplus.vocabularies.files import VocabularyFile

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
    options = {**write_folder_data(tmp_path), "output_dir": tmp_path / "out", "hub_model_id": "somebody/tiny"}
    given = _given(options)
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
    options = {**write_folder_data(tmp_path), "output_dir": tmp_path / "out", "per_device_train_batch_size": 1}
    given = _given(options)
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
    files = write_folder_data(tmp_path)
    rows = [
        {"file_name": name, **{kind: Image.open(tmp_path / f"{kind}s" / name) for kind in ("image", "label")}}
        for name in ("0.png", "1.png")
    ]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    options = {"dataset": f"hub:{tmp_path / 'data'}", "vocabulary": files["vocabulary"], "streaming": streaming}
    options.update(per_device_train_batch_size=1, save_strategy="steps", save_steps=2, logging_steps=1, max_steps=3)
    given = _given(options)
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
    files = write_folder_data(tmp_path)
    files.pop("per_device_train_batch_size")
    model_args, data_args = ModelArguments(tokenizer_name_or_path="bytes"), DataArguments(dataset="folder", **files)
    data = replace(load_data(data_args, "train"), hidden=(1,))
    processor = build_processor(model_args, data_args)
    for _ in range(2):  # a second run on the same classes adds nothing
        _add_training_classes(processor, data, model_args)
    assert [words[0] for words in processor.training_classes] == ["cat", "sky"]


def test_fewer_pictures_than_a_batch_are_an_error(tmp_path):
    given = _given({**write_folder_data(tmp_path), "output_dir": tmp_path / "out", "per_device_train_batch_size": 3})
    with pytest.raises(ValueError, match="2 pictures are fewer than the 3 of a batch"):
        main([str(RECIPES / "overfit.yaml"), "--do_train", "--use_cpu", *given])
    assert not (tmp_path / "out").exists()


def test_evaluation_may_have_pictures_of_its_own(tmp_path):
    (tmp_path / "other").mkdir()
    train, other = write_folder_data(tmp_path), write_folder_data(tmp_path / "other")
    (other["image_folder"] / "1.png").unlink()
    data = DataArguments(
        dataset="folder",
        eval_image_folder=other["image_folder"],
        eval_label_folder=other["label_folder"],
        **{key: train[key] for key in ("image_folder", "label_folder", "vocabulary")},
    )
    assert [len(load_data(data, "train")), len(load_eval_data(data))] == [2, 1]


def test_max_train_samples_does_not_cut_evaluation_on_the_same_split(tmp_path):
    make_coco_stuff(tmp_path)
    picture(tmp_path / "coco/val2017/000000000140.jpg")
    data = DataArguments(
        dataset="coco_stuff_171", data_root=str(tmp_path), train_split="val", eval_split="val", max_train_samples=1
    )
    assert len(load_eval_data(data)) == 2


def test_the_order_of_synonyms_makes_no_other_training_class(tmp_path):
    files = write_folder_data(tmp_path)
    files.pop("per_device_train_batch_size")
    model_args, data_args = ModelArguments(tokenizer_name_or_path="bytes"), DataArguments(dataset="folder", **files)
    processor = build_processor(model_args, data_args)
    processor.training_classes = [["Kitten", "cat"]]
    _add_training_classes(processor, load_data(data_args, "train"), model_args)
    assert processor.training_classes == [["Kitten", "cat"], ["grass"], ["sky"]]


def test_classes_with_embeddings_of_their_own_count_as_seen_by_any_of_their_names(tmp_path):
    vocabulary = VocabularyFile("words", ("sky-other", "tree"), (("sky", "heaven"), ("tree",)), (0, 1))
    np.save(tmp_path / "rows.npy", np.eye(2, 16, dtype=np.float32))
    model_args = ModelArguments(tokenizer_name_or_path="bytes", class_embeddings=str(tmp_path / "rows.npy"))
    model, processor = tiny_model(), tiny_processor()
    processor.training_classes = [["sky", "heaven"]]
    width = model.config.clip_config.projection_dim
    np.save(tmp_path / "rows.npy", np.eye(2, width, dtype=np.float32))
    store_vocabulary(model, processor, vocabulary, model_args)
    assert model.config.seen_ids == [0]


def _given(options: dict) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def test_copy_paste_without_single_objects_is_refused(tmp_path):
    given = _given({**write_folder_data(tmp_path), "output_dir": tmp_path / "out", "copy_paste": 0.5})
    with pytest.raises(ValueError, match="these label maps know no single objects, or pass `--copy_paste 0`"):
        main([str(RECIPES / "overfit.yaml"), "--do_train", "--use_cpu", *given])
