"""Losses that compare the trained CLIP with the frozen original: representation compensation, self-distillation.

Sources: arXiv 2408.00744, "Representation Compensation"; arXiv 2310.00240, section 3.3, "Self-distillation Loss".
Both are means over images written as a sum over a count, so that the count may span processes and steps.
Shapes: B images, C channels, h x w last feature map, K classes (+1 = void, last), S pooled numbers of an image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

POOLING_SCALES = (1, 2, 4)


def compensation_loss(student: Tensor, teacher: Tensor, num_images: Tensor | float | None = None) -> Tensor:
    """
    SmoothL1 between the pooled profiles of two feature maps (B, C, h, w); unweighted.

    Args:
        student: Map of the trained tower; gradients reach it.
        teacher: Map of the frozen tower, same shape.
        num_images: Divisor, by default B.

    Raises:
        ValueError: if the shapes differ or the map is narrower than 4, which leaves nothing to pool at scale 4.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"`student` {tuple(student.shape)} and `teacher` {tuple(teacher.shape)} must have one shape.")
    with torch.autocast(student.device.type, enabled=False):
        difference = F.smooth_l1_loss(
            pooled_profiles(student.float()), pooled_profiles(teacher.float()).detach(), reduction="none"
        )
    return difference.mean(-1).sum() / (student.shape[0] if num_images is None else num_images)


def pooled_profiles(features: Tensor) -> Tensor:
    """
    Column and row sums of the clamped map after average pooling at three scales: (B, C, h, w) -> (B, S).

    A map that is not square is first stretched to a square of its larger side, but the windows keep the size of the
    *original width*, as in the released code: tall maps get more bins than wide ones.

    Raises:
        ValueError: if the map is narrower than 4.
    """
    height, width = features.shape[-2:]
    if width < max(POOLING_SCALES):
        raise ValueError(
            f"`features` is {width} wide, but the compensation loss pools to a quarter of the width: use images at "
            f"least {32 * max(POOLING_SCALES)} pixels wide or `compensation_weight=0`."
        )
    features = features.clamp(min=0)
    if height != width:
        side = max(height, width)
        features = F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
    return torch.cat([_profiles(F.avg_pool2d(features, width // scale)) for scale in POOLING_SCALES], dim=-1)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, num_images: Tensor | float | None = None
) -> Tensor:
    """
    SmoothL1 between the class probabilities of whole images, (B, K+1) logits, void left out; unweighted.

    Gradients reach `student_logits` only. `num_images` is the divisor, by default B.
    """
    student = student_logits.float()[..., :-1].softmax(-1)
    teacher = teacher_logits.detach().float()[..., :-1].softmax(-1)
    difference = F.smooth_l1_loss(student, teacher, reduction="none").mean(-1)
    return difference.sum() / (len(student) if num_images is None else num_images)


def _profiles(pooled: Tensor) -> Tensor:
    """Sums over rows, then sums over columns, each flattened: (B, C, s, s) -> (B, 2*C*s)."""
    return torch.cat([pooled.sum(-2).flatten(1), pooled.sum(-1).flatten(1)], dim=-1)
