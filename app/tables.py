"""Tables and progress for the terminal."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from maftplus.app.clips import ClipFrame
from maftplus.app.video import VideoResult
from maftplus.pictures.segments import Segment
from maftplus.train.evaluation.evaluate import Evaluation
from maftplus.train.evaluation.pages import class_columns, class_rows
from maftplus.vocabularies.files import VocabularyFile

T = TypeVar("T")


def print_table(path: str | Path, segments: Sequence[Segment], overlay: Path) -> None:
    """One line a segment."""
    console = Console()
    console.print(Text(f"{path} -> {overlay}"), soft_wrap=True)
    table = Table()
    for name, justify in (("id", "right"), ("label", "left"), ("kind", "left"), ("score", "right"), ("area", "right")):
        table.add_column(name, justify=justify, overflow="fold")
    for one in segments:
        score = "" if one.score is None else f"{one.score:.3f}"
        share = f"{one.area / max(1, one.mask.size):.1%}"
        table.add_row(str(one.id), Text(one.label), "thing" if one.isthing else "stuff", score, share)
    console.print(table if segments else "no segment found")


def print_words(vocabulary: VocabularyFile) -> None:
    """One line a class."""
    table = Table()
    for name, justify in (("id", "right"), ("name", "left"), ("kind", "left"), ("synonyms", "left")):
        table.add_column(name, justify=justify, overflow="fold")
    for index, (raw_id, name, synonyms) in enumerate(zip(vocabulary.raw_ids, vocabulary.names, vocabulary.classes)):
        kind = "" if vocabulary.stuff is None else ("stuff" if index in vocabulary.stuff else "thing")
        others = [one for one in synonyms if one != name]
        table.add_row(str(raw_id), Text(name), kind, Text(", ".join(others)))
    Console().print(table)


def print_figures(evaluation: Evaluation) -> None:
    """One line a class, the worst first."""
    Console().print(f"{evaluation.data_set}, {evaluation.task}, in percent", markup=False, highlight=False)
    table = Table()
    for index, name in enumerate(class_columns(evaluation)):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in class_rows(evaluation):
        table.add_row(*map(Text, row))
    Console().print(table)


def print_tracks(path: str | Path, result: VideoResult) -> None:
    """One line a track of a clip."""
    console = Console()
    console.print(Text(f"{path} -> {result.overlay}, {result.tracks}"), soft_wrap=True)
    table = Table()
    for name in ("track", "word", "first frame", "last frame", "frames"):
        table.add_column(name, justify="left" if name == "word" else "right", overflow="fold")
    for one in result.summaries:
        numbers = (one.first_frame, one.last_frame, one.num_frames)
        table.add_row(str(one.id), Text(one.word), *map(str, numbers))
    console.print(table if result.summaries else "no segment found")


@contextlib.contextmanager
def count_frames(path: str | Path, is_quiet: bool = False) -> Iterator[Callable[[ClipFrame], None]]:
    """A function to call with every frame of a clip, which shows on stderr how far it is."""
    if is_quiet:
        yield lambda frame: None
        return
    with Console(stderr=True).status(f"{path}: reading") as status:
        yield lambda frame: status.update(f"{path}: frame {frame.index}, {frame.time:.1f} s")


def with_progress(items: Sequence[T], description: str) -> Iterable[T]:
    """The items, behind a progress bar on stderr."""
    return track(items, description=description, console=Console(stderr=True))
