"""Every runtime and precision in one run: time against eager float32, and what is left of the quality.

    python benchmarks/runtimes.py [--threads 2] [--rounds 5]      (about 15 minutes on two quiet cores)
    python benchmarks/runtimes.py --skip quality                  (about 6)
    OMP_WAIT_POLICY=passive python benchmarks/runtimes.py --skip quality --clock processor     (where others run, too)

Time: the base model at 640 x 640, batch 1, 150 classes whose words are encoded, semantic post-processing included.
Every round runs all of them one after the other and ratios are taken within a round. int8 is calibrated on random
pictures, on which its time does not depend.
Quality: the shapes model on 500 test scenes, harmonic mean of seen and unseen mIoU and panoptic quality, in points;
int8 is calibrated three times, on other scenes each. With `--results FILE` an interrupted run goes on where it was.
The last lines are the figures against their limits; the exit code is 1 when one is over.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from inference import CLOCKS, build_inputs, machine, warn_if_busy
from parity import SHAPES_MODEL, load
from torch import Tensor

from maftplus.deploy.exported import MaftPlusExportedForUniversalSegmentation, stand_in
from maftplus.deploy.graph import write_onnx
from maftplus.deploy.precision import computes_bfloat16
from maftplus.deploy.quantise import quantise_onnx, quantise_openvino
from maftplus.deploy.sessions import open_session
from maftplus.deploy.verify import random_pictures
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import write_atomically
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import evaluate
from maftplus.shapes.gains import fingerprint
from maftplus.shapes.scenes import scenes

RUNS = {  # name -> runtime, precision, whether in int8 with a calibration
    "torch float32": ("torch", torch.float32, False),
    "torch bfloat16": ("torch", torch.bfloat16, False),
    "torch bfloat16 compiled": ("compiled", torch.bfloat16, False),
    "torchao int8": ("torchao", torch.float32, False),
    "onnx float32": ("onnx", torch.float32, False),
    "onnx int8": ("onnx", torch.float32, True),
    "openvino float32": ("openvino", torch.float32, False),
    "openvino bfloat16": ("openvino", torch.bfloat16, False),
    "openvino bfloat16, one size": ("openvino", torch.bfloat16, False),
    "openvino int8 and bfloat16": ("openvino", torch.bfloat16, True),
    "openvino int8 and bfloat16, one size": ("openvino", torch.bfloat16, True),
}
ONE_SIZE = ("openvino bfloat16, one size", "openvino int8 and bfloat16, one size")
TIME_ONLY = ("torch bfloat16 compiled", *ONE_SIZE)  # scenes differ in size, and every size would be compiled
TIME_LIMITS = {"torch bfloat16": 0.65, "openvino int8 and bfloat16, one size": 0.48}
MOST_POINTS_LOST = 1.0
SEEDS, NUM_CALIBRATION, NUM_SCENES = (0, 1, 2), 64, 500
PIXELS, NUM_CLASSES = 640, 150


def main() -> int:
    """Measure, print the tables, return the exit code: 1 beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS), help="what is counted as time")
    parser.add_argument("--scenes", type=int, default=NUM_SCENES)
    parser.add_argument("--skip", choices=("time", "quality"))
    parser.add_argument("--results", type=Path, help="JSON file of quality rows: those in it are not measured again")
    parser.add_argument("--runs", nargs="+", choices=tuple(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    if "torchao int8" in arguments.runs and importlib.util.find_spec("torchao") is None:
        print("torchao is not installed: its row is left out")
        arguments.runs.remove("torchao int8")
    torch.set_num_threads(arguments.threads)
    print(f"{machine()}, bfloat16 {computes_bfloat16(torch.device('cpu'))}")
    warn_if_busy()
    verdicts = []
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        if arguments.skip != "time":
            verdicts += report_time(arguments, Path(folder) / "base.onnx")
        if arguments.skip != "quality":
            verdicts += report_quality(arguments, Path(folder) / "shapes.onnx")
    for text, _ in verdicts:
        print(text)
    return int(any(is_over for _, is_over in verdicts))


def build(
    name: str, model: MaftPlusForUniversalSegmentation, onnx: Path, pictures: list[Tensor], graphs: dict
) -> MaftPlusForUniversalSegmentation:
    """A row's network; an exported one from the model's ONNX graph, written once. `graphs` keeps those in int8."""
    runtime, dtype, is_int8 = RUNS[name]
    if runtime in ("torch", "compiled", "torchao"):
        return in_torch(model, runtime, dtype)
    if not onnx.exists():
        write_onnx(model, onnx)
    if is_int8 and runtime not in graphs:
        graphs[runtime] = quantised(runtime, onnx, pictures)
    exported = stand_in(model, runtime=runtime, graph_precision="int8" if is_int8 else "float32").eval()
    network = opened(exported.to(dtype), runtime, graphs[runtime] if is_int8 else onnx, dtype)
    if name in ONE_SIZE:
        network.fix_size(PIXELS, PIXELS)
    return network


def in_torch(model: MaftPlusForUniversalSegmentation, kind: str, dtype: torch.dtype):
    """The model itself or a copy in another precision, compiled, or with linear layers in int8 by torchao."""
    if kind == "torch" and dtype == torch.float32:
        return model
    copied = copy_in(model, dtype)
    if kind == "torchao":
        import torchao.quantization

        torchao.quantization.quantize_(copied, torchao.quantization.Int8DynamicActivationInt8WeightConfig())
    if kind == "compiled":
        copied.forward = torch.compile(copied.forward)
    return copied


def opened(exported: MaftPlusExportedForUniversalSegmentation, runtime: str, graph: Path, dtype: torch.dtype):
    exported.model.session = open_session(runtime, graph, dtype)
    return exported


def copy_in(model: MaftPlusForUniversalSegmentation, dtype: torch.dtype) -> MaftPlusForUniversalSegmentation:
    copied = type(model)(model.config).eval()
    copied.load_state_dict(model.state_dict())
    return copied.to(dtype)


def quantised(runtime: str, onnx: Path, pictures: list[Tensor]) -> Path:
    """The graph in int8, beside the other."""
    if runtime == "onnx":
        target = onnx.with_suffix(".int8.onnx")
        quantise_onnx(onnx, target, pictures)
        return target
    import openvino

    target = onnx.with_suffix(".int8.xml")
    graph = quantise_openvino(openvino.convert_model(str(onnx)), pictures)
    openvino.save_model(graph, str(target), compress_to_fp16=False)  # as `deploy/export.py` does
    return target


def report_time(arguments: argparse.Namespace, onnx: Path) -> list[tuple[str, bool]]:
    """Print seconds and ratios of the base model."""
    model = load("base")
    pictures = [random_pictures((1, PIXELS, PIXELS), seed) for seed in range(2)]
    names = list(dict.fromkeys(["torch float32", *arguments.runs]))
    graphs: dict[str, Path] = {}
    runs = {name: _run(build(name, model, onnx, pictures, graphs), pictures[0]) for name in names}
    for run in runs.values():
        run()  # warm up
    rounds = [
        {name: _seconds(run, CLOCKS[arguments.clock]) for name, run in runs.items()} for _ in range(arguments.rounds)
    ]
    print("\n| base, 640 x 640 | seconds | of torch float32 |\n|---|---|---|")
    ratios = {name: statistics.median(each[name] / each["torch float32"] for each in rounds) for name in runs}
    for name, ratio in ratios.items():
        print(f"| {name} | {statistics.median(each[name] for each in rounds):.3f} | {ratio:.2f} |")
    limited = {name: limit for name, limit in TIME_LIMITS.items() if name in ratios}
    return [(f"{name}: {ratios[name]:.2f} of {limit}", ratios[name] > limit) for name, limit in limited.items()]


def _run(network: MaftPlusForUniversalSegmentation, pixel_values: Tensor) -> Callable[[], object]:
    options = argparse.Namespace(classes=NUM_CLASSES, pixels=PIXELS)
    inputs = {**build_inputs(options, network), "pixel_values": pixel_values.to(network.dtype)}
    processor = MaftPlusImageProcessorPil()
    return lambda: processor.post_process_semantic_segmentation(network(**inputs), target_sizes=[(PIXELS, PIXELS)])


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def report_quality(arguments: argparse.Namespace, onnx: Path) -> list[tuple[str, bool]]:
    """Print harmonic mIoU and PQ of the shapes model, a row a calibration."""
    model, processor = load("shapes"), MaftPlusProcessor.from_pretrained(SHAPES_MODEL)
    print(f"\n| shapes model, {arguments.scenes} scenes | calibration | harmonic mIoU | PQ |\n|---|---|---|---|")
    chosen = dict.fromkeys(["torch float32", *(name for name in arguments.runs if name not in TIME_ONLY)])
    rows = {}
    for name in chosen:
        for seed in SEEDS if RUNS[name][2] else ("-",):
            key = f"{name}, calibration {seed}, {arguments.scenes} scenes, weights {fingerprint(SHAPES_MODEL)}"
            measure = partial(quality, name, seed, model, processor, onnx, arguments.scenes)
            rows[key] = remembered(key, arguments.results, measure)
            print(f"| {name} | {seed} | {rows[key][0]:.1f} | {rows[key][1]:.1f} |", flush=True)
    best = next(iter(rows.values()))  # torch float32
    lost = {key: max(a - b for a, b in zip(best, row)) for key, row in rows.items()}
    key, most = max(lost.items(), key=lambda item: item[1])
    return [(f"most points lost: {most:.2f} of {MOST_POINTS_LOST} ({key})", most > MOST_POINTS_LOST)]


def quality(
    name: str, seed: int | str, model, processor: MaftPlusProcessor, onnx: Path, num_scenes: int
) -> list[float]:
    """Harmonic mIoU and PQ of one row, in points."""
    pictures = calibration(processor, seed) if RUNS[name][2] else []
    figures = evaluate(build(name, model, onnx, pictures, {}), processor, num_scenes, split="test")
    return [100 * figures[key] for key in ("harmonic", "pq")]


def remembered(key: str, results: Path | None, measure: Callable[[], list[float]]) -> list[float]:
    """What `results`, a JSON file, says of a row; measured and added to it where it says nothing."""
    known = json.loads(results.read_text()) if results is not None and results.exists() else {}
    if key not in known:
        known[key] = measure()
        if results is not None:
            write_atomically(results, json.dumps(known, indent=2))
    return known[key]


def calibration(processor: MaftPlusProcessor, seed: int) -> list[Tensor]:
    """Pictures as the network sees them; none of them a test scene."""
    stream = scenes("validation", NUM_CALIBRATION, seed=seed)
    return [processor(images=scene.image, return_tensors="pt")["pixel_values"] for scene in stream]


if __name__ == "__main__":
    sys.exit(main())
