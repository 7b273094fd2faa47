"""Tracks: who keeps an id, who gets a new one, and what `track` gives for the frames of a clip."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tools import tiny_model, tiny_processor

import maftplus
from maftplus.app.tracking import Detection, Tracker, TrackOptions, mask_iou, track
from maftplus.pictures.segments import Segment
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.clips import clips
from maftplus.shapes.evaluate import all_names
from maftplus.shapes.scenes import STUFF

CAT, DOG, GRASS = range(3)
NAMES = ["cat", "dog", "grass"]
TABBY, BLACK = [1.0, 0.2, 0.0], [0.2, 1.0, 0.0]  # two cats as CLIP sees them: alike, but not the same
SHAPES_MODEL = Path(maftplus.__file__).parent / "models" / "shapes"


def thing(column, embed=TABBY, label_id=CAT, width=4):
    """A detection in a frame of 8 x 32 pixels, `width` columns wide."""
    mask = np.zeros((8, 32), bool)
    mask[2:6, column : column + width] = True
    probabilities = np.eye(3)[label_id]
    return Detection(Segment(1, NAMES[label_id], label_id, True, 0.9, mask), np.array(embed), probabilities, mask)


def stuff():
    return Detection(Segment(1, "grass", GRASS, False, 0.8, np.ones((8, 32), bool)))


def ids(tracker, *detections):
    return [segment.id for segment in tracker.update(detections)]


@pytest.fixture
def tracker():
    return Tracker(NAMES)


@pytest.fixture(scope="module")
def segmenter():
    model, processor = tiny_model(), tiny_processor()
    model.set_vocabulary(processor, ["cat, kitten", "grass"], stuff=["grass"])
    return MaftPlusSegmentationPipeline(model=model, processor=processor, device="cpu")


def noise_frames(count, size=(50, 70)):
    return [np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8) for seed in range(count)]


def test_a_thing_that_moves_keeps_its_id_and_a_new_one_gets_the_next(tracker):
    assert ids(tracker, thing(0)) == [1]
    assert ids(tracker, thing(2)) == [1]
    assert ids(tracker, thing(4), thing(20, BLACK)) == [1, 2]


def test_the_order_of_detections_does_not_matter(tracker):
    assert ids(tracker, thing(0), thing(20, BLACK)) == [1, 2]
    assert ids(tracker, thing(21, BLACK), thing(1)) == [2, 1]


def test_things_that_change_places_are_known_by_their_embedding(tracker):
    ids(tracker, thing(10, [1, 0, 0]), thing(14, [0, 1, 0]))
    assert ids(tracker, thing(10, [0, 1, 0]), thing(14, [1, 0, 0])) == [2, 1]


def test_twins_are_told_apart_by_their_place(tracker):
    ids(tracker, thing(0), thing(20))
    assert ids(tracker, thing(21), thing(1)) == [2, 1]


def test_overlap_alone_takes_the_one_in_its_place():
    tracker = Tracker(NAMES, TrackOptions(embed_weight=0, overlap_weight=1, class_weight=0))
    ids(tracker, thing(10, [1, 0, 0]), thing(14, [0, 1, 0]))
    assert ids(tracker, thing(10, [0, 1, 0]), thing(14, [1, 0, 0])) == [1, 2]


def test_a_thing_that_comes_back_within_the_window_has_its_id():
    tracker = Tracker(NAMES, TrackOptions(window=3))
    ids(tracker, thing(0), thing(20, [0, 0, 1], DOG))
    for _ in range(3):
        ids(tracker, thing(20, [0, 0, 1], DOG))
    assert ids(tracker, thing(28), thing(20, [0, 0, 1], DOG)) == [1, 2]


def test_a_thing_that_comes_back_after_the_window_is_a_new_one():
    tracker = Tracker(NAMES, TrackOptions(window=3))
    ids(tracker, thing(0))
    for _ in range(4):
        ids(tracker)
    assert ids(tracker, thing(0)) == [2]
    assert len(tracker.tracks) == 1


def test_what_is_unlike_in_every_way_begins_a_track(tracker):
    ids(tracker, thing(0, [1, 0, 0]))
    assert ids(tracker, thing(20, [0, 1, 0], DOG)) == [2]


def test_stuff_has_one_identity_a_class_however_long_it_is_away(tracker):
    first, _ = ids(tracker, stuff(), thing(0))
    for _ in range(50):
        ids(tracker)
    assert ids(tracker, stuff()) == [first]


def test_the_word_is_what_the_frames_of_a_track_speak_for(tracker):
    words = [tracker.update([thing(0, label_id=label_id)])[0].label for label_id in (CAT, CAT, DOG, CAT)]
    assert words == ["cat"] * 4
    tracker = Tracker(NAMES)
    words = [tracker.update([thing(0, label_id=label_id)])[0].label_id for label_id in (CAT, DOG, DOG)]
    assert words[-1] == DOG


def test_iou_of_masks_is_that_of_their_pixels():
    masks = [thing(0).grid_mask, thing(2).grid_mask, np.zeros((8, 32), bool)]
    np.testing.assert_allclose(mask_iou(masks[:1], masks), [[1, 1 / 3, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_weight": 0.9}, "sum to 1"),
        ({"embed_weight": -0.1, "overlap_weight": 1.0}, "sum to 1"),
        ({"window": 0}, "window"),
        ({"inertia": 1.0}, "inertia"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrackOptions(**options)


def test_frames_are_taken_batch_by_batch(segmenter):
    taken = []
    frames = (taken.append(index) or frame for index, frame in enumerate(noise_frames(7)))
    found = track(frames, segmenter, batch_size=3, threshold=0.0)
    assert taken == []
    next(found)
    assert taken == [0, 1, 2]
    assert len(list(found)) == 6


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_the_segments_of_a_frame_are_those_of_the_pipeline(segmenter, subtask):
    options = {} if subtask == "semantic" else {"threshold": 0.0}
    frame = Image.fromarray(noise_frames(1)[0])
    expected = segmenter(frame, subtask=subtask, **options)
    found = next(track([frame], segmenter, subtask=subtask, **options))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one.score == other["score"]
        np.testing.assert_array_equal(one.mask, np.asarray(other["mask"]) > 0)


def test_semantic_results_have_one_identity_a_class(segmenter):
    for segments in track(noise_frames(3), segmenter, ["cat", "dog", "grass"], subtask="semantic"):
        assert len({one.id for one in segments}) == len({one.label for one in segments}) == len(segments)


def test_words_of_the_call_replace_those_of_the_model(segmenter):
    options = {"subtask": "instance", "threshold": 0.0}
    found = [one for segments in track(noise_frames(2), segmenter, ["bird"], **options) for one in segments]
    assert {one.label for one in found} == {"bird"}


def test_what_cannot_be_tracked_is_refused_before_the_first_frame(segmenter):
    for arguments, message in (
        ({"candidate_labels": ["cat", "cat"]}, "repeats"),
        ({"stuff_labels": ["dog"]}, "'dog'"),
        ({"threshold": 7}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            track([], segmenter, **arguments)


def test_a_frame_of_another_size_is_named(segmenter):
    frames = [*noise_frames(2), *noise_frames(1, size=(40, 70))]
    with pytest.raises(ValueError, match="Frame 2"):
        list(track(frames, segmenter))


def test_no_frames_give_nothing(segmenter):
    assert list(track([], segmenter)) == []


def test_one_track_holds_a_thing_through_a_clip_in_which_another_crosses_it():
    segmenter = MaftPlusSegmentationPipeline(
        model=maftplus.MaftPlusForUniversalSegmentation.from_pretrained(SHAPES_MODEL),
        processor=MaftPlusProcessor.from_pretrained(SHAPES_MODEL),
    )
    clip = next(clips("validation", 1))
    found = list(track([scene.image for scene in clip], segmenter, all_names(), list(STUFF)))
    star = 4  # visible in every frame
    assert most_frequent_id(found, [scene.segmentation == star for scene in clip])[1] >= 18


def most_frequent_id(found, masks):
    """Which id covers a true thing in most frames, with an IoU over one half; and in how many."""
    covering = [
        one.id
        for segments, mask in zip(found, masks)
        for one in segments
        if (one.mask & mask).sum() > 0.5 * (one.mask | mask).sum()
    ]
    values, counts = np.unique(covering, return_counts=True)
    return int(values[counts.argmax()]), int(counts.max())
