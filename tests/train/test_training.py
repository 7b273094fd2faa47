"""Training: what trains and how fast, the teacher, counts over steps and processes, resuming, what stops a run."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_tools import tiny_model, tiny_processor
from training_tools import (
    CLASSES,
    Pictures,
    SelfDestruction,
    logged_losses,
    make_trainer,
    trained_state,
    training_model,
)
from transformers import Mask2FormerConfig, SwinConfig, get_scheduler

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.rename import renamed
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.train.trainer import (
    MaftPlusTrainer,
    MaftPlusTrainingArguments,
    NonFiniteLossError,
    parameter_groups,
    trainable_parameters,
)

TESTS = Path(__file__).parents[1]
KEYS = TESTS / "fixtures" / "keys"
LARGE = {
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 16},
    "vision_config": {"model_type": "convnext", "hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
    "projection_dim": 768,
    "visual_projection_type": "mlp",
}
RECORDED = {
    "maft_plus_convnext_base_w_320_semantic171": ("maftplus", {}),
    "maft_plus_convnext_large_d_320_semantic171": ("maftplus", {"clip_config": LARGE}),
    "maft_plus_convnext_large_d_320_panoptic133": ("maftplus", {"clip_config": LARGE, "cdt_form": "panoptic"}),
    "maft_v1_vitb16_r101": ("maft", {"clip_config": {"vision_config": {"patch_size": 16}}, "cdt_form": "off"}),
}


def read_keys(name: str) -> dict:
    with gzip.open(KEYS / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def full_size_model(name: str) -> MaftPlusForUniversalSegmentation:
    with torch.device("meta"):
        return MaftPlusForUniversalSegmentation(MaftPlusConfig(**RECORDED[name][1]))


@pytest.mark.parametrize("name", RECORDED)
def test_what_trains_and_how_equals_the_recorded_lists_name_for_name(name):
    table, model = RECORDED[name][0], full_size_model(name)
    trainable, optimizer = read_keys(f"{name}.trainable"), read_keys(f"{name}.optimizer")
    ours = {f"model.{part}" for original in trainable["trainable"] for part in renamed(original, table)}
    assert trainable_parameters(model).keys() == ours
    multiplier = 0.1 if table == "maftplus" else 1.0
    groups = parameter_groups(model, 1.0, optimizer["weight_decay"], multiplier)
    settings = {name: [group["lr"], group["weight_decay"]] for group in groups for name in group["names"]}
    assert settings == {
        f"model.{part}": values
        for original, values in optimizer["per_name"].items()
        for part in renamed(original, table)
    }


@pytest.mark.parametrize(("name", "steps"), [("semantic_base", 60000), ("semantic_large", 55000)])
def test_learning_rates_follow_the_recorded_schedule(name, steps):
    args = MaftPlusTrainingArguments(output_dir="unused", use_cpu=True)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-4, 1e-5)]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, 0, steps, scheduler_specific_kwargs=args.lr_scheduler_kwargs
    )
    for step, rates in read_keys("lr_schedule")[name]["lr_at_iteration_[head,backbone]"].items():
        found = [base * function(int(step)) for base, function in zip((1e-4, 1e-5), schedule.lr_lambdas)]
        assert found == pytest.approx(rates, rel=1e-9, abs=1e-15)


def test_a_step_moves_what_trains_and_nothing_else(tmp_path):
    trainer = make_trainer(tmp_path, adam_epsilon=1e-8)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    teacher = {name: p.clone() for name, p in trainer.teacher.state_dict().items()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable_parameters(trainer.model).keys()
    for name, value in trainer.teacher.state_dict().items():
        torch.testing.assert_close(value, teacher[name], rtol=0, atol=0)


def test_without_a_loss_for_it_the_trunk_stays_frozen():
    model = training_model(mask_aware_weight=0.0, compensation_weight=0.0, cdt_form="off")
    assert not any(name.startswith("model.clip") for name in trainable_parameters(model))


def test_the_saved_model_holds_no_teacher_and_the_logs_every_loss(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    loaded, info = MaftPlusForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert loaded.state_dict().keys() == training_model().state_dict().keys()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    for name in ("loss_ce", "loss_mask", "loss_dice", "loss_mask_aware", "loss_compensation", "loss_ce_0"):
        assert all(row[name] >= 0 for row in rows)
    total = sum(value for name, value in rows[0].items() if name.startswith("loss_"))
    assert total == pytest.approx(rows[0]["loss"], rel=1e-3)


def test_frozen_parts_are_in_evaluation_mode_while_the_rest_trains(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    trainer._keep_frozen_parts_in_eval_mode()
    assert not trainer.model.model.clip.text_model.training
    assert trainer.model.model.segmenter.training
    assert not trainer.teacher.training


def test_accumulated_steps_equal_one_large_step(tmp_path):
    whole = make_trainer(tmp_path / "whole", max_steps=3)
    parts = make_trainer(tmp_path / "parts", max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    assert logged_losses(parts) == pytest.approx(logged_losses(whole), rel=1e-5)
    _assert_same_weights(trained_state(parts.model), trained_state(whole.model))


def test_two_processes_equal_one_and_a_killed_run_resumes_where_it_was(tmp_path):
    common = {"max_steps": 5, "per_device_train_batch_size": 2}
    runs = {
        "plain": common,
        "accumulated": {**common, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    }
    arguments = [str(TESTS / "training_tools.py"), str(tmp_path), json.dumps(runs)]
    _run(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments])
    killed = {"killed": {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "kill_at": 4}}
    result = _run([str(TESTS / "training_tools.py"), str(tmp_path), json.dumps(killed)], is_expected_to_die=True)
    assert result.returncode == -signal.SIGKILL
    trainer = make_trainer(tmp_path / "one", max_steps=5)
    trainer.train()
    state, losses = trained_state(trainer.model), logged_losses(trainer)
    for name in runs:
        found = torch.load(tmp_path / f"{name}.pt")
        assert found["losses"] == pytest.approx(losses, rel=1e-5)
        _assert_same_weights(found["state"], state)
    resumed = make_trainer(tmp_path / "killed", max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-3"))
    _assert_same_weights(trained_state(resumed.model), state)
    for name, value in training_model().model.clip.vision_model.state_dict().items():
        assert torch.equal(resumed.teacher.vision_model.state_dict()[name], value)  # the original, not the trained one


def test_sigterm_saves_a_checkpoint_and_stops(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=50)
    trainer.add_callback(SelfDestruction(1, signal.SIGTERM))
    trainer.train()
    assert trainer.sigterm.received
    assert trainer.state.global_step == 2
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_one_process_with_several_gpus_is_refused_with_the_way_out(tmp_path):
    arguments = MaftPlusTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 2  # as on a machine with two
    with pytest.raises(RuntimeError, match="accelerate launch"):
        MaftPlusTrainer(model=training_model(), args=arguments)


def test_a_loss_that_is_not_finite_stops_with_the_names_of_the_images(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.model.segmenter.decoder.queries_features.weight[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"picture_\d.jpg"):
        trainer.train()


def test_half_precision_with_gradient_checkpointing_trains(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True, gradient_checkpointing=True)
    trainer.train()
    assert all(loss > 0 for loss in logged_losses(trainer))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_maft_trains_the_tower_behind_a_frozen_mask2former(tmp_path):
    trainer = make_trainer(tmp_path, model=maft_model(), trunk_lr_multiplier=1.0, adam_epsilon=1e-8)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert {name for name in rows[0] if name.startswith("loss_")} == {"loss_mask_aware", "loss_distillation"}
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable_parameters(trainer.model).keys()
    assert not any(name.startswith("model.proposer") for name in moved)
    assert not trainer.model.model.proposer.training


def maft_model() -> MaftPlusForUniversalSegmentation:
    """A ViT of two layers behind a random Mask2Former of six queries."""
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    proposer = Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=6,
        num_labels=3,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        **sizes,
    )
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = {**text, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    clip = {"text_config": text, "vision_config": vision, "projection_dim": 16, "first_masked_layer": 1}
    torch.manual_seed(0)
    config = MaftPlusConfig(
        clip_config=clip,
        proposer_config=proposer,
        cdt_form="off",
        clip_image_size=64,
        vocabulary=CLASSES,
        distillation_weight=0.1,
    )
    model = MaftPlusForUniversalSegmentation(config)
    with torch.no_grad():
        model.vocabulary_embeds.copy_(torch.eye(16)[: len(model.vocabulary_embeds)])
    return model


def _assert_same_weights(ours: dict, others: dict) -> None:
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, others[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def _run(arguments: list[str], is_expected_to_die: bool = False) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert is_expected_to_die or result.returncode == 0, result.stderr[-3000:]
    return result


def test_an_unannotated_picture_alone_is_a_batch_with_finite_losses(tmp_path):
    class Unannotated(Pictures):
        def __getitem__(self, index):
            return super().__getitem__(7)

    trainer = make_trainer(tmp_path, dataset=Unannotated())
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss_ce"] > 0
    assert row["loss_mask"] == row["loss_dice"] == row["loss_mask_aware"] == 0


def test_the_teacher_s_logits_know_the_classes_of_a_batch_s_own_words():
    model, processor = tiny_model(), tiny_processor()
    model.set_vocabulary(processor, ["wall"])
    words = processor(text=["cat, kitten", "grass"], return_tensors="pt")
    with torch.no_grad():
        outputs = model(torch.zeros(2, 3, 64, 96), **words)
        logits = MaftPlusTrainer._image_logits(SimpleNamespace(model=model), torch.randn(2, 16), outputs)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
