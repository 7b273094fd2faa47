"""`maftplus get`: a released model by its name."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command()
def get(
    name: Annotated[str | None, typer.Argument(help="Name of a released model; --list shows them.")] = None,
    file: Annotated[
        Path | None, typer.Option("--from", help="The original file, where it is at hand; it is read, never removed.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the original that was fetched.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder, a Hub name, or bpe_simple_vocab_16e6.txt.gz. Default: from the Hub.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the released models.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the model, and its original if it was kept.")
    ] = False,
) -> None:
    """Fetch a released model, convert it, check it; then its name stands for it: --model NAME."""
    if list_all:
        return _list()
    if name is None:
        raise ValueError("NAME is missing; `maftplus get --list` shows the names.")
    return _remove(name) if remove else _get(name, file, keep, tokenizer)


def _get(name: str, file: Path | None, keep: bool, tokenizer: str | None) -> None:
    from transformers.utils import logging

    from maftplus.app.commands.check import print_findings
    from maftplus.conversion.get import get as get_released
    from maftplus.conversion.registry import SHIPPED, is_there, released_folder

    logging.disable_progress_bar()  # of transformers; ours and the Hub's stay
    if name in SHIPPED:
        return typer.echo(f"{name}: comes with the package, in {SHIPPED[name]}")
    if is_there(name):
        return typer.echo(f"{name}: is there already, in {released_folder(name)}")
    got = get_released(name, file, keep, tokenizer, show_progress=True)
    print_findings(got.findings)
    if got.original is not None:
        typer.echo(f"{got.original}: the original, kept")
    typer.echo(f"{name}: in {got.folder}; use it with --model {name}")


def _remove(name: str) -> None:
    from maftplus.conversion.get import remove

    typer.echo(f"{name}: removed, {remove(name) / 1e9:.2f} GB")


def _list() -> None:
    """A table of what is known of each release; what nobody stated is "unknown"."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from maftplus.conversion.model_card import LICENSES, published_figures
    from maftplus.conversion.registry import RELEASES, home, is_there

    table = Table("name", "task", "licence", "size", "here", box=SIMPLE)
    for one in RELEASES.values():
        size = "unknown" if one.num_bytes is None else f"{one.num_bytes / 1e9:.1f} GB"
        here = "yes" if is_there(one.name) else "no"
        table.add_row(one.name, one.task or "CLIP", LICENSES.get(one.kind, "unstated"), size, here)
    Console().print(table)
    for one in RELEASES.values():
        address = one.source.address if one.source else "no public link is known, only --from FILE"
        typer.echo(f"{one.name}: {published_figures(one.variant, one.task) or 'no figures known'}; {address}")
    typer.echo("Size: of the file, if it holds the numbers that the original code has, as float32.")
    typer.echo("Figures: the papers'. mIoU on ADE20K-847 / ADE20K-150 / Pascal Context 459 / 59 / VOC 20; or PQ.")
    typer.echo(f"Kept in {home()}")
