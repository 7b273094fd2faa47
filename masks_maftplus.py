"""Masks that are there already: from whatever holds them to the network's proposals, and the words they get.

Source: arXiv 2310.00240, section 3 (masks from any generator, classified by CLIP).
Shapes: N masks, H x W the picture, K labels (and R distractors after them), h x w the mask grid, a quarter of the
padded input.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .postprocessing_maftplus import clearness
from .reading_maftplus import read_label_map

MOST_MASKS = 5_000  # of a label map
MASKS_AT_ONCE = 16  # resized together
GRID_STRIDE = 4  # pixels of the input a point of the mask grid, as the network's own proposals have
FIRM_LOGIT = 10.0  # of a pixel inside; its sigmoid is 1 within half precision
WITHOUT_EFFECT = ("subtask", "mask_threshold", "overlap_mask_area_threshold", "return_score_maps", "tile_size")
NESTED = ("segmentation", "mask")  # where a record of Segment Anything, or of this pipeline, holds its mask
LISTS = ("masks", "annotations")  # where the output of transformers' mask generation, or SA-1B's JSON, holds its own


@dataclass(frozen=True)
class MaskedPicture:
    """A picture with masks of it that are there already; the pipeline takes it in a picture's place."""

    picture: Any
    masks: Any


def put_masks(inputs: Any, masks: Any) -> MaskedPicture | list[MaskedPicture]:
    """A picture and its masks, or a list of pictures and a list with the masks of each, else ValueError."""
    if not isinstance(inputs, list):
        return MaskedPicture(inputs, masks)
    if not isinstance(masks, (list, tuple)) or len(masks) != len(inputs):
        raise ValueError(f"`masks` must be a list with the masks of each of the {len(inputs)} pictures.")
    return [MaskedPicture(*pair) for pair in zip(inputs, masks)]


def check_options_with_masks(options: Mapping[str, Any]) -> None:
    """Refuses, with ValueError, options that decide about masks, or cannot be had for those that are there already."""
    for name in WITHOUT_EFFECT:
        if options.get(name):
            raise ValueError(f"`{name}` has no effect on `masks` that are there already; leave it out.")


def read_masks(masks: Any, size: tuple[int, int]) -> np.ndarray:
    """
    The masks of one picture -> (N, H, W) bool, in the order given; they may overlap, and N may be 0.

    Args:
        masks: One of
            - an array or tensor (N, H, W), bool, or integers of which 0 is outside;
            - a label map, an array (H, W) of integers or a PIL image: every value but 0 is a mask, ascending; of an
              RGB image the values are R + 256 G + 65536 B, as in COCO's panoptic format;
            - a list of masks: arrays (H, W), PIL images, COCO run lengths (`{"size", "counts"}`, compressed or not),
              or dictionaries that hold such a one as `"segmentation"` (Segment Anything's automatic generator) or
              `"mask"`;
            - a dictionary that holds any of these as `"masks"` (transformers' mask generation) or `"annotations"`.
        size: (height, width) of the picture.

    Raises:
        ValueError: for anything else, and for masks of another size than the picture's; both sizes are named.
    """
    if isinstance(masks, Mapping):
        return read_masks(_entry(masks, LISTS, "`masks`"), size)
    if isinstance(masks, Image.Image):
        return _split_labels(_label_map(masks), size)
    if isinstance(masks, (Tensor, np.ndarray)):
        array = _as_numbers(masks, "`masks`")
        if array.ndim == 2:
            return _split_labels(array, size)
        masks = array
    if not isinstance(masks, Iterable) or isinstance(masks, (str, bytes)):
        raise ValueError(f"`masks` must be arrays, a label map, run lengths or records of them, got {_kind(masks)}.")
    named = ((f"`masks[{index}]`", mask) for index, mask in _each(masks))
    read = [_checked_size(_read_one(mask, name), name, size) for name, mask in named]
    return np.stack(read) if read else np.zeros((0, *size), dtype=bool)


def _each(masks: Iterable) -> Iterable[tuple[int, Any]]:
    if isinstance(masks, np.ndarray) and masks.ndim != 3:
        raise ValueError(f"`masks` must be (masks, height, width) or a label map (height, width), got {masks.shape}.")
    return enumerate(masks)


def _read_one(mask: Any, name: str) -> np.ndarray:
    """(h, w) bool."""
    if isinstance(mask, Mapping):
        return _decode_run_lengths(mask, name) if "counts" in mask else _read_one(_entry(mask, NESTED, name), name)
    array = _label_map(mask) if isinstance(mask, Image.Image) else _as_numbers(mask, name)
    if array.ndim != 2:
        raise ValueError(f"{name} must be a mask (height, width), got an array of shape {array.shape}.")
    return array != 0


def _entry(record: Mapping, names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"{where} must hold {' or '.join(map(repr, names))}, got a dictionary with {sorted(record)}.")


def _label_map(image: Image.Image) -> np.ndarray:
    if image.mode not in ("RGB", "RGBA"):
        return read_label_map(image)
    return np.asarray(image)[..., :3].astype(np.int64) @ [1, 256, 65536]


def _as_numbers(mask: Any, name: str) -> np.ndarray:
    if not isinstance(mask, (np.ndarray, Tensor)):
        raise ValueError(f"{name} must be an array, an image or run lengths, got {_kind(mask)} (a polygon?).")
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype.kind not in "bui":
        raise ValueError(
            f"{name} must be bool or integers, got {array.dtype}: give `logits > 0` or `probabilities > 0.5`."
        )
    return array


def _split_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map (H, W) -> a mask for every value but 0."""
    _checked_size(labels, "`masks`, a label map,", size)
    values = [value for value in np.unique(labels) if value != 0]
    if len(values) > MOST_MASKS:
        raise ValueError(f"`masks`, a label map, has {len(values):,} values, over {MOST_MASKS:,}; is it a picture?")
    return np.stack([labels == value for value in values]) if values else np.zeros((0, *size), dtype=bool)


def _checked_size(mask: np.ndarray, name: str, size: tuple[int, int]) -> np.ndarray:
    if mask.shape != tuple(size):
        sizes = [f"{height} x {width}" for height, width in (mask.shape, size)]
        raise ValueError(f"{name} is {sizes[0]} pixels (height x width), the picture {sizes[1]}; they must agree.")
    return mask


def _decode_run_lengths(code: Mapping, name: str) -> np.ndarray:
    """COCO's run lengths, column by column, 0 first -> (h, w) bool."""
    try:
        height, width = map(int, code["size"])
        if isinstance(code["counts"], (str, bytes)):
            return _decode_compressed(code["counts"], height, width)
        runs = np.asarray(code["counts"], dtype=np.int64)
        pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return pixels.reshape(width, height).T
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as COCO's run lengths: {error}") from error


def _decode_compressed(counts: str | bytes, height: int, width: int) -> np.ndarray:
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("Compressed run lengths need pycocotools: pip install pycocotools") from error
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return coco_mask.decode({"size": [height, width], "counts": counts}).astype(bool)


def _kind(value: Any) -> str:
    return type(value).__name__


def proposal_logits(masks: np.ndarray, pixel_mask: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """
    The masks as proposals for the padded input that shows their picture, (1, N, h, w).

    A mask so small that the tower's grid has no cell half full of it would be an empty one to CLIP. It becomes the
    cells that hold most of it, so that it is judged by what is there.

    Args:
        masks: (N, H, W) bool.
        pixel_mask: (1, padded height, padded width), 1 on the picture.
        grid_size: Cells of the tower's map, (height, width).
    """
    seen = pixel_mask[0].bool()
    unpadded, padded = (int(seen.any(1).sum()), int(seen.any(0).sum())), tuple(seen.shape)
    shape = tuple(max(1, edge // GRID_STRIDE) for edge in padded)
    shares = [pixel_mask.new_zeros(0, *shape, dtype=torch.float32)]
    for start in range(0, len(masks), MASKS_AT_ONCE):
        part = torch.from_numpy(masks[start : start + MASKS_AT_ONCE]).to(pixel_mask.device)[None].float()
        part = F.interpolate(part, size=unpadded, mode="bilinear", antialias=True)[0]
        part = F.pad(part, (0, padded[1] - unpadded[1], 0, padded[0] - unpadded[0]))
        shares.append(_keep_small(F.adaptive_avg_pool2d(part, shape), grid_size))
    return ((torch.cat(shares) * 2 - 1) * FIRM_LOGIT)[None]


def _keep_small(shares: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Shares (N, h, w) of the points' areas; masks that the tower's grid would lose fill their best cells."""
    cells = F.adaptive_avg_pool2d(shares, grid_size)
    most = cells.amax((1, 2), keepdim=True)
    seen = F.interpolate(shares[None], size=grid_size, mode="bilinear")[0].amax((1, 2)) > 0.5
    lost = ~seen & (most[:, 0, 0] > 0)
    if not lost.any():
        return shares
    best = (cells[lost] == most[lost]).float()
    shares[lost] = F.interpolate(best[None], size=shares.shape[1:], mode="nearest")[0]
    return shares


def name_masks(
    outputs: Any, labels: list[str], threshold: float = 0.0, min_margin: float = 0.0
) -> list[tuple[dict[str, Any], Tensor]]:
    """
    The best label of every mask of one picture, in the masks' order.

    Args:
        outputs: `class_queries_logits` (1, N, K + R + 1) of the masks as proposals, and the `masks` (1, N, H, W) bool.
            There is no void: a mask from elsewhere says by being there that it is something.
        labels: The K names.
        threshold: Least score.
        min_margin: How clearly the best class must lead, see the image processor.

    Returns:
        Of every mask that is not empty, that no distractor wins and that is above both limits: `mask_index`, `label`,
        `label_id`, `score`, `second_label` and `second_score` (`None` with one label); and the mask (H, W) bool.
    """
    probabilities, masks = outputs["class_queries_logits"][0].float().softmax(-1), outputs["masks"][0]
    scores, ids = probabilities[:, : len(labels)].topk(min(2, len(labels)))
    kept = (scores[:, 0] >= threshold) & (probabilities[:, :-1].argmax(-1) < len(labels))
    kept &= masks.flatten(1).any(1) & (clearness(probabilities) >= min_margin)
    return [
        ({"mask_index": index, **_named(scores[index].tolist(), ids[index].tolist(), labels)}, masks[index])
        for index in kept.nonzero()[:, 0].tolist()
    ]


def _named(scores: list[float], ids: list[int], labels: list[str]) -> dict[str, Any]:
    """What is said of a mask whose one or two best labels are these."""
    second_label, second_score = (labels[ids[1]], round(scores[1], 6)) if len(ids) > 1 else (None, None)
    best = {"label": labels[ids[0]], "label_id": ids[0], "score": round(scores[0], 6)}
    return {**best, "second_label": second_label, "second_score": second_score}


def mask_image(mask: Tensor) -> Image.Image:
    """(h, w) bool -> black and white picture (0 and 255)."""
    return Image.fromarray(mask.numpy().astype(np.uint8) * 255)


__all__ = [
    "MaskedPicture",
    "check_options_with_masks",
    "mask_image",
    "name_masks",
    "proposal_logits",
    "put_masks",
    "read_masks",
]
