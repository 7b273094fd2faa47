"""Conversion of released checkpoints: names, sizes, files, and what happens to files that are not what they claim."""

import json
import os
import pickle
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conversion_tools import FIXTURES, full_size_state, open_clip_state, run_cli, tiny_overrides, tiny_state, written
from reference_text import token_ids
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
)

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig
from maftplus.conversion.checkpoint import CheckpointError, read_state, write_safetensors
from maftplus.conversion.convert import convert, inspect_checkpoint, plan_conversion, plan_teacher
from maftplus.conversion.convert import load_tokenizer as tokenizer_from
from maftplus.conversion.model_card import model_card
from maftplus.conversion.released import detect_kind, infer_task
from maftplus.conversion.rename import convert_maftplus_state, convert_open_clip_state, convert_state, renamed
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

TINY = FIXTURES / "tiny"
FULL_SIZE = {
    "fcclip_convnext_large_d_320_panoptic133": ("fcclip", "panoptic"),
    "maft_plus_convnext_base_w_320_semantic171": ("maftplus", "semantic"),
    "maft_plus_convnext_large_d_320_panoptic133": ("maftplus", "panoptic"),
    "maft_plus_convnext_large_d_320_semantic171": ("maftplus", "semantic"),
    "maft_v1_vitb16_ipclip": ("maft", "semantic"),
    "maft_v1_vitb16_r101_full": ("maft", "semantic"),
    "open_clip_convnext_base_w_320": ("open_clip", None),
    "open_clip_convnext_large_d_320": ("open_clip", None),
}
GOLDENS = {"tiny_a_semantic": "semantic", "tiny_b_panoptic": "panoptic"}


# Names and shapes


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_name_of_the_full_size_lists_converts_and_fills_our_model(name):
    state = full_size_state(name)
    kind, task = FULL_SIZE[name]
    assert (detect_kind(state), infer_task(state, kind)) == (kind, task)
    conversion = plan_conversion(state, Path(name))
    expected = {key: value.shape for key, value in conversion.model.state_dict().items()}
    assert {key: value.shape for key, value in conversion.tensors.items()} == expected


def test_the_released_sizes_are_read_off_the_shapes():
    config = plan_conversion(full_size_state("maft_plus_convnext_base_w_320_semantic171"), Path()).config
    reference = MaftPlusConfig()  # its defaults are the base model of the paper
    same = (
        "num_queries",
        "hidden_dim",
        "encoder_layers",
        "decoder_layers",
        "dim_feedforward",
        "encoder_feedforward_dim",
    )
    assert [getattr(config, name) for name in same] == [getattr(reference, name) for name in same]
    text, vision = config.clip_config.text_config, config.clip_config.vision_config
    assert (text.num_attention_heads, text.hidden_act, text.eos_token_id) == (10, "gelu", 49407)
    assert (vision.depths, vision.hidden_sizes, vision.layer_norm_eps) == ([3, 3, 27, 3], [128, 256, 512, 1024], 1e-6)
    assert (config.cdt_form, config.cdt_token_order) == ("semantic", "released")


def test_fc_clip_has_no_transfer_and_mixes_both_scores():
    config = plan_conversion(full_size_state("fcclip_convnext_large_d_320_panoptic133"), Path()).config
    assert (config.cdt_form, config.ensemble_alpha, config.ensemble_beta) == ("off", 0.4, 0.8)
    assert config.clip_config.visual_projection_type == "mlp"


def test_a_fused_attention_weight_is_cut_into_query_key_and_value():
    fused = torch.arange(12.0).reshape(6, 2)
    cut = convert_state({"cdt.cross_atten.multihead_attn.in_proj_weight": fused}, "maftplus", is_complete=False)
    assert list(cut) == renamed("cdt.cross_atten.multihead_attn.in_proj_weight")
    assert list(cut) == [f"cdt.attn.{part}_proj.weight" for part in "qkv"]
    torch.testing.assert_close(torch.cat(list(cut.values())), fused)


def test_a_projection_applied_from_the_right_becomes_a_linear_weight():
    matrix = torch.arange(6.0).reshape(3, 2)
    state = convert_state({"text_projection": matrix}, "open_clip", is_complete=False)
    torch.testing.assert_close(state["text_projection.weight"], matrix.T)


def test_mafts_constant_scale_replaces_clips_own():
    state = convert_state({"clip_adapter.clip_model.logit_scale": torch.tensor(2.0)}, "maft", is_complete=False)
    torch.testing.assert_close(state["clip.logit_scale"].exp(), torch.tensor(100.0))


def test_an_unknown_and_a_missing_name_are_listed_with_their_nearest():
    state = open_clip_state()
    state["ln_finale.weight"] = state.pop("ln_final.weight")
    with pytest.raises(ValueError, match="1 unknown, 1 missing") as error:
        convert_open_clip_state(state)
    assert "unknown `ln_finale.weight`, nearest: ln_final.weight" in str(error.value)
    assert "missing `ln_final.weight`, nearest: ln_finale.weight" in str(error.value)


def test_a_missing_layer_in_the_middle_is_noticed():
    state = {name: value for name, value in tiny_state().items() if "predictor.transformer_ffn_layers.1." not in name}
    with pytest.raises(ValueError, match=r"missing `sem_seg_head.predictor.transformer_ffn_layers.1.linear1.weight`"):
        convert_maftplus_state(state)


# Kind, task, configuration


def test_the_length_of_the_class_weights_tells_the_task():
    state = tiny_state()
    for count, task in ((172, "semantic"), (134, "panoptic")):
        assert infer_task({**state, "criterion.empty_weight": torch.ones(count)}, "maftplus") == task
    assert infer_task({**state, "criterion.empty_weight": torch.ones(134)}, "maftplus", "semantic") == "semantic"
    for weights, said in (
        ({}, "has no class weights"),
        ({"criterion.empty_weight": torch.ones(6)}, "has 6 class weights"),
    ):
        with pytest.raises(CheckpointError, match=f"this one {said}.*--task"):
            infer_task({**state, **weights}, "maftplus")


def test_what_contradicts_the_shapes_is_refused():
    with pytest.raises(CheckpointError, match="`hidden_dim` is 128 .* shapes say 64"):
        plan_conversion(tiny_state(), Path("file"), "semantic", {"hidden_dim": 128})
    with pytest.raises(CheckpointError, match="`cdt_form` 'panoptic' .* contradicts the task"):
        plan_conversion(tiny_state(), Path("file"), "semantic", {"cdt_form": "panoptic"})
    with pytest.raises(CheckpointError, match="`cdt_form` is 'off' .* has it"):
        plan_conversion(tiny_state(), Path("file"), "semantic", {"cdt_form": "off"})
    with pytest.raises(CheckpointError, match="`num_querries` .* no field"):
        plan_conversion(tiny_state(), Path("file"), "semantic", {"num_querries": 5})
    with pytest.raises(CheckpointError, match="give a configuration file"):
        plan_conversion(tiny_state("tiny_b_panoptic"), Path("file"), "panoptic")  # 4 heads, the rule says 8


def test_a_teacher_becomes_a_clip_of_its_own():
    state = tiny_state()
    conversion = plan_conversion(state, Path("file"), "semantic", tiny_overrides())
    teacher = plan_teacher(state, conversion)
    assert teacher.config.text_config.num_attention_heads == 2
    name = "backbone_t.clip_model.visual.trunk.head.norm.weight"
    torch.testing.assert_close(teacher.tensors["vision_model.layernorm.weight"], state[name])
    with pytest.raises(CheckpointError, match="carries no teacher"):
        plan_teacher({}, conversion)


# Files


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tokenizer_folder) -> dict[str, Path]:
    """Both recorded models, from files in the original's layout, by the command."""
    folder = tmp_path_factory.mktemp("converted")
    for golden, task in GOLDENS.items():
        checkpoint = written(folder / f"{golden}.pth", {"model": tiny_state(golden), "iteration": 7})
        (folder / f"{golden}.json").write_text(json.dumps(tiny_overrides(golden)))
        options = ("--task", task, "--config", folder / f"{golden}.json", "--tokenizer", tokenizer_folder)
        code, output = run_cli("convert", checkpoint, folder / golden, *options)
        assert code == 0, output
    return {golden: folder / golden for golden in GOLDENS}


FRESH_PROCESS = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModelForUniversalSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17: the top level wants torchvision

for folder, golden, out in json.loads(sys.argv[1]):
    arrays = np.load(golden)
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=Image.fromarray(arrays["in/image_0"]), do_resize=False, return_tensors="pt")
    counts = torch.from_numpy(arrays["text/num_templates"]).long()
    text = torch.from_numpy(arrays["text/classifier"])
    class_ids = torch.arange(len(counts)).repeat_interleave(counts)
    with torch.no_grad():
        outputs = model(**inputs, text_embeds=text, text_class_ids=class_ids)
        prompts = model.model.clip.get_text_features(torch.from_numpy(arrays["text/token_ids"])).pooler_output
    size = json.loads(str(arrays["meta_json"]))["outputs_hw"]
    maps = processor.post_process_semantic_segmentation(outputs, size, return_segmentation_scores=True)
    np.savez(
        out,
        classes=outputs.class_queries_logits[0],
        masks=outputs.masks_queries_logits,
        prompts=prompts,
        semantic=maps[0]["segmentation_scores"],
    )
    assert "maftplus" not in sys.modules
"""


def test_converted_models_give_the_recorded_outputs_in_a_fresh_process(converted, tmp_path):
    jobs = [
        (str(folder), str(TINY / f"{golden}_single.npz"), str(tmp_path / f"{golden}.npz"))
        for golden, folder in converted.items()
    ]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH_PROCESS, json.dumps(jobs)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for golden in converted:
        ours, recorded = np.load(tmp_path / f"{golden}.npz"), np.load(TINY / f"{golden}_single.npz")
        names = {"classes": "out/mask_cls_results_0", "masks": "mid/pred_masks", "semantic": "out/sem_seg_0"}
        for name, theirs in {**names, "prompts": "text/features_unnormalised"}.items():
            tolerance = 3e-4 if name == "semantic" else 1e-4
            np.testing.assert_allclose(
                ours[name], recorded[theirs], rtol=1e-5, atol=tolerance, err_msg=f"{golden} {name}"
            )


def test_a_converted_folder_is_ready_for_the_hub(converted):
    folder = converted["tiny_b_panoptic"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    for line in ("library_name: transformers", "license: mit", "pipeline_tag: image-segmentation"):
        assert line in card
    config = json.loads((folder / "config.json").read_text())
    modules = {name.split(".")[0] for name in config["auto_map"].values()} | {"processing_maftplus"}
    assert all((folder / f"{module}.py").is_file() for module in modules)
    assert (config["architectures"], config["dtype"]) == (["MaftPlusForUniversalSegmentation"], "float32")
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["image_processor"]["semantic_resize"] == "mask_logits"  # the released panoptic models' order
    assert [path for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_published_figures_are_attributed_and_only_given_for_released_sizes():
    released = plan_conversion(full_size_state("maft_plus_convnext_large_d_320_panoptic133"), Path("maftp_l_pano.pth"))
    card = model_card(released.kind, released.name, released.task, released.config, "maftp_l_pano.pth", released.notes)
    assert all(part in card for part in ("27.1 | 73.5 | 32.9", "As published by the authors", "not measured"))
    assert "base_model: laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup" in card
    other = model_card("maftplus", "MAFT+ of width 16", "panoptic", released.config, "mine.pth", [])
    assert "published" not in other.lower()


def test_the_base_model_of_a_converted_clip_is_the_released_one_of_its_sizes():
    conversion = plan_conversion(full_size_state("open_clip_convnext_base_w_320"), Path("clip.bin"))
    card = model_card(conversion.kind, conversion.name, None, conversion.config, "clip.bin", conversion.notes)
    assert "base_model: laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg" in card
    assert "others share them" in card
    for patch, line in (
        (16, "base_model: openai/clip-vit-base-patch16"),
        (32, "base_model: openai/clip-vit-base-patch32"),
    ):
        card = model_card("openai_clip", "CLIP ViT-B", None, clip_config(patch), "clip.pt", [])
        assert line in card
    assert "base_model" not in model_card("openai_clip", "CLIP ViT-B", None, clip_config(8), "clip.pt", [])


def clip_config(patch_size: int) -> MaftPlusCLIPConfig:
    return MaftPlusCLIPConfig(vision_config={"model_type": "clip_vision_model", "patch_size": patch_size})


def test_a_converted_folder_is_told_to_be_converted_already(converted):
    code, output = run_cli("inspect", converted["tiny_a_semantic"])
    assert code == 2
    assert "model.safetensors: This is converted already" in " ".join(output.split())
    with pytest.raises(CheckpointError, match="converted already"):
        detect_kind(convert_open_clip_state(open_clip_state()))


def test_wrappers_and_prefixes_are_seen_through(tmp_path):
    state = open_clip_state()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    assert read_state(written(tmp_path / "wrapped.pt", wrapped)).keys() == state.keys()
    assert read_state(written(tmp_path / "bare.pt", state)).keys() == state.keys()


def test_a_folder_as_on_the_hub_is_a_source(tmp_path):
    state = {name: value.contiguous() for name, value in open_clip_state().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    torch.testing.assert_close(read_state(tmp_path), state)


def test_written_safetensors_are_what_others_read(tmp_path):
    tensors = {
        "half": torch.randn(3, 2).half(),
        "scalar": torch.tensor(2.5),
        "transposed": torch.randn(2, 3).T,
        "count": torch.tensor([7]),
    }
    write_safetensors(tensors, tmp_path / "file.safetensors")
    read = load_file(tmp_path / "file.safetensors")
    assert (read["half"].dtype, read["count"].dtype) == (torch.float32, torch.int64)
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor, check_dtype=False)


def test_open_clip_weights_become_a_clip_that_takes_masks(tmp_path, tokenizer_folder):
    state = open_clip_state()
    checkpoint = written(tmp_path / "open_clip_pytorch_model.bin", state)
    (tmp_path / "heads.json").write_text('{"text_config": {"num_attention_heads": 2}}')
    convert(checkpoint, tmp_path / "clip", config_file=tmp_path / "heads.json", tokenizer=tokenizer_folder)
    clip = MaftPlusCLIPModel.from_pretrained(tmp_path / "clip")
    torch.testing.assert_close(clip.state_dict(), convert_open_clip_state(state))
    assert clip.get_mask_features(torch.rand(1, 3, 64, 64), torch.randn(1, 2, 16, 16)).shape == (1, 2, 64)


def test_what_a_start_from_clip_lacks_is_initialised_as_in_a_fresh_model(tmp_path):
    config = plan_conversion(tiny_state(), Path("file"), "semantic", tiny_overrides()).config
    fresh = MaftPlusForUniversalSegmentation(config)
    clip = {
        f"model.clip.{name}": value.contiguous() for name, value in convert_open_clip_state(open_clip_state()).items()
    }
    save_file(clip, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path)
    started = MaftPlusForUniversalSegmentation.from_pretrained(tmp_path).state_dict()
    for name, expected in fresh.state_dict().items():
        if name in clip:
            torch.testing.assert_close(started[name], clip[name])
        elif expected.unique().numel() <= max(2, expected.numel() // 10):  # constants and patterns: no randomness
            torch.testing.assert_close(started[name], expected, msg=name)
        else:
            assert started[name].isfinite().all(), name
            torch.testing.assert_close(started[name].std(), expected.std(), rtol=0.4, atol=0.0, msg=name)


def test_a_saved_transformers_clip_loads_as_it_is(tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 99, "eos_token_id": 98}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    theirs.save_pretrained(tmp_path)
    ours, loading = MaftPlusCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] | loading["unexpected_keys"]
    pixels, ids = torch.rand(2, 3, 32, 32), torch.tensor([[1, 5, 98], [1, 98, 98]])
    expected = theirs(input_ids=ids, pixel_values=pixels)
    found = ours.eval()(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image)
    with pytest.raises(CheckpointError, match="nothing to convert"):
        plan_conversion(dict(theirs.state_dict()), tmp_path)


# Tokenizer


def test_the_converted_tokenizer_gives_the_recorded_ids(converted):
    recorded = json.loads((FIXTURES / "text" / "text.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(converted["tiny_a_semantic"])
    expected = [entry["ids_trimmed"] for entry in recorded["tokenizer"]]
    assert token_ids(tokenizer, [entry["text"] for entry in recorded["tokenizer"]]) == expected


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer_folder):
    state = open_clip_state()
    state["token_embedding.weight"] = state["token_embedding.weight"][:100]
    checkpoint = written(tmp_path / "clip.bin", state)
    with pytest.raises(CheckpointError, match="another model's"):
        convert(checkpoint, tmp_path / "out", tokenizer=tokenizer_folder)
    with pytest.raises(CheckpointError, match="found no CLIP tokenizer"):
        tokenizer_from(tmp_path / "absent", checkpoint)
    with pytest.raises(CheckpointError, match="holds none of"):
        tokenizer_from(tmp_path, checkpoint)


# What is no checkpoint


class Harmful:
    """Unpickling this would make a file; it must never be made."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Broken sources, and what the message must say."""
    whole = written(folder / "whole.pth", {"model": tiny_state()})
    cut = folder / "cut.pth"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    code = written(folder / "code.pth", {"model": Harmful(folder / "was_run")})
    old_code = folder / "old_code.pth"
    old_code.write_bytes(pickle.dumps(Harmful(folder / "was_run")))
    swapped = {
        ("cdt.cross_atten.other" if name == "cdt.cross_atten.MLP.bias" else name): value
        for name, value in tiny_state().items()
    }
    (folder / "cut.safetensors").write_bytes(b"\\x10\\x00")
    return {
        "truncated": (cut, "cut short"),
        "truncated safetensors": (folder / "cut.safetensors", "cut short"),
        "code": (code, "could run code, so it is refused"),
        "code in the old format": (old_code, "could run code, so it is refused"),
        "another architecture": (
            written(folder / "other.pth", {"layer.weight": torch.zeros(2)}),
            "Unknown architecture",
        ),
        "no state dict": (written(folder / "list.pth", [1, 2]), "no dictionary of tensors"),
        "one missing, one extra": (written(folder / "swap.pth", swapped), "1 unknown, 1 missing"),
        "missing": (folder / "absent.pth", "no such file"),
        "empty folder": (folder, "holds none of"),
    }


def test_a_bad_file_ends_in_a_message_and_leaves_nothing(tmp_path):
    for name, (path, message) in bad_files(tmp_path).items():
        code, output = run_cli("convert", path, tmp_path / "out", "--task", "semantic", "--tokenizer", "none")
        text = " ".join(output.split())
        assert code != 0, name
        assert message in text, (name, text)
        assert path.name in text, name
        assert "Traceback" not in text, name
        assert leftovers(tmp_path) == [], name
    assert not (tmp_path / "was_run").exists()


def test_a_full_disk_ends_in_a_message_and_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = written(tmp_path / "clip.bin", open_clip_state())
    (tmp_path / "heads.json").write_text('{"text_config": {"num_attention_heads": 2}}')
    options = ("--config", tmp_path / "heads.json", "--tokenizer", "none")
    with largest_file(1_000_000):
        code, output = run_cli("convert", checkpoint, tmp_path / "out", *options)
    assert code != 0
    assert "could not be written (File too large)" in " ".join(output.split())
    assert leftovers(tmp_path) == []


@contextmanager
def largest_file(num_bytes: int):
    """No file may grow beyond `num_bytes`: the system refuses to write on, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leftovers(folder: Path) -> list[Path]:
    """The output folder `out`, or what was to become it."""
    return [path for path in folder.iterdir() if path.name.startswith(("out", ".out"))]


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    checkpoint = written(tmp_path / "clip.bin", open_clip_state())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="GB are needed"):
        convert(checkpoint, tmp_path / "out", tokenizer="none")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(tmp_path):
    checkpoint = written(tmp_path / "clip.bin", open_clip_state())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(checkpoint, tmp_path / "out", tokenizer="none")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_model_and_teacher_in_one_place_are_refused_before_anything_is_read(tmp_path):
    out = tmp_path / "out"
    for teacher_out in (out, out / "teacher", tmp_path, tmp_path / "x" / ".." / "out"):
        with pytest.raises(CheckpointError, match="lie apart"):
            convert(tmp_path / "absent.pth", out, teacher_out=teacher_out)
    assert list(tmp_path.iterdir()) == []


def test_model_and_teacher_appear_both_or_neither(tmp_path, monkeypatch):
    checkpoint = written(tmp_path / "model.pth", tiny_state())
    (tmp_path / "heads.json").write_text(json.dumps(tiny_overrides()))
    options = {"task": "semantic", "config_file": tmp_path / "heads.json", "tokenizer": "none"}
    before, replace = sorted(tmp_path.iterdir()), Path.replace

    def refuse_teacher(path, target):
        if Path(target).name == "teacher":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse_teacher)
    with pytest.raises(CheckpointError, match="Nothing was kept"):
        convert(checkpoint, tmp_path / "out", teacher_out=tmp_path / "teacher", **options)
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    convert(checkpoint, tmp_path / "out", teacher_out=tmp_path / "teacher", **options)
    assert all((tmp_path / name / "model.safetensors").is_file() for name in ("out", "teacher"))


def test_inspect_says_what_a_checkpoint_is(tmp_path):
    report = inspect_checkpoint(written(tmp_path / "model.pth", tiny_state()))
    assert (report["kind"], report["task"], report["becomes"]) == (
        "maftplus",
        None,
        "MaftPlusForUniversalSegmentation",
    )
    assert report["dropped"] == {"the frozen teacher of training": 96}
    assert "--task" in report["settings"]["cdt_form"]
