"""Counting for mIoU and PQ: every image becomes a few integers that add up, and every figure comes from their sum.

Used by the `evaluate` modules in `train/metrics`, by the Trainer's `compute_metrics` and by `evaluate.py`
beside it.
Sources: intersection over union as in the PASCAL VOC challenge; panoptic quality, arXiv 1801.00868, section 4, with
the void and crowd rules of the COCO panoptic API.
Shapes: K classes (index K stands for ignored or void), H x W a label map, P and G segments of prediction and truth.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

LUT_LIMIT = 1 << 24  # ids of the COCO format have three bytes; larger ones are sorted instead of looked up
MOST_RUNS = 0.2  # of the pixels; from here on counting pixels is faster (benchmarks/metrics.py)
RUNS_STEP = 13  # every how many pixels a map is looked at to guess its number of runs; no usual width divides by it
MOST_WRONG = 0.5  # of the pixels; from here on counting all of them is faster than counting the wrong ones apart
PIECE = 1 << 14  # pixels
NO_CLASS = 1 << 40  # what a value that is no class looks up; larger than any pair of classes


def as_label_map(labels: Any, what: str = "prediction", name: str | None = None) -> np.ndarray:
    """
    A label map as an integer numpy array, (H, W) in any integer type.

    Raises:
        ValueError: if it is not two-dimensional, finite and of an integer type; the message starts with `name`.
    """
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"{_prefix(name)}the {what} must be a label map (height, width), got shape {labels.shape}.")
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        bad = np.issubdtype(labels.dtype, np.floating) and not np.isfinite(labels).all()
        reason = "NaN or infinite values" if bad else f"values of type {labels.dtype}"
        raise ValueError(f"{_prefix(name)}the {what} holds {reason}; a label map holds integers.")
    return labels


def check_ignore_index(num_labels: int, ignore_index: int | None) -> None:
    """
    Raises:
        ValueError: if `ignore_index` is the id of a class other than 0 (255 among 847 classes would hide one of them).
    """
    if num_labels < 1:
        raise ValueError(f"`num_labels` must be positive, got {num_labels}.")
    if ignore_index is not None and 0 < ignore_index < num_labels:
        raise ValueError(
            f"`ignore_index` ({ignore_index}) is the id of one of the {num_labels} classes; use one outside, as 65535."
        )
    if ignore_index is not None and abs(ignore_index) >= LUT_LIMIT:
        raise ValueError(f"`ignore_index` must lie within +-{LUT_LIMIT - 1}, got {ignore_index}.")


def confusion_matrix(
    prediction: Any,
    reference: Any,
    num_labels: int,
    ignore_index: int | None = 255,
    name: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """
    Pixels by predicted and true class, (K+1, K+1) int64: rows are predictions, columns the truth, the last is ignored.

    Args:
        prediction, reference: (H, W) label maps in any integer type (array, tensor, list), values 0..K-1.
        num_labels: K.
        ignore_index: The value of unlabelled pixels; in a prediction it means "no class" and counts as a miss.
        name: What an error calls the image.
        out: A matrix to add to (and to return) instead of a new one; contiguous, int64. With `order="F"` the counts of
            one true class lie together: a picture has few of them, and noise in its prediction stays in the cache.

    Raises:
        ValueError: on maps of different size, on values that are no class, or on maps that hold no integers.
    """
    check_ignore_index(num_labels, ignore_index)
    prediction, reference = as_label_map(prediction, "prediction", name), as_label_map(reference, "label map", name)
    _check_same_size(prediction, reference, name)
    skipped = None if ignore_index == 0 else ignore_index  # a background class may be predicted
    if out is None:
        out = np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64)
    row_step, column_step = (stride // out.itemsize for stride in out.strides)
    tables = _class_table(num_labels, skipped, row_step), _class_table(num_labels, ignore_index, column_step)
    counted = []
    for rows, columns, lengths in _parts(prediction.reshape(-1), reference.reshape(-1)):
        pairs = _look_up_pairs(rows, columns, *tables)
        if pairs.max(initial=0) >= NO_CLASS:
            _raise_no_class(rows, num_labels, skipped, "prediction", name)
            _raise_no_class(columns, num_labels, ignore_index, "label map", name)
        counted.append((pairs, lengths))
    for pairs, lengths in counted:  # only now: a map that is refused changes nothing
        np.add.at(out.ravel(order="K"), pairs, lengths)
    return out


def semantic_figures(matrix: np.ndarray, seen: Iterable[int] | None = None) -> dict[str, Any]:
    """
    Every semantic figure of a confusion matrix (K+1, K+1), as fractions; undefined ones are NaN.

    `mean_iou` divides by the classes that occur in the truth *or* in a prediction, so a class that is only predicted
    counts as 0 (the convention of the published results); `mean_iou_present` averages over the classes that occur in
    the truth. With `seen` (ids of the classes of training) both also come as `seen_`, `unseen_` and `harmonic_`.
    `per_category_iou` and `per_category_accuracy` (K,) are NaN where the truth never has the class.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    hits = np.diagonal(matrix)[:-1].astype(np.float64)
    truth = matrix[:, :-1].sum(axis=0).astype(np.float64)
    predicted = matrix[:-1, :-1].sum(axis=1).astype(np.float64)
    iou = _divide(hits, truth + predicted - hits, where=truth > 0)
    every = np.ones(len(hits), dtype=bool)
    figures = _subset_figures(hits, truth, predicted, iou, every)
    figures["frequency_weighted_iou"] = _ratio(np.nansum(iou * truth), truth.sum())
    figures["mean_accuracy"] = _ratio(_divide(hits, truth, where=truth > 0)[truth > 0].sum(), (truth > 0).sum())
    if seen is not None:
        figures.update(_seen_figures(hits, truth, predicted, iou, seen))
    figures["per_category_iou"] = iou
    figures["per_category_accuracy"] = _divide(hits, truth, where=truth > 0)
    return figures


def panoptic_counts(
    prediction: Any,
    prediction_segments: Sequence[Mapping[str, Any]],
    reference: Any,
    reference_segments: Sequence[Mapping[str, Any]],
    num_labels: int,
    name: str | None = None,
) -> np.ndarray:
    """
    Sum of IoU, true positives, false positives and false negatives of one image by class, (K, 4) float64.

    Args:
        prediction, reference: (H, W) segment ids, 0 void.
        prediction_segments, reference_segments: For every segment its `id` and `label_id` (or `category_id`), 0..K-1;
            the truth may set `iscrowd` and, as COCO's files do, `area`. All other areas are counted in the maps.
        num_labels: K.
        name: What an error calls the image.

    A pair matches if the classes agree and the IoU, its union without the prediction's pixels on void, exceeds 1/2.
    Crowd segments neither match nor count as missed. An unmatched prediction is forgiven if more than half of it lies
    on void and on the crowd segment of its class (of several, the last listed). An id of the truth that is not listed
    matches nothing and is not void.

    Raises:
        ValueError: on maps of different size, a predicted id that is not listed, a listed one that the prediction
            lacks, an id listed twice, or a class outside 0..K-1.
    """
    prediction, reference = as_label_map(prediction, "prediction", name), as_label_map(reference, "id map", name)
    _check_same_size(prediction, reference, name)
    p_ids, p_classes = _listed(prediction_segments, num_labels, "prediction", name)
    g_ids, g_classes = _listed(reference_segments, num_labels, "truth", name)
    p_runs, g_runs, lengths = _runs(prediction, reference)
    rows, columns = _segment_indices(p_runs, p_ids), _segment_indices(g_runs, g_ids)
    overlaps = np.zeros((len(p_ids) + 2, len(g_ids) + 2), dtype=np.int64)  # index 0 void, then listed, last unlisted
    np.add.at(overlaps.reshape(-1), rows * overlaps.shape[1] + columns, lengths)
    _check_predicted_ids(p_runs, rows, p_ids, overlaps, name)
    crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in reference_segments], dtype=bool)
    # A listed area is the annotation's own: where segments cover each other (ADE20K) it exceeds the pixels in the map.
    g_area = [segment.get("area", pixels) for segment, pixels in zip(reference_segments, overlaps.sum(axis=0)[1:-1])]
    return _match_segments(overlaps, p_classes, g_classes, np.array(g_area, dtype=np.int64), crowd, num_labels)


def panoptic_figures(counts: np.ndarray, stuff: Iterable[int] = ()) -> dict[str, Any]:
    """
    PQ, SQ and RQ of summed counts (K, 4), as fractions: over all classes, over things and over stuff.

    Averages run over the classes with any true positive, false positive or false negative (`num_categories`); without
    any they are NaN. `per_category_pq` and so on, (K,), are 0 for a class that never occurs, as in the COCO API.
    """
    iou, tp, fp, fn = np.asarray(counts, dtype=np.float64).T
    occurs = tp + fp + fn > 0
    sq = _divide(iou, tp, where=tp > 0, default=0.0)
    rq = _divide(tp, tp + 0.5 * fp + 0.5 * fn, where=occurs, default=0.0)
    pq = _divide(iou, tp + 0.5 * fp + 0.5 * fn, where=occurs, default=0.0)
    is_stuff = np.zeros(len(iou), dtype=bool)
    is_stuff[list(stuff)] = True
    figures = {}
    for ending, subset in (("", occurs), ("_things", occurs & ~is_stuff), ("_stuff", occurs & is_stuff)):
        for key, values in (("pq", pq), ("sq", sq), ("rq", rq)):
            figures[key + ending] = _ratio(values[subset].sum(), subset.sum())
        figures["num_categories" + ending] = int(subset.sum())
    return {**figures, "per_category_pq": pq, "per_category_sq": sq, "per_category_rq": rq}


class StreamedCounts:
    """
    Mixin for an `evaluate.Metric` that keeps one array of counts instead of its inputs, so memory does not grow.

    A subclass sets `self.counts` and writes `_count(prediction, reference, name)`, which adds one image to it. When
    the metric is computed the counts are stored as one row, so `evaluate`'s own merging over processes adds them up.
    """

    counts: np.ndarray
    num_images: int = 0

    def add_batch(self, *, predictions=None, references=None, names=None, **kwargs):
        """Count a batch: lists of predictions and references, one an image; `names` are what errors call them."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}; give `predictions` and `references` (and `names`).")
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError(
                "`predictions` and `references` must hold one entry an image, as many of the one as of the other."
            )
        for index, (prediction, reference) in enumerate(zip(predictions, references)):
            self._count(prediction, reference, names[index] if names else f"image {self.num_images}")
            self.num_images += 1

    def add(self, *, prediction=None, reference=None, name=None, **kwargs):
        """Count one image."""
        self.add_batch(predictions=[prediction], references=[reference], names=[name] if name else None, **kwargs)

    def compute(self, *, predictions=None, references=None, **kwargs):
        """The figures of everything counted so far (on process 0; None elsewhere); counting then starts anew."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        super().add_batch(predictions=[self.counts.tobytes()], references=[self.num_images])
        self.counts, self.num_images = np.zeros_like(self.counts), 0
        return super().compute(**kwargs)

    def merged(self, rows: Any) -> np.ndarray:
        """The sum of the stored rows of all processes, in the shape of `self.counts`."""
        return sum(np.frombuffer(row, dtype=self.counts.dtype) for row in rows).reshape(self.counts.shape)


def _prefix(name: str | None) -> str:
    return f"{name}: " if name else ""


def _check_same_size(prediction: np.ndarray, reference: np.ndarray, name: str | None) -> None:
    if prediction.shape != reference.shape:
        got, wanted = (f"{height} x {width}" for height, width in (prediction.shape, reference.shape))
        raise ValueError(
            f"{_prefix(name)}the prediction is {got} (height x width) but the label map is {wanted}; pass the label "
            "map's size as `target_sizes` to post-processing."
        )


@lru_cache(maxsize=16)
def _class_table(num_labels: int, ignore_index: int | None, scale: int) -> np.ndarray:
    """`scale` times the class index of every value; the upper half, where negative values land, is no class."""
    size = max(num_labels, abs(ignore_index or 0) + 1)
    table = np.full(2 * size, NO_CLASS, dtype=np.int64)
    table[:num_labels] = scale * np.arange(num_labels)
    if ignore_index is not None:
        table[ignore_index] = scale * num_labels
    return table


def _runs(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Values of both maps (n,) and lengths of the runs of pixels, row by row, in which neither changes.

    Label maps are flat, so there are far fewer runs than pixels, and everything else is done once a run.
    """
    prediction, reference = prediction.reshape(-1), reference.reshape(-1)
    bounds = _bounds(_changes(prediction) | _changes(reference)) if len(prediction) else np.array([0])
    return prediction[bounds[:-1]], reference[bounds[:-1]], np.diff(bounds)


def _parts(prediction: np.ndarray, reference: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | int]]:
    """
    Values of both maps, (n,) each, and how many pixels hold them, in the parts that are counted the fastest: runs; if
    the prediction alone is noisy, its wrong pixels and the runs of the truth without them; if both are, all pixels.
    """
    if _is_noisy(reference):
        return [(prediction, reference, 1)]
    if not _is_noisy(prediction):
        return [_runs(prediction, reference)]
    is_wrong = prediction != reference
    wrong = np.flatnonzero(is_wrong)
    if len(wrong) > MOST_WRONG * len(prediction):
        return [(prediction, reference, 1)]
    bounds = _bounds(_changes(reference))
    true = reference[bounds[:-1]]
    num_right = np.diff(bounds) - np.add.reduceat(is_wrong, bounds[:-1], dtype=np.int32)
    return [(prediction.take(wrong), reference.take(wrong), 1), (true, true, num_right)]


def _is_noisy(labels: np.ndarray) -> bool:
    """Whether a map (pixels,) seems to have so many runs that finding them costs more than it saves."""
    changes = labels[1::RUNS_STEP] != labels[:-1:RUNS_STEP]
    return np.count_nonzero(changes) > MOST_RUNS * len(changes)


def _changes(labels: np.ndarray) -> np.ndarray:
    """Whether a pixel differs from the one before it, (pixels - 1,)."""
    return labels[1:] != labels[:-1]


def _bounds(changes: np.ndarray) -> np.ndarray:
    """First pixel of every run, and the number of pixels at the end."""
    return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(changes) + 1]])


def _look_up_pairs(
    rows: np.ndarray, columns: np.ndarray, row_table: np.ndarray, column_table: np.ndarray
) -> np.ndarray:
    """The sum of both tables' entries, (n,) int64, a piece at a time that stays in the processor's cache."""
    pairs = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), PIECE):
        part = slice(start, start + PIECE)
        np.add(_look_up(rows[part], row_table), _look_up(columns[part], column_table), out=pairs[part])
    return pairs


def _look_up(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The table's entry for every label, int64."""
    try:
        return table.take(labels.astype(np.intp, copy=False))  # other index types are many times slower
    except IndexError:  # beyond the table
        return np.full(labels.size, NO_CLASS)


def _raise_no_class(
    labels: np.ndarray, num_labels: int, ignore_index: int | None, what: str, name: str | None
) -> None:
    found = np.unique(labels)
    found = found[((found < 0) | (found >= num_labels)) & (found != ignore_index)]
    if len(found):
        raise ValueError(
            f"{_prefix(name)}the {what} holds {_some(found)}, outside the {num_labels} classes 0 to {num_labels - 1} "
            f"(`ignore_index` is {ignore_index})."
        )


def _divide(above: np.ndarray, below: np.ndarray, where: np.ndarray, default: float = np.nan) -> np.ndarray:
    result = np.full(len(above), default)
    np.divide(above, below, out=result, where=where)
    return result


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")


def _subset_figures(hits, truth, predicted, iou, subset) -> dict[str, float]:
    """Mean IoU in both conventions and pixel accuracy over the classes of a boolean `subset` (K,)."""
    total = iou[subset & (truth > 0)].sum()
    return {
        "mean_iou": _ratio(total, (subset & (truth + predicted > 0)).sum()),
        "mean_iou_present": _ratio(total, (subset & (truth > 0)).sum()),
        "overall_accuracy": _ratio(hits[subset].sum(), truth[subset].sum()),
    }


def _seen_figures(hits, truth, predicted, iou, seen: Iterable[int]) -> dict[str, float]:
    is_seen = np.zeros(len(hits), dtype=bool)
    is_seen[list(seen)] = True
    parts = {"seen": is_seen, "unseen": ~is_seen}
    parts = {key: _subset_figures(hits, truth, predicted, iou, subset) for key, subset in parts.items()}
    figures = {f"{part}_{key}": value for part, values in parts.items() for key, value in values.items()}
    for key in ("mean_iou", "mean_iou_present"):
        a, b = parts["seen"][key], parts["unseen"][key]
        figures[f"harmonic_{key}"] = 0.0 if a + b == 0 else 2 * a * b / (a + b)
    return figures


def _listed(segments, num_labels: int, what: str, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and classes of the listed segments, (n,) int64 each."""
    ids = np.array([int(segment["id"]) for segment in segments], dtype=np.int64)
    key = "label_id" if segments and "label_id" in segments[0] else "category_id"
    classes = np.array([int(segment[key]) for segment in segments], dtype=np.int64)
    if len(np.unique(ids)) < len(ids) or (ids <= 0).any():
        raise ValueError(f"{_prefix(name)}the segments of the {what} need distinct positive ids, got {ids.tolist()}.")
    wrong = classes[(classes < 0) | (classes >= num_labels)]
    if len(wrong):
        raise ValueError(f"{_prefix(name)}the {what} lists the class {_some(wrong)}, outside 0 to {num_labels - 1}.")
    return ids, classes


def _segment_indices(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Index of every value's segment, (n,): 0 void, 1.. in the order of `ids`, len(ids) + 1 for any other id."""
    highest = int(values.max(initial=0))
    if values.size and int(values.min()) >= 0 and highest < LUT_LIMIT:
        table = np.zeros(highest + 1, dtype=np.int64)  # pages that are never written are never allocated
        known = ids <= highest
        table[ids[known]] = np.flatnonzero(known) + 1
        indices = table.take(values.astype(np.intp, copy=False))
        indices[(indices == 0) & (values != 0)] = len(ids) + 1
        return indices
    table = {0: 0, **{int(value): index + 1 for index, value in enumerate(ids)}}
    found, positions = np.unique(values, return_inverse=True)
    return np.array([table.get(int(value), len(ids) + 1) for value in found], dtype=np.int64)[positions]


def _check_predicted_ids(values, rows, ids, overlaps, name: str | None) -> None:
    if overlaps[-1].any():
        unlisted = np.unique(values[rows == len(ids) + 1])
        raise ValueError(f"{_prefix(name)}the prediction has the segment id {_some(unlisted)}, which is never listed.")
    missing = ids[overlaps[1:-1].sum(axis=1) == 0]
    if len(missing):
        raise ValueError(f"{_prefix(name)}the prediction lists the segment id {_some(missing)}, but no pixel has it.")


def _match_segments(overlaps, p_classes, g_classes, g_area, crowd, num_labels: int) -> np.ndarray:
    counts = np.zeros((num_labels, 4))
    p_area = overlaps[1:-1].sum(axis=1)
    shared, on_void = overlaps[1:-1, 1:-1], overlaps[1:-1, 0]
    union = p_area[:, None] + g_area[None, :] - shared - on_void[:, None]
    allowed = (p_classes[:, None] == g_classes[None, :]) & ~crowd[None, :]
    matched = allowed & (2 * shared > union)
    for p, g in np.argwhere(matched):
        counts[p_classes[p], 0] += shared[p, g] / union[p, g]
        counts[p_classes[p], 1] += 1
    forgiven = 2 * (on_void + _on_own_crowd(shared, p_classes, g_classes, crowd)) > p_area
    np.add.at(counts[:, 2], p_classes[~matched.any(axis=1) & ~forgiven], 1)
    np.add.at(counts[:, 3], g_classes[~matched.any(axis=0) & ~crowd], 1)
    return counts


def _on_own_crowd(shared, p_classes, g_classes, crowd) -> np.ndarray:
    """Pixels of every predicted segment on the crowd segment of its class, (P,); of several, the last listed."""
    last = {int(g_classes[g]): g for g in np.flatnonzero(crowd)}
    return np.array(
        [shared[p, last[int(label)]] if int(label) in last else 0 for p, label in enumerate(p_classes)], dtype=np.int64
    )


def _some(values: np.ndarray) -> str:
    values = np.unique(values).tolist()
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
