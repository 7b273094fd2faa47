"""What a training step costs: one trunk pass against two, our losses against transformers' Mask2FormerLoss and others.

    OMP_NUM_THREADS=2 python benchmarks/training.py --images 2 --side 512

Trunk: a step of a small MAFT+ as it is, and with the second pass that the released code makes for the segmenter's
detached features. Set criterion: one prediction, forward and backward, as many points. Soft IoU (of the
mask-aware loss): all queries and objects at label size, by the transposed resizing and by resizing every mask.
Medians; ratios matter, not seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.loss_maftplus import segmentation_losses, soft_iou
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.train.trainer import freeze_all_but_trainable


def main() -> None:
    """Measure and print; there is no limit to exceed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--side", type=int, default=512, help="pixels of the square input")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=171)
    parser.add_argument("--objects", type=int, default=12, help="an image")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    compare("trunk passes", arguments.runs, *steps(arguments.images, arguments.side // 2, arguments.objects))
    class_logits = torch.randn(arguments.images, arguments.queries, arguments.classes + 1, requires_grad=True)
    size = (arguments.images, arguments.queries, arguments.side // 4, arguments.side // 4)
    mask_logits = torch.randn(size, requires_grad=True)
    masks = [torch.rand(arguments.objects, arguments.side, arguments.side) > 0.5 for _ in range(arguments.images)]
    labels = [torch.randint(arguments.classes, (arguments.objects,)) for _ in range(arguments.images)]
    ours = compare("set criterion", arguments.runs, *criteria(class_logits, mask_logits, masks, labels))
    compare("soft IoU", arguments.runs, *overlaps(mask_logits[0].detach().sigmoid(), masks[0]))
    print(f"a step with 10 predictions spends about {10 * ours:.2f} s on the set criterion")


def steps(images: int, side: int, objects: int) -> tuple[Callable, Callable]:
    """A step forward and backward, with one trunk pass and with two."""
    vision = {"model_type": "convnext", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 6, 2]}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    clip = {"text_config": text, "vision_config": vision, "projection_dim": 128}
    model = MaftPlusForUniversalSegmentation(MaftPlusConfig(clip_config=clip, encoder_layers=2, decoder_layers=3))
    freeze_all_but_trainable(model)
    inputs = {
        "pixel_values": torch.randn(images, 3, side, side),
        "text_embeds": F.normalize(torch.randn(20, 128), dim=-1),
        "text_class_ids": torch.arange(20),
        "mask_labels": [torch.rand(objects, side, side) > 0.5 for _ in range(images)],
        "class_labels": [torch.randint(20, (objects,)) for _ in range(images)],
    }

    def one_pass():
        model(**inputs).loss.backward()

    def two_passes():
        model.model.clip.encode_image(inputs["pixel_values"])
        one_pass()

    return one_pass, two_passes


def criteria(class_logits, mask_logits, masks, labels) -> tuple[Callable, Callable]:
    """One prediction's losses with gradients: ours, transformers'."""
    config = MaftPlusConfig(mask_aware_weight=0.0)
    theirs = Mask2FormerLoss(
        Mask2FormerConfig(num_labels=class_logits.shape[-1] - 1),
        {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
    )
    float_masks = [mask.float() for mask in masks]  # what transformers' loss takes

    def run_ours():
        losses = segmentation_losses(config, [class_logits], [mask_logits], None, masks, labels)
        sum(losses.values()).backward()

    def run_theirs():
        sum(theirs(mask_logits, class_logits, float_masks, labels).values()).backward()

    return run_ours, run_theirs


def overlaps(masks: torch.Tensor, labels: torch.Tensor) -> tuple[Callable, Callable]:
    """Soft IoU (N, Q): ours, and with every mask resized to the labels."""

    def plain():
        resized = F.interpolate(masks[None], size=labels.shape[-2:], mode="bilinear")[0].flatten(1)
        flat = labels.flatten(1).float()
        intersection = flat @ resized.T
        return intersection / (flat.sum(1)[:, None] + resized.sum(1)[None] - intersection + 1e-7)

    torch.testing.assert_close(soft_iou(masks, labels), plain(), rtol=1e-4, atol=1e-5)
    return lambda: soft_iou(masks, labels), plain


def compare(name: str, runs: int, ours: Callable, yardstick: Callable) -> float:
    """Median seconds of both, runs interleaved; prints them and returns ours."""
    seconds = {ours: [], yardstick: []}
    for _ in range(runs + 1):
        for function, times in seconds.items():
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    mine, other = (statistics.median(times[1:]) for times in seconds.values())
    print(f"{name:<14} ours {mine:8.4f} s   yardstick {other:8.4f} s   ratio {other / mine:6.2f}")
    return mine


if __name__ == "__main__":
    main()
