"""Masks that are there already: whatever holds them is read alike, and each gets a word, with either tower."""

import json

import numpy as np
import pytest
import torch
from docs_files import run_lengths
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_tools import tiny_config, tiny_model, tiny_processor
from transformers import CLIPVisionConfig

from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig
from maftplus.masks_maftplus import proposal_logits, read_masks
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline

LABELS = ["cat, kitten", "grass", "sky"]
SIZE = (50, 70)  # height, width


def make_masks():
    """Three that overlap."""
    masks = np.zeros((3, *SIZE), dtype=bool)
    masks[0, :30, :40], masks[1, 20:, 10:], masks[2, 5:9, 60:] = True, True, True
    return masks


def compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


FORMS = {
    "bool arrays": lambda masks: masks,
    "a tensor": torch.from_numpy,
    "0 and 255": lambda masks: masks.astype(np.uint8) * 255,
    "a list of arrays": list,
    "PIL images": lambda masks: [Image.fromarray(mask) for mask in masks],
    "run lengths": lambda masks: list(map(run_lengths, masks)),
    "compressed run lengths": lambda masks: list(map(compressed, masks)),
    "Segment Anything's records": lambda masks: [
        {"segmentation": run_lengths(mask), "area": int(mask.sum()), "predicted_iou": 0.9} for mask in masks
    ],
    "Segment Anything's records of arrays": lambda masks: [{"segmentation": mask} for mask in masks],
    "SA-1B's JSON": lambda masks: json.loads(
        json.dumps({"image": {"width": 70}, "annotations": [{"segmentation": compressed(mask)} for mask in masks]})
    ),
    "transformers' mask generation": lambda masks: {"masks": list(masks), "scores": torch.ones(3)},
    "this pipeline's results": lambda masks: [{"mask": Image.fromarray(mask), "label": "cat"} for mask in masks],
}


@pytest.fixture(scope="module")
def pipe():
    return MaftPlusSegmentationPipeline(
        model=tiny_model(), processor=tiny_processor(), task="image-segmentation", device="cpu"
    )


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_read_alike_whatever_holds_them(form):
    masks = make_masks()
    read = read_masks(FORMS[form](masks), SIZE)
    assert read.dtype == bool
    np.testing.assert_array_equal(read, masks)


def test_a_label_map_holds_a_mask_for_every_value_but_0():
    labels = np.zeros(SIZE, dtype=np.int32)
    labels[:10], labels[40:] = 300, 7
    coded = np.stack([labels & 255, labels >> 8, labels * 0], axis=-1).astype(np.uint8)
    for form in (labels, torch.from_numpy(labels), Image.fromarray(labels), Image.fromarray(coded)):
        np.testing.assert_array_equal(read_masks(form, SIZE), [labels == 7, labels == 300])
    assert read_masks(np.zeros(SIZE, dtype=np.uint8), SIZE).shape == (0, *SIZE)
    assert read_masks([], SIZE).shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((2, 70, 50), dtype=bool), r"`masks\[0\]` is 70 x 50 pixels \(height x width\), the picture 50 x 70"),
        (np.zeros((70, 50), dtype=np.uint8), "a label map, is 70 x 50"),
        ([run_lengths(np.zeros((9, 9), dtype=bool))], r"`masks\[0\]` is 9 x 9"),
        (np.zeros((2, *SIZE)), "must be bool or integers, got float64"),
        (np.zeros((1, 2, *SIZE), dtype=bool), r"must be \(masks, height, width\)"),
        ([[[1.0, 2.0, 3.0, 4.0]]], "a polygon"),
        ([{"segmentation": [[1.0, 2.0]]}], "a polygon"),
        ([{"bbox": [0, 0, 1, 1]}], "'segmentation' or 'mask'"),
        ({"scores": []}, "'masks' or 'annotations'"),
        ([{"size": SIZE, "counts": [3]}], "cannot be read as COCO's run lengths"),
        ([{"size": SIZE, "counts": -1}], "cannot be read as COCO's run lengths"),
        ([{"counts": [3]}], "cannot be read as COCO's run lengths"),
        ("masks.json", "got str"),
        (5, "got int"),
    ],
)
def test_what_holds_no_masks_of_the_picture_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        read_masks(masks, SIZE)


def test_proposals_lie_where_the_masks_lie_on_the_padded_input():
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, :20], masks[1, :, 30:] = True, True
    pixel_mask = torch.zeros(1, 96, 128, dtype=torch.int64)
    pixel_mask[:, :80, :120] = 1
    logits = proposal_logits(masks, pixel_mask, (3, 4))
    assert logits.shape == (1, 2, 24, 32)
    expected = torch.zeros(2, 24, 32, dtype=torch.bool)
    expected[0, :10, :30], expected[1, :20, 15:30] = True, True
    torch.testing.assert_close(logits[0] > 0, expected)
    assert proposal_logits(masks[:0], pixel_mask, (3, 4)).shape == (1, 0, 24, 32)


def test_a_mask_smaller_than_a_cell_of_the_towers_grid_is_that_cell():
    masks = np.zeros((2, 64, 96), dtype=bool)
    masks[0, 40:44, 70:74] = True  # the second one stays empty
    logits = proposal_logits(masks, torch.ones(1, 64, 96, dtype=torch.int64), (2, 3))
    expected = torch.zeros(2, 16, 24, dtype=torch.bool)
    expected[0, 8:, 16:] = True
    torch.testing.assert_close(logits[0] > 0, expected)


def vit_model():
    text = tiny_config().clip_config.text_config
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    clip = MaftPlusCLIPConfig(text_config=text, vision_config=vision, projection_dim=16, first_masked_layer=1)
    torch.manual_seed(0)
    return MaftPlusForUniversalSegmentation(
        MaftPlusConfig(clip_config=clip, cdt_form="off", clip_image_size=48)
    ).eval()


@pytest.mark.parametrize("build", [tiny_model, vit_model])
def test_every_mask_gets_a_word_and_a_score_in_the_masks_order(build):
    pipe = MaftPlusSegmentationPipeline(
        model=build(), processor=tiny_processor(), task="image-segmentation", device="cpu"
    )
    masks = make_masks()
    results = pipe(picture(), candidate_labels=LABELS, masks=masks)
    assert [one["mask_index"] for one in results] == [0, 1, 2]
    for one, mask in zip(results, masks):
        assert one["label"] == LABELS[one["label_id"]].split(",")[0]
        assert 1 / 3 <= one["score"] <= 1
        assert one["second_score"] <= one["score"]
        np.testing.assert_array_equal(np.asarray(one["mask"]) > 0, mask)
    backwards = pipe(picture(), candidate_labels=LABELS, masks=masks[::-1].copy())
    np.testing.assert_allclose([one["score"] for one in backwards[::-1]], [one["score"] for one in results], atol=1e-5)


def test_a_masks_word_is_that_of_clips_embedding_under_it(pipe):
    masks, model = make_masks(), pipe.model
    results = pipe(picture(), candidate_labels=LABELS, masks=masks)
    inputs = pipe.processor(images=picture(), text=LABELS, return_tensors="pt")
    padded = np.zeros((3, *inputs["pixel_values"].shape[-2:]), dtype=bool)
    height, width = (int(inputs["pixel_mask"][0].any(axis).sum()) for axis in (1, 0))
    for one, mask in zip(padded, masks):
        one[:height, :width] = np.asarray(Image.fromarray(mask).resize((width, height)))
    with torch.inference_mode():
        outputs = model(**inputs, proposal_logits=torch.from_numpy(padded)[None].float() * 2 - 1)
    expected = outputs.class_queries_logits[0].softmax(-1)[:2].max(-1)  # the third is below a cell
    assert [one["label_id"] for one in results[:2]] == expected.indices.tolist()
    np.testing.assert_allclose([one["score"] for one in results[:2]], expected.values, atol=0.02)


def test_several_pictures_bring_their_own_masks(pipe):
    masks = make_masks()
    options = {"candidate_labels": LABELS}
    batched = pipe([picture(), picture(1)], masks=[masks, masks[:1]], batch_size=2, **options)
    assert [len(result) for result in batched] == [3, 1]
    alone = pipe(picture(1), masks=masks[:1], **options)
    np.testing.assert_allclose(batched[1][0]["score"], alone[0]["score"], atol=1e-5)
    with pytest.raises(ValueError, match="masks of each of the 2 pictures"):
        pipe([picture(), picture(1)], masks=masks, **options)


def test_empty_masks_and_no_masks_give_nothing(pipe):
    masks = make_masks()
    masks[1] = False
    assert [one["mask_index"] for one in pipe(picture(), candidate_labels=LABELS, masks=masks)] == [0, 2]
    assert pipe(picture(), candidate_labels=LABELS, masks=masks[:0]) == []


def test_thresholds_and_distractors_drop_masks_and_keep_the_others_places(pipe):
    options = {"candidate_labels": LABELS[:1], "masks": make_masks()}
    everything = pipe(picture(), **options)
    assert [(one["score"], one["second_label"], one["second_score"]) for one in everything] == [(1.0, None, None)] * 3
    with_distractors = pipe(picture(), distractor_labels=LABELS[1:], **options)
    full = pipe(picture(), **{**options, "candidate_labels": LABELS})
    assert [one["mask_index"] for one in with_distractors] == [
        n for n, one in enumerate(full) if one["label"] == "cat"
    ]
    middle = sorted(one["score"] for one in full)[1]
    kept = pipe(picture(), threshold=middle, **{**options, "candidate_labels": LABELS})
    assert [one["mask_index"] for one in kept] == [n for n, one in enumerate(full) if one["score"] >= middle]


@pytest.mark.parametrize("name", ["subtask", "mask_threshold", "overlap_mask_area_threshold", "tile_size"])
def test_options_that_decide_about_masks_are_refused_beside_masks(pipe, name):
    value = {"subtask": "instance", "tile_size": 64}.get(name, 0.5)
    with pytest.raises(ValueError, match=f"`{name}` has no effect on `masks`"):
        pipe(picture(), candidate_labels=LABELS, masks=make_masks(), **{name: value})


def test_an_encoded_picture_takes_no_masks(pipe):
    with pytest.raises(ValueError, match="`masks` need the picture itself"):
        pipe(pipe.encode(picture()), candidate_labels=LABELS, masks=make_masks())
