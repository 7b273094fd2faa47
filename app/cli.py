"""The `maftplus` command: `maftplus segment PICTURE --labels "cat, kitten" --labels grass --stuff grass --model DIR`.

Every sub-command is a thin layer over the library, in a module of its own in `app/commands/`, and stands in the list
below. Those modules import nothing that takes time: torch and transformers come with the call (`maftplus --help` must
be instant). Mistakes of a user end in one line on stderr and exit code 2 (`app/command.py`).
"""

from typing import Annotated

import typer

import maftplus
from maftplus.app.commands.batch import batch
from maftplus.app.commands.check import check
from maftplus.app.commands.convert import convert
from maftplus.app.commands.endpoint import endpoint
from maftplus.app.commands.evaluate import evaluate
from maftplus.app.commands.export import export
from maftplus.app.commands.get import get
from maftplus.app.commands.inspect import inspect
from maftplus.app.commands.merge import merge
from maftplus.app.commands.page import page
from maftplus.app.commands.prepare import prepare
from maftplus.app.commands.report import report
from maftplus.app.commands.segment import segment
from maftplus.app.commands.verify import verify
from maftplus.app.commands.words import words

# In the order of the help.
COMMANDS = (
    segment,
    page,
    batch,
    report,
    words,
    get,
    check,
    convert,
    inspect,
    prepare,
    verify,
    merge,
    evaluate,
    export,
    endpoint,
)

app = typer.Typer(
    help="Open-vocabulary segmentation with your own words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"maftplus {maftplus.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Open-vocabulary segmentation with your own words."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
