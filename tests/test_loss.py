"""Losses: cases computed by hand, empty targets, which inputs a gradient reaches, counts that span a split batch."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from maftplus.loss_maftplus import (
    count_targets,
    mask_aware_loss,
    match,
    prepare_targets,
    sample_points,
    segmentation_losses,
    soft_iou,
)
from maftplus.train.losses import compensation_loss, distillation_loss, pooled_profiles

Q, K, SIDE = 6, 4, 16


def make_config(**changes):
    values = {
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "no_object_weight": 0.1,
        "mask_aware_weight": 1.0,
        "train_num_points": 32,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
        "use_auxiliary_loss": True,
        "loss_padding": "released",
    }
    return SimpleNamespace(**{**values, **changes})


def make_batch(numbers=(2, 0, 3), seed=0):
    """Logits that require gradients, masks of one row band an object, labels."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(len(numbers), Q, K + 1, generator=generator).requires_grad_()
    mask_logits = torch.randn(len(numbers), Q, SIDE // 4, SIDE // 4, generator=generator).requires_grad_()
    clip_logits = torch.randn(len(numbers), Q, K + 1, generator=generator).requires_grad_()
    masks = [torch.rand(n, SIDE, SIDE, generator=generator) > 0.5 for n in numbers]
    labels = [torch.randint(K, (n,), generator=generator) for n in numbers]
    return class_logits, mask_logits, clip_logits, masks, labels


def losses_of(batch, config=None, **kwargs):
    class_logits, mask_logits, clip_logits, masks, labels = batch
    return segmentation_losses(
        config or make_config(), [class_logits], [mask_logits], clip_logits, masks, labels, **kwargs
    )


def test_a_right_mask_costs_far_less_than_a_wrong_one():
    masks = [torch.zeros(1, SIDE, SIDE)]
    masks[0][:, : SIDE // 2] = 1
    right = (masks[0] * 2 - 1)[None] * 4
    class_logits = torch.tensor([[[50.0, 0.0]]])
    costs = [
        segmentation_losses(make_config(), [class_logits], [logits], None, masks, [torch.tensor([0])], point_seeds=[0])
        for logits in (right, -right)
    ]
    assert costs[0]["loss_ce"] < 1e-5
    assert costs[0]["loss_mask"] < 0.3 * costs[1]["loss_mask"]  # the border between 0 and 1 costs either way
    assert costs[0]["loss_dice"] < 0.3 * costs[1]["loss_dice"]


def test_class_loss_is_the_hand_computed_weighted_mean():
    class_logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # one class and void, two queries
    mask_logits = torch.tensor([[[[9.0]], [[-9.0]]]])
    masks, labels = [torch.ones(1, 4, 4)], [torch.tensor([0])]
    losses = segmentation_losses(make_config(class_weight=1.0), [class_logits], [mask_logits], None, masks, labels)
    matched, void = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))
    assert losses["loss_ce"].item() == pytest.approx((matched + 0.1 * void) / 1.1, rel=1e-5)


def test_mask_and_dice_losses_of_a_constant_mask_are_the_hand_computed_ones():
    class_logits, mask_logits = torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 4)
    config = make_config(mask_weight=1.0, dice_weight=1.0)
    losses = segmentation_losses(
        config, [class_logits], [mask_logits], None, [torch.ones(1, 8, 8)], [torch.tensor([0])], point_seeds=[0]
    )
    assert losses["loss_mask"].item() == pytest.approx(math.log(2), rel=1e-4)
    assert losses["loss_dice"].item() == pytest.approx(1 - (2 * 16 + 1) / (16 + 32 + 1), rel=0.05)


def test_mask_aware_loss_is_the_hand_computed_smooth_l1():
    logits = torch.tensor([[[0.0, 0.0, 9.0], [math.log(3), 0.0, -9.0]]])  # class 0: 1/2 and 3/4, void left out
    masks = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])[None]  # overlaps 1 and 0
    loss = mask_aware_loss(logits, masks, [torch.ones(1, 2, 2)], [torch.tensor([0])])
    assert loss.item() == pytest.approx((0.5 * 0.5**2 + 0.5 * 0.75**2) / 2, rel=1e-5)


def test_soft_iou_equals_that_of_resized_masks():
    masks, labels = torch.rand(5, 6, 9), torch.rand(3, 25, 31) > 0.5
    resized = F.interpolate(masks[None], size=(25, 31), mode="bilinear")[0].flatten(1)
    flat = labels.flatten(1).float()
    intersection = flat @ resized.T
    expected = intersection / (flat.sum(1)[:, None] + resized.sum(1)[None] - intersection)
    torch.testing.assert_close(soft_iou(masks, labels), expected, rtol=1e-5, atol=1e-6)


def test_sampled_points_are_bilinear_values_at_pixel_centres():
    image = torch.arange(12.0).reshape(1, 3, 4)
    points = torch.tensor([[[0.5 / 4, 0.5 / 3], [1.0 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3]]])
    torch.testing.assert_close(sample_points(image, points), torch.tensor([[0.0, 0.5, 11.0]]))


def test_matcher_gives_every_object_its_own_mask():
    order = [3, 0, 5]
    mask_logits = torch.full((1, Q, SIDE, SIDE), -10.0)
    masks = torch.zeros(3, SIDE, SIDE)
    for row, query in enumerate(order):
        masks[row, 5 * row : 5 * row + 5] = 1
        mask_logits[0, query, 5 * row : 5 * row + 5] = 10.0
    config = make_config(train_num_points=256)
    targets = prepare_targets(config, [masks], [torch.tensor([0, 1, 2])])
    ((queries, objects),) = match(config, torch.zeros(1, Q, K + 1), mask_logits, targets)
    assert dict(zip(objects.tolist(), queries.tolist())) == dict(enumerate(order))


def test_more_objects_than_queries_match_every_query_once_and_all_are_counted():
    batch = make_batch(numbers=(Q + 3,))
    losses = losses_of(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    counts = count_targets(make_config(), batch[-1], Q)
    torch.testing.assert_close(counts, torch.tensor([Q + 3.0, Q, 1.0]))


def test_a_batch_without_objects_has_finite_losses_and_whole_gradients():
    class_logits, mask_logits, clip_logits, masks, labels = batch = make_batch(numbers=(0, 0))
    losses = losses_of(batch)
    assert losses["loss_ce"] > 0
    assert losses["loss_mask"] == losses["loss_dice"] == losses["loss_mask_aware"] == 0
    sum(losses.values()).backward()
    assert mask_logits.grad.abs().sum() == clip_logits.grad.abs().sum() == 0
    assert class_logits.grad.abs().sum() > 0


def test_mask_aware_loss_reaches_clip_logits_only_and_not_their_void():
    class_logits, mask_logits, clip_logits, *_ = batch = make_batch()
    losses_of(batch)["loss_mask_aware"].backward()
    assert class_logits.grad is None
    assert mask_logits.grad is None
    assert clip_logits.grad[..., :-1].abs().sum() > 0
    assert clip_logits.grad[..., -1].abs().sum() == 0


def test_criterion_reaches_class_and_mask_logits_only():
    class_logits, mask_logits, clip_logits, *_ = batch = make_batch()
    losses = losses_of(batch)
    sum(losses[name] for name in ("loss_ce", "loss_mask", "loss_dice")).backward()
    assert clip_logits.grad is None
    assert class_logits.grad.abs().sum() > 0
    assert mask_logits.grad.abs().sum() > 0


def test_mean_counts_make_the_parts_of_a_batch_average_to_the_whole():
    batch, config, seeds = make_batch(numbers=(2, 0, 3, 1)), make_config(), [11, 12, 13, 14]
    whole = losses_of(batch, point_seeds=seeds)
    parts = [tuple(part[half] for part in batch) for half in (slice(0, 2), slice(2, 4))]
    counts = torch.stack([count_targets(config, part[-1], Q) for part in parts]).mean(0)
    halves = [
        losses_of(part, loss_counts=counts, point_seeds=half) for part, half in zip(parts, (seeds[:2], seeds[2:]))
    ]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value, rtol=1e-5, atol=1e-6)


def test_points_depend_on_the_sample_s_seed_not_on_its_batch_mates():
    batch, config = make_batch(numbers=(2, 3)), make_config(mask_aware_weight=0)
    alone = [tuple(part[i : i + 1] for part in batch) for i in (0, 1)]
    numbers = torch.tensor([2.0, 3.0])
    for counted in ("loss_mask", "loss_dice"):
        together = losses_of(batch, config, point_seeds=[5, 6])[counted]
        apart = torch.stack([losses_of(a, config, point_seeds=[s])[counted] for a, s in zip(alone, (5, 6))])
        torch.testing.assert_close(together, (apart * numbers).sum() / 5)


def test_auxiliary_predictions_have_losses_of_their_own():
    class_logits, mask_logits, clip_logits, masks, labels = make_batch()
    names = {"loss_ce", "loss_mask", "loss_dice", "loss_mask_aware"}
    auxiliary = {f"{name}_0" for name in names - {"loss_mask_aware"}}
    for use, expected in ((True, names | auxiliary), (False, names)):
        config = make_config(use_auxiliary_loss=use)
        losses = segmentation_losses(config, [class_logits] * 2, [mask_logits] * 2, clip_logits, masks, labels)
        assert losses.keys() == expected


def test_losses_of_half_precision_logits_are_float32_and_finite():
    batch = make_batch()
    half = tuple(part.detach().bfloat16() for part in batch[:3])
    for loss in losses_of((*half, *batch[3:])).values():
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)


def test_ignored_padding_does_not_change_a_loss():
    class_logits, mask_logits, clip_logits, masks, labels = batch = make_batch(numbers=(2,))
    config, seeds = make_config(loss_padding="ignored"), [3]
    right = torch.full_like(mask_logits, 7.0)
    padded_masks = [F.pad(m, (0, SIDE)) for m in masks]
    mask = torch.cat([torch.ones(1, SIDE, SIDE), torch.zeros(1, SIDE, SIDE)], dim=2)
    wide = (class_logits, torch.cat([mask_logits, right], dim=3), clip_logits, padded_masks, labels)
    padded = losses_of(wide, config, pixel_mask=mask, point_seeds=seeds)
    plain = losses_of(batch, config, pixel_mask=torch.ones(1, SIDE, SIDE), point_seeds=seeds)
    released = losses_of(wide, make_config(), pixel_mask=mask, point_seeds=seeds)
    torch.testing.assert_close(padded["loss_ce"], plain["loss_ce"])
    for name in ("loss_mask", "loss_dice", "loss_mask_aware"):  # bilinear values at the border still see beyond it
        assert abs(padded[name] - plain[name]) < 0.1 * plain[name]
        assert abs(released[name] - plain[name]) > abs(padded[name] - plain[name])


def test_a_cost_that_is_not_finite_leaves_the_report_to_the_loss():
    class_logits, mask_logits, clip_logits, masks, labels = make_batch()
    broken = torch.full_like(class_logits, float("nan"))
    losses = losses_of((broken, mask_logits, clip_logits, masks, labels))
    assert torch.isnan(losses["loss_ce"])


def test_a_label_outside_the_vocabulary_is_an_error_that_says_so():
    *rest, labels = make_batch()
    with pytest.raises(ValueError, match="between 0 and 3"):
        losses_of((*rest, [labels[0] + K, *labels[1:]]))


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("`mask_labels` has 2 entries for 3 images", lambda masks, labels: {"masks": masks[:2]}),
        ("`class_labels` has 2 entries for 3 images", lambda masks, labels: {"labels": labels[:2]}),
        ("`point_seeds` has 2 entries for 3 images", lambda masks, labels: {"point_seeds": [1, 2]}),
        (
            "Image 0: `mask_labels` must be .* shape \\(16, 16\\)",
            lambda masks, labels: {"masks": [masks[0][0], *masks[1:]]},
        ),
        (
            "Image 2: `mask_labels` are 8 x 16, but image 0",
            lambda masks, labels: {"masks": [*masks[:2], masks[2][:, :8]]},
        ),
        ("`mask_labels` are 16 x 16, but `pixel_mask`", lambda masks, labels: {"pixel_mask": torch.ones(3, 16, 20)}),
        (
            "Image 0: `class_labels` must hold one class a mask",
            lambda masks, labels: {"labels": [labels[0][:1], *labels[1:]]},
        ),
        (
            "Image 0: `class_labels` must hold one class a mask",
            lambda masks, labels: {"labels": [labels[0][:, None], *labels[1:]]},
        ),
        ("Image 0: `class_labels` must be integers", lambda masks, labels: {"labels": [labels[0] + 0.5, *labels[1:]]}),
    ],
)
def test_labels_that_do_not_fit_the_images_are_named(message, change):
    *logits, masks, labels = make_batch()
    given = change(masks, labels)
    batch = (*logits, given.pop("masks", masks), given.pop("labels", labels))
    with pytest.raises(ValueError, match=message):
        losses_of(batch, **given)


def test_missing_pixel_mask_is_an_error_when_padding_is_ignored():
    with pytest.raises(ValueError, match="`pixel_mask` is missing"):
        losses_of(make_batch(), make_config(loss_padding="ignored"))


def test_compensation_of_a_constant_difference_is_the_hand_computed_one():
    student, teacher = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    # Scales 1, 2, 4 pool to sides 1, 2, 4: two sums of 1, four of 2, eight of 4; SmoothL1 of x > 1 is x - 1/2.
    expected = (2 * 0.5 + 4 * 1.5 + 8 * 3.5) / 14
    assert compensation_loss(student, teacher).item() == pytest.approx(expected)
    assert compensation_loss(student, teacher, num_images=4).item() == pytest.approx(expected / 4)


def test_compensation_reaches_the_student_only_and_refuses_narrow_maps():
    student, teacher = torch.rand(2, 3, 5, 7, requires_grad=True), torch.rand(2, 3, 5, 7, requires_grad=True)
    compensation_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="at least 128"):
        pooled_profiles(torch.rand(1, 2, 9, 3))


def test_compensation_that_ignores_padding_is_that_of_the_pictures_alone():
    student, teacher = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
    mask = torch.zeros(2, 64, 64)
    mask[0, :64, :40], mask[1, :33, :16] = 1, 1  # 8 x 5 cells; 5 x 2, of which pooling makes 5 x 4
    loss = compensation_loss(student, teacher, pixel_mask=mask)
    alone = [compensation_loss(student[:1, :, :, :5], teacher[:1, :, :, :5])]
    alone.append(compensation_loss(student[1:, :, :5, :4], teacher[1:, :, :5, :4]))
    torch.testing.assert_close(loss, sum(alone) / 2)
    torch.testing.assert_close(
        compensation_loss(student, teacher, pixel_mask=mask * 0 + 1), compensation_loss(student, teacher)
    )
    loss.backward()
    assert student.grad[0, :, :, 5:].abs().sum() == student.grad[1, :, 5:].abs().sum() == 0


def test_distillation_is_zero_for_equal_logits_and_blind_to_void():
    student, teacher = torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[math.log(3), 0.0, -5.0]])
    assert distillation_loss(teacher, teacher) == 0
    assert distillation_loss(student, teacher).item() == pytest.approx(0.5 * 0.25**2)
