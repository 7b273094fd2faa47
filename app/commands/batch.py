"""`maftplus batch`: pictures by the thousand or million in, one Parquet data set out, on Ray Data."""

from typing import Annotated, Any

import typer

from maftplus.app.command import SOME_FAILED, command, echo_error
from maftplus.app.commands.segment import DEFAULT_MODEL, Precision, Task

SHARD_SIZE = 500


@command()
def batch(
    source: Annotated[
        str,
        typer.Argument(help="Folder, glob, Parquet or tar files (path or address), a `datasets` folder or Hub name."),
    ],
    out: Annotated[str, typer.Argument(help="Folder for the results (path or address).")],
    labels: Annotated[
        list[str] | None, typer.Option("--labels", "-l", help='A class, with synonyms: "cat, kitten". Repeat.')
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Words of a data set, as coco_panoptic_133, or a file of words.")
    ] = None,
    stuff: Annotated[list[str] | None, typer.Option(help="Which of the labels are stuff. Repeat.")] = None,
    task: Annotated[Task, typer.Option(help="What to find.")] = Task.panoptic,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Smallest score of a segment.")] = None,
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")] = str(DEFAULT_MODEL),
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda". Default: the fastest there is.')] = None,
    dtype: Annotated[Precision, typer.Option(help="Precision of the network.")] = Precision.auto,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Actors, a model each. Default: one a GPU, else one a 4 cores.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processors of an actor. Default: this machine's, divided.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most pictures a step; of one padded size.")] = 1,
    shard_size: Annotated[int, typer.Option(min=1, help="Most pictures a file of results.")] = SHARD_SIZE,
    column: Annotated[str | None, typer.Option(help="Of a table: the one with the pictures.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. Default: Ray on this machine.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job in OUT.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print processor seconds by stage.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Segment any number of pictures: a row each in Parquet files. It may be killed at any time, and goes on."""
    import ray  # noqa: F401  a missing extra is told before a model is loaded

    from maftplus.app.batching import Batch, run_batch

    asked = Batch(
        source=source,
        out=out,
        model=model,
        device=device,
        dtype=dtype.value,
        words=_read_words(labels, vocabulary, stuff),
        options=_read_options(task.value, threshold),
        batch_size=batch_size,
        shard_size=shard_size,
        column=column,
        workers=workers,
        threads=threads,
        address=address,
    )
    totals = run_batch(asked, is_resumed=resume, is_quiet=quiet)
    for line in [*([] if quiet else totals.summary()), *(totals.profile() if profile else [])]:
        typer.echo(line)
    for failure in totals.failures:
        echo_error(failure)
    if totals.failures:
        raise typer.Exit(SOME_FAILED)


def _read_words(labels: list[str] | None, vocabulary: str | None, stuff: list[str] | None) -> dict[str, Any]:
    """The pipeline's arguments; bad words raise ValueError here."""
    from maftplus.vocabularies.files import load_labels
    from maftplus.words_maftplus import find_label_ids, parse_classes

    words = {"candidate_labels": list(labels or []), "stuff_labels": list(stuff or [])}
    if vocabulary is not None:
        for name, more in load_labels(vocabulary).items():
            words[name] += more
    if words["candidate_labels"]:
        find_label_ids(parse_classes(words["candidate_labels"]), words["stuff_labels"])
    return {name: values or None for name, values in words.items()}


def _read_options(task: str, threshold: float | None) -> dict[str, Any]:
    """The pipeline's thresholds; those that the task does not read raise ValueError here."""
    from maftplus.pipeline_maftplus import check_thresholds

    options = {"subtask": task} | ({} if threshold is None else {"threshold": threshold})
    check_thresholds(task, options)
    return options
