"""CLIP that takes masks: exactly CLIP without masks, and what masks mean for either tower."""

from pathlib import Path

import pytest
import torch
from reference_maft import check_ip_clip
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig
from maftplus.towers_maftplus import MaftPlusConvNextLayer, MaftPlusVisionLayer

GOLDEN = Path(__file__).parent / "fixtures" / "maft_v1" / "ip_clip.npz"
PATCH, LAYERS, FIRST_MASKED = 8, 4, 2
TEXT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 98,
    "eos_token_id": 99,
    "pad_token_id": 0,
}
VIT = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": PATCH,
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 2, 1], "layer_norm_eps": 1e-6}
INPUT_IDS = torch.tensor([[98, 5, 6, 99, 0, 0], [98, 7, 99, 0, 0, 0]])


def vit(**kwargs) -> MaftPlusCLIPModel:
    """A tiny ViT model whose weights are large enough that attention is far from uniform."""
    settings = {"projection_dim": 12, "first_masked_layer": FIRST_MASKED, "initializer_factor": 5.0, **kwargs}
    torch.manual_seed(0)
    return MaftPlusCLIPModel(MaftPlusCLIPConfig(text_config=TEXT, vision_config=VIT, **settings)).eval()


def convnext(**kwargs) -> MaftPlusCLIPModel:
    settings = {"projection_dim": 12, **kwargs}
    vision = {**CONVNEXT, "layer_scale_init_value": 0.5}
    torch.manual_seed(0)
    return MaftPlusCLIPModel(MaftPlusCLIPConfig(text_config=TEXT, vision_config=vision, **settings)).eval()


TOWERS = pytest.mark.parametrize("build", [vit, convnext])


def pixels(batch: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def random_masks(number: int, batch: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(batch, number, height, width, generator=torch.Generator().manual_seed(2)) > 0.5


def attention_with_everything(model: MaftPlusCLIPModel, pixel_values: torch.Tensor, visible: torch.Tensor):
    """The same by CLIP's own layers: one sequence of Q class tokens and N patches, one big additive mask."""
    vision = model.encode_image(pixel_values)
    batch, queries, patches = visible.shape
    sees = torch.zeros(batch, queries + patches, queries + patches, dtype=torch.bool)
    sees[:, :queries, :queries] = torch.eye(queries, dtype=torch.bool)
    sees[:, :queries, queries:] = visible
    sees[:, queries:, queries:] = True
    bias = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))[:, None]
    states = torch.cat([vision.dense_features[:, :1].expand(-1, queries, -1), vision.dense_features[:, 1:]], dim=1)
    for layer in model.vision_model.encoder.layers[FIRST_MASKED:]:
        states = layer(states, bias)
    return model.visual_projection(model.vision_model.post_layernorm(states[:, :queries]))


def calls(modules, run) -> int:
    """How often `modules` run forward during `run`."""
    count = []
    handles = [module.register_forward_hook(lambda *_: count.append(1)) for module in modules]
    run()
    for handle in handles:
        handle.remove()
    return len(count)


# Without masks


@pytest.fixture(scope="module")
def saved_clip(tmp_path_factory) -> tuple[CLIPModel, Path]:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=12)).eval()
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_a_saved_transformers_clip_loads_and_gives_its_features_exactly(saved_clip, size):
    clip, folder = saved_clip
    ours, report = MaftPlusCLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    inputs = {"pixel_values": pixels(2, *size), "interpolate_pos_encoding": size != (32, 32)}
    with torch.no_grad():
        expected, got = clip(input_ids=INPUT_IDS, **inputs), ours.eval()(input_ids=INPUT_IDS, **inputs)
        whole_image = ours.embed_image(ours.encode_image(inputs["pixel_values"]))
        features = clip.get_image_features(**inputs).pooler_output
    for name in ("logits_per_image", "image_embeds", "text_embeds"):
        assert_close(got[name], expected[name], rtol=0, atol=0)
    assert_close(whole_image, features, rtol=0, atol=0)


def test_hidden_states_and_attentions_are_recorded_as_in_clip(saved_clip):
    clip, folder = saved_clip
    ours = MaftPlusCLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    clip.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected, got = (model.get_image_features(pixels(2, 32, 32), **wanted) for model in (clip, ours))
    assert len(got.hidden_states) == LAYERS + 1
    for name in ("hidden_states", "attentions"):
        assert_close(got[name], expected[name], rtol=0, atol=0)


@TOWERS
def test_saving_and_loading_keeps_every_feature(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    again = MaftPlusCLIPModel.from_pretrained(tmp_path).eval()
    assert again.config.model_type == "maftplus_clip"
    assert_close(
        again.get_mask_features(pixels(), random_masks(3)), model.get_mask_features(pixels(), random_masks(3))
    )


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_convnext_image_embedding_is_norm_after_average_then_projection(projection):
    model = convnext(visual_projection_type=projection)
    expected = model.visual_projection(model.vision_model(pixels()).pooler_output)
    assert_close(model.get_image_features(pixels()).pooler_output, expected)
    assert_close(model.embed_image(model.encode_image(pixels())), expected)
    outputs = model(input_ids=INPUT_IDS, pixel_values=pixels(), return_loss=True)
    assert outputs.logits_per_image.shape == (2, 2)
    assert outputs.loss.isfinite()


def test_convnext_maps_have_one_stage_each_from_fine_to_coarse():
    vision = convnext().encode_image(pixels(2, 64, 96))
    assert [tuple(m.shape[1:]) for m in vision.feature_maps] == [(8, 16, 24), (8, 8, 12), (16, 4, 6), (24, 2, 3)]
    assert_close(vision.dense_features, vision.feature_maps[-1])
    assert vision.grid_size == (2, 3)


def test_positions_with_corner_alignment_are_resized_whatever_the_caller_asks():
    model = vit(position_align_corners=True)
    plain = vit()
    plain.load_state_dict(model.state_dict())
    same, other = pixels(1, 32, 32), pixels(1, 64, 40)
    assert_close(model.get_image_features(same).pooler_output, plain.get_image_features(same).pooler_output)
    aligned = model.get_image_features(other).pooler_output
    unaligned = plain.get_image_features(other, interpolate_pos_encoding=True).pooler_output
    assert (aligned - unaligned).abs().max() > 1e-4
    assert_close(aligned, model.embed_image(model.encode_image(other)))
    with pytest.raises(ValueError, match="doesn't match model"):
        plain.get_image_features(other)


# Masks, ViT


def test_the_recorded_maft_tower_is_reproduced():
    comparisons = check_ip_clip(GOLDEN)
    assert len(comparisons) == 18
    assert max(comparison.ratio for comparison in comparisons) < 1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("number", [1, 5, 40])
def test_mask_aware_attention_equals_one_big_masked_attention(implementation, number):
    model = vit(attn_implementation=implementation)
    masks = random_masks(number, height=4, width=6)
    masks[:, 0] = False
    expected = attention_with_everything(model, pixels(), masks.flatten(2))
    assert_close(model.get_mask_features(pixels(), masks), expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_mask_aware_attention_are_those_of_one_big_masked_attention():
    model, masks = vit(), random_masks(5, height=4, width=6)
    weights = [layer.self_attn.k_proj.weight for layer in model.vision_model.encoder.layers]
    ours = torch.autograd.grad(model.get_mask_features(pixels(), masks).square().sum(), weights)
    expected = attention_with_everything(model, pixels(), masks.flatten(2)).square().sum()
    assert_close(ours, torch.autograd.grad(expected, weights), rtol=1e-4, atol=1e-4)


def test_patches_are_computed_once_and_those_that_nobody_reads_not_at_all():
    model, tokens = vit(), []
    for layer in model.vision_model.encoder.layers:
        layer.mlp.register_forward_hook(lambda _module, inputs, _output: tokens.append(inputs[0].shape[1]))
    model.get_mask_features(pixels(), random_masks(100))
    assert tokens == [25, 25, 100, 24, 100]  # class token + 24 patches; then masks, patches; last layer: masks alone


def test_a_patch_is_visible_from_one_half_on():
    model = vit()
    masks = torch.full((1, 3, 4, 6), 0.5)
    masks[:, 1], masks[:, 2] = 0.499, 0.0
    half, below, empty = model.get_mask_features(pixels(1), masks)[0]
    assert_close(half, model.get_mask_features(pixels(1), torch.ones(1, 1, 4, 6))[0, 0])
    assert_close(below, empty)
    assert (half - empty).abs().max() > 1e-3


def test_dense_vit_features_beside_masks_do_not_know_the_class_token():
    model = vit()
    vision = model.encode_image(pixels())
    assert model.embed_dense(vision).shape == (2, 12, 4, 6)
    vision.dense_features = vision.dense_features.clone()
    before = [model.embed_dense(vision, see_class_token=sees) for sees in (True, False)]
    vision.dense_features[:, 0] += torch.randn(32)
    after = [model.embed_dense(vision, see_class_token=sees) for sees in (True, False)]
    assert (before[0] - after[0]).abs().max() > 1e-4
    assert_close(before[1], after[1])


# Masks, ConvNeXt


def test_masks_pool_the_dense_map_by_hand_computed_averages():
    model = convnext()
    vision = model.encode_image(pixels(1, 64, 64))  # a 2 x 2 map
    masks = torch.tensor([[[[1.0, -1], [-1, -1]], [[1, 1], [0, -1]], [[-1, -1], [-1, -1]]]])
    dense = vision.dense_features[0].permute(1, 2, 0)
    pooled = torch.stack([dense[0, 0], (dense[0, 0] + dense[0, 1]) / 2, torch.zeros(24)])
    expected = model.visual_projection(model.vision_model.layernorm(pooled))
    assert_close(model.embed_masks(vision, masks)[0], expected)


def test_a_mask_over_the_whole_image_gives_the_whole_image_embedding():
    model = convnext()
    features = model.get_mask_features(pixels(), torch.ones(2, 1, 100, 90, dtype=torch.bool))
    assert_close(features[:, 0], model.get_image_features(pixels()).pooler_output)


def test_bool_masks_are_logits_of_one_sign():
    model, masks = convnext(), random_masks(6)
    assert_close(model.get_mask_features(pixels(), masks), model.get_mask_features(pixels(), masks.float() * 2 - 1))


def test_dense_tokens_are_pixels_or_runs_of_consecutive_numbers():
    model = convnext()
    vision = model.encode_image(pixels(1, 64, 96))
    head = lambda tokens: model.visual_projection(model.vision_model.layernorm(tokens))  # noqa: E731
    expected = head(vision.dense_features[0, :, 1, 2])
    assert_close(model.embed_dense(vision)[0, :, 1, 2], expected)
    runs = head(vision.dense_features[0].reshape(-1)[5 * 24 :])
    assert_close(model.embed_dense(vision, "released")[0, :, 1, 2], runs)


# Masks, both towers


@TOWERS
def test_mask_logits_mean_the_same_to_both_towers(build):
    """A mask that fills its cells of the grid, as logits and as bool."""
    model = build()
    vision = model.encode_image(pixels(2, 64, 96))
    masks = random_masks(5, 2, *vision.grid_size)
    assert_close(model.embed_mask_logits(vision, masks.float() * 8 - 4), model.embed_masks(vision, masks))


def test_values_of_masks_are_not_read_where_there_are_none():
    for build in (vit, convnext):
        features = build().to("meta").get_mask_features(pixels().to("meta"), torch.zeros(2, 3, 8, 8, device="meta"))
        assert features.is_meta
        assert features.shape == (2, 3, 12)


@TOWERS
def test_a_mask_does_not_know_its_neighbours(build):
    model, masks = build(), random_masks(7)
    together = model.get_mask_features(pixels(), masks)
    alone = torch.cat([model.get_mask_features(pixels(), masks[:, q, None]) for q in range(7)], dim=1)
    assert_close(together, alone, rtol=1e-5, atol=1e-5)


@TOWERS
def test_numbers_and_sizes_of_masks_may_differ_in_a_batch(build):
    model = build()
    masks = [random_masks(5, 1)[0], random_masks(2, 1, 40, 30)[0]]
    features = model.get_mask_features(pixels(), masks)
    assert features.shape == (2, 5, 12)
    for index, own in enumerate(masks):
        alone = model.get_mask_features(pixels()[index, None], own[None])
        assert_close(features[index, : len(own)], alone[0], rtol=1e-5, atol=1e-5)
    empty = model.get_mask_features(pixels(), torch.zeros(2, 1, 8, 8, dtype=torch.bool))
    assert_close(features[1, 2:], empty[1].expand(3, -1), rtol=1e-5, atol=1e-5)


@TOWERS
def test_empty_masks_and_no_masks_at_all_give_finite_rows(build):
    model = build()
    assert model.get_mask_features(pixels(), torch.zeros(2, 3, 8, 8, dtype=torch.bool)).isfinite().all()
    assert model.get_mask_features(pixels(), torch.zeros(2, 0, 8, 8)).shape == (2, 0, 12)
    assert model.get_mask_features(pixels(), [torch.zeros(0, 8, 8), torch.zeros(0, 4, 4)]).shape == (2, 0, 12)


@TOWERS
def test_no_gradient_reaches_the_masks(build):
    masks = random_masks(3).float().requires_grad_()
    features = build().get_mask_features(pixels(), masks)
    assert features.requires_grad
    features.sum().backward()
    assert masks.grad is None


@TOWERS
def test_half_precision_stays_near_float32(build):
    model, images = build(initializer_factor=1.0), pixels(2, 64, 96)
    masks = random_masks(5)
    masks[..., :12] = True  # none is empty on the ConvNeXt's small map
    expected = model.get_mask_features(images, masks)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = model.get_mask_features(images, masks)
    half = model.to(torch.bfloat16).get_mask_features(images, masks)
    assert half.dtype == torch.bfloat16
    for features in (automatic, half):
        assert torch.cosine_similarity(features.float(), expected, dim=-1).min() > 0.999


@TOWERS
def test_evaluation_compiles_once_to_one_graph_for_all_sizes_and_numbers(build):
    model = build()
    torch._dynamo.reset()
    compiled = torch.compile(model.get_mask_features, fullgraph=True, backend="eager", dynamic=True)
    for number, size in ((7, (64, 96)), (5, (128, 80))):
        inputs = pixels(2, *size), random_masks(number).float()
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            assert_close(compiled(*inputs), model.get_mask_features(*inputs))


@TOWERS
def test_wrong_inputs_are_named(build):
    model = build()
    with pytest.raises(ValueError, match="`masks` must be .* 2 images"):
        model.get_mask_features(pixels(), random_masks(3, batch=3))
    with pytest.raises(ValueError, match="`masks` must be"):
        model.get_mask_features(pixels(), random_masks(3)[0])
    with pytest.raises(ValueError, match=r"`masks\[1\]` must be"):
        model.get_mask_features(pixels(), [torch.zeros(1, 8, 8), torch.zeros(8, 8)])
    with pytest.raises(ValueError, match="`pixel_values` must be"):
        model.encode_image(pixels(1, 4, 32))
    with pytest.raises(ValueError, match="`token_order`"):
        model.embed_dense(model.encode_image(pixels()), "columns")


def test_logits_are_refused_by_the_tower_that_wants_probabilities():
    for masks in (torch.randn(2, 3, 8, 8) * 4, torch.full((2, 3, 8, 8), float("nan"))):
        with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
            vit().get_mask_features(pixels(), masks)


def test_probabilities_are_refused_by_the_tower_that_wants_logits():
    probabilities = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.98 + 0.01
    model = convnext()
    for masks in (probabilities, list(probabilities)):
        with pytest.raises(ValueError, match=r"pass bool masks or logits; a probability p is the logit log"):
            model.get_mask_features(pixels(), masks)
    features = model.get_mask_features(pixels(), torch.logit(probabilities))
    assert_close(features, model.get_mask_features(pixels(), list(torch.logit(probabilities))))
    assert model.get_mask_features(pixels(), random_masks(3).float()).isfinite().all()  # 0 and 1 are no probabilities


def test_a_vit_without_masked_layers_says_so_when_masks_come():
    model = vit(first_masked_layer=LAYERS)
    assert model.get_image_features(pixels(1, 32, 32)).pooler_output.isfinite().all()
    with pytest.raises(ValueError, match="`first_masked_layer`"):
        model.get_mask_features(pixels(), random_masks(2))


# Loading and training


@TOWERS
def test_parameters_that_a_checkpoint_lacks_get_their_initial_values(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    bare = ("logit_scale", "class_embedding", "layer_scale_parameter", "visual_projection", "position_embedding")
    kept = {name: value for name, value in model.state_dict().items() if not any(part in name for part in bare)}
    loaded, report = MaftPlusCLIPModel.from_pretrained(
        None, config=model.config, state_dict=kept, output_loading_info=True
    )
    assert {name.split(".")[0] for name in report["missing_keys"]} >= {"logit_scale", "visual_projection"}
    assert all(value.isfinite().all() and value.abs().max() < 100 for value in loaded.state_dict().values())
    assert_close(loaded.logit_scale.item(), model.config.logit_scale_init_value)
    for name, value in loaded.named_parameters():
        if name.endswith("layer_scale_parameter"):
            assert_close(value, torch.full_like(value, 0.5))
    for name, value in loaded.named_buffers():
        assert name.endswith("position_ids")
        assert_close(value, torch.arange(value.shape[-1])[None])


@TOWERS
def test_gradient_checkpointing_reaches_every_block_and_changes_no_gradient(build):
    model = build().train()
    blocks = [m for m in model.modules() if isinstance(m, (MaftPlusVisionLayer, MaftPlusConvNextLayer))]
    blocks += list(model.text_model.encoder.layers)
    parts = [(block.layer_norm1 if hasattr(block, "mlp") else block.dwconv) for block in blocks]

    def step() -> None:
        model.zero_grad()
        features = model.get_mask_features(pixels(), random_masks(3))
        text = model.get_text_features(INPUT_IDS).pooler_output
        image = model.get_image_features(pixels(2, 32, 32)).pooler_output
        (features.square().sum() + text.square().sum() + image.square().sum()).backward()

    plain_calls = calls(parts, step)
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert calls(parts, step) == 2 * plain_calls
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, plain[name], rtol=1e-5, atol=1e-5)
    model.gradient_checkpointing_disable()
    assert calls(parts, step) == plain_calls


@TOWERS
def test_blocks_that_must_not_be_split_exist(build):
    names = {type(module).__name__ for module in build().modules()}
    expected = {vit: "MaftPlusVisionLayer", convnext: "MaftPlusConvNextLayer"}[build]
    assert {expected, "CLIPEncoderLayer"} <= names
    assert {expected, "CLIPEncoderLayer"} <= set(MaftPlusCLIPModel._no_split_modules)
