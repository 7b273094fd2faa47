"""Quality of tracks in clips: VPQ, STQ and identity switches, from counts that add up over clips.

Sources: Video Panoptic Quality, arXiv 2006.11339, "Video Panoptic Quality (VPQ)"; Segmentation and Tracking Quality,
arXiv 2102.11859, "Segmentation and Tracking Quality"; identity switches as in CLEAR MOT, with masks in place of boxes.
A frame is `(segmentation, segments_info)`: a map (H, W) of ids, 0 void, and a list of `{"id", "label_id"}` (or
`"category_id"`), as post-processing returns it; equal ids in different frames of a clip mean the same thing.
Shapes: K classes, T frames of a clip, H x W a frame.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maftplus.train.evaluation.counting import (
    as_label_map,
    confusion_matrix,
    panoptic_counts,
    panoptic_figures,
    semantic_figures,
)

WINDOWS = (1, 5, 10, 15)  # frames; what the paper takes for densely labelled clips (VIPER)
SMALL_IDS = 1 << 12
Frame = tuple[Any, Sequence[Mapping[str, Any]]]


def vpq_counts(prediction: Sequence[Frame], reference: Sequence[Frame], num_labels: int, window: int) -> np.ndarray:
    """
    IoU, true and false positives and false negatives of tubes by class, (K, 4): `panoptic_counts` of every run of
    `window` neighbouring frames, laid side by side as one picture. A clip shorter than the window is one run.

    A predicted id that has two classes within the window is two tubes. `window` = 1 gives the counts of PQ.

    Raises:
        ValueError: if `window` is not positive, the clips differ in length, or a frame cannot be counted.
    """
    _check_clip(prediction, reference)
    if window < 1:
        raise ValueError(f"`window` must be at least one frame, got {window}.")
    counts = np.zeros((num_labels, 4))
    for start in range(max(1, len(reference) - window + 1)):
        tubes = (_join_frames(clip[start : start + window]) for clip in (prediction, reference))
        (found, found_tubes), (truth, true_tubes) = tubes
        counts += panoptic_counts(found, found_tubes, truth, true_tubes, num_labels, name=f"frame {start}")
    return counts


def vpq_figures(counts: Mapping[int, np.ndarray], stuff: Sequence[int] = ()) -> dict[str, float]:
    """
    VPQ from the counts of several windows (`vpq_counts`, summed over clips): the mean over windows, also of things and
    of stuff alone, and each window's own as `vpq_<window>`. Fractions; NaN where nothing was counted.
    """
    by_window = {window: panoptic_figures(rows, stuff) for window, rows in counts.items()}
    endings = ("", "_things", "_stuff")
    figures = {f"vpq{end}": float(np.mean([one[f"pq{end}"] for one in by_window.values()])) for end in endings}
    return {**figures, **{f"vpq_{window}": one["pq"] for window, one in by_window.items()}}


class SegmentationAndTracking:
    """
    STQ = sqrt(AQ x SQ) and identity switches of any number of clips; `add_clip` for each, then `figures`.

    AQ (association): for every true thing the sum over predicted things of TPA x IoU of the two tubes, divided by the
    true tube's pixels; the mean over all true things. Classes play no part, void pixels of the truth are left out.
    SQ: the mean IoU of classes over all frames, stuff included.
    Identity switches: how often a true thing is covered (IoU over one half in the frame) by another predicted id than
    when it last was.
    """

    def __init__(self, num_labels: int, stuff: Sequence[int] = ()):
        self.num_labels, self.stuff = num_labels, frozenset(stuff)
        self.matrix = np.zeros((num_labels + 1, num_labels + 1), np.int64)
        self.associations: list[float] = []
        self.num_switches = 0

    def add_clip(self, prediction: Sequence[Frame], reference: Sequence[Frame]) -> None:
        """Count a clip. Raises ValueError if the clips differ in length or a frame cannot be counted."""
        _check_clip(prediction, reference)
        shared, found_areas, true_areas = (defaultdict(int) for _ in range(3))
        last_ids: dict[int, int] = {}
        for index, (found, truth) in enumerate(zip(prediction, reference)):
            classes = (_class_map(frame, self.num_labels) for frame in (found, truth))
            confusion_matrix(*classes, self.num_labels, self.num_labels, f"frame {index}", out=self.matrix)
            overlaps, *areas = _count_pairs(found, truth, self.stuff)
            for total, part in ((shared, overlaps), (found_areas, areas[0]), (true_areas, areas[1])):
                _add(total, part)
            self.num_switches += _count_switches(last_ids, overlaps, *areas)
        self.associations += _association(shared, found_areas, true_areas)

    def figures(self) -> dict[str, float]:
        """`stq`, `aq`, `sq` (fractions, NaN without things or classes) and `switches` a true thing."""
        num_things = len(self.associations)
        aq = float(np.mean(self.associations)) if num_things else math.nan
        sq = semantic_figures(self.matrix)["mean_iou"]
        switches = self.num_switches / num_things if num_things else math.nan
        return {"stq": math.sqrt(aq * sq), "aq": aq, "sq": sq, "switches": switches}


def _check_clip(prediction: Sequence[Frame], reference: Sequence[Frame]) -> None:
    if len(prediction) != len(reference) or not len(reference):
        raise ValueError(
            f"`prediction` and `reference` need a frame for each other, at least one; got {len(prediction)} and "
            f"{len(reference)}."
        )


def _label_of(segment: Mapping[str, Any]) -> int:
    return int(segment["label_id"] if "label_id" in segment else segment["category_id"])


def _join_frames(frames: Sequence[Frame]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Frames side by side as one picture whose segments are tubes: one for every pair of an id and a class."""
    tubes: dict[tuple[int, int], dict[str, Any]] = {}
    maps = []
    for segmentation, segments in frames:
        ids = as_label_map(segmentation)
        old, new = [], []
        for segment in segments:
            key = int(segment["id"]), _label_of(segment)
            tube = tubes.setdefault(key, {**segment, "id": len(tubes) + 1})
            old.append(key[0])
            new.append(tube["id"])
        maps.append(_renumber(ids, old, new))
    return np.concatenate(maps), list(tubes.values())


def _renumber(ids: np.ndarray, old: list[int], new: list[int]) -> np.ndarray:
    """Every id of `old` as the number of `new` at its place, int64; 0 stays, any other id becomes -1."""
    table = {0: 0, **dict(zip(old, new))}
    if int(ids.min(initial=0)) >= 0 and int(ids.max(initial=0)) < SMALL_IDS:  # looked up: much faster than sorting
        found, positions = np.arange(int(ids.max(initial=0)) + 1), ids
    else:
        found, positions = np.unique(ids, return_inverse=True)
    return np.array([table.get(value, -1) for value in found.tolist()], np.int64)[positions].reshape(ids.shape)


def _class_map(frame: Frame, num_labels: int) -> np.ndarray:
    """Class of every pixel (H, W); void is `num_labels`."""
    segmentation, segments = frame
    classes = _renumber(
        as_label_map(segmentation), [int(one["id"]) for one in segments], [_label_of(one) + 1 for one in segments]
    )
    return np.where(classes == 0, num_labels, classes - 1)


def _count_pairs(found: Frame, truth: Frame, stuff: frozenset[int]) -> tuple[dict, dict, dict]:
    """Pixels of (predicted id, true id), of predicted and of true ids, of things alone; 0 where there is none."""
    maps = []
    for segmentation, segments in (found, truth):
        things = [int(one["id"]) for one in segments if _label_of(one) not in stuff]
        maps.append(np.maximum(_renumber(as_label_map(segmentation), things, things), 0))
    known = as_label_map(truth[0]) != 0
    highest = int(maps[1].max(initial=0)) + 1
    pairs, counts = np.unique((maps[0] * highest + maps[1])[known], return_counts=True)
    shared, found_areas, true_areas = (defaultdict(int) for _ in range(3))
    for pair, count in zip(pairs.tolist(), counts.tolist()):
        found_id, true_id = divmod(pair, highest)
        if found_id:
            found_areas[found_id] += count
        if true_id:
            true_areas[true_id] += count
        if found_id and true_id:
            shared[found_id, true_id] += count
    return shared, found_areas, true_areas


def _add(total: dict, part: dict) -> None:
    for key, value in part.items():
        total[key] += value


def _iou(key: tuple[int, int], shared: int, found_areas: dict, true_areas: dict) -> float:
    return shared / (found_areas[key[0]] + true_areas[key[1]] - shared)


def _association(shared: dict, found_areas: dict, true_areas: dict) -> list[float]:
    """One number in [0, 1] a true thing: the sum of TPA x IoU over predicted things, divided by its pixels."""
    sums = dict.fromkeys(true_areas, 0.0)
    for key, count in shared.items():
        sums[key[1]] += count * _iou(key, count, found_areas, true_areas)
    return [total / true_areas[true_id] for true_id, total in sums.items()]


def _count_switches(last_ids: dict[int, int], shared: dict, found_areas: dict, true_areas: dict) -> int:
    """True things that another predicted id covers than in `last_ids` (true id to predicted id), which is updated."""
    switches = 0
    for key, count in shared.items():
        if _iou(key, count, found_areas, true_areas) > 0.5:
            switches += last_ids.get(key[1], key[0]) != key[0]
            last_ids[key[1]] = key[0]
    return switches


__all__ = ["WINDOWS", "SegmentationAndTracking", "vpq_counts", "vpq_figures"]
