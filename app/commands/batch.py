"""`maftplus batch`: pictures by the thousand or million in, one Parquet data set out, on Ray Data."""

from typing import Annotated, Any

import typer

from maftplus.app import options as given
from maftplus.app.command import SOME_FAILED, command, echo_error

JOB = "Job"  # panel of the help


def _job(*names: str, help: str, **limits: int) -> typer.models.OptionInfo:
    return typer.Option(*names, help=help, rich_help_panel=JOB, **limits)


Source = Annotated[
    str, typer.Argument(help="Folder, glob, Parquet or tar files (path or address), `datasets` folder or Hub name.")
]
Out = Annotated[str, typer.Argument(help="Folder for the results (path or address).")]
Workers = Annotated[
    int | None, _job(min=1, help="Actors, a model each. Default: one a GPU, else one for 4 processors.")
]
Threads = Annotated[int | None, _job(min=1, help="Processors of an actor. Default: all of them, divided.")]
ShardSize = Annotated[int, _job(min=1, help="Most pictures a file of results.")]
Column = Annotated[str | None, _job(help="Of a table: the one with the pictures.")]
Address = Annotated[str | None, _job(help="A Ray cluster. Default: Ray on this machine.")]
Resume = Annotated[bool, _job("--resume", help="Go on with the job in OUT.")]
Profile = Annotated[bool, _job("--profile", help="Print processor seconds by stage, speed and memory.")]


@command()
def batch(
    source: Source,
    out: Out,
    labels: given.LabelList = None,
    labels_file: given.LabelsFile = None,
    vocabulary: given.VocabularyName = None,
    stuff: given.StuffList = None,
    distractors: given.DistractorList = None,
    distractor_vocabulary: given.DistractorVocabulary = None,
    task: given.TaskChoice = given.Task.panoptic,
    threshold: given.Threshold = None,
    min_margin: given.MinMargin = None,
    quiet: given.Quiet = False,
    model: given.Model = None,
    device: given.Device = None,
    dtype: given.Dtype = given.Precision.auto,
    batch_size: given.BatchSize = 1,
    workers: Workers = None,
    threads: Threads = None,
    shard_size: ShardSize = 500,
    column: Column = None,
    address: Address = None,
    resume: Resume = False,
    profile: Profile = False,
) -> None:
    """Segment any number of pictures: a row each in Parquet files. It may be killed at any time, and goes on."""
    import ray  # noqa: F401  a missing extra is told before a model is loaded

    from maftplus.app.batching import Batch, run_batch
    from maftplus.app.models import resolve_whole_model
    from maftplus.app.words import gather_distractors, gather_words

    words = gather_words(labels, labels_file, vocabulary, stuff)
    words |= gather_distractors(distractors, distractor_vocabulary, words["candidate_labels"], quiet)
    options = _read_options(task.value, threshold, min_margin)
    cluster = {"workers": workers, "threads": threads, "address": address}
    cut = {"batch_size": batch_size, "shard_size": shard_size, "column": column}
    asked = Batch(source, out, resolve_whole_model(model), words, options, device, dtype.value, **cut, **cluster)
    totals = run_batch(asked, is_resumed=resume, is_quiet=quiet)
    _tell(totals, quiet, profile)


def _tell(totals: Any, is_quiet: bool, is_profiled: bool) -> None:
    """What was done; the command fails if a shard has."""
    for line in [*([] if is_quiet else totals.summary()), *(totals.profile() if is_profiled else [])]:
        typer.echo(line)
    for failure in totals.failures:
        echo_error(failure)
    if totals.failures:
        raise typer.Exit(SOME_FAILED)


def _read_options(task: str, threshold: float | None, min_margin: float | None) -> dict[str, Any]:
    """The pipeline's thresholds; those that the task does not read raise ValueError here."""
    from maftplus.pipeline_maftplus import check_thresholds

    numbers = {"threshold": threshold, "min_margin": min_margin}
    options = {"subtask": task, **{name: value for name, value in numbers.items() if value is not None}}
    check_thresholds(task, options)
    return options
