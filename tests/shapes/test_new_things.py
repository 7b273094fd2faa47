"""Scenes of three shapes that the shipped model does not know, as somebody's own labelled pictures."""

import numpy as np
import pytest

from maftplus.shapes.new_things import NEW_CLASSES, NUM_NEW, SEEN, label_map, names, new_scenes, write
from maftplus.shapes.new_things_runs import format_markdown
from maftplus.shapes.scenes import CLASSES, class_ids, scenes
from maftplus.train.finetuning.forms import read_form


def test_label_maps_hold_new_shapes_old_pairs_and_ground():
    for scene in new_scenes("train", 4):
        labels = label_map(scene)
        assert labels.max() < len(names())
        for segment in scene.segments_info:
            value = np.unique(labels[scene.segmentation == segment["id"]])
            assert len(value) == 1
            assert (value[0] < NUM_NEW) == (segment["category_id"] >= len(CLASSES))


def test_a_new_shape_is_one_class_whatever_its_colour():
    assert len(NEW_CLASSES) == 6 * NUM_NEW
    assert [line.split(",")[0] for line in names(only_new=True)][:4] == ["heart", "moon", "arrow", "stuff: grass"]


def test_pairs_that_were_never_trained_are_in_no_training_picture():
    unseen = set(class_ids("unseen", "novel"))
    assert not unseen & {s["category_id"] for scene in new_scenes("train", 10) for s in scene.segments_info}
    assert not unseen & set(SEEN)


def test_the_splits_differ_and_are_not_the_worlds_own():
    first = [next(iter(new_scenes(split, 1))).image for split in ("train", "test")]
    assert not np.array_equal(*first)
    assert not np.array_equal(first[0], next(iter(scenes("train", 1))).image)


@pytest.mark.parametrize(("only_new", "count"), [(True, 9), (False, 30)])
def test_the_folder_is_read_as_pictures_and_label_maps(tmp_path, only_new, count):
    write(tmp_path / "data", num_train=3, num_test=1, only_new=only_new)
    form = read_form(tmp_path / "data" / "train", labels_file=tmp_path / "data" / "names.txt")
    assert (form.task, form.vocabulary.num_labels, len(form.vocabulary.stuff)) == ("semantic", count, 6)
    assert len(form.train) + len(form.validation) == 3


def test_the_table_has_a_row_a_preset():
    figures = {"new": 0.5, "new_among_all": 0.4, "seen": 0.9, "unseen": 0.8, "harmonic": 0.85}
    costs = {"trained": 1000, "peak_gb": 1.0, "minutes": 2.0}
    rows = [{"name": "lora", **figures, **costs}, {"name": "lora", **figures, **costs, "new": 0.7}]
    table = format_markdown([{"name": "shipped model", **figures}, *rows]).splitlines()
    assert table[2].startswith("| shipped model | 50.0 | 40.0 | 90.0 | 80.0 | 85.0 | - | - | - | 1 |")
    assert table[3].startswith("| lora | 60.0 ± 14.1 |")
    assert "| 1,000 |" in table[3]
