"""How fast the metrics count, against the usual ways: `python benchmarks/metrics.py`.

One image is 512 x 683 with 847 classes. `counting` is on flat maps (wrong patches), `noisy` on maps of which one in
ten single pixels is wrong, `noisier` three in ten, any class; `shuffled` on maps without two like neighbours.
Baselines, written from their descriptions:
- mean IoU as `evaluate` formulates it: mask the ignored pixels, then three histograms over all classes; as a module
  every map is stored as a picture until the end, too.
- panoptic quality segment by segment: for every pair of segments of one class, two masks, their overlap and union.
All in one run, processor time of one thread (OMP_NUM_THREADS=1), the fastest of several rounds, so that other work on
the machine disturbs little.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import evaluate
import numpy as np

from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts

HEIGHT, WIDTH, NUM_LABELS, IGNORE = 512, 683, 847, 65535
MODULE_REPEATS = 20  # 100 images before one `compute`; a benchmark has 1,449 to 5,000
# The limits of benchmarks/README.md; memory may not grow with the number of pictures.
LEAST = {"counting_times_faster": 10.0, "noisy_times_faster": 7.0, "panoptic_times_faster": 5.0}
MOST = {"memory_growth_mb": 20.0, "stored_bytes": 1 << 20}
METRICS = Path(__file__).parents[1] / "train" / "metrics"


def main() -> int:
    """Measure, print the table, return the exit code: 1 beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of 5 images each; the fastest counts")
    parser.add_argument("--images", type=int, default=400, help="images of the memory measurement")
    arguments = parser.parse_args()
    pairs = [random_pair(seed) for seed in range(5)]
    check_agreement([*pairs, noisy_pair(0), noisy_pair(0, share=0.3)])
    results = {**time_mean_iou(pairs, arguments.rounds), **time_panoptic(arguments.rounds)}
    results.update(measure_memory(pairs, arguments.images))
    print(json.dumps(results, indent=2))
    beyond = beyond_limits(results)
    for line in beyond:
        print(line)
    return int(bool(beyond))


def beyond_limits(results: dict[str, float]) -> list[str]:
    """What is slower than `LEAST`, or larger than `MOST`, a line each."""
    slow = [
        f"{name} is {results[name]:.3g}, wanted at least {least}"
        for name, least in LEAST.items()
        if results[name] < least
    ]
    large = [
        f"{name} is {results[name]:.3g}, wanted at most {most}" for name, most in MOST.items() if results[name] > most
    ]
    return slow + large


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A label map of 40 blocks with an ignored border, and a prediction that is wrong in a fifth of 8 x 8 patches."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, NUM_LABELS, (5, 8)).repeat(103, 0)[:HEIGHT].repeat(86, 1)[:, :WIDTH].astype(np.uint16)
    other = rng.integers(0, NUM_LABELS, (5, 8)).repeat(103, 0)[:HEIGHT].repeat(86, 1)[:, :WIDTH]
    wrong = (rng.random((HEIGHT // 8, WIDTH // 8 + 1)) < 0.2).repeat(8, 0).repeat(8, 1)[:, :WIDTH]
    prediction = np.where(wrong, other, reference).astype(np.int64)
    reference[:8] = IGNORE
    return prediction, reference


def noisy_pair(seed: int, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """As `random_pair`, but a share of the pixels, each for itself, is predicted to be any class."""
    rng = np.random.default_rng(seed)
    _, reference = random_pair(seed)
    other = rng.integers(0, NUM_LABELS, (HEIGHT, WIDTH))
    right = np.where(reference == IGNORE, 0, reference)
    return np.where(rng.random((HEIGHT, WIDTH)) < share, other, right), reference


def random_segments(seed: int) -> tuple:
    """Two id maps of about 40 segments each with their lists."""
    prediction, reference = (values.astype(np.int32) for values in random_pair(seed))
    reference[reference == IGNORE] = -1
    maps = (prediction + 1, reference + 1)
    lists = [[{"id": int(i), "label_id": int(i) % 20} for i in np.unique(ids) if i] for ids in maps]
    return maps[0], lists[0], maps[1], lists[1]


def histogram_counts(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, ...]:
    """Intersection, prediction and truth by class, as `evaluate`'s mean_iou counts them."""
    known = reference != IGNORE
    prediction, reference = prediction[known], reference[known]
    bins = {"bins": NUM_LABELS, "range": (0, NUM_LABELS - 1)}
    right = prediction[prediction == reference]
    return tuple(np.histogram(values, **bins)[0] for values in (right, prediction, reference))


class StoredMeanIou(evaluate.Metric):
    """The usual module: stores every map as a picture and counts at the end."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        counts = [histogram_counts(np.array(p), np.array(r)) for p, r in zip(predictions, references)]
        right, predicted, truth = np.sum(counts, axis=0)
        with np.errstate(invalid="ignore"):
            return {"mean_iou": float(np.nanmean(right / (predicted + truth - right)))}


def segment_loop_counts(prediction, prediction_segments, reference, reference_segments) -> np.ndarray:
    """IoU sum, true positives, false positives, false negatives by class, one pair of segments after the other."""
    counts, matched = np.zeros((NUM_LABELS, 4)), set()
    for found in prediction_segments:
        mask = prediction == found["id"]
        hit = False
        for true in reference_segments:
            if true["label_id"] != found["label_id"]:
                continue
            truth = reference == true["id"]
            iou = (mask & truth).sum() / ((mask | truth).sum() - (mask & (reference == 0)).sum())
            if iou > 0.5:
                counts[found["label_id"]] += (iou, 1, 0, 0)
                matched.add(true["id"])
                hit = True
        if not hit and (mask & (reference == 0)).sum() <= 0.5 * mask.sum():
            counts[found["label_id"], 2] += 1
    for true in reference_segments:
        counts[true["label_id"], 3] += true["id"] not in matched
    return counts


def check_agreement(pairs: list[tuple]) -> None:
    """Both ways give the same counts, so both did the same work."""
    for prediction, reference in pairs:
        matrix = confusion_matrix(prediction, reference, NUM_LABELS, IGNORE)[:-1, :-1]
        ours = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
        if not all(map(np.array_equal, ours, histogram_counts(prediction, reference))):
            raise SystemExit("the confusion matrix and the histograms disagree")
    arguments = random_segments(0)
    if not np.allclose(panoptic_counts(*arguments, NUM_LABELS), segment_loop_counts(*arguments)):
        raise SystemExit("the panoptic counts and the loop over segments disagree")


def time_mean_iou(pairs: list[tuple], rounds: int) -> dict[str, float]:
    """Milliseconds an image: counting alone, and whole modules from `add_batch` to `compute`."""
    total = np.zeros((NUM_LABELS + 1, NUM_LABELS + 1), dtype=np.int64, order="F")  # as `mean_iou` keeps it
    ours = fastest(lambda: [confusion_matrix(*pair, NUM_LABELS, IGNORE, out=total) for pair in pairs], rounds)
    theirs = fastest(lambda: [histogram_counts(*pair) for pair in pairs], rounds)
    maps = {
        "noisy": [noisy_pair(seed) for seed in range(5)],
        "noisier": [noisy_pair(seed, share=0.3) for seed in range(5)],
        "shuffled": [tuple(np.random.default_rng(0).permuted(values) for values in pair) for pair in pairs],
    }
    kinds = {}
    for kind, images in maps.items():
        count = partial(confusion_matrix, num_labels=NUM_LABELS, ignore_index=IGNORE, out=total)
        mine = fastest(partial(_each, count, images), rounds)
        usual = fastest(partial(_each, histogram_counts, images), rounds)
        kinds |= {f"{kind}_ms": mine, f"{kind}_histograms_ms": usual, f"{kind}_times_faster": usual / mine}
    with tempfile.TemporaryDirectory() as cache:
        metric = load_mean_iou(cache)
        stored = StoredMeanIou(cache_dir=cache)
        our_module = fastest(lambda: run_module(metric, pairs * MODULE_REPEATS), rounds=2) / MODULE_REPEATS
        narrow = [tuple(values.astype(np.uint16) for values in pair) for pair in pairs]  # pictures have 16 bits
        their_module = fastest(lambda: run_module(stored, narrow * MODULE_REPEATS), rounds=2) / MODULE_REPEATS
    return {
        "counting_ms": ours,
        "counting_histograms_ms": theirs,
        "counting_times_faster": theirs / ours,
        **kinds,
        "module_ms": our_module,
        "module_storing_pictures_ms": their_module,
        "module_times_faster": their_module / our_module,
    }


def _each(count: Callable, images: list[tuple]) -> None:
    for pair in images:
        count(*pair)


def time_panoptic(rounds: int) -> dict[str, float]:
    """Milliseconds an image."""
    images = [random_segments(seed) for seed in range(5)]
    ours = fastest(lambda: [panoptic_counts(*image, NUM_LABELS) for image in images], rounds)
    theirs = fastest(lambda: [segment_loop_counts(*image) for image in images], rounds)
    return {"panoptic_ms": ours, "panoptic_loop_ms": theirs, "panoptic_times_faster": theirs / ours}


def measure_memory(pairs: list[tuple], num_images: int) -> dict[str, float]:
    """Growth of the peak memory of this process, in MB, over the second half of `num_images` images."""
    with tempfile.TemporaryDirectory() as cache:
        metric = load_mean_iou(cache)
        peaks = []
        for _ in range(2):
            for index in range(num_images // 2):
                metric.add_batch(predictions=[pairs[index % 5][0]], references=[pairs[index % 5][1]])
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        on_disk = sum(path.stat().st_size for path in Path(cache).rglob("*.arrow"))
        metric.compute()
    return {"memory_growth_mb": peaks[1] - peaks[0], "stored_bytes": on_disk, "memory_images": num_images}


def load_mean_iou(cache: str):
    return evaluate.load(str(METRICS / "mean_iou"), num_labels=NUM_LABELS, ignore_index=IGNORE, cache_dir=cache)


def run_module(metric, pairs: list[tuple]) -> None:
    for prediction, reference in pairs:
        metric.add_batch(predictions=[prediction], references=[reference])
    metric.compute()


def fastest(function: Callable, rounds: int) -> float:
    """Milliseconds of processor time an image, of the fastest round of 5 images, after one to warm up."""
    function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1000 * min(times) / 5


if __name__ == "__main__":
    raise SystemExit(main())
