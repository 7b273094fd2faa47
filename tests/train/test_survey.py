"""The survey of a folder: what it counts, what it warns of, and bad data as errors with file and way out."""

import shutil

import numpy as np
import pytest
from form_tools import bands, coco_content, make_instances, make_label_maps, make_panoptic, save_map, save_picture

from maftplus.train.finetuning import survey as survey_module
from maftplus.train.finetuning.forms import read_form
from maftplus.train.finetuning.survey import survey


def look(folder, **options):
    return survey(read_form(folder, **options), progress=False)


def test_pictures_sizes_and_pixels_by_class_are_counted(tmp_path):
    found = look(make_label_maps(tmp_path))
    assert found.facts["pictures"] == "4 for training, 1 held out"
    assert found.facts["sizes (width x height)"] == "all 12 x 8"
    assert found.facts["unlabelled pixels"] == "25.0 %"
    assert found.rows[0] == ["cat", "33.33 %", "4", "33.33 %", "1"]
    assert found.warnings == ()
    assert found.lines[-1] == "255 counts as unlabelled."


def test_objects_count_by_their_pixels_and_crowds_too(tmp_path):
    found = look(make_panoptic(tmp_path))
    assert [row[1] for row in found.rows] == ["50.00 %", "50.00 %"]


def test_an_id_without_a_name_is_an_error(tmp_path):
    make_label_maps(tmp_path)
    save_map(tmp_path / "labels" / "2.png", bands(0, 9))
    with pytest.raises(ValueError, match=r"labels/2\.png: the ids 9 are not in the vocabulary names; name them there"):
        look(tmp_path)


def test_an_unreadable_picture_is_an_error(tmp_path):
    make_label_maps(tmp_path)
    whole = (tmp_path / "images" / "1.png").read_bytes()
    (tmp_path / "images" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"images/1\.png: cannot be read as a picture .* Replace the file, or remove"):
        look(tmp_path)


def test_a_picture_that_vanished_is_an_error(tmp_path):
    form = read_form(make_label_maps(tmp_path))
    form.train.items[0].image.unlink()
    with pytest.raises(ValueError, match=r"images/\d\.png does not exist\. Replace the file"):
        survey(form, progress=False)


def test_an_annotation_that_vanished_or_is_broken_is_an_error(tmp_path):
    form = read_form(make_label_maps(tmp_path))
    form.train.items[0].annotation.unlink()
    form.train.items[1].annotation.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"(?s)labels/\d\.png does not exist.*labels/\d\.png: cannot be read"):
        survey(form, progress=False)


def test_an_annotation_of_another_size_is_an_error(tmp_path):
    make_label_maps(tmp_path)
    save_map(tmp_path / "labels" / "3.png", bands(0, 1, size=(4, 4)))
    with pytest.raises(
        ValueError, match=r"labels/3\.png is 4 x 4 .*but .*3\.png is 8 x 12\. An annotation has the size"
    ):
        look(tmp_path)


def test_of_many_errors_the_first_are_listed_and_the_rest_counted(tmp_path):
    make_label_maps(tmp_path, number=13, values=(0, 99))
    with pytest.raises(ValueError, match=r"\.\.\. and 3 more\.$") as error:
        look(tmp_path)
    assert len(str(error.value).splitlines()) == 11


def test_a_picture_that_is_ignored_everywhere_is_told(tmp_path):
    make_label_maps(tmp_path)
    save_map(tmp_path / "labels" / "0.png", bands(255))
    form = read_form(tmp_path, seed=next(seed for seed in range(9) if _trains(tmp_path, seed, "0")))
    found = survey(form, progress=False)
    assert found.warnings == (
        "1 training pictures have no pixel of a class (images/0.png); they are trained as void.",
    )


def _trains(folder, seed, stem) -> bool:
    return any(item.image.stem == stem for item in read_form(folder, seed=seed).train.items)


def test_held_out_pictures_without_a_pixel_of_a_class_are_an_error(tmp_path):
    make_label_maps(tmp_path, 3, images="train/images", labels="train/labels")
    make_label_maps(tmp_path, 2, (255,), images="val/images", labels="val/labels")
    with pytest.raises(ValueError, match="none of the 2 validation pictures has a pixel of a class"):
        look(tmp_path)


def test_classes_without_pixels_are_told_for_each_part(tmp_path):
    make_label_maps(tmp_path, 3, (0, 1), images="train/images", labels="train/labels")
    make_label_maps(tmp_path, 2, (0, 2), images="val/images", labels="val/labels")
    for index in range(2):
        save_picture(tmp_path / "val" / "images" / f"{index}.png", 10 + index)
    assert look(tmp_path).warnings == (
        "1 classes have no training pixel, nothing teaches them: grass.",
        "1 classes have no held-out pixel, nothing measures them: dog.",
    )


def test_pictures_that_come_twice_are_told_and_above_all_across_the_split(tmp_path):
    make_label_maps(tmp_path, 4, images="train/images", labels="train/labels")
    make_label_maps(tmp_path, 1, images="val/images", labels="val/labels")
    shutil.copy(tmp_path / "train" / "images" / "2.png", tmp_path / "train" / "images" / "3.png")
    assert look(tmp_path).warnings == (
        "training pictures that come more than once (1): train/images/2.png = train/images/3.png.",
        "pictures both in training and held out (1), which flatters the figures: "
        "train/images/0.png = val/images/0.png.",
    )


def test_one_picture_alone_cannot_be_divided(tmp_path):
    with pytest.raises(ValueError, match="no picture is left for training .*; it takes two at least"):
        look(make_label_maps(tmp_path, 1))


def test_of_many_pictures_some_are_read_and_all_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "MOST_READ", 2)
    form = read_form(make_label_maps(tmp_path, 10))
    assert survey(form, progress=False).facts["read"] == "4 of 10 pictures; figures are of these"
    form.train.items[5].image.unlink()
    with pytest.raises(ValueError, match=r"images/\d\.png does not exist"):
        survey(form, progress=False)


def test_a_part_that_is_not_asked_for_is_not_read(tmp_path):
    make_label_maps(tmp_path, 3, (0, 77), images="train/images", labels="train/labels")
    make_label_maps(tmp_path, 2, images="val/images", labels="val/labels")
    found = survey(read_form(tmp_path), progress=False, parts=("validation",))
    assert (found.train.num_read, found.validation.num_read) == (0, 2)


def test_objects_that_leave_nothing_of_a_picture_are_told(tmp_path):
    content = coco_content(4)
    content["annotations"][0]["segmentation"] = [[100, 100, 110, 100, 110, 110]]
    make_instances(tmp_path, content)
    form = read_form(tmp_path, seed=next(seed for seed in range(9) if _trains(tmp_path, seed, "0")))
    found = survey(form, progress=False)
    assert "1 training pictures have no pixel of a class (0.png); they are trained as void." in found.warnings
    assert np.array_equal(found.train.pictures, [2, 0])
