"""One picture's predictions, read and checked, and their masks at any place of the result.

Coordinate frames, outermost first: target h x w (`target_sizes`), unpadded input, padded input H x W (bottom and right
of the unpadded one), mask grid (usually a quarter of the padded input). All resizing is bilinear, so along one axis it
is a matrix with a few numbers a row, and a result is made tile by tile from small blocks of the mask grid.
Shapes: B images, Q queries, K classes (+1 = void, last), N objects of one image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

TILE_EDGE = 96  # results are made in square tiles of the target
BLOCK = 4  # points of the mask grid, down and across, whose candidate classes are found together
LARGEST_LOGIT = 1e4  # infinite logits would turn into NaN when resized


@dataclass
class Prediction:
    """
    One picture: class probabilities (Q, K+1), mask logits (Q, h, w), the linear maps of both axes, and which of the
    classes are stuff and which (K,) bool distractors.
    """

    probabilities: Tensor
    masks: Tensor
    rows: "_Axis"
    columns: "_Axis"
    is_stuff: list[bool]
    is_distractor: Tensor

    @property
    def num_classes(self) -> int:
        return self.probabilities.shape[-1] - 1

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
        grid_low, grid_high, grid_fraction = (values[:unpadded] for values in _two_nearest(grid, padded))
        low, high, self.fraction = _two_nearest(unpadded, target)
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


def _two_nearest(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
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


def in_float32(post_process):
    """A method (self, outputs, ...) without gradients and, under autocast, not in half precision: edges would move."""

    @wraps(post_process)
    def method(self, outputs, *args, **kwargs):
        device = outputs.masks_queries_logits.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return post_process(self, outputs, *args, **kwargs)

    return method


def read_predictions(
    outputs,
    target_sizes,
    label_ids_to_fuse: Iterable[int] | None = None,
    distractor_ids: Iterable[int] | None = None,
) -> Iterator[Prediction]:
    """The batch, checked, picture by picture, in float32."""
    _tell_stock_pipeline(outputs)
    class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
    _check_logits(class_logits, mask_logits)
    batch, num_classes = len(class_logits), class_logits.shape[-1] - 1
    padded = _sizes(outputs, "padded_sizes") or [tuple(4 * edge for edge in mask_logits.shape[-2:])] * batch
    unpadded = _sizes(outputs, "unpadded_sizes") or padded
    targets = unpadded if target_sizes is None else _checked_targets(target_sizes, batch)
    stuff = _stuff_classes(outputs, label_ids_to_fuse, batch, num_classes)
    distractors = _flags("distractor_ids", distractor_ids or (), num_classes)
    if all(distractors):
        raise ValueError("`distractor_ids` names every class; at least one must be left to be found.")
    distractors = torch.tensor(distractors, device=class_logits.device)
    for index in range(batch):
        masks = mask_logits[index].float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        axes = [_Axis(*sizes, masks) for sizes in zip(masks.shape[1:], padded[index], unpadded[index], targets[index])]
        yield Prediction(class_logits[index].float().softmax(-1), masks, *axes, stuff[index], distractors)


def _tell_stock_pipeline(outputs) -> None:
    """transformers' own pipeline class, known by what it adds to the outputs, drops a call's words without a word."""
    if getattr(outputs, "target_size", None) is not None:
        logger.warning_once(
            "transformers' ImageSegmentationPipeline knows the words stored in the model alone and ignores "
            "`candidate_labels`; for your words use MaftPlusSegmentationPipeline(model=model, processor=processor)."
        )


def check_shares(**values: float) -> None:
    """Raises ValueError, with the name, unless every value lies between 0 and 1."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` must lie between 0 and 1, got {value}.")


def _check_logits(class_logits: Tensor, mask_logits: Tensor) -> None:
    if class_logits.ndim != 3 or mask_logits.ndim != 4 or class_logits.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            "`outputs` must have `class_queries_logits` (B, Q, K+1) and `masks_queries_logits` (B, Q, h, w), got "
            f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}."
        )
    if class_logits.shape[-1] < 2:
        raise ValueError("`outputs.class_queries_logits` must hold at least one class beside void.")
    for name, logits in (("class_queries_logits", class_logits), ("masks_queries_logits", mask_logits)):
        if logits.isnan().any():
            raise ValueError(f"`outputs.{name}` contains NaN; in half precision try bfloat16 or float32.")
    if class_logits.isinf().any():
        raise ValueError("`outputs.class_queries_logits` is infinite somewhere; in half precision try bfloat16.")


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
    return [_flags("label_ids_to_fuse", label_ids, num_classes)] * batch


def _flags(name: str, label_ids: Iterable[int], num_classes: int) -> list[bool]:
    """Which classes are among `label_ids`; `name` is the argument's."""
    label_ids = {int(label) for label in label_ids}
    wrong = sorted(label for label in label_ids if not 0 <= label < num_classes)
    if wrong:
        raise ValueError(f"`{name}` must lie between 0 and {num_classes - 1}, got {wrong}.")
    return [label in label_ids for label in range(num_classes)]


def tiles(item: Prediction) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every tile of the target."""
    height, width = item.target_size
    for top in range(0, height, TILE_EDGE):
        for left in range(0, width, TILE_EDGE):
            yield slice(top, min(top + TILE_EDGE, height)), slice(left, min(left + TILE_EDGE, width))


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps (Q, a, b) with the matrices (h, a) and (w, b) -> (Q, h, w)."""
    return torch.bmm(rows.expand(len(maps), -1, -1), maps) @ columns.T


def target_logits(item: Prediction, rows: slice, columns: slice, queries: Tensor | slice = slice(None)) -> Tensor:
    """Mask logits of the target's tile (Q, tile height, tile width)."""
    y, x = grid_block(item, rows, columns)
    return resample(item.masks[:, y, x][queries], item.rows.to_target[rows, y], item.columns.to_target[columns, x])


def grid_block(item: Prediction, rows: slice, columns: slice) -> tuple[slice, slice]:
    """The mask grid's points that a tile of the target reads."""
    return tuple(axis.grid_span(axis.input_span(s)) for axis, s in ((item.rows, rows), (item.columns, columns)))


def logit_bounds(item: Prediction, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Least and largest mask logit of every query in a tile: resizing does not leave the range of what it reads."""
    y, x = grid_block(item, rows, columns)
    block = item.masks[:, y, x].flatten(1)
    return block.amin(1), block.amax(1)


__all__ = [
    "BLOCK",
    "Prediction",
    "check_shares",
    "grid_block",
    "in_float32",
    "logit_bounds",
    "read_predictions",
    "resample",
    "target_logits",
    "tiles",
]
