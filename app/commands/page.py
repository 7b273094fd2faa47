"""`maftplus page`: a web page to try a model on, here or as a Space of the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app import options as given
from maftplus.app.command import command


@command()
def page(
    model: given.Model = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: the first free one from 7860.")
    ] = None,
    queue_size: Annotated[int, typer.Option(min=1, help="Visitors that may wait for their turn.")] = 20,
    device: given.Device = None,
    dtype: given.Dtype = given.Precision.auto,
    space: Annotated[
        Path | None, typer.Option(help="Write a Space of the Hub into this folder, and serve nothing.")
    ] = None,
) -> None:
    """Serve a page: a picture or a clip, words, and what is found of them."""
    if space is not None:
        from maftplus.app.space import write_space

        written = write_space(space, model)
        typer.echo(f"{space}: {', '.join(path.name for path in written)}")
        return
    from maftplus.app.page import serve

    serve(model, port, queue_size, device, dtype.value)
