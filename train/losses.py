"""Losses that compare the trained CLIP with the frozen original: representation compensation, self-distillation.

Sources: arXiv 2408.00744, "Representation Compensation"; arXiv 2310.00240, section 3.3, "Self-distillation Loss".
Both are means over images written as a sum over a count, so that the count may span processes and steps.
Shapes: B images, C channels, h x w last feature map, H x W padded input, K classes (+1 = void, last), S pooled numbers
of an image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLING_SCALES = (1, 2, 4)


def compensation_loss(
    student: Tensor, teacher: Tensor, num_images: Tensor | float | None = None, pixel_mask: Tensor | None = None
) -> Tensor:
    """
    SmoothL1 between the pooled profiles of two feature maps (B, C, h, w); unweighted.

    Args:
        student: Map of the trained tower; gradients reach it.
        teacher: Map of the frozen tower, same shape.
        num_images: Divisor, by default B.
        pixel_mask: (B, H, W), 1 on the picture. Where given, every map is cut to the cells that show some picture, at
            least 4 in a row (`loss_padding="ignored"`); the released code keeps padding.

    Raises:
        ValueError: if the shapes differ or the map is narrower than 4, which leaves nothing to pool at scale 4.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"`student` {tuple(student.shape)} and `teacher` {tuple(teacher.shape)} must have one shape.")
    pairs = [(student.float(), teacher.float())]
    if pixel_mask is not None:
        pairs = _cut_to_pictures(*pairs[0], pixel_mask)
    with torch.autocast(student.device.type, enabled=False):
        total = sum(_profile_difference(ours, theirs) for ours, theirs in pairs)
    return total / (student.shape[0] if num_images is None else num_images)


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


def _profile_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over an image's profile, summed over images."""
    ours, theirs = pooled_profiles(student), pooled_profiles(teacher).detach()
    return F.smooth_l1_loss(ours, theirs, reduction="none").mean(-1).sum()


def _cut_to_pictures(student: Tensor, teacher: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both maps an image, (1, C, h', w') each: without padding, which lies right and below; wide enough to pool."""
    mask = pixel_mask.bool()
    sizes = mask.any(2).sum(-1), mask.any(1).sum(-1)
    pictures = torch.stack(sizes, dim=-1).tolist()  # B x (height, width) in pixels
    pairs = []
    for index, picture in enumerate(pictures):
        height, width = (
            -(-size * cells // padded) for size, cells, padded in zip(picture, student.shape[-2:], mask.shape[-2:])
        )
        window = slice(index, index + 1), slice(None), slice(height), slice(max(width, max(POOLING_SCALES)))
        pairs.append((student[window], teacher[window]))
    return pairs


def _profiles(pooled: Tensor) -> Tensor:
    """Sums over rows, then sums over columns, each flattened: (B, C, s, s) -> (B, 2*C*s)."""
    return torch.cat([pooled.sum(-2).flatten(1), pooled.sum(-1).flatten(1)], dim=-1)
