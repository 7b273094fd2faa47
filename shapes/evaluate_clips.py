"""How well things keep their identity in clips of the shapes world, with all names of the world as the vocabulary.

    python shapes/evaluate_clips.py models/shapes --split test --num_clips 30
    python shapes/evaluate_clips.py models/shapes --split test --num_clips 30 --num_thing_classes 2    # twins
    python shapes/evaluate_clips.py models/shapes --split test --num_clips 30 --every 4                # large steps

Every row has the same segments of the same frames; what differs is how they get their ids: by their place in the
frame's order of scores (no matching), by the overlap of masks alone, or as `maftplus.app.tracking` does. PQ is that
of the frames as they are found, without any track. Choices are made on the validation split; figures are those of the
test split.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from maftplus.app.tracking import BATCH_SIZE, Detection, Detector, Tracker, TrackOptions
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.segments import Segment
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.clips import clips
from maftplus.shapes.evaluate import all_names
from maftplus.shapes.scenes import CLASS_NAMES, SPLIT_SEEDS, STUFF_IDS, Scene
from maftplus.train.evaluation.counting import panoptic_figures
from maftplus.train.evaluation.video import WINDOWS, Frame, SegmentationAndTracking, vpq_counts, vpq_figures

COLUMNS = ("pq", "vpq", "vpq_things", "vpq_15", "stq", "aq", "sq", "switches", "tracks")
OVERLAP_ALONE = TrackOptions(
    embed_weight=0, overlap_weight=1, class_weight=0, threshold=0.05
)  # its best on validation clips


class OrderOfScore:
    """No matching: the ids of a frame are the places of its segments in the order of their scores."""

    def __init__(self):
        self.num_ids = 0

    def update(self, detections: list[Detection]) -> list[Segment]:
        order = sorted((one.segment for one in detections), key=lambda segment: -segment.score)
        self.num_ids = max(self.num_ids, len(order))
        return [replace(segment, id=place) for place, segment in enumerate(order, start=1)]


METHODS: dict[str, Callable] = {
    "order of score": OrderOfScore,
    "overlap alone": lambda: Tracker(CLASS_NAMES, OVERLAP_ALONE),
    "matched": lambda: Tracker(CLASS_NAMES),
}


class ClipCounts:
    """Counts of one method over clips."""

    def __init__(self):
        self.windows = {window: np.zeros((len(CLASS_NAMES), 4)) for window in WINDOWS}
        self.tracking = SegmentationAndTracking(len(CLASS_NAMES), STUFF_IDS)
        self.num_ids: list[int] = []

    def add(self, found: list[Frame], truth: list[Frame], num_ids: int) -> None:
        for window, counts in self.windows.items():
            counts += vpq_counts(found, truth, len(CLASS_NAMES), window)
        self.tracking.add_clip(found, truth)
        self.num_ids.append(num_ids)

    def figures(self) -> dict[str, float]:
        tracks = float(np.mean(self.num_ids))
        return {**vpq_figures(self.windows, STUFF_IDS), **self.tracking.figures(), "tracks": tracks}


def evaluate_clips(
    segmenter: MaftPlusSegmentationPipeline,
    num_clips: int,
    split: str = "validation",
    seed: int = 0,
    every: int = 1,
    num_frames: int = 20,
    **layout,
) -> dict[str, dict[str, float]]:
    """
    Figures by method, fractions but for `switches` (identity switches a true thing) and `tracks` (ids a clip). Every
    method also has `pq`, that of the frames.

    Args:
        split, seed, layout: Which clips (`shapes.clips`); "test" for figures that are reported.
        every: Draw `every` times as many frames and take only each such one: everything moves in larger steps.
        num_frames: Frames of a clip that are taken.
    """
    detector = Detector(segmenter, all_names(), [CLASS_NAMES[index] for index in STUFF_IDS])
    counts = {name: ClipCounts() for name in METHODS}
    frame_counts = np.zeros((len(CLASS_NAMES), 4))
    for clip in clips(split, num_clips, seed=seed, num_frames=every * num_frames, **layout):
        clip = clip[::every]
        detections, size = detect_clip(detector, clip), clip[0].segmentation.shape
        truth = [(scene.segmentation, scene.segments_info) for scene in clip]
        frames = [as_frame([one.segment for one in found], size) for found in detections]
        frame_counts += vpq_counts(frames, truth, len(CLASS_NAMES), window=1)
        for name, start in METHODS.items():
            tracker = start()
            frames = [as_frame(tracker.update(found), size) for found in detections]
            counts[name].add(frames, truth, tracker.num_ids)
    pq = panoptic_figures(frame_counts, STUFF_IDS)["pq"]
    return {name: {"pq": pq, **one.figures()} for name, one in counts.items()}


def detect_clip(detector: Detector, clip: list[Scene]) -> list[list[Detection]]:
    """The detections of every frame."""
    pictures = [Image.fromarray(scene.image) for scene in clip]
    batches = (pictures[start : start + BATCH_SIZE] for start in range(0, len(pictures), BATCH_SIZE))
    return [detections for batch in batches for detections in detector.detect(batch)]


def as_frame(segments: list[Segment], size: tuple[int, int]) -> Frame:
    """Segments -> a map (height, width) of ids and what they are."""
    ids = np.zeros(size, np.int64)
    for segment in segments:
        ids[segment.mask] = segment.id
    return ids, [{"id": segment.id, "label_id": segment.label_id} for segment in segments]


def format_table(figures: dict[str, dict[str, float]]) -> str:
    """A row a method: percentages, but switches and tracks as they are."""
    lines = [f"{'ids by':<16}" + "".join(f"{name:>11}" for name in COLUMNS)]
    for method, row in figures.items():
        cells = (f"{row[k]:>11.2f}" if k in ("switches", "tracks") else f"{100 * row[k]:>11.1f}" for k in COLUMNS)
        lines.append(f"{method:<16}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures of a model on fresh clips; the last line is JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("--split", default="test", choices=sorted(SPLIT_SEEDS))
    parser.add_argument("--num_clips", type=int, default=30)
    parser.add_argument("--num_thing_classes", type=int, help="Things of so few classes that there are twins.")
    parser.add_argument("--num_frames", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="Take every so-manieth frame: larger steps.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.num_threads)
    segmenter = MaftPlusSegmentationPipeline(
        model=MaftPlusForUniversalSegmentation.from_pretrained(options.model),
        processor=MaftPlusProcessor.from_pretrained(options.model),
    )
    layout = {name: getattr(options, name) for name in ("every", "num_frames", "num_thing_classes")}
    figures = evaluate_clips(segmenter, options.num_clips, options.split, options.seed, **layout)
    print(f"{options.num_clips} clips of the {options.split} split")
    print(format_table(figures))
    rounded = {name: {key: round(value, 4) for key, value in row.items()} for name, row in figures.items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
