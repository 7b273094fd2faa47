"""The network: class scores, Content-Dependent Transfer, vocabulary, losses, loading, saving, compiling."""

import copy
from functools import partial

import pytest
import torch
from tiny_tools import save_tiny, tiny_config, tiny_model, tiny_processor
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    CLIPVisionConfig,
    MaskFormerConfig,
    ResNetConfig,
)

from maftplus.classifier_maftplus import (
    ContentDependentTransfer,
    class_log_probabilities,
    classification_logits,
    max_over_synonyms,
)
from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.outputs_maftplus import MaftPlusPicture

LABELS = ["cat, kitten", "grass", "sky, clouds, heaven"]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def words(processor):
    return processor(text=LABELS, return_tensors="pt")


@pytest.fixture
def model():
    return tiny_model()


def pictures(batch: int = 1, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# --- Class scores ---


def test_a_class_scores_the_best_of_its_synonyms_and_void_stays_last():
    logits = torch.tensor([[1.0, 5.0, 2.0, 3.0, -1.0]])  # rows of classes 0, 0, 1, 1, void
    assert_close(max_over_synonyms(logits, torch.tensor([0, 0, 1, 1]), 2), torch.tensor([[5.0, 3.0, -1.0]]))


def test_rows_of_a_class_need_not_stand_together():
    logits = torch.tensor([[1.0, 5.0, 2.0, -1.0]])
    assert_close(max_over_synonyms(logits, torch.tensor([1, 0, 1]), 2), torch.tensor([[5.0, 2.0, -1.0]]))


def test_the_logit_scale_is_cut_at_100_and_text_is_not_normalised():
    embeds, text = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    logits = classification_logits(embeds, text, torch.tensor(50.0), torch.tensor([0]), 1)
    assert_close(logits, torch.tensor([[[200.0, 0.0]]]))


def test_class_probabilities_sum_to_one_and_share_what_void_leaves():
    out_vocab, void = torch.tensor([[[0.0, 0.0, 9.0]]]), torch.tensor([[[0.2]]])
    probabilities = class_log_probabilities(out_vocab, void).softmax(-1)
    assert_close(probabilities, torch.tensor([[[0.4, 0.4, 0.2]]]), atol=1e-6, rtol=0)


def test_the_ensemble_is_a_renormalised_geometric_mean():
    out_vocab, in_vocab = torch.tensor([[[2.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 0.0]]])
    weights = torch.tensor([0.4, 0.8])
    p_in, p_out = in_vocab[..., :2].softmax(-1), out_vocab[..., :2].softmax(-1)
    expected = p_in ** (1 - weights) * p_out**weights
    expected = expected / expected.sum() * 0.9
    ours = class_log_probabilities(out_vocab, torch.tensor([[[0.1]]]), in_vocab, weights).exp()
    assert_close(ours[..., :2], expected, atol=1e-6, rtol=1e-5)


def test_an_ensemble_with_weights_of_one_is_the_out_of_vocabulary_score():
    out_vocab, in_vocab, void = torch.randn(1, 3, 5), torch.randn(1, 3, 5), torch.rand(1, 3, 1)
    plain = class_log_probabilities(out_vocab, void)
    assert_close(class_log_probabilities(out_vocab, void, in_vocab, torch.ones(4)), plain)


def test_fc_clip_weighs_seen_and_unseen_classes_differently(words):
    seen = torch.tensor([True, False, False])
    models = [tiny_model(cdt_form="off", ensemble_alpha=alpha, ensemble_beta=0.8) for alpha in (0.4, 0.8)]
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        scores = [model(pictures(), **words, seen_classes=seen).class_queries_logits for model in models]
        unseen = [model(pictures(), **words, seen_classes=~seen & False).class_queries_logits for model in models]
    assert not torch.allclose(*scores)
    assert_close(*unseen)


# --- Content-Dependent Transfer ---


def test_the_panoptic_transfer_starts_as_a_shift_that_ignores_the_image():
    model = tiny_model(cdt_form="panoptic")
    text = torch.randn(4, 16)
    moved = [model.model.cdt(text, torch.randn(1, 16, 2, 3)) for _ in range(2)]
    assert_close(*moved)
    assert_close(moved[0][0], text)


def test_the_transfer_has_both_published_forms():
    transfers = [ContentDependentTransfer(tiny_config(cdt_form=form)) for form in ("semantic", "panoptic")]
    transfers[1].load_state_dict(transfers[0].state_dict())
    text, dense = torch.randn(4, 16), torch.randn(2, 16, 2, 3)
    attended = transfers[0](text, dense), transfers[1](text, dense)
    assert attended[0].shape == attended[1].shape == (2, 4, 16)
    assert not torch.allclose(*attended)


def test_the_token_order_changes_the_scores_only_with_transfer_on(words):
    for form, is_same in (("semantic", False), ("off", True)):
        pixels, released = (tiny_model(cdt_form=form, cdt_token_order=order) for order in ("pixels", "released"))
        released.load_state_dict(pixels.state_dict())
        with torch.no_grad():
            scores = [model(pictures(), **words).out_vocab_logits for model in (pixels, released)]
        assert torch.allclose(*scores) == is_same


# --- Vocabulary ---


def test_encoding_once_gives_what_encoding_each_time_gives(model, words):
    with torch.no_grad():
        vocabulary = model.encode_vocabulary(**words)
        once = model(pictures(), **vocabulary)
        each_time = model(pictures(), **words)
    assert vocabulary["text_embeds"].shape == (6, 16)
    assert vocabulary["text_class_ids"].tolist() == [0, 0, 1, 2, 2, 2]
    assert_close(vocabulary["text_embeds"].norm(dim=-1), torch.ones(6))
    assert_close(once.class_queries_logits, each_time.class_queries_logits)


def test_the_order_and_the_length_of_other_prompts_change_no_embedding(model, processor):
    together = model.encode_vocabulary(
        **processor(text=[*LABELS, "a word that takes many more tokens"], return_tensors="pt")
    )
    alone = model.encode_vocabulary(**processor(text=LABELS[1:2], return_tensors="pt"))
    assert_close(together["text_embeds"][2], alone["text_embeds"][0], atol=1e-6, rtol=0)


def test_more_than_ten_thousand_labels_work(model, processor):
    labels = [f"thing {index}" for index in range(10_001)]
    vocabulary = model.encode_vocabulary(**processor(text=labels, templates=None, return_tensors="pt"))
    with torch.no_grad():
        outputs = model(pictures(), **vocabulary)
    assert outputs.class_queries_logits.shape == (1, 8, 10_002)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(16, 24)])
    assert maps[0].shape == (16, 24)


def test_a_stored_vocabulary_survives_saving_with_its_names_and_stuff(processor, tmp_path):
    folder = save_tiny(tmp_path, labels=LABELS, stuff=["grass"])
    model = AutoModelForUniversalSegmentation.from_pretrained(folder)
    assert model.config.id2label == {0: "cat", 1: "grass", 2: "sky"}
    assert model.config.vocabulary == [["cat", "kitten"], ["grass"], ["sky", "clouds", "heaven"]]
    with torch.no_grad():
        stored = model(pictures())
        given = model(pictures(), **processor(text=LABELS, return_tensors="pt"))
    assert_close(stored.class_queries_logits, given.class_queries_logits)
    assert stored.stuff_classes.tolist() == [[False, True, False]]
    assert given.stuff_classes is None


def test_setting_another_vocabulary_replaces_names_and_embeddings(processor):
    model = tiny_model()
    model.set_vocabulary(processor, LABELS, stuff=["grass"])
    model.set_vocabulary(processor, ["dog"])
    assert model.config.id2label == {0: "dog"}
    assert model.config.stuff_ids == []
    assert model.vocabulary_embeds.shape == (1, 16)


def test_names_that_contradict_the_stored_vocabulary_are_refused():
    with pytest.raises(ValueError, match="`id2label`.*contradicts"):
        tiny_config(vocabulary=[["cat"], ["dog"], ["cow"]], id2label={0: "cat", 1: "cow", 2: "dog"})


def test_stuff_that_is_not_among_the_names_is_refused(model, processor):
    with pytest.raises(ValueError, match="sand"):
        model.set_vocabulary(processor, LABELS, stuff=["sand"])


# --- Inputs and outputs ---


def test_padding_is_reported_as_the_size_of_the_picture(model, words):
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[0, :50, :96] = 1
    mask[1, :64, :33] = 1
    with torch.no_grad():
        outputs = model(pictures(2), pixel_mask=mask, **words)
    assert outputs.unpadded_sizes.tolist() == [[50, 96], [64, 33]]
    assert outputs.padded_sizes.tolist() == [[64, 96], [64, 96]]


def test_no_state_stays_between_calls(model, words):
    with torch.no_grad():
        first = model(pictures(), **words).class_queries_logits
        model(pictures(2, 96, 64), **words)
        assert_close(model(pictures(), **words).class_queries_logits, first, atol=0, rtol=0)


def test_a_picture_read_once_gives_what_a_whole_call_gives_for_any_words(model, processor):
    with torch.no_grad():
        picture = model.encode_picture(pictures(2))
        for labels in (LABELS, ["dog", "wall"]):
            words = processor(text=labels, return_tensors="pt")
            once, whole = model.classify(picture, **words), model(pictures(2), **words)
            assert once.keys() == whole.keys()
            for name, value in whole.items():
                assert_close(once[name], value, rtol=0, atol=0)


def test_a_picture_is_classified_by_the_stored_vocabulary_where_no_words_come(processor):
    model = tiny_model()
    model.set_vocabulary(processor, LABELS, stuff=["grass"])
    with torch.no_grad():
        outputs = model.classify(model.encode_picture(pictures(2)))
        assert_close(outputs.class_queries_logits, model(pictures(2)).class_queries_logits)
    assert outputs.stuff_classes.tolist() == [[False, True, False]] * 2


def test_scores_need_only_what_a_graph_of_the_picture_gives(model, words):
    names = ("masks_queries_logits", "class_embeds", "mask_embeds", "dense_embeds")
    with torch.no_grad():
        picture = model.encode_picture(pictures())
        alone = model.classify(MaftPlusPicture(**{name: picture[name] for name in names}), **words)
    assert_close(alone.class_queries_logits, model.classify(picture, **words).class_queries_logits)


def test_the_picture_reads_no_word_and_the_words_no_pixel(model, words, monkeypatch):
    with torch.no_grad():
        picture = model.encode_picture(pictures())
        monkeypatch.setattr(model.model.clip.vision_model, "encode", None)
        vocabulary = model.encode_vocabulary(**words)
        monkeypatch.setattr(model.model.clip, "text_model", None)
        assert model.classify(picture, **vocabulary).class_queries_logits.shape == (1, 8, 4)


def test_outputs_tell_the_class_of_every_row(model, words):
    with torch.no_grad():
        assert model(pictures(2), **words).text_class_ids.tolist() == [[0, 0, 1, 2, 2, 2]] * 2


def test_given_proposals_take_the_segmenters_place(model, words):
    masks = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        outputs = model(pictures(), **words, proposal_logits=masks)
    assert_close(outputs.masks_queries_logits, masks)
    assert outputs.class_queries_logits.shape == (1, 3, 4)
    assert outputs.in_vocab_logits is None
    assert_close(outputs.void_probabilities, torch.zeros(1, 3, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No vocabulary"),
        ({"text_embeds": torch.zeros(2, 5), "text_class_ids": torch.arange(2)}, "`text_embeds` must be"),
        ({"text_embeds": torch.zeros(2, 16), "text_class_ids": torch.arange(3)}, "`text_class_ids` must name"),
        ({"text_embeds": torch.zeros(2, 16)}, "`text_class_ids` must name"),
        ({"proposal_logits": torch.zeros(2, 3, 8, 8)}, "`proposal_logits` must be"),
        ({"pixel_mask": torch.ones(1, 5, 5)}, "`pixel_mask` must have"),
        ({"mask_labels": [torch.zeros(0, 64, 96)]}, "go together"),
    ],
)
def test_wrong_inputs_are_named(model, arguments, message):
    vocabulary = {"text_embeds": torch.eye(16)[:2], "text_class_ids": torch.arange(2)}
    wants_words = message == "No vocabulary" or "text_embeds" in arguments
    with pytest.raises(ValueError, match=message):
        model(pictures(), **({} if wants_words else vocabulary), **arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cdt_form": "both"}, "`cdt_form` must be one of"),
        ({"cdt_token_order": "rows"}, "`cdt_token_order` must be one of"),
        ({"loss_padding": "none"}, "`loss_padding` must be one of"),
        ({"ensemble_alpha": 1.5}, "`ensemble_alpha` must be a number between"),
        ({"hidden_dim": 40}, "`hidden_dim`"),
        ({"num_queries": 0}, "`num_queries` must be a positive"),
        ({"cdt_num_attention_heads": 5}, "`cdt_num_attention_heads`"),
        ({"cdt_num_attention_heads": 0}, "`cdt_num_attention_heads` must be a positive"),
        ({"ensemble_alpha": "x"}, "`ensemble_alpha` must be a number"),
        ({"num_queries": 8.5}, "`num_queries` must be a positive whole"),
        ({"importance_sample_ratio": 3.0}, "`importance_sample_ratio`"),
        ({"mask_weight": -1.0}, "`mask_weight`"),
        ({"image_std": [0.0, 1.0, 1.0]}, "`image_std` must be positive"),
        ({"vocabulary": ["cat", "dog"]}, "`vocabulary` must be a list of classes"),
        ({"vocabulary": [["cat"], []]}, "`vocabulary` must be a list of classes"),
        ({"vocabulary": [["cat"], ["dog"]], "stuff_ids": [7]}, "`stuff_ids` names classes"),
        ({"proposer_config": {"num_queries": 3}}, "`proposer_config` must name"),
    ],
)
def test_an_unknown_configuration_value_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cdt_form": "bogus"}, "`cdt_form`"),
        ({"stuff_ids": [9]}, "`stuff_ids`"),
        ({"id2label": {0: "x", 1: "y", 2: "z"}}, "`id2label`"),
        ({"vocabulary": [["x"], ["y"], ["z"]]}, "`id2label`"),
    ],
)
def test_values_given_while_loading_are_checked_too(values, message, tmp_path):
    folder = save_tiny(tmp_path, labels=LABELS)
    with pytest.raises(ValueError, match=message):
        AutoModelForUniversalSegmentation.from_pretrained(folder, **values)


@pytest.mark.parametrize("width", [10, 15])
def test_a_joint_space_that_the_transfer_cannot_encode_is_refused(width):
    clip = {"projection_dim": width, "vision_config": {"model_type": "convnext"}}
    with pytest.raises(ValueError, match=r"`clip_config.projection_dim` .* multiple of 4"):
        MaftPlusConfig(clip_config=clip, cdt_num_attention_heads=5)
    assert MaftPlusConfig(clip_config=clip, cdt_form="off").clip_config.projection_dim == width


def test_a_folder_of_another_model_is_refused(tmp_path):
    tiny_model().model.clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="maftplus_clip"):
        MaftPlusConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("argument", ["text_embed", "labels", "vocabulary"])
def test_an_argument_that_does_not_exist_is_refused_at_every_door(model, words, argument):
    with torch.no_grad():
        picture = model.encode_picture(pictures())
    for door in (model, model.model):
        with pytest.raises(TypeError, match=argument):
            door(pictures(), **words, **{argument: torch.zeros(1, 16)})
        with pytest.raises(TypeError, match=argument):
            door.classify(picture, **words, **{argument: torch.zeros(1, 16)})
        with pytest.raises(TypeError, match=argument):
            door.encode_vocabulary(**words, **{argument: torch.zeros(1, 16)})


def test_what_generic_code_passes_to_every_model_is_ignored(model, words):
    with torch.no_grad():
        outputs = model(pictures(), **words, output_attentions=False, output_hidden_states=False, return_loss=True)
    assert outputs.class_queries_logits.shape == (1, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_class_ids": torch.arange(2), "seen_classes": torch.zeros(1, dtype=torch.bool)}, "`seen_classes`"),
        ({"text_class_ids": torch.tensor([-1, 0])}, "from 0"),
        ({"text_class_ids": torch.arange(2).float()}, "`text_class_ids` must name"),
        ({"text_class_ids": torch.arange(2), "seen_classes": torch.zeros(2)}, "`seen_classes` must be"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(pictures(), text_embeds=torch.eye(16)[:2], **arguments)


def test_prompts_of_more_classes_than_seen_classes_has_are_refused(model, words):
    for door in (model.encode_vocabulary, partial(model, pictures())):
        with pytest.raises(ValueError, match="`seen_classes` must have an entry for each class"):
            door(**words, seen_classes=torch.zeros(2, dtype=torch.bool))


def test_a_class_id_without_a_class_never_becomes_void():
    with pytest.raises(RuntimeError, match="out of bounds"):
        max_over_synonyms(torch.randn(1, 3), torch.tensor([0, 2]), 2)


def test_no_classes_at_all_are_refused(model, words):
    with pytest.raises(ValueError, match="at least one class"):
        model.encode_vocabulary(**{name: value[:0] for name, value in words.items()})
    with pytest.raises(ValueError, match="`text_embeds` must be"):
        model(pictures(), text_embeds=torch.zeros(0, 16), text_class_ids=torch.zeros(0, dtype=torch.long))


def test_prompts_that_are_no_tensors_are_named(model, processor):
    with pytest.raises(ValueError, match="`input_ids` must be a tensor"):
        model.encode_vocabulary(**processor(text=LABELS))


def test_an_unknown_tower_or_projection_is_named():
    with pytest.raises(ValueError, match=r"`vision_config.model_type` must be one of"):
        MaftPlusCLIPConfig(vision_config={"model_type": "resnet"})
    with pytest.raises(ValueError, match="`visual_projection_type` must be one of"):
        MaftPlusCLIPConfig(visual_projection_type="deep")


# --- Losses ---


def labels_of(batch: int = 2, height: int = 64, width: int = 96) -> dict:
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    return {"mask_labels": [masks] * batch, "class_labels": [torch.tensor([0, 1])] * batch}


def test_labels_give_named_losses_that_add_up(words):
    model = tiny_model(train_num_points=32)
    outputs = model(pictures(2), **words, **labels_of())
    assert {"loss_ce", "loss_mask", "loss_dice", "loss_mask_aware", "loss_ce_0"} <= set(outputs.loss_dict)
    assert_close(outputs.loss, sum(outputs.loss_dict.values()))


def test_the_trunk_learns_from_the_mask_aware_loss_alone(words):
    model = tiny_model(train_num_points=32)
    outputs = model(pictures(2), **words, **labels_of())
    trunk = list(model.model.clip.vision_model.encoder.parameters())
    criterion = sum(loss for name, loss in outputs.loss_dict.items() if name != "loss_mask_aware")
    reached = torch.autograd.grad(criterion, trunk, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in reached)
    reached = torch.autograd.grad(outputs.loss_dict["loss_mask_aware"], trunk, allow_unused=True)
    assert all(gradient is not None for gradient in reached)


def test_only_the_last_prediction_is_classified_unless_a_loss_needs_the_others(words):
    model = tiny_model(train_num_points=32)
    with torch.no_grad():
        assert model(pictures(), **words).auxiliary_in_vocab_logits is None
        assert len(model(pictures(2), **words, **labels_of()).auxiliary_in_vocab_logits) == 2
    assert (
        "loss_ce_0"
        not in tiny_model(train_num_points=32, use_auxiliary_loss=False)(pictures(2), **words, **labels_of()).loss_dict
    )


# --- MAFT: a ViT behind a proposer ---


def vit_config(**kwargs) -> MaftPlusConfig:
    text = tiny_config().clip_config.text_config
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    clip = MaftPlusCLIPConfig(text_config=text, vision_config=vision, projection_dim=16, first_masked_layer=1)
    return MaftPlusConfig(clip_config=clip, cdt_form="off", clip_image_size=48, **kwargs)


def proposer_config() -> MaskFormerConfig:
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    decoder = {
        "model_type": "detr",
        "d_model": 16,
        "num_queries": 5,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "backbone_config": backbone,
    }
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 3}
    return MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, **sizes)


def test_a_vit_without_proposer_classifies_given_masks_and_says_so_without(words):
    model = MaftPlusForUniversalSegmentation(vit_config()).eval()
    with torch.no_grad():
        outputs = model(pictures(), **words, proposal_logits=torch.randn(1, 4, 16, 24))
    assert outputs.masks_queries_logits.shape == (1, 4, 64, 96)
    with pytest.raises(ValueError, match="no mask proposer"):
        model(pictures(), **words)


def test_a_frozen_proposer_of_transformers_brings_masks_and_void(words, tmp_path):
    torch.manual_seed(0)
    model = MaftPlusForUniversalSegmentation(vit_config(proposer_config=proposer_config())).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        outputs, again = model(pictures(), **words), loaded(pictures(), **words)
    assert outputs.class_queries_logits.shape == (1, 5, 4)
    assert outputs.void_probabilities.min() > 0
    assert_close(outputs.class_queries_logits, again.class_queries_logits)


def test_the_proposer_stays_frozen_while_the_rest_trains():
    model = MaftPlusForUniversalSegmentation(vit_config(proposer_config=proposer_config())).train()
    assert not any(parameter.requires_grad for parameter in model.model.proposer.parameters())
    assert not any(module.training for module in model.model.proposer.modules())
    assert model.model.clip.training


def test_a_proposer_takes_pictures_in_any_precision(words):
    model = MaftPlusForUniversalSegmentation(vit_config(proposer_config=proposer_config())).eval().to(torch.bfloat16)
    with torch.no_grad():
        assert model(pictures(), **words).class_queries_logits.isfinite().all()


def test_float16_keeps_the_floor_of_the_probabilities():
    out_vocab, void = torch.tensor([[[20.0, -20.0, 0.0]]]).half(), torch.zeros(1, 1, 1).half()
    assert class_log_probabilities(out_vocab, void).isfinite().all()


def test_a_proposer_sees_its_own_normalisation_and_zero_padding():
    config = vit_config(
        proposer_config=proposer_config(), proposer_image_mean=[0.5] * 3, proposer_image_std=[0.25] * 3
    )
    model = MaftPlusForUniversalSegmentation(config).model
    raw = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    mask = torch.zeros(1, 8, 8)
    mask[:, :5, :6] = 1
    pixels = model._proposer_pixels((raw - mean) / std * mask[:, None], mask)
    assert_close(pixels, (raw - 0.5) / 0.25 * mask[:, None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [tiny_model, lambda: MaftPlusForUniversalSegmentation(vit_config()).eval()])
def test_no_proposals_give_outputs_without_queries(build, words):
    with torch.no_grad():
        outputs = build()(pictures(), **words, proposal_logits=torch.zeros(1, 0, 16, 24))
    assert outputs.class_queries_logits.shape == (1, 0, 4)
    assert outputs.masks_queries_logits.shape[:2] == (1, 0)


# --- Without values: what a GPU need not wait for ---


@pytest.mark.parametrize("kind", ["stored", "encoded", "prompts"])
@pytest.mark.parametrize("build", [tiny_model, lambda: MaftPlusForUniversalSegmentation(vit_config()).eval()])
def test_forward_runs_on_the_meta_device(build, kind, processor, words):
    """No value is read and no tensor of the CPU is mixed in."""
    model = build()
    model.set_vocabulary(processor, LABELS)
    model.to("meta")
    given = {"stored": {}, "encoded": model.encode_vocabulary(**words), "prompts": words}[kind]
    proposals = None if hasattr(model.model, "segmenter") else torch.zeros(1, 8, 16, 24, device="meta")
    mask = torch.ones(1, 64, 96, device="meta")
    outputs = model(
        pictures().to("meta"), mask, proposals, **{name: value.to("meta") for name, value in given.items()}
    )
    assert all(value.is_meta for value in outputs.values())
    num_classes = len(words["input_ids"]) if kind == "prompts" else 3  # without values as many as there may be
    assert outputs.class_queries_logits.shape == (1, 8, num_classes + 1)


def test_prompts_on_the_cpu_tell_their_number_to_a_model_elsewhere(words):
    outputs = tiny_model().to("meta")(pictures().to("meta"), **words)
    assert outputs.class_queries_logits.shape == (1, 8, 4)


# --- Loading, precision, compilation ---


@pytest.mark.parametrize("auto", [AutoModelForUniversalSegmentation, AutoModelForImageSegmentation])
def test_the_auto_classes_load_a_saved_folder_with_the_same_numbers(auto, words, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pictures(), **words).class_queries_logits
        assert_close(auto.from_pretrained(tmp_path)(pictures(), **words).class_queries_logits, expected)
        bare = AutoModel.from_pretrained(tmp_path)(pictures(), **words)
    assert_close(bare.out_vocab_logits, model(pictures(), **words).out_vocab_logits)


def test_parameters_that_a_checkpoint_lacks_start_as_in_a_fresh_model(tmp_path):
    """A model started from CLIP weights alone: nothing may be uninitialised memory."""
    model = tiny_model(cdt_form="panoptic")
    clip = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.clip.")}
    model.save_pretrained(tmp_path, state_dict=clip)
    loaded = MaftPlusForUniversalSegmentation.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert tensor.isfinite().all(), name
        assert tensor.abs().max() < 30, name
    offsets = "model.segmenter.pixel_decoder.layers.0.self_attn.sampling_offsets.bias"
    assert_close(loaded.state_dict()[offsets], tiny_model().state_dict()[offsets])
    assert loaded.model.cdt.linear.weight.abs().max() == 0
    assert_close(loaded.model.segmenter.logit_scale.exp(), torch.tensor(1 / 0.07))


def test_bfloat16_stays_near_float32(model, words):
    """Masks far from their threshold, so that rounding moves no pixel in or out of one."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    masks = torch.randn(1, 5, 2, 3).sign().repeat_interleave(8, 2).repeat_interleave(8, 3) * 5
    with torch.no_grad():
        expected = model(pictures(), **words, proposal_logits=masks)
        outputs = half(pictures().bfloat16(), **words, proposal_logits=masks.bfloat16())
        proposed = half(pictures().bfloat16(), **words)
    assert proposed.class_queries_logits.dtype == torch.bfloat16
    assert proposed.class_queries_logits.isfinite().all()
    assert_close(outputs.mask_embeds.float(), expected.mask_embeds, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation, words, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, attn_implementation=implementation)
    with torch.no_grad():
        expected = model(pictures(), **words).class_queries_logits
        assert_close(loaded(pictures(), **words).class_queries_logits, expected, atol=1e-4, rtol=1e-4)


def test_a_device_map_and_a_dtype_are_taken(words, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, device_map="cpu", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    with torch.no_grad():
        assert loaded(pictures(), **words).class_queries_logits.isfinite().all()


def test_a_device_map_that_splits_the_model_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    split = {"model.clip": "cpu", "model.segmenter": "disk", "model.cdt": "cpu", "model.void_embedding": "cpu"}
    with pytest.raises(ValueError, match="`device_map` puts parts of this model on cpu, disk"):
        AutoModelForUniversalSegmentation.from_pretrained(
            tmp_path, device_map=split, offload_folder=tmp_path / "offload"
        )


def test_evaluation_compiles_to_one_graph_and_takes_other_sizes(model, words):
    vocabulary = model.encode_vocabulary(**words)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for size in ((64, 96), (96, 64)):
            expected = model(pictures(1, *size), **vocabulary).class_queries_logits
            assert_close(compiled(pictures(1, *size), **vocabulary).class_queries_logits, expected)


def test_gradient_checkpointing_reaches_every_tower_and_changes_no_gradient(words):
    gradients = []
    for is_checkpointed in (False, True):
        model = tiny_model(train_num_points=32).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
            layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
            assert {type(layer).__name__ for layer in layers} >= {"MaftPlusConvNextLayer", "CLIPEncoderLayer"}
        model(pictures(2), **words, **labels_of(), point_seeds=[1, 2]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
