"""The shapes world, its captions, its small CLIP's objective, and what the shipped model does with words."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from maftplus.shapes.captions import caption_scene
from maftplus.shapes.evaluate import _soft_iou, all_names, mask_sensitivity
from maftplus.shapes.make_model import RECIPES
from maftplus.shapes.objective import CaptionedScenes, Normalise, Objective, contrast, explained_loss, make_batch
from maftplus.shapes.pretrain import build_clip, learning_rate, mask_accuracy
from maftplus.shapes.scenes import (
    CLASS_NAMES,
    CLASSES,
    COLOURS,
    KINDS,
    SHAPES,
    STUFF_IDS,
    Scene,
    class_ids,
    draw_scene,
    export_coco_panoptic,
    scenes,
)
from maftplus.shapes.tokenizer import train_tokenizer
from maftplus.shapes.vocabulary_dropout import VocabularyDropout


def test_about_a_third_of_the_pairs_is_unseen_and_a_few_are_novel():
    numbers = {kind: len(class_ids(kind, things_only=True)) for kind in KINDS}
    assert numbers == {"seen": 21, "unseen": 12, "novel": 3}


def test_every_colour_and_every_shape_occurs_among_the_seen_pairs():
    seen = [CLASSES[index] for index in class_ids("seen", things_only=True)]
    assert {entry.colour for entry in seen} == set(COLOURS)
    assert {entry.shape for entry in seen} == set(SHAPES)


def test_no_name_belongs_to_two_classes():
    names = [name for entry in CLASSES for name in entry.names]
    assert len(names) == len(set(names))


def test_the_same_seed_gives_the_same_scenes_and_splits_share_none():
    first, again = (list(scenes("train", 3, seed=4)) for _ in range(2))
    other = list(scenes("test", 3, seed=4))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.segmentation, b.segmentation)
        assert (a.image != c.image).any()


def test_every_pixel_of_a_scene_has_a_listed_segment_and_a_class():
    for scene in scenes("validation", 5):
        assert scene.image.shape == (128, 128, 3)
        assert set(np.unique(scene.segmentation)) == {segment["id"] for segment in scene.segments_info}
        assert scene.semantic.max() < len(CLASSES)


def test_stuff_of_one_class_is_one_segment():
    for scene in scenes("validation", 5):
        stuff = [s["category_id"] for s in scene.segments_info if not s["isthing"]]
        assert len(stuff) == len(set(stuff))
        assert set(stuff) <= set(STUFF_IDS)


def test_scenes_hold_only_the_kinds_asked_for():
    for scene in scenes("train", 10, ("seen",)):
        assert {CLASSES[s["category_id"]].kind for s in scene.segments_info} == {"seen"}


def test_what_lies_below_stays_mostly_visible():
    for scene in scenes("validation", 10):
        areas = [np.sum(scene.segmentation == s["id"]) for s in scene.segments_info if s["isthing"]]
        assert min(areas, default=100) > 40


def test_the_colour_of_a_plain_thing_is_the_colour_of_its_name():
    scene = draw_scene(np.random.default_rng(0), [CLASS_NAMES.index("red square")], num_things=(1, 1))
    red, green, blue = scene.image[scene.semantic == CLASS_NAMES.index("red square")].mean(0)
    assert red > 2 * green
    assert red > 2 * blue


def test_a_scene_too_small_for_a_thing_is_refused():
    with pytest.raises(ValueError, match="`size` must be at least"):
        draw_scene(np.random.default_rng(0), [0], size=20)


def test_unknown_splits_and_kinds_are_refused():
    with pytest.raises(ValueError, match="`split`"):
        next(scenes("holiday", 1))
    with pytest.raises(ValueError, match="`kinds`"):
        class_ids("strange")


def test_a_caption_speaks_of_everything_in_the_scene_and_of_nothing_else():
    for index, scene in enumerate(scenes("train", 20)):
        caption = caption_scene(scene, np.random.default_rng(index))
        assert set(caption.phrase_classes) == {s["category_id"] for s in scene.segments_info}
        assert all(phrase in caption.text for phrase in caption.phrases)


def test_captions_use_synonyms():
    drawn = list(scenes("train", 40))
    words = " ".join(caption_scene(scene, np.random.default_rng(i)).text for i, scene in enumerate(drawn)).split()
    assert {"ball", "box", "crimson", "lawn"} <= {word.strip(",.") for word in words}


def test_a_scene_without_segments_has_no_caption():
    blank = Scene(np.zeros((48, 48, 3), np.uint8), np.zeros((48, 48), np.uint8))
    with pytest.raises(ValueError, match="no segments"):
        caption_scene(blank, np.random.default_rng(0))


def test_exported_scenes_read_back_as_coco_panoptic(tmp_path):
    export_coco_panoptic(tmp_path, "train", 2, ("seen",))
    scene = next(scenes("train", 1, ("seen",)))
    content = json.loads((tmp_path / "panoptic.json").read_text())
    ids = np.asarray(Image.open(tmp_path / "panoptic" / content["annotations"][0]["file_name"]))
    np.testing.assert_array_equal(ids[..., 0], scene.segmentation)
    vocabulary = json.loads((tmp_path / "vocabulary.json").read_text())["classes"]
    assert [row["id"] for row in vocabulary] == class_ids("seen")


def test_the_tokenizer_encodes_any_string_and_known_words_in_one_token():
    tokenizer = train_tokenizer(["a red ball", "a red box on grass"] * 3)
    assert tokenizer.tokenize("red ball") == ["red</w>", "ball</w>"]
    ids = tokenizer("Zürich 東京 🙂")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]


def test_contrast_is_the_softplus_of_what_the_best_rival_leads_by():
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    positive = torch.tensor([[True, False], [False, True]])
    expected = (
        torch.nn.functional.softplus(torch.tensor(1.0 - 2.0)) + torch.nn.functional.softplus(torch.tensor(-3.0))
    ) / 2
    torch.testing.assert_close(contrast(scores, positive, 1), expected)


def test_contrast_without_positives_is_zero():
    assert contrast(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), 0) == 0


def test_a_location_is_explained_when_its_own_caption_takes_it_all():
    logits = torch.tensor([[[9.0, -60.0]]])
    torch.testing.assert_close(explained_loss(logits, torch.tensor([[True, False]])), torch.tensor(0.0))
    assert explained_loss(logits, torch.tensor([[False, True]])) > 60


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    tokenizer = train_tokenizer(["a red ball on grass"])
    model = build_clip(tokenizer, {"projection_dim": 16, "text_config": text, "vision_config": vision})
    weights = dict.fromkeys(("phrase_to_image", "image_to_phrase", "region", "explained", "caption"), 1.0)
    return Objective(model, tokenizer, weights, use_bfloat16=False)


def test_a_pre_training_step_reaches_both_towers(objective):
    data = CaptionedScenes.draw(4, seed=0, size=64)
    batch = make_batch(data, np.arange(4), Normalise((0.5,) * 3, (0.5,) * 3), np.random.default_rng(0))
    assert batch.holds.any(0).all()
    loss, losses = objective(batch, location_share=0.5)
    loss.backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for tower in (objective.model.vision_model, objective.model.text_model):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_the_recipe_of_the_small_clip_builds(objective):
    path = RECIPES / "shapes_clip.yaml"
    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    assert build_clip(objective.tokenizer, recipe["clip_config"]).num_parameters() < 2_000_000
    assert len(all_names()) == len(CLASSES)


def test_mask_accuracy_is_a_share_for_every_kind_of_mask(objective):
    found = mask_accuracy(objective, Normalise((0.5,) * 3, (0.5,) * 3), 6, seed=0, size=64)
    assert {"all", "stuff", "seen"} <= set(found)
    assert all(0 <= value <= 1 for value in found.values())


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    assert learning_rate(0, 100, 10, 1.0) == pytest.approx(0.1)
    assert learning_rate(10, 100, 10, 1.0) == pytest.approx(1.0)
    assert learning_rate(100, 100, 10, 1.0) == pytest.approx(0.01)


def test_mask_sensitivity_is_one_where_scores_follow_overlaps():
    scene = next(scenes("validation", 1))
    ids = [segment["id"] for segment in scene.segments_info]
    masks = torch.stack([torch.from_numpy(scene.segmentation == i).float() * 20 - 10 for i in ids])
    overlaps = _soft_iou(masks, scene)  # (N, Q): a query is one of the segments
    logits = torch.zeros(1, len(ids), len(CLASSES) + 1)
    for segment, overlap in zip(scene.segments_info, overlaps):
        logits[0, :, segment["category_id"]] += 5 * overlap
    outputs = SimpleNamespace(out_vocab_logits=logits, masks_queries_logits=masks[None])
    assert min(mask_sensitivity(outputs, [scene])) > 0.5


def test_objects_that_nobody_asked_for_are_no_targets():
    ids = torch.tensor([0, 0, 1, 2])
    dropout = VocabularyDropout(lambda samples: samples[0], torch.arange(4.0)[:, None], ids)
    batch = {"mask_labels": [torch.eye(3).view(3, 1, 3)], "class_labels": [torch.tensor([2, 1, 0])]}
    part = dropout.ask(batch, torch.tensor([0, 2]))
    assert part["class_labels"][0].tolist() == [1, 0]
    torch.testing.assert_close(part["mask_labels"][0], torch.eye(3).view(3, 1, 3)[[0, 2]])
    assert part["text_class_ids"].tolist() == [0, 0, 1]
    assert part["text_embeds"].flatten().tolist() == [0, 1, 3]


def test_the_point_seeds_of_a_batch_decide_which_words_are_dropped():
    batch = {"mask_labels": [], "class_labels": [], "point_seeds": torch.tensor([5, 6])}
    dropout = VocabularyDropout(lambda samples: dict(batch), torch.zeros(9, 2), torch.arange(9), share=1.0)
    first, again = dropout([])["text_class_ids"], dropout([])["text_class_ids"]
    torch.testing.assert_close(first, again)
    assert 1 <= len(first) < 9


def test_vocabulary_dropout_refuses_an_impossible_share():
    with pytest.raises(ValueError, match="`share`"):
        VocabularyDropout(list, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), share=2.0)
