"""Pictures in, results out: resizing, normalising, padding, label maps; semantic, instance and panoptic results.

Sources: MAFT+, arXiv 2408.00744, and FC-CLIP, arXiv 2308.02487 (inference); Mask2Former, arXiv 2112.01527 (the three
post-processings). Nothing here needs torchvision: resizing is PIL's antialiased one on 8-bit pixels, which the
published weights were trained on, whichever backend class transformers picks.
Coordinate frames, outermost first: target h x w (`target_sizes`), unpadded input, padded input H x W (bottom and right
of the unpadded one), mask grid (usually a quarter of the padded input).
Shapes: B images, Q queries, K classes (+1 = void, last), N objects of one image.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    SizeDict,
    infer_channel_dimension_format,
    load_image,
)
from transformers.processing_utils import ImagesKwargs

SEMANTIC_RESIZES = ("class_maps", "mask_logits")
AUTO_MAP = {
    "torchvision": "image_processing_maftplus.MaftPlusImageProcessor",
    "pil": "image_processing_maftplus.MaftPlusImageProcessorPil",
}
# Results are made in square tiles of the target; no more class scores than this are held at once.
TILE_EDGE = 128
TILE_NUMBERS = 1 << 21
BLOCK = 4  # points of the mask grid, down and across, whose candidate classes are found together
FEW = 32  # up to this many classes the shortest way is the fastest
ROUNDING = 1e-5  # bounds are widened by this much, so that rounding never excludes a winner


class MaftPlusImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to 32):
        Pictures are padded (never stretched) at the bottom and right, with zeros after normalisation, to a multiple.
    ignore_index (`int`, *optional*, defaults to 255):
        The value of `segmentation_maps` that is no object and no class.
    do_reduce_labels (`bool`, *optional*, defaults to `False`):
        The value 0 of `segmentation_maps` is ignored and every other one counts down by one.
    semantic_resize (`str`, *optional*, defaults to `"class_maps"`):
        What semantic post-processing resizes to the target: `"class_maps"`, or `"mask_logits"` as released panoptic
        models do.
    """

    size_divisor: int
    ignore_index: int | None
    do_reduce_labels: bool
    semantic_resize: str


class MaftPlusImageProcessorMixin:
    """What the two backend classes share: everything. See the module's docstring for the coordinate frames."""

    valid_kwargs = MaftPlusImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    resample = Image.Resampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_pad = True
    size_divisor = 32
    ignore_index = 255
    do_reduce_labels = False
    semantic_resize = "class_maps"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.semantic_resize not in SEMANTIC_RESIZES:
            raise ValueError(f"`semantic_resize` must be one of {SEMANTIC_RESIZES}, got {self.semantic_resize!r}.")
        if self.size_divisor < 1:
            raise ValueError(f"`size_divisor` must be at least 1, got {self.size_divisor}.")

    def to_dict(self) -> dict[str, Any]:
        """Every field, with both backends in `auto_map` whichever one this is (saving would name only its own)."""
        fields = super().to_dict()
        fields["auto_map"] = {**(fields.get("auto_map") or {}), "AutoImageProcessor": dict(AUTO_MAP)}
        return fields

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: list[dict[int, int]] | dict[int, int] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Prepare pictures, and training targets where label maps are given.

        Args:
            images: One or many of: PIL picture (any mode), path, URL, `data:` string, NumPy array or tensor (H, W),
                (H, W, C), (C, H, W) or a batch of them. 16-bit numbers keep their high byte, as PIL does for 16-bit
                colour; 32-bit ones are 8-bit where none exceeds 255; floats lie in [0, 1] or [0, 255]. Transparency
                is dropped. EXIF orientation is applied; of an animation the first frame counts.
            segmentation_maps: One map (h, w) a picture, as PIL picture, path or array of any integer type, as large as
                the picture: classes, or instance ids if `instance_id_to_semantic_id` is given.
            instance_id_to_semantic_id: Class of every id in the map, one dictionary for all or one a picture. An id
                that it lists counts even if it equals `ignore_index`.
            kwargs: Any field of this processor, and `return_tensors`.

        Returns:
            `pixel_values` (B, 3, H, W) float32, `pixel_mask` (B, H, W) int64 with 1 on the picture; with maps also
            `mask_labels`, a list of (N, H, W) bool, and `class_labels`, a list of (N,) int64 (N may be 0).

        Raises:
            ValueError: for what cannot be read as a picture (the message names the file), a picture of zero size, a
                map that does not fit its picture, an id without a class.
        """
        return super().preprocess(images, segmentation_maps, instance_id_to_semantic_id, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps=None, instance_id_to_semantic_id=None, **kwargs
    ) -> BatchFeature:
        if kwargs.get("do_center_crop"):
            raise ValueError("`do_center_crop` is not supported: nothing of a picture is cut off.")
        pictures = [_as_picture(image, kwargs.get("input_data_format")) for image in _flatten("images", images, 2, 3)]
        sizes = [_resized_size(picture, kwargs) for picture in pictures]
        canvases = _canvas_sizes(sizes, kwargs)
        pixel_values = [_to_pixel_values(*item, kwargs) for item in zip(pictures, sizes, canvases)]
        data = {
            "pixel_values": _stack(pixel_values),
            "pixel_mask": _stack([_pixel_mask(*item) for item in zip(sizes, canvases)]),
        }
        tensor_type = kwargs.get("return_tensors")
        if tensor_type is None:
            data = {name: [value.numpy() for value in values] for name, values in data.items()}
        features = BatchFeature(data=data, tensor_type=tensor_type)
        if segmentation_maps is not None:
            maps = [_as_label_map(item) for item in _flatten("segmentation_maps", segmentation_maps, 2, 2)]
            originals = [_picture_size(picture) for picture in pictures]
            targets = _training_targets(maps, instance_id_to_semantic_id, originals, sizes, canvases, kwargs)
            for name, values in zip(("mask_labels", "class_labels"), targets):
                features[name] = values if str(tensor_type) == "pt" else [value.numpy() for value in values]
        device = kwargs.get("device")
        return features if device is None else features.to(device)

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, return_segmentation_scores: bool = False
    ) -> list:
        """
        The class of every pixel: arg max of the sum over queries of p(class) x sigmoid(mask).

        Args:
            outputs: The model's: `class_queries_logits` (B, Q, K+1), `masks_queries_logits` (B, Q, h, w) and, where
                present, `unpadded_sizes`, `padded_sizes` (B, 2).
            target_sizes: (height, width) of every result; `None`: the unpadded input's.
            return_segmentation_scores: Also give the scores. They are classes x height x width numbers; without them
                no more than a tile of that is ever held.

        Returns:
            A list of maps (height, width) int64 with classes from 0 to K-1; with scores, a list of
            `SemanticSegmentationPostProcessorOutput` (`segmentation`, `segmentation_scores` (K, height, width)).

        Raises:
            ValueError: for `target_sizes` of another length than the batch, or logits that are not numbers.
        """
        results = []
        for item in _predictions(outputs, target_sizes):
            if return_segmentation_scores:
                scores = _semantic_scores(item, self.semantic_resize)
                data = {"segmentation": scores.argmax(0), "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                by_class_maps = self.semantic_resize == "class_maps"
                results.append(_semantic_map(item, _best_by_class_maps if by_class_maps else _best_by_mask_logits))
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs,
        threshold: float = 0.2,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.7,
        label_ids_to_fuse: Iterable[int] | None = None,
        target_sizes=None,
    ) -> list[dict[str, Any]]:
        """
        Segments that do not overlap: things one by one, stuff merged by class.

        Args:
            outputs: As in `post_process_semantic_segmentation`; also `stuff_classes` (B, K) bool, where present.
            threshold: A query counts if its best class is not void and scores more than this.
            mask_threshold: A segment is the pixels that its query won with at least this mask probability.
            overlap_mask_area_threshold: A segment is dropped if the pixels that its query won are less than this
                share of its mask.
            label_ids_to_fuse: Classes that are stuff; `None`: `outputs.stuff_classes`, or none.
            target_sizes: (height, width) of every result; `None`: the unpadded input's.

        Returns:
            One dictionary a picture: `segmentation` (height, width) int32, 0 is void, and `segments_info`, a list of
            `id` (from 1, no two alike), `label_id`, `was_fused` (is stuff), `score`. Without any segment the map is
            all 0 and the list empty.

        Raises:
            ValueError: as above, and for `label_ids_to_fuse` outside of the classes.
        """
        results = []
        for item in _predictions(outputs, target_sizes, label_ids_to_fuse):
            segments = _panoptic_segments(item, threshold, mask_threshold, overlap_mask_area_threshold)
            results.append(dict(zip(("segmentation", "segments_info"), segments)))
        return results

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.0,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes=None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        label_ids_to_fuse: Iterable[int] | None = None,
        top_k: int = 100,
    ) -> list[dict[str, Any]]:
        """
        Objects that may overlap, best first: the `top_k` best pairs of query and class whose class is a thing.

        Args:
            outputs: As in `post_process_panoptic_segmentation`.
            threshold: Least score, which is p(class) x mean foreground probability. 0 keeps all, as metrics need.
            mask_threshold: A mask is the pixels with a higher probability than this; empty masks are dropped.
            overlap_mask_area_threshold: For the id map only, where better objects cover others: an object that shows
                less than this share of its mask (or nothing) is dropped.
            target_sizes: (height, width) of every result; `None`: the unpadded input's.
            return_coco_annotation: `segmentation` is a list of COCO run lengths (`{"size", "counts"}`).
            return_binary_maps: `segmentation` is one tensor (N, height, width) bool.
            label_ids_to_fuse: Classes that are stuff and left out; `None`: `outputs.stuff_classes`, or none.
            top_k: Taken over all pairs, before stuff is left out.

        Returns:
            One dictionary a picture: `segmentation` as chosen above, otherwise ids (height, width) int32 with 0 for
            void, and `segments_info`, a list of `id` (from 1), `label_id`, `was_fused` (False), `score`.

        Raises:
            ValueError: as above, for both `return_` switches at once, and for `top_k` below 1.
            ImportError: if run lengths are asked for without pycocotools.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("Choose one of `return_coco_annotation` and `return_binary_maps`; both were True.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        results = []
        for item in _predictions(outputs, target_sizes, label_ids_to_fuse):
            instances = _drop_empty(_instances(item, threshold, mask_threshold, top_k), threshold)
            if return_binary_maps:
                segmentation = instances.masks
            elif return_coco_annotation:
                segmentation = _run_lengths(instances.masks)
            else:
                segmentation, instances = _id_map(instances, overlap_mask_area_threshold)
            results.append({"segmentation": segmentation, "segments_info": _instance_infos(instances)})
        return results


class MaftPlusImageProcessor(MaftPlusImageProcessorMixin, TorchvisionBackend):
    """What transformers picks where torchvision is installed; the work is the same, and still PIL's."""


class MaftPlusImageProcessorPil(MaftPlusImageProcessorMixin, PilBackend):
    """What transformers picks where torchvision is not installed."""


# --- Reading pictures ---


@dataclass
class _Picture:
    """RGB pixels: a PIL picture of 8 bits, or a float array (H, W, 3); `is_unit` if floats lie in [0, 1]."""

    pixels: Any
    is_unit: bool = False


def read_picture(image: Any) -> Image.Image:
    """
    One picture of any kind that `images` may hold -> a PIL picture: RGB, 8 bits, upright.

    Raises:
        ValueError: if it cannot be read; the message names the file.
    """
    pixels = _as_picture(image, None).pixels
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(_to_8_bits(pixels))


def _flatten(name: str, items: Any, least_rank: int, largest_rank: int) -> list:
    """One item, a batch array or (nested) lists of them -> a flat list."""
    if isinstance(items, (list, tuple)):
        return [item for nested in items for item in _flatten(name, nested, least_rank, largest_rank)]
    rank = items.ndim if isinstance(items, (np.ndarray, Tensor)) else least_rank
    if rank == largest_rank + 1:
        return list(items)
    if not least_rank <= rank <= largest_rank:
        raise ValueError(f"`{name}` must be arrays of {least_rank} to {largest_rank + 1} axes, got {items.shape}.")
    return [items]


def _as_picture(image: Any, input_data_format: Any) -> _Picture:
    if isinstance(image, (str, os.PathLike)):
        return _Picture(_read(os.fspath(image), _to_rgb))
    if isinstance(image, Image.Image):
        return _Picture(_checked_load(image, getattr(image, "filename", "") or "a PIL picture", _to_rgb))
    if isinstance(image, Tensor):
        image = image.detach().cpu().float().numpy() if image.dtype == torch.bfloat16 else image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"`images` must be PIL pictures, paths, URLs, arrays or tensors, got {type(image).__name__}.")
    return _array_to_picture(image, input_data_format)


def _read(source: str, convert) -> Image.Image:
    """Open a path here (transformers' loader would cut 16-bit pictures off); leave URLs and base64 to transformers."""
    try:
        opened = Image.open(source) if os.path.exists(source) else load_image(source)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"`images`: cannot read {source[:200]!r} as a picture: {error}") from error
    with opened:
        return _checked_load(opened, source, convert)


def _checked_load(picture: Image.Image, name: str, convert) -> Image.Image:
    if 0 in picture.size:
        raise ValueError(f"`images`: {name} has zero size {picture.size}.")
    try:
        return convert(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"`images`: cannot read {name!r} as a picture: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB":
        picture.load()
        return picture
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        return ImageCms.profileToProfile(
            picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if picture.mode == "P" and "transparency" in picture.info:  # PIL warns if asked for RGB at once
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Numbers of any type -> uint8. 16-bit ones keep the high byte; wider ones count as 8-bit if none exceeds 255."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind == "f":
        scale = 255.0 if _is_unit(pixels) else 1.0 if pixels.max() <= 255 else 1 / 257
        return np.clip(pixels * scale + 0.5, 0, 255).astype(np.uint8)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"pixels must lie between 0 and 65535, got {pixels.min()} to {pixels.max()}")
    is_wide = pixels.dtype.itemsize == 2 and pixels.dtype.kind == "u" or pixels.max() > 255
    return (pixels >> 8 if is_wide else pixels).astype(np.uint8)


def _is_unit(pixels: np.ndarray) -> bool:
    """Whether floats lie in [0, 1], give or take rounding, rather than in [0, 255]."""
    return bool(pixels.max() <= 1.001)


def _array_to_picture(array: np.ndarray, input_data_format: Any) -> _Picture:
    if array.size == 0:
        raise ValueError(f"`images` holds an array of zero size, shape {array.shape}.")
    if array.dtype.kind not in "buif":
        raise ValueError(f"`images` must hold numbers, got an array of {array.dtype}.")
    array = _channels_last(array, input_data_format)
    if array.dtype.kind != "f":
        return _Picture(Image.fromarray(np.ascontiguousarray(_to_8_bits(array))))
    if not np.isfinite(array).all():
        raise ValueError("`images` holds an array with NaN or infinite numbers.")
    return _Picture(array.astype(np.float32, copy=False), _is_unit(array))


def _channels_last(array: np.ndarray, input_data_format: Any) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) with C = 1 to 4 -> (H, W, 3); grey is repeated, a fourth channel is dropped."""
    if array.ndim == 2:
        array = array[..., None]
    else:
        layout = input_data_format or infer_channel_dimension_format(array, num_channels=(1, 2, 3, 4))
        array = np.moveaxis(array, 0, -1) if layout == ChannelDimension.FIRST else array
    channels = array.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"`images` must have 1 to 4 channels, got {channels}.")
    return np.broadcast_to(array[..., :1], (*array.shape[:2], 3)) if channels < 3 else array[..., :3]


# --- Sizes and pixels ---


def _picture_size(picture: _Picture) -> tuple[int, int]:
    pixels = picture.pixels
    return pixels.shape[:2] if isinstance(pixels, np.ndarray) else (pixels.height, pixels.width)


def _resized_size(picture: _Picture, fields: dict[str, Any]) -> tuple[int, int]:
    height, width = _picture_size(picture)
    if not fields["do_resize"]:
        return height, width
    return resized_size(height, width, fields["size"])


def resized_size(height: int, width: int, size: SizeDict | dict[str, int]) -> tuple[int, int]:
    """
    New (height, width) of a picture; nothing is stretched unless `size` gives a height and a width.

    The shorter edge becomes `shortest_edge` unless the longer one would then exceed `longest_edge`, which it becomes
    in that case. Rounded half up (arXiv 2408.00744's released code): 480 x 640 gives 800 x 1067, never 0.
    """
    size = dict(size)
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if shortest is None and longest is None:
        raise ValueError(f"`size` must have height and width, or shortest_edge or longest_edge, got {size}.")
    scale = math.inf if shortest is None else shortest / min(height, width)
    exact = [shortest if edge == min(height, width) else scale * edge for edge in (height, width)]
    if longest is not None and (shortest is None or max(exact) > longest):
        exact = [edge * longest / max(height, width) for edge in (height, width)]
    return tuple(max(1, int(edge + 0.5)) for edge in exact)


def _canvas_sizes(sizes: list[tuple[int, int]], fields: dict[str, Any]) -> list[tuple[int, int]]:
    """Padded (height, width) of every picture: the batch's largest, rounded up to `size_divisor`."""
    if not fields["do_pad"]:
        return sizes
    divisor = fields["size_divisor"] or 1
    largest = [math.ceil(max(edges) / divisor) * divisor for edges in zip(*sizes)]
    if fields.get("pad_size"):
        wanted = [fields["pad_size"].height, fields["pad_size"].width]
        if any(edge > limit for edge, limit in zip(map(max, zip(*sizes)), wanted)):
            raise ValueError(f"`pad_size` {tuple(wanted)} is smaller than a picture; the largest need {largest}.")
        largest = wanted
    return [tuple(largest)] * len(sizes)


def _to_pixel_values(picture: _Picture, size: tuple[int, int], canvas: tuple[int, int], fields) -> Tensor:
    """Resize, rescale, normalise and pad: (3, *canvas) float32."""
    pixels = _resize_pixels(picture, size, fields) if fields["do_resize"] else np.array(picture.pixels)
    padded = torch.zeros(3, *canvas) if canvas != size else torch.empty(3, *canvas)
    inside = padded[:, : size[0], : size[1]]
    inside.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    offset, factor = _offset_and_factor(picture.is_unit, fields)
    return padded if offset is None else (inside.sub_(offset).mul_(factor), padded)[1]


def _resize_pixels(picture: _Picture, size: tuple[int, int], fields: dict[str, Any]) -> np.ndarray:
    """(*size, 3). Floats in [0, 1] or [0, 255] are resized as the 8-bit pixels they stand for, keeping their range."""
    pixels = picture.pixels
    if isinstance(pixels, np.ndarray):
        if pixels.min() < 0 or pixels.max() > 255.5:
            return np.stack([_resize_channel(channel, size, fields) for channel in np.moveaxis(pixels, -1, 0)], -1)
        pixels = Image.fromarray(_to_8_bits(pixels))
    resized = np.array(pixels.resize((size[1], size[0]), resample=fields["resample"]))
    return resized.astype(np.float32) / 255 if picture.is_unit else resized


def _resize_channel(channel: np.ndarray, size: tuple[int, int], fields: dict[str, Any]) -> np.ndarray:
    """Numbers that 8 bits cannot hold, such as pixels that were normalised before."""
    picture = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(picture.resize((size[1], size[0]), resample=fields["resample"]))


def _offset_and_factor(is_unit: bool, fields: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Rescaling and normalising as one subtraction and one product. Floats in [0, 1] count as rescaled."""
    scale = fields["rescale_factor"] if fields["do_rescale"] and not is_unit else 1.0
    if not fields["do_normalize"]:
        return (None, None) if scale == 1.0 else (torch.zeros(1), torch.tensor(scale))
    mean, std = (
        torch.tensor(fields[name], dtype=torch.float64).view(-1, 1, 1) for name in ("image_mean", "image_std")
    )
    return (mean / scale).float(), (scale / std).float()


def _pixel_mask(size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    mask = torch.zeros(canvas, dtype=torch.int64)
    mask[: size[0], : size[1]] = 1
    return mask


def _stack(values: list[Tensor]) -> Tensor | list[Tensor]:
    return torch.stack(values) if len({value.shape for value in values}) == 1 else values


# --- Training targets ---


def _as_label_map(item: Any) -> np.ndarray:
    if isinstance(item, (str, os.PathLike)):
        item = _read(os.fspath(item), _loaded_copy)
    elif isinstance(item, Tensor):
        item = item.cpu()
    array = np.asarray(item)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise ValueError(
            f"`segmentation_maps` must be (height, width) of integers, got shape {array.shape} of {array.dtype}."
        )
    return array.astype(np.int64)


def _loaded_copy(picture: Image.Image) -> Image.Image:
    return picture.copy()


def _training_targets(maps, id_maps, originals, sizes, canvases, fields) -> tuple[list[Tensor], list[Tensor]]:
    """Masks (N, H, W) bool and classes (N,) of every picture."""
    if len(maps) != len(originals):
        raise ValueError(f"`segmentation_maps` holds {len(maps)} maps for {len(originals)} images.")
    if not isinstance(id_maps, (list, tuple)):
        id_maps = [id_maps] * len(maps)
    if len(id_maps) != len(maps):
        raise ValueError(f"`instance_id_to_semantic_id` holds {len(id_maps)} dictionaries for {len(maps)} images.")
    masks, classes = [], []
    for label_map, id_map, original, size, canvas in zip(maps, id_maps, originals, sizes, canvases):
        if label_map.shape != tuple(original):
            raise ValueError(f"`segmentation_maps`: a map of {label_map.shape} for an image of {tuple(original)}.")
        item = _objects(_resize_nearest(label_map, size), id_map, canvas, fields)
        masks.append(item[0])
        classes.append(item[1])
    return masks, classes


def _resize_nearest(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PIL's nearest neighbour (pixel centres), for labels of any width."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, label_map.shape))
    return label_map if label_map.shape == tuple(size) else label_map[rows[:, None], columns]


def _objects(label_map: np.ndarray, id_map: dict[int, int] | None, canvas, fields) -> tuple[Tensor, Tensor]:
    values = [int(value) for value in np.unique(label_map)]
    classes = {value: _class_of(value, id_map, fields["ignore_index"], fields["do_reduce_labels"]) for value in values}
    values = [value for value in values if classes[value] is not None]
    masks = torch.zeros(len(values), *canvas, dtype=torch.bool)
    for mask, value in zip(masks, values):
        mask[: label_map.shape[0], : label_map.shape[1]] = torch.from_numpy(label_map == value)
    return masks, torch.tensor([classes[value] for value in values], dtype=torch.int64)


def _class_of(
    value: int, id_map: dict[int, int] | None, ignore_index: int | None, do_reduce_labels: bool
) -> int | None:
    """Class of a map's value, None if ignored. Reducing looks at 0 alone: 255 and 256 become 254 and 255."""
    if id_map is not None and value not in id_map:
        if value == ignore_index or do_reduce_labels and value == 0:
            return None
        raise ValueError(f"`instance_id_to_semantic_id` has no class for the id {value} of `segmentation_maps`.")
    label = value if id_map is None else int(id_map[value])
    if do_reduce_labels:
        return None if label == 0 else label - 1
    return None if label == ignore_index else label


# --- One picture's prediction, and its way to the target ---


@dataclass
class _Prediction:
    """One picture: class probabilities (Q, K+1), mask logits (Q, h, w) and the linear maps of both axes."""

    probabilities: Tensor
    masks: Tensor
    rows: "_Axis"
    columns: "_Axis"
    is_stuff: list[bool]

    @property
    def target_size(self) -> tuple[int, int]:
        return self.rows.target, self.columns.target


class _Axis:
    """
    Bilinear resizing along one axis as matrices: mask grid -> padded input, cropped -> target.

    A row of `to_input` (unpadded, grid), `from_input` (target, unpadded) or `to_target` (target, grid), their product,
    has a few neighbouring numbers. A tile multiplies only that block of them, so no map of the padded size is made.
    """

    def __init__(self, grid: int, padded: int, unpadded: int, target: int, like: Tensor):
        self.target = target
        self.is_enlarging = padded >= grid  # two neighbours at the input read at most three points of the grid
        grid_low, grid_high, grid_fraction = (values[:unpadded] for values in _neighbours(grid, padded))
        low, high, self.fraction = _neighbours(unpadded, target)
        to_input = _matrix(grid_low, grid_high, grid_fraction, grid)
        from_input = _matrix(low, high, self.fraction, unpadded)
        matrices = to_input, from_input, from_input @ to_input
        self.to_input, self.from_input, self.to_target = (matrix.to(like) for matrix in matrices)
        self.low, self.high, self.grid_low, self.grid_high = (x.tolist() for x in (low, high, grid_low, grid_high))

    def input_span(self, span: slice) -> slice:
        """The unpadded input's pixels that the target's `span` reads."""
        return slice(self.low[span.start], self.high[span.stop - 1] + 1)

    def grid_span(self, span: slice) -> slice:
        """The mask grid's points that the unpadded input's `span` reads."""
        return slice(self.grid_low[span.start], self.grid_high[span.stop - 1] + 1)

    def block_span(self, span: slice) -> slice:
        """The blocks of `_candidates` that hold the target's `span`."""
        first, last = (self.grid_low[self.low[index]] + 1 for index in (span.start, span.stop - 1))
        return slice(first // BLOCK, last // BLOCK + 1)


def _neighbours(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two source indices and the second one's weight for every new pixel, in float32 as torch's own resizing."""
    position = ((torch.arange(new) + 0.5) * (old / new) - 0.5).clamp(min=0)
    low = position.long().clamp(max=old - 1)
    return low, (low + 1).clamp(max=old - 1), position - low


def _matrix(low: Tensor, high: Tensor, fraction: Tensor, old: int) -> Tensor:
    matrix = torch.zeros(len(low), old)
    index = torch.arange(len(low))
    matrix[index, low] += 1 - fraction
    matrix[index, high] += fraction
    return matrix


def _predictions(outputs, target_sizes, label_ids_to_fuse: Iterable[int] | None = None) -> Iterator[_Prediction]:
    """The batch, checked, picture by picture, in float32."""
    class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
    _check_logits(class_logits, mask_logits)
    batch, num_classes = len(class_logits), class_logits.shape[-1] - 1
    padded = _sizes(outputs, "padded_sizes") or [tuple(4 * edge for edge in mask_logits.shape[-2:])] * batch
    unpadded = _sizes(outputs, "unpadded_sizes") or padded
    targets = unpadded if target_sizes is None else _checked_targets(target_sizes, batch)
    stuff = _stuff_classes(outputs, label_ids_to_fuse, batch, num_classes)
    for index in range(batch):
        masks = mask_logits[index].float()
        axes = [_Axis(*sizes, masks) for sizes in zip(masks.shape[1:], padded[index], unpadded[index], targets[index])]
        yield _Prediction(class_logits[index].float().softmax(-1), masks, *axes, stuff[index])


def _check_logits(class_logits: Tensor, mask_logits: Tensor) -> None:
    if class_logits.ndim != 3 or mask_logits.ndim != 4 or class_logits.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            "`outputs` must have `class_queries_logits` (B, Q, K+1) and `masks_queries_logits` (B, Q, h, w), got "
            f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}."
        )
    for name, logits in (("class_queries_logits", class_logits), ("masks_queries_logits", mask_logits)):
        if logits.isnan().any():
            raise ValueError(f"`outputs.{name}` contains NaN; in half precision try bfloat16 or float32.")


def _sizes(outputs, name: str) -> list[tuple[int, int]] | None:
    sizes = getattr(outputs, name, None)
    return None if sizes is None else [tuple(map(int, size)) for size in sizes]


def _checked_targets(target_sizes, batch: int) -> list[tuple[int, int]]:
    sizes = [tuple(map(int, size)) for size in target_sizes]
    if len(sizes) != batch:
        raise ValueError(f"`target_sizes` has {len(sizes)} entries for {batch} images; give (height, width) for each.")
    if any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise ValueError(f"`target_sizes` must be positive pairs (height, width), got {sizes}.")
    return sizes


def _stuff_classes(outputs, label_ids: Iterable[int] | None, batch: int, num_classes: int) -> list[list[bool]]:
    recorded = getattr(outputs, "stuff_classes", None)
    if label_ids is None:
        return [[False] * num_classes] * batch if recorded is None else recorded.bool().tolist()
    label_ids = {int(label) for label in label_ids}
    wrong = sorted(label for label in label_ids if not 0 <= label < num_classes)
    if wrong:
        raise ValueError(f"`label_ids_to_fuse` must lie between 0 and {num_classes - 1}, got {wrong}.")
    return [[label in label_ids for label in range(num_classes)]] * batch


def _tiles(item: _Prediction) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every tile of the target."""
    height, width = item.target_size
    for top in range(0, height, TILE_EDGE):
        for left in range(0, width, TILE_EDGE):
            yield slice(top, min(top + TILE_EDGE, height)), slice(left, min(left + TILE_EDGE, width))


def _resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps (Q, a, b) with the matrices (h, a) and (w, b) -> (Q, h, w)."""
    return torch.bmm(rows.expand(len(maps), -1, -1), maps) @ columns.T


def _target_logits(item: _Prediction, rows: slice, columns: slice, queries: Tensor | slice = slice(None)) -> Tensor:
    """Mask logits of the target's tile (Q, tile height, tile width)."""
    y, x = _grid_block(item, rows, columns)
    return _resample(item.masks[:, y, x][queries], item.rows.to_target[rows, y], item.columns.to_target[columns, x])


def _grid_block(item: _Prediction, rows: slice, columns: slice) -> tuple[slice, slice]:
    """The mask grid's points that a tile of the target reads."""
    return tuple(axis.grid_span(axis.input_span(s)) for axis, s in ((item.rows, rows), (item.columns, columns)))


def _logit_bounds(item: _Prediction, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Least and largest mask logit of every query in a tile: resizing does not leave the range of what it reads."""
    y, x = _grid_block(item, rows, columns)
    block = item.masks[:, y, x].flatten(1)
    return block.amin(1), block.amax(1)


# --- Semantic ---


def _semantic_map(item: _Prediction, best_class) -> Tensor:
    """The best class of every pixel of the target, tile by tile, each with the few classes that can win there."""
    weights = item.probabilities[:, :-1].T.contiguous()  # (K, Q)
    candidates = _candidates(item, weights)
    result = torch.empty(item.target_size, dtype=torch.int64, device=weights.device)
    for rows, columns in _tiles(item):
        blocks = candidates[:, item.rows.block_span(rows), item.columns.block_span(columns)]
        classes = blocks.flatten(1).any(1).nonzero()[:, 0].to(weights.device)
        if len(classes) > 1:
            classes = classes[best_class(item, weights[classes], rows, columns)]
        result[rows, columns] = classes
    return result


def _candidates(item: _Prediction, weights: Tensor) -> Tensor:
    """
    The classes that can be best somewhere in a block of the mask grid: (K, blocks down, blocks across), on the CPU.

    A mask probability lies between those of the grid's least and largest logit around it, and so does a class score,
    being a sum of them with weights (K, Q) that are not negative. A class whose upper bound is below the best lower
    bound cannot win, nor can it after linear resizing, since one class beats it everywhere in the block. Block i is
    for pixels that read the grid's points L to L + 2 (at most) with L + 1 in [i * BLOCK, (i + 1) * BLOCK).
    """
    shape = [edge // BLOCK + 1 for edge in item.masks.shape[1:]]
    if not (item.rows.is_enlarging and item.columns.is_enlarging):
        return torch.ones(len(weights), *shape, dtype=torch.bool)
    padded = functional.pad(item.masks[None], [1, BLOCK + 1] * 2, mode="replicate")[0]
    largest, least = (_pool(padded, shape, choose).sigmoid().flatten(1) for choose in (torch.maximum, torch.minimum))
    best = (weights @ least).amax(0)
    return (weights @ largest * (1 + ROUNDING) >= best).view(-1, *shape).cpu()


def _pool(padded: Tensor, shape: list[int], choose) -> Tensor:
    """Largest or least value of blocks that overlap by two points (max_pool2d took ten times longer)."""
    for axis, length in zip((1, 2), shape):
        shifted = (padded.narrow(axis, start, padded.shape[axis] - start) for start in range(BLOCK + 2))
        strides = [slice(None)] * axis + [slice(None, None, BLOCK)]
        padded = reduce(choose, (view[tuple(strides)].narrow(axis, 0, length) for view in shifted))
    return padded


def _best_by_mask_logits(item: _Prediction, weights: Tensor, rows: slice, columns: slice) -> Tensor:
    """Mask logits resized to the target, then class scores (released panoptic models)."""
    return _best_class(weights, _target_logits(item, rows, columns).sigmoid_())


def _best_by_class_maps(item: _Prediction, weights: Tensor, rows: slice, columns: slice) -> Tensor:
    """Class scores at the unpadded input, then resized; for many classes only where that can matter."""
    masks = _input_masks(item, rows, columns)
    if len(weights) > FEW:
        return _best_between(weights, masks, *_corners(item, rows, columns))
    y, x = item.rows.input_span(rows), item.columns.input_span(columns)
    class_maps = (weights @ masks.flatten(1)).view(-1, *masks.shape[1:])
    return _resample(class_maps, item.rows.from_input[rows, y], item.columns.from_input[columns, x]).max(0).indices


def _best_between(weights: Tensor, masks: Tensor, rows, columns) -> Tensor:
    """
    Best class of pixels that lie between those of `masks` (Q, a, b). Where the four neighbours of a pixel have the
    same best class, it is the pixel's too; for the others the masks are resized: the same, as all of it is linear.
    """
    (top, bottom, down), (left, right, across) = rows, columns
    labels = _best_class(weights, masks)
    upper, lower = labels[top], labels[bottom]
    best = upper[:, left]
    mixed = (upper[:, right] != best) | (lower[:, left] != best) | (lower[:, right] != best)
    i, j = mixed.nonzero(as_tuple=True)
    if len(i):
        top, bottom, down, left, right, across = top[i], bottom[i], down[i], left[j], right[j], across[j]
        upper = torch.lerp(masks[:, top, left], masks[:, top, right], across)
        lower = torch.lerp(masks[:, bottom, left], masks[:, bottom, right], across)
        best[i, j] = _best_class(weights, torch.lerp(upper, lower, down))
    return best


def _input_masks(item: _Prediction, rows: slice, columns: slice) -> Tensor:
    """Mask probabilities of the unpadded input's pixels that a tile reads (Q, a, b)."""
    y, x = item.rows.input_span(rows), item.columns.input_span(columns)
    grid_y, grid_x = item.rows.grid_span(y), item.columns.grid_span(x)
    logits = _resample(item.masks[:, grid_y, grid_x], item.rows.to_input[y, grid_y], item.columns.to_input[x, grid_x])
    return logits.sigmoid_()


def _corners(item: _Prediction, rows: slice, columns: slice) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Where a tile's pixels lie in `_input_masks`, down and across: both neighbours' indices, the second's weight."""
    sides = []
    for axis, span in ((item.rows, rows), (item.columns, columns)):
        low, high = torch.tensor([axis.low[span], axis.high[span]]) - axis.low[span.start]
        sides.append(tuple(values.to(item.masks.device) for values in (low, high, axis.fraction[span])))
    return sides


def _best_class(weights: Tensor, masks: Tensor) -> Tensor:
    """(K, Q) and (Q, ...) -> (...), a bounded number of scores at a time."""
    pieces = masks.flatten(1).split(max(1, TILE_NUMBERS // len(weights)), dim=1)
    return torch.cat([_first_largest(weights @ piece) for piece in pieces]).view(masks.shape[1:])


def _first_largest(scores: Tensor) -> Tensor:
    """
    Arg max over the first axis, (N, ...) -> (...): first among groups, then inside the winning one. PyTorch's own
    carries an index with every number, which took 3 times longer on a CPU.
    """
    size = math.isqrt(len(scores))
    if size < 3:
        return scores.max(0).indices
    group = torch.stack([members.amax(0) for members in scores.split(size)]).max(0).indices
    offsets = torch.arange(size, device=scores.device).view(-1, *[1] * group.ndim)
    members = (group * size + offsets).clamp_(max=len(scores) - 1)
    return members.gather(0, scores.gather(0, members).max(0).indices[None])[0]


def _semantic_scores(item: _Prediction, semantic_resize: str) -> Tensor:
    """All class maps (K, height, width)."""
    weights = item.probabilities[:, :-1].T
    scores = weights.new_empty(len(weights), *item.target_size)
    for rows, columns in _tiles(item):
        if semantic_resize == "mask_logits":
            masks = _target_logits(item, rows, columns).sigmoid_()
        else:
            y, x = item.rows.input_span(rows), item.columns.input_span(columns)
            matrices = item.rows.from_input[rows, y], item.columns.from_input[columns, x]
            masks = _resample(_input_masks(item, rows, columns), *matrices)
        scores[:, rows, columns] = (weights @ masks.flatten(1)).view(-1, *masks.shape[1:])
    return scores


# --- Panoptic ---


def _panoptic_segments(item: _Prediction, threshold: float, mask_threshold: float, overlap_threshold: float):
    """(segmentation (height, width) int32, segments_info)."""
    scores, labels = item.probabilities.max(-1)
    kept = (labels != item.probabilities.shape[-1] - 1) & (scores > threshold)
    item.masks, scores, labels = item.masks[kept], scores[kept], labels[kept]
    if not len(scores):
        return torch.zeros(item.target_size, dtype=torch.int32, device=item.masks.device), []
    winners, won, shown, areas = _compete(item, scores, mask_threshold)
    valid = (shown > 0) & (won / areas.clamp(min=1) >= overlap_threshold)
    ids, infos = _number_segments(valid.tolist(), labels.tolist(), scores.tolist(), item.is_stuff)
    table = torch.tensor([*ids, 0], dtype=torch.int32, device=winners.device)
    return table[winners], infos


def _compete(item: _Prediction, scores: Tensor, mask_threshold: float):
    """
    Every pixel goes to the query with the largest score x mask probability.

    Returns:
        The winner of every pixel (height, width), or the number of queries where its mask probability is below
        `mask_threshold`; pixels won (whatever that probability), pixels shown, pixels of the mask: (Q,) each.
    """
    num_queries = len(scores)
    least_logit = _logit(mask_threshold)
    winners = torch.empty(item.target_size, dtype=torch.int64, device=scores.device)
    won, shown, areas = scores.new_zeros(3, num_queries, dtype=torch.int64)
    for rows, columns in _tiles(item):
        low, high = _logit_bounds(item, rows, columns)
        can_win = scores * high.sigmoid() * (1 + ROUNDING) >= (scores * low.sigmoid()).max()
        has_edge = (low < least_logit + ROUNDING) & (high > least_logit - ROUNDING)
        areas += (~has_edge & (low >= least_logit)) * (rows.stop - rows.start) * (columns.stop - columns.start)
        queries = (can_win | has_edge).nonzero()[:, 0]
        logits = _target_logits(item, rows, columns, queries)
        areas += torch.zeros_like(areas).index_add_(0, queries, _count(logits >= least_logit)) * has_edge
        queries, logits = queries[can_win[queries]], logits[can_win[queries]]
        winner = _first_largest(logits.sigmoid().mul_(scores[queries].view(-1, 1, 1)))
        is_shown = logits.gather(0, winner[None])[0] >= least_logit
        winner = queries[winner]
        won += winner.flatten().bincount(minlength=num_queries)
        shown += winner[is_shown].bincount(minlength=num_queries)
        winners[rows, columns] = torch.where(is_shown, winner, num_queries)
    return winners, won, shown, areas


def _count(inside: Tensor) -> Tensor:
    """Pixels of every mask, (Q, h, w) bool -> (Q,)."""
    return inside.sum((1, 2), dtype=torch.int32).long()  # half the time of summing to int64


def _logit(probability: float) -> float:
    """The logit whose sigmoid is `probability`; comparing logits saves the sigmoid."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"`mask_threshold` must lie between 0 and 1, got {probability}.")
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))


def _number_segments(valid: list[bool], labels: list[int], scores: list[float], is_stuff: list[bool]):
    """Segment id of every query (0: none) and the segments; stuff of one class is one segment with its best score."""
    ids, infos, stuff = [], [], {}
    for is_valid, label, score in zip(valid, labels, scores):
        if not is_valid:
            ids.append(0)
        elif is_stuff[label] and label in stuff:
            ids.append(stuff[label]["id"])
            stuff[label]["score"] = max(stuff[label]["score"], round(score, 6))
        else:
            infos.append({"id": len(infos) + 1, "label_id": label, "was_fused": is_stuff[label]})
            infos[-1]["score"] = round(score, 6)
            ids.append(len(infos))
            if is_stuff[label]:
                stuff[label] = infos[-1]
    return ids, infos


# --- Instances ---


@dataclass
class _Instances:
    """
    `scores`, `labels` and `areas` (N,); `rows` (N,) of `query_masks` (queries, height, width) bool, as one mask can
    be there under several classes.
    """

    scores: Tensor
    labels: Tensor
    areas: Tensor
    rows: Tensor
    query_masks: Tensor

    @property
    def masks(self) -> Tensor:
        """(N, height, width) bool."""
        return self.query_masks[self.rows]

    def select(self, index: Tensor) -> "_Instances":
        fields = (self.scores, self.labels, self.areas, self.rows)
        return _Instances(*(field[index] for field in fields), self.query_masks)


def _instances(item: _Prediction, threshold: float, mask_threshold: float, top_k: int) -> _Instances:
    """The best pairs of query and thing, empty masks included, best class score first."""
    classes = item.probabilities[:, :-1]
    scores, pairs = classes.flatten().topk(min(top_k, classes.numel()))
    is_stuff = torch.tensor(item.is_stuff, device=scores.device)
    queries, labels = pairs // classes.shape[1], pairs % classes.shape[1]
    kept = ~is_stuff[labels] & (scores >= threshold)  # the mask's share of a score is at most 1
    queries, rows = queries[kept].unique(return_inverse=True)
    item.masks = item.masks[queries]
    masks, totals, areas = _binary_masks(item, mask_threshold)
    quality = totals / (areas + 1e-6)
    return _Instances(scores[kept] * quality[rows], labels[kept], areas[rows], rows, masks)


def _binary_masks(item: _Prediction, mask_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Masks at the target (Q, height, width) bool, the sum of their probabilities inside and their pixels (Q,)."""
    masks = torch.zeros(len(item.masks), *item.target_size, dtype=torch.bool, device=item.masks.device)
    totals, areas = item.masks.new_zeros(len(masks)), item.masks.new_zeros(len(masks), dtype=torch.int64)
    least_logit = _logit(mask_threshold)
    for rows, columns in _tiles(item):
        queries = (_logit_bounds(item, rows, columns)[1] > least_logit - ROUNDING).nonzero()[:, 0]
        logits = _target_logits(item, rows, columns, queries)
        inside = logits > least_logit
        masks[queries, rows, columns] = inside
        totals[queries] += logits.sigmoid_().mul_(inside).sum((1, 2))
        areas[queries] += _count(inside)
    return masks, totals, areas


def _drop_empty(instances: _Instances, threshold: float) -> _Instances:
    """Best score first, without empty masks and scores below `threshold`."""
    kept = (instances.areas > 0) & (instances.scores >= threshold)
    order = instances.scores.argsort(descending=True, stable=True)
    return instances.select(order[kept[order]])


def _id_map(instances: _Instances, overlap_threshold: float) -> tuple[Tensor, _Instances]:
    """Better objects cover worse ones; those that show too little are left out."""
    query_masks = instances.query_masks
    ids = torch.zeros(query_masks.shape[1:], dtype=torch.int32, device=query_masks.device)
    kept = []
    for index, row in enumerate(instances.rows.tolist()):
        pixels = query_masks[row].flatten().nonzero()[:, 0]
        visible = pixels[ids.view(-1)[pixels] == 0]
        if len(visible) and len(visible) / len(pixels) >= overlap_threshold:
            kept.append(index)
            ids.view(-1)[visible] = len(kept)
    return ids, instances.select(torch.tensor(kept, dtype=torch.int64, device=ids.device))


def _instance_infos(instances: _Instances) -> list[dict[str, Any]]:
    pairs = zip(instances.labels.tolist(), instances.scores.tolist())
    return [
        {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6)}
        for index, (label, score) in enumerate(pairs, start=1)
    ]


def _run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run lengths, with text for `counts` so that they fit into JSON."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("`return_coco_annotation=True` needs pycocotools: pip install pycocotools") from error
    encoded = [coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))) for mask in masks]
    return [{"size": list(map(int, code["size"])), "counts": code["counts"].decode("ascii")} for code in encoded]


MaftPlusImageProcessor.register_for_auto_class("AutoImageProcessor")
MaftPlusImageProcessorPil.register_for_auto_class("AutoImageProcessor")

__all__ = ["MaftPlusImageProcessor", "MaftPlusImageProcessorPil"]
