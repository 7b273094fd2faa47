"""What a picture costs beyond the bare trunk, and against the same network out of transformers' Mask2Former modules.

    python benchmarks/inference.py --size base --classes 847 [--threads 2] [--device cuda --dtype bfloat16] [--compile]
    python benchmarks/inference.py --runtime openvino --dtype bfloat16 --without-yardstick --against_recorded
    OMP_WAIT_POLICY=passive python benchmarks/inference.py --clock processor      (on a machine that others use too)

`runtimes.py` beside this compares all runtimes in one run. Random weights, 640 x 640, batch 1, class embeddings
cached, semantic post-processing to 640 x 640 included. Every round runs the bare `ConvNextModel`, our model and the
yardstick one after the other, and ratios are taken within a round, so that a change of the machine's speed cancels;
`--clock processor` counts processor seconds over all threads. Peak memory is that of a process of its own for either
network, from the built model on. For an eager network on a CPU, the shares of its time by kind of operation are those
of one more run under torch's profiler. The arithmetic limit is the network's floating-point operations over what this
machine does a second, in this precision, in a convolution and in a matrix product of the trunk's shapes.
`--against_recorded` adds the time that the original code took over this trunk on a machine where both ran. Threads
are those of OMP_NUM_THREADS, if it is set. The last line is our total time over the trunk's against its limit; the
exit code is 1 when it (or the memory) is over.
"""

import argparse
import copy
import ctypes
import gc
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import ConvNextModel
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.deploy.exported import stand_in
from maftplus.deploy.graph import write_onnx
from maftplus.deploy.sessions import open_session
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.layers_maftplus import pool_masks
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.segmenter_maftplus import MaftPlusSegmenter, MaftPlusSegmenterOutput

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mask2former_tools import Mask2FormerModules, copy_weights

SYNONYMS = {150: 403, 847: 1342}  # of ADE20K's two vocabularies
RATIO_LIMITS = {("base", 150): 1.9, ("base", 847): 2.0, ("large", 150): 1.45, ("large", 847): 1.55}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CLEAR_REFS = Path("/proc/self/clear_refs")
RECORDED = {("base", 150): 3.2, ("base", 847): 4.1}  # the original's total over its trunk
ARITHMETIC_LIMIT = 1.35  # our total over the arithmetic limit, float32
KINDS = {  # of operations, by what their name begins with; the last takes the rest
    "convolutions, products": ("mkldnn_convolution", "_slow_conv2d", "addmm", "mm", "bmm"),
    "attention": ("_scaled_dot_product",),
    "sampling": ("_embedding_bag",),
    "norms": ("native_layer_norm", "native_group_norm"),
    "GELU, ReLU": ("gelu", "clamp_min"),
    "copies, casts": ("copy_", "cat"),
    "element by element": ("",),
}
BUSY = 0.5  # processes that others keep running
MEMORY_LIMITS = {("base", 847): 2.0}  # GB, of 10^9 bytes
LARGE = {
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "model_type": "convnext",
        "hidden_sizes": [192, 384, 768, 1536],
        "depths": [3, 3, 27, 3],
        "layer_norm_eps": 1e-6,
    },
    "projection_dim": 768,
    "visual_projection_type": "mlp",
}


class YardstickSegmenter(nn.Module):
    """Our segmenter's interface over transformers' modules; the class embeddings, which they lack, are ours."""

    def __init__(self, segmenter: MaftPlusSegmenter, config: MaftPlusConfig):
        super().__init__()
        self.modules_of_transformers = Mask2FormerModules(config)
        copy_weights(segmenter, self.modules_of_transformers)
        self.head = segmenter.decoder
        self.logit_scale = segmenter.logit_scale

    def forward(self, feature_maps: list[Tensor], output_auxiliary_logits: bool = False) -> MaftPlusSegmenterOutput:
        mask_features, levels, masks, queries = self.modules_of_transformers(feature_maps)
        wanted = slice(None) if output_auxiliary_logits else slice(-1, None)
        embeds = [self._embed(mask_features, *pair) for pair in zip(masks[wanted], queries[wanted])]
        auxiliary = (tuple(masks[:-1]), tuple(embeds[:-1])) if output_auxiliary_logits else (None, None)
        return MaftPlusSegmenterOutput(masks[-1], embeds[-1], mask_features, levels, *auxiliary)

    def _embed(self, mask_features: Tensor, mask_logits: Tensor, queries: Tensor) -> Tensor:
        pooled = self.head.pooled_proj(self.head.pooled_norm(pool_masks(mask_features, mask_logits)))
        return self.head.class_embedder(pooled + queries)


def main() -> int:
    """Measure, print the table, return the exit code: 1 beyond a limit."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    model = build_model(arguments)
    if arguments.memory_of:
        print(peak_memory(arguments, model))
        return 0
    print(machine())
    warn_if_busy()
    inputs = build_inputs(arguments, model)
    runs = build_runs(arguments, model, inputs)
    with torch.inference_mode():
        rounds = [{name: timed(run, arguments) for name, run in runs.items()} for _ in range(arguments.rounds + 1)]
        is_eager = arguments.runtime == "torch" and not arguments.compile
        stages = measure_stages(arguments, model, runs["ours"]) if is_eager else []
        if is_eager and arguments.device == "cpu":
            print_shares(model, inputs)
        limit = arithmetic_limit(arguments, model, inputs)
    return report(arguments, rounds[1:], stages, limit)  # the first round warms up


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--classes", type=int, choices=tuple(SYNONYMS), default=150)
    parser.add_argument("--pixels", type=int, default=640, help="height and width of the input and of the result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument(
        "--runtime", default="torch", choices=("torch", "onnx", "openvino"), help="what runs our model"
    )
    parser.add_argument("--against_recorded", action="store_true", help="compare with the original's recorded ratio")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS), help="what is counted as time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile our model and the trunk")
    parser.add_argument("--without-yardstick", action="store_true", help="leave transformers' modules out")
    parser.add_argument("--memory-of", choices=("ours", "yardstick"), help=argparse.SUPPRESS)
    return parser.parse_args()


def build_model(arguments: argparse.Namespace) -> MaftPlusForUniversalSegmentation:
    """Random weights; `clip_config=None` is the base model."""
    torch.manual_seed(0)
    model = MaftPlusForUniversalSegmentation(MaftPlusConfig(clip_config=LARGE if arguments.size == "large" else None))
    return model.to(arguments.device, getattr(torch, arguments.dtype)).eval().requires_grad_(False)


def build_yardstick(model: MaftPlusForUniversalSegmentation) -> MaftPlusForUniversalSegmentation:
    """The same weights in transformers' trunk and Mask2Former modules."""
    yardstick = copy.deepcopy(model)
    yardstick.model.clip.vision_model = build_trunk(model)
    yardstick.model.segmenter = YardstickSegmenter(yardstick.model.segmenter, model.config)
    return yardstick.to(model.device, model.dtype).eval()


def build_trunk(model: MaftPlusForUniversalSegmentation) -> ConvNextModel:
    ours = model.model.clip.vision_model
    trunk = ConvNextModel(ours.config).to(model.device, model.dtype).eval()
    trunk.load_state_dict(ours.state_dict())
    return trunk


def build_inputs(arguments: argparse.Namespace, model: MaftPlusForUniversalSegmentation) -> dict[str, Tensor]:
    """A random picture and a vocabulary whose class embeddings are known."""
    num_rows = SYNONYMS[arguments.classes]
    rows = torch.randn(num_rows, model.config.clip_config.projection_dim, device=model.device, dtype=model.dtype)
    class_ids = torch.arange(num_rows, device=model.device) * arguments.classes // num_rows
    side = arguments.pixels
    return {
        "pixel_values": torch.randn(1, 3, side, side, device=model.device, dtype=model.dtype),
        "text_embeds": nn.functional.normalize(rows, dim=-1),
        "text_class_ids": class_ids,
        "seen_classes": torch.zeros(arguments.classes, dtype=torch.bool, device=model.device),
    }


def build_runs(arguments: argparse.Namespace, model, inputs: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """What a round times, by name; the two networks from the picture to the map of classes."""
    trunk = build_trunk(model)
    network = model if arguments.runtime == "torch" else build_exported(arguments, model)
    forward, bare = (torch.compile(network), torch.compile(trunk)) if arguments.compile else (network, trunk)
    target = [(arguments.pixels, arguments.pixels)]
    ours = MaftPlusImageProcessorPil()
    runs = {
        "trunk": lambda: bare(inputs["pixel_values"]),
        "ours": lambda: ours.post_process_semantic_segmentation(forward(**inputs), target_sizes=target),
    }
    if not arguments.without_yardstick:
        yardstick, theirs = build_yardstick(model), Mask2FormerImageProcessorPil()
        check_equal(model, yardstick, inputs)
        runs["yardstick"] = lambda: theirs.post_process_semantic_segmentation(yardstick(**inputs), target_sizes=target)
    return runs


def build_exported(arguments: argparse.Namespace, model: MaftPlusForUniversalSegmentation):
    """The same weights as a graph; OpenVINO computes in `--dtype`, ONNX Runtime in float32."""
    original = copy.deepcopy(model).float()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        path = Path(folder) / "graph.onnx"
        write_onnx(original, path)
        exported = stand_in(original, runtime=arguments.runtime).eval().to(model.dtype)
        exported.model.session = open_session(arguments.runtime, path, model.dtype)
    return exported


@torch.inference_mode()
def check_equal(model, yardstick, inputs: dict[str, Tensor]) -> None:
    """That both networks compute the same; a query at the edge of its attention mask may flip, hence the median."""
    found, expected = model(**inputs).masks_queries_logits.float(), yardstick(**inputs).masks_queries_logits.float()
    difference = float((found - expected).abs().median() / expected.abs().max())
    print(f"mask logits against transformers' modules: median difference {difference:.1e} of the largest logit")
    if not difference < 100 * torch.finfo(model.dtype).eps:
        raise RuntimeError("The yardstick does not compute what our model does; comparing their times says nothing.")


def timed(run: Callable[[], object], arguments: argparse.Namespace) -> float:
    """Seconds of one call."""
    clock = CLOCKS[arguments.clock]
    synchronise(arguments.device)
    start = clock()
    run()
    synchronise(arguments.device)
    return clock() - start


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure_stages(arguments: argparse.Namespace, model, run: Callable[[], object]) -> list[dict[str, float]]:
    """Seconds of every stage of our model, a dictionary a round; what is left is class scores and post-processing."""
    network = model.model
    stages = {
        "trunk": (network.clip, "encode_image"),
        "pixel decoder": (network.segmenter.pixel_decoder, "forward"),
        "decoder": (network.segmenter.decoder, "forward"),
        "whole network": (model, "forward"),
    }
    found: dict[str, float] = {}
    for name, (owner, method) in stages.items():
        setattr(owner, method, _clocked(getattr(owner, method), name, found, arguments))
    rounds = []
    for _ in range(arguments.rounds):
        total = timed(run, arguments)
        rounds.append({**found, "post-processing": total - found["whole network"], "total": total})
    for owner, method in stages.values():
        delattr(owner, method)
    return rounds


def _clocked(call: Callable, name: str, found: dict[str, float], arguments: argparse.Namespace) -> Callable:
    def clocked(*inputs, **keywords):
        outputs = []
        found[name] = timed(lambda: outputs.append(call(*inputs, **keywords)), arguments)
        return outputs[0]

    return clocked


def print_shares(model, inputs: dict[str, Tensor]) -> None:
    """What share of the network's time goes into which kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model(**inputs)
    times = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        name = event.key.removeprefix("aten::")
        times[next(kind for kind, names in KINDS.items() if name.startswith(names))] += event.self_cpu_time_total
    total = sum(times.values())
    print("network          " + ", ".join(f"{kind} {time / total:.0%}" for kind, time in times.items()))


def peak_memory(arguments: argparse.Namespace, model) -> float:
    """GB held at most during two pictures: resident memory of the process, or on a GPU what was allocated there."""
    if arguments.memory_of == "yardstick":
        model, processor = build_yardstick(model), Mask2FormerImageProcessorPil()
    else:
        processor = MaftPlusImageProcessorPil()
    inputs = build_inputs(arguments, model)
    gc.collect()
    reset_peak(arguments.device)
    with torch.inference_mode():
        for _ in range(2):
            processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[(arguments.pixels,) * 2])
    return read_peak(arguments.device) / 1e9


def reset_peak(device: str) -> None:
    """Building the model needs more than running it; a server's peak is the latter."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        ctypes.CDLL(None).malloc_trim(0)  # hands back what building the model has freed
        CLEAR_REFS.write_text("5")  # Linux: the peak restarts at what is resident now


def read_peak(device: str) -> int:
    """Bytes; the whole process's life where the system cannot restart the count."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if CLEAR_REFS.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def arithmetic_limit(arguments: argparse.Namespace, model, inputs: dict[str, Tensor]) -> float:
    """Seconds that the network's multiplications take at this machine's best rates, nothing else counted."""
    with FlopCounterMode(display=False) as counter:
        model.encode_picture(inputs["pixel_values"])
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(count for kind, count in counts.items() if "conv" in str(kind))
    products = sum(counts.values()) - convolutions
    rates = [rate / 1e9 for rate in measure_rates(arguments, model)]
    print(
        f"arithmetic       {convolutions / 1e9:.0f} GFLOP in convolutions at {rates[0]:.0f} GFLOP/s, "
        f"{products / 1e9:.0f} in matrix products at {rates[1]:.0f}"
    )
    return convolutions / rates[0] / 1e9 + products / rates[1] / 1e9


def measure_rates(arguments: argparse.Namespace, model) -> list[float]:
    """Operations a second, best of ten, of a 1 x 1 convolution and of a matrix product of the trunk's third stage."""
    width, tokens = model.config.clip_config.vision_config.hidden_sizes[2], (arguments.pixels // 16) ** 2
    like = {"device": model.device, "dtype": model.dtype}
    rows, weight = torch.randn(tokens, width, **like), torch.randn(4 * width, width, **like)
    columns, kernel = rows.T[None, :, None].contiguous(memory_format=torch.channels_last), weight[..., None, None]
    calls = (lambda: functional.conv2d(columns, kernel), lambda: rows @ weight.T)
    operations = 2 * tokens * width * 4 * width
    return [operations / min(timed(call, arguments) for _ in range(10)) for call in calls]


def machine() -> str:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def warn_if_busy() -> None:
    """Say so if others use the processor: then only ratios within a round mean something, and those little."""
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"warning: the machine is busy, {load:.1f} processes on average in the last minute", flush=True)


def measure_memory(network: str) -> float:
    """`peak_memory` in a process of its own, with this command's options."""
    command = [sys.executable, *sys.argv, "--memory-of", network]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report(
    arguments: argparse.Namespace, rounds: list[dict[str, float]], stages: list[dict[str, float]], limit: float
) -> int:
    """The table and the verdict; returns the exit code."""
    for name in stages[0] if stages else ():
        print(f"{name:<16} {statistics.median(stage[name] for stage in stages):8.3f} s")
    for name in rounds[0]:
        ratio = statistics.median(each[name] / each["trunk"] for each in rounds)
        seconds = statistics.median(each[name] for each in rounds)
        print(f"{name if name != 'trunk' else 'bare trunk':<16} {seconds:8.3f} s  {ratio:6.2f} x bare trunk")
    seconds = statistics.median(each["ours"] for each in rounds)
    print(f"arithmetic limit {limit:8.3f} s  ours {seconds / limit:.2f} x it (at most {ARITHMETIC_LIMIT} in float32)")
    memory = {name: measure_memory(name) for name in rounds[0] if name != "trunk"}
    print("peak memory      " + ", ".join(f"{name} {amount:.2f} GB" for name, amount in memory.items()))
    key = (arguments.size, arguments.classes)
    memory_limit = MEMORY_LIMITS.get(key, float("inf"))
    if memory["ours"] > memory_limit:
        print(f"peak memory is over its limit of {memory_limit} GB")
    ratio = statistics.median(each["ours"] / each["trunk"] for each in rounds)
    if arguments.against_recorded and key in RECORDED:
        print(
            f"the original took {RECORDED[key]} times its trunk, as recorded: {RECORDED[key] / ratio:.2f} times ours"
        )
    print(f"{' '.join(map(str, key))} classes: total over bare trunk {ratio:.2f}, limit {RATIO_LIMITS[key]}")
    return int(ratio > RATIO_LIMITS[key] or memory["ours"] > memory_limit)


if __name__ == "__main__":
    sys.exit(main())
