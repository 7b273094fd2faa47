"""`maftplus check`: does a model work?"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maftplus.app.command import SOME_FAILED, command

if TYPE_CHECKING:
    from maftplus.conversion.selfcheck import Finding


@command()
def check(
    model: Annotated[str, typer.Argument(help="Model folder, a name of `maftplus get`, or a name on the Hub.")],
) -> None:
    """Look whether a model works: finite numbers, CLIP's sentences in order, masks on a picture, settings."""
    from huggingface_hub import snapshot_download
    from transformers.utils import logging

    from maftplus.conversion.registry import RELEASES, find_model
    from maftplus.conversion.selfcheck import WRONG, check_model

    logging.disable_progress_bar()
    folder = Path(find_model(model))
    release = RELEASES.get(model) if folder.name == model else None
    findings = check_model(folder if folder.is_dir() else snapshot_download(model), release)
    print_findings(findings)
    if any(one.state == WRONG for one in findings):
        raise typer.Exit(SOME_FAILED)


def print_findings(findings: "Iterable[Finding]") -> None:
    """A line each."""
    for one in findings:
        typer.echo(f"{one.state:5} {one.subject}: {one.message}")
