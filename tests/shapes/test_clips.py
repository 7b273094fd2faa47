"""Clips of the shapes world: seeded, with identities that are exact and last."""

import json
from pathlib import Path

import numpy as np
import pytest

import maftplus
from maftplus.shapes import clips as module
from maftplus.shapes.clips import clips, draw_clip, write_clip
from maftplus.shapes.scenes import CLASSES, class_ids


def first_clip(**layout):
    return next(clips("validation", 1, **layout))


def test_equal_seeds_give_equal_clips_and_splits_differ():
    one, same = (first_clip(num_frames=3) for _ in range(2))
    other = next(clips("test", 1, num_frames=3))
    for a, b in zip(one, same):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.segmentation, b.segmentation)
    assert (one[0].image != other[0].image).any()


def test_every_pixel_has_a_listed_id_and_an_id_has_one_class():
    classes = {}
    for frame in first_clip():
        assert set(np.unique(frame.segmentation)) == {segment["id"] for segment in frame.segments_info}
        for segment in frame.segments_info:
            assert classes.setdefault(segment["id"], segment["category_id"]) == segment["category_id"]
            assert segment["isthing"] == CLASSES[segment["category_id"]].isthing


def test_things_move_and_the_ground_moves_only_where_the_camera_does():
    for moving in (False, True):
        clip = draw_clip(np.random.default_rng(3), class_ids("seen", things_only=True), moving_ground=moving)
        first, last = clip[0], clip[-1]
        stuff = [segment["id"] for segment in first.segments_info if not segment["isthing"]]
        both = np.isin(first.segmentation, stuff) & np.isin(last.segmentation, stuff)
        assert (first.segmentation != last.segmentation).any()
        assert (first.segmentation == last.segmentation)[both].all() != moving


def test_some_things_leave_and_come_back_under_their_id():
    returned = 0
    for clip in clips("validation", 5):
        for id in {segment["id"] for segment in clip[0].segments_info}:
            seen = np.array([(frame.segmentation == id).any() for frame in clip])
            returned += bool(seen[0] and seen[-1] and not seen.all())
    assert returned >= 3


def test_few_classes_make_twins():
    clip = first_clip(num_thing_classes=1, num_things=(4, 4), num_frames=2)
    things = [segment["category_id"] for segment in clip[0].segments_info if segment["isthing"]]
    assert len(things) > 1
    assert len(set(things)) == 1


def test_layouts_that_cannot_be_drawn_are_refused():
    for layout in ({"num_frames": 0}, {"size": 20}):
        with pytest.raises(ValueError, match="needs a frame"):
            first_clip(**layout)
    with pytest.raises(ValueError, match="split"):
        next(clips("nowhere", 1))


def test_a_written_clip_is_read_back_frame_by_frame(tmp_path):
    from maftplus.app.clips import ClipReader

    clip = first_clip(num_frames=4)
    write_clip(tmp_path / "clip.mp4", clip, rate=8)
    with ClipReader(tmp_path / "clip.mp4") as reader:
        frames = list(reader)
    assert [frame.time for frame in frames] == [0, 0.125, 0.25, 0.375]
    for frame, scene in zip(frames, clip):
        assert np.abs(np.asarray(frame.picture, float) - scene.image).mean() < 12


def test_the_command_writes_clips(tmp_path):
    module.main(["--out", str(tmp_path), "--num_clips", "2", "--num_frames", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip_000.mp4", "clip_001.mp4"]


def test_the_evaluation_prints_every_method_and_ends_with_json(capsys):
    from maftplus.shapes import evaluate_clips

    arguments = [
        str(Path(maftplus.__file__).parent / "models" / "shapes"),
        "--split",
        "validation",
        "--num_clips",
        "1",
        "--num_frames",
        "6",
    ]
    evaluate_clips.main([*arguments, "--num_threads", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) == {"order of score", "overlap alone", "matched"}
    assert figures["matched"]["vpq"] > figures["order of score"]["vpq"]
    assert figures["matched"]["pq"] == figures["order of score"]["pq"]
