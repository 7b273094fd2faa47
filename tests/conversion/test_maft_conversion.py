"""Conversion of MAFT's released files, whole and in part: names, shapes, the folder that comes of it, its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conversion_tools import FIXTURES, full_size_state, run_cli, written
from PIL import Image
from reference_tools import original_state
from safetensors.torch import load_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.conversion.checkpoint import CheckpointError
from maftplus.conversion.convert import convert, plan_conversion, plan_teacher
from maftplus.conversion.rename import renamed
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor

MAFT_GOLDEN = FIXTURES / "maft_v1" / "maft_v1_proposer"
OWN_PROPOSER = ("backbone.", "sem_seg_head.")
STUDENTS = ("IPCLIP.", "T.")


def maft_state(*without: str) -> dict[str, torch.Tensor]:
    """The recorded tiny MAFT, names and all, less what starts with `without`."""
    keys = json.loads(Path(f"{MAFT_GOLDEN}_config.json").read_text())["keys"]
    return original_state({name: spec[0] for name, spec in keys.items() if not name.startswith(without)})


def maft_overrides() -> dict:
    """The recorded model's numbers of heads, which break the released rule."""
    clip = json.loads(Path(f"{MAFT_GOLDEN}_config.json").read_text())["clip"]
    towers = (("text_config", "text_heads"), ("vision_config", "vheads"))
    return {"clip_config": {tower: {"num_attention_heads": clip[heads]} for tower, heads in towers}}


def tiny_proposer(folder: Path) -> Mask2FormerForUniversalSegmentation:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=stages)
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32}
    small = {
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 5,
        "num_attention_heads": 2,
    }
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, **sizes, **small))
    model.save_pretrained(folder)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    described = {"image_processor_type": "Mask2FormerImageProcessor", **statistics}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return model


def test_mafts_clip_alone_becomes_a_clip_with_its_non_object_row_beside_it(tmp_path, tokenizer_folder):
    state = maft_state(*OWN_PROPOSER)
    convert(written(tmp_path / "MAFT_Vitb.pt", {"model": state}), tmp_path / "clip", tokenizer=tokenizer_folder)
    clip = MaftPlusCLIPModel.from_pretrained(tmp_path / "clip")
    assert clip.config.position_align_corners
    torch.testing.assert_close(clip.logit_scale.exp(), torch.tensor(100.0))
    torch.testing.assert_close(clip.visual_projection.weight, state["IPCLIP.proj"].T)
    row = load_file(tmp_path / "clip" / "non_object_embedding.safetensors")["non_object_embedding"]
    torch.testing.assert_close(row, state["clip_adapter.non_object_embedding"])


@pytest.mark.parametrize(
    ("without", "contents", "part"),
    [
        ((), "MAFT: mask-aware CLIP, its teacher and its own mask proposer", "parts.mask proposer: "),
        (STUDENTS, "FreeSeg, which MAFT's training starts from", "parts.mask proposer: "),
        (OWN_PROPOSER, "MAFT, CLIP only", "parts.CLIP's vision tower: "),
    ],
)
def test_an_inspection_says_which_of_mafts_files_it_is_and_counts_its_parts(tmp_path, without, contents, part):
    checkpoint = written(tmp_path / "some.pt", {"model": maft_state(*without)})
    code, output = run_cli("inspect", checkpoint)
    assert code == 0, output
    assert f"contents: {contents}" in output
    assert int(output.split(part)[1].split()[0]) > 10_000
    assert ("mask proposer: " in output) == (without != OWN_PROPOSER)


def test_every_name_of_the_full_size_maft_has_an_entry_that_uses_or_drops_it():
    state = full_size_state("maft_v1_vitb16_r101_full")
    conversion = plan_conversion(state, Path("MAFT_Vitb.pt"))
    left_out = {name for name in state if not renamed(name, "maft")}
    assert len(state) == 1465
    assert {name.split(".")[0] for name in left_out} == {"clip_adapter", "criterion", "T"}
    proposer = conversion.model.model.proposer
    assert sum(t.numel() for t in proposer.trunk.state_dict().values()) == sum(
        t.numel() for name, t in state.items() if name.startswith("backbone.")
    )
    assert conversion.config.proposer_config.decoder_layers == 10
    assert list(conversion.config.proposer_config.last_stage_dilations) == [1, 2, 4]


def as_vit_large(name: str, shape: list[int]) -> list[int]:
    """A ViT-B file's shape in a ViT-L file: layers of width 1024, patches of 14, text of width 768."""
    if name.startswith(("IPCLIP.", "T.", "clip_adapter.clip_model.visual.")):
        widths = {768: 1024, 2304: 3072, 3072: 4096, 512: 768, 197: 257, 16: 14}
        return [widths.get(size, size) for size in shape]
    if name.startswith("clip_adapter."):
        return [{512: 768, 2048: 3072, 1536: 2304}.get(size, size) for size in shape]
    reads_text = ("layer_norm_k_1", "attn.k_proj.weight", "attn.v_proj.weight", "class_embed.layers.1")
    return [768 if size == 512 else size for size in shape] if any(part in name for part in reads_text) else shape


def test_a_vit_large_is_read_off_its_shapes_and_its_first_masked_layer_is_a_setting(tmp_path):
    state = {}
    for name, tensor in full_size_state("maft_v1_vitb16_r101_full").items():
        tensor = torch.empty(as_vit_large(name, list(tensor.shape)), device="meta")
        state[name] = tensor
        tower, _, rest = name.partition(".resblocks.")
        if rest and tower != "clip_adapter.clip_model.transformer":
            number, _, rest = rest.partition(".")
            state[f"{tower}.resblocks.{int(number) + 12}.{rest}"] = tensor
    conversion = plan_conversion(state, Path("MAFT_Vitl.pt"))
    clip = conversion.config.clip_config
    assert conversion.name == "MAFT ViT-L"
    assert (clip.projection_dim, clip.vision_config.num_hidden_layers, clip.vision_config.patch_size) == (768, 24, 14)
    assert clip.first_masked_layer == 8
    with pytest.raises(CheckpointError, match="`first_masked_layer` .24. must be below"):
        plan_conversion(state, Path(), overrides={"clip_config": {"first_masked_layer": 24}})


def test_a_proposer_that_is_not_all_there_is_refused():
    state = maft_state()
    del state["sem_seg_head.interaction.gamma"], state["backbone.res4.7.conv2.weight"]
    with pytest.raises(CheckpointError, match=r"2 missing[\s\S]*backbone.res4.7.conv2.weight"):
        plan_conversion(state, Path("MAFT_Vitb.pt"))


@pytest.fixture(scope="module")
def maft_folder(tmp_path_factory, tokenizer_folder) -> Path:
    """The recorded tiny MAFT, from a file in the original's layout, by the command; made to read small pictures."""
    folder = tmp_path_factory.mktemp("maft")
    checkpoint = written(folder / "MAFT_Vitb.pt", {"model": maft_state()})
    (folder / "heads.json").write_text(json.dumps(maft_overrides()))
    options = ("--config", folder / "heads.json", "--tokenizer", tokenizer_folder, "--first-masked-layer", 8)
    code, output = run_cli("convert", checkpoint, folder / "model", *options)
    assert code == 0, output
    processor = MaftPlusProcessor.from_pretrained(folder / "model")
    assert dict(processor.image_processor.size) == {"shortest_edge": 640, "longest_edge": 2560}
    processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 128}
    processor.save_pretrained(folder / "model")
    return folder / "model"


MAFT_IN_A_FRESH_PROCESS = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModelForUniversalSegmentation, pipeline

folder, picture, out = json.loads(sys.argv[1])
segmenter = pipeline("image-segmentation", model=folder, trust_remote_code=True)
found = {}
for words in (["train", "sky, clouds"], ["sea", "cat"]):
    for subtask in ("semantic", "instance"):
        segments = segmenter(picture, candidate_labels=words, subtask=subtask)
        found[f"{words[0]} {subtask}"] = [
            (s["label"], s["score"], int((np.array(s["mask"]) > 0).sum())) for s in segments
        ]
json.dump(found, open(out, "w"))
assert "maftplus" not in sys.modules
"""


def recorded_picture() -> Image.Image:
    with np.load(f"{MAFT_GOLDEN}.npz") as arrays:
        return Image.fromarray(arrays["single/in/image_0"])


def test_a_converted_maft_segments_by_pipeline_in_a_fresh_process(maft_folder, tmp_path):
    recorded_picture().save(tmp_path / "one.png")
    job = [str(maft_folder), str(tmp_path / "one.png"), str(tmp_path / "found.json")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", MAFT_IN_A_FRESH_PROCESS, json.dumps(job)]
    environment["PYTHONPATH"] = ""
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["train semantic"]
    assert {label for label, _, _ in found["train semantic"]} <= {"train", "sky, clouds"}
    assert {label for label, _, _ in found["sea instance"]} <= {"sea", "cat"}


def test_a_converted_maft_segments_by_the_command_and_scores_are_the_networks(maft_folder, tmp_path):
    recorded_picture().save(tmp_path / "one.png")
    options = ("--labels", "train", "--labels", "dog", "--task", "instance", "--threshold", "0")
    code, output = run_cli(
        "segment", tmp_path / "one.png", *options, "--model", maft_folder, "--out", tmp_path / "out"
    )
    assert code == 0, output
    segments = json.loads((tmp_path / "out" / "one.json").read_text())["segments"]
    model = MaftPlusForUniversalSegmentation.from_pretrained(maft_folder).eval()
    processor = MaftPlusProcessor.from_pretrained(maft_folder)
    inputs = processor(images=recorded_picture(), return_tensors="pt")
    masks = []
    with torch.no_grad():
        for names in (["train", "dog"], ["sea", "cat"]):
            outputs = model(**inputs, **model.encode_vocabulary(**processor(text=names, return_tensors="pt")))
            masks.append(outputs.masks_queries_logits)
            if names[0] == "train":
                scores = outputs.class_queries_logits.softmax(-1)[0, :, :-1].max().item()
    assert segments
    assert max(segment["score"] for segment in segments) <= scores + 1e-5
    assert (masks[0] - masks[1]).abs().max() > 1e-2  # the words steer the masks


def test_a_converted_maft_does_not_split_names_at_commas(maft_folder):
    processor = MaftPlusProcessor.from_pretrained(maft_folder)
    assert not processor.do_split_synonyms
    assert processor.split_labels(["sky, clouds", "dog"]) == [["sky, clouds"], ["dog"]]
    assert processor.label_ids([["sky, clouds"], ["dog"]], ["sky, clouds"]) == [0]
    assert processor(text=["sky, clouds"])["prompt_synonym_ids"] == [0] * 14


def test_a_converted_maft_gives_the_recorded_maps(maft_folder):
    arrays = np.load(f"{MAFT_GOLDEN}.npz")
    model = MaftPlusForUniversalSegmentation.from_pretrained(maft_folder).eval()
    processor = MaftPlusProcessor.from_pretrained(maft_folder)
    rows = torch.from_numpy(arrays["text/rows_with_non_object"])[:-1]
    inputs = processor(images=recorded_picture(), do_resize=False, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, text_embeds=rows, text_class_ids=torch.arange(len(rows)))
    maps = processor.post_process_semantic_segmentation(outputs, [(80, 112)], return_segmentation_scores=True)
    recorded = torch.from_numpy(arrays["single/out/sem_seg_0"])
    torch.testing.assert_close(maps[0]["segmentation_scores"], recorded, atol=3e-4, rtol=1e-5)


def test_a_converted_freeseg_starts_from_the_untouched_clip(tmp_path, tokenizer_folder):
    state = maft_state(*STUDENTS)
    conversion = plan_conversion(state, tmp_path / "freeseg_model.pt", overrides=maft_overrides())
    assert (conversion.kind, conversion.config.has_own_proposer) == ("freeseg", True)
    tower = conversion.tensors["model.clip.visual_projection.weight"]
    torch.testing.assert_close(tower, state["clip_adapter.clip_model.visual.proj"].T)
    assert plan_teacher(state, conversion).tensors["visual_projection.weight"].shape == tower.shape


def test_another_proposer_replaces_mafts_own(tmp_path, tokenizer_folder):
    proposer, state = tiny_proposer(tmp_path / "proposer"), maft_state()
    checkpoint = written(tmp_path / "MAFT_Vitb.pt", {"model": state})
    convert(checkpoint, tmp_path / "model", tokenizer=tokenizer_folder, proposer=tmp_path / "proposer")
    model, loading = MaftPlusForUniversalSegmentation.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loading["missing_keys"] | loading["unexpected_keys"]
    torch.testing.assert_close(model.model.proposer.state_dict(), proposer.state_dict())
    assert (model.config.proposer_image_mean, model.config.proposer_image_std) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    torch.testing.assert_close(model.model.void_embedding.weight, state["clip_adapter.non_object_embedding"])
    assert "in place of MAFT's own network" in (tmp_path / "model" / "README.md").read_text()
    text = {"text_embeds": torch.eye(3, 32), "text_class_ids": torch.arange(3)}
    with torch.no_grad():
        outputs = model.eval()(torch.rand(1, 3, 64, 96), **text)
    assert outputs.class_queries_logits.shape == (1, 5, 4)
    assert outputs.class_queries_logits.isfinite().all()
