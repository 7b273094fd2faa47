"""`maftplus report`: what a batch job has found, for eyes, and as one COCO document."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command()
def report(
    results: Annotated[str, typer.Argument(help="Folder of a job: the OUT of `maftplus batch`.")],
    html: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
    coco: Annotated[Path | None, typer.Option(help="Also write all segments as a COCO document.")] = None,
) -> None:
    """Counts by word, scores, errors by kind, and pictures (random, best, doubtful) as one HTML page."""
    from maftplus.scale.results import read_results
    from maftplus.scale.summary import make_report, write_coco

    found = read_results(results)
    make_report(found).write(html)
    typer.echo(f"wrote {html}")
    if coco is not None:
        write_coco(found, coco)
        typer.echo(f"wrote {coco}")
