"""Mask proposals: against transformers' Mask2Former modules, plain re-computations, and at the edges."""

import pytest
import torch
import torch.nn.functional as F
from deformable_tools import multi_scale_deformable_attention
from mask2former_tools import Mask2FormerModules, copy_weights
from tiny_tools import tiny_config, tiny_model
from torch import nn

from maftplus.layers_maftplus import MaftPlusAttention, MaftPlusLinear, pool_masks, sine_position_embedding
from maftplus.segmenter_maftplus import MaftPlusSegmenter, init_segmenter_weights

SIZES = [(2, 3), (4, 6), (7, 12)]


def build(seed: int = 0, **kwargs) -> MaftPlusSegmenter:
    """Tiny, in evaluation mode, with sampling offsets that depend on the query (they start independent of it)."""
    torch.manual_seed(seed)
    segmenter = MaftPlusSegmenter(tiny_config(**kwargs)).eval()
    for layer in segmenter.pixel_decoder.layers:
        nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.3)
        nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.3)
    return segmenter


def feature_maps(height: int = 96, width: int = 64, batch: int = 2, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = tiny_config().clip_config.vision_config.hidden_sizes
    return [
        torch.randn(batch, size, -(-height // stride), -(-width // stride), generator=generator)
        for size, stride in zip(channels, (4, 8, 16, 32))
    ]


def sampling(sizes=SIZES, batch: int = 2, queries: int = 9, spread: float = 0.4, seed: int = 2):
    """Values, places (some outside the map) and weights for the sampling function."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in sizes)
    value = torch.randn(batch, tokens, 2, 8, generator=generator)
    places = 0.5 + spread * torch.randn(batch, queries, 2, len(sizes), 4, 2, generator=generator)
    weights = torch.rand(batch, queries, 2, len(sizes), 4, generator=generator)
    return value, places, weights


def sampled_plainly(value, sizes, places, weights):
    """Deformable attention written with one `grid_sample` a level."""
    batch, _, heads, width = value.shape
    result = 0
    for level, part in enumerate(value.split([h * w for h, w in sizes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *sizes[level])
        grid = 2 * places[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B * M, queries, P, 2)
        found = F.grid_sample(maps, grid, align_corners=False).unflatten(0, (batch, heads))
        result = result + (found * weights[:, :, :, level].transpose(1, 2).unsqueeze(2)).sum(-1)
    return result.permute(0, 3, 1, 2).flatten(2)


def test_pixel_decoder_and_masks_equal_transformers_mask2former():
    segmenter = build(encoder_layers=2, decoder_layers=5)
    yardstick = Mask2FormerModules(tiny_config(encoder_layers=2, decoder_layers=5)).eval()
    copy_weights(segmenter, yardstick)
    with torch.no_grad():
        ours = segmenter(feature_maps(), output_auxiliary_logits=True)
        mask_features, levels, masks, _ = yardstick(feature_maps())
    exact = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(ours.mask_features, mask_features, **exact)
    torch.testing.assert_close(ours.multi_scale_features, tuple(levels), **exact)
    torch.testing.assert_close((*ours.auxiliary_masks_queries_logits, ours.masks_queries_logits), masks, **exact)


@pytest.mark.parametrize("sizes", [SIZES, [(1, 1), (1, 2), (3, 1)]], ids=["maps", "maps of one pixel"])
def test_sampling_and_its_gradients_equal_grid_sample(sizes):
    ours = [x.requires_grad_() for x in sampling(sizes)]
    plain = [x.detach().clone().requires_grad_() for x in ours]
    result = multi_scale_deformable_attention(ours[0], sizes, *ours[1:])
    expected = sampled_plainly(plain[0], sizes, *plain[1:])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((result * weight).sum(), ours)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sampling_works_in_half_precision_with_gradients(dtype):
    value, places, weights = sampling()
    half = value.to(dtype).requires_grad_()
    result = multi_scale_deformable_attention(half, SIZES, places, weights.to(dtype))
    result.sum().backward()
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.float(), multi_scale_deformable_attention(value, SIZES, places, weights), atol=0.1, rtol=0.02
    )
    assert half.grad.isfinite().all()
    assert half.grad.abs().sum() > 0


def test_sampling_far_outside_or_nowhere_reads_nothing_that_does_not_exist():
    value, places, weights = sampling()
    outside = multi_scale_deformable_attention(value, SIZES, places + 1e6, weights)
    torch.testing.assert_close(outside, torch.zeros_like(outside))
    assert multi_scale_deformable_attention(value, SIZES, places * float("nan"), weights).isnan().all()


def test_sampling_takes_sizes_as_a_tensor_and_refuses_sizes_that_do_not_add_up():
    value, places, weights = sampling()
    expected = multi_scale_deformable_attention(value, SIZES, places, weights)
    torch.testing.assert_close(multi_scale_deformable_attention(value, torch.tensor(SIZES), places, weights), expected)
    with pytest.raises(ValueError, match="`spatial_shapes`"):
        multi_scale_deformable_attention(value, [(2, 3), (4, 6), (7, 11)], places, weights)


def test_sine_encoding_counts_rows_then_columns_in_alternating_sine_and_cosine():
    encoding = sine_position_embedding(3, 5, 4)
    assert encoding.shape == (1, 8, 3, 5)
    turn = 2 * torch.pi
    expected_row = torch.tensor([2 / 3 * turn]).sin(), torch.tensor([2 / 3 * turn / 100]).cos()
    torch.testing.assert_close(encoding[0, 0, 1], expected_row[0].expand(5), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoding[0, 3, 1], expected_row[1].expand(5), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        encoding[0, 5, :, 3], torch.tensor([4 / 5 * turn]).cos().expand(3), atol=1e-5, rtol=1e-5
    )


def test_mask_pooling_averages_inside_and_an_empty_mask_gives_zeros():
    features = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]], [[10.0, 20.0, 30.0, 40.0]]]], requires_grad=True)  # (1, 2, 1, 4)
    logits = torch.tensor([[[[0.5, 0.0, -1.0, 2.0]], [[0.0, 0.0, -1.0, -1.0]]]], requires_grad=True)
    pooled = pool_masks(features, logits)
    torch.testing.assert_close(pooled, torch.tensor([[[2.5, 25.0], [0.0, 0.0]]]))
    pooled.sum().backward()
    assert logits.grad is None
    torch.testing.assert_close(features.grad[0, 0, 0], torch.tensor([0.5, 0.0, 0.0, 0.5]))


def test_a_query_whose_mask_is_empty_looks_everywhere_and_others_only_inside():
    segmenter = build()
    last = segmenter.decoder.mask_embedder.layers[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.eye(32)[0])
    level_features = torch.full((1, 32, 4), -1.0)
    normed = torch.zeros(1, 1, 32)
    assert segmenter.decoder._visible(normed, level_features).all()
    level_features[0, 0, 2] = 1.0
    assert segmenter.decoder._visible(normed, level_features).tolist() == [[[False, False, True, False]]]


def test_a_call_leaves_nothing_behind_for_the_next():
    segmenter = build()
    with torch.no_grad():
        first = segmenter(feature_maps(96, 64)).masks_queries_logits
        segmenter(feature_maps(65, 131, batch=1))
        again = segmenter(feature_maps(96, 64)).masks_queries_logits
    torch.testing.assert_close(first, again, atol=0, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (65, 131), (4, 4)])
def test_any_size_works_down_to_one_pixel(height, width):
    maps = feature_maps(height, width)
    with torch.no_grad():
        output = build()(maps)
    assert output.masks_queries_logits.shape == (2, 8, *maps[0].shape[-2:])
    assert output.class_embeds.shape == (2, 8, 16)
    assert output.masks_queries_logits.isfinite().all()
    assert output.class_embeds.isfinite().all()


def test_auxiliary_predictions_come_in_order_without_the_last_which_they_do_not_change():
    segmenter = build()
    with torch.no_grad():
        plain, full = segmenter(feature_maps()), segmenter(feature_maps(), output_auxiliary_logits=True)
    assert plain.auxiliary_masks_queries_logits is None
    assert plain.auxiliary_class_embeds is None
    assert len(full.auxiliary_masks_queries_logits) == len(full.auxiliary_class_embeds) == 2
    torch.testing.assert_close(full.masks_queries_logits, plain.masks_queries_logits)
    torch.testing.assert_close(full.class_embeds, plain.class_embeds)
    queries = segmenter.decoder.layer_norm(segmenter.decoder.queries_features.weight)
    first = segmenter.decoder.mask_embedder(queries) @ full.mask_features.flatten(2)
    torch.testing.assert_close(full.auxiliary_masks_queries_logits[0].flatten(2), first)


def test_bfloat16_stays_close_to_float32():
    segmenter, maps = build(), feature_maps()
    with torch.no_grad():
        expected = segmenter(maps)
        output = segmenter.to(torch.bfloat16)([x.to(torch.bfloat16) for x in maps])
    assert output.masks_queries_logits.dtype == output.class_embeds.dtype == torch.bfloat16
    torch.testing.assert_close(output.mask_features.float(), expected.mask_features, atol=0.15, rtol=0.1)


def test_evaluation_compiles_without_graph_breaks():
    segmenter = build()
    compiled = torch.compile(segmenter, fullgraph=True, backend="eager")
    with torch.no_grad():
        found, expected = compiled(feature_maps()), segmenter(feature_maps())
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits)
    torch.testing.assert_close(found.class_embeds, expected.class_embeds)


def test_the_exported_graph_takes_other_sizes():
    class Masks(nn.Module):
        def __init__(self):
            super().__init__()
            self.segmenter = build()

        def forward(self, maps):
            return self.segmenter(maps).masks_queries_logits

    model, auto = Masks().eval(), torch.export.Dim.AUTO
    shapes = ([{2: auto, 3: auto}] * 4,)
    exported = torch.export.export(model, (feature_maps(),), dynamic_shapes=shapes).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(feature_maps(160, 96)), model(feature_maps(160, 96)), atol=1e-5, rtol=1e-4)


def gradients(segmenter: MaftPlusSegmenter) -> list[torch.Tensor | None]:
    output = segmenter.train()(feature_maps(), output_auxiliary_logits=True)
    sum(x.square().mean() for x in (*output.auxiliary_class_embeds, output.masks_queries_logits)).backward()
    return [parameter.grad for parameter in segmenter.parameters()]


def test_gradient_checkpointing_changes_no_gradient_and_reaches_every_layer():
    plain = gradients(tiny_model().model.segmenter)
    model = tiny_model()
    model.gradient_checkpointing_enable()
    segmenter = model.model.segmenter
    layers = [*segmenter.pixel_decoder.layers, *segmenter.decoder.layers]
    assert all(layer.gradient_checkpointing for layer in layers)
    torch.testing.assert_close(gradients(segmenter), plain)


def test_gradients_reach_every_parameter_but_the_logit_scale():
    segmenter = build()
    found = zip(segmenter.named_parameters(), gradients(segmenter))
    assert [name for (name, _), gradient in found if gradient is None] == ["logit_scale"]


def test_gradients_reach_the_mask_head_under_autocast_without_auxiliary_predictions():
    segmenter = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = segmenter(feature_maps()).masks_queries_logits.float().square().mean()
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in segmenter.decoder.mask_embedder.parameters())


def test_offsets_learn_from_the_first_step_although_they_start_on_pixel_centres():
    torch.manual_seed(0)
    segmenter = MaftPlusSegmenter(tiny_config())
    segmenter(feature_maps()).masks_queries_logits.square().mean().backward()
    gradient = segmenter.pixel_decoder.layers[0].self_attn.sampling_offsets.bias.grad
    assert (gradient != 0).float().mean() > 0.8  # the rest points outside these small maps


def test_initialisation_sets_every_parameter_and_spares_loaded_ones():
    segmenter = build()
    for parameter in segmenter.parameters():
        nn.init.constant_(parameter, float("nan"))
    loaded = segmenter.pixel_decoder.level_embed
    nn.init.constant_(loaded, 7.0)
    loaded._is_hf_initialized = True
    init_segmenter_weights(segmenter, tiny_config())
    assert all(parameter.isfinite().all() for parameter in segmenter.parameters())
    assert (loaded == 7.0).all()
    grid = segmenter.pixel_decoder.layers[0].self_attn.sampling_offsets.bias.view(4, 3, 4, 2)
    torch.testing.assert_close(grid[1, 2], torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]]))


def test_initialisation_leaves_other_modules_alone():
    linear = nn.Linear(3, 3)
    before = linear.weight.clone()
    init_segmenter_weights(linear, tiny_config())
    torch.testing.assert_close(linear.weight, before)


def test_a_wrong_number_of_maps_is_refused_by_name():
    with pytest.raises(ValueError, match="`feature_maps` has 3 maps"):
        build()(feature_maps()[1:])


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5), (0, 5), (2, 0, 5)])
def test_linear_over_tokens_is_linear_at_any_rank(shape):
    linear = MaftPlusLinear(5, 7)
    tokens = torch.randn(shape)
    torch.testing.assert_close(linear(tokens), F.linear(tokens, linear.weight, linear.bias), atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_linear_over_many_tokens_runs_in_onednn_with_any_number_of_threads(num_threads):
    linear, tokens, before = MaftPlusLinear(32, 8), torch.randn(2, 512, 32), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            result = linear(tokens)
    finally:
        torch.set_num_threads(before)
    assert "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(result, F.linear(tokens, linear.weight, linear.bias), atol=1e-5, rtol=1e-5)


def test_attention_equals_torch_multihead_attention_and_takes_both_kinds_of_mask():
    torch.manual_seed(0)
    attention, theirs = MaftPlusAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj = attention.out_proj
    query, key, value = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    visible = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    expected = theirs(query, key, value, attn_mask=~visible)[0]
    torch.testing.assert_close(attention(query, key, value, visible), expected)
    additive = torch.zeros(3, 5).masked_fill(~visible, float("-inf"))
    torch.testing.assert_close(attention(query, key, value, additive), expected)
