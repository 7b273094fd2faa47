"""What a training step costs, part by part, and against steps with two trunk passes.

    python benchmarks/training.py [--size base|large] [--images 1 --side 512] [--threads 2]
    OMP_WAIT_POLICY=passive python benchmarks/training.py --clock processor     (on a machine that others use too)
    python benchmarks/training.py --savings     what less memory costs: frozen trunk, LoRA, checkpointing, bfloat16

A step is forward and backward of MAFT+ with every loss (random weights, no optimiser). Every round times it as it is;
with the second trunk pass that the released code makes for the segmenter's features, all else equal ("two passes");
and built from transformers' ConvNeXt, Mask2Former modules and loss, again with two passes ("transformers, two
passes"). Ratios are taken within a round. Peak memory is that of a process of its own, from the built models on.

One pass saves one forward pass of the trunk, F, of a step that has at least 4 F (forward, twice as much backward,
teacher): against two passes of the very same network no step can be under 4 / 5, whatever the rest costs. So that
ratio has a limit that guards what was reached, and the limit of 0.8 is for the step built from transformers' modules.
The last lines are both ratios against their limits; the exit code is 1 when one is over.

With `--savings` a step is that of a training, AdamW included, and every line comes from a process of its own: seconds
a step (median), peak memory, and how many numbers train. Nothing has a limit there.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch
from inference import CLOCKS, LARGE, build_yardstick, check_equal, read_peak, reset_peak, timed
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.loss_maftplus import mask_aware_loss, segmentation_losses, soft_iou
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.train.finetuning.lora import add_adapter, count_trained
from maftplus.train.losses import compensation_loss
from maftplus.train.trainer import freeze_all_but_trainable, frozen_copy, parameter_groups

PLAIN, FROZEN, LORA, RECOMPUTED, HALF = "plain", "frozen trunk", "LoRA", "gradient checkpointing", "bfloat16"
SAVINGS = (PLAIN, FROZEN, LORA, RECOMPUTED, HALF, f"{LORA} + {HALF}", f"{LORA} + {RECOMPUTED} + {HALF}")
STEPS = ("step", "two passes", "transformers, two passes")
LIMITS = {"two passes": 0.95, "transformers, two passes": 0.8}


def main() -> int:
    """Measure, print the tables, return the exit code: 1 beyond the limit."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.memory_of:
        print(peak_memory(arguments))
        return 0
    if arguments.saving:
        print(json.dumps(measure_saving(arguments)))
        return 0
    if arguments.savings:
        return report_savings()
    model, inputs = build_model(arguments), build_inputs(arguments)
    parts = {**build_parts(model, inputs), **build_comparisons(inputs, arguments)}
    rounds = measure(parts, arguments)
    for name in parts:
        print(f"{name:<34} {statistics.median(each[name] for each in rounds):8.3f} s")
    return report(measure(build_steps(model, inputs), arguments), arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--side", type=int, default=512, help="pixels of the square input")
    parser.add_argument("--classes", type=int, default=171)
    parser.add_argument("--objects", type=int, default=12, help="an image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS), help="what is counted as time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--savings", action="store_true", help="what less memory costs, instead")
    parser.add_argument("--memory-of", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--saving", choices=SAVINGS, help=argparse.SUPPRESS)
    return parser.parse_args()


def build_model(arguments: argparse.Namespace) -> MaftPlusForUniversalSegmentation:
    """Random weights, everything that MAFT+ trains trainable; `clip_config=None` is the base model."""
    config = MaftPlusConfig(
        clip_config=LARGE if arguments.size == "large" else None, cdt_form="semantic", compensation_weight=0.1
    )
    model = MaftPlusForUniversalSegmentation(config).to(arguments.device).train()
    freeze_all_but_trainable(model)
    return model


def build_inputs(arguments: argparse.Namespace) -> dict[str, object]:
    """A random batch with class embeddings that are known."""
    images, side, objects, classes = arguments.images, arguments.side, arguments.objects, arguments.classes
    width, device = (LARGE["projection_dim"] if arguments.size == "large" else 640), arguments.device
    return {
        "pixel_values": torch.randn(images, 3, side, side, device=device),
        "text_embeds": F.normalize(torch.randn(classes, width, device=device), dim=-1),
        "text_class_ids": torch.arange(classes, device=device),
        "mask_labels": [torch.rand(objects, side, side, device=device) > 0.5 for _ in range(images)],
        "class_labels": [torch.randint(classes, (objects,), device=device) for _ in range(images)],
    }


def build_steps(
    model: MaftPlusForUniversalSegmentation, inputs: dict, names: Sequence[str] = STEPS
) -> dict[str, Callable[[], object]]:
    """The named steps, forward and backward."""
    step = our_step(model, inputs)

    def two_passes():
        model.model.clip.encode_image(inputs["pixel_values"])  # thrown away at once: what favours two passes most
        step()

    steps = {"step": step, "two passes": two_passes}
    if STEPS[2] in names:
        steps[STEPS[2]] = transformers_step(model, inputs)
    return {name: steps[name] for name in names}


def our_step(model: MaftPlusForUniversalSegmentation, inputs: dict) -> Callable[[], None]:
    teacher = frozen_copy(model.model.clip)

    def step():
        outputs = model(**inputs)
        (outputs.loss + compensate(outputs, teacher, inputs["pixel_values"])).backward()

    return step


def transformers_step(model: MaftPlusForUniversalSegmentation, inputs: dict) -> Callable[[], None]:
    """Two trunk passes, teacher and every loss with transformers' modules around the same weights."""
    yardstick = build_yardstick(model).train()
    teacher = frozen_copy(yardstick.model.clip)
    criterion = transformers_criterion(inputs["text_embeds"].shape[0]).to(model.device)
    images = {name: value for name, value in inputs.items() if not name.endswith("_labels")}
    check_equal(model, yardstick, images)

    def step():
        yardstick.model.clip.encode_image(images["pixel_values"])
        outputs = yardstick(**images, output_auxiliary_logits=True)
        loss = transformers_loss(criterion, outputs, inputs["mask_labels"], inputs["class_labels"])
        (loss + compensate(outputs, teacher, images["pixel_values"])).backward()

    return step


def compensate(outputs, teacher: nn.Module, pixel_values: Tensor) -> Tensor:
    """The compensation loss, whose teacher makes a forward pass of its own."""
    with torch.no_grad():
        target = teacher.encode_image(pixel_values).dense_features
    return 0.1 * compensation_loss(outputs.dense_features, target)


def transformers_criterion(num_classes: int) -> Mask2FormerLoss:
    """Their set criterion with MAFT+'s weights."""
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    return Mask2FormerLoss(Mask2FormerConfig(num_labels=num_classes), weights)


def transformers_loss(criterion: Mask2FormerLoss, outputs, mask_labels, class_labels) -> Tensor:
    """Their set criterion on every prediction, and the mask-aware loss, which they lack."""
    earlier = zip(outputs.auxiliary_masks_queries_logits, outputs.auxiliary_in_vocab_logits)
    auxiliary = [{"masks_queries_logits": masks, "class_queries_logits": classes} for masks, classes in earlier]
    float_masks = [masks.float() for masks in mask_labels]  # what their loss takes
    losses = criterion(
        outputs.masks_queries_logits, outputs.in_vocab_logits, float_masks, class_labels, auxiliary or None
    )
    masks = outputs.masks_queries_logits.detach().sigmoid()
    return sum(losses.values()) + mask_aware_loss(outputs.out_vocab_logits, masks, mask_labels, class_labels)


def build_parts(model: MaftPlusForUniversalSegmentation, inputs: dict) -> dict[str, Callable[[], object]]:
    """What our step consists of."""
    clip, segmenter = model.model.clip, model.model.segmenter
    pixels, teacher = inputs["pixel_values"], frozen_copy(clip)
    with torch.no_grad():
        maps = clip.encode_image(pixels).feature_maps

    def trunk():
        clip.encode_image(pixels).dense_features.sum().backward()

    def segment():
        found = segmenter(maps, output_auxiliary_logits=True)
        masks = [*found.auxiliary_masks_queries_logits, found.masks_queries_logits]
        embeds = [*found.auxiliary_class_embeds, found.class_embeds]
        (torch.cat(masks).sum() + torch.cat(embeds).sum()).backward()

    return {
        "trunk, forward": lambda: clip.encode_image(pixels),
        "trunk, forward and backward": trunk,
        "teacher, forward": torch.no_grad()(lambda: teacher.encode_image(pixels)),
        "segmenter, forward and backward": segment,
    }


def build_comparisons(inputs: dict, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """One prediction's set criterion and the soft IoU of the mask-aware loss, each beside the plain way."""
    size, side = (arguments.images, 100), arguments.side // 4
    class_logits = torch.randn(*size, arguments.classes + 1, device=arguments.device, requires_grad=True)
    mask_logits = torch.randn(*size, side, side, device=arguments.device, requires_grad=True)
    labels, classes = inputs["mask_labels"], inputs["class_labels"]
    config, theirs = MaftPlusConfig(mask_aware_weight=0.0), transformers_criterion(arguments.classes)
    theirs.to(arguments.device)
    float_masks = [masks.float() for masks in labels]
    masks = mask_logits[0].detach().sigmoid()
    torch.testing.assert_close(soft_iou(masks, labels[0]), plain_iou(masks, labels[0]), rtol=1e-4, atol=1e-5)

    def run_ours():
        losses = segmentation_losses(config, [class_logits], [mask_logits], None, labels, classes)
        sum(losses.values()).backward()

    return {
        "set criterion, one prediction": run_ours,
        "  transformers'": lambda: sum(theirs(mask_logits, class_logits, float_masks, classes).values()).backward(),
        "soft IoU": lambda: soft_iou(masks, labels[0]),
        "  by resizing every mask": lambda: plain_iou(masks, labels[0]),
    }


def plain_iou(masks: Tensor, labels: Tensor) -> Tensor:
    """Soft IoU (N, Q) with every mask resized to the labels."""
    resized = F.interpolate(masks[None], size=labels.shape[-2:], mode="bilinear")[0].flatten(1)
    flat = labels.flatten(1).float()
    intersection = flat @ resized.T
    return intersection / (flat.sum(1)[:, None] + resized.sum(1)[None] - intersection + 1e-7)


def measure(runs: dict[str, Callable], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of every run, a dictionary a round; the first round, which warms up, is left out."""
    rounds = [{name: timed(run, arguments) for name, run in runs.items()} for _ in range(arguments.rounds + 1)]
    return rounds[1:]


def peak_memory(arguments: argparse.Namespace) -> float:
    """GB held at most during two of the named steps."""
    name = arguments.memory_of
    run = build_steps(build_model(arguments), build_inputs(arguments), [name])[name]
    gc.collect()
    reset_peak(arguments.device)
    run()
    run()
    return read_peak(arguments.device) / 1e9


def report(rounds: list[dict[str, float]], arguments: argparse.Namespace) -> int:
    """The table of the steps and the verdict; returns the exit code."""
    for name in STEPS:
        command = [sys.executable, *sys.argv, "--memory-of", name]
        memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        seconds = statistics.median(each[name] for each in rounds)
        print(f"{name:<34} {seconds:8.3f} s   peak memory {memory:6.2f} GB")
    ratios = {name: statistics.median(each["step"] / each[name] for each in rounds) for name in LIMITS}
    for name, ratio in ratios.items():
        print(f"the step over '{name}': {ratio:.2f}, limit {LIMITS[name]}")
    return int(any(ratio > LIMITS[name] for name, ratio in ratios.items()))


# --- What less memory costs ---


def report_savings() -> int:
    """The table of `SAVINGS`; returns the exit code."""
    command = [argument for argument in sys.argv if argument != "--savings"]
    print(f"{'a step of training':<40} seconds  peak GB   numbers that train")
    for name in SAVINGS:
        output = subprocess.run(
            [sys.executable, *command, "--saving", name], check=True, capture_output=True, text=True
        )
        found = json.loads(output.stdout.splitlines()[-1])
        print(f"{name:<40} {found['seconds']:7.2f} {found['memory']:8.2f} {found['trained']:16,}", flush=True)
    return 0


def measure_saving(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds (median), peak memory in GB and the numbers that train of steps that save in these ways."""
    ways = arguments.saving.split(" + ")
    model = build_model(arguments)
    if LORA in ways:
        add_adapter(model)
    if RECOMPUTED in ways:
        model.gradient_checkpointing_enable()
    freeze_all_but_trainable(model, freeze_trunk=FROZEN in ways)
    step = training_step(model, build_inputs(arguments), FROZEN in ways, HALF in ways)
    gc.collect()
    reset_peak(arguments.device)
    seconds = [timed(step, arguments) for _ in range(arguments.rounds + 1)]
    return {
        "seconds": statistics.median(seconds[1:]),
        "memory": read_peak(arguments.device) / 1e9,
        "trained": count_trained(model)[0],
    }


def training_step(
    model: MaftPlusForUniversalSegmentation, inputs: dict, freeze_trunk: bool, is_half: bool
) -> Callable[[], None]:
    """Forward, backward and AdamW. A trunk that is frozen needs no teacher."""
    teacher = None if freeze_trunk else frozen_copy(model.model.clip)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-6, 0.0, freeze_trunk=freeze_trunk))

    def step():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_half):
            outputs = model(**inputs)
            loss = outputs.loss
            if teacher is not None:
                loss = loss + compensate(outputs, teacher, inputs["pixel_values"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    sys.exit(main())
