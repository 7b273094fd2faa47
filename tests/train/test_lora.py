"""LoRA: what a preset names, that it counts everywhere, what trains, what is saved, resuming, merging."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import point_at, serve_hub
from safetensors.torch import load_file
from test_training import maft_model
from tiny_tools import save_tiny, tiny_model, tiny_processor
from torch import nn
from training_tools import (
    CLASSES,
    logged_losses,
    make_trainer,
    trained_state,
    training_model,
    write_folder_data,
)
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.app.models import load_pipeline, resolve_whole_model
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.train.finetuning.lora import (
    ADAPTER,
    adapted_layers,
    adapter_modules,
    add_adapter,
    base_of,
    describe_adapter,
    fetch_adapter,
    is_adapter,
    load_adapter,
    load_adapter_weights,
    match_modules,
    merge_adapter,
    save_adapter,
)
from maftplus.train.options import ModelArguments
from maftplus.train.run import main
from maftplus.train.trainer import (
    check_trainable,
    freeze_all_but_trainable,
    frozen_copy,
    trainable_parameters,
)

peft = pytest.importorskip("peft")
TESTS = Path(__file__).parents[1]
EVERYTHING = "all+segmenter-mlp"


def disturb(model: nn.Module, seed: int = 1) -> None:
    """As if the adapter had learnt something: no matrix is zero any more, the void row is another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in adapter_modules(model).values():
            for parameter in module.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def visible_model(model: MaftPlusForUniversalSegmentation) -> MaftPlusForUniversalSegmentation:
    """Random blocks start next to nothing (layer scale 1e-6); here they count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layer_scale_parameter"):
                parameter.fill_(1.0)
    return model.eval()


def answer(model: nn.Module) -> torch.Tensor:
    """Scores and masks of one picture, as inference computes them."""
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model(pixels.to(model.dtype))
    return torch.cat([outputs.class_queries_logits.flatten(), outputs.masks_queries_logits.flatten()])


def test_presets_name_their_layers_in_a_convnext_model():
    matched = match_modules(training_model(), "all+segmenter-mlp")
    assert list(matched) == ["trunk", "segmenter", "cdt", "segmenter-mlp"]
    assert len(matched["trunk"]) == 8  # four blocks of two point-wise layers; no depth-wise convolution
    assert all(name.endswith(("pwconv1", "pwconv2")) for name in matched["trunk"])
    assert len(matched["segmenter"]) == 2 * 2 * 4 + 4
    assert len(matched["cdt"]) == 5
    assert not set(matched["segmenter"]) & set(matched["segmenter-mlp"])


def test_all_names_the_attention_of_a_vit_and_nothing_of_its_frozen_proposer():
    matched = match_modules(maft_model())
    assert list(matched) == ["trunk"]
    assert len(matched["trunk"]) == 2 * 4
    assert all(".self_attn." in name and name.startswith("model.clip.vision_model.") for name in matched["trunk"])


@pytest.mark.parametrize(("presets", "config"), [("cdt", {"cdt_form": "off"}), ("trunk+cdt", {"cdt_form": "off"})])
def test_a_preset_that_names_nothing_is_refused(presets, config):
    with pytest.raises(ValueError, match="'cdt' names nothing in this model, which has trunk, segmenter"):
        match_modules(training_model(**config), presets)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'head'; join all, trunk, segmenter, segmenter-mlp, cdt, text"):
        add_adapter(training_model(), "trunk+head")


def test_what_matched_and_the_share_that_trains_are_told():
    model = training_model()
    add_adapter(model, "trunk", rank=2)
    text = describe_adapter(model)
    assert "LoRA of rank 2 in 8 layers, the void row:" in text
    assert "8 x model.clip.vision_model.encoder.stages.*.layers.*: pwconv1, pwconv2" in text
    trained = sum(5 * width * 2 * 2 for width in (8, 16, 24, 32)) + 16
    assert f"{trained:,} parameters train, {trained / 873506:.2%} of the model's 873,506." in text


def test_an_adapter_changes_nothing_until_it_has_learnt():
    model = visible_model(training_model())
    before = answer(model)
    add_adapter(model, EVERYTHING)
    torch.testing.assert_close(answer(model), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [training_model, maft_model])
def test_every_matched_layer_counts_in_the_answer(build):
    model = visible_model(build())
    add_adapter(model, EVERYTHING if model.config.has_segmenter else "all")
    before = answer(model)
    for name in adapted_layers(model):
        weight = model.get_submodule(name).lora_B[ADAPTER].weight
        with torch.no_grad():
            weight.normal_()
            changed = answer(model)
            weight.zero_()
        assert (changed - before).abs().max() > 1e-6, name


@pytest.mark.parametrize("build", [training_model, maft_model])
def test_merged_computes_what_unmerged_does(build):
    model = visible_model(build()).double()
    names = list(dict(model.named_parameters()))
    add_adapter(model, EVERYTHING if model.config.has_segmenter else "all")
    original = answer(model)
    disturb(model)
    unmerged = answer(model)
    assert (unmerged - original).abs().max() > 1e-2
    merged = answer(merge_adapter(model))
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-10)
    assert list(dict(model.named_parameters())) == names


def test_the_teacher_has_no_adapter_and_shares_the_frozen_trunk():
    model = training_model()
    originals = {name: p.detach().clone() for name, p in model.model.clip.vision_model.named_parameters()}
    add_adapter(model)
    disturb(model)
    freeze_all_but_trainable(model)
    teacher = frozen_copy(model.model.clip)
    found = dict(teacher.vision_model.named_parameters())
    assert found.keys() == originals.keys()
    assert all(torch.equal(found[name], value) for name, value in originals.items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    shared = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in shared for parameter in teacher.parameters())


def test_a_step_moves_the_adapter_and_the_void_row_and_nothing_else(tmp_path):
    model = visible_model(training_model())
    add_adapter(model)
    trainer = make_trainer(tmp_path, model=model, adam_epsilon=1e-8, max_steps=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable_parameters(model).keys()
    assert all(".lora_" in name or name.startswith("model.void_embedding.modules_to_save") for name in moved)


def test_maft_trains_an_adapter_in_its_tower(tmp_path):
    model = maft_model()
    add_adapter(model)
    trainer = make_trainer(tmp_path, model=model, trunk_lr_multiplier=1.0, adam_epsilon=1e-8, max_steps=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable_parameters(model).keys()


@pytest.mark.parametrize(
    ("presets", "config"),
    [("trunk", {"mask_aware_weight": 0.0, "compensation_weight": 0.0}), ("segmenter+cdt", {"mask_aware_weight": 0.0})],
)
def test_an_adapter_that_no_loss_reaches_is_refused_before_the_first_step(tmp_path, presets, config):
    model = training_model(**config)
    add_adapter(model, presets)
    with pytest.raises(
        ValueError, match=r"parts of the adapter, such as model\.(clip|cdt).* no loss.*mask_aware_weight"
    ):
        make_trainer(tmp_path, model=model).train()


def test_an_adapter_of_the_text_tower_trains_and_takes_the_stored_words_with_it(tmp_path):
    model, processor = training_model(), tiny_processor(templates=["a {}"])
    model.set_vocabulary(processor, CLASSES)
    before = model.vocabulary_embeds
    settings = {"max_steps": 3, "learning_rate": 1e-2, "trunk_lr_multiplier": 1.0}
    trainer = make_trainer(tmp_path, model=model, lora="text", processor=processor, **settings)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == trainable_parameters(model).keys()
    trainer.save_model(str(tmp_path / "adapter"))
    words = load_file(tmp_path / "adapter" / "adapter_words.safetensors")["vocabulary_embeds"]
    expected = model.encode_vocabulary(**processor(text=CLASSES, return_tensors="pt"))["text_embeds"]
    torch.testing.assert_close(words, expected)
    assert (words - before).abs().max() > 1e-4


def test_a_frozen_trunk_stays_and_the_rest_trains(tmp_path):
    trainer = make_trainer(tmp_path, freeze_trunk=True)
    assert trainer.teacher is None
    trainer.train()
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("model.clip.") for name in trained)
    assert any(name.startswith("model.cdt.") for name in trained)
    model = training_model()
    add_adapter(model, "trunk")
    with pytest.raises(ValueError, match=r"`freeze_trunk` \(True\)"):
        check_trainable(model, freeze_trunk=True)


def saved_adapter(folder: Path) -> tuple[MaftPlusForUniversalSegmentation, Path]:
    """A model that has learnt three classes, and the folder of its adapter beside its base's."""
    base = save_tiny(folder / "base", ["cat, kitten", "grass"], stuff=["grass"])
    model = MaftPlusForUniversalSegmentation.from_pretrained(base, ensemble_alpha=0.4, ensemble_beta=0.8)
    visible_model(model).save_pretrained(base)
    model.config.store_vocabulary(CLASSES, [2, 3], [0])
    model.vocabulary_embeds = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    add_adapter(model, EVERYTHING, rank=4)
    disturb(model)
    save_adapter(model, folder / "adapter")
    return model, folder / "adapter"


def test_an_adapter_comes_back_with_its_words_and_its_void_row(tmp_path):
    model, folder = saved_adapter(tmp_path)
    assert base_of(folder) == str((tmp_path / "base").resolve())
    loaded = load_adapter(folder)
    torch.testing.assert_close(answer(loaded), answer(model), rtol=1e-5, atol=1e-5)
    assert (loaded.config.vocabulary, loaded.config.stuff_ids, loaded.config.seen_ids) == (CLASSES, [2, 3], [0])
    assert loaded.config.ensemble_alpha == 0.4
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "grass", 3: "sky"}
    kept = load_adapter(folder, do_merge=False)
    assert adapted_layers(kept) == adapted_layers(model)
    assert trainable_parameters(kept).keys() == trainable_parameters(model).keys()


def test_stock_peft_loads_the_adapter_with_its_void_row(tmp_path):
    model, folder = saved_adapter(tmp_path)
    base = MaftPlusForUniversalSegmentation.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    words = {"text_embeds": model.vocabulary_embeds, "text_class_ids": torch.tensor(model.config.prompt_class_ids)}
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(pixel_values=pixels, **words).in_vocab_logits, model(pixels, **words).in_vocab_logits
        )
    void = loaded.base_model.model.model.void_embedding.weight
    assert torch.equal(void, model.model.void_embedding.weight)
    assert not torch.equal(void, base.model.void_embedding.original_module.weight)


def test_the_files_are_those_of_peft_and_hold_the_adapter_alone(tmp_path):
    model, folder = saved_adapter(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in trainable_parameters(model).values())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == adapted_layers(model)
    assert config["modules_to_save"] == ["model.void_embedding"]
    assert not (folder / "config.json").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path):
    _, folder = saved_adapter(tmp_path)
    other = tiny_model(cdt_form="off")
    add_adapter(other, rank=4)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors does not fit this model's adapter"):
        load_adapter_weights(other, folder)
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(other)


def test_an_adapter_of_weights_that_changed_since_is_told(tmp_path, monkeypatch):
    _, folder = saved_adapter(tmp_path)
    told = []
    monkeypatch.setattr("maftplus.train.finetuning.lora.logger.warning", lambda text, *values: told.append(text))
    load_adapter(folder)
    assert not told
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    load_adapter(folder, str(tmp_path / "other"))
    assert len(told) == 1
    assert "not the weights that it was trained beside" in told[0]


def test_without_peft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "maftplus\[lora\]"') as caught:
        add_adapter(training_model())
    assert caught.value.name == "peft"


def test_what_takes_no_adapter_says_how_to_make_a_model_of_it(tmp_path):
    _, folder = saved_adapter(tmp_path)
    with pytest.raises(ValueError, match="is an adapter alone.*maftplus merge"):
        resolve_whole_model(str(folder))
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(load_adapter(folder))


def test_a_merged_folder_and_the_adapter_s_own_segment_alike(tmp_path):
    model, folder = saved_adapter(tmp_path)
    result = CliRunner().invoke(app, ["merge", str(folder), str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    for name in ("adapter", "merged"):
        pipe = load_pipeline(str(tmp_path / name), "cpu", "float32")
        torch.testing.assert_close(answer(pipe.model), answer(model), rtol=1e-5, atol=1e-5)
        assert pipe.model.config.vocabulary == CLASSES


def test_an_adapter_is_found_by_its_name_on_the_hub(tmp_path, monkeypatch):
    model, folder = saved_adapter(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False)
    with serve_hub() as hub:
        point_at(hub, monkeypatch)
        hub.repositories["somebody/whole"] = {"config.json": b"{}"}
        hub.repositories["somebody/adapter"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert fetch_adapter("somebody/whole") == "somebody/whole"
        torch.testing.assert_close(answer(load_adapter("somebody/adapter")), answer(model), rtol=1e-5, atol=1e-5)
        assert is_adapter(ModelArguments(model_name_or_path="somebody/adapter").model_name_or_path)
        result = CliRunner().invoke(app, ["merge", "somebody/adapter", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    pipe = load_pipeline(str(tmp_path / "merged"), "cpu", "float32")
    torch.testing.assert_close(answer(pipe.model), answer(model), rtol=1e-5, atol=1e-5)


def test_resuming_an_adapter_equals_an_undisturbed_run(tmp_path):
    def trainer(folder: str, **arguments):
        model = training_model()
        add_adapter(model)
        return make_trainer(tmp_path / folder, model=model, **arguments)

    whole = trainer("whole", max_steps=4)
    whole.train()
    trainer("parts", max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = trainer("parts", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    files = {path.name for path in (tmp_path / "parts" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    state = trained_state(whole.model)
    for name, value in trained_state(resumed.model).items():
        torch.testing.assert_close(value, state[name], rtol=1e-6, atol=1e-7)


def test_two_processes_train_an_adapter_as_one_does(tmp_path):
    runs = {"plain": {"max_steps": 3, "per_device_train_batch_size": 2, "lora": "all"}}
    arguments = [str(TESTS / "training_tools.py"), str(tmp_path), json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    result = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    trainer = make_trainer(tmp_path / "one", max_steps=3, lora="all")
    trainer.train()
    found = torch.load(tmp_path / "plain.pt")
    assert found["losses"] == pytest.approx(logged_losses(trainer), rel=1e-5)
    state = trained_state(trainer.model)
    assert found["state"].keys() == state.keys()
    for name, value in found["state"].items():
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-5)


def test_the_training_command_leaves_an_adapter_with_a_card_and_goes_on_from_its_last_checkpoint(tmp_path):
    base, data = save_tiny(tmp_path / "base"), write_folder_data(tmp_path)
    options = {
        **data,
        "model_name_or_path": base,
        "lora": "trunk+segmenter+cdt",
        "lora_rank": 4,
        "dataset": "folder",
        "output_dir": tmp_path / "run",
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    arguments = ["--do_train", "--use_cpu"] + [f"--{name}={value}" for name, value in options.items()]
    main([*arguments, "--max_steps=2"])
    run = tmp_path / "run"
    assert not (run / "model.safetensors").exists()
    assert (run / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert f"maftplus segment picture.jpg --model {run.name}" in (run / "README.md").read_text()
    assert load_adapter(run).config.id2label == {0: "cat", 1: "grass", 2: "sky"}
    with pytest.raises(ValueError, match="resume_from_checkpoint"):
        main([*arguments, "--max_steps=2"])
    main([*arguments, "--max_steps=3", "--resume_from_checkpoint=last"])
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize("lora", [None, "all"])
def test_recomputed_activations_give_the_same_gradients(tmp_path, lora):
    found = []
    for is_checkpointing in (False, True):
        trainer = make_trainer(tmp_path, lora=lora, max_steps=1, gradient_checkpointing=is_checkpointing)
        trainer.train()
        found.append((logged_losses(trainer), trained_state(trainer.model)))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=0, atol=0)
