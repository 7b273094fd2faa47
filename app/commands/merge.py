"""`maftplus merge`: an adapter and its base become an ordinary model folder."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command()
def merge(
    adapter: Annotated[
        str, typer.Argument(help="Folder of an adapter that LoRA training left, or its name on the Hub.")
    ],
    out: Annotated[Path, typer.Argument(help="The new model folder.")],
    base: Annotated[
        str | None, typer.Option(help="Name or folder of the base model. Default: the one that the adapter names.")
    ] = None,
) -> None:
    """Merge an adapter (LoRA) into its base model: an ordinary folder, with the adapter's words."""
    from transformers.utils import logging

    from maftplus.app.models import load_processor
    from maftplus.train.finetuning.lora import fetch_adapter, load_adapter

    if out.exists():
        raise ValueError(f"{out} is there already; give a new folder.")
    logging.disable_progress_bar()
    folder = fetch_adapter(adapter)
    model = load_adapter(folder, base)
    processor = load_processor(folder, base)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    typer.echo(f"{out}: an ordinary model folder, {len(model.config.vocabulary)} classes stored")
