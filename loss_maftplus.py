"""Losses of MAFT+ that need only outputs and labels: Hungarian matcher, set criterion, mask-aware loss.

Sources: set criterion, arXiv 2112.01527 (Mask2Former), section 3.3; mask-aware loss, arXiv 2310.00240, section 3.3.
Every mean over objects, queries or images is a sum over a count (`count_targets`), so that the counts can be summed
over processes and accumulation steps once and the loss of any split of a batch is the loss of the whole batch.
Everything is computed in float32, whatever the model's type.
Shapes: B images, Q queries, K classes (+1 = void, last), N objects of one image, M matched objects of the batch,
R points of a mask, h x w mask logits, H x W padded input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Places of the three counts in `loss_counts`.
NUM_MASKS, CLASS_WEIGHT, NUM_IMAGES = range(3)


@dataclass
class GivenPoints:
    """Points of one prediction that replace the random ones: `matcher` a (R, 2) an image, `mask_loss` (M, R, 2)."""

    matcher: Sequence[Tensor]
    mask_loss: Tensor


@dataclass
class Target:
    """The objects of one image and where its random points come from."""

    masks: Tensor  # (N, H, W) float
    labels: Tensor  # (N,)
    extent: Tensor | None  # (2,) share of the width and of the height that is picture; None: all of it counts
    generator: torch.Generator | None


def segmentation_losses(
    config,
    class_logits: Sequence[Tensor],
    mask_logits: Sequence[Tensor],
    out_vocab_logits: Tensor | None,
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
    pixel_mask: Tensor | None = None,
    loss_counts: Tensor | None = None,
    point_seeds: Sequence[int] | Tensor | None = None,
    points: Sequence[GivenPoints] | None = None,
) -> dict[str, Tensor]:
    """
    Set criterion on every prediction and mask-aware loss on the last, named and weighted.

    Args:
        config: Weights and numbers of points (`MaftPlusConfig`).
        class_logits: In-vocabulary logits (B, Q, K+1) a prediction, the final one last; empty with a frozen proposer.
        mask_logits: Mask logits (B, Q, h, w) a prediction, the final one last; never empty.
        out_vocab_logits: Logits of mask-aware CLIP (B, Q, K+1), or `None`: no mask-aware loss.
        mask_labels: Masks (N, H, W) an image, of the padded size, boolean or 0 and 1; N may be 0.
        class_labels: Classes (N,) an image, from 0 to K-1.
        pixel_mask: (B, H, W), 1 on the picture; needed by `loss_padding="ignored"` only.
        loss_counts: (3,) what the sums are divided by, see `count_targets`; by default the counts of this batch.
        point_seeds: (B,) integers; an image's random points then depend on its seed alone, not on its batch mates.
        points: Given instead of random points, one entry a prediction, in the order of `mask_logits`.

    Returns:
        Scalars `loss_ce`, `loss_mask`, `loss_dice` (final prediction), `loss_ce_0`, ... (auxiliary ones in order) and
        `loss_mask_aware`. A batch without objects gives 0 for all but the class losses. Gradients reach class and
        mask logits; the mask-aware loss reaches `out_vocab_logits` only.

    Raises:
        ValueError: if a label lies outside the classes or is no integer, masks, labels, `point_seeds` and images
            differ in number, a mask has another rank or size than the padded input, or `pixel_mask` is missing.
    """
    logits = out_vocab_logits if out_vocab_logits is not None else class_logits[-1]
    _check_batch(len(logits), mask_labels, class_labels, pixel_mask, point_seeds)
    for index, (masks, labels) in enumerate(zip(mask_labels, class_labels)):
        _check_labels(index, masks, labels, num_classes=logits.shape[-1] - 1)
    if loss_counts is None:
        loss_counts = count_targets(config, class_labels, num_queries=logits.shape[1])
    counts = loss_counts.to(device=logits.device, dtype=torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        targets = prepare_targets(config, mask_labels, class_labels, pixel_mask, point_seeds, logits.device)
        losses = _criterion_of_all_predictions(config, class_logits, mask_logits, targets, counts, points)
        if out_vocab_logits is not None and config.mask_aware_weight > 0:
            masks = mask_logits[-1].detach().float().sigmoid()
            valid = pixel_mask if config.loss_padding == "ignored" else None
            loss = mask_aware_loss(out_vocab_logits, masks, mask_labels, class_labels, counts[NUM_MASKS], valid)
            losses["loss_mask_aware"] = config.mask_aware_weight * loss
    return losses


def count_targets(config, class_labels: Sequence[Tensor], num_queries: int) -> Tensor:
    """
    What the losses of a batch are divided by, (3,) float32: objects, summed class weight of all queries, images.

    The class weight is known before matching, because an image matches `min(N, num_queries)` queries. For several
    processes or accumulation steps pass the *mean* of these vectors over all of them as `loss_counts`: the mean of the
    losses is then the loss of the whole batch.
    """
    num_objects = [len(labels) for labels in class_labels]
    matched = sum(min(n, num_queries) for n in num_objects)
    unmatched = len(num_objects) * num_queries - matched
    return torch.tensor([sum(num_objects), matched + config.no_object_weight * unmatched, len(num_objects)])


def mask_aware_loss(
    out_vocab_logits: Tensor,
    masks: Tensor,
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
    num_targets: Tensor | float | None = None,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """
    Every object asks all queries to score its class by how much they overlap it (arXiv 2310.00240, section 3.3).

    Args:
        out_vocab_logits: (B, Q, K+1); the softmax leaves void out.
        masks: (B, Q, h, w) in [0, 1], resized bilinearly to the labels; no gradient passes through them.
        mask_labels, class_labels: (N, H, W) and (N,) an image.
        num_targets: Divisor, by default the number of objects in the batch.
        pixel_mask: (B, H, W); where given, only its pixels count.

    Returns:
        Scalar: SmoothL1 summed over objects, averaged over queries, divided by `num_targets`; 0 without objects.
    """
    if num_targets is None:
        num_targets = sum(len(labels) for labels in class_labels)
    probabilities = out_vocab_logits.float()[..., :-1].softmax(-1)  # (B, Q, K)
    total = probabilities.sum() * 0.0  # keeps the graph, and so DDP, whole when no image has an object
    for index, labels in enumerate(class_labels):
        if len(labels):
            valid = None if pixel_mask is None else pixel_mask[index]
            overlap = normalised_overlap(soft_iou(masks[index], mask_labels[index], valid))  # (N, Q)
            scores = probabilities[index][:, labels.to(masks.device)].T  # (N, Q)
            total = total + F.smooth_l1_loss(scores, overlap, reduction="sum") / overlap.shape[1]
    return total / _at_least_one(num_targets)


@torch.no_grad()
def soft_iou(masks: Tensor, mask_labels: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
    """
    Soft intersection over union of every object with every mask, (N, Q).

    `masks` (Q, h, w) in [0, 1] are compared with `mask_labels` (N, H, W) after bilinear resizing to H x W. Sums over
    the resized masks are linear in the masks, so the labels are carried to h x w by the transposed resizing instead:
    the same numbers without Q masks of full size.
    """
    masks, labels = masks.float(), mask_labels.to(masks.device).float()
    if pixel_mask is not None:
        labels = labels * pixel_mask.to(masks.device)
    area = torch.ones_like(labels[:1]) if pixel_mask is None else pixel_mask.to(masks.device).float()[None]
    intersection = _shrink(labels, masks.shape[-2:]).flatten(1) @ masks.flatten(1).T  # (N, Q)
    mask_area = _shrink(area, masks.shape[-2:]).flatten(1) @ masks.flatten(1).T  # (1, Q)
    union = mask_area + labels.flatten(1).sum(-1)[:, None] - intersection
    return intersection / (union + 1e-7)


def normalised_overlap(iou: Tensor) -> Tensor:
    """Min-max scaling of (N, Q) over the queries of each object."""
    low, high = iou.amin(-1, keepdim=True), iou.amax(-1, keepdim=True)
    return (iou - low) / (high - low + 1e-8)


def set_criterion(
    config,
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Sequence[Target],
    counts: Tensor,
    points: GivenPoints | None = None,
) -> dict[str, Tensor]:
    """Unweighted `loss_ce`, `loss_mask`, `loss_dice` of one prediction: (B, Q, K+1) and (B, Q, h, w) logits."""
    class_logits, mask_logits = class_logits.float(), mask_logits.float()
    matches = match(config, class_logits, mask_logits, targets, None if points is None else points.matcher)
    matched_logits = torch.cat([masks[source] for masks, (source, _) in zip(mask_logits, matches)])  # (M, h, w)
    if points is None:
        points = _important_points(config, matched_logits.detach(), targets, matches)
    else:
        points = points.mask_loss.to(matched_logits)
    sampled_labels = _sample_matched(targets, matches, points)
    sampled_logits = sample_points(matched_logits, points)  # (M, R)
    return {
        "loss_ce": class_loss(config, class_logits, targets, matches) / _at_least_one(counts[CLASS_WEIGHT]),
        "loss_mask": mask_loss(sampled_logits, sampled_labels) / _at_least_one(counts[NUM_MASKS]),
        "loss_dice": dice_loss(sampled_logits, sampled_labels) / _at_least_one(counts[NUM_MASKS]),
    }


@torch.no_grad()
def match(
    config,
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Sequence[Target],
    points: Sequence[Tensor] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """
    The cheapest assignment of queries to objects, image by image: (queries, objects), each (min(N, Q),).

    One set of `train_num_points` random points an image serves all its queries and objects (or `points`, (R, 2) an
    image). A cost that is not finite counts as a very large one, so that the loss itself reports the trouble.
    """
    costs = []
    for index, target in enumerate(targets):
        if points is None:
            coordinates = _random_points((1, config.train_num_points), target)
        else:
            coordinates = points[index].reshape(1, -1, 2).to(mask_logits)
        costs.append(matching_cost(config, class_logits[index], mask_logits[index], target, coordinates))
    return _assign(costs)


def matching_cost(config, class_logits: Tensor, mask_logits: Tensor, target: Target, points: Tensor) -> Tensor:
    """Weighted cost (Q, N) of one image from (Q, K+1) and (Q, h, w) logits at shared `points` (1, R, 2)."""
    logits = sample_points(mask_logits[None], points)[0]  # (Q, R)
    labels = sample_points(target.masks[None], points)[0]  # (N, R)
    probabilities = logits.sigmoid()
    cross_entropy = (F.softplus(logits).sum(-1)[:, None] - logits @ labels.T) / logits.shape[-1]
    areas = probabilities.sum(-1)[:, None] + labels.sum(-1)[None]
    dice = 1 - (2 * probabilities @ labels.T + 1) / (areas + 1)
    classes = -class_logits.softmax(-1)[:, target.labels]
    return config.mask_weight * cross_entropy + config.class_weight * classes + config.dice_weight * dice


def class_loss(
    config, class_logits: Tensor, targets: Sequence[Target], matches: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Weighted cross-entropy summed over all B x Q queries; unmatched ones are void, with `no_object_weight`."""
    void = class_logits.shape[-1] - 1
    labels = torch.full(class_logits.shape[:2], void, dtype=torch.long, device=class_logits.device)
    for row, target, (source, chosen) in zip(labels, targets, matches):
        row[source] = target.labels[chosen]
    weight = torch.ones(void + 1, device=class_logits.device)
    weight[void] = config.no_object_weight
    return F.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), weight, reduction="sum")


def mask_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of (M, R), mean over points, summed over objects."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice loss of (M, R) over points, with 1 added above and below, summed over objects."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * labels).sum(-1)
    return (1 - (overlap + 1) / (probabilities.sum(-1) + labels.sum(-1) + 1)).sum()


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """
    Bilinear values at `points` (M, R, 2), columns x and y in [0, 1] of the map's sides; outside a map lie zeros.

    `maps` (M, h, w) give (M, R); several maps that share points, (M, C, h, w), give (M, C, R).
    """
    shared = maps.dim() == 4
    grid = (2 * points - 1)[:, :, None]  # (M, R, 1, 2)
    values = F.grid_sample(maps if shared else maps[:, None], grid, align_corners=False)[..., 0]  # (M, C, R)
    return values if shared else values[:, 0]


def most_uncertain_points(mask_logits: Tensor, candidates: Tensor, num_points: int) -> Tensor:
    """Those `num_points` of the `candidates` (M, S, 2) at which the logits (M, h, w) lie closest to 0."""
    uncertainty = -sample_points(mask_logits, candidates).abs()
    index = uncertainty.topk(num_points, dim=1).indices
    return candidates.gather(1, index[..., None].expand(-1, -1, 2))


def prepare_targets(
    config, mask_labels, class_labels, pixel_mask=None, point_seeds=None, device: torch.device | str = "cpu"
) -> list[Target]:
    """Objects of every image as float masks on `device`, with what the random points need (`segmentation_losses`)."""
    extents = [None] * len(class_labels)
    if config.loss_padding == "ignored":
        if pixel_mask is None:
            raise ValueError("`pixel_mask` is missing; `loss_padding='ignored'` needs it to know the padding.")
        extents = _picture_extents(pixel_mask.to(device))
    generators = [None] * len(class_labels)
    if point_seeds is not None:
        generators = [torch.Generator(device).manual_seed(int(seed)) for seed in point_seeds]
    return [
        Target(masks.to(device).float(), labels.to(device).long(), extent, generator)
        for masks, labels, extent, generator in zip(mask_labels, class_labels, extents, generators)
    ]


def _criterion_of_all_predictions(config, class_logits, mask_logits, targets, counts, points) -> dict[str, Tensor]:
    """The final prediction comes first, as in the released code, so that its points do not depend on the others."""
    weights = {"loss_ce": config.class_weight, "loss_mask": config.mask_weight, "loss_dice": config.dice_weight}
    last = len(class_logits) - 1
    auxiliary = range(last) if config.use_auxiliary_loss else ()
    losses = {}
    for index in [last, *auxiliary] if class_logits else ():
        given = None if points is None else points[index]
        unweighted = set_criterion(config, class_logits[index], mask_logits[index], targets, counts, given)
        suffix = "" if index == last else f"_{index}"
        losses.update({name + suffix: weights[name] * value for name, value in unweighted.items()})
    return losses


def _picture_extents(pixel_mask: Tensor) -> Tensor:
    """Share of width and height that is picture, (B, 2); padding lies right and below."""
    mask = pixel_mask.bool()
    width, height = mask.any(1).sum(-1) / mask.shape[2], mask.any(2).sum(-1) / mask.shape[1]
    return torch.stack([width, height], dim=-1)


def _check_batch(
    num_images: int,
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
    pixel_mask: Tensor | None,
    point_seeds: Sequence[int] | Tensor | None,
) -> None:
    """Raise ValueError unless everything is there once an image and all masks have the padded size."""
    given = {"mask_labels": mask_labels, "class_labels": class_labels}
    given.update({"pixel_mask": pixel_mask, "point_seeds": point_seeds})
    for name, values in given.items():
        if values is not None and len(values) != num_images:
            raise ValueError(f"`{name}` has {len(values)} entries for {num_images} images; give one an image.")
    padded_size = None if pixel_mask is None else tuple(pixel_mask.shape[-2:])
    for index, masks in enumerate(mask_labels):
        if masks.ndim != 3:
            raise ValueError(
                f"Image {index}: `mask_labels` must be (objects, height, width), got shape {tuple(masks.shape)}."
            )
        size = tuple(masks.shape[-2:])
        padded_size = padded_size or size
        if size != padded_size:
            source = "`pixel_mask`" if pixel_mask is not None else "image 0"
            raise ValueError(
                f"Image {index}: `mask_labels` are {size[0]} x {size[1]}, but {source} is {padded_size[0]} x "
                f"{padded_size[1]}; pad the masks like the pictures."
            )


def _check_labels(index: int, masks: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless each of an image's masks has one class between 0 and `num_classes` - 1."""
    if labels.ndim != 1 or len(masks) != len(labels):
        raise ValueError(
            f"Image {index}: `class_labels` must hold one class a mask, got shape {tuple(labels.shape)} for "
            f"{len(masks)} masks in `mask_labels`."
        )
    if len(labels) == 0:
        return
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"Image {index}: `class_labels` must be integers, got {labels.dtype}.")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"Image {index}: `class_labels` must lie between 0 and {num_classes - 1}, got "
            f"{sorted(set(labels.tolist()))}; check `ignore_index` and the vocabulary."
        )


def _shrink(labels: Tensor, size: torch.Size) -> Tensor:
    """Transposed bilinear resizing of (N, H, W) to (N, h, w): what a resized h x w map's sum with `labels` weighs."""
    rows, columns = (_resizing_matrix(small, large, labels) for small, large in zip(size, labels.shape[-2:]))
    return rows.T @ labels @ columns


def _resizing_matrix(small: int, large: int, like: Tensor) -> Tensor:
    """(large, small): column j is the resized j-th unit vector."""
    units = torch.eye(small, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(units, size=large, mode="linear", align_corners=False)[0].T


def _assign(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Solve all images after one transfer to the host."""
    device = costs[0].device
    flat = torch.nan_to_num(torch.cat([cost.flatten() for cost in costs]), nan=1e6, posinf=1e6, neginf=-1e6).cpu()
    pieces = flat.split([cost.numel() for cost in costs])
    solved = [linear_sum_assignment(piece.reshape(cost.shape).numpy()) for piece, cost in zip(pieces, costs)]
    return [tuple(torch.as_tensor(side, dtype=torch.long, device=device) for side in pair) for pair in solved]


def _important_points(config, mask_logits: Tensor, targets: Sequence[Target], matches) -> Tensor:
    """Points of the mask losses (M, R, 2): most at uncertain places, the rest uniform (arXiv 1912.08193, 3.1)."""
    num_points = config.train_num_points
    num_uncertain = int(config.importance_sample_ratio * num_points)
    num_candidates = int(config.oversample_ratio * num_points)
    numbers = [len(source) for source, _ in matches]
    candidates = [_random_points((n, num_candidates), target) for n, target in zip(numbers, targets)]
    uniform = [_random_points((n, num_points - num_uncertain), target) for n, target in zip(numbers, targets)]
    uncertain = most_uncertain_points(mask_logits, torch.cat(candidates), num_uncertain)
    return torch.cat([uncertain, torch.cat(uniform)], dim=1)


def _random_points(shape: tuple[int, int], target: Target) -> Tensor:
    """Uniform points `shape` + (2,), inside the picture if padding is ignored."""
    points = torch.rand(*shape, 2, device=target.masks.device, generator=target.generator)
    return points if target.extent is None else points * target.extent


def _sample_matched(targets: Sequence[Target], matches, points: Tensor) -> Tensor:
    """Labels of the matched objects at their points (M, R, 2) -> (M, R).

    Points are put into the objects' order, not masks into the points': masks are by far the larger.
    """
    labels = []
    for target, (_, chosen), own in zip(targets, matches, points.split([len(chosen) for _, chosen in matches])):
        objects, order = chosen.sort()
        masks = target.masks if len(objects) == len(target.masks) else target.masks[objects]
        labels.append(sample_points(masks, own[order])[order.argsort()])
    return torch.cat(labels)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    """Guards only the division by a count of zero: a mean count over processes may well be a fraction."""
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count or 1


__all__ = ["GivenPoints", "count_targets", "mask_aware_loss", "segmentation_losses", "set_criterion", "soft_iou"]
