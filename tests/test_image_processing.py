"""The image processor: sizes, every kind of picture, padding, training targets, saving, clear errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's top level wants torchvision

from maftplus.image_processing_maftplus import (
    MaftPlusImageProcessor,
    MaftPlusImageProcessorPil,
    read_picture,
    resized_size,
)

SIZE = {"shortest_edge": 32, "longest_edge": 64}
ORIENTATION = 274


def pixels(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    """A smooth colour picture (H, W, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def processor(**fields) -> MaftPlusImageProcessorPil:
    return MaftPlusImageProcessorPil(**{"size": SIZE, "size_divisor": 16, **fields})


def pixel_values(images, **fields) -> torch.Tensor:
    return processor(**fields)(images, return_tensors="pt").pixel_values


# --- Sizes, rescaling, padding ---


@pytest.mark.parametrize(
    ("old", "new"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((427, 640), (800, 1199)), ((300, 1000), (400, 1333))],
)
def test_sizes_are_rounded_half_up_and_the_longest_edge_limits_them(old, new):
    assert resized_size(*old, {"shortest_edge": 800, "longest_edge": 1333}) == new


def test_a_very_long_picture_keeps_at_least_one_pixel():
    assert resized_size(1, 100_000, {"shortest_edge": 800, "longest_edge": 1333}) == (1, 1333)


@pytest.mark.parametrize(
    ("size", "new"),
    [({"height": 5, "width": 7}, (5, 7)), ({"shortest_edge": 8}, (8, 16)), ({"longest_edge": 8}, (4, 8))],
)
def test_other_forms_of_size_are_understood(size, new):
    assert resized_size(20, 40, size) == new


def test_a_size_without_edges_is_an_error():
    with pytest.raises(ValueError, match="`size`"):
        resized_size(20, 40, {})


def test_pixels_are_resized_by_pil_then_normalised_then_padded_with_zeros():
    image = pixels()
    features = processor()(image, return_tensors="pt")
    resized = np.asarray(Image.fromarray(image).resize((53, 32), Image.Resampling.BILINEAR))
    mean, std = (np.array(values) for values in (processor().image_mean, processor().image_std))
    expected = torch.from_numpy(((resized / 255 - mean) / std).transpose(2, 0, 1)).float()
    assert features.pixel_values.shape == (1, 3, 32, 64)
    assert_close(features.pixel_values[0, :, :, :53], expected, atol=1e-5, rtol=1e-5)
    assert not features.pixel_values[0, :, :, 53:].any()
    assert features.pixel_mask[0, :, :53].all()
    assert not features.pixel_mask[0, :, 53:].any()


def test_a_batch_is_padded_to_its_largest_picture():
    features = processor()([pixels(24, 40), pixels(40, 24)], return_tensors="pt")
    assert features.pixel_values.shape == (2, 3, 64, 64)
    assert features.pixel_mask.sum((1, 2)).tolist() == [32 * 53, 53 * 32]


def test_a_picture_gives_the_same_numbers_alone_and_in_a_batch():
    alone, batch = pixel_values(pixels()), pixel_values([pixels(), pixels(40, 24)])
    assert_close(batch[0, :, :32, :53], alone[0, :, :, :53])


def test_every_step_can_be_switched_off():
    image = pixels()
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_pad": False}
    assert_close(pixel_values(image, **off)[0], torch.from_numpy(image.copy()).permute(2, 0, 1).float())
    rescaled = pixel_values(image, **{**off, "do_rescale": True})[0]
    assert_close(rescaled, torch.from_numpy(image.copy()).permute(2, 0, 1) / 255)


def test_pad_size_is_kept_and_too_small_a_one_is_an_error():
    assert pixel_values(pixels(), pad_size={"height": 96, "width": 80}).shape == (1, 3, 96, 80)
    with pytest.raises(ValueError, match="`pad_size`"):
        pixel_values(pixels(), pad_size={"height": 16, "width": 80})


def test_arguments_of_a_call_override_the_fields():
    assert processor()(pixels(), size={"height": 16, "width": 16}, return_tensors="pt").pixel_values.shape[-2:] == (
        16,
        16,
    )


def test_without_return_tensors_arrays_come_back():
    features = processor()([pixels(), pixels()])
    assert isinstance(features["pixel_values"], list)
    assert features["pixel_values"][1].shape == (3, 32, 64)


# --- Every kind of picture ---


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX", "La", "RGBa"])
def test_every_mode_gives_the_pixels_of_its_rgb_form(mode):
    source = Image.fromarray(pixels())
    if mode in ("La", "RGBa"):
        source = source.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    image = source.convert(mode)
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}[mode]) if mode in ("La", "RGBa") else image
    assert_close(pixel_values(image), pixel_values(straight.convert("RGB")))


def test_lab_pictures_come_close_to_their_rgb_form():
    lab = Image.new("LAB", (8, 8), (128, 128, 128))  # half bright, no colour
    grey = np.asarray(read_picture(lab)).astype(int)
    assert np.ptp(grey) <= 3
    assert abs(grey.mean() - 119) < 3


def test_a_palette_with_transparency_reads_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(pixels()).convert("RGB").quantize(8)
    image.info["transparency"] = bytes(range(8))
    image.save(tmp_path / "palette.png")
    read = np.asarray(read_picture(tmp_path / "palette.png"))
    assert np.array_equal(read, np.asarray(image.convert("RGBA"))[..., :3])
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_keep_their_high_byte(tmp_path, dtype):
    grey = pixels()[..., 0]
    wide = (grey.astype(np.uint16) << 8) + 200
    path = tmp_path / "wide.png"
    Image.fromarray(wide.astype(np.uint16)).save(path)
    expected = pixel_values(grey)
    assert_close(pixel_values(wide.astype(dtype)), expected)
    assert_close(pixel_values(str(path)), expected)
    assert_close(pixel_values(Image.open(path)), expected)


def test_wide_integers_that_fit_eight_bits_are_taken_as_they_are():
    assert_close(pixel_values(pixels().astype(np.int64)), pixel_values(pixels()))
    assert_close(pixel_values(Image.fromarray(pixels()[..., 0].astype(np.int32))), pixel_values(pixels()[..., 0]))


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_float_arrays_in_either_range_equal_the_eight_bit_picture(scale):
    assert_close(pixel_values(pixels() / np.float32(255 / scale)), pixel_values(pixels()), atol=1e-5, rtol=1e-5)


def test_floats_that_were_rescaled_before_are_not_rescaled_again():
    unit = pixels() / np.float32(255)
    assert_close(pixel_values(unit, do_rescale=False), pixel_values(pixels()), atol=1e-5, rtol=1e-5)


def test_floats_outside_of_pictures_ranges_are_resized_without_being_cut():
    image = pixels().astype(np.float32) / 50 - 2
    values = pixel_values(image, do_rescale=False, do_normalize=False)
    assert -2 <= values.min() < -1
    assert values.max() > 2


@pytest.mark.parametrize("convert", [lambda x: x, torch.from_numpy])
def test_channels_may_stand_first_or_last_or_be_missing(convert):
    image = pixels()
    expected = pixel_values(image)
    assert_close(pixel_values(convert(image.copy())), expected)
    assert_close(pixel_values(convert(image.transpose(2, 0, 1).copy())), expected)
    grey = image[..., 0].copy()
    assert_close(pixel_values(convert(grey)), pixel_values(np.stack([grey] * 3, -1)))
    assert_close(pixel_values(convert(grey[..., None].copy())), pixel_values(convert(grey)))


def test_a_fourth_channel_is_dropped_and_bfloat16_is_read():
    image = pixels()
    assert_close(pixel_values(np.concatenate([image, image[..., :1]], -1)), pixel_values(image))
    assert pixel_values(torch.from_numpy(image.copy()).bfloat16()).shape == (1, 3, 32, 64)


def test_an_array_of_several_pictures_is_a_batch():
    batch = np.stack([pixels(seed=0), pixels(seed=1)])
    assert_close(pixel_values(batch), pixel_values([pixels(seed=0), pixels(seed=1)]))
    assert_close(pixel_values(torch.from_numpy(batch).permute(0, 3, 1, 2)), pixel_values(batch))


def test_input_data_format_decides_where_shapes_do_not():
    image = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_pad": False}
    last = processor(**off)(image, input_data_format="channels_last", return_tensors="pt").pixel_values
    first = processor(**off)(image, input_data_format="channels_first", return_tensors="pt").pixel_values
    assert last.shape == (1, 3, 3, 4)
    assert first.shape == (1, 3, 4, 3)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown after a quarter turn
    image.save(tmp_path / "turned.png", exif=exif)
    expected = pixel_values(image.transpose(Image.Transpose.ROTATE_270))
    assert_close(pixel_values(str(tmp_path / "turned.png")), expected)
    assert_close(pixel_values(Image.open(tmp_path / "turned.png")), expected)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    frames = [Image.fromarray(np.full((24, 40, 3), value, np.uint8)) for value in (200, 20)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert abs(int(np.asarray(read_picture(path)).mean()) - 200) <= 2


# --- Clear errors ---


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "half.jpg"
    Image.fromarray(pixels(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.jpg"):
        pixel_values(str(path))


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.png"):
        pixel_values(tmp_path / "notes.png")


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"nowhere\.png"):
        pixel_values("nowhere.png")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(pixels(40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png.*decompression bomb"):
        pixel_values(str(tmp_path / "bomb.png"))


@pytest.mark.parametrize("image", [np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 4, 0), Image.new("RGB", (0, 4))])
def test_a_picture_of_zero_size_is_refused(image):
    with pytest.raises(ValueError, match="zero size"):
        pixel_values(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9, 7), np.uint8), "1 to 4 channels"),
        (np.zeros(4, np.uint8), "axes"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
        (np.zeros((4, 4, 3), complex), "numbers"),
        (np.full((4, 4), -3), "0 and 65535"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        pixel_values(image)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="`images`"):
        pixel_values([{"path": "x.png"}])


@pytest.mark.parametrize("fields", [{"semantic_resize": "both"}, {"size_divisor": -1}])
def test_impossible_fields_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        processor(**fields)


# --- Training targets ---

UNCHANGED = {"do_resize": False, "size_divisor": 8}


def targets(segmentation_map, ids=None, **fields):
    label_map = np.asarray(segmentation_map)
    features = processor(**{**UNCHANGED, **fields})(
        np.zeros((*label_map.shape[-2:], 3), np.uint8),
        segmentation_maps=segmentation_map,
        instance_id_to_semantic_id=ids,
        return_tensors="pt",
    )
    return features["mask_labels"][0], features["class_labels"][0]


def test_every_class_of_a_map_becomes_a_mask_at_the_padded_size():
    masks, classes = targets(np.array([[3, 3, 255], [7, 3, 7]], np.uint8))
    assert classes.tolist() == [3, 7]
    assert masks.shape == (2, 8, 8)
    assert masks.dtype == torch.bool
    assert masks[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert masks.sum() == 5


def test_instances_of_one_class_stay_apart():
    masks, classes = targets(np.array([[1, 1, 2], [2, 300, 255]], np.uint16), {1: 5, 2: 5, 300: 0})
    assert classes.tolist() == [5, 5, 0]
    assert masks.sum((1, 2)).tolist() == [2, 2, 1]


def test_an_instance_id_with_a_class_counts_even_if_it_equals_ignore_index():
    assert targets(np.array([[255, 1]]), {255: 4, 1: 2})[1].tolist() == [2, 4]


def test_an_instance_whose_class_is_ignored_is_left_out():
    assert targets(np.array([[1, 2]]), {1: 255, 2: 3})[1].tolist() == [3]


def test_reducing_labels_ignores_zero_and_counts_down_past_255():
    masks, classes = targets(np.array([[0, 1, 2], [255, 256, 0]], np.uint16), do_reduce_labels=True)
    assert classes.tolist() == [0, 1, 254, 255]
    assert masks.sum() == 4
    assert targets(np.array([[0, 1, 254, 255]], np.uint8), do_reduce_labels=True)[1].tolist() == [0, 253, 254]


def test_reducing_labels_reduces_the_classes_of_instances():
    ids = {7: 1, 8: 0, 9: 3}
    assert targets(np.array([[7, 8, 9, 0]]), ids, do_reduce_labels=True)[1].tolist() == [0, 2]


def test_a_map_that_is_all_ignored_gives_no_masks():
    masks, classes = targets(np.full((6, 5), 255, np.uint8))
    assert masks.shape == (0, 8, 8)
    assert classes.shape == (0,)
    assert classes.dtype == torch.int64


def test_without_ignore_index_every_value_is_a_class():
    image = np.zeros((1, 2, 3), np.uint8)
    features = processor(**UNCHANGED)(image, np.array([[255, 0]]), ignore_index=None, return_tensors="pt")
    assert features["class_labels"][0].tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_maps_of_any_width_are_resized_to_the_nearest_pixel_as_pil_does(dtype):
    label_map = np.random.default_rng(0).integers(0, 200, (24, 40))
    masks, classes = targets(label_map.astype(dtype), do_resize=True, size_divisor=1)
    ours = (masks * classes[:, None, None]).sum(0)
    expected = Image.fromarray(label_map.astype(np.int32)).resize((53, 32), Image.Resampling.NEAREST)
    assert np.array_equal(ours.numpy(), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "P", "I", "I;16"])
def test_maps_may_be_pil_pictures_or_files(tmp_path, mode):
    label_map = np.array([[0, 1], [2, 1]], np.uint16 if mode == "I;16" else np.int32 if mode == "I" else np.uint8)
    picture = Image.fromarray(label_map)
    if mode == "P":
        picture.putpalette([10, 20, 30] * 256)
    assert picture.mode == mode
    picture.save(tmp_path / "map.tiff")
    for source in (picture, tmp_path / "map.tiff"):
        features = processor(**UNCHANGED)(np.zeros((2, 2, 3), np.uint8), source, return_tensors="pt")
        assert features["class_labels"][0].tolist() == [0, 1, 2]


def test_every_picture_of_a_batch_may_have_its_own_ids():
    image, label_map = np.zeros((2, 2, 3), np.uint8), np.array([[1, 1], [2, 2]])
    features = processor(**UNCHANGED)(
        [image, image], [label_map, label_map], [{1: 0, 2: 1}, {1: 8, 2: 9}], return_tensors="pt"
    )
    assert [classes.tolist() for classes in features["class_labels"]] == [[0, 1], [8, 9]]


@pytest.mark.parametrize(
    ("maps", "ids", "message"),
    [
        (np.zeros((2, 3), int), None, "a map of"),
        ([np.zeros((2, 2), int)] * 2, None, "2 maps for 1 images"),
        (np.zeros((2, 2), np.float32), None, "integers"),
        (np.zeros((2, 2), int), {1: 1}, "no class for the id 0"),
        (np.zeros((2, 2), int), [{0: 1}, {0: 2}], "2 dictionaries"),
    ],
)
def test_maps_that_do_not_fit_are_refused(maps, ids, message):
    with pytest.raises(ValueError, match=message):
        processor(**UNCHANGED)(np.zeros((2, 2, 3), np.uint8), maps, ids)


# --- Saving and loading ---


def test_saving_keeps_every_field_and_names_both_backends(tmp_path):
    processor(semantic_resize="mask_logits", ignore_index=65535).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, MaftPlusImageProcessorPil)
    assert (loaded.semantic_resize, loaded.ignore_index, loaded.size_divisor) == ("mask_logits", 65535, 16)
    loaded.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert written["auto_map"]["AutoImageProcessor"].keys() == {"torchvision", "pil"}
    assert written["image_processor_type"] == "MaftPlusImageProcessor"
    assert_close(loaded(pixels(), return_tensors="pt").pixel_values, pixel_values(pixels()))


def test_saving_takes_along_the_code_that_the_remote_class_needs(tmp_path):
    processor().save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.glob("*.py")}
    travelling = ("image_processing", "postprocessing", "predictions", "reading")
    assert names == {f"{name}_maftplus.py" for name in travelling}


def test_both_backends_do_the_same_without_torchvision():
    torchvision_backend = MaftPlusImageProcessor(size=SIZE, size_divisor=16)
    assert_close(torchvision_backend(pixels(), return_tensors="pt").pixel_values, pixel_values(pixels()))
