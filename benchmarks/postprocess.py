"""Post-processing against transformers' Mask2Former post-processing and against holding all class maps.

    python benchmarks/postprocess.py [--threads 2] [--rounds 3] [--logits scene|near-uniform|noise] [--target 640 640]
    OMP_WAIT_POLICY=passive python benchmarks/postprocess.py --clock processor    (on a machine that others use too)

From logits of a 640 x 640 input with 100 queries to 2048 x 1536 (or `--target`): semantic with 150 and 847 classes,
panoptic with all 100 queries kept. "held" is the same result as ours out of one tensor of all class maps;
transformers' own squeezes masks to 384 x 384 first, so that it does less work for a coarser result. Every round runs
ours and theirs one after the other and ratios are taken within a round; peak extra memory is that of a process of its
own for either. Needs about 14 GB for the class maps; `--skip-held` leaves them out.
Logits: `scene` has 100 objects of different sizes with sharp masks and peaked classes, most queries being void in the
semantic case. `near-uniform` has their masks and class scores that differ by a tenth, as a model that knows none of
the words gives. `noise` is the hardest case, no picture: every query and class competes everywhere.
The last line gives the ratios against their limits (847 classes against held: a tenth of the time, an eighth of the
memory; panoptic: a fifth of transformers' time); the exit code is 1 when one is over.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil

TARGET, GRID, NUM_QUERIES = (2048, 1536), 160, 100
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
TIME_LIMITS = {("semantic", 847, "held"): 0.1, ("panoptic", 150, "transformers"): 0.2}
MEMORY_LIMITS = {("semantic", 847, "held"): 0.125}
CASES = [
    ("semantic", 150, "transformers"),
    ("semantic", 150, "held"),
    ("semantic", 847, "transformers"),
    ("semantic", 847, "held"),
    ("panoptic", 150, "transformers"),
]


def main() -> int:
    """Measure, print the table, return the exit code: 1 beyond a limit."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        task, num_classes, method = arguments.memory_of
        print(peak_extra_memory(task, int(num_classes), method, arguments))
        return 0
    print(f"{'task':<10}{'classes':>8}  {'against':<14}{'ours s':>8}{'theirs s':>10}{'ratio':>8}", end="")
    print(f"{'ours GB':>9}{'theirs GB':>11}{'ratio':>8}")
    verdicts = [measure(case, arguments) for case in CASES if not (arguments.skip_held and case[2] == "held")]
    checked = [line for lines in verdicts for line in lines]
    print("; ".join(text for text, _ in checked))
    return int(any(is_over for _, is_over in checked))


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--logits", choices=("scene", "near-uniform", "noise"), default="scene")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--target", type=int, nargs=2, default=TARGET, help="height and width of the result")
    parser.add_argument("--skip-held", action="store_true", help="leave out what needs 14 GB of memory")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(case: tuple[str, int, str], arguments: argparse.Namespace) -> list[tuple[str, bool]]:
    """Print the case's line; return the ratios that have a limit, and whether they are over it."""
    task, num_classes, method = case
    outputs = make_logits(task, num_classes, arguments.logits)
    runs = [lambda name=name: run(name, task, outputs, arguments.target) for name in ("ours", method)]
    runs[0]()  # warm up
    times = [[seconds(call, arguments.clock) for call in runs] for _ in range(arguments.rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(mine / other for mine, other in times)
    memory = [memory_in_own_process(task, num_classes, name, arguments) for name in ("ours", method)]
    memory_ratio = memory[0] / memory[1]
    print(f"{task:<10}{num_classes:>8}  {method:<14}{ours:>8.3f}{theirs:>10.3f}{ratio:>8.3f}", end="")
    print(f"{memory[0]:>9.3f}{memory[1]:>11.3f}{memory_ratio:>8.3f}", flush=True)
    found = [("time", ratio, TIME_LIMITS.get(case)), ("memory", memory_ratio, MEMORY_LIMITS.get(case))]
    name = f"{task} {num_classes} against {method}"
    return [(f"{name}: {kind} {value:.3f} of {limit}", value > limit) for kind, value, limit in found if limit]


def seconds(call, clock: str) -> float:
    start = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - start


def run(method: str, task: str, outputs: SimpleNamespace, target: tuple[int, int]) -> None:
    """One result, thrown away."""
    if method == "held":
        held_class_maps(outputs, target).argmax(0)
        return
    processor = MaftPlusImageProcessorPil() if method == "ours" else Mask2FormerImageProcessorPil()
    if task == "semantic":
        processor.post_process_semantic_segmentation(outputs, [target])
    else:
        processor.post_process_panoptic_segmentation(
            outputs, threshold=0.2, overlap_mask_area_threshold=0.7, label_ids_to_fuse=set(), target_sizes=[target]
        )


def held_class_maps(outputs: SimpleNamespace, target: tuple[int, int]) -> Tensor:
    masks = functional.interpolate(outputs.masks_queries_logits, scale_factor=4, mode="bilinear").sigmoid()
    maps = torch.einsum("bqk,bqhw->bkhw", outputs.class_queries_logits.softmax(-1)[..., :-1], masks)
    return functional.interpolate(maps, size=tuple(target), mode="bilinear")[0]


def peak_extra_memory(task: str, num_classes: int, method: str, arguments: argparse.Namespace) -> float:
    """GB that one run adds at its peak to what the process holds before it (Linux)."""
    outputs = make_logits(task, num_classes, arguments.logits)
    small = SimpleNamespace(
        class_queries_logits=outputs.class_queries_logits[..., -9:], masks_queries_logits=outputs.masks_queries_logits
    )
    MaftPlusImageProcessorPil().post_process_semantic_segmentation(small, [(32, 32)])  # loads what is loaded lazily
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_gigabytes("VmRSS")
    run(method, task, outputs, arguments.target)
    return status_gigabytes("VmHWM") - before


def status_gigabytes(field: str) -> float:
    kibibytes = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)
    return int(kibibytes) * 1024 / 1e9


def memory_in_own_process(task: str, num_classes: int, method: str, arguments: argparse.Namespace) -> float:
    options = ["--threads", str(arguments.threads), "--logits", arguments.logits]
    options += ["--target", *map(str, arguments.target)]
    command = [sys.executable, __file__, *options, "--memory-of", task, str(num_classes), method]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def make_logits(task: str, num_classes: int, kind: str) -> SimpleNamespace:
    """`class_queries_logits` (1, 100, K+1) and `masks_queries_logits` (1, 100, 160, 160), always the same ones."""
    generator = torch.Generator().manual_seed(0)
    masks = smooth_noise(4.0, 20, generator) if kind == "noise" else scene_masks(generator)
    if task == "panoptic":
        class_logits = kept_classes(num_classes, generator)
    elif kind == "scene":
        class_logits = peaked_classes(num_classes, generator)
    elif kind == "near-uniform":
        class_logits = 0.1 * torch.randn(NUM_QUERIES, num_classes + 1, generator=generator)
    else:
        class_logits = 3 * torch.randn(NUM_QUERIES, num_classes + 1, generator=generator)
    return SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=masks[None])


def scene_masks(generator: torch.Generator) -> Tensor:
    """Rough discs of 3 to 60 grid points: logits fall by one a point from the outline, with noise."""
    centres = GRID * torch.rand(NUM_QUERIES, 2, 1, 1, generator=generator)
    radii = 3 + 57 * torch.rand(NUM_QUERIES, 1, 1, generator=generator) ** 2
    axis = torch.arange(GRID)
    distance = torch.hypot(axis[:, None] - centres[:, 0], axis - centres[:, 1])
    outline = (radii - distance + smooth_noise(4.0, 20, generator)).clamp(-9, 9)
    return outline + 0.5 * torch.randn(NUM_QUERIES, GRID, GRID, generator=generator)


def smooth_noise(scale: float, points: int, generator: torch.Generator) -> Tensor:
    coarse = scale * torch.randn(1, NUM_QUERIES, points, points, generator=generator)
    return functional.interpolate(coarse, size=(GRID, GRID), mode="bicubic")[0]


def peaked_classes(num_classes: int, generator: torch.Generator) -> Tensor:
    """Cosines of noisy class embeddings at scale 14; 7 of 10 queries are void with a probability of 0.95."""
    names = functional.normalize(torch.randn(num_classes, 64, generator=generator), dim=-1)
    chosen = names[torch.randint(num_classes, (NUM_QUERIES,), generator=generator)]
    queries = functional.normalize(chosen + 0.1 * torch.randn(NUM_QUERIES, 64, generator=generator), dim=-1)
    void = torch.where(torch.rand(NUM_QUERIES, 1, generator=generator) < 0.7, 0.95, 0.1)
    return torch.cat([(14 * queries @ names.T).softmax(-1) * (1 - void), void], dim=-1).log()


def kept_classes(num_classes: int, generator: torch.Generator) -> Tensor:
    """Every query has a class with a probability of 0.5 to 1."""
    probabilities = torch.full((NUM_QUERIES, num_classes + 1), 1e-6)
    labels = torch.randint(num_classes, (NUM_QUERIES,), generator=generator)
    probabilities[torch.arange(NUM_QUERIES), labels] = 0.5 + 0.5 * torch.rand(NUM_QUERIES, generator=generator)
    probabilities[:, -1] = 1 - probabilities[:, :-1].sum(-1).clamp(max=1 - 1e-6)
    return probabilities.log()


if __name__ == "__main__":
    sys.exit(main())
