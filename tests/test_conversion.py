"""Conversion of released checkpoints: names, sizes, files, and what happens to files that are not what they claim."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_tools import original_state
from text_tools import load_tokenizer
from typer.testing import CliRunner

from maftplus.checkpoint_maftplus import CheckpointError
from maftplus.cli_maftplus import app
from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.convert_maftplus_checkpoint import (
    plan_conversion,
    plan_teacher,
)
from maftplus.released_maftplus import detect_kind, infer_task
from maftplus.rename_maftplus import convert_maftplus_state, convert_open_clip_state, convert_state, renamed

FIXTURES = Path(__file__).parent / "fixtures"
KEYS = FIXTURES / "keys"
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


def full_size_state(name: str) -> dict[str, torch.Tensor]:
    with gzip.open(KEYS / f"{name}.json.gz", "rt") as file:
        shapes = json.load(file)
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def tiny_state(golden: str = "tiny_a_semantic") -> dict[str, torch.Tensor]:
    shapes = json.loads((TINY / f"{golden}_keys.json").read_text())
    return original_state({name: shape for name, (shape, _) in shapes.items()})


def tiny_overrides(golden: str = "tiny_a_semantic") -> dict:
    """The recorded models' numbers of heads, which break the released rule."""
    settings = json.loads((TINY / f"{golden}_config.json").read_text())
    text = {"num_attention_heads": settings["text_heads"]}
    return {"num_attention_heads": settings["nheads"], "clip_config": {"text_config": text}}


def open_clip_state() -> dict[str, torch.Tensor]:
    """A tiny OpenCLIP ConvNeXt: the student of a tiny MAFT+."""
    prefix = "backbone.clip_model."
    return {name.removeprefix(prefix): value for name, value in tiny_state().items() if name.startswith(prefix)}


def written(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def run_cli(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


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
    for other in ({}, {"criterion.empty_weight": torch.ones(6)}):
        with pytest.raises(CheckpointError, match="--task"):
            infer_task({**state, **other}, "maftplus")


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
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    load_tokenizer().save_pretrained(folder)
    return folder


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
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

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
