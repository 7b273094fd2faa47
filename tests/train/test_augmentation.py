"""Augmentation: picture and labels move together, seeds decide everything, bad annotations are named."""

import numpy as np
import pytest
import torch
from PIL import Image

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.train.data.augmentation import (
    GREY,
    VOID_ID,
    AugmentedDataset,
    LargeScaleJitter,
    RandomColour,
    RandomCrop,
    RandomFlip,
    ResizeShortestEdge,
    TrainingCollator,
    build_transforms,
    paste_things,
)
from maftplus.vocabularies.files import VocabularyFile

ALL = [
    {"name": "resize_shortest_edge", "shortest": [24, 32, 40], "longest": 80},
    {"name": "random_crop", "size": 32},
    {"name": "random_colour"},
    {"name": "random_flip"},
]


def make_sample(height=30, width=47, name="street.jpg"):
    """The picture shows its labels: red is 10 times the class."""
    labels = np.arange(height * width).reshape(height, width) // (height * width // 5) % 5
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = labels * 10
    return {"name": name, "image": Image.fromarray(image), "segmentation_map": labels}


def rng(seed=0):
    return np.random.default_rng(seed)


def as_arrays(sample):
    return np.asarray(sample["image"]), np.asarray(sample["segmentation_map"]).astype(np.int32)


@pytest.mark.parametrize(
    "transform",
    [ResizeShortestEdge(60), RandomFlip(1.0), RandomCrop(20), RandomCrop(64), LargeScaleJitter(48)],
    ids=lambda transform: type(transform).__name__,
)
def test_labels_stay_on_their_pixels(transform):
    image, labels = transform(*as_arrays(make_sample()), rng())
    assert image.shape[:2] == labels.shape
    known = labels != 255
    off = np.abs(image[..., 0].astype(int) - 10 * labels) > 5
    assert off[known].mean() < 0.2  # bilinear borders
    assert (image[~known] == GREY).all()


def test_sizes_are_rounded_as_in_use():
    image, labels = ResizeShortestEdge(800, 1333)(*as_arrays(make_sample(480, 640)), rng())
    assert labels.shape == (800, 1067)
    image, labels = ResizeShortestEdge(800, 1333)(*as_arrays(make_sample(100, 300)), rng())
    assert labels.shape == (444, 1333)


def test_a_list_of_sizes_is_drawn_from():
    sizes = {ResizeShortestEdge([24, 32])(*as_arrays(make_sample()), rng(seed))[1].shape[0] for seed in range(20)}
    assert sizes == {24, 32}


def test_large_scale_jitter_gives_a_square_and_pads_small_pictures():
    jitter = LargeScaleJitter(64, min_scale=0.5, max_scale=0.5)
    image, labels = jitter(*as_arrays(make_sample(30, 60)), rng())
    assert labels.shape == (64, 64)
    assert (labels != 255).sum() == 16 * 32


def test_colour_changes_pixels_but_not_labels_and_only_by_chance():
    image, labels = as_arrays(make_sample())
    changed = 0
    for seed in range(60):
        found, same = RandomColour()(image, labels, rng(seed))
        assert same is labels
        assert found.dtype == np.uint8
        changed += not np.array_equal(found, image)
    assert 40 <= changed < 60


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    data = [make_sample(name=f"{i}.jpg") for i in range(3)]
    first = AugmentedDataset(data, build_transforms(ALL), seed=1)
    second = AugmentedDataset(data, build_transforms(ALL), seed=1)
    for dataset in (first, second):
        dataset.set_epoch(4)
    order = [second[i] for i in (2, 0, 1)]
    for index, other in zip((2, 0, 1), order):
        sample = first[index]
        assert np.array_equal(sample["image"], other["image"])
        assert sample["point_seed"] == other["point_seed"]
    second.set_epoch(5)
    assert second[0]["point_seed"] != first[0]["point_seed"]


class Scenes(list):
    vocabulary = VocabularyFile("scenes", ("thing", "ground"), (("thing",), ("ground",)), (0, 1), stuff=(1,))


def scene(value: int, name: str) -> dict:
    """A thing of class 0 on stuff of class 1, in one colour; as `Objects` gives them."""
    ids = np.full((8, 10), 1, np.int32)
    ids[2:5, value % 5 : value % 5 + 3] = 2
    infos = [{"id": 1, "label_id": 1, "iscrowd": 0}, {"id": 2, "label_id": 0, "iscrowd": 0}]
    image = np.full((8, 10, 3), value, np.uint8)
    return {"name": name, "image": image, "segmentation_map": ids, "segments_info": infos}


def test_a_pasted_thing_brings_its_pixels_its_class_and_an_id_of_its_own():
    pasted = paste_things(scene(10, "a"), scene(23, "b"), stuff=[1], rng=rng())
    is_new = pasted["image"][..., 0] == 23
    assert np.array_equal(is_new, scene(23, "b")["segmentation_map"] == 2)
    assert (pasted["segmentation_map"][is_new] == 3).all()
    assert np.array_equal(pasted["segmentation_map"][~is_new], scene(10, "a")["segmentation_map"][~is_new])
    assert [(s["id"], s["label_id"]) for s in pasted["segments_info"]] == [(1, 1), (2, 0), (3, 0)]
    smaller = scene(23, "b")
    smaller.update(image=smaller["image"][:4], segmentation_map=smaller["segmentation_map"][:4])
    assert (paste_things(scene(10, "a"), smaller, [1], rng())["image"][4:] == 10).all()
    bare = {**scene(23, "b"), "segments_info": scene(23, "b")["segments_info"][:1]}
    assert paste_things(scene(10, "a"), bare, [1], rng())["segments_info"] == scene(10, "a")["segments_info"]


def test_copy_paste_depends_on_seed_epoch_and_index_and_is_off_by_default():
    data = Scenes(scene(10 + i, str(i)) for i in range(20))
    plain, some = AugmentedDataset(data, seed=3), AugmentedDataset(data, seed=3, copy_paste=0.5)
    assert all(len(plain[i]["segments_info"]) == 2 for i in range(20))
    numbers = [len(some[i]["segments_info"]) for i in range(20)]
    assert set(numbers) == {2, 3}
    again = AugmentedDataset(data, seed=3, copy_paste=0.5)
    assert all(np.array_equal(again[i]["image"], some[i]["image"]) for i in range(20))
    again.set_epoch(1)
    assert [len(again[i]["segments_info"]) for i in range(20)] != numbers


def test_how_a_pasted_picture_is_changed_has_nothing_to_do_with_which_it_is():
    seen = []

    def note(image, labels, rng):
        seen.append((int(image[0, 0, 0]) - 10, int(rng.integers(20))))
        return image, labels

    data = AugmentedDataset(Scenes(scene(10 + i, str(i)) for i in range(20)), [note], seed=1, copy_paste=1.0)
    for index in range(20):
        data[index]
    pasted = seen[1::2]  # each after the picture that it is laid over
    assert len({picture for picture, _ in pasted}) > 8
    assert sum(picture == drawn for picture, drawn in pasted) < 10


def test_crowds_and_void_are_no_objects_and_ids_keep_their_class():
    sample = make_sample()
    infos = [{"id": 1, "label_id": 0, "iscrowd": 0}, {"id": 2, "label_id": 3, "iscrowd": 1}]
    infos += [{"id": i, "label_id": 0, "iscrowd": 0} for i in (3, 4)]
    data = AugmentedDataset([{**sample, "segments_info": infos}], [RandomCrop(64, ignore_index=VOID_ID)])
    assert set(np.unique(data[0]["segmentation_map"])) == {VOID_ID, 1, 3, 4}
    batch = TrainingCollator(MaftPlusImageProcessorPil(), num_classes=4, ignore_index=VOID_ID)([data[0]])
    assert batch["class_labels"][0].tolist() == [0, 0, 0]
    assert batch["mask_labels"][0].shape == (3, 64, 64)


def test_a_batch_has_padded_pictures_seeds_and_names():
    data = AugmentedDataset([make_sample(30, 47, "a.jpg"), make_sample(64, 20, "b.jpg")])
    batch = TrainingCollator(MaftPlusImageProcessorPil(), num_classes=6)([data[0], data[1]])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["mask_labels"][0].shape[1:] == (64, 64)
    assert batch["image_names"] == ["a.jpg", "b.jpg"]
    assert batch["point_seeds"].dtype == torch.int64


def test_a_picture_of_ignored_pixels_has_no_objects():
    sample = {**make_sample(), "segmentation_map": np.full((30, 47), 255)}
    batch = TrainingCollator(MaftPlusImageProcessorPil(), num_classes=6)([AugmentedDataset([sample])[0]])
    assert len(batch["class_labels"][0]) == 0


def test_a_class_outside_the_vocabulary_is_an_error_that_names_the_picture():
    collator = TrainingCollator(MaftPlusImageProcessorPil(), num_classes=3)
    with pytest.raises(ValueError, match=r"street.jpg: the annotation holds the classes \[3, 4"):
        collator([AugmentedDataset([make_sample()])[0]])


def test_an_annotation_of_another_size_is_an_error_that_names_the_picture():
    sample = {**make_sample(), "segmentation_map": np.zeros((30, 40), int)}
    with pytest.raises(ValueError, match=r"street.jpg: the picture is \(30, 47\)"):
        AugmentedDataset([sample])[0]


@pytest.mark.parametrize(
    ("entry", "message"), [({"name": "rotate"}, "must be among"), ({"name": "random_crop", "edge": 3}, "random_crop")]
)
def test_an_unknown_transform_or_argument_is_an_error(entry, message):
    with pytest.raises(ValueError, match=message):
        build_transforms([entry])


def test_the_collator_does_not_reduce_labels_that_the_data_set_has_reduced():
    sample = {"name": "a", "image": np.zeros((8, 8, 3), np.uint8), "segmentation_map": np.zeros((8, 8), np.int32)}
    processor = MaftPlusImageProcessorPil(do_reduce_labels=True)
    batch = TrainingCollator(processor, 3)([{**sample, "point_seed": 0}])
    assert batch["class_labels"][0].tolist() == [0]
