"""VPQ, STQ and identity switches against cases computed by hand."""

import math

import numpy as np
import pytest

from maftplus.train.evaluation.counting import panoptic_counts
from maftplus.train.evaluation.video import WINDOWS, SegmentationAndTracking, vpq_counts, vpq_figures

CAR, SKY = 0, 1  # thing, stuff


def frame(row, **classes):
    """A frame of one row: `frame([1, 1, 2], id1=CAR, id2=SKY)`."""
    segments = [{"id": int(name[2:]), "label_id": label} for name, label in classes.items()]
    return np.array([row]), segments


def measure(prediction, reference):
    counting = SegmentationAndTracking(2, stuff=[SKY])
    counting.add_clip(prediction, reference)
    return counting.figures()


@pytest.fixture
def truth():
    """Two frames of four pixels: a car on the left half, sky on the right."""
    return [frame([1, 1, 2, 2], id1=CAR, id2=SKY)] * 2


def test_a_perfect_clip_scores_one_everywhere(truth):
    assert measure(truth, truth) == {"stq": 1.0, "aq": 1.0, "sq": 1.0, "switches": 0.0}
    figures = vpq_figures({window: vpq_counts(truth, truth, 2, window) for window in WINDOWS}, [SKY])
    assert set(figures.values()) == {1.0}


def test_vpq_of_one_frame_is_pq(truth):
    found = [frame([1, 2, 2, 2], id1=CAR, id2=SKY), frame([1, 1, 1, 0], id1=CAR)]
    expected = sum(panoptic_counts(*a, *b, 2) for a, b in zip(found, truth))
    np.testing.assert_array_equal(vpq_counts(found, truth, 2, window=1), expected)


def test_a_changed_identity_costs_vpq_in_every_window_that_holds_the_change(truth):
    found = [frame([1, 1, 2, 2], id1=CAR, id2=SKY), frame([3, 3, 2, 2], id3=CAR, id2=SKY)]
    # Over both frames each half of the car is a tube of IoU 2/4, which is not over one half: 2 FP, 1 FN, no TP.
    np.testing.assert_array_equal(vpq_counts(found, truth, 2, window=2), [[0, 0, 2, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(vpq_counts(found, truth, 2, window=1), [[2, 2, 0, 0], [2, 2, 0, 0]])


def test_a_tube_is_judged_by_its_union_over_frames():
    truth = [frame([1, 1, 1, 2], id1=CAR, id2=SKY), frame([1, 1, 1, 2], id1=CAR, id2=SKY)]
    found = [frame([1, 1, 1, 2], id1=CAR, id2=SKY), frame([1, 2, 2, 2], id1=CAR, id2=SKY)]
    # Car: 4 of 6 pixels; sky: 2 of 4, no match.
    np.testing.assert_allclose(vpq_counts(found, truth, 2, window=2), [[4 / 6, 1, 0, 0], [0, 0, 1, 1]])


def test_an_identity_that_changes_its_class_is_two_tubes(truth):
    found = [frame([1, 1, 2, 2], id1=CAR, id2=SKY), frame([1, 1, 2, 2], id1=SKY, id2=SKY)]
    # Car half a tube; sky: the two right halves are one tube, the false one another.
    np.testing.assert_array_equal(vpq_counts(found, truth, 2, window=2), [[0, 0, 1, 1], [1, 1, 1, 0]])


def test_windows_slide_by_one_frame_and_never_exceed_the_clip(truth):
    long_truth = truth * 3
    assert vpq_counts(long_truth, long_truth, 2, window=4)[CAR].tolist() == [3, 3, 0, 0]
    assert vpq_counts(long_truth, long_truth, 2, window=15)[CAR].tolist() == [1, 1, 0, 0]


def test_vpq_is_the_mean_over_windows():
    counts = {1: np.array([[4.0, 4, 0, 0]]), 5: np.array([[1.0, 2, 2, 2]])}
    figures = vpq_figures(counts)
    assert (figures["vpq_1"], figures["vpq_5"], figures["vpq"]) == (1.0, 0.25, 0.625)


def test_a_split_track_costs_association_and_counts_one_switch(truth):
    found = [frame([1, 1, 2, 2], id1=CAR, id2=SKY), frame([3, 3, 2, 2], id3=CAR, id2=SKY)]
    # Each predicted car: TPA 2, IoU 2 / 4; AQ = (2 * 0.5 + 2 * 0.5) / 4.
    assert measure(found, truth) == {"stq": math.sqrt(0.5), "aq": 0.5, "sq": 1.0, "switches": 1.0}


def test_association_does_not_ask_for_the_class():
    truth = [frame([1, 1, 1, 1], id1=0)]
    found = [frame([5, 5, 5, 0], id5=1)]
    counting = SegmentationAndTracking(2)
    counting.add_clip(found, truth)
    figures = counting.figures()
    # TPA 3, IoU 3 / 4, 4 true pixels; no pixel of class 0 is right and class 1 is only predicted.
    assert (figures["aq"], figures["sq"], figures["stq"]) == (3 * 0.75 / 4, 0.0, 0.0)


def test_two_things_in_one_track_share_it():
    truth = [frame([1, 1, 2, 2], id1=CAR, id2=CAR)]
    found = [frame([7, 7, 7, 7], id7=CAR)]
    # Either thing: TPA 2, IoU 2 / 4, 2 true pixels.
    assert measure(found, truth)["aq"] == 0.5


def test_pixels_without_truth_count_neither_for_nor_against(truth):
    truth = [frame([1, 1, 0, 0], id1=CAR)]
    found = [frame([1, 1, 1, 0], id1=CAR)]
    assert measure(found, truth)["aq"] == 1.0


def test_a_thing_that_comes_back_under_its_id_is_no_switch():
    here, away = frame([1, 1, 2, 2], id1=CAR, id2=SKY), frame([2, 2, 2, 2], id2=SKY)
    again = frame([9, 9, 2, 2], id9=CAR, id2=SKY)
    truth = [here, away, here]
    assert measure(truth, truth)["switches"] == 0
    assert measure([here, away, again], truth)["switches"] == 1


def test_things_are_averaged_over_all_clips(truth):
    counting = SegmentationAndTracking(2, stuff=[SKY])
    counting.add_clip(truth, truth)
    counting.add_clip([frame([2, 2, 2, 2], id2=SKY)] * 2, truth)
    assert counting.figures()["aq"] == 0.5


def test_clips_of_different_length_or_without_a_frame_are_refused(truth):
    for prediction, reference in ((truth[:1], truth), ([], [])):
        with pytest.raises(ValueError, match="a frame for each other"):
            measure(prediction, reference)
        with pytest.raises(ValueError, match="a frame for each other"):
            vpq_counts(prediction, reference, 2, 1)
    with pytest.raises(ValueError, match="`window`"):
        vpq_counts(truth, truth, 2, 0)


def test_an_id_that_is_never_listed_is_refused(truth):
    with pytest.raises(ValueError, match="never listed"):
        vpq_counts([frame([1, 1, 4, 4], id1=CAR)] * 2, truth, 2, 2)
