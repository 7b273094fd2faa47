"""Checks of the loss functions against `losses/*.npz` (recorded values, assignments and gradients)."""

from pathlib import Path

import numpy as np
import torch
from reference_tools import Comparison, compare, compare_equal, load_arrays

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.loss_maftplus import (
    GivenPoints,
    mask_aware_loss,
    match,
    matching_cost,
    most_uncertain_points,
    normalised_overlap,
    prepare_targets,
    segmentation_losses,
    soft_iou,
)
from maftplus.train.losses import compensation_loss, pooled_profiles

RELATIVE = 1e-5


def check_mask_aware(path: Path) -> list[Comparison]:
    """Loss, soft IoUs and the gradient of the class logits."""
    arrays, comparisons = load_arrays(path), []
    for case in _cases(arrays):
        labels, masks = _labels(arrays, case)
        logits = _tensor(arrays, f"{case}/class_logits").requires_grad_()
        probabilities = _tensor(arrays, f"{case}/mask_logits").sigmoid()
        loss = mask_aware_loss(logits, probabilities, masks, labels)
        loss.backward()
        iou = torch.cat([soft_iou(p, m) for p, m in zip(probabilities, masks)])
        comparisons += [
            compare(f"{case}/loss", loss, arrays[f"{case}/loss"], RELATIVE, relative=True),
            compare(f"{case}/iou", iou, arrays[f"{case}/iou"], RELATIVE, relative=True),
            compare(f"{case}/iou_normalised", normalised_overlap(iou), arrays[f"{case}/iou_normalised"], RELATIVE),
            compare(f"{case}/grad", logits.grad, arrays[f"{case}/grad_class_logits"], RELATIVE, relative=True),
        ]
    return comparisons


def check_compensation(path: Path) -> list[Comparison]:
    """Loss, pooled profiles and the student's gradient; maps too narrow raise as recorded."""
    arrays, comparisons = load_arrays(path), []
    for case in _cases(arrays):
        student = _tensor(arrays, f"{case}/student").requires_grad_()
        teacher = _tensor(arrays, f"{case}/teacher")
        if f"{case}/raises" in arrays:
            comparisons.append(compare_equal(f"{case}/raises", _raises(student, teacher), True))
            continue
        loss = compensation_loss(student, teacher)
        loss.backward()
        pooled = pooled_profiles(student)
        comparisons += [
            compare(f"{case}/loss", loss, arrays[f"{case}/loss"], RELATIVE, relative=True),
            compare(f"{case}/pooled", pooled, arrays[f"{case}/pooled_student"], RELATIVE, relative=True),
            compare(f"{case}/grad", student.grad, arrays[f"{case}/grad_student"], RELATIVE, relative=True),
        ]
    return comparisons


def check_criterion(path: Path) -> list[Comparison]:
    """Costs, assignments, chosen points and losses of every prediction, at the recorded points."""
    arrays, comparisons = load_arrays(path), []
    for case, meta in arrays["meta_json"].items():
        labels, masks = _labels(arrays, case)
        levels = [f"aux{i}" for i in range(meta["n_aux"])] + ["final"]
        config = MaftPlusConfig(train_num_points=meta["num_points"])
        for level in levels:
            comparisons += _check_level(config, arrays, f"{case}/{level}", labels, masks)
        losses = segmentation_losses(
            config,
            [_tensor(arrays, f"{case}/{level}/pred_logits") for level in levels],
            [_tensor(arrays, f"{case}/{level}/pred_masks") for level in levels],
            None,
            masks,
            labels,
            points=[_points(arrays, f"{case}/{level}", len(labels)) for level in levels],
        )
        comparisons += [
            compare(
                f"{case}/{name}", value / _weight(config, name), arrays[f"{case}/loss/{name}"], RELATIVE, relative=True
            )
            for name, value in losses.items()
        ]
    return comparisons


def _check_level(config, arrays, name, labels, masks) -> list[Comparison]:
    class_logits, mask_logits = _tensor(arrays, f"{name}/pred_logits"), _tensor(arrays, f"{name}/pred_masks")
    targets = prepare_targets(config, masks, labels, device=class_logits.device)
    points = _points(arrays, name, len(labels))
    matches = match(config, class_logits, mask_logits, targets, points.matcher)
    comparisons = []
    for i, (source, chosen) in enumerate(matches):
        cost = matching_cost(config, class_logits[i], mask_logits[i], targets[i], points.matcher[i])
        recorded = (arrays[f"{name}/match_src_{i}"].tolist(), arrays[f"{name}/match_tgt_{i}"].tolist())
        comparisons.append(compare(f"{name}/cost_{i}", cost, arrays[f"{name}/cost_{i}"], RELATIVE, relative=True))
        comparisons.append(compare_equal(f"{name}/match_{i}", (source.tolist(), chosen.tolist()), recorded))
    matched = torch.cat([m[source] for m, (source, _) in zip(mask_logits, matches)])
    uniform = _tensor(arrays, f"{name}/loss_draw_1")
    num_uncertain = points.mask_loss.shape[1] - uniform.shape[1]
    chosen = most_uncertain_points(matched, _tensor(arrays, f"{name}/loss_draw_0"), num_uncertain)
    ours = torch.cat([chosen, uniform], dim=1)
    return [*comparisons, compare(f"{name}/loss_points", ours, points.mask_loss, 1e-6)]


def _weight(config, name: str) -> float:
    """The recorded losses carry no weights, ours do."""
    kind = name.split("_")[1]
    return {"ce": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}[kind]


def _points(arrays, name: str, num_images: int) -> GivenPoints:
    matcher = [_tensor(arrays, f"{name}/matcher_points_{i}") for i in range(num_images)]
    return GivenPoints(matcher, _tensor(arrays, f"{name}/loss_points"))


def _labels(arrays, case: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    number = sum(name.startswith(f"{case}/labels_") for name in arrays)
    names = ("labels", "gt_masks")
    return tuple([_tensor(arrays, f"{case}/{name}_{i}") for i in range(number)] for name in names)


def _cases(arrays) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in arrays if "/" in name))


def _tensor(arrays, name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(arrays[name]))


def _raises(student: torch.Tensor, teacher: torch.Tensor) -> bool:
    try:
        compensation_loss(student, teacher)
    except ValueError:
        return True
    return False
