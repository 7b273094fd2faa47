"""From mask and class logits to semantic, panoptic and instance results, in tiles and with bounded memory.

Sources: MAFT+, arXiv 2408.00744, and FC-CLIP, arXiv 2308.02487 (inference); Mask2Former, arXiv 2112.01527 (the three
post-processings).
`predictions_maftplus.py` explains the coordinate frames.
Shapes: B images, Q queries, K classes (+1 = void, last), N objects of one image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .predictions_maftplus import BLOCK, Prediction, logit_bounds, resample, target_logits, tiles

DEFAULT_THRESHOLD = 0.2  # least score of a segment or object that people see
VOID = -1  # in a semantic map, where a distractor is best

TILE_NUMBERS = 1 << 21  # no more class scores than this are held at once
LARGEST_MAPS = 1 << 28  # numbers that score maps may hold, 1 GiB
FEW_CLASSES = 32  # up to this many, resizing their maps whole is the fastest
ROUNDING = 1e-5  # bounds are widened by this much, so that rounding never excludes a winner


# --- How clear a query's class is ---


def clearness(probabilities: Tensor) -> Tensor:
    """
    How clearly one class leads in every query, in [0, 1]: s1 * sqrt(s1 - s2), to the power of 1 / 1.25.

    Args:
        probabilities: (Q, K+1), void last; s1 and s2 are the two best of the others, s2 = 0 with a single class.

    Returns:
        (Q,); a segment counts if this is at least `min_margin`.
    """
    best = F.pad(probabilities[:, :-1], (0, 1)).topk(2).values  # one class: the second is the zero beside it
    return (best[:, 0] * (best[:, 0] - best[:, 1]).sqrt()) ** 0.8


def runners_up(item: Prediction, queries: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """
    The next best label of every segment beside its own: `second_label_id` and `second_score`; distractors are no
    labels, and both are `None` where there is no other label.

    Args:
        queries, labels: (N,), the query and the class of every segment.
    """
    others = item.probabilities[queries, :-1]
    others[:, item.is_distractor] = -1
    scores, seconds = others.scatter(1, labels[:, None], -1).max(1)
    pairs = zip(seconds.tolist(), scores.tolist())
    return [
        {"second_label_id": label, "second_score": round(score, 6)}
        if score >= 0
        else {"second_label_id": None, "second_score": None}
        for label, score in pairs
    ]


# --- Semantic ---


def semantic_map(item: Prediction, semantic_resize: str) -> Tensor:
    """
    The best class of every pixel of the target, tile by tile, each with the few classes that can win there; `VOID`
    where that is a distractor.

    Raises:
        ValueError: without a query, as no class would be better than another.
    """
    _require_queries(item)
    best_class = _best_by_mask_logits if semantic_resize == "mask_logits" else _best_by_class_maps
    weights = item.probabilities[:, :-1].T.contiguous()  # (K, Q)
    candidates = _candidates(item, weights)
    result = torch.empty(item.target_size, dtype=torch.int64, device=weights.device)
    for rows, columns in tiles(item):
        blocks = candidates[:, item.rows.block_span(rows), item.columns.block_span(columns)]
        classes = blocks.flatten(1).any(1).nonzero()[:, 0].to(weights.device)
        if len(classes) > 1:
            classes = classes[best_class(item, weights[classes], rows, columns)]
        result[rows, columns] = classes
    return hide_distractors(result, item)


def join_mirrored(outputs: Any, mirrored: Any) -> dict[str, Any]:
    """
    The queries of pictures and of their mirror images together, (B, 2Q, ...). A class map is a sum over queries, so
    with half of every probability it is the mean of both pictures' maps; other results would see everything twice.

    Args:
        outputs, mirrored: The model's, of padded inputs and of the same flipped left to right.
    """
    both = [one["class_queries_logits"].float().softmax(-1) / 2 for one in (outputs, mirrored)]
    probabilities = torch.cat(both, dim=1)
    probabilities[..., -1] += 0.5  # what was taken from the classes
    masks = [outputs["masks_queries_logits"], mirrored["masks_queries_logits"].flip(-1)]
    joined = {"class_queries_logits": probabilities.log(), "masks_queries_logits": torch.cat(masks, dim=1)}
    return {**outputs, **joined}


def hide_distractors(labels: Tensor, item: Prediction) -> Tensor:
    """A map of classes (height, width) with `VOID` in the place of distractors."""
    return labels.masked_fill(item.is_distractor[labels], VOID) if item.is_distractor.any() else labels


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
    return resample(class_maps, item.rows.from_input[rows, y], item.columns.from_input[columns, x]).max(0).indices


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
    logits = resample(item.masks[:, grid_y, grid_x], item.rows.to_input[y, grid_y], item.columns.to_input[x, grid_x])
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
    scores = item.probabilities.new_empty(item.num_classes, *item.target_size)
    for rows, columns, tile in _class_scores(item, semantic_resize):
        scores[:, rows, columns] = tile
    return scores


def score_maps(item: Prediction, semantic_resize: str) -> tuple[Tensor, Tensor]:
    """
    How much every label is believed in everywhere: its share of the class scores, distractors included, where these
    exceed 1 in sum, else its score; so the labels add up to at most 1, and what is missing is void or a distractor.
    Where labels alone compete, the largest of them is the semantic result.

    Returns:
        Maps (labels, height, width), and the largest of them (height, width), both float32 in [0, 1].

    Raises:
        ValueError: as `semantic_map`, and for maps of more than `LARGEST_MAPS` numbers.
    """
    is_label = ~item.is_distractor
    size = (int(is_label.sum()), *item.target_size)
    if math.prod(size) > LARGEST_MAPS:
        raise ValueError(
            f"Score maps of {size[0]} labels at {size[1]} x {size[2]} pixels would hold more than {LARGEST_MAPS:,} "
            "numbers; ask for fewer labels at a time, or give a smaller picture."
        )
    maps, confidence = item.probabilities.new_empty(size), item.probabilities.new_empty(size[1:])
    for rows, columns, tile in _class_scores(item, semantic_resize):
        shares = (tile / tile.sum(0).clamp(min=1))[is_label]
        maps[:, rows, columns] = shares
        confidence[rows, columns] = shares.amax(0)
    return maps, confidence


def _class_scores(item: Prediction, semantic_resize: str) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and class scores (K, tile height, tile width) of every tile of the target."""
    _require_queries(item)
    for rows, columns in tiles(item):
        yield rows, columns, class_scores_at(item, semantic_resize, rows, columns)


def class_scores_at(item: Prediction, semantic_resize: str, rows: slice, columns: slice) -> Tensor:
    """Class scores of some rows and columns of the target, (K, rows, columns)."""
    if semantic_resize == "mask_logits":
        masks = target_logits(item, rows, columns).sigmoid_()
    else:
        y, x = item.rows.input_span(rows), item.columns.input_span(columns)
        matrices = item.rows.from_input[rows, y], item.columns.from_input[columns, x]
        masks = resample(_input_masks(item, rows, columns), *matrices)
    return (item.probabilities[:, :-1].T @ masks.flatten(1)).view(-1, *masks.shape[1:])


# --- Panoptic ---


def panoptic_segments(
    item: Prediction, threshold: float, mask_threshold: float, overlap_threshold: float, min_margin: float = 0.0
):
    """(segmentation (height, width) int32, segments_info). Pixels that distractors win are nobody's."""
    scores, labels = item.probabilities.max(-1)
    kept = (labels != item.num_classes) & (scores > threshold) & (clearness(item.probabilities) >= min_margin)
    queries = kept.nonzero()[:, 0]
    scores, labels = scores[kept], labels[kept]
    if not len(scores):
        return torch.zeros(item.target_size, dtype=torch.int32, device=item.masks.device), []
    winners, won, shown, areas = _compete(replace(item, masks=item.masks[kept]), scores, mask_threshold)
    valid = (shown > 0) & (won.double() / areas.clamp(min=1) >= overlap_threshold) & ~item.is_distractor[labels]
    was_fused = [item.is_stuff[label] for label in labels.tolist()]
    candidates = _segment_infos(labels, scores, was_fused, runners_up(item, queries, labels))
    ids, infos = _number_segments(valid.tolist(), candidates)
    table = torch.tensor([*ids, 0], dtype=torch.int32, device=winners.device)
    return table[winners], infos


def _segment_infos(
    labels: Tensor, scores: Tensor, was_fused: list[bool], seconds: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What is said of every candidate, but for its id."""
    return [
        {"label_id": label, "was_fused": is_fused, "score": round(score, 6), **second}
        for label, is_fused, score, second in zip(labels.tolist(), was_fused, scores.tolist(), seconds)
    ]


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
    for rows, columns in tiles(item):
        low, high = logit_bounds(item, rows, columns)
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


def _number_segments(valid: list[bool], candidates: list[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
    """Segment id of every query (0: none) and the segments; stuff of one class is one segment, the best one's."""
    ids, infos, stuff = [], [], {}
    for is_valid, candidate in zip(valid, candidates):
        if not is_valid:
            ids.append(0)
            continue
        known = stuff.get(candidate["label_id"]) if candidate["was_fused"] else None
        if known is None:
            known = {"id": len(infos) + 1, **candidate}
            infos.append(known)
            if candidate["was_fused"]:
                stuff[candidate["label_id"]] = known
        elif candidate["score"] > known["score"]:
            known.update(candidate)
        ids.append(known["id"])
    return ids, infos


# --- Instances ---


@dataclass
class Instances:
    """
    `scores`, `labels` and `areas` (N,); `rows` (N,) of `query_masks` (queries, height, width) bool, as one mask can
    be there under several classes. `seconds`: what `runners_up` says of each.
    """

    scores: Tensor
    labels: Tensor
    areas: Tensor
    rows: Tensor
    query_masks: Tensor
    seconds: list[dict[str, Any]]

    @property
    def masks(self) -> Tensor:
        """(N, height, width) bool."""
        return self.query_masks[self.rows]

    def select(self, index: Tensor) -> "Instances":
        fields = (self.scores, self.labels, self.areas, self.rows)
        seconds = [self.seconds[position] for position in index.tolist()]
        return Instances(*(field[index] for field in fields), self.query_masks, seconds)


def find_instances(
    item: Prediction, threshold: float, mask_threshold: float, top_k: int, min_margin: float = 0.0
) -> Instances:
    """The best pairs of query and thing, empty masks included, best class score first."""
    classes = item.probabilities[:, :-1].masked_fill(_dropped_pairs(item, min_margin), -1)
    scores, pairs = classes.flatten().topk(min(top_k, classes.numel()))
    is_stuff = torch.tensor(item.is_stuff, device=scores.device)
    queries, labels = pairs // classes.shape[1], pairs % classes.shape[1]
    kept = ~is_stuff[labels] & (scores >= threshold)  # the mask's share of a score is at most 1
    seconds = runners_up(item, queries[kept], labels[kept])
    queries, rows = queries[kept].unique(return_inverse=True)
    masks, totals, areas = _binary_masks(replace(item, masks=item.masks[queries]), mask_threshold)
    quality = totals / (areas + 1e-6)
    return Instances(scores[kept] * quality[rows], labels[kept], areas[rows], rows, masks, seconds)


def _dropped_pairs(item: Prediction, min_margin: float) -> Tensor:
    """
    Which pairs of query and class are no objects, (Q, K): all of a query whose best class is a distractor; with a
    `min_margin` also all but the best one, and that if it leads by too little.
    """
    classes = item.probabilities[:, :-1]
    if classes.numel() == 0 or (min_margin == 0 and not item.is_distractor.any()):
        return torch.zeros_like(classes, dtype=torch.bool)
    best = classes.argmax(1)
    dropped = item.is_distractor | item.is_distractor[best][:, None]
    if min_margin > 0:
        is_clear = clearness(item.probabilities) >= min_margin
        dropped = dropped | ~(F.one_hot(best, classes.shape[1]).bool() & is_clear[:, None])
    return dropped


def _binary_masks(item: Prediction, mask_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Masks at the target (Q, height, width) bool, the sum of their probabilities inside and their pixels (Q,)."""
    masks = torch.zeros(len(item.masks), *item.target_size, dtype=torch.bool, device=item.masks.device)
    totals, areas = item.masks.new_zeros(len(masks)), item.masks.new_zeros(len(masks), dtype=torch.int64)
    least_logit = _logit(mask_threshold)
    for rows, columns in tiles(item):
        queries = (logit_bounds(item, rows, columns)[1] > least_logit - ROUNDING).nonzero()[:, 0]
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
    infos = _segment_infos(instances.labels, instances.scores, [False] * len(instances.labels), instances.seconds)
    return [{"id": index, **info} for index, info in enumerate(infos, start=1)]


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
    "VOID",
    "Instances",
    "clearness",
    "coco_run_lengths",
    "draw_instances",
    "drop_empty",
    "find_instances",
    "hide_distractors",
    "instance_infos",
    "join_mirrored",
    "panoptic_segments",
    "score_maps",
    "semantic_map",
    "semantic_scores",
]
