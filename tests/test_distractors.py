"""What distractors and `min_margin` do to results, by hand: two queries, classes a, b, c, and void."""

import pytest
import torch
from transformers.utils import ModelOutput

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.postprocessing_maftplus import VOID, clearness, score_maps
from maftplus.predictions_maftplus import read_predictions

PROCESSOR = MaftPlusImageProcessorPil()
LEFT_IS_A = [0.6, 0.3, 0.0, 0.1]
RIGHT_IS_C = [0.1, 0.1, 0.7, 0.1]


def outputs_of(*probabilities, size=8):
    """Query i has these probabilities (void last) and the i-th upright strip of an image of size x size."""
    masks = torch.full((1, len(probabilities), size, size), -20.0)
    width = size // len(probabilities)
    for index in range(len(probabilities)):
        masks[0, index, :, index * width : (index + 1) * width] = 20.0
    logits = torch.tensor([probabilities]).clamp(min=1e-9).log()
    sizes = torch.tensor([[size, size]])
    return ModelOutput(
        class_queries_logits=logits, masks_queries_logits=masks, padded_sizes=sizes, unpadded_sizes=sizes
    )


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.6, 0.3, 0.0, 0.1], (0.6 * 0.3**0.5) ** 0.8),
        ([0.4, 0.4, 0.1, 0.1], 0.0),
        ([0.0, 0.0, 0.0, 1.0], 0.0),
        ([0.5, 0.5], 0.5**1.2),  # a single class: s2 = 0
    ],
)
def test_clearness_is_s1_times_the_root_of_its_lead(probabilities, expected):
    torch.testing.assert_close(clearness(torch.tensor([probabilities])), torch.tensor([expected]))


def test_a_segment_below_min_margin_is_dropped_and_one_at_it_is_kept():
    outputs = outputs_of(LEFT_IS_A, RIGHT_IS_C)
    margin = float(clearness(torch.tensor([LEFT_IS_A]))[0])
    for value, expected in ((margin - 1e-3, [0, 2]), (margin + 1e-3, [2])):
        result = PROCESSOR.post_process_panoptic_segmentation(outputs, min_margin=value)[0]
        assert [info["label_id"] for info in result["segments_info"]] == expected
        objects = PROCESSOR.post_process_instance_segmentation(outputs, min_margin=value, threshold=0.0)[0]
        assert sorted(info["label_id"] for info in objects["segments_info"]) == expected


def test_a_distractor_narrows_the_lead_of_a_label():
    outputs = outputs_of([0.6, 0.3, 0.0, 0.1])
    options = {"distractor_ids": [1], "min_margin": 0.6}
    assert not PROCESSOR.post_process_panoptic_segmentation(outputs, **options)[0]["segments_info"]
    alone = outputs_of([0.6, 0.4])
    assert PROCESSOR.post_process_panoptic_segmentation(alone, min_margin=0.5)[0]["segments_info"]


def test_what_a_distractor_wins_is_void():
    outputs = outputs_of(LEFT_IS_A, RIGHT_IS_C)
    panoptic = PROCESSOR.post_process_panoptic_segmentation(outputs, distractor_ids=[2])[0]
    assert [info["label_id"] for info in panoptic["segments_info"]] == [0]
    assert panoptic["segmentation"].unique().tolist() == [0, 1]
    assert (panoptic["segmentation"][:, 5:] == 0).all()
    semantic = PROCESSOR.post_process_semantic_segmentation(outputs, distractor_ids=[2])[0]
    assert semantic[0, 0] == 0
    assert semantic[0, -1] == VOID == -1
    objects = PROCESSOR.post_process_instance_segmentation(
        outputs, distractor_ids=[2], threshold=0.0, return_binary_maps=True
    )[0]
    assert {info["label_id"] for info in objects["segments_info"]} == {0, 1}  # of the left query alone


def test_a_distractor_keeps_its_pixels_from_a_label_that_reaches_into_them():
    outputs = outputs_of(LEFT_IS_A, RIGHT_IS_C)
    outputs.masks_queries_logits[0, 0] = 20.0  # "a" covers everything, "c" wins the right half
    options = {"overlap_mask_area_threshold": 0.0}
    without = PROCESSOR.post_process_panoptic_segmentation(outputs, **options)[0]
    hidden = PROCESSOR.post_process_panoptic_segmentation(outputs, distractor_ids=[2], **options)[0]
    is_c = without["segmentation"] == without["segments_info"][1]["id"]
    assert is_c.any()
    assert (hidden["segmentation"][is_c] == 0).all()


def test_the_runner_up_is_never_a_distractor():
    outputs = outputs_of([0.5, 0.3, 0.1, 0.1])
    for distractors, second, score in (((), 1, 0.3), ((1,), 2, 0.1), ((1, 2), None, None)):
        info = PROCESSOR.post_process_panoptic_segmentation(outputs, distractor_ids=distractors)[0]["segments_info"][0]
        assert (info["second_label_id"], info["second_score"]) == (second, pytest.approx(score, abs=1e-5))


def test_fused_stuff_tells_the_score_and_the_runner_up_of_its_best_query():
    outputs = outputs_of([0.5, 0.3, 0.1, 0.1], [0.7, 0.05, 0.15, 0.1])
    (info,) = PROCESSOR.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=[0])[0]["segments_info"]
    assert (info["score"], info["second_label_id"]) == (pytest.approx(0.7, abs=1e-5), 2)


@pytest.mark.parametrize(("distractors", "message"), [([3], "between 0 and 2"), ([0, 1, 2], "every class")])
def test_distractors_that_are_no_classes_or_all_of_them_are_refused(distractors, message):
    with pytest.raises(ValueError, match=f"`distractor_ids`.*{message}"):
        PROCESSOR.post_process_semantic_segmentation(outputs_of(LEFT_IS_A), distractor_ids=distractors)


def test_score_maps_are_shares_where_scores_exceed_one_and_scores_where_they_do_not():
    outputs = outputs_of(LEFT_IS_A, RIGHT_IS_C)
    outputs.masks_queries_logits[0, :, :, 4:] = 20.0  # both cover the right half: 0.7, 0.4 and 0.7 of 1.8
    result = PROCESSOR.post_process_score_maps(outputs)[0]
    left, right = result["score_maps"][:, 0, 0], result["score_maps"][:, 0, -1]
    torch.testing.assert_close(left, torch.tensor([0.6, 0.3, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(right, torch.tensor([0.7, 0.4, 0.7]) / 1.8, atol=1e-4, rtol=0)
    torch.testing.assert_close(result["confidence"], result["score_maps"].amax(0))
    without_c = PROCESSOR.post_process_score_maps(outputs, distractor_ids=[2])[0]["score_maps"]
    torch.testing.assert_close(without_c, result["score_maps"][:2])


def test_score_maps_that_would_be_too_large_are_refused():
    (item,) = read_predictions(outputs_of(LEFT_IS_A), [(20_000, 20_000)])
    with pytest.raises(ValueError, match="3 labels at 20000 x 20000 pixels"):
        score_maps(item, "class_maps")
