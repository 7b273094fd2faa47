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
from maftplus.reading_maftplus import read_picture
from maftplus.scale.results import Results

BINS = 10  # of the scores' histogram
SHOWN = 9  # pictures of a sheet
COLUMNS = ["key", "segments.list.element.label", "segments.list.element.score", "segments.list.element.area", "error"]


@dataclass
class Summary:
    """
    Figures of a job.

    Args:
        by_word: Segments of every word that was found, and the pictures it was found in.
        scores: Segments by score, in tenths.
        errors: Pictures by kind of error.
        sheets: Which pictures to show, by name of the sheet: shard, key and score.
    """

    num_pictures: int = 0
    num_empty: int = 0
    by_word: dict[str, Counter] = field(default_factory=lambda: {"segments": Counter(), "pictures": Counter()})
    scores: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    sheets: dict[str, list[tuple[float, int, str]]] = field(default_factory=dict)


def summarise(results: Results, seed: int = 0) -> Summary:
    """Read all rows, a shard at a time; memory grows with the words, not with the pictures."""
    summary, chosen = Summary(), _Choice(seed)
    for shard, table in results.numbered_tables(COLUMNS):
        for row in table.to_pylist():
            _count(summary, row)
            if row["error"] is None:
                chosen.offer(shard, row)
    summary.sheets = chosen.sheets()
    return summary


def _count(summary: Summary, row: dict[str, Any]) -> None:
    summary.num_pictures += 1
    if row["error"] is not None:
        summary.errors[error_kind(row["error"])] += 1
        return
    segments = row["segments"]
    summary.num_empty += not segments
    summary.by_word["segments"].update(one["label"] for one in segments)
    summary.by_word["pictures"].update({one["label"] for one in segments})
    scores = [one["score"] for one in segments if one["score"] is not None]
    summary.scores.update(min(int(score * BINS), BINS - 1) for score in scores)


def error_kind(error: str) -> str:
    """An error without what differs from picture to picture: quoted names and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "it", error))


class _Choice:
    """Random, best and most doubtful pictures out of any number, by the mean score of their area."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._count, self._sample = 0, []
        self._best, self._worst = [], []

    def offer(self, shard: int, row: dict[str, Any]) -> None:
        score = _mean_score(row["segments"])
        self._offer_sample((score, shard, row["key"]))
        if score is None:
            return
        _keep(self._best, (score, shard, row["key"]))
        _keep(self._worst, (-score, shard, row["key"]))

    def _offer_sample(self, entry: tuple) -> None:
        """Every picture is as likely as every other one, however many come."""
        self._count += 1
        if len(self._sample) < SHOWN:
            self._sample.append(entry)
        elif (place := self._random.randrange(self._count)) < SHOWN:
            self._sample[place] = entry

    def sheets(self) -> dict[str, list[tuple]]:
        doubtful = [(-score, shard, key) for score, shard, key in sorted(self._worst, reverse=True)]
        return {"Random": self._sample, "Best": sorted(self._best, reverse=True), "Doubtful": doubtful}


def _keep(heap: list[tuple], entry: tuple) -> None:
    if len(heap) < SHOWN:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


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
    segments, pictures = summary.by_word["segments"], summary.by_word["pictures"]
    rows = [[word, count, pictures[word]] for word, count in segments.most_common()]
    report.add_table("Words", ["word", "segments", "pictures"], rows, note=_not_found(results, segments))
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
            ((_, picture),) = results.pictures(shard, [key])
            picture = read_picture(picture)
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
