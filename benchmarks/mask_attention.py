"""What masks cost: ViT-B/16 at 480x480 with 1, 10, 100 and 1000 masks (arXiv 2310.00240, mask-aware attention).

    python benchmarks/mask_attention.py [--device cuda] [--dtype bfloat16] [--rounds 7]

Patches are computed once whatever the number of masks, so the last line holds 1000 masks to at most 1.7 times the
time of one; the exit code is 1 above that. Random weights: time does not depend on their values. Every round times all
numbers one after the other, and ratios are taken within a round, so that a change of the machine's speed cancels. On a
machine that other work keeps busy, `OMP_NUM_THREADS=1` and `--processor-time` still give the ratio.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig

NUMBERS = (1, 10, 100, 1000)
LIMIT = 1.7
VIT_B16 = {"model_type": "clip_vision_model", "patch_size": 16}  # the other sizes are the configuration's defaults


def main() -> int:
    """Measure, print the table, return the exit code: 1 beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--size", type=int, default=480, help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor-time", action="store_true", help="count processor time, not the clock (CPU only)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest ratio of the most masks to one mask")
    arguments = parser.parse_args()
    model = build_model(arguments.attention).to(arguments.device, getattr(torch, arguments.dtype))
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rounds = [measure(model, arguments.size, clock) for _ in range(arguments.rounds + 1)][1:]  # the first warms up
    return report(rounds, arguments.limit)


def build_model(attention: str) -> MaftPlusCLIPModel:
    """ViT-B/16 with random weights and a text tower of one layer, which nothing here uses."""
    torch.manual_seed(0)
    text = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    config = MaftPlusCLIPConfig(text_config=text, vision_config=VIT_B16, attn_implementation=attention)
    return MaftPlusCLIPModel(config).eval()


def measure(model: MaftPlusCLIPModel, size: int, clock: Callable[[], float]) -> dict[int, float]:
    """Seconds of one `get_mask_features` for each number of masks, and of CLIP without masks under 0."""
    pixel_values = torch.randn(1, 3, size, size, device=model.device, dtype=model.dtype)
    seconds = {0: timed(lambda: model.embed_image(model.encode_image(pixel_values)), clock)}
    for number in NUMBERS:
        masks = torch.rand(1, number, size // 4, size // 4, device=model.device)
        seconds[number] = timed(lambda masks=masks: model.get_mask_features(pixel_values, masks), clock)
    return seconds


@torch.inference_mode()
def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    _synchronise()
    start = clock()
    run()
    _synchronise()
    return clock() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(rounds: list[dict[int, float]], limit: float) -> int:
    """Print the table and the verdict, return the exit code."""
    print(f"{'masks':>8} {'seconds':>9} {'to one mask':>12}")
    for number in rounds[0]:
        seconds = statistics.median(times[number] for times in rounds)
        print(f"{number or 'none':>8} {seconds:>9.3f} {_ratio(rounds, number):>12.2f}")
    ratio = _ratio(rounds, NUMBERS[-1])
    verdict = "ok" if ratio <= limit else "TOO SLOW"
    print(f"{NUMBERS[-1]} masks take {ratio:.2f} times one mask (limit {limit:.2f}): {verdict}")
    return int(ratio > limit)


def _ratio(rounds: list[dict[int, float]], number: int) -> float:
    return statistics.median(times[number] / times[NUMBERS[0]] for times in rounds)


if __name__ == "__main__":
    sys.exit(main())
