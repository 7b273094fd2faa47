"""`maftplus words`: the vocabularies that come with the package, and what is in one."""

from enum import Enum
from typing import Annotated

import typer

from maftplus.app.command import command


class Format(str, Enum):
    table = "table"
    lines = "lines"


@command(needs_model=False)
def words(
    name: Annotated[str | None, typer.Argument(help="A vocabulary, or a file of labels. Default: list them.")] = None,
    format: Annotated[
        Format, typer.Option(help="lines: what `segment --labels-file` reads, for a list of your own.")
    ] = Format.table,
) -> None:
    """Print a vocabulary: ids, names, synonyms, thing or stuff."""
    from maftplus.app.tables import print_words
    from maftplus.app.words import format_lines
    from maftplus.vocabularies.files import available_vocabularies, load_vocabulary_file

    if name is None:
        for known in available_vocabularies():
            typer.echo(f"{known}: {load_vocabulary_file(known).num_labels} classes")
        return
    vocabulary = load_vocabulary_file(name)
    if format is Format.table:
        print_words(vocabulary)
        return
    for line in format_lines(vocabulary.classes, vocabulary.raw_ids, vocabulary.stuff or ()):
        typer.echo(line)
