"""Metrics by hand: figures on maps small enough to count on paper, the evaluate modules, and what bad input says."""

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts, panoptic_figures, semantic_figures

METRICS = Path(__file__).parents[2] / "train" / "metrics"


def load(name: str, tmp_path: Path, **kwargs):
    evaluate = pytest.importorskip("evaluate")
    return evaluate.load(str(METRICS / name), cache_dir=str(tmp_path / "cache"), **kwargs)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share_of_noise", [0.0, 0.1, 0.4, 1.0])
def test_flat_and_noisy_maps_are_counted_alike(share_of_noise, order):
    rng = np.random.default_rng(0)
    reference = np.repeat(rng.integers(0, 5, (8, 4)), 16, axis=1).astype(np.uint8)
    reference[0] = 255
    is_noise = rng.random(reference.shape) < share_of_noise
    right = np.where(reference == 255, 2, reference)
    prediction = np.where(is_noise, rng.integers(0, 5, reference.shape), right)
    expected = np.zeros((6, 6), dtype=np.int64)
    for row, column in zip(prediction.flat, reference.flat):
        expected[row, min(column, 5)] += 1
    found = np.zeros_like(expected, order=order)
    np.testing.assert_array_equal(confusion_matrix(prediction, reference, num_labels=5, out=found), expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share_of_noise", [0.0, 0.4, 1.0])
def test_a_map_that_is_refused_changes_no_count(share_of_noise):
    rng = np.random.default_rng(0)
    reference = np.repeat(rng.integers(0, 5, (8, 4)), 16, axis=1)
    prediction = np.where(rng.random(reference.shape) < share_of_noise, rng.integers(0, 5, reference.shape), reference)
    counts = np.zeros((6, 6), dtype=np.int64)
    for wrong, true in ((7, 0), (0, 7), (7, 7)):
        prediction[-1, -1], reference[-1, -1] = wrong, true
        with pytest.raises(ValueError, match="holds 7"):
            confusion_matrix(prediction, reference, num_labels=5, out=counts)
    assert not counts.any()


def test_rows_are_predictions_and_columns_are_truth_with_the_ignored_ones_last():
    matrix = confusion_matrix([[0, 1, 1]], [[0, 0, 255]], num_labels=2)
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_both_conventions_of_mean_iou_by_hand():
    # class 0: 2 of 3 pixels right, IoU 2/3; class 1 only predicted; class 2 nowhere
    figures = semantic_figures(confusion_matrix([[0, 0, 1]], [[0, 0, 0]], num_labels=3))
    assert figures["mean_iou"] == pytest.approx(1 / 3)
    assert figures["mean_iou_present"] == pytest.approx(2 / 3)
    assert figures["frequency_weighted_iou"] == pytest.approx(2 / 3)
    assert figures["overall_accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(figures["per_category_iou"][1:]).all()


def test_seen_unseen_and_harmonic_means_by_hand():
    figures = semantic_figures(confusion_matrix([[0, 0, 1, 0]], [[0, 0, 1, 1]], num_labels=2), seen=[0])
    assert figures["seen_mean_iou"] == pytest.approx(2 / 3)
    assert figures["unseen_mean_iou"] == pytest.approx(1 / 2)
    assert figures["harmonic_mean_iou"] == pytest.approx(4 / 7)


def test_a_harmonic_mean_of_two_zeros_is_zero():
    figures = semantic_figures(confusion_matrix([[1, 0]], [[0, 1]], num_labels=2), seen=[0])
    assert figures["harmonic_mean_iou"] == 0.0


def test_figures_of_nothing_are_nan_and_raise_no_warning(recwarn):
    figures = semantic_figures(np.zeros((4, 4), dtype=np.int64), seen=[0])
    assert np.isnan([figures["mean_iou"], figures["seen_mean_iou"], figures["overall_accuracy"]]).all()
    assert np.isnan(panoptic_figures(np.zeros((4, 4)))["pq"])
    assert not recwarn.list


def test_a_pixel_without_a_predicted_class_is_a_miss():
    figures = semantic_figures(confusion_matrix([[0, 255]], [[0, 0]], num_labels=2))
    assert figures["mean_iou"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_any_integer_type_counts_alike(dtype):
    labels = np.array([[0, 1], [1, 1]])
    matrix = confusion_matrix(labels.astype(dtype), labels, num_labels=2)
    assert matrix.tolist() == [[1, 0, 0], [0, 3, 0], [0, 0, 0]]


def test_tensors_and_sixteen_bit_ignore_values_count():
    prediction = torch.tensor([[300, 846]], dtype=torch.int32)
    matrix = confusion_matrix(prediction, np.array([[300, 65535]], dtype=np.uint16), 847, ignore_index=65535)
    assert matrix[300, 300] == 1
    assert matrix[846, 847] == 1
    assert matrix.sum() == 2


def test_a_negative_ignore_index_counts_and_other_negative_values_are_errors():
    assert confusion_matrix([[1]], [[-100]], num_labels=2, ignore_index=-100)[1, 2] == 1
    with pytest.raises(ValueError, match="holds -1, outside the 2 classes"):
        confusion_matrix([[-1]], [[0]], num_labels=2)


def test_an_ignored_background_class_may_still_be_predicted():
    assert confusion_matrix([[0, 0]], [[0, 1]], num_labels=2, ignore_index=0).tolist() == [
        [0, 1, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 1]], [[0], [1]], r"a.png: the prediction is 1 x 2 .* but the label map is 2 x 1.*target_sizes"),
        ([[0, 7]], [[0, 1]], "a.png: the prediction holds 7, outside the 3 classes"),
        ([[0, 1]], [[0, 1 << 30]], "a.png: the label map holds 1073741824"),
        ([[0.0, float("nan")]], [[0, 1]], "a.png: the prediction holds NaN"),
        ([[0.0, 1.0]], [[0, 1]], "a.png: the prediction holds values of type float64"),
        ([0, 1], [[0, 1]], r"a.png: the prediction must be a label map .* got shape \(2,\)"),
    ],
)
def test_bad_maps_are_errors_that_name_the_image(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(prediction, reference, num_labels=3, name="a.png")


def test_an_ignore_index_among_the_classes_is_an_error():
    with pytest.raises(ValueError, match="65535"):
        confusion_matrix([[0]], [[0]], num_labels=847, ignore_index=255)


def segments(*pairs, **extra):
    return [{"id": index, "label_id": label, **extra} for index, label in pairs]


def test_panoptic_counts_by_hand():
    truth = np.array([[1, 1, 1, 2, 2, 2]])
    prediction = np.array([[1, 1, 2, 2, 2, 2]])
    counts = panoptic_counts(prediction, segments((1, 0), (2, 1)), truth, segments((1, 0), (2, 1)), num_labels=2)
    np.testing.assert_allclose(counts, [[2 / 3, 1, 0, 0], [3 / 4, 1, 0, 0]])
    assert panoptic_figures(counts, stuff=[1])["pq_stuff"] == pytest.approx(3 / 4)


def test_an_overlap_of_exactly_one_half_does_not_match():
    counts = panoptic_counts([[1, 0]], segments((1, 0)), [[1, 1]], segments((1, 0)), num_labels=1)
    assert counts.tolist() == [[0, 0, 1, 1]]


def test_pixels_on_void_leave_the_union_and_forgive_a_prediction_that_lies_mostly_there():
    # the prediction covers the object and one void pixel: IoU 1 because that pixel leaves the union
    assert panoptic_counts([[1, 1]], segments((1, 0)), [[1, 0]], segments((1, 0)), 1).tolist() == [[1, 1, 0, 0]]
    assert panoptic_counts([[1, 1, 1]], segments((1, 0)), [[2, 0, 0]], segments((2, 1)), 2)[0].tolist() == [0, 0, 0, 0]


def test_crowds_neither_match_nor_count_as_missed_and_forgive_their_own_class():
    crowd = segments((5, 0), iscrowd=1)
    assert panoptic_counts([[1, 1]], segments((1, 0)), [[5, 5]], crowd, 2).tolist() == [[0] * 4, [0] * 4]
    assert panoptic_counts([[1, 1]], segments((1, 1)), [[5, 5]], crowd, 2).tolist() == [[0] * 4, [0, 0, 1, 0]]


def test_an_unlisted_id_of_the_truth_matches_nothing_and_is_not_void():
    assert panoptic_counts([[1, 1]], segments((1, 0)), [[9, 9]], [], 1).tolist() == [[0, 0, 1, 0]]


def test_ids_beyond_three_bytes_count():
    large = 1 << 40
    assert panoptic_counts([[large]], segments((large, 0)), [[large]], segments((large, 0)), 1).tolist() == [
        [1, 1, 0, 0]
    ]


def test_an_empty_prediction_and_an_empty_truth_are_defined():
    assert panoptic_counts([[0, 0]], [], [[1, 1]], segments((1, 0)), 1).tolist() == [[0, 0, 0, 1]]
    assert panoptic_counts([[1, 1]], segments((1, 0)), [[0, 0]], [], 1).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("prediction", "listed", "message"),
    [
        ([[1, 2]], [(1, 0)], "b.png: the prediction has the segment id 2, which is never listed"),
        ([[1, 1]], [(1, 0), (3, 0)], "b.png: the prediction lists the segment id 3, but no pixel has it"),
        ([[1, 1]], [(1, 0), (1, 1)], "b.png: .* need distinct positive ids"),
        ([[1, 1]], [(1, 8)], "b.png: the prediction lists the class 8, outside 0 to 1"),
        ([[1, 1, 1]], [(1, 0)], "b.png: the prediction is 1 x 3"),
    ],
)
def test_bad_segments_are_errors_that_name_the_image(prediction, listed, message):
    with pytest.raises(ValueError, match=message):
        panoptic_counts(prediction, segments(*listed), [[1, 1]], segments((1, 0)), 2, name="b.png")


def test_the_mean_iou_module_streams_maps_of_any_size(tmp_path):
    metric = load("mean_iou", tmp_path, num_labels=2, ignore_index=255, seen=[0])
    metric.add_batch(predictions=[np.array([[0, 1]])], references=[np.array([[0, 255]], dtype=np.uint8)])
    metric.add_batch(predictions=[np.zeros((3, 3), int)], references=[np.ones((3, 3), int)])
    figures = metric.compute()
    assert figures["mean_iou"] == pytest.approx(0.05)
    assert figures["num_images"] == 2
    assert metric.compute(predictions=[[[1]]], references=[[[1]]])["unseen_mean_iou"] == 1.0


def test_the_panoptic_module_reads_what_post_processing_gives(tmp_path):
    metric = load("panoptic_quality", tmp_path, num_labels=2, stuff_ids=[1])
    result = {"segmentation": torch.tensor([[1, 1, 2]]), "segments_info": segments((1, 0), (2, 1))}
    metric.add(prediction=result, reference=result)
    figures = metric.compute()
    assert (figures["pq"], figures["pq_things"], figures["pq_stuff"]) == (1.0, 1.0, 1.0)


def test_a_module_adds_up_the_processes_of_a_distributed_run(tmp_path):
    shared = {"num_labels": 2, "num_process": 2, "experiment_id": "two", "seed": 0}
    first, second = (load("mean_iou", tmp_path, process_id=rank, **shared) for rank in (0, 1))
    first.add(prediction=np.array([[0]]), reference=np.array([[0]]))
    second.add(prediction=np.array([[0]]), reference=np.array([[1]]))
    with ThreadPoolExecutor(2) as pool:  # they wait for each other
        figures, nothing = pool.map(lambda metric: metric.compute(), (first, second))
    assert nothing is None
    assert figures["overall_accuracy"] == 0.5
    assert figures["num_images"] == 2


def test_a_listed_area_of_the_truth_counts_in_the_union_as_in_the_coco_api():
    covered = [{"id": 1, "label_id": 0, "area": 4}]  # 2 of its 4 pixels are covered by something else
    counts = panoptic_counts([[1, 1, 0]], segments((1, 0)), [[1, 1, 0]], covered, 1)
    assert counts.tolist() == [[0, 0, 1, 1]]


def test_the_benchmark_of_the_metrics_names_what_is_beyond_its_limits():
    source = Path(__file__).parents[2] / "benchmarks" / "metrics.py"
    benchmark = runpy.run_path(str(source), run_name="benchmark")
    good = {**benchmark["LEAST"], **benchmark["MOST"]}
    assert benchmark["beyond_limits"](good) == []
    assert benchmark["beyond_limits"]({**good, "memory_growth_mb": 21.0}) == [
        "memory_growth_mb is 21, wanted at most 20.0"
    ]
    assert benchmark["beyond_limits"]({**good, "counting_times_faster": 9.0})[0].endswith("wanted at least 10.0")
