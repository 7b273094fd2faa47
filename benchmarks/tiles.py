"""What tiles change and what they save: `python benchmarks/tiles.py`.

Scenes of the shapes world, four times as wide as those that the shipped model was trained on, are segmented whole and
in tiles, at one scale and with all 42 names. Counted is where the class of a pixel agrees, and where it is the
truth's: `near` a seam are the pixels that more than one tile sees, `away` the others. Panoptic quality is that of
whole scenes. Memory is that of a process of its own for a larger picture, a scene repeated: what a call holds at most
beyond what was there before.
"""

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from maftplus.app.models import load_pipeline
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.shapes.scenes import CLASSES, STUFF_IDS, Scene, scenes
from maftplus.tiles_maftplus import plan_tiles
from maftplus.train.evaluation.counting import panoptic_counts, panoptic_figures

MODEL = Path(__file__).parents[1] / "models" / "shapes"
LABELS = [list(entry.names) for entry in CLASSES]
WORDS = {"candidate_labels": LABELS, "stuff_labels": [LABELS[index] for index in STUFF_IDS]}
THINGS_PER_PIXEL = 5 / 128**2  # as in the training scenes
MOST_SHARE_OF_MEMORY = 0.5  # limit: of what the whole picture needs
LEAST_AWAY = 0.85  # limit: of pixels away from seams whose class is the whole picture's


def main() -> int:
    """Measure, print the figures, return the exit code: 1 beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="pixels of a scene's edge")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--memory-side", type=int, default=1536, help="pixels of the edge in the memory measurement")
    parser.add_argument("--memory-of", choices=["whole", "tiles"], help="print this one's peak in MB and nothing else")
    arguments = parser.parse_args()
    pipe = load_pipeline(str(MODEL), "cpu")
    pipe.processor.image_processor.do_resize = False  # whole and tiles at one scale
    if arguments.memory_of:
        print(extra_memory(pipe, arguments))
        return 0
    results = {**compare_classes(pipe, arguments), **compare_panoptic(pipe, arguments)}
    results |= {f"memory_mb_{name}": measure_memory(name) for name in ("whole", "tiles")}
    print(json.dumps({name: round(value, 4) for name, value in results.items()}, indent=2))
    return report_limits(results)


def report_limits(results: dict[str, float]) -> int:
    """The exit code, with a line for every figure beyond its limit."""
    beyond = []
    if results["agreement_away"] < LEAST_AWAY:
        beyond.append(f"agreement_away is below {LEAST_AWAY}")
    if results["memory_mb_tiles"] > MOST_SHARE_OF_MEMORY * results["memory_mb_whole"]:
        beyond.append(f"memory_mb_tiles is over {MOST_SHARE_OF_MEMORY} of memory_mb_whole")
    for line in beyond:
        print(line)
    return int(bool(beyond))


def large_scenes(num_scenes: int, side: int) -> Iterator[Scene]:
    count = round(side**2 * THINGS_PER_PIXEL)
    yield from scenes("test", num_scenes, kinds=("seen", "unseen"), seed=14, size=side, num_things=(count, count))


def tiling(arguments: argparse.Namespace) -> dict[str, int]:
    return {"tile_size": arguments.tile, "tile_overlap": arguments.overlap}


def compare_classes(pipe: MaftPlusSegmentationPipeline, arguments: argparse.Namespace) -> dict[str, float]:
    """Shares of pixels near a seam and away from it where whole and tiles agree, and where each is right."""
    near = np.zeros((arguments.side,) * 2, dtype=int)
    for tile in plan_tiles(near.shape, arguments.tile, arguments.overlap):
        near[tile.window] += 1
    places = {"near": near > 1, "away": near == 1}
    rows = []
    for scene in large_scenes(arguments.scenes, arguments.side):
        whole, tiles = (class_map(pipe, scene, **options) for options in ({}, tiling(arguments)))
        truth = scene.semantic
        hits = {"agreement": whole == tiles, "right_whole": whole == truth, "right_tiles": tiles == truth}
        rows.append({f"{name}_{where}": hits[name][places[where]].mean() for name in hits for where in places})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def class_map(pipe: MaftPlusSegmentationPipeline, scene: Scene, **options: int) -> np.ndarray:
    result = np.full(scene.segmentation.shape, 255)
    for segment in pipe(scene.image, subtask="semantic", **WORDS, **options):
        result[np.asarray(segment["mask"]) > 0] = segment["label_id"]
    return result


def compare_panoptic(pipe: MaftPlusSegmentationPipeline, arguments: argparse.Namespace) -> dict[str, float]:
    """Panoptic quality of either way against the truth, and segments a scene."""
    results = {}
    for name, options in (("whole", {}), ("tiles", tiling(arguments))):
        counts, num_segments = np.zeros((len(LABELS), 4)), 0
        for scene in large_scenes(arguments.scenes, arguments.side):
            ids, infos = id_map(pipe(scene.image, subtask="panoptic", **WORDS, **options), scene.segmentation.shape)
            counts += panoptic_counts(ids, infos, scene.segmentation, scene.segments_info, len(LABELS))
            num_segments += len(infos)
        results |= {f"pq_{name}": panoptic_figures(counts)["pq"], f"segments_{name}": num_segments / arguments.scenes}
    return results


def id_map(segments: list[dict], shape: tuple[int, int]) -> tuple[np.ndarray, list[dict]]:
    ids = np.zeros(shape, dtype=np.int64)
    for index, segment in enumerate(segments, start=1):
        ids[np.asarray(segment["mask"]) > 0] = index
    return ids, [{"id": index, "label_id": one["label_id"]} for index, one in enumerate(segments, start=1)]


def extra_memory(pipe: MaftPlusSegmentationPipeline, arguments: argparse.Namespace) -> float:
    """MB held at most beyond what there was before the call (Linux)."""
    image = next(large_scenes(1, arguments.side)).image
    repeats = -(-arguments.memory_side // arguments.side)
    picture = np.tile(image, (repeats, repeats, 1))[: arguments.memory_side, : arguments.memory_side]
    options = {} if arguments.memory_of == "whole" else tiling(arguments)
    with torch.inference_mode():
        pipe(image[:128, :128], subtask="semantic", **WORDS)  # words encoded, libraries warm
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak restarts at what is resident now
        before = _resident("VmRSS")
        pipe(picture, subtask="semantic", **WORDS, **options)
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure_memory(name: str) -> float:
    """`extra_memory` in a process of its own, with this command's options."""
    command = [sys.executable, *sys.argv, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    sys.exit(main())
