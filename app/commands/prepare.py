"""`maftplus prepare`: a data set's annotations, once, into what training and evaluation read."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="Name in the registry, as ade20k_panoptic.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder, or the one that holds it.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")] = None,
) -> None:
    """Convert a data set's annotations where they cannot be read as published; what is done is not done again."""
    from maftplus.train.data.prepare import prepare as prepare_dataset

    for line in prepare_dataset(dataset, root, workers):
        typer.echo(line)
