"""Masks that are there already: from whatever holds them to the network's proposals, and the words they get.

Source: arXiv 2310.00240, section 3 (masks from any generator, classified by CLIP).
Shapes: N masks, H x W the picture, K labels (and R distractors after them), h x w the mask grid, a quarter of the
padded input.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .reading_maftplus import read_label_map

MASKS_AT_ONCE = 16  # resized together
GRID_STRIDE = 4  # pixels of the input a point of the mask grid, as the network's own proposals have
FIRM_LOGIT = 10.0  # of a pixel inside; its sigmoid is 1 within half precision
NESTED = ("segmentation", "mask")  # where a record of Segment Anything, or of this pipeline, holds its mask
LISTS = ("masks", "annotations")  # where the output of transformers' mask generation, or SA-1B's JSON, holds its own


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
    best = (cells[lost] == most[lost]).float()
    shares[lost] = F.interpolate(best[None], size=shares.shape[1:], mode="nearest")[0]
    return shares


def name_masks(
    probabilities: Tensor, labels: list[str], threshold: float = 0.0, is_kept: Tensor | None = None
) -> list[dict[str, Any]]:
    """
    The best label of every mask, in the masks' order.

    Args:
        probabilities: (N, K + R), those of a mask add up to 1; there is no void, as a mask from elsewhere says so by
            being there.
        labels: The K names.
        threshold: Least score. 0: every mask that no distractor wins.
        is_kept: (N,) bool, of masks that count at all.

    Returns:
        `mask_index`, `label`, `label_id`, `score`, `second_label` and `second_score` (`None` with one label) of every
        mask that counts, whose best class is a label and whose score is at least `threshold`.
    """
    scores, ids = probabilities[:, : len(labels)].topk(min(2, len(labels)))
    kept = (scores[:, 0] >= threshold) & (probabilities.argmax(-1) < len(labels))
    kept = kept if is_kept is None else kept & is_kept
    results = []
    for index in kept.nonzero()[:, 0].tolist():
        (score, *other_score), (label_id, *other_id) = scores[index].tolist(), ids[index].tolist()
        results.append(
            {
                "mask_index": index,
                "label": labels[label_id],
                "label_id": label_id,
                "score": round(score, 6),
                "second_label": labels[other_id[0]] if other_id else None,
                "second_score": round(other_score[0], 6) if other_id else None,
            }
        )
    return results


__all__ = ["name_masks", "proposal_logits", "read_masks"]
