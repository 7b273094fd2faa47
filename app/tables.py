"""Tables and progress for the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from maftplus.pictures.segments import Segment
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


def with_progress(items: Sequence[T], description: str) -> Iterable[T]:
    """The items, behind a progress bar on stderr."""
    return track(items, description=description, console=Console(stderr=True))
