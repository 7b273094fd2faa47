"""What tracks cost: frames a second against the same frames without identities, and memory over a long clip.

    python benchmarks/video.py --speed [--rounds 5]
    python benchmarks/video.py --seconds 3600 [--every 4]    # at one frame a second, by repetition

Speed: a clip of the shapes world as 40 pictures of 128 x 128 in batches of 8, with 42 classes, through network and
panoptic post-processing; once frame by frame, once as `track` does it. A round runs one after the other; the ratio is
taken within a round. Memory: resident memory of the process, sampled while `segment_video` works; what the first tenth
of the frames needed at most against the last tenth. The exit code is 1 where tracks cost more than 10 %, or where
memory grows by more than 10 %.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from transformers.utils import ModelOutput

from maftplus.app.clips import ClipWriter
from maftplus.app.tracking import BATCH_SIZE, track
from maftplus.app.video import segment_video
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline, find_segments
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.clips import clips

MODEL = Path(__file__).parents[1] / "models" / "shapes"
LARGEST_COST = LARGEST_GROWTH = 0.10
NUM_FRAMES = 40
PAGE = resource.getpagesize()


def main() -> int:
    """Measure, print, return the exit code: 1 beyond a limit."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, help="Length of the clip whose memory is measured.")
    parser.add_argument("--every", type=int, default=1, help="Take every so-manieth frame of that clip.")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter = MaftPlusSegmentationPipeline(
        model=MaftPlusForUniversalSegmentation.from_pretrained(MODEL),
        processor=MaftPlusProcessor.from_pretrained(MODEL),
        device="cpu",
    )
    pictures = [Image.fromarray(scene.image) for scene in next(clips("validation", 1, num_frames=NUM_FRAMES))]
    verdicts = []
    if options.speed:
        clock = time.perf_counter if options.clock == "wall" else time.process_time
        verdicts.append(measure_speed(segmenter, pictures, options.rounds, clock))
    if options.seconds:
        verdicts.append(measure_memory(segmenter, pictures, options.seconds, options.every))
    return int(any(verdicts))


@torch.no_grad()
def segment_pictures(segmenter: MaftPlusSegmentationPipeline, pictures: list[Image.Image]) -> None:
    """Network and post-processing of frames in batches, without identities."""
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = pictures[start : start + BATCH_SIZE]
        outputs = segmenter.model(**segmenter.processor(images=batch, return_tensors="pt"))
        for index, picture in enumerate(batch):
            one = {name: outputs[name][index : index + 1] for name in ("class_queries_logits", "masks_queries_logits")}
            one |= {name: outputs[name][index : index + 1] for name in ("unpadded_sizes", "padded_sizes")}
            one["target_sizes"] = torch.tensor([(picture.height, picture.width)])
            find_segments(segmenter.processor, ModelOutput(one), "panoptic", segmenter.model.config.stuff_ids)


def measure_speed(segmenter, pictures: list[Image.Image], rounds: int, clock) -> bool:
    """Print frames a second of both; True if tracks cost too much."""
    runs = {
        "frames alone": lambda: segment_pictures(segmenter, pictures),
        "tracks": lambda: list(track(pictures, segmenter)),
    }
    times = {name: [] for name in runs}
    for run in runs.values():  # warm up
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    for name, seconds in times.items():
        print(f"{name:<14}{len(pictures) / statistics.median(seconds):>8.1f} frames a second")
    cost = statistics.median(b / a for a, b in zip(*times.values())) - 1
    print(f"tracks cost {cost:.1%} of the frames' own time (limit {LARGEST_COST:.0%})")
    return cost > LARGEST_COST


def measure_memory(segmenter, pictures: list[Image.Image], seconds: int, every: int) -> bool:
    """Print resident memory early and late in a clip of one frame a second; True if it grows too much."""
    samples: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        writer = ClipWriter(path, pictures[0].size, rate=1)
        for index in range(seconds):
            writer.write(pictures[index % len(pictures)], index)
        writer.close()
        start = time.perf_counter()
        result = segment_video(
            path, path, segmenter, every=every, progress=lambda _: samples.append(resident_memory())
        )
        took = time.perf_counter() - start
    tenth = max(1, len(samples) // 10)
    early, late = max(samples[:tenth]), max(samples[-tenth:])
    print(f"{result.num_frames} frames ({seconds} s of clip) in {took:.0f} s, {len(result.summaries)} tracks")
    print(f"memory: {early:.0f} MB in the first tenth, {late:.0f} MB in the last ({late / early - 1:+.1%})")
    return late / early - 1 > LARGEST_GROWTH


def resident_memory() -> float:
    """Of this process, now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


if __name__ == "__main__":
    sys.exit(main())
