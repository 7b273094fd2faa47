"""`maftplus verify`: what is missing or wrong in a data set's folder."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import SOME_FAILED, command


@command()
def verify(
    dataset: Annotated[str, typer.Argument(help="Name in the registry, as ade20k_150.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder, or the one that holds it.")],
    split: Annotated[list[str], typer.Option(help='"val" or "train". Repeat.')] = ("val",),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")] = None,
) -> None:
    """Say what is missing or wrong on disk: counts, sizes, ids outside the vocabulary, with the file's path."""
    from maftplus.train.data.prepare import verify as verify_dataset

    findings = verify_dataset(dataset, root, split, workers)
    for line in findings:
        typer.echo(line)
    typer.echo(f"{dataset}: {len(findings)} findings" if findings else f"{dataset}: all is well")
    if findings:
        raise typer.Exit(SOME_FAILED)
