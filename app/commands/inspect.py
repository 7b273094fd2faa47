"""`maftplus inspect`: what a checkpoint is."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a folder that holds one.")],
    config: Annotated[Path | None, typer.Option(help="JSON with fields that replace the released rule.")] = None,
) -> None:
    """Say what a checkpoint is, its sizes, and what `convert` would make of it. Nothing in it is executed."""
    from maftplus.conversion.convert import inspect_checkpoint

    for name, value in inspect_checkpoint(checkpoint, config_file=config).items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for entry, content in entries:
            typer.echo(f"{name}{'.' if entry else ''}{entry}: {content}")
