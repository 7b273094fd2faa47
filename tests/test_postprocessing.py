"""The three post-processings against plain computations that hold everything, and their rules one by one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import ImageSegmentationPipeline
from transformers.utils import ModelOutput

from maftplus import postprocessing_maftplus, predictions_maftplus
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil

PROCESSOR = MaftPlusImageProcessorPil()


def outputs_of(class_logits, mask_logits, **fields) -> SimpleNamespace:
    return SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits, **fields)


def random_outputs(num_classes: int, queries: int = 12, grid=(17, 22), batch: int = 1, sharpness: float = 4.0, seed=0):
    """Smooth masks at a grid whose last quarter is padding, as the model gives them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = sharpness * torch.randn(batch, queries, 5, 6, generator=generator)
    padded = torch.tensor([4 * edge for edge in grid])
    return outputs_of(
        3 * torch.randn(batch, queries, num_classes + 1, generator=generator),
        F.interpolate(coarse, size=grid, mode="bicubic"),
        unpadded_sizes=(padded * 3 // 4 - 1).expand(batch, 2),
        padded_sizes=padded.expand(batch, 2),
    )


def held_class_maps(outputs, target, semantic_resize: str = "class_maps") -> torch.Tensor:
    """All class maps (K, *target) with torch's own resizing, as the released code does it."""
    (height, width), padded = outputs.unpadded_sizes[0].tolist(), outputs.padded_sizes[0].tolist()
    resize = {"mode": "bilinear", "align_corners": False}
    masks = F.interpolate(outputs.masks_queries_logits, size=padded, **resize)[..., :height, :width]
    weights = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    if semantic_resize == "mask_logits":
        masks = F.interpolate(masks, size=target, **resize)
    maps = torch.einsum("qk,qhw->khw", weights, masks[0].sigmoid())
    return F.interpolate(maps[None], size=target, **resize)[0]


def assert_same_labels(ours: torch.Tensor, maps: torch.Tensor) -> None:
    """Equal wherever the two best classes are not the same within rounding."""
    best = maps.topk(2, dim=0).values
    undecided = best[0] - best[1] < 1e-5
    assert undecided.float().mean() < 0.01
    assert_close(ours[~undecided], maps.argmax(0)[~undecided])


def certain(num_classes: int, labels: list[int], scores: list[float] | None = None) -> torch.Tensor:
    """Class logits (1, Q, K+1) of queries that give `labels` with `scores` and the rest to void."""
    scores = scores or [0.9] * len(labels)
    probabilities = torch.full((len(labels), num_classes + 1), 1e-9)
    for row, label, score in zip(probabilities, labels, scores):
        row[-1], row[label] = 1 - score, score
    return probabilities.log()[None]


def box(height: int, width: int, top: int, left: int, bottom: int, right: int, inside=20.0) -> torch.Tensor:
    mask = torch.full((height, width), -20.0)
    mask[top:bottom, left:right] = inside
    return mask


def boxes(*edges, size=(8, 8), **fields) -> SimpleNamespace:
    """Masks that need no resizing: the grid is the padded input and the target."""
    masks = torch.stack([box(*size, *edge) for edge in edges])[None]
    sizes = torch.tensor([size])
    return outputs_of(fields.pop("class_logits"), masks, unpadded_sizes=sizes, padded_sizes=sizes, **fields)


# --- Semantic ---


@pytest.mark.parametrize("semantic_resize", ["class_maps", "mask_logits"])
@pytest.mark.parametrize("target", [(50, 65), (131, 203), (20, 31), (51, 300)])
@pytest.mark.parametrize(("num_classes", "sharpness"), [(5, 4.0), (70, 0.2), (70, 30.0)])
def test_tiles_give_the_same_classes_as_holding_all_class_maps(semantic_resize, target, num_classes, sharpness):
    outputs = random_outputs(num_classes, sharpness=sharpness)
    processor = MaftPlusImageProcessorPil(semantic_resize=semantic_resize)
    maps = held_class_maps(outputs, target, semantic_resize)
    assert_same_labels(processor.post_process_semantic_segmentation(outputs, [target])[0], maps)
    with_scores = processor.post_process_semantic_segmentation(outputs, [target], return_segmentation_scores=True)[0]
    assert_close(with_scores.segmentation_scores, maps, atol=2e-5, rtol=1e-4)
    assert_same_labels(with_scores.segmentation, maps)


@pytest.mark.parametrize("edge", [5, 16, 1000])
def test_the_size_of_tiles_and_pieces_does_not_matter(edge, monkeypatch):
    outputs, target = random_outputs(60), (90, 100)
    expected = PROCESSOR.post_process_semantic_segmentation(outputs, [target])[0]
    panoptic = PROCESSOR.post_process_panoptic_segmentation(outputs, 0.0, target_sizes=[target])[0]
    monkeypatch.setattr(predictions_maftplus, "TILE_EDGE", edge)
    monkeypatch.setattr(postprocessing_maftplus, "TILE_NUMBERS", 64 * edge)
    assert_same_labels(
        PROCESSOR.post_process_semantic_segmentation(outputs, [target])[0], held_class_maps(outputs, target)
    )
    assert (PROCESSOR.post_process_semantic_segmentation(outputs, [target])[0] != expected).float().mean() < 1e-3
    again = PROCESSOR.post_process_panoptic_segmentation(outputs, 0.0, target_sizes=[target])[0]
    assert again["segments_info"] == panoptic["segments_info"]


def test_a_class_that_is_best_nowhere_at_the_input_can_win_between_its_pixels():
    probabilities = torch.tensor([[0.9, 0.0, 0.55], [0.0, 0.9, 0.55]])  # rows: the left and the right mask
    class_logits = torch.cat([probabilities, torch.full((2, 1), 0.1)], 1).add(1e-9).log()[None]
    masks = torch.tensor([[[[30.0, -30.0]], [[-30.0, 30.0]]]])
    sizes = torch.tensor([[1, 2]])
    outputs = outputs_of(class_logits, masks, unpadded_sizes=sizes, padded_sizes=sizes)
    assert PROCESSOR.post_process_semantic_segmentation(outputs)[0].tolist() == [[0, 1]]
    between = PROCESSOR.post_process_semantic_segmentation(outputs, [(1, 40)])[0]
    assert set(between.flatten().tolist()) == {0, 1, 2}
    assert_same_labels(between, held_class_maps(outputs, (1, 40)))


def test_class_maps_are_averaged_with_those_of_the_mirror_image():
    left_half = torch.tensor([[[[50.0, -50.0]]]])  # of the picture, and of its mirror image
    sizes = {"unpadded_sizes": torch.tensor([[1, 2]]), "padded_sizes": torch.tensor([[1, 2]])}
    straight = ModelOutput(outputs_of(torch.tensor([[[0.6, 0.2, 0.2]]]).log(), left_half, **sizes).__dict__)
    mirrored = ModelOutput(outputs_of(torch.tensor([[[0.1, 0.5, 0.4]]]).log(), left_half, **sizes).__dict__)
    joined = ModelOutput(postprocessing_maftplus.join_mirrored(straight, mirrored))
    assert_close(joined.class_queries_logits.softmax(-1)[0], torch.tensor([[0.3, 0.1, 0.6], [0.05, 0.25, 0.7]]))
    found = PROCESSOR.post_process_semantic_segmentation(joined, return_segmentation_scores=True)[0]
    assert_close(found.segmentation_scores, torch.tensor([[[0.3, 0.05]], [[0.1, 0.25]]]))
    assert found.segmentation.tolist() == [[0, 1]]


def test_without_target_sizes_results_have_the_unpadded_size():
    outputs = random_outputs(4, batch=2)
    size = tuple(outputs.unpadded_sizes[0].tolist())
    for result in PROCESSOR.post_process_semantic_segmentation(outputs):
        assert result.shape == size
        assert result.dtype == torch.int64


def test_without_sizes_the_masks_are_a_quarter_of_the_input():
    outputs = random_outputs(4)
    bare = outputs_of(outputs.class_queries_logits, outputs.masks_queries_logits)
    assert PROCESSOR.post_process_semantic_segmentation(bare)[0].shape == (68, 88)


def test_every_picture_of_a_batch_has_its_own_sizes():
    outputs = random_outputs(4, batch=2)
    outputs.unpadded_sizes = torch.tensor([[40, 50], [68, 30]])
    results = PROCESSOR.post_process_semantic_segmentation(outputs, torch.tensor([[30, 40], [70, 35]]))
    for index, target in enumerate([(30, 40), (70, 35)]):
        one = SimpleNamespace(**{name: value[index : index + 1] for name, value in vars(outputs).items()})
        assert_same_labels(results[index], held_class_maps(one, target))


def test_bfloat16_outputs_are_accepted():
    outputs = random_outputs(4)
    outputs.class_queries_logits = outputs.class_queries_logits.bfloat16()
    outputs.masks_queries_logits = outputs.masks_queries_logits.bfloat16()
    assert PROCESSOR.post_process_semantic_segmentation(outputs)[0].max() < 4
    assert PROCESSOR.post_process_panoptic_segmentation(outputs)[0]["segmentation"].dtype == torch.int32


def test_autocast_and_gradients_do_not_reach_the_results():
    outputs, target = random_outputs(60), (90, 100)
    outputs.masks_queries_logits.requires_grad_()
    expected = PROCESSOR.post_process_semantic_segmentation(outputs, [target], return_segmentation_scores=True)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = PROCESSOR.post_process_semantic_segmentation(outputs, [target], return_segmentation_scores=True)[0]
    assert_close(ours.segmentation_scores, expected.segmentation_scores)
    assert not ours.segmentation_scores.requires_grad


def test_infinite_mask_logits_are_full_and_empty_masks():
    outputs = boxes((0, 0, 8, 4), (0, 4, 8, 8), class_logits=certain(3, [2, 1]))
    outputs.masks_queries_logits = outputs.masks_queries_logits * float("inf")
    result = PROCESSOR.post_process_semantic_segmentation(outputs, [(16, 16)])[0]
    assert_close(result, torch.tensor([2, 1]).repeat_interleave(8).expand(16, 16))


def test_ten_thousand_classes_never_make_a_large_tensor(monkeypatch):
    outputs = random_outputs(10_000, queries=5, sharpness=0.2)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                largest = max(largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return result

    with Watch():
        PROCESSOR.post_process_semantic_segmentation(outputs, [(60, 80)])
    assert largest <= 2 * postprocessing_maftplus.TILE_NUMBERS < 10_000 * 60 * 80 / 10


# --- Panoptic ---


def test_classes_whose_scores_hardly_differ_are_told_apart_before_any_pixel_is():
    class_logits = 0.1 * torch.randn(1, 2, 41, generator=torch.Generator().manual_seed(0))
    outputs = boxes((0, 0, 24, 12), (0, 12, 24, 24), size=(24, 24), class_logits=class_logits)
    (item,) = predictions_maftplus.read_predictions(outputs, None)
    candidates = postprocessing_maftplus._candidates(item, item.probabilities[:, :-1].T.contiguous())
    assert (candidates[:, :, 0].sum(0) == 1).all()
    labels = postprocessing_maftplus.semantic_map(item, "class_maps")
    assert_same_labels(labels, held_class_maps(outputs, (24, 24)))


def test_each_pixel_goes_to_the_query_with_the_largest_score_times_mask():
    outputs = boxes((0, 0, 8, 8), (2, 2, 6, 6), class_logits=certain(3, [0, 1], [0.6, 0.9]))
    result = PROCESSOR.post_process_panoptic_segmentation(outputs)[0]
    expected = torch.ones(8, 8, dtype=torch.int32)
    expected[2:6, 2:6] = 2
    assert_close(result["segmentation"], expected)
    assert [(info["id"], info["label_id"], info["was_fused"]) for info in result["segments_info"]] == [
        (1, 0, False),
        (2, 1, False),
    ]
    assert result["segments_info"][1]["score"] == pytest.approx(0.9, abs=1e-5)


def test_a_query_below_the_threshold_or_of_void_gives_no_segment():
    outputs = boxes((0, 0, 4, 8), (4, 0, 8, 8), class_logits=certain(3, [0, 1], [0.45, 0.9]))
    result = PROCESSOR.post_process_panoptic_segmentation(outputs)[0]  # the first query's best class is void
    assert [info["label_id"] for info in result["segments_info"]] == [1]
    assert not PROCESSOR.post_process_panoptic_segmentation(outputs, threshold=0.95)[0]["segments_info"]


def test_a_segment_that_lost_too_much_of_its_mask_is_dropped_and_its_pixels_are_void():
    outputs = boxes((0, 0, 8, 8), (0, 0, 8, 4), class_logits=certain(3, [0, 1], [0.6, 0.9]))
    kept = PROCESSOR.post_process_panoptic_segmentation(outputs, overlap_mask_area_threshold=0.5)[0]
    assert len(kept["segments_info"]) == 2  # half of its mask is left, which is not less than the threshold
    dropped = PROCESSOR.post_process_panoptic_segmentation(outputs, overlap_mask_area_threshold=0.51)[0]
    assert [info["label_id"] for info in dropped["segments_info"]] == [1]
    assert dropped["segmentation"].unique().tolist() == [0, 1]


def test_the_area_test_counts_mask_pixels_without_scores():
    outputs = boxes((0, 0, 8, 8), class_logits=certain(3, [0], [0.55]))
    assert len(PROCESSOR.post_process_panoptic_segmentation(outputs)[0]["segments_info"]) == 1


def test_stuff_of_one_class_is_one_segment_and_ids_stay_unique():
    outputs = boxes(
        (0, 0, 2, 8),
        (2, 0, 4, 8),
        (4, 0, 6, 8),
        (6, 0, 8, 8),
        class_logits=certain(3, [2, 0, 2, 0], [0.8, 0.7, 0.9, 0.6]),
    )
    result = PROCESSOR.post_process_panoptic_segmentation(outputs, label_ids_to_fuse={2})[0]
    assert result["segmentation"][:, 0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    infos = result["segments_info"]
    assert [(info["id"], info["label_id"], info["was_fused"]) for info in infos] == [
        (1, 2, True),
        (2, 0, False),
        (3, 0, False),
    ]
    assert infos[0]["score"] == pytest.approx(0.9, abs=1e-5)


def test_what_is_stuff_comes_from_the_outputs_unless_given():
    stuff = torch.tensor([[False, False, True]])
    outputs = boxes((0, 0, 4, 8), (4, 0, 8, 8), class_logits=certain(3, [2, 2]), stuff_classes=stuff)
    assert len(PROCESSOR.post_process_panoptic_segmentation(outputs)[0]["segments_info"]) == 1
    assert len(PROCESSOR.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set())[0]["segments_info"]) == 2
    assert not PROCESSOR.post_process_instance_segmentation(outputs, threshold=0.1)[0]["segments_info"]


def test_without_any_segment_the_map_is_void():
    outputs = boxes((0, 0, 8, 8), class_logits=certain(3, [0], [0.1]))
    result = PROCESSOR.post_process_panoptic_segmentation(outputs, target_sizes=[(5, 6)])[0]
    assert result["segments_info"] == []
    assert_close(result["segmentation"], torch.zeros(5, 6, dtype=torch.int32))


def test_logits_are_resized_before_they_are_compared():
    outputs, target = random_outputs(6, queries=9), (97, 61)
    result = PROCESSOR.post_process_panoptic_segmentation(outputs, 0.0, 0.5, 0.0, target_sizes=[target])[0]
    height, width = outputs.unpadded_sizes[0].tolist()
    masks = F.interpolate(outputs.masks_queries_logits, scale_factor=4, mode="bilinear")[..., :height, :width]
    masks = F.interpolate(masks, size=target, mode="bilinear")[0]
    scores, labels = outputs.class_queries_logits[0].softmax(-1).max(-1)
    masks, scores = masks[labels < 6], scores[labels < 6]
    best = (scores[:, None, None] * masks.sigmoid()).topk(2, dim=0)
    sure = (best.values[0] - best.values[1] > 1e-5) & (masks.abs() > 1e-4).all(0)
    shown = masks.gather(0, best.indices[:1])[0] >= 0
    assert_close((result["segmentation"] > 0)[sure], shown[sure])
    first = {info["id"]: result["segmentation"] == info["id"] for info in result["segments_info"]}
    assert all(best.indices[0][mask & sure].unique().numel() == 1 for mask in first.values())


# --- Instances ---


def test_instances_may_overlap_and_come_best_first():
    outputs = boxes((0, 0, 8, 4), (0, 0, 8, 8), class_logits=certain(3, [0, 1], [0.6, 0.8]))
    result = PROCESSOR.post_process_instance_segmentation(outputs, threshold=0.5, return_binary_maps=True)[0]
    assert [(info["id"], info["label_id"]) for info in result["segments_info"]] == [(1, 1), (2, 0)]
    assert result["segmentation"].sum((1, 2)).tolist() == [64, 32]
    assert result["segmentation"].dtype == torch.bool


def test_better_instances_cover_worse_ones_in_the_id_map():
    outputs = boxes((0, 0, 8, 4), (0, 0, 8, 8), class_logits=certain(3, [0, 1], [0.8, 0.6]))
    result = PROCESSOR.post_process_instance_segmentation(outputs, threshold=0.5)[0]
    assert_close(result["segmentation"], torch.tensor([1, 2], dtype=torch.int32).repeat_interleave(4).expand(8, 8))
    covered = PROCESSOR.post_process_instance_segmentation(outputs, 0.5, overlap_mask_area_threshold=0.6)[0]
    assert [info["label_id"] for info in covered["segments_info"]] == [0]


def test_the_score_is_the_class_probability_times_the_mean_foreground_probability():
    outputs = boxes((0, 0, 8, 8), class_logits=certain(3, [0], [0.8]))
    outputs.masks_queries_logits = torch.full((1, 1, 8, 8), 1.0)
    info = PROCESSOR.post_process_instance_segmentation(outputs, threshold=0.1)[0]["segments_info"][0]
    assert info["score"] == pytest.approx(0.8 * torch.tensor(1.0).sigmoid().item(), abs=1e-5)


def test_top_k_is_taken_before_stuff_is_left_out():
    outputs = boxes((0, 0, 4, 8), (4, 0, 8, 8), class_logits=certain(3, [2, 0], [0.9, 0.8]))
    one = PROCESSOR.post_process_instance_segmentation(outputs, 0.1, label_ids_to_fuse={2}, top_k=1)[0]
    assert one["segments_info"] == []
    assert one["segmentation"].sum() == 0
    two = PROCESSOR.post_process_instance_segmentation(outputs, 0.1, label_ids_to_fuse={2}, top_k=2)[0]
    assert [info["label_id"] for info in two["segments_info"]] == [0]


def test_empty_masks_are_dropped():
    outputs = boxes((0, 0, 0, 0), (0, 0, 8, 8), class_logits=certain(3, [0, 1]))
    result = PROCESSOR.post_process_instance_segmentation(outputs, return_binary_maps=True, top_k=2)[0]
    assert [info["label_id"] for info in result["segments_info"]] == [1]


def test_run_lengths_are_coco_and_fit_into_json():
    coco_mask = pytest.importorskip("pycocotools.mask")
    outputs = boxes((0, 0, 8, 4), (2, 0, 5, 8), class_logits=certain(3, [0, 1], [0.8, 0.6]))
    codes = PROCESSOR.post_process_instance_segmentation(outputs, 0.5, return_coco_annotation=True)[0]["segmentation"]
    maps = PROCESSOR.post_process_instance_segmentation(outputs, 0.5, return_binary_maps=True)[0]["segmentation"]
    decoded = coco_mask.decode(json.loads(json.dumps(codes)))
    assert np.array_equal(decoded.transpose(2, 0, 1).astype(bool), maps.numpy())


@pytest.mark.parametrize("form", [{}, {"return_binary_maps": True}, {"return_coco_annotation": True}])
def test_no_instance_at_all_gives_an_empty_result(form):
    outputs = boxes((0, 0, 8, 8), class_logits=certain(3, [0], [0.1]))
    result = PROCESSOR.post_process_instance_segmentation(outputs, threshold=0.9, target_sizes=[(4, 5)], **form)[0]
    assert result["segments_info"] == []
    if not form.get("return_coco_annotation"):
        assert result["segmentation"].shape[-2:] == (4, 5)
        assert not result["segmentation"].any()


# --- The stock pipeline, and clear errors ---


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic", None])
def test_the_stock_pipeline_reads_our_results(subtask):
    outputs = random_outputs(3)
    outputs = type("Outputs", (dict,), vars(outputs))(target_size=[(40, 50)])
    model = SimpleNamespace(config=SimpleNamespace(id2label={0: "cat", 1: "dog", 2: "grass"}))
    pipeline = SimpleNamespace(image_processor=PROCESSOR, model=model)
    annotations = ImageSegmentationPipeline.postprocess(pipeline, outputs, subtask=subtask, threshold=0.2)
    assert annotations
    assert {annotation["label"] for annotation in annotations} <= {"cat", "dog", "grass"}
    assert all(annotation["mask"].size == (50, 40) for annotation in annotations)


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
@pytest.mark.parametrize("sizes", [[], [(4, 4), (5, 5)], [(0, 4)], [(4, 4, 3)]])
def test_target_sizes_that_do_not_fit_are_refused(task, sizes):
    with pytest.raises(ValueError, match="`target_sizes`"):
        getattr(PROCESSOR, f"post_process_{task}_segmentation")(random_outputs(3), target_sizes=sizes)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
@pytest.mark.parametrize("ids", [{3}, {-1}])
def test_stuff_outside_of_the_classes_is_refused(task, ids):
    with pytest.raises(ValueError, match="`label_ids_to_fuse`"):
        getattr(PROCESSOR, f"post_process_{task}_segmentation")(random_outputs(3), label_ids_to_fuse=ids)


@pytest.mark.parametrize("name", ["class_queries_logits", "masks_queries_logits"])
def test_logits_that_are_not_numbers_are_refused(name):
    outputs = random_outputs(3)
    getattr(outputs, name)[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=name):
        PROCESSOR.post_process_semantic_segmentation(outputs)


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_class_logits_are_refused(task, value):
    outputs = random_outputs(3)
    outputs.class_queries_logits[0, 2, 1] = value
    with pytest.raises(ValueError, match="class_queries_logits` is infinite"):
        getattr(PROCESSOR, f"post_process_{task}_segmentation")(outputs)


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_without_classes_there_is_nothing_to_find(task):
    outputs = outputs_of(torch.zeros(1, 3, 1), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="at least one class"):
        getattr(PROCESSOR, f"post_process_{task}_segmentation")(outputs)


def test_without_queries_nothing_is_found():
    outputs = outputs_of(torch.zeros(1, 0, 4), torch.zeros(1, 0, 4, 4))
    for task in ("panoptic", "instance"):
        (result,) = getattr(PROCESSOR, f"post_process_{task}_segmentation")(outputs, target_sizes=[(5, 6)])
        assert result["segments_info"] == []
        assert_close(result["segmentation"], torch.zeros(5, 6, dtype=torch.int32))
    with pytest.raises(ValueError, match="at least one query"):
        PROCESSOR.post_process_semantic_segmentation(outputs)


def test_instances_have_the_pipelines_least_score_unless_all_are_asked_for():
    outputs = boxes((0, 0, 4, 8), (4, 0, 8, 8), class_logits=certain(3, [0, 1], [0.9, 0.1]))
    shown, every = (
        PROCESSOR.post_process_instance_segmentation(outputs, top_k=2, **options)[0]["segments_info"]
        for options in ({}, {"threshold": 0.0})
    )
    assert [info["label_id"] for info in shown] == [0]
    assert [info["label_id"] for info in every] == [0, 1]


def test_logits_of_different_queries_are_refused():
    with pytest.raises(ValueError, match="`masks_queries_logits`"):
        PROCESSOR.post_process_semantic_segmentation(outputs_of(torch.zeros(1, 3, 4), torch.zeros(1, 2, 4, 4)))


@pytest.mark.parametrize(
    "arguments",
    [{"return_coco_annotation": True, "return_binary_maps": True}, {"top_k": 0}, {"mask_threshold": 1.5}],
)
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="|".join(arguments)):
        PROCESSOR.post_process_instance_segmentation(random_outputs(3), **arguments)
