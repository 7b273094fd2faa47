"""Data sets from disk: raw annotations become training ids, bad files are named, nothing is prepared twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_set_tools import (
    COLOUR,
    LAYOUTS,
    make_ade,
    make_ade_panoptic,
    make_coco_panoptic,
    make_coco_stuff,
    make_context_59,
    make_context_459,
    mat_bytes,
    picture,
    png_bytes,
    write,
)
from PIL import Image
from scipy.io import savemat

from maftplus.train.data.annotations import decode_run_lengths, load_merged_json, read_context_mat, read_label_png
from maftplus.train.data.hub import HubDataset, find_split, load_hub
from maftplus.train.data.prepare import prepare, verify
from maftplus.train.data.registry import (
    DATA_SETS,
    label_table,
    load_data_set,
    load_folder,
    semantic_labels,
    shrink,
    void_and_unlabelled,
)
from maftplus.train.run import _read_embeddings
from maftplus.vocabularies.files import VocabularyFile, load_vocabulary_file, map_ids, with_prompts

WORDS = VocabularyFile("words", ("cat", "grass"), (("cat",), ("grass",)), (0, 1))


def test_every_data_set_of_the_registry_has_a_sample_here():
    assert set(LAYOUTS) == set(DATA_SETS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_raw_annotations_become_training_ids(name, tmp_path):
    expected = LAYOUTS[name](tmp_path)
    prepare(name, tmp_path, num_workers=1, progress=False)
    dataset = load_data_set(name, tmp_path)
    sample = dataset[0]
    assert len(dataset) == 1
    assert sample["segmentation_map"].tolist() == expected
    assert sample["image"].size == (3, 2)
    findings = verify(name, tmp_path, num_workers=1, progress=False)
    assert len(findings) == 1
    assert "1 pictures of val, published are" in findings[0]


def test_the_root_may_be_the_data_sets_own_folder(tmp_path):
    make_coco_stuff(tmp_path)
    assert len(load_data_set("coco_stuff_171", tmp_path / "coco")) == 1


def test_panoptic_categories_become_training_ids_and_keep_crowds(tmp_path):
    make_coco_panoptic(tmp_path)
    sample = load_data_set("coco_panoptic", tmp_path)[0]
    assert [(s["id"], s["label_id"], s["iscrowd"]) for s in sample["segments_info"]] == [
        (5, 0, 0),
        (517, 15, 1),
        (196608, 132, 0),
    ]
    assert semantic_labels(sample, 255).tolist() == [[0, 15, 15], [132, 255, 0]]


def test_ade_panoptic_pastes_things_over_stuff_and_is_prepared_once(tmp_path):
    make_ade_panoptic(tmp_path)
    prepare("ade20k_panoptic", tmp_path, num_workers=1, progress=False)
    sample = load_data_set("ade20k_panoptic", tmp_path)[0]
    labels = [(s["id"], s["label_id"], s["area"]) for s in sample["segments_info"]]
    assert labels == [(1, 0, 1), (2, 1, 1), (3, 7, 1), (4, 12, 1)]
    assert sample["image_id"] == "ADE_val_00000001"
    assert "is complete" in prepare("ade20k_panoptic", tmp_path, num_workers=1, progress=False)[1]


def test_an_instance_with_two_categories_is_named(tmp_path):
    make_ade_panoptic(tmp_path)
    path = tmp_path / "ADEChallengeData2016/annotations_instance/validation/ADE_val_00000001.png"
    write(path, png_bytes(np.array([[(1, 1, 0), (2, 1, 0), (0, 0, 0)]] * 2), COLOUR))
    with pytest.raises(ValueError, match=r"annotations_instance.*instance 1 has the categories \[1, 2\]"):
        prepare("ade20k_panoptic", tmp_path, num_workers=1, progress=False)


def test_ade_panoptic_says_that_it_must_be_prepared(tmp_path):
    make_ade(tmp_path)
    with pytest.raises(FileNotFoundError, match="maftplus prepare ade20k_panoptic"):
        load_data_set("ade20k_panoptic", tmp_path)


def test_prepared_context_maps_replace_the_json_and_serve_the_459_classes_list(tmp_path):
    expected = make_context_59(tmp_path)
    make_context_459(tmp_path)
    assert "1 maps written" in prepare("pascal_context_59", tmp_path, num_workers=1, progress=False)[1]
    assert "0 maps written" in prepare("pascal_context_59", tmp_path, num_workers=1, progress=False)[1]
    (tmp_path / "VOCdevkit/VOC2010/trainval_merged.json").unlink()
    (tmp_path / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt").unlink()
    assert load_data_set("pascal_context_59", tmp_path)[0]["segmentation_map"].tolist() == expected
    assert len(load_data_set("pascal_context_459", tmp_path)) == 1


def test_training_pictures_that_are_void_everywhere_are_left_out_once_listed(tmp_path):
    make_coco_stuff(tmp_path, "train")
    picture(tmp_path / "coco/train2017/000000000009.jpg")
    write(tmp_path / "coco/stuffthingmaps/train2017/000000000009.png", png_bytes([[255] * 3] * 2))
    assert len(load_data_set("coco_stuff_171", tmp_path, "train")) == 2
    prepare("coco_stuff_171", tmp_path, num_workers=1, progress=False)
    assert [item.image_id for item in load_data_set("coco_stuff_171", tmp_path, "train").items] == ["000000000139"]


def test_zero_shot_training_never_sees_an_unseen_class(tmp_path):
    make_coco_stuff(tmp_path, "train")
    make_coco_stuff(tmp_path, "val")
    seen_only = load_data_set("coco_stuff_156_15", tmp_path, "train")[0]["segmentation_map"]
    assert seen_only.tolist() == [[0, 11, 255], [170, 255, 255]]  # cow and grass are unseen
    assert load_data_set("coco_stuff_156_15", tmp_path, "val")[0]["segmentation_map"].tolist()[1] == [170, 19, 112]


def test_large_ade_full_pictures_are_shrunk_to_a_short_side_of_512():
    labels = np.arange(4)[:, None].repeat(1024, 0).reshape(4, 1024).repeat(300, 0)[:1200].T[:1024]
    image, small = shrink(Image.new("RGB", labels.shape[::-1]), labels, 512)
    assert image.size == small.shape[::-1] == (600, 512)
    assert small[0, [0, 149, 150, 599]].tolist() == labels[0, [0, 298, 300, 1198]].tolist()


def make_folder(root: Path, rows, depth: int = 8, size: tuple[int, int] = (2, 3)) -> tuple[Path, Path]:
    picture(root / "pictures/a.jpg", *size)
    return root / "pictures", write(root / "maps/a.png", png_bytes(rows, depth=depth)).parent


def test_a_folder_of_sixteen_bit_maps_with_65535_as_unlabelled(tmp_path):
    words = VocabularyFile("w", ("a", "b"), (("a",), ("b",)), (300, 40000))
    folders = make_folder(tmp_path, [[300, 40000, 65535]] * 2, depth=16)
    sample = load_folder(*folders, words, ignore_index=65535)[0]
    assert sample["segmentation_map"].tolist() == [[0, 1, 65535]] * 2


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64"])
def test_reducing_labels_keeps_254_and_255_apart(dtype):
    many = VocabularyFile("many", *[tuple(map(str, range(254)))] * 2, tuple(range(254)))
    reduced = map_ids(np.array([[0, 1, 2, 254, 255]]).astype(dtype), label_table(many, {255}, 255, True), -1)
    assert reduced.tolist() == [[255, 0, 1, 253, 255]]


def test_a_folder_numbered_from_one_is_reduced(tmp_path):
    sample = load_folder(*make_folder(tmp_path, [[0, 1, 2]] * 2), WORDS, do_reduce_labels=True)[0]
    assert sample["segmentation_map"].tolist() == [[255, 0, 1]] * 2


def test_bad_files_of_a_folder_are_named(tmp_path):
    pictures, maps = make_folder(tmp_path, [[0, 1, 7]] * 2)
    with pytest.raises(ValueError, match=r"a\.png: the ids 7 are not in the vocabulary words"):
        load_folder(pictures, maps, WORDS)[0]
    write(maps / "a.png", png_bytes([[0, 1]]))
    with pytest.raises(ValueError, match=r"a\.png is 1 x 2 .* but .*a\.jpg is 2 x 3"):
        load_folder(pictures, maps, WORDS)[0]
    write(maps / "a.png", b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as a picture"):
        load_folder(pictures, maps, WORDS)[0]
    write(maps / "a.png", png_bytes(np.zeros((2, 3, 3)), COLOUR))
    with pytest.raises(ValueError, match=r"a\.png: a label map has one channel"):
        load_folder(pictures, maps, WORDS)[0]
    (maps / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg has no label map"):
        load_folder(pictures, maps, WORDS)


def test_a_truncated_picture_is_named(tmp_path):
    folders = make_folder(tmp_path, [[0] * 300] * 300, size=(300, 300))
    path = folders[0] / "a.jpg"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as a picture"):
        load_folder(*folders, WORDS)[0]


def test_verify_names_every_bad_file(tmp_path):
    make_ade(tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    picture(folder / "images/validation/ADE_val_00000002.jpg")
    picture(folder / "images/validation/ADE_val_00000003.jpg", 4, 4)
    picture(folder / "images/validation/ADE_val_00000004.jpg")
    write(folder / "annotations/validation/ADE_val_00000003.png", png_bytes([[1, 2, 3]] * 2))
    write(folder / "annotations/validation/ADE_val_00000004.png", png_bytes([[1, 2, 151]] * 2))
    count, missing, size, outside = verify("ade20k_150", tmp_path, num_workers=1, progress=False)
    assert "4 pictures of val, published are 2000" in count
    assert "ADE_val_00000002.png does not exist" in missing
    assert "ADE_val_00000003.png: (2, 3)" in size
    assert "ADE_val_00000004.png: the ids 151 are not in the vocabulary" in outside


def test_verify_compares_listed_segments_with_the_map(tmp_path):
    make_coco_panoptic(tmp_path)
    path = tmp_path / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    segments = content["annotations"][0]["segments_info"]
    segments[0]["area"] = 9
    segments.append({"id": 77, "category_id": 1})
    path.write_text(json.dumps(content))
    findings = "\n".join(verify("coco_panoptic", tmp_path, num_workers=1, progress=False))
    assert "segment 5 has 2 pixels, its listed area is 9" in findings
    assert "segment 77 is listed but has no pixel" in findings
    del segments[0]
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"000000000139\.png: the segment ids \[5\] are in the map but not in the list"
    ):
        load_data_set("coco_panoptic", tmp_path)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a JSON file"), ('{"images": []}', "lacks `annotations`"), ("[]", "lacks `annotations`")],
)
def test_a_bad_panoptic_json_is_named(content, message, tmp_path):
    make_coco_panoptic(tmp_path)
    write(tmp_path / "coco/annotations/panoptic_val2017.json", content)
    with pytest.raises(ValueError, match=rf"panoptic_val2017\.json: .*{message}"):
        load_data_set("coco_panoptic", tmp_path)


def test_a_mat_file_without_a_label_map_is_named(tmp_path):
    make_context_459(tmp_path)
    write(tmp_path / "VOCdevkit/VOC2010/trainval/2008_000002.mat", mat_bytes("Other", [[1]]))
    with pytest.raises(ValueError, match=r"2008_000002\.mat: no \.mat file with a `LabelMap`"):
        load_data_set("pascal_context_459", tmp_path)[0]


def test_unknown_names_splits_and_roots_are_errors(tmp_path):
    with pytest.raises(ValueError, match="No data set is called 'ade'; there are ade20k_150"):
        load_data_set("ade", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_data_set("ade20k_150", tmp_path / "nowhere")
    with pytest.raises(ValueError, match='"train" or "val"'):
        load_data_set("ade20k_150", tmp_path, "test")


def hub_rows(labels=(0, 1, 255)):
    image = Image.new("RGB", (3, 2))
    return [{"image": image, "label": Image.fromarray(np.array([labels] * 2, dtype=np.uint8))} for _ in range(5)]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_hub_rows_become_samples_and_processes_share_them(is_streamed):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(hub_rows())
    hub = HubDataset("words", rows.to_iterable_dataset() if is_streamed else rows, WORDS)
    names = [[sample["name"] for sample in hub.samples(rank, 2)] for rank in range(2)]
    assert names == [["0", "2", "4"], ["1", "3"]]
    assert next(iter(hub))["segmentation_map"].tolist() == [[0, 1, 255]] * 2
    assert len(list(hub.samples(max_samples=3))) == 3


def test_bad_hub_rows_are_named():
    with pytest.raises(ValueError, match="words, row 0: the ids 9 are not in the vocabulary"):
        next(iter(HubDataset("words", hub_rows((0, 1, 9)), WORDS)))
    with pytest.raises(ValueError, match=r"words has the columns \['image', 'label'\], not 'mask'"):
        next(iter(HubDataset("words", hub_rows(), WORDS, label_column="mask")))


def test_vocabularies_have_the_published_sizes_and_splits():
    sizes = {name: load_vocabulary_file(row.vocabulary).num_labels for name, row in DATA_SETS.items()}
    assert sizes["ade20k_847"] == 847
    assert sizes["pascal_context_459"] == 459
    assert sizes["coco_panoptic"] == 133
    unseen = {
        name: len(load_vocabulary_file(name).unseen) for name in ("ade20k_847", "coco_stuff_171", "pascal_voc_20")
    }
    assert unseen == {"ade20k_847": 275, "coco_stuff_171": 15, "pascal_voc_20": 5}
    ade = load_vocabulary_file("ade20k_panoptic_150")
    assert (len(ade.things), len(ade.stuff)) == (100, 50)
    assert all(load_vocabulary_file(row.vocabulary).source for row in DATA_SETS.values())


def test_no_synonym_of_ours_is_another_class():
    for name in {row.vocabulary for row in DATA_SETS.values()}:
        vocabulary = load_vocabulary_file(name)
        official = {part.strip() for names in vocabulary.names for part in names.split(",")}
        repeated = [word for word in vocabulary.repeated_names() if word not in official]
        assert not repeated, f"{name}: {repeated}"


def test_a_published_prompt_file_is_read_and_the_first_class_of_a_name_wins(tmp_path):
    path = write(tmp_path / "words.txt", "0:invalid_class_id\n7:cat,kitten\n3:dog, puppy,kitten\n9:tree\n")
    vocabulary = load_vocabulary_file(path)
    assert vocabulary.classes == (("cat", "kitten"), ("dog", "puppy", "kitten"), ("tree",))
    assert vocabulary.raw_ids == (7, 3, 9)
    assert vocabulary.repeated_names() == {"kitten": [0, 1]}


def test_names_alone_are_numbered_from_zero(tmp_path):
    vocabulary = load_vocabulary_file(write(tmp_path / "words.txt", "cat, kitten\ntraffic light\n\n"))
    assert vocabulary.names == ("cat", "traffic light")
    assert vocabulary.raw_ids == (0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no class"),
        ("1:cat\n2:,\n", "line 2: a class without a name"),
        ("1:cat\n1:dog\n", "line 2 gives the id 1 a second time"),
    ],
)
def test_a_bad_vocabulary_file_is_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"words\.txt.*{message}"):
        load_vocabulary_file(write(tmp_path / "words.txt", content))


def test_prompts_of_a_file_replace_those_of_a_data_set_class_by_class(tmp_path):
    voc = load_vocabulary_file("pascal_voc_20")
    other = load_vocabulary_file(write(tmp_path / "words.txt", "".join(f"{i}:word{i}\n" for i in range(20))))
    assert with_prompts(voc, other).classes[3] == ("word3",)
    assert with_prompts(voc, other).raw_ids == voc.raw_ids
    with pytest.raises(ValueError, match="has 2 classes, but pascal_voc_20 has 20"):
        with_prompts(voc, WORDS)


def test_an_unknown_vocabulary_names_those_there_are():
    with pytest.raises(FileNotFoundError, match="ade20k_150"):
        load_vocabulary_file("nonsense")


def test_a_local_folder_that_datasets_reads_is_a_hub_data_set_with_a_short_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "blocks").mkdir()
    datasets.Dataset.from_list(hub_rows()).to_parquet(tmp_path / "blocks" / "train.parquet")
    hub = load_hub(str(tmp_path / "blocks"), "train", WORDS, streaming=True)
    assert (hub.name, len(list(hub))) == ("blocks", 5)


def test_training_reads_sixteen_bit_and_float_pictures_as_inference_does(tmp_path):
    pictures, maps = make_folder(tmp_path, [[0, 1, 0]] * 2)
    (pictures / "a.jpg").unlink()
    values = np.array([[0, 12850, 65535]] * 2, dtype=np.uint16)  # 12850 = 50 * 257
    Image.fromarray(values).save(pictures / "a.tif")
    sixteen = np.asarray(load_folder(pictures, maps, WORDS)[0]["image"])
    assert sixteen[..., 0].tolist() == [[0, 50, 255]] * 2
    Image.fromarray(values.astype(np.float32) / 65535).save(pictures / "a.tif")
    assert np.asarray(load_folder(pictures, maps, WORDS)[0]["image"])[..., 0].tolist() == [[0, 50, 255]] * 2


def test_hub_pictures_are_read_as_inference_does():
    rows = hub_rows()
    rows[0]["image"] = Image.fromarray(np.full((2, 3), 12850, dtype=np.uint16))
    assert np.asarray(next(iter(HubDataset("words", rows, WORDS)))["image"]).max() == 50


def test_label_maps_that_collide_are_an_error(tmp_path):
    pictures, maps = make_folder(tmp_path, [[0, 1, 0]] * 2)
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(maps / "a.tif")
    with pytest.raises(ValueError, match=r"a\.png and a\.tif: which is the label map"):
        load_folder(pictures, maps, WORDS)


def test_what_is_ignored_is_so_even_if_a_class_has_its_number(tmp_path):
    three = VocabularyFile("three", ("a", "b", "c"), (("a",), ("b",), ("c",)), (0, 1, 2))
    folder = load_folder(*make_folder(tmp_path, [[0, 1, 2]] * 2), three, ignore_index=1)
    rows = [{"image": Image.new("RGB", (3, 2)), "label": Image.fromarray(np.array([[0, 1, 2]] * 2, np.uint8))}]
    options = dict(zip(("ignore_index", "unlabelled"), void_and_unlabelled(three, 1)))
    for sample in (folder[0], next(iter(HubDataset("three", rows, three, **options)))):
        assert sample["segmentation_map"].tolist() == [[0, 255, 2]] * 2


def test_a_class_does_not_vanish_because_its_training_id_means_unlabelled_in_the_files(tmp_path):
    from_one = VocabularyFile("from_one", ("a", "b"), (("a",), ("b",)), (1, 2))
    folder = load_folder(*make_folder(tmp_path, [[0, 1, 2]] * 2), from_one, ignore_index=0)
    assert folder[0]["segmentation_map"].tolist() == [[255, 0, 1]] * 2
    assert folder.ignore_index == 255


def test_label_maps_of_one_bit_are_read_and_of_floats_refused(tmp_path):
    pictures, maps = make_folder(tmp_path, [[0, 1, 0]] * 2)
    Image.fromarray(np.array([[False, True, False]] * 2)).save(maps / "a.png")
    assert load_folder(pictures, maps, WORDS)[0]["segmentation_map"].tolist() == [[0, 1, 0]] * 2
    (maps / "a.png").unlink()
    Image.fromarray(np.zeros((2, 3), np.float32)).save(maps / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: a label map holds integers"):
        load_folder(pictures, maps, WORDS)[0]


def test_a_segment_that_is_listed_twice_is_named(tmp_path):
    make_coco_panoptic(tmp_path)
    path = tmp_path / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].append({"id": 5, "category_id": 17})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"000000000139\.png: the segment ids \[5\] are listed twice"):
        load_data_set("coco_panoptic", tmp_path)[0]


@pytest.mark.parametrize(
    "content",
    [
        b'{"annotations": [{}]}',
        b'{"annotations": 3}',
        '{"a": "\u00e9"}'.encode("latin-1"),
        "{}".encode("utf-16"),
        b"[" * 99999,
    ],
)
def test_annotation_files_that_cannot_be_read_are_named(content, tmp_path):
    make_coco_panoptic(tmp_path)
    write(tmp_path / "coco/annotations/panoptic_val2017.json", content)
    with pytest.raises(ValueError, match=r"panoptic_val2017\.json"):
        load_data_set("coco_panoptic", tmp_path)


@pytest.mark.parametrize("name", ["coco_stuff_171", "ade20k_panoptic", "ade20k_150"])
def test_preparing_a_wrong_folder_is_an_error(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"holds nothing of {name}"):
        prepare(name, tmp_path, num_workers=1, progress=False)


@pytest.mark.parametrize("splits", [["train", "validation"], ["train", "test"], ["train", "val", "test"]])
def test_the_evaluation_split_of_hub_data_goes_by_several_names(splits):
    assert find_split("words", "val", splits) == splits[1]


def test_a_split_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="words has no split 'test'; it has train"):
        find_split("words", "test", ["train"])


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 6], "counts": [0, 5]},  # pycocotools: what happens to lie in memory
        {"size": [4, 6], "counts": [-5, 29]},
        {"size": [2**32, 2], "counts": [0, 1]},  # pycocotools: ends the process
        {"size": [4, 6], "counts": "o"},
        {"size": [4, 6], "counts": None},
        {"size": [4], "counts": [24]},
        7,
    ],
)
def test_runs_that_do_not_add_up_are_no_mask(rle):
    with pytest.raises(ValueError, match="^here: "):
        decode_run_lengths(rle, "here")


def test_our_reading_of_run_lengths_is_cocos():
    coco_mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.5, 1.0):
        mask = rng.random((70, 90)) < density
        mask[20:50, 10:80] = density < 0.5
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert (decode_run_lengths(encoded, "here") == mask).all()


@pytest.mark.parametrize("field", ["image_id", "file_name", "phase", "height"])
def test_a_row_of_the_merged_json_that_lacks_something_is_named(field, tmp_path):
    image = {"image_id": 1, "file_name": "a.jpg", "phase": "val", "height": 4, "width": 6}
    del image[field]
    path = write(tmp_path / "merged.json", json.dumps({"images": [image], "annos_segmentation": []}))
    with pytest.raises(ValueError, match=rf"merged\.json, `images` 0: `{field}` is missing"):
        load_merged_json(path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x80\x04K\x01."])
def test_class_embeddings_that_are_no_numbers_are_named(content, tmp_path):
    path = write(tmp_path / "rows.npy", content)
    with pytest.raises(ValueError, match=r"`class_embeddings`: .*rows\.npy is no \.npy file"):
        _read_embeddings(str(path))


def test_a_label_map_that_is_a_program_is_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png", "EPS")
    with pytest.raises(ValueError, match=r"a\.png.*another program"):
        read_label_png(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize("is_packed", [True, False])
def test_our_reading_of_mat_files_is_scipys(dtype, is_packed, tmp_path):
    labels = np.arange(35, dtype=dtype).reshape(5, 7)
    content = {"a": np.ones((2, 2)), "names": {"b": "text"}, "LabelMap": labels}
    savemat(tmp_path / "a.mat", content, do_compression=is_packed)
    assert (read_context_mat(tmp_path / "a.mat") == labels).all()


def test_a_mat_file_cut_anywhere_or_without_whole_numbers_is_named(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"LabelMap": np.ones((3, 4))}, do_compression=True)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.mat: no \.mat file"):
            read_context_mat(path)
    for values in (np.full((2, 2), 0.5), np.full((2, 2), np.nan), np.ones((2, 2), complex), np.ones((2, 2, 2))):
        savemat(path, {"LabelMap": values})
        with pytest.raises(ValueError, match=r"a\.mat: no \.mat file"):
            read_context_mat(path)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([{"id": 1}], "`segments_info` 0: `category_id` is missing"),
        ([{"category_id": 1}], "`segments_info` 0: `id` is missing"),
        ([7], "`segments_info` 0: `id` is missing"),
        ({"id": 1}, "`segments_info` must be a list"),
        ([{"id": 1, "category_id": 1, "iscrowd": "no"}], "`iscrowd` and `area` of segment 1 must be numbers"),
    ],
)
def test_a_segment_that_lacks_something_is_named_with_its_map(segments, message, tmp_path):
    make_coco_panoptic(tmp_path)
    path = tmp_path / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"] = segments
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"000000000139\.png: {message}"):
        load_data_set("coco_panoptic", tmp_path)


@pytest.mark.parametrize("category", [-1, 1 << 31])
def test_a_category_that_no_label_map_can_hold_is_named(category, tmp_path):
    image = {"image_id": 1, "file_name": "a.jpg", "phase": "val", "height": 4, "width": 6}
    annotation = {"image_id": 1, "category_id": category, "segmentation": {"size": [4, 6], "counts": [0, 24]}}
    document = {"images": [image], "annos_segmentation": [annotation]}
    path = write(tmp_path / "merged.json", json.dumps(document))
    with pytest.raises(ValueError, match=rf"merged\.json, image 1: there is no category {category}"):
        load_merged_json(path).read(1)
