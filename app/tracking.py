"""Things keep their identity through the frames of a clip, without any training for it.

The idea of arXiv 2208.02245 (MinVIS): a segmenter of pictures finds the same thing with much the same query in every
frame, so tracks come from matching the queries of neighbouring frames. Here a segment is matched by CLIP's embedding
of its mask, by where it is, and by its class probabilities; a thing that was hidden or outside is known again by its
embedding and class. Stuff has one identity a class.

    for segments in track(frames, segmenter, candidate_labels=["red ball", "lawn"], stuff_labels=["lawn"]):
        print([(one.id, one.label) for one in segments])

Shapes: N segments of a frame, Q queries, K classes, D joint space, h x w the grid of mask logits, H x W the frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from transformers.utils import ModelOutput

from maftplus.pictures.segments import Segment
from maftplus.pipeline_maftplus import check_thresholds, find_segments
from maftplus.reading_maftplus import read_picture
from maftplus.words_maftplus import parse_distractors, split_distractors

BATCH_SIZE = 8  # frames a step
LARGEST_GRID = 96  # points a side of the masks that are compared
KEPT_OUTPUTS = ("class_queries_logits", "masks_queries_logits", "mask_embeds", "unpadded_sizes", "padded_sizes")


@dataclass(frozen=True)
class TrackOptions:
    """
    How segments are matched. Chosen on validation clips of the shapes world (`shapes/evaluate_clips.py`).

    Args:
        embed_weight, overlap_weight, class_weight: Shares of the three likenesses, each in [0, 1], in a pair's score:
            cosine of the mask embeddings, IoU with where the track last was, agreement of class probabilities.
        threshold: Least score of a match; below it a segment begins a track of its own.
        window: Frames for which a track without a segment is remembered.
        inertia: What a track's embedding keeps of its past when it takes in a frame's.
    """

    embed_weight: float = 0.5
    overlap_weight: float = 0.4
    class_weight: float = 0.1
    threshold: float = 0.3
    window: int = 30
    inertia: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.embed_weight, self.overlap_weight, self.class_weight)
        if min(shares) < 0 or not np.isclose(sum(shares), 1):
            raise ValueError(f"The three weights of `TrackOptions` must be shares that sum to 1, got {shares}.")
        if self.window < 1 or not 0 <= self.inertia < 1:
            raise ValueError(
                f"`window` must be at least one frame and `inertia` in [0, 1), got {self.window} and {self.inertia}."
            )


@dataclass
class Detection:
    """
    A segment of one frame and what it is matched by: `embed` (D,), `probabilities` (K,) with 0 for stuff, `grid_mask`
    (h, w) bool. Without these three it has its class's one identity.
    """

    segment: Segment
    embed: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    grid_mask: np.ndarray | None = None


@dataclass
class Track:
    """A thing over time: how it looks, where it last was, and `votes` (K,), the sum of its class probabilities."""

    id: int
    embed: np.ndarray
    votes: np.ndarray
    grid_mask: np.ndarray
    frames_missed: int = 0


class Tracker:
    """Gives the segments of one frame after the other their lasting ids; holds what it remembers of the past."""

    def __init__(self, names: Sequence[str], options: TrackOptions | None = None):
        self.names, self.options = names, options or TrackOptions()
        self.tracks: list[Track] = []
        self.class_track_ids: dict[int, int] = {}
        self.num_ids = 0

    def update(self, detections: Sequence[Detection]) -> list[Segment]:
        """The segments of the next frame under their lasting ids; a thing has the class that its track speaks for."""
        things = [one for one in detections if one.embed is not None]
        owners = self._match(things)
        for track in self.tracks:
            track.frames_missed += 1
        owners = iter([self._extend(one, track) for one, track in zip(things, owners)])
        self.tracks = [track for track in self.tracks if track.frames_missed <= self.options.window]
        return [self._name(one.segment, None if one.embed is None else next(owners)) for one in detections]

    def _name(self, segment: Segment, track: Track | None) -> Segment:
        if track is None:
            return replace(segment, id=self._class_track_id(segment.label_id))
        label_id = int(track.votes.argmax())
        return replace(segment, id=track.id, label_id=label_id, label=self.names[label_id])

    def _match(self, things: Sequence[Detection]) -> list[Track | None]:
        owners: list[Track | None] = [None] * len(things)
        if things and self.tracks:
            scores = self._scores(things)
            for row, column in zip(*linear_sum_assignment(scores, maximize=True)):
                if scores[row, column] >= self.options.threshold:
                    owners[column] = self.tracks[row]
        return owners

    def _scores(self, things: Sequence[Detection]) -> np.ndarray:
        """How well every track fits every thing, (tracks, N) in [0, 1]."""
        options = self.options
        embeds = _cosine([track.embed for track in self.tracks], [one.embed for one in things])
        classes = _cosine([track.votes for track in self.tracks], [one.probabilities for one in things])
        overlaps = mask_iou([track.grid_mask for track in self.tracks], [one.grid_mask for one in things])
        embeds = embeds.clip(min=0)
        return options.embed_weight * embeds + options.overlap_weight * overlaps + options.class_weight * classes

    def _extend(self, thing: Detection, track: Track | None) -> Track:
        if track is None:
            self.num_ids += 1
            track = Track(self.num_ids, _unit(thing.embed), thing.probabilities.copy(), thing.grid_mask)
            self.tracks.append(track)
            return track
        keep = self.options.inertia
        track.embed = _unit(keep * track.embed + (1 - keep) * _unit(thing.embed))
        track.votes += thing.probabilities
        track.grid_mask, track.frames_missed = thing.grid_mask, 0
        return track

    def _class_track_id(self, label_id: int) -> int:
        if label_id not in self.class_track_ids:
            self.num_ids += 1
            self.class_track_ids[label_id] = self.num_ids
        return self.class_track_ids[label_id]


class Detector:
    """
    Segments of single frames, and what tells them apart.

    Args:
        segmenter: A `MaftPlusSegmentationPipeline`.
        candidate_labels, stuff_labels, subtask, thresholds: See `track`.

    Raises:
        ValueError: on words or thresholds that the pipeline refuses.
    """

    def __init__(
        self,
        segmenter,
        candidate_labels=None,
        stuff_labels=None,
        subtask="panoptic",
        distractor_labels=None,
        **thresholds: float,
    ):
        check_thresholds(subtask, thresholds)
        self.model, self.processor = segmenter.model, segmenter.processor
        self.classes, self.stuff_ids = segmenter.classes_and_stuff(candidate_labels, stuff_labels)
        self.names = [synonyms[0] for synonyms in self.classes]
        distractors = parse_distractors(distractor_labels, self.processor.do_split_synonyms)
        competing = [*self.classes, *split_distractors(self.classes, distractors)[0]]
        self.distractor_ids = range(len(self.classes), len(competing))
        self.subtask, self.thresholds = subtask, thresholds
        self.stuff_classes = torch.zeros(1, len(competing), dtype=torch.bool)
        self.stuff_classes[0, self.stuff_ids] = True
        self.vocabulary = {}  # of the model itself
        if candidate_labels is not None or self.distractor_ids:
            self.vocabulary = self.model.encode_vocabulary(**self.processor(text=competing, return_tensors="pt"))

    @torch.no_grad()
    def detect(self, pictures: list[Image.Image]) -> Iterator[list[Detection]]:
        """The detections of every picture of a batch."""
        inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device, self.model.dtype)
        outputs = self.model(**inputs, **self.vocabulary)
        kept = {name: _in_float32(outputs[name]) for name in KEPT_OUTPUTS}
        for index, picture in enumerate(pictures):
            one = {name: values[index : index + 1] for name, values in kept.items()}
            yield self._detections(ModelOutput(one), (picture.height, picture.width))

    def _detections(self, outputs: ModelOutput, size: tuple[int, int]) -> list[Detection]:
        outputs["target_sizes"], outputs["stuff_classes"] = torch.tensor([size]), self.stuff_classes
        words = self.stuff_ids, self.distractor_ids
        found = find_segments(self.processor, outputs, self.subtask, *words, **self.thresholds)
        segments = [self._segment(index, info, mask.numpy()) for index, (info, mask) in enumerate(found, start=1)]
        if self.subtask == "semantic":
            return [Detection(segment) for segment in segments]
        evidence = QueryEvidence(outputs, [*self.stuff_ids, *self.distractor_ids])
        return [evidence.describe(segment) if segment.isthing else Detection(segment) for segment in segments]

    def _segment(self, index: int, info: dict[str, Any], mask: np.ndarray) -> Segment:
        label_id = info["label_id"]
        return Segment(index, self.names[label_id], label_id, label_id not in self.stuff_ids, info["score"], mask)


class QueryEvidence:
    """The queries of one frame as numpy: which of them a segment is, and what that query knows of it."""

    def __init__(self, outputs: ModelOutput, stuff_ids: Sequence[int]):
        logits = outputs["masks_queries_logits"][0]  # (Q, h, w)
        step = -(-max(logits.shape[1:]) // LARGEST_GRID)
        padded, unpadded = (outputs[name][0].tolist() for name in ("padded_sizes", "unpadded_sizes"))
        extents = [edge * part / whole for edge, part, whole in zip(logits.shape[1:], unpadded, padded)]
        points = [np.arange(step // 2, round(extent), step) for extent in extents]
        self.shares = [
            (axis + 0.5) / extent for axis, extent in zip(points, extents)
        ]  # of the picture's height, width
        self.masks = (logits.numpy()[:, points[0]][:, :, points[1]] > 0).reshape(len(logits), -1).astype(np.float32)
        self.areas = self.masks.sum(1)
        self.embeds = outputs["mask_embeds"][0].float().numpy()
        self.probabilities = outputs["class_queries_logits"][0].float().softmax(-1)[:, :-1].numpy()
        self.probabilities[:, list(stuff_ids)] = 0

    def describe(self, segment: Segment) -> Detection:
        """A thing with the embedding and classes of the query whose mask is most like it, of like ones the surest."""
        rows, columns = (
            np.minimum(share * edge, edge - 1).astype(int) for share, edge in zip(self.shares, segment.mask.shape)
        )
        grid_mask = segment.mask[np.ix_(rows, columns)]
        dice = 2 * (self.masks @ grid_mask.reshape(-1)) / np.maximum(self.areas + grid_mask.sum(), 1)
        query = int((dice + 1e-3 * self.probabilities[:, segment.label_id]).argmax())
        return Detection(segment, self.embeds[query], self.probabilities[query], grid_mask)


def track(
    frames: Iterable[Any],
    segmenter: Any,
    candidate_labels: Sequence[Any] | None = None,
    stuff_labels: Sequence[Any] | None = None,
    subtask: str = "panoptic",
    batch_size: int = BATCH_SIZE,
    options: TrackOptions | None = None,
    **thresholds: Any,
) -> Iterator[list[Segment]]:
    """
    Segments of every frame, as they come, with ids that last through the clip.

    Args:
        frames: Pictures of one size (PIL images, or arrays (H, W, 3) uint8), in order, however many: no more than
            `batch_size` of them are held.
        segmenter: A `MaftPlusSegmentationPipeline`.
        candidate_labels, stuff_labels: As the pipeline takes them; by default the words stored in the model.
        subtask: "panoptic", "instance" or "semantic". Stuff, and in "semantic" every class, has one identity.
        batch_size: Frames that go through the network together.
        options: How segments are matched.
        thresholds: As the pipeline takes them, and its `distractor_labels`.

    Returns:
        An iterator over frames: lists of `Segment`, empty where nothing was found. Ids count from 1 in the order of
        first appearance. A thing's label is the one that all frames of its track so far speak for; its score is the
        frame's own.

    Raises:
        ValueError: on words or thresholds that the pipeline refuses, or a batch size below 1; while iterating, on a
            frame that is no picture or has another size than the first.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least one frame, got {batch_size}.")
    detector = Detector(segmenter, candidate_labels, stuff_labels, subtask, **thresholds)
    return _track(frames, detector, Tracker(detector.names, options), batch_size)


def _track(frames: Iterable[Any], detector: Detector, tracker: Tracker, batch_size: int) -> Iterator[list[Segment]]:
    frames, size, count = iter(frames), None, 0
    while batch := [read_picture(frame) for frame in islice(frames, batch_size)]:
        for picture in batch:
            size = size or picture.size
            if picture.size != size:
                raise ValueError(f"Frame {count} is {picture.size} pixels, the first one {size}; give them one size.")
            count += 1
        for detections in detector.detect(batch):
            yield tracker.update(detections)


def _in_float32(values: torch.Tensor) -> torch.Tensor:
    """On the CPU, half precision widened: numpy knows no bfloat16."""
    return values.cpu().float() if values.is_floating_point() else values.cpu()


def mask_iou(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """IoU of every pair of masks (h, w) bool, (len(first), len(second)); 0 where both are empty."""
    a, b = (np.stack(masks).reshape(len(masks), -1).astype(np.float32) for masks in (first, second))
    shared = a @ b.T
    return shared / np.maximum(a.sum(1)[:, None] + b.sum(1)[None] - shared, 1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _cosine(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([_unit(one) for one in first]) @ np.stack([_unit(one) for one in second]).T
