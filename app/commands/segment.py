"""`maftplus segment`: pictures and words in, overlays, label PNGs and JSON out."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from maftplus.app.command import SOME_FAILED, command, echo_error

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "shapes"


class Task(str, Enum):
    panoptic = "panoptic"
    instance = "instance"
    semantic = "semantic"


class Precision(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@command()
def segment(
    pictures: Annotated[list[str], typer.Argument(help="Pictures, URLs of pictures, or folders of pictures.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", "-l", help='A class, with synonyms: "cat, kitten". Repeat. Default: the stored words.'
        ),
    ] = None,
    stuff: Annotated[
        list[str] | None, typer.Option(help="Which of the labels are stuff (grass, sky). Repeat.")
    ] = None,
    task: Annotated[Task, typer.Option(help="What to find.")] = Task.panoptic,
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")] = str(DEFAULT_MODEL),
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Smallest score of a segment.")] = None,
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda", ... Default: the fastest there is.')] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Precision of the network. auto: bfloat16 where computed, else float32.")
    ] = Precision.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the network.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that stand where results go, whoever wrote them.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Segment pictures: for each an overlay with a legend, a label PNG (COCO panoptic) and a JSON document."""
    from maftplus.app.jobs import check_results, plan_jobs
    from maftplus.app.models import describe_network, load_pipeline
    from maftplus.app.segmenting import Segmenter

    options = _read_options(labels, stuff, task, threshold)
    jobs = plan_jobs(pictures, out)
    check_results(jobs, overwrite)
    pipe = load_pipeline(model, device, dtype.value)
    if not quiet:
        typer.echo(f"network: {describe_network(pipe)}", err=True)
    failed = Segmenter(pipe, options, overwrite=overwrite, is_quiet=quiet).run(jobs, batch_size)
    if failed:
        echo_error(f"{len(failed)} of {len(jobs)} pictures failed: {', '.join(failed)}")
        raise typer.Exit(SOME_FAILED)


def _read_options(
    labels: list[str] | None, stuff: list[str] | None, task: Task, threshold: float | None
) -> dict[str, Any]:
    """The pipeline's arguments. Bad words, and thresholds that the task does not read, raise ValueError here."""
    from maftplus.pipeline_maftplus import check_thresholds
    from maftplus.words_maftplus import find_label_ids, parse_classes

    options = {"candidate_labels": labels or None, "stuff_labels": stuff or None, "subtask": task.value}
    if threshold is not None:
        options["threshold"] = threshold
    if labels:
        find_label_ids(parse_classes(labels), stuff)
    check_thresholds(task.value, options)
    return options
