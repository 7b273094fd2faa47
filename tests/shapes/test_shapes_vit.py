"""The ViT half of the shapes world's experiment: its pre-training, its proposer, its rows of the ablation."""

from pathlib import Path

import pytest
import torch

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.shapes import ablation
from maftplus.shapes.objective import Normalise
from maftplus.shapes.pretrain import build_clip, load_recipe, mask_accuracy, pretrain
from maftplus.shapes.proposer import build_proposer, mask_recall, train_proposer
from maftplus.shapes.scenes import export_coco_panoptic
from maftplus.shapes.tokenizer import train_tokenizer
from maftplus.shapes.vit import (
    NEIGHBOURS,
    build_vit_clip,
    hidden_states,
    load_teacher,
    opinion_loss,
    pool_patches,
    teacher_maps,
)

RECIPES = Path(ablation.RECIPES)
VISION = {
    "model_type": "clip_vision_model",
    "image_size": 128,
    "patch_size": 8,
    "hidden_size": 128,
    "intermediate_size": 16,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
}
STAGE = {
    "num_steps": 2,
    "batch_size": 2,
    "num_scenes": 4,
    "learning_rate": 1e-3,
    "warmup": 1,
    "weight_decay": 0.0,
    "layout": {"size": 48, "num_things": [1, 1], "num_regions": [1, 1]},
}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A random ConvNeXt CLIP with its tokenizer; its map has the ViT's grid."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    tokenizer = train_tokenizer(["a red ball on grass"])
    folder = tmp_path_factory.mktemp("teacher")
    build_clip(tokenizer, {"projection_dim": 16, "text_config": text, "vision_config": vision}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(teacher_folder):
    torch.manual_seed(0)
    return build_vit_clip({"first_masked_layer": 1, "vision_config": VISION}, load_teacher(teacher_folder)[0]).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    export_coco_panoptic(folder, "train", 8, ("seen",), size=64)  # a batch of the recipe
    return folder


@pytest.fixture(scope="module")
def proposer(data, tmp_path_factory):
    """One step of the recipe in small."""
    recipe = load_recipe(RECIPES / "shapes_proposer.yaml", ["max_steps=1", "per_device_train_batch_size=2"])
    recipe["backbone_config"] |= {"hidden_sizes": [8, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1]}
    recipe["model_config"] |= {"decoder_layers": 2, "num_queries": 5}
    out = tmp_path_factory.mktemp("proposer")
    train_proposer(recipe, data, out)
    return out


def test_two_steps_of_pre_training_change_the_vision_tower_and_not_the_words(teacher_folder, tmp_path):
    recipe = load_recipe(RECIPES / "shapes_clip_vit.yaml", [])
    recipe["clip_config"] = {"first_masked_layer": 1, "vision_config": VISION}
    recipe["stages"] = [STAGE]
    teacher, _ = load_teacher(teacher_folder)
    torch.manual_seed(recipe["seed"])
    start = build_vit_clip(recipe["clip_config"], teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maftplus.shapes.pretrain.mask_accuracy", lambda *_, **__: {})
        trained = pretrain(recipe, tmp_path, teacher=teacher_folder)
    assert not torch.equal(
        trained.vision_model.encoder.layers[0].mlp.fc1.weight, start.vision_model.encoder.layers[0].mlp.fc1.weight
    )
    torch.testing.assert_close(trained.text_projection.weight, teacher.text_projection.weight)
    assert MaftPlusCLIPModel.from_pretrained(tmp_path).config.first_masked_layer == 1


def test_every_head_begins_with_its_neighbour(vit):
    tower = vit.vision_model
    with torch.no_grad():
        states = tower.pre_layrnorm(tower.embeddings(torch.zeros(1, 3, 128, 128)))
        layer = tower.encoder.layers[0]
        normed = layer.layer_norm1(states)[0]
        queries, keys = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    place = 1 + 5 * 16 + 7  # row 5, column 7, behind the class token
    for head, (down, right) in enumerate(NEIGHBOURS):
        part = slice(head * 16, head * 16 + 16)
        assert (keys[:, part] @ queries[place, part]).argmax() == place + 16 * down + right


def test_a_vit_with_other_heads_is_refused(teacher_folder):
    with pytest.raises(ValueError, match="8 heads of 16"):
        build_vit_clip({"vision_config": {**VISION, "num_attention_heads": 4}}, load_teacher(teacher_folder)[0])


def test_a_vit_is_no_teacher(vit, teacher_folder, tmp_path):
    vit.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`teacher`"):
        load_teacher(tmp_path)


def test_whole_scenes_run_as_the_model_itself_runs_them(vit):
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = hidden_states(vit.vision_model, pixels)[-1]
        torch.testing.assert_close(ours, vit.vision_model(pixels).last_hidden_state)


def test_the_last_of_the_teacher_s_maps_is_its_dense_feature(teacher_folder):
    teacher, _ = load_teacher(teacher_folder)
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    first, *_, last = teacher_maps(teacher, pixels)
    torch.testing.assert_close(last, teacher.encode_image(pixels).dense_features.flatten(2).transpose(1, 2))
    assert first.shape == (1, 36, 4 * 8)


def test_the_opinion_loss_is_least_for_the_teacher_s_own_opinion():
    text = torch.eye(3)
    ours, theirs = torch.tensor([[[0.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
    scale = torch.tensor(10.0)
    assert opinion_loss(theirs, theirs, text, scale) < 0.01
    assert opinion_loss(ours, theirs, text, scale) > 9


def test_pooled_patches_are_the_sum_of_the_patches_inside(vit):
    vision = vit.encode_image(torch.zeros(1, 3, 128, 128))
    masks = torch.zeros(1, 2, 128, 128, dtype=torch.bool)
    masks[0, 0, :8, :16] = True
    with torch.no_grad():
        pooled, dense = pool_patches(vit, vision, masks), vit.embed_dense(vision)
    torch.testing.assert_close(pooled[0, 0], dense[0, :, 0, :2].sum(-1))
    assert not pooled[0, 1].any()


def test_mask_accuracy_of_a_vit_tells_both_ways(vit, teacher_folder):
    from maftplus.shapes.objective import Objective

    objective = Objective(vit, load_teacher(teacher_folder)[1], {}, use_bfloat16=False)
    found = mask_accuracy(objective, Normalise((0.5,) * 3, (0.5,) * 3), 2, seed=0)
    assert {"all", "pooled"} <= set(found)


def test_the_proposer_is_trained_and_judged(proposer):
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(proposer).eval()
    assert model.config.id2label == {0: "object"}
    found = mask_recall(model, 2)
    assert 0 <= found["recall_75"] <= found["recall_50"] <= 1


def test_the_proposer_s_trunk_starts_from_clip(teacher_folder):
    recipe = load_recipe(RECIPES / "shapes_proposer.yaml", [])
    recipe["backbone_config"] |= {"hidden_sizes": [8, 16, 8, 8, 8], "depths": [1, 1, 1, 1, 1], "patch_size": 4}
    clip, _ = load_teacher(teacher_folder)
    trunk = build_proposer(recipe, clip).model.pixel_level_module.encoder.state_dict()
    for name in ("embeddings.patch_embeddings.weight", "encoder.stages.1.layers.0.pwconv1.weight"):
        torch.testing.assert_close(trunk[name], clip.vision_model.state_dict()[name])
