"""Folders in the usual forms become data: recognised, named, split; what is broken is named with the way out."""

import json

import numpy as np
import pytest
from form_tools import (
    NAMES,
    SIZE,
    bands,
    coco_content,
    make_instances,
    make_label_maps,
    make_panoptic,
    make_voc,
    save_map,
    save_picture,
    square,
)
from PIL import Image
from pycocotools import mask as coco_mask

from maftplus.train.finetuning.forms import read_form
from maftplus.train.finetuning.label_maps import voc_colours
from maftplus.train.finetuning.names import fit_names, read_names
from maftplus.train.finetuning.objects import Objects
from maftplus.train.finetuning.parts import set_aside


def values_of(sample) -> list[int]:
    return np.unique(sample["segmentation_map"]).tolist()


# ------------------------------------------------------------------------------------------------------ label maps


def test_pictures_and_label_maps_are_recognised_and_named(tmp_path):
    form = read_form(make_label_maps(tmp_path))
    assert (form.kind, form.task) == ("pictures in images and label maps in labels", "semantic")
    assert form.vocabulary.names == NAMES
    assert (len(form.train), len(form.validation)) == (4, 1)
    assert form.split == "1 of 5 pictures set aside by seed 0"
    assert form.notes == ("255 counts as unlabelled.",)
    sample = form.train[0]
    assert sample["name"].startswith("images/")
    assert sample["segmentation_map"][0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 255, 255, 255]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("JPEGImages", "SegmentationClass"), ("img", "masks"), ("photos", "annotations"), ("data/images", "data/gt")],
)
def test_other_usual_names_of_folders_are_known(tmp_path, images, labels):
    form = read_form(make_label_maps(tmp_path, images=images, labels=labels))
    assert len(form.train) + len(form.validation) == 5


@pytest.mark.parametrize("pattern", ["{split}/{kind}", "{kind}/{split}", "{split}_{kind}"])
def test_folders_of_a_split_are_the_split(tmp_path, pattern):
    for split, number in (("train", 3), ("val", 2)):
        folders = {kind: pattern.format(split=split, kind=kind) for kind in ("images", "labels")}
        make_label_maps(tmp_path, number, **folders)
    form = read_form(tmp_path)
    assert (len(form.train), len(form.validation)) == (3, 2)
    assert form.split == "the folder's own split: 3 for training, 2 held out"


def test_lists_of_a_split_are_the_split(tmp_path):
    make_label_maps(tmp_path)
    (tmp_path / "train.txt").write_text("0\n1\n4\n")
    (tmp_path / "val.txt").write_text("2\n3\n")
    form = read_form(tmp_path)
    assert sorted(item.image.stem for item in form.validation.items) == ["2", "3"]


@pytest.mark.parametrize("options", [{"palette": True}, {"dtype": np.uint16}])
def test_palette_and_16_bit_maps_are_read_by_their_values(tmp_path, options):
    form = read_form(make_label_maps(tmp_path, **options))
    assert values_of(form.train[0]) == [0, 1, 2, 255]


def test_a_grey_map_saved_in_three_channels_is_read_and_a_coloured_one_is_refused(tmp_path):
    make_label_maps(tmp_path)
    for index in range(5):
        save_map(tmp_path / "labels" / f"{index}.png", bands(0, 1, 2, 255)[..., None].repeat(3, -1))
    assert values_of(read_form(tmp_path).train[0]) == [0, 1, 2, 255]
    for index in range(5):
        save_map(tmp_path / "labels" / f"{index}.png", np.stack([bands(0, 1), bands(9, 9), bands(0, 0)], -1))
    with pytest.raises(
        ValueError, match=r"labels/\d\.png: the label map is a colour picture; save it with one channel"
    ):
        read_form(tmp_path).train[0]


def test_maps_that_count_from_1_leave_0_unlabelled_and_say_so(tmp_path):
    form = read_form(make_label_maps(tmp_path, values=(0, 1, 2, 3)))
    assert values_of(form.train[0]) == [0, 1, 2, 255]
    assert form.train[0]["segmentation_map"][0, 0] == 255
    assert form.notes[0] == "The label maps count from 1: 'cat' is 1."
    assert form.notes[1].startswith("0 has no name and counts as unlabelled")
    assert form.warnings[0].startswith("the label maps hold 0 too, and there are 3 names without ids")


def test_maps_that_never_hold_0_and_end_below_the_last_name_are_suspicious(tmp_path):
    form = read_form(make_label_maps(tmp_path, values=(1, 2)))
    assert form.warnings[0].startswith("the names count from 0, which no label map holds; if 'cat' is 1,")


@pytest.mark.parametrize(("values", "ignored", "ids"), [((0, 1, 2, 250), 250, (0, 1, 2)), ((0, 1, 2), 0, (1, 2, 3))])
def test_a_value_may_be_named_as_unlabelled(tmp_path, values, ignored, ids):
    form = read_form(make_label_maps(tmp_path, values=values), ignore_value=ignored)
    assert form.vocabulary.raw_ids == ids
    assert ignored in form.train.unlabelled
    assert form.warnings == ()
    assert 255 in values_of(form.train[0])


def test_forms_without_label_maps_know_no_ignore_value(tmp_path):
    with pytest.raises(ValueError, match="have no label maps; leave out `--ignore-value 7`"):
        read_form(make_instances(tmp_path), ignore_value=7)


def test_a_class_of_voc_may_count_as_unlabelled(tmp_path):
    sample = read_form(make_voc(tmp_path), ignore_value=0).train[0]
    assert [segment["label_id"] for segment in sample["segments_info"]] == [12, 12]


def test_a_test_part_is_kept_apart_and_told(tmp_path):
    for split in ("train", "val", "test"):
        make_label_maps(tmp_path / split, number=2)
    form = read_form(tmp_path, labels_file=tmp_path / "train" / "names.txt")
    assert form.test.name.endswith("_test")
    assert form.notes[-1].startswith("The part `test` (2 pictures) is neither trained nor chosen on")
    assert len(form.measuring_test().validation) == 2
    assert len(form.measuring_test(and_validation=True).whole) == 6


def test_a_test_part_that_stands_for_validation_is_told(tmp_path):
    for split in ("train", "test"):
        make_label_maps(tmp_path / split, number=2)
    form = read_form(tmp_path, labels_file=tmp_path / "train" / "names.txt")
    assert "training chooses its best step and mixture on it" in form.split
    assert form.test is form.validation


def test_a_name_that_says_void_is_no_class(tmp_path):
    make_label_maps(tmp_path, values=(0, 1, 2))
    (tmp_path / "names.txt").write_text("void\ncat\ndog\n")
    form = read_form(tmp_path)
    assert form.vocabulary.names == ("cat", "dog")
    assert form.train[0]["segmentation_map"][0].tolist() == [255] * 4 + [0] * 4 + [1] * 4
    assert form.notes == ("'void' is no class: its pixels count as unlabelled.",)


def test_a_map_of_0_and_255_with_one_name_is_that_and_background(tmp_path):
    make_label_maps(tmp_path, values=(0, 255))
    (tmp_path / "names.txt").write_text("cat\n")
    form = read_form(tmp_path)
    assert form.vocabulary.names == ("background", "cat")
    assert form.vocabulary.stuff == (0,)
    assert values_of(form.train[0]) == [0, 1]
    assert form.notes == ("The label maps hold 0 and 255: 255 is 'cat'.",)


@pytest.mark.parametrize(
    ("file", "text", "ids"),
    [
        ("names.txt", "0: cat\n4: dog, puppy\n9: stuff: grass\n", (0, 4, 9)),
        ("classes.txt", "# mine\n0 cat\n4 dog, puppy\n9 grass\n", (0, 4, 9)),
        ("labels.csv", "cat,0\ndog,4\ngrass,9\n", (0, 4, 9)),
        ("class_names.txt", "cat\ndog\ngrass\n", (0, 1, 2)),
        ("names.json", '["cat", "dog", "grass"]', (0, 1, 2)),
        ("id2label.json", '{"0": "cat", "4": "dog", "9": "grass"}', (0, 4, 9)),
        (
            "categories.json",
            '[{"id": 0, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 9, "name": "grass"}]',
            (0, 4, 9),
        ),
        ("labels.json", '{"label2id": {"cat": 0, "dog": 4, "grass": 9}}', (0, 4, 9)),
        ("data.yaml", "names:\n  0: cat\n  4: dog\n  9: grass\n", (0, 4, 9)),
    ],
)
def test_names_are_read_from_every_usual_kind_of_file(tmp_path, file, text, ids):
    (tmp_path / file).write_text(text)
    names = read_names(tmp_path / file)
    assert names.vocabulary.names == NAMES
    assert names.vocabulary.raw_ids == ids
    assert names.has_ids == (ids != (0, 1, 2))


def test_ids_in_a_names_file_are_the_values_of_the_maps(tmp_path):
    make_label_maps(tmp_path, values=(10, 20, 30, 0))
    (tmp_path / "names.txt").write_text("10: cat\n20: dog\n30: stuff: grass\n")
    form = read_form(tmp_path)
    assert form.train[0]["segmentation_map"][0, ::3].tolist() == [0, 1, 2, 255]
    assert form.vocabulary.stuff == (2,)


@pytest.mark.parametrize(
    "text",
    [
        "# label:color_rgb:parts:actions\nvoid:0,0,0::\ncat:250,50,83::\ndog:9,9,9::\n",
        "name,r,g,b\nvoid,0,0,0\ncat,250,50,83\ndog,9,9,9\n",
        "0 0 0\tvoid\n250 50 83\tcat\n9 9 9\tdog\n",
    ],
)
def test_coloured_maps_are_read_by_the_colours_of_the_names_file(tmp_path, text):
    make_label_maps(tmp_path)
    (tmp_path / "names.txt").write_text(text)
    colours = np.array([(0, 0, 0), (250, 50, 83), (9, 9, 9)], dtype=np.uint8)
    for index in range(5):
        save_map(tmp_path / "labels" / f"{index}.png", colours[bands(0, 1, 2)])
    form = read_form(tmp_path)
    assert form.vocabulary.names == ("cat", "dog")
    assert form.train[0]["segmentation_map"][0, ::4].tolist() == [255, 0, 1]
    form.train.items[0].annotation.unlink()
    save_map(form.train.items[0].annotation, colours[bands(0, 1, 2)] + 1)
    with pytest.raises(ValueError, match=r"labels/\d\.png: the colour \(1, 1, 1\) stands for no class"):
        form.train[0]


def test_a_header_is_no_class_and_an_id_may_mean_void(tmp_path):
    (tmp_path / "names.csv").write_text("id,name\n0,cat\n1,dog\n99,ignore\n")
    vocabulary, unlabelled, *_ = fit_names(read_names(tmp_path / "names.csv"), {0, 1, 99})
    assert vocabulary.names == ("cat", "dog")
    assert 99 in unlabelled


def test_names_may_lie_beside_a_folder_that_is_a_split(tmp_path):
    make_label_maps(tmp_path / "train")
    (tmp_path / "train" / "names.txt").rename(tmp_path / "classes.txt")
    assert read_form(tmp_path / "train").vocabulary.names == NAMES


def test_a_text_file_alone_in_the_folder_holds_the_names_and_many_are_none(tmp_path):
    make_label_maps(tmp_path)
    (tmp_path / "names.txt").rename(tmp_path / "animals.txt")
    (tmp_path / "README.txt").write_text("Pictures of animals.\n")
    assert read_form(tmp_path).vocabulary.names == NAMES
    (tmp_path / "animals.txt").rename(tmp_path / "labels" / "names.txt")
    for index in range(60):
        (tmp_path / "labels" / f"label_{index}.txt").write_text("1\n")
    with pytest.raises(ValueError, match="no file names the classes"):
        read_form(tmp_path)


def test_numbers_above_255_are_classes_of_a_large_vocabulary(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"class number {index}" for index in range(300)))
    vocabulary, unlabelled, *_ = fit_names(read_names(path), {0, 255, 299, 65535})
    assert 255 in vocabulary.raw_ids
    assert unlabelled == {65535}


def test_the_labels_file_wins_over_the_folders_own(tmp_path):
    make_label_maps(tmp_path / "data")
    (tmp_path / "mine.txt").write_text("lion\nwolf\nmeadow\n")
    assert read_form(tmp_path / "data", labels_file=tmp_path / "mine.txt").vocabulary.names == (
        "lion",
        "wolf",
        "meadow",
    )


def test_without_names_the_values_and_the_way_out_are_named(tmp_path):
    make_label_maps(tmp_path)
    (tmp_path / "names.txt").unlink()
    with pytest.raises(
        ValueError, match=r"no file names the classes\. The label maps hold 0, 1, 2, 255.*--labels-file"
    ):
        read_form(tmp_path)


def test_pictures_without_a_map_and_maps_without_a_picture_are_left_out_and_told(tmp_path):
    make_label_maps(tmp_path)
    save_picture(tmp_path / "images" / "lonely.png")
    save_map(tmp_path / "labels" / "orphan.png", bands(0, 1))
    form = read_form(tmp_path)
    assert len(form.train) + len(form.validation) == 5
    assert form.notes[:2] == (
        "1 pictures have no label map and are left out: images/lonely.png.",
        "1 label maps have no picture and are left out: labels/orphan.png.",
    )


def test_a_map_may_be_called_like_its_picture_with_a_suffix(tmp_path):
    make_label_maps(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert len(read_form(tmp_path).train) == 4


# ------------------------------------------------------------------------------------------------------------ splits


def test_the_pictures_set_aside_do_not_depend_on_the_order_of_the_files():
    names = [f"{index}.png" for index in range(40)]
    chosen = {names[index] for index in set_aside(names, 3, {})}
    turned = names[::-1]
    assert {turned[index] for index in set_aside(turned, 3, {})} == chosen
    assert len(chosen) == 8
    assert chosen != {names[index] for index in set_aside(names, 4, {})}


def test_a_class_that_one_picture_shows_stays_in_training():
    names = [f"{index}.png" for index in range(10)]
    rare = {name: {0, index} for index, name in enumerate(names, start=1) if index < 9}
    chosen = set_aside(names, 0, rare)
    assert {names[index] for index in chosen} <= {"8.png", "9.png"}


# -------------------------------------------------------------------------------------------------------------- COCO


def test_instances_are_panoptic_data_of_things_on_void(tmp_path):
    form = read_form(make_instances(tmp_path))
    assert (form.kind, form.task) == ("COCO instances JSON (instances.json)", "panoptic")
    assert form.vocabulary.names == ("cat", "dog")
    assert form.vocabulary.stuff == ()
    sample = form.train[0]
    assert sample["segments_info"] == [{"id": 1, "label_id": 0, "iscrowd": 0}]
    expected = np.zeros(SIZE, dtype=int)
    expected[1:5, 2:6] = 1
    assert sample["segmentation_map"].tolist() == expected.tolist()


def test_instances_may_be_measured_as_label_maps(tmp_path):
    form = read_form(make_instances(tmp_path), task="semantic")
    sample = form.validation[0]
    assert form.task == "semantic"
    assert "segments_info" not in sample
    assert "segments_info" in Objects(form.train)[0]  # training keeps the objects that are there
    assert values_of(sample) == [0, 255]


def test_run_lengths_and_crowds_are_read_and_small_objects_stay_visible(tmp_path):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[:, :6] = 1
    compressed = coco_mask.encode(mask)
    objects = [
        {"segmentation": square(1, 1, 2), "category_id": 9},
        {"segmentation": {"size": list(SIZE), "counts": compressed["counts"].decode()}, "category_id": 7},
        {"segmentation": {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}, "category_id": 7, "iscrowd": 1},
    ]
    sample = read_form(make_instances(tmp_path, coco_content(objects=objects))).train[0]
    kinds = {s["id"]: (s["label_id"], s["iscrowd"]) for s in sample["segments_info"]}
    shown = [kinds[value] for value in (sample["segmentation_map"][y, x] for y, x in ((1, 1), (0, 0), (0, 11)))]
    assert shown == [(1, 0), (0, 0), (0, 1)]


def test_the_files_of_a_split_are_the_split(tmp_path):
    make_instances(tmp_path, coco_content(3), "instances_train2017.json", "train2017")
    make_instances(tmp_path, coco_content(2, first=10), "instances_val2017.json", "val2017")
    form = read_form(tmp_path)
    assert (len(form.train), len(form.validation)) == (3, 2)


def test_pictures_without_an_object_are_left_out_and_told(tmp_path):
    content = coco_content()
    content["annotations"] = [row for row in content["annotations"] if row["image_id"]]
    form = read_form(make_instances(tmp_path, content))
    assert len(form.train) + len(form.validation) == 4
    assert form.notes == ("instances.json: 1 pictures without annotation are left out.",)


def test_polygons_that_reach_out_are_clipped_and_those_outside_are_left_out_and_told(tmp_path):
    objects = [
        {"segmentation": square(-20, 2, 24), "category_id": 7},
        {"segmentation": square(50, 50, 4), "category_id": 9},
    ]
    form = read_form(make_instances(tmp_path, coco_content(2, objects)))
    sample = form.train[0]
    assert [s["label_id"] for s in sample["segments_info"]] == [0]
    assert np.argwhere(sample["segmentation_map"])[:, 1].max() == 3
    assert form.notes == (
        "instances.json: the annotations 1, 3 lie outside their pictures, left out.",
        "instances.json: the annotations 0, 2 reach out of their pictures, clipped.",
    )


def test_a_file_that_lists_missing_pictures_is_refused(tmp_path):
    make_instances(tmp_path)
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(
        ValueError, match=r"instances\.json lists 1 pictures that are not in .*images: 3\.png; put them"
    ):
        read_form(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 8}, r"annotation 0 of picture 0\.png: the category 8 has no name in `categories`"),
        ({"segmentation": [[1, 1, 2, 2]]}, r"annotation 0 of picture 0\.png: a polygon needs at least three corners"),
        ({"segmentation": [[1, 1, 2, "a", 3, 3]]}, r"annotation 0 of picture 0\.png: .* no coordinate"),
        ({"segmentation": [[1, 1, 1e9, 2, 3, 3]]}, r"annotation 0 of picture 0\.png: .* no coordinate"),
        ({"segmentation": []}, r"annotation 0 of picture 0\.png: it has no `segmentation`; boxes alone"),
        ({"image_id": 77}, r"annotations are for the images 77, which it does not list"),
    ],
)
def test_broken_annotations_are_named(tmp_path, change, message):
    content = coco_content()
    content["annotations"][0].update(change)
    with pytest.raises(ValueError, match=message):
        read_form(make_instances(tmp_path, content))


def test_a_run_length_of_another_size_is_named(tmp_path):
    objects = [{"segmentation": {"size": [2, 2], "counts": [0, 4]}, "category_id": 7}]
    form = read_form(make_instances(tmp_path, coco_content(objects=objects)))
    with pytest.raises(
        ValueError, match=r"instances\.json, picture \d\.png: a mask is \(2, 2\) .* its picture \(8, 12\)"
    ):
        form.train[0]


def test_panoptic_data_know_things_and_stuff(tmp_path):
    form = read_form(make_panoptic(tmp_path))
    assert (form.kind, form.task) == ("COCO panoptic JSON (panoptic.json)", "panoptic")
    assert form.vocabulary.classes == (("cat", "kitten"), ("grass",))
    assert form.vocabulary.stuff == (1,)
    assert [s["label_id"] for s in form.train[0]["segments_info"]] == [0, 1]
    semantic = read_form(tmp_path, task="semantic").validation[0]
    assert semantic["segmentation_map"].tolist() == bands(0, 1).tolist()


# --------------------------------------------------------------------------------------------------------------- VOC


def test_voc_with_objects_is_panoptic_with_its_own_names_and_split(tmp_path):
    form = read_form(make_voc(tmp_path))
    assert form.kind == "Pascal VOC: JPEGImages and SegmentationClass with SegmentationObject"
    assert form.vocabulary.num_labels == 21
    assert (len(form.train), len(form.validation)) == (3, 1)
    sample = form.train[0]
    kinds = {s["id"]: form.vocabulary.names[s["label_id"]] for s in sample["segments_info"]}
    assert [kinds.get(value) for value in sample["segmentation_map"][0, ::3]] == ["background", "dog", None, "dog"]
    assert len(kinds) == 3


def test_voc_without_objects_is_semantic_also_in_voc_colours(tmp_path):
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", with_objects=False)
    colours = np.array(voc_colours(), dtype=np.uint8)
    for path in (tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass").iterdir():
        Image.fromarray(colours[bands(0, 12, 255, 15)]).save(path)
    form = read_form(tmp_path)
    assert form.task == "semantic"
    assert form.train[0]["segmentation_map"][0, ::3].tolist() == [0, 12, 255, 15]


def test_the_first_colours_of_voc_are_those_of_its_development_kit():
    assert voc_colours(5) == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))


# ---------------------------------------------------------------------------------------------------- rows and YOLO


def test_rows_with_label_maps_are_recognised_by_their_features(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"photo": Image.new("RGB", (12, 8), (9 * i, 0, 0)), "mask": Image.fromarray(bands(1, 2).astype(np.uint8))}
        for i in range(5)
    ]
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "rows")
    (tmp_path / "rows" / "id2label.json").write_text('{"1": "cat", "2": "dog"}')
    form = read_form(tmp_path / "rows")
    assert form.kind == "a data set with pictures (photo) and label maps (mask)"
    assert (len(form.train), len(form.validation)) == (4, 1)
    assert form.train[0]["segmentation_map"].tolist() == bands(0, 1).tolist()


def test_rows_with_objects_are_panoptic_with_the_names_of_their_class_label(tmp_path):
    datasets = pytest.importorskip("datasets")
    objects = {"category": [0, 1], "segmentation": [square(), square(7, 1, 3)]}
    rows = [{"image": Image.new("RGB", (12, 8), (9 * i, 0, 0)), "objects": objects} for i in range(3)]
    numbers = datasets.List(datasets.List(datasets.List(datasets.Value("float32"))))
    inner = {"category": datasets.List(datasets.ClassLabel(names=["cat", "dog"])), "segmentation": numbers}
    features = datasets.Features({"image": datasets.Image(), "objects": inner})
    parts = {"train": rows[:2], "validation": rows[2:]}
    parts = {name: datasets.Dataset.from_list(part, features=features) for name, part in parts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "rows")
    form = read_form(tmp_path / "rows")
    assert (form.kind, form.task) == ("a data set with pictures (image) and objects (objects)", "panoptic")
    assert form.vocabulary.names == ("cat", "dog")
    assert form.split == "the data set's own splits: 2 for training, 1 held out"
    assert sorted(s["label_id"] for s in form.train[0]["segments_info"]) == [0, 1]
    semantic = read_form(tmp_path / "rows", task="semantic").validation[0]
    assert values_of(semantic) == [0, 1, 255]


def test_categories_that_are_words_are_the_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    objects = [{"label": "dog", "mask": json.dumps(square())}, {"label": "cat", "mask": json.dumps(square(7, 1, 3))}]
    rows = [{"image": Image.new("RGB", (12, 8), (9 * i, 0, 0)), "annotations": objects} for i in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    form = read_form(tmp_path / "rows")
    assert form.vocabulary.names == ("cat", "dog")
    assert sorted(s["label_id"] for s in form.train[0]["segments_info"]) == [0, 1]


def test_rows_without_masks_are_refused_with_their_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"text": "a", "number": 1}]).save_to_disk(tmp_path / "rows")
    with pytest.raises(
        ValueError, match="has the columns text, number; wanted are one of pictures and one of label maps"
    ):
        read_form(tmp_path / "rows")


def test_yolo_text_is_read_as_polygons(tmp_path):
    for index in range(3):
        save_picture(tmp_path / "images" / f"{index}.png", index)
        path = tmp_path / "labels" / f"{index}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("1 0 0 0.5 0 0.5 1 0 1\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    form = read_form(tmp_path)
    assert form.kind == "pictures and YOLO segmentation text"
    sample = form.train[0]
    assert [s["label_id"] for s in sample["segments_info"]] == [1]
    assert sample["segmentation_map"].tolist() == bands(1, 0).tolist()


# ------------------------------------------------------------------------------------------------------ none and two


def test_a_folder_that_fits_no_form_is_told_what_was_looked_for_and_what_was_found(tmp_path):
    save_picture(tmp_path / "holiday" / "1.png")
    (tmp_path / "notes.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(
        ValueError, match=r"Looked for: .*COCO JSON.*Pascal VOC.*Found: .*holiday \(pictures\).*notes\.json"
    ):
        read_form(tmp_path)


def test_of_two_forms_that_fit_the_one_that_says_more_is_taken(tmp_path):
    make_label_maps(tmp_path)
    make_panoptic(tmp_path)
    assert read_form(tmp_path).kind.startswith("COCO panoptic JSON")


def test_label_maps_know_no_single_objects(tmp_path):
    with pytest.raises(ValueError, match="know no single objects; `task` must be 'semantic'"):
        read_form(make_label_maps(tmp_path), task="panoptic")


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; `--data` is a folder of labelled pictures"):
        read_form("nowhere")
