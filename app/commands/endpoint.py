"""`maftplus endpoint`: a model folder with the handler that an inference service asks for."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command(needs_model=False)
def endpoint(
    model: Annotated[str, typer.Argument(help="Model folder, exported or not, or name.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
) -> None:
    """Copy a model folder and put handler.py and requirements.txt beside it, for an inference endpoint."""
    from maftplus.app.models import resolve_whole_model
    from maftplus.deploy.endpoint import write_endpoint

    write_endpoint(resolve_whole_model(model), out)
    typer.echo(f"{out}: ready for an inference endpoint; what it takes is told in handler.py")
