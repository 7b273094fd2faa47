"""What prompts cost: a vocabulary encoded at its prompts' own lengths against prompts padded to 77 tokens.

    python benchmarks/text.py [--vocabulary vocabularies/ade20k_847.json --bpe bpe_simple_vocab_16e6.txt.gz]

The prompts are a seeded sample of 1,000 of the 17,934 that ADE20K's 847 classes with their synonyms and the 14
templates make. Time depends on the number of tokens alone, so their recorded lengths suffice; with `--bpe` (OpenAI's
file) they are counted anew. Text tower of CLIP ConvNeXt-base, random weights. Each round times both ways one after the
other; the last line is the median speed-up, the exit code is 1 below the limit.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.tokenizer import clip_tokenizer_from_bpe
from maftplus.modeling_maftplus import MaftPlusModel
from maftplus.words_maftplus import build_prompts, parse_classes

LIMIT = 4.0
NUM_PROMPTS, CONTEXT = 1000, 77
START, END = 49406, 49407
# Tokens, start and end included: how many prompts of the sample have them (`--bpe` counts them anew).
PROMPT_LENGTHS = {8: 37, 9: 259, 10: 211, 11: 276, 12: 179, 13: 34, 14: 3, 15: 1}


def main() -> int:
    """Measure, print the table, return the exit code: 1 beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, default=Path("vocabularies/ade20k_847.json"))
    parser.add_argument("--bpe", type=Path, help="OpenAI's bpe_simple_vocab_16e6.txt.gz: count the lengths anew")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="time only the first of the sample")
    parser.add_argument("--limit", type=float, default=LIMIT, help="smallest speed-up")
    arguments = parser.parse_args()
    lengths = count_tokens(arguments.vocabulary, arguments.bpe) if arguments.bpe else recorded_lengths()
    model = build_model().to(arguments.device, getattr(torch, arguments.dtype))
    lengths = lengths[: arguments.prompts]
    inputs = fake_prompts(lengths)
    model.encode_vocabulary(**{name: value[:8] for name, value in inputs.items()})  # warms up
    rounds = [measure(model, inputs) for _ in range(arguments.rounds)]
    return report(rounds, lengths, arguments.limit)


def count_tokens(vocabulary: Path, bpe: Path) -> list[int]:
    """Lengths in tokens, start and end included, of the seeded sample."""
    names = [row["name"] for row in json.loads(vocabulary.read_text(encoding="utf-8"))["classes"]]
    prompts = random.Random(0).sample(build_prompts(parse_classes(names)).texts, NUM_PROMPTS)
    tokenizer = clip_tokenizer_from_bpe(bpe)
    return [min(len(tokenizer(prompt).input_ids), CONTEXT) for prompt in prompts]


def recorded_lengths() -> list[int]:
    """The sample's lengths, in a seeded order."""
    lengths = [length for length, number in PROMPT_LENGTHS.items() for _ in range(number)]
    random.Random(0).shuffle(lengths)
    return lengths


def fake_prompts(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Random tokens of the given lengths, padded to the longest, one class a prompt."""
    position, lengths = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(START, (len(lengths), len(position)), generator=generator)
    input_ids[position.expand_as(input_ids) >= lengths - 1] = END
    input_ids[:, 0] = START
    rows = torch.arange(len(lengths))
    attention_mask = (position < lengths).long()
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "prompt_class_ids": rows,
        "prompt_synonym_ids": rows,
    }


def build_model() -> MaftPlusModel:
    """MAFT+ base with a vision tower and a segmenter that are as small as they get: only the text tower runs."""
    torch.manual_seed(0)
    vision = {"model_type": "convnext", "hidden_sizes": [32, 32, 32, 32], "depths": [1, 1, 1, 1]}
    text = {"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10, "hidden_act": "gelu"}
    clip = {"text_config": text, "vision_config": vision, "projection_dim": 640}
    sizes = {"hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 1, "dim_feedforward": 32}
    return MaftPlusModel(MaftPlusConfig(clip_config=clip, **sizes)).eval()


def measure(model: MaftPlusModel, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds at the prompts' own lengths and padded to 77 tokens."""
    own = timed(lambda: model.encode_vocabulary(**inputs), model.device)
    input_ids = inputs["input_ids"]
    padded = F.pad(input_ids, (0, CONTEXT - input_ids.shape[1]), value=END)
    return own, timed(lambda: encode_padded(model, padded), model.device)


@torch.no_grad()
def encode_padded(model: MaftPlusModel, input_ids: torch.Tensor) -> None:
    """As the original does: 128 prompts at a time, each of 77 tokens."""
    for part in input_ids.to(model.device).split(128):
        F.normalize(model.clip.get_text_features(part).pooler_output, dim=-1)


def timed(run: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(rounds: list[tuple[float, float]], lengths: list[int], limit: float) -> int:
    """Print the table and the verdict, return the exit code."""
    own, padded = (statistics.median(times) for times in zip(*rounds))
    speed_up = statistics.median(slow / fast for fast, slow in rounds)
    print(f"{'prompts':<20} {'mean tokens':>12} {'seconds':>9} {'prompts/s':>10}")
    for name, tokens, seconds in (("own lengths", statistics.mean(lengths), own), ("padded to 77", CONTEXT, padded)):
        print(f"{name:<20} {tokens:>12.1f} {seconds:>9.2f} {len(lengths) / seconds:>10.1f}")
    verdict = "ok" if speed_up >= limit else "TOO SLOW"
    print(f"{speed_up:.2f} times as fast as padded prompts (limit {limit:.2f}): {verdict}")
    return int(speed_up < limit)


if __name__ == "__main__":
    sys.exit(main())
