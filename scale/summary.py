"""What a job has found, in figures and pictures: one pass over the rows without their masks."""

import heapq
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from maftplus.pictures.coco import CocoDocument
from maftplus.pictures.overlay import overlay_image
from maftplus.pictures.report import Report
from maftplus.scale.results import Results

BINS = 10  # of the scores' histogram
SHOWN = 9  # pictures of a sheet
COLUMNS = ["key", "segments.list.element.label", "segments.list.element.score", "segments.list.element.area", "error"]


@dataclass
class Summary:
    """
    Figures of a job.

    Args:
        segments, pictures: Of every word that was found, how many, and in how many.
        scores: Segments by score, in tenths.
        errors: Pictures by kind of error.
        sheets: Which pictures to show, by name of the sheet: shard, key and score.
    """

    num_pictures: int = 0
    num_empty: int = 0
    segments: Counter = field(default_factory=Counter)
    pictures: Counter = field(default_factory=Counter)
    scores: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    sheets: dict[str, list[tuple[float, int, str]]] = field(default_factory=dict)


def summarise(results: Results, seed: int = 0) -> Summary:
    """Read all rows, a shard at a time; memory grows with the words, not with the pictures."""
    summary, chosen = Summary(), _Choice(seed)
    for shard, table in results.tables(COLUMNS):
        rows = table.to_pylist()
        for row in rows:
            _count(summary, row)
        chosen.offer([(_mean_score(row["segments"]), shard, row["key"]) for row in rows if row["error"] is None])
    summary.sheets = chosen.sheets()
    return summary


def _count(summary: Summary, row: dict[str, Any]) -> None:
    summary.num_pictures += 1
    if row["error"] is not None:
        summary.errors[error_kind(row["error"])] += 1
        return
    words = [one["label"] for one in row["segments"]]
    scores = [one["score"] for one in row["segments"] if one["score"] is not None]
    summary.num_empty += not words
    summary.segments.update(words)
    summary.pictures.update(set(words))
    summary.scores.update(min(int(score * BINS), BINS - 1) for score in scores)


def error_kind(error: str) -> str:
    """An error without what differs from picture to picture: quoted names and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "it", error))


class _Choice:
    """Random, best and most doubtful pictures out of any number, as (score, shard, key)."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._sample, self._best, self._worst = [], [], []

    def offer(self, entries: list[tuple[float | None, int, str]]) -> None:
        """The pictures of a shard; a score is the mean one of the picture's area, `None` where there is none."""
        tagged = [(self._random.random(), *entry) for entry in entries]
        self._sample = heapq.nlargest(SHOWN, self._sample + tagged, key=lambda entry: entry[0])
        scored = [entry for entry in entries if entry[0] is not None]
        self._best = heapq.nlargest(SHOWN, self._best + scored)
        self._worst = heapq.nsmallest(SHOWN, self._worst + scored)

    def sheets(self) -> dict[str, list[tuple]]:
        sample = [entry for _, *entry in self._sample]
        return {"Random": sample, "Best": self._best, "Doubtful": self._worst}


def _mean_score(segments: Sequence[dict[str, Any]]) -> float | None:
    """Weighted by area; `None` for a picture without scores (nothing found, or a semantic task)."""
    scored = [one for one in segments if one["score"] is not None]
    area = sum(one["area"] for one in scored)
    return sum(one["score"] * one["area"] for one in scored) / area if area else None


def make_report(results: Results) -> Report:
    """Counts by word, scores, errors by kind, and contact sheets; pictures are read again from the source."""
    summary, facts = summarise(results), results.facts
    report = Report("Pictures segmented", f"{facts['source']} -> {results.folder.address}")
    missing = len(results.missing_shards())
    report.add_facts(
        "The job",
        {
            "pictures": summary.num_pictures,
            "without any segment": summary.num_empty,
            "with an error": summary.errors.total(),
            "shards": f"{facts.get('num_shards', 0) - missing} of {facts.get('num_shards', 'an unknown number')}",
            "model": facts["model"],
            "options": ", ".join(f"{name} {value}" for name, value in facts["options"].items()),
        },
    )
    rows = [[word, count, summary.pictures[word]] for word, count in summary.segments.most_common()]
    report.add_table("Words", ["word", "segments", "pictures"], rows, note=_not_found(results, summary.segments))
    bins = {f"{low / BINS:.1f} to {(low + 1) / BINS:.1f}": summary.scores[low] for low in range(BINS)}
    report.add_bars("Scores of segments", bins if summary.scores else {})
    report.add_bars("Errors", dict(summary.errors.most_common()))
    for name, entries in summary.sheets.items():
        report.add_pictures(name, list(_draw_sheet(results, entries)))
    return report


def _not_found(results: Results, segments: Counter) -> str:
    missing = [synonyms[0] for synonyms in results.classes if synonyms[0] not in segments]
    shown = ", ".join(missing[:30]) + (f" and {len(missing) - 30} more" if len(missing) > 30 else "")
    return f"Never found: {shown}." if missing else ""


def _draw_sheet(
    results: Results, entries: Sequence[tuple[float | None, int, str]]
) -> Iterator[tuple[str, Image.Image]]:
    for score, shard, key in entries:
        row = results.row(shard, key)
        try:
            picture = results.picture(shard, key)
        except (OSError, ValueError) as error:  # the source may have moved since
            yield f"{key}: {error}", Image.new("RGB", (16, 9), "white")
            continue
        caption = key if score is None else f"{key}, mean score {score:.2f}"
        yield caption, overlay_image(picture, results.segments(row))


def write_coco(results: Results, path: Path) -> None:
    """
    All segments as one COCO document; pictures without a result are left out.

    The format is one JSON document, which stands in memory until it is written: of a very large job, take the rows.
    """
    document = CocoDocument(results.classes, results.stuff_ids)
    for row in results:
        if row["error"] is None:
            document.add(row["key"], (row["width"], row["height"]), results.segments(row))
    document.write(path)


__all__ = ["Summary", "error_kind", "make_report", "summarise", "write_coco"]
