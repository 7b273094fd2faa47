"""Pictures in, results out: resizing, normalising, padding, label maps; semantic, instance and panoptic results.

Sources: MAFT+, arXiv 2408.00744, and FC-CLIP, arXiv 2308.02487 (inference). Nothing here needs torchvision: resizing
is PIL's antialiased one on 8-bit pixels, which the published weights were trained on, whichever backend class
transformers picks. `postprocessing_maftplus.py` does the work of the way back and explains the coordinate frames.
Shapes: B images, H x W padded input, Q queries, K classes (+1 = void, last), N objects of one image.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict
from transformers.processing_utils import ImagesKwargs

from .postprocessing_maftplus import (
    DEFAULT_THRESHOLD,
    coco_run_lengths,
    draw_instances,
    drop_empty,
    find_instances,
    hide_distractors,
    instance_infos,
    panoptic_segments,
    score_maps,
    semantic_map,
    semantic_scores,
)
from .predictions_maftplus import check_shares, in_float32, read_predictions
from .reading_maftplus import Picture, as_picture, read_label_map, read_picture, to_8_bits

SEMANTIC_RESIZES = ("class_maps", "mask_logits")
AUTO_MAP = {
    "torchvision": "image_processing_maftplus.MaftPlusImageProcessor",
    "pil": "image_processing_maftplus.MaftPlusImageProcessorPil",
}


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
    """What the two backend classes share: everything."""

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
        pictures = [as_picture(image, kwargs.get("input_data_format")) for image in _flatten("images", images, 2, 3)]
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
            maps = [read_label_map(item) for item in _flatten("segmentation_maps", segmentation_maps, 2, 2)]
            originals = [picture.size for picture in pictures]
            targets = _training_targets(maps, instance_id_to_semantic_id, originals, sizes, canvases, kwargs)
            for name, values in zip(("mask_labels", "class_labels"), targets):
                features[name] = values if str(tensor_type) == "pt" else [value.numpy() for value in values]
        device = kwargs.get("device")
        return features if device is None else features.to(device)

    @in_float32
    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes=None,
        return_segmentation_scores: bool = False,
        distractor_ids: Iterable[int] | None = None,
    ) -> list:
        """
        The class of every pixel: arg max of the sum over queries of p(class) x sigmoid(mask).

        Args:
            outputs: The model's: `class_queries_logits` (B, Q, K+1), `masks_queries_logits` (B, Q, h, w) and, where
                present, `unpadded_sizes`, `padded_sizes` (B, 2).
            target_sizes: (height, width) of every result; `None`: the unpadded input's.
            return_segmentation_scores: Also give the scores. They are classes x height x width numbers; without them
                no more than a tile of that is ever held.
            distractor_ids: Classes that compete and are not reported: where one is best, the map holds -1.

        Returns:
            A list of maps (height, width) int64 with classes from 0 to K-1; with scores, a list of
            `SemanticSegmentationPostProcessorOutput` (`segmentation`, `segmentation_scores` (K, height, width)).

        Raises:
            ValueError: for `target_sizes` of another length than the batch, logits that are NaN or infinite, or
                distractors that are no classes or all of them.
        """
        results = []
        for item in read_predictions(outputs, target_sizes, distractor_ids=distractor_ids):
            if return_segmentation_scores:
                scores = semantic_scores(item, self.semantic_resize)
                data = {"segmentation": hide_distractors(scores.argmax(0), item), "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(semantic_map(item, self.semantic_resize))
        return results

    @in_float32
    def post_process_score_maps(
        self, outputs, target_sizes=None, distractor_ids: Iterable[int] | None = None
    ) -> list[dict[str, Tensor]]:
        """
        How much every label is believed in at every pixel. Each map is made tile by tile; the maps themselves are all
        that is held, and they may have 2^28 numbers (1 GiB) a picture.

        Args:
            outputs, target_sizes, distractor_ids: As in `post_process_semantic_segmentation`.

        Returns:
            One dictionary a picture: `score_maps` (labels, height, width) float32, without the distractors and in
            [0, 1]: a pixel's class scores, divided by their sum where that exceeds 1; what is missing to 1 is void or
            a distractor. `confidence` (height, width) is the largest of them.

        Raises:
            ValueError: as above, and for larger maps.
        """
        items = read_predictions(outputs, target_sizes, distractor_ids=distractor_ids)
        maps = (score_maps(item, self.semantic_resize) for item in items)
        return [dict(zip(("score_maps", "confidence"), pair)) for pair in maps]

    @in_float32
    def post_process_panoptic_segmentation(
        self,
        outputs,
        threshold: float = DEFAULT_THRESHOLD,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.7,
        label_ids_to_fuse: Iterable[int] | None = None,
        target_sizes=None,
        distractor_ids: Iterable[int] | None = None,
        min_margin: float = 0.0,
    ) -> list[dict[str, Any]]:
        """
        Segments that do not overlap: things one by one, stuff merged by class.

        Args:
            outputs: As in `post_process_semantic_segmentation`; also `stuff_classes` (B, K) bool, where present.
            threshold: A query counts if its best class is not void and scores more than this (0.2).
            mask_threshold: A segment is the pixels that its query won with at least this mask probability.
            overlap_mask_area_threshold: A segment is dropped if the pixels that its query won are less than this
                share of its mask.
            label_ids_to_fuse: Classes that are stuff; `None`: `outputs.stuff_classes`, or none.
            target_sizes: (height, width) of every result; `None`: the unpadded input's.
            distractor_ids: Classes that compete for queries and pixels and are not reported: void where they win.
            min_margin: A query counts if s1 * sqrt(s1 - s2) is at least `min_margin` ** 1.25, where s1 and s2 are its
                two best probabilities after void, distractors included (s2 = 0 for a single class). 0 keeps all.

        Returns:
            One dictionary a picture: `segmentation` (height, width) int32, 0 is void, and `segments_info`, a list of
            `id` (from 1, no two alike), `label_id`, `was_fused` (is stuff), `score`, and `second_label_id` and
            `second_score` of the next best label (`None` where there is no other). Without any segment the map is
            all 0 and the list empty.

        Raises:
            ValueError: as above, for `label_ids_to_fuse` outside of the classes, and for thresholds outside of [0, 1].
        """
        check_shares(
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            min_margin=min_margin,
        )
        results = []
        for item in read_predictions(outputs, target_sizes, label_ids_to_fuse, distractor_ids):
            segments = panoptic_segments(item, threshold, mask_threshold, overlap_mask_area_threshold, min_margin)
            results.append(dict(zip(("segmentation", "segments_info"), segments)))
        return results

    @in_float32
    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = DEFAULT_THRESHOLD,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes=None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        label_ids_to_fuse: Iterable[int] | None = None,
        top_k: int = 100,
        distractor_ids: Iterable[int] | None = None,
        min_margin: float = 0.0,
    ) -> list[dict[str, Any]]:
        """
        Objects that may overlap, best first: the `top_k` best pairs of query and class whose class is a thing.

        Args:
            outputs: As in `post_process_panoptic_segmentation`.
            threshold: Least score (0.2): p(class) x mean foreground probability. 0 keeps all, as metrics need.
            mask_threshold: A mask is the pixels with a higher probability than this; empty masks are dropped.
            overlap_mask_area_threshold: For the id map only, where better objects cover others: an object that shows
                less than this share of its mask (or nothing) is dropped.
            target_sizes: (height, width) of every result; `None`: the unpadded input's.
            return_coco_annotation: `segmentation` is a list of COCO run lengths (`{"size", "counts"}`).
            return_binary_maps: `segmentation` is one tensor (N, height, width) bool.
            label_ids_to_fuse: Classes that are stuff and left out; `None`: `outputs.stuff_classes`, or none.
            top_k: Taken over all pairs, before stuff is left out.
            distractor_ids: Classes that are not reported: a query whose best class is one of them is no object.
            min_margin: As above; only a query's best class counts then.

        Returns:
            One dictionary a picture: `segmentation` as chosen above, otherwise ids (height, width) int32 with 0 for
            void, and `segments_info`, a list of `id` (from 1), `label_id`, `was_fused` (False), `score`,
            `second_label_id` and `second_score`.

        Raises:
            ValueError: as above, for both `return_` switches at once, for `top_k` below 1, and for thresholds outside
                of [0, 1].
            ImportError: if run lengths are asked for without pycocotools.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("Choose one of `return_coco_annotation` and `return_binary_maps`; both were True.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        check_shares(
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            min_margin=min_margin,
        )
        results = []
        for item in read_predictions(outputs, target_sizes, label_ids_to_fuse, distractor_ids):
            instances = drop_empty(find_instances(item, threshold, mask_threshold, top_k, min_margin), threshold)
            if return_binary_maps:
                segmentation = instances.masks
            elif return_coco_annotation:
                segmentation = coco_run_lengths(instances.masks)
            else:
                segmentation, instances = draw_instances(instances, overlap_mask_area_threshold)
            results.append({"segmentation": segmentation, "segments_info": instance_infos(instances)})
        return results


class MaftPlusImageProcessor(MaftPlusImageProcessorMixin, TorchvisionBackend):
    """What transformers picks where torchvision is installed; the work is the same, and still PIL's."""


class MaftPlusImageProcessorPil(MaftPlusImageProcessorMixin, PilBackend):
    """What transformers picks where torchvision is not installed."""


# --- Sizes and pixels ---


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


def _resized_size(picture: Picture, fields: dict[str, Any]) -> tuple[int, int]:
    height, width = picture.size
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


def _to_pixel_values(picture: Picture, size: tuple[int, int], canvas: tuple[int, int], fields) -> Tensor:
    """Resize, rescale, normalise and pad: (3, *canvas) float32."""
    pixels = _resize_pixels(picture, size, fields) if fields["do_resize"] else np.array(picture.pixels)
    padded = torch.zeros(3, *canvas) if canvas != size else torch.empty(3, *canvas)
    inside = padded[:, : size[0], : size[1]]
    inside.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    offset, factor = _offset_and_factor(picture.is_unit, fields)
    if offset is not None:
        inside.sub_(offset).mul_(factor)
    return padded


def _resize_pixels(picture: Picture, size: tuple[int, int], fields: dict[str, Any]) -> np.ndarray:
    """(*size, 3). Floats in [0, 1] or [0, 255] are resized as the 8-bit pixels they stand for, keeping their range."""
    pixels = picture.pixels
    if isinstance(pixels, np.ndarray):
        if pixels.min() < 0 or pixels.max() > 255.5:
            return np.stack([_resize_channel(channel, size, fields) for channel in np.moveaxis(pixels, -1, 0)], -1)
        pixels = Image.fromarray(to_8_bits(pixels))
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


MaftPlusImageProcessor.register_for_auto_class("AutoImageProcessor")
MaftPlusImageProcessorPil.register_for_auto_class("AutoImageProcessor")

__all__ = ["MaftPlusImageProcessor", "MaftPlusImageProcessorPil", "read_picture"]
