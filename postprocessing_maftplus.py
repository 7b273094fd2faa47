"""From mask and class logits to semantic, panoptic and instance results, in tiles and with bounded memory.

Sources: MAFT+, arXiv 2408.00744, and FC-CLIP, arXiv 2308.02487 (inference); Mask2Former, arXiv 2112.01527 (the three
post-processings).
Coordinate frames, outermost first: target h x w (`target_sizes`), unpadded input, padded input H x W (bottom and right
of the unpadded one), mask grid (usually a quarter of the padded input). All resizing is bilinear, so along one axis it
is a matrix with a few numbers a row, and a result is made tile by tile from small blocks of the mask grid.
Shapes: B images, Q queries, K classes (+1 = void, last), N objects of one image.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_THRESHOLD = 0.2  # least score of a segment or object that people see

# Results are made in square tiles of the target; no more class scores than this are held at once.
TILE_EDGE = 96
TILE_NUMBERS = 1 << 21
BLOCK = 4  # points of the mask grid, down and across, whose candidate classes are found together
FEW_CLASSES = 32  # up to this many, resizing their maps whole is the fastest
LARGEST_LOGIT = 1e4  # infinite logits would turn into NaN when resized
ROUNDING = 1e-5  # bounds are widened by this much, so that rounding never excludes a winner


@dataclass
class Prediction:
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


def read_predictions(outputs, target_sizes, label_ids_to_fuse: Iterable[int] | None = None) -> Iterator[Prediction]:
    """The batch, checked, picture by picture, in float32."""
    class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
    _check_logits(class_logits, mask_logits)
    batch, num_classes = len(class_logits), class_logits.shape[-1] - 1
    padded = _sizes(outputs, "padded_sizes") or [tuple(4 * edge for edge in mask_logits.shape[-2:])] * batch
    unpadded = _sizes(outputs, "unpadded_sizes") or padded
    targets = unpadded if target_sizes is None else _checked_targets(target_sizes, batch)
    stuff = _stuff_classes(outputs, label_ids_to_fuse, batch, num_classes)
    for index in range(batch):
        masks = mask_logits[index].float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        axes = [_Axis(*sizes, masks) for sizes in zip(masks.shape[1:], padded[index], unpadded[index], targets[index])]
        yield Prediction(class_logits[index].float().softmax(-1), masks, *axes, stuff[index])


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
    label_ids = {int(label) for label in label_ids}
    wrong = sorted(label for label in label_ids if not 0 <= label < num_classes)
    if wrong:
        raise ValueError(f"`label_ids_to_fuse` must lie between 0 and {num_classes - 1}, got {wrong}.")
    return [[label in label_ids for label in range(num_classes)]] * batch


def _tiles(item: Prediction) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every tile of the target."""
    height, width = item.target_size
    for top in range(0, height, TILE_EDGE):
        for left in range(0, width, TILE_EDGE):
            yield slice(top, min(top + TILE_EDGE, height)), slice(left, min(left + TILE_EDGE, width))


def _resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps (Q, a, b) with the matrices (h, a) and (w, b) -> (Q, h, w)."""
    return torch.bmm(rows.expand(len(maps), -1, -1), maps) @ columns.T


def target_logits(item: Prediction, rows: slice, columns: slice, queries: Tensor | slice = slice(None)) -> Tensor:
    """Mask logits of the target's tile (Q, tile height, tile width)."""
    y, x = _grid_block(item, rows, columns)
    return _resample(item.masks[:, y, x][queries], item.rows.to_target[rows, y], item.columns.to_target[columns, x])


def _grid_block(item: Prediction, rows: slice, columns: slice) -> tuple[slice, slice]:
    """The mask grid's points that a tile of the target reads."""
    return tuple(axis.grid_span(axis.input_span(s)) for axis, s in ((item.rows, rows), (item.columns, columns)))


def _logit_bounds(item: Prediction, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Least and largest mask logit of every query in a tile: resizing does not leave the range of what it reads."""
    y, x = _grid_block(item, rows, columns)
    block = item.masks[:, y, x].flatten(1)
    return block.amin(1), block.amax(1)


# --- Semantic ---


def semantic_map(item: Prediction, semantic_resize: str) -> Tensor:
    """
    The best class of every pixel of the target, tile by tile, each with the few classes that can win there.

    Raises:
        ValueError: without a query, as no class would be better than another.
    """
    _require_queries(item)
    best_class = _best_by_mask_logits if semantic_resize == "mask_logits" else _best_by_class_maps
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


def _candidates(item: Prediction, weights: Tensor) -> Tensor:
    """
    The classes that can be best somewhere in a block of the mask grid: (K, blocks down, blocks across), on the CPU.

    A mask probability lies between those of the grid's least and largest logit around it, which bounds a class score,
    a sum of them with weights (K, Q). Only differences between classes decide, so what all have in common, the mean
    weights, is left out: near-uniform scores have bounds apart, too. A class whose upper bound is below the best lower
    bound cannot win, nor can it after linear resizing, since one class beats it everywhere in the block. Block i is
    for pixels that read the grid's points L to L + 2 (at most) with L + 1 in [i * BLOCK, (i + 1) * BLOCK).
    """
    shape = [edge // BLOCK + 1 for edge in item.masks.shape[1:]]
    if not (item.rows.is_enlarging and item.columns.is_enlarging):
        return torch.ones(len(weights), *shape, dtype=torch.bool)
    padded = F.pad(item.masks[None], [1, BLOCK + 1] * 2, mode="replicate")[0]
    largest, least = (_pool(padded, shape, choose).sigmoid().flatten(1) for choose in (torch.maximum, torch.minimum))
    differences = weights - weights.mean(0)
    above, below = differences.clamp(min=0), differences.clamp(max=0)
    reach = above + ROUNDING * weights  # scores are rounded in proportion to themselves
    pieces = _slices(len(weights), max(1, TILE_NUMBERS // least.shape[1]))
    best = reduce(torch.maximum, ((above[i] @ least + below[i] @ largest).amax(0) for i in pieces))
    can_win = [(reach[i] @ largest + below[i] @ least >= best).cpu() for i in pieces]
    return torch.cat(can_win).view(-1, *shape)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


def _pool(padded: Tensor, shape: list[int], choose) -> Tensor:
    """Largest or least value of blocks that overlap by two points (max_pool2d took ten times longer)."""
    for axis, length in zip((1, 2), shape):
        shifted = (padded.narrow(axis, start, padded.shape[axis] - start) for start in range(BLOCK + 2))
        strides = [slice(None)] * axis + [slice(None, None, BLOCK)]
        padded = reduce(choose, (view[tuple(strides)].narrow(axis, 0, length) for view in shifted))
    return padded


def _best_by_mask_logits(item: Prediction, weights: Tensor, rows: slice, columns: slice) -> Tensor:
    """Mask logits resized to the target, then class scores (released panoptic models)."""
    return _best_class(weights, target_logits(item, rows, columns).sigmoid_())


def _best_by_class_maps(item: Prediction, weights: Tensor, rows: slice, columns: slice) -> Tensor:
    """Class scores at the unpadded input, then resized; for many classes only where that can matter."""
    masks = _input_masks(item, rows, columns)
    if len(weights) > FEW_CLASSES:
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


def _input_masks(item: Prediction, rows: slice, columns: slice) -> Tensor:
    """Mask probabilities of the unpadded input's pixels that a tile reads (Q, a, b)."""
    y, x = item.rows.input_span(rows), item.columns.input_span(columns)
    grid_y, grid_x = item.rows.grid_span(y), item.columns.grid_span(x)
    logits = _resample(item.masks[:, grid_y, grid_x], item.rows.to_input[y, grid_y], item.columns.to_input[x, grid_x])
    return logits.sigmoid_()


def _corners(item: Prediction, rows: slice, columns: slice) -> list[tuple[Tensor, Tensor, Tensor]]:
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


def _require_queries(item: Prediction) -> None:
    if not len(item.masks):
        raise ValueError("`outputs.masks_queries_logits` must hold at least one query for a semantic result.")


def semantic_scores(item: Prediction, semantic_resize: str) -> Tensor:
    """All class maps (K, height, width). Raises as `semantic_map`."""
    _require_queries(item)
    weights = item.probabilities[:, :-1].T
    scores = weights.new_empty(len(weights), *item.target_size)
    for rows, columns in _tiles(item):
        if semantic_resize == "mask_logits":
            masks = target_logits(item, rows, columns).sigmoid_()
        else:
            y, x = item.rows.input_span(rows), item.columns.input_span(columns)
            matrices = item.rows.from_input[rows, y], item.columns.from_input[columns, x]
            masks = _resample(_input_masks(item, rows, columns), *matrices)
        scores[:, rows, columns] = (weights @ masks.flatten(1)).view(-1, *masks.shape[1:])
    return scores


# --- Panoptic ---


def panoptic_segments(item: Prediction, threshold: float, mask_threshold: float, overlap_threshold: float):
    """(segmentation (height, width) int32, segments_info)."""
    scores, labels = item.probabilities.max(-1)
    kept = (labels != item.probabilities.shape[-1] - 1) & (scores > threshold)
    item, scores, labels = replace(item, masks=item.masks[kept]), scores[kept], labels[kept]
    if not len(scores):
        return torch.zeros(item.target_size, dtype=torch.int32, device=item.masks.device), []
    winners, won, shown, areas = _compete(item, scores, mask_threshold)
    valid = (shown > 0) & (won.double() / areas.clamp(min=1) >= overlap_threshold)
    ids, infos = _number_segments(valid.tolist(), labels.tolist(), scores.tolist(), item.is_stuff)
    table = torch.tensor([*ids, 0], dtype=torch.int32, device=winners.device)
    return table[winners], infos


def _compete(item: Prediction, scores: Tensor, mask_threshold: float):
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
        logits = target_logits(item, rows, columns, queries)
        areas[queries] += _count(logits >= least_logit) * has_edge[queries]
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
class Instances:
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

    def select(self, index: Tensor) -> "Instances":
        fields = (self.scores, self.labels, self.areas, self.rows)
        return Instances(*(field[index] for field in fields), self.query_masks)


def find_instances(item: Prediction, threshold: float, mask_threshold: float, top_k: int) -> Instances:
    """The best pairs of query and thing, empty masks included, best class score first."""
    classes = item.probabilities[:, :-1]
    scores, pairs = classes.flatten().topk(min(top_k, classes.numel()))
    is_stuff = torch.tensor(item.is_stuff, device=scores.device)
    queries, labels = pairs // classes.shape[1], pairs % classes.shape[1]
    kept = ~is_stuff[labels] & (scores >= threshold)  # the mask's share of a score is at most 1
    queries, rows = queries[kept].unique(return_inverse=True)
    masks, totals, areas = _binary_masks(replace(item, masks=item.masks[queries]), mask_threshold)
    quality = totals / (areas + 1e-6)
    return Instances(scores[kept] * quality[rows], labels[kept], areas[rows], rows, masks)


def _binary_masks(item: Prediction, mask_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Masks at the target (Q, height, width) bool, the sum of their probabilities inside and their pixels (Q,)."""
    masks = torch.zeros(len(item.masks), *item.target_size, dtype=torch.bool, device=item.masks.device)
    totals, areas = item.masks.new_zeros(len(masks)), item.masks.new_zeros(len(masks), dtype=torch.int64)
    least_logit = _logit(mask_threshold)
    for rows, columns in _tiles(item):
        queries = (_logit_bounds(item, rows, columns)[1] > least_logit - ROUNDING).nonzero()[:, 0]
        logits = target_logits(item, rows, columns, queries)
        inside = logits > least_logit
        masks[queries, rows, columns] = inside
        totals[queries] += logits.sigmoid_().mul_(inside).sum((1, 2))
        areas[queries] += _count(inside)
    return masks, totals, areas


def drop_empty(instances: Instances, threshold: float) -> Instances:
    """Best score first, without empty masks and scores below `threshold`."""
    kept = (instances.areas > 0) & (instances.scores >= threshold)
    order = instances.scores.argsort(descending=True, stable=True)
    return instances.select(order[kept[order]])


def draw_instances(instances: Instances, overlap_threshold: float) -> tuple[Tensor, Instances]:
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


def instance_infos(instances: Instances) -> list[dict[str, Any]]:
    pairs = zip(instances.labels.tolist(), instances.scores.tolist())
    return [
        {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6)}
        for index, (label, score) in enumerate(pairs, start=1)
    ]


def coco_run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run lengths, with text for `counts` so that they fit into JSON."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("`return_coco_annotation=True` needs pycocotools: pip install pycocotools") from error
    encoded = [coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))) for mask in masks]
    return [{"size": list(map(int, code["size"])), "counts": code["counts"].decode("ascii")} for code in encoded]


__all__ = [
    "DEFAULT_THRESHOLD",
    "Instances",
    "Prediction",
    "check_shares",
    "draw_instances",
    "drop_empty",
    "find_instances",
    "in_float32",
    "instance_infos",
    "panoptic_segments",
    "read_predictions",
    "coco_run_lengths",
    "semantic_map",
    "semantic_scores",
    "target_logits",
]
