"""What masks cost: ViT-B/16 at 480x480 with 1, 10, 100 and 1000 masks (arXiv 2310.00240, mask-aware attention).

    python benchmarks/mask_attention.py [--device cuda] [--dtype bfloat16] [--rounds 7]
    python benchmarks/mask_attention.py --whole [--classes 150] [--pixels 640]

Patches are computed once whatever the number of masks, so the last line holds 1000 masks to at most 1.7 times the
time of one; the exit code is 1 above that. Random weights: time does not depend on their values. Every round times all
numbers one after the other, and ratios are taken within a round, so that a change of the machine's speed cancels. On a
machine that other work keeps busy, `OMP_NUM_THREADS=1` and `--processor-time` still give the ratio.

`--whole` times MAFT ViT-B/16 from normalised pixels to the semantic map, part by part, against the same network out of
transformers' parts: Mask2Former on a ResNet-101 (no look at the words: it has none) and CLIP's own layers, which carry
all class tokens and patches together under one attention mask, as the released code does. Class embeddings are cached.
Its last line holds our proposer to the time of that Mask2Former.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

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
    parser.add_argument("--whole", action="store_true", help="all of MAFT, part by part, against transformers' parts")
    parser.add_argument("--classes", type=int, default=150, help="--whole: number of classes")
    parser.add_argument("--pixels", type=int, default=640, help="--whole: height and width of the picture")
    arguments = parser.parse_args()
    if arguments.whole:
        return measure_whole(arguments)
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


class YardstickTower(nn.Module):
    """CLIP's ViT by its own layers, class tokens and patches in one sequence under one attention mask."""

    def __init__(self, clip: MaftPlusCLIPModel):
        super().__init__()
        self.vision_model, self.projection = clip.vision_model, clip.visual_projection
        self.first = clip.config.first_masked_layer

    def forward(self, pixel_values: Tensor, masks: Tensor) -> Tensor:
        """(B, 3, H, W) and probabilities (B, Q, h, w) -> embeddings (B, Q, D)."""
        states = self.vision_model.embeddings(pixel_values, interpolate_pos_encoding=True)
        states = self.vision_model.pre_layrnorm(states)
        for layer in self.vision_model.encoder.layers[: self.first]:
            states = layer(states, None)
        queries, side = masks.shape[1], int((states.shape[1] - 1) ** 0.5)
        bias = self._bias(F.interpolate(masks, (side, side), mode="bilinear").flatten(2) >= 0.5)
        states = torch.cat([states[:, :1].expand(-1, queries, -1), states[:, 1:]], dim=1)
        for layer in self.vision_model.encoder.layers[self.first :]:
            states = layer(states, bias)
        return self.projection(self.vision_model.post_layernorm(states[:, :queries]))

    def _bias(self, visible: Tensor) -> Tensor:
        """(B, 1, Q + N, Q + N), -inf where a token may not look, from the patches of each mask, (B, Q, N) bool."""
        batch, queries, patches = visible.shape
        sees = visible.new_zeros(batch, queries + patches, queries + patches)
        sees[:, :queries, queries:], sees[:, queries:, queries:] = visible, True
        sees[:, :queries, :queries] = torch.eye(queries, dtype=torch.bool, device=visible.device)
        return torch.zeros(sees.shape, device=sees.device).masked_fill(~sees, float("-inf"))[:, None]


def measure_whole(arguments: argparse.Namespace) -> int:
    """Time ours and the yardstick part by part, print them, return 1 if our proposer is slower than Mask2Former."""
    clock = time.process_time if arguments.processor_time else time.perf_counter
    ours, theirs = build_parts(arguments)
    rounds = [_timed_parts(ours, theirs, clock) for _ in range(arguments.rounds + 1)][1:]
    for name in rounds[0]:
        print(f"{name:<44} {statistics.median(times[name] for times in rounds):>8.3f} s")
    ratios = {
        kind: statistics.median(
            _total(times, "ours", *parts) / _total(times, "transformers'", *parts) for times in rounds
        )
        for kind, parts in {"proposer": ("proposer",), "all": ("proposer", "CLIP", "map")}.items()
    }
    verdict = "ok" if ratios["proposer"] <= 1 else "TOO SLOW"
    print(f"all together take {ratios['all']:.2f} times the yardstick")
    print(f"the proposer takes {ratios['proposer']:.2f} times Mask2Former on a ResNet-101 (limit 1.00): {verdict}")
    return int(ratios["proposer"] > 1)


def _total(times: dict[str, float], whose: str, *parts: str) -> float:
    return sum(
        seconds for name, seconds in times.items() if name.startswith(tuple(f"{whose} {part}" for part in parts))
    )


def _timed_parts(ours: dict[str, Callable], theirs: dict[str, Callable], clock) -> dict[str, float]:
    both = (("ours", ours), ("transformers'", theirs))
    return {f"{whose} {name}": timed(run, clock) for whose, parts in both for name, run in parts.items()}


@torch.inference_mode()
def build_parts(arguments: argparse.Namespace) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """The parts of MAFT and of the yardstick, each ready to run on what the part before it gave."""
    torch.manual_seed(0)
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    model, mask2former = build_whole(arguments.attention)
    model, mask2former = model.to(device, dtype), mask2former.to(device, dtype)
    proposer, clip, tower = model.model.proposer, model.model.clip, YardstickTower(model.model.clip)
    pixels = torch.randn(1, 3, arguments.pixels, arguments.pixels, device=device, dtype=dtype)
    square = F.interpolate(pixels, size=(480, 480), mode="bilinear")
    width = model.config.clip_config.projection_dim
    text = F.normalize(torch.randn(arguments.classes + 1, width, device=device, dtype=dtype), dim=-1)
    words = {"text_embeds": text[:-1], "text_class_ids": torch.arange(arguments.classes, device=device)}
    feature_maps = proposer.trunk(pixels)
    features, levels = proposer.pixel_decoder(feature_maps)
    *read, read_features = proposer._look_at_words([*levels, features], text)
    masks = proposer.decoder(read_features, read)[-1][0].float().sigmoid()
    outputs = model(pixels, **words)
    draw = MaftPlusImageProcessorPil().post_process_semantic_segmentation
    pixel_level = mask2former.model.pixel_level_module
    found, their_maps = pixel_level(pixels), pixel_level.encoder(pixels).feature_maps
    ours = {
        "proposer: trunk": lambda: proposer.trunk(pixels),
        "proposer: pixel decoder": lambda: proposer.pixel_decoder(feature_maps),
        "proposer: look at the words": lambda: proposer._look_at_words([*levels, features], text),
        "proposer: masked decoder": lambda: proposer.decoder(read_features, read),
        "CLIP under the masks": lambda: clip.get_mask_features(square, masks),
        "map": lambda: draw(outputs, [(arguments.pixels, arguments.pixels)]),
        "in one call (no map)": lambda: model(pixels, **words),
    }
    theirs = {
        "proposer: trunk": lambda: pixel_level.encoder(pixels),
        "proposer: pixel decoder": lambda: pixel_level.decoder(their_maps),
        "proposer: masked decoder": lambda: mask2former.model.transformer_module(
            multi_scale_features=found.decoder_hidden_states, mask_features=found.decoder_last_hidden_state
        ),
        "CLIP under the masks": lambda: tower(square, masks),
        "map": lambda: draw(outputs, [(arguments.pixels, arguments.pixels)]),
    }
    return ours, theirs


def build_whole(attention: str) -> tuple[MaftPlusForUniversalSegmentation, Mask2FormerForUniversalSegmentation]:
    """MAFT ViT-B/16 with its own proposer, and Mask2Former with as many blocks, layers and queries; random weights."""
    text = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    clip = {"text_config": text, "vision_config": VIT_B16, "position_align_corners": True}
    own = MaftPlusProposerConfig()
    config = MaftPlusConfig(
        clip_config=clip, proposer_config=own, cdt_form="off", clip_image_size=480, attn_implementation=attention
    )
    backbone = ResNetConfig(
        depths=list(own.depths), out_features=["stage1", "stage2", "stage3", "stage4"]
    )  # its other sizes are the defaults
    sizes = ("num_queries", "hidden_dim", "dim_feedforward", "encoder_layers", "encoder_feedforward_dim")
    theirs = Mask2FormerConfig(
        backbone_config=backbone,
        decoder_layers=own.decoder_layers + 1,  # it counts the prediction on the queries
        num_attention_heads=own.num_attention_heads,
        **{name: getattr(own, name) for name in sizes},
    )
    return MaftPlusForUniversalSegmentation(config).eval(), Mask2FormerForUniversalSegmentation(theirs).eval()


if __name__ == "__main__":
    sys.exit(main())
