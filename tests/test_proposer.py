"""MAFT's own mask proposer: trunk, look at the words, decoder; the model around it. Numbers: `test_reference.py`."""

import pytest
import torch
from tiny_tools import tiny_config
from torch.testing import assert_close
from transformers import AutoModelForUniversalSegmentation, CLIPVisionConfig

from maftplus import proposer_maftplus
from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.proposer_maftplus import MaftPlusFrozenNorm, MaftPlusProposer, MaftPlusTrunk
from maftplus.train.trainer import freeze_all_but_trainable

TEXT_DIM = 16
SIZES = {
    "stem_size": 8,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 2, 3],
    "num_queries": 6,
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 32,
    "decoder_layers": 3,
    "dim_feedforward": 32,
    "interaction_dim": 24,
    "interaction_heads": 3,
    "class_feedforward_dim": 40,
}


def proposer_config(**kwargs) -> MaftPlusProposerConfig:
    return MaftPlusProposerConfig(**{**SIZES, **kwargs})


def proposer(**kwargs) -> MaftPlusProposer:
    torch.manual_seed(0)
    return MaftPlusProposer(proposer_config(**kwargs), TEXT_DIM).eval().requires_grad_(False)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, TEXT_DIM, generator=generator), dim=-1)


def pictures(batch: int = 1, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# Trunk


def test_the_trunk_gives_a_map_a_stage_at_strides_4_to_32():
    maps = proposer().trunk(pictures(2))
    assert [tuple(x.shape) for x in maps] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]


def test_the_trunk_takes_sizes_that_no_stride_divides():
    assert [tuple(x.shape[-2:]) for x in proposer().trunk(pictures(1, 61, 33))] == [(16, 9), (8, 5), (4, 3), (2, 2)]


def test_the_last_stage_is_dilated_and_strides_lie_in_the_3_by_3_convolutions():
    stages = MaftPlusTrunk(proposer_config()).stages
    middle = [[block.layer[1].convolution for block in stage] for stage in stages]
    assert [c.dilation for c in middle[-1]] == [c.padding for c in middle[-1]] == [(1, 1), (2, 2), (4, 4)]
    assert all(c.dilation == (1, 1) for stage in middle[:-1] for c in stage)
    assert [[c.stride[0] for c in stage] for stage in middle] == [[1], [2], [2, 1], [2, 1, 1]]
    assert {block.layer[0].convolution.stride for stage in stages for block in stage} == {(1, 1)}


def test_a_frozen_norm_is_batch_norm_by_stored_statistics_and_never_moves():
    theirs, ours = torch.nn.BatchNorm2d(4), MaftPlusFrozenNorm(4)
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    ours.load_state_dict({n: t for n, t in theirs.state_dict().items() if n != "num_batches_tracked"})
    x = torch.randn(3, 4, 5, 6)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert_close(ours.train()(x), theirs.eval()(x))
    assert_close(ours.state_dict(), before)
    assert not list(ours.parameters())


# Interaction


def test_what_the_picture_gives_needs_no_words_and_the_masks_change_with_them():
    model = proposer()
    maps = model.encode(pictures())
    masks = [model(*maps, rows(3, seed)).masks_queries_logits for seed in (0, 0, 1)]
    assert masks[0].shape == (1, 6, 16, 24)
    assert torch.equal(masks[0], masks[1])
    assert not torch.allclose(masks[0], masks[2], atol=1e-3)


def test_the_void_row_takes_part_like_a_class():
    model = proposer()
    maps, text = model.encode(pictures()), rows(3)
    other = torch.cat([text[:-1], rows(1, seed=5)])
    found = [model(*maps, t).masks_queries_logits for t in (text, other, text[[1, 0, 2]])]
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    assert_close(found[0], found[2], atol=1e-4, rtol=1e-4)  # a set: order does not matter


def test_text_is_normed_once_more_for_every_map_and_the_residual_starts_from_the_normed_map():
    model = proposer()
    model.text_norm.weight.fill_(2.0)
    model.text_norm.bias.uniform_(-1, 1)
    model.layer_scale.zero_()
    seen = []
    model.text_norm.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    maps = [torch.randn(1, 32, 2, 3), torch.randn(1, 32, 4, 6)]
    refined = model._look_at_words(maps, rows(3))
    assert_close(seen[1], model.text_norm(seen[0]))
    for before, after in zip(maps, refined):
        normed = model.map_norm(before.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, before.shape[-2:])
        assert_close(after, normed)


def test_attention_to_words_is_multi_head_attention_whatever_is_folded_where(monkeypatch):
    attention = proposer().text_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        projection.bias.uniform_(-1, 1)
    tokens, text = torch.randn(2, 50, 32), torch.randn(2, 4, TEXT_DIM)
    projected = (attention.q_proj(tokens), attention.k_proj(text), attention.v_proj(text))
    heads = [part.unflatten(-1, (3, -1)).transpose(1, 2) for part in projected]
    attended = torch.nn.functional.scaled_dot_product_attention(*heads)
    expected = attention.out_proj(attended.transpose(1, 2).flatten(2))
    assert_close(attention(tokens, text), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(proposer_maftplus, "SCORES_AT_ONCE", 12 * 7)  # seven pixels at once
    assert_close(attention(tokens, text), expected, atol=1e-5, rtol=1e-5)


# Decoder


def test_the_decoder_has_as_many_layers_as_it_says_and_one_prediction_more():
    model = proposer()
    found = model(*model.encode(pictures()), rows(3), output_auxiliary_logits=True)
    assert len(model.decoder.layers) == len(found.auxiliary_masks_queries_logits) == 3
    assert found.class_embeds.shape == found.auxiliary_class_embeds[0].shape == (1, 6, TEXT_DIM)
    alone = model(*model.encode(pictures()), rows(3))
    assert alone.auxiliary_masks_queries_logits is None
    assert_close(alone.masks_queries_logits, found.masks_queries_logits)


def test_its_class_head_has_two_layers_and_pools_no_masks():
    decoder = proposer().decoder
    assert [tuple(layer.weight.shape) for layer in decoder.class_embedder.layers] == [(40, 32), (TEXT_DIM, 40)]
    assert not any(name.startswith("pooled") for name, _ in decoder.named_children())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dim": 40}, "`hidden_dim`"),
        ({"decoder_layers": 0}, "`decoder_layers`"),
        ({"interaction_heads": 5}, "`interaction_dim`"),
        ({"depths": [1, 1, 1]}, "`depths`"),
        ({"last_stage_dilations": [1, 2]}, "`last_stage_dilations`"),
        ({"hidden_sizes": [16, 16, 32, 30]}, "`bottleneck_reduction`"),
    ],
)
def test_impossible_sizes_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        proposer_config(**fields)


# The model around it


def maft(**kwargs) -> MaftPlusForUniversalSegmentation:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = tiny_config().clip_config.text_config
    clip = MaftPlusCLIPConfig(text_config=text, vision_config=vision, projection_dim=16, first_masked_layer=1)
    config = MaftPlusConfig(
        clip_config=clip, proposer_config=proposer_config(), cdt_form="off", clip_image_size=48, **kwargs
    )
    return MaftPlusForUniversalSegmentation(config).eval()


def words(count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"text_embeds": rows(count, seed), "text_class_ids": torch.arange(count)}


def test_the_model_segments_with_its_own_masks_and_no_void(tmp_path):
    model = maft()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert loaded.config.has_own_proposer  # the class may be another import of the same file
    with torch.no_grad():
        outputs, again = model(pictures(), **words()), loaded(pictures(), **words())
        others = model(pictures(), **words(seed=3))
    assert outputs.class_queries_logits.shape == (1, 6, 4)
    assert outputs.masks_queries_logits.shape == (1, 6, 64, 96)
    assert outputs.in_vocab_logits is None
    assert outputs.void_probabilities.max() == 0
    assert_close(outputs.class_queries_logits, again.class_queries_logits)
    assert not torch.allclose(outputs.masks_queries_logits, others.masks_queries_logits, atol=1e-3)


def test_its_proposer_stays_frozen_and_in_evaluation_mode_while_clip_trains():
    model = maft(distillation_weight=0.1, compensation_weight=0.0).train()
    before = {name: tensor.clone() for name, tensor in model.model.proposer.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in model.model.proposer.parameters())
    assert not any(module.training for module in model.model.proposer.modules())
    labels = {"mask_labels": [torch.ones(1, 64, 96)], "class_labels": [torch.tensor([1])]}
    outputs = model(pictures(), **words(), **labels)
    outputs.loss.backward()
    assert not outputs.masks_queries_logits.requires_grad
    assert model.model.clip.vision_model.encoder.layers[2].self_attn.q_proj.weight.grad.abs().max() > 0
    assert_close(model.model.proposer.state_dict(), before)


def test_the_model_runs_in_half_precision():
    with torch.no_grad():
        half = maft().to(torch.bfloat16)(pictures().bfloat16(), **words())
    assert half.class_queries_logits.isfinite().all()


def test_a_picture_is_read_once_for_any_words():
    model = maft()
    calls = []
    model.model.proposer.trunk.register_forward_hook(lambda *_: calls.append("trunk"))
    with torch.no_grad():
        picture = model.encode_picture(pictures())
        outputs = [model.classify(picture, **words(seed=seed)) for seed in (0, 1)]
        assert calls == ["trunk"]
        for seed, output in enumerate(outputs):
            whole = model(pictures(), **words(seed=seed))
            assert_close(output.class_queries_logits, whole.class_queries_logits)
            assert_close(output.masks_queries_logits, whole.masks_queries_logits)
    assert picture.masks_queries_logits is None
    assert not torch.allclose(outputs[0].masks_queries_logits, outputs[1].masks_queries_logits, atol=1e-3)


def test_the_model_runs_on_the_meta_device():
    with torch.device("meta"):
        model = maft()
        text = {"text_embeds": torch.zeros(3, TEXT_DIM), "text_class_ids": torch.zeros(3, dtype=torch.long)}
        outputs = model(torch.zeros(1, 3, 64, 96), **text, seen_classes=torch.zeros(3, dtype=torch.bool))
    assert outputs.class_queries_logits.shape == (1, 6, 4)


def test_the_picture_is_normalised_for_the_proposer_and_its_padding_is_zero_there():
    model = maft(proposer_image_mean=[0.5] * 3, proposer_image_std=[0.25] * 3).model
    seen = []
    model.proposer.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    config, raw = model.config, torch.rand(1, 3, 64, 96)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    mask = torch.ones(1, 64, 96, dtype=torch.long)
    mask[:, 50:] = 0
    with torch.no_grad():
        model.encode_picture((raw - mean) / std * mask[:, None], mask)
    assert_close(seen[0], (raw - 0.5) / 0.25 * mask[:, None], atol=1e-5, rtol=1e-5)


def test_given_masks_replace_the_proposers():
    with torch.no_grad():
        outputs = maft()(pictures(), **words(), proposal_logits=torch.randn(1, 2, 16, 24))
    assert outputs.class_queries_logits.shape == (1, 2, 4)


def test_mafts_training_leaves_the_proposer_alone_and_trains_attention_and_norms_of_the_vision_tower():
    model = maft(distillation_weight=0.1, compensation_weight=0.0)
    freeze_all_but_trainable(model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(name.startswith("model.clip.vision_model.") for name in names)
    assert all("self_attn" in name or "norm" in name for name in names)
