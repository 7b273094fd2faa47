"""`maftplus segment`: pictures or clips and words in; overlays and what is in them as PNG and JSON out."""

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
    pictures: Annotated[list[str], typer.Argument(help="Pictures, URLs of pictures, folders of pictures; clips.")],
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
        Precision, typer.Option(help="Precision of the network. auto: as it was saved.")
    ] = Precision.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the network.")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Clips: take every so-manieth frame.")] = 1,
    start: Annotated[float, typer.Option(min=0, help="Clips: begin after so many seconds.")] = 0.0,
    end: Annotated[float | None, typer.Option(min=0, help="Clips: end before this second.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that stand where results go, whoever wrote them.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """
    Segment pictures: for each an overlay with a legend, a label PNG (COCO panoptic) and a JSON document.

    Of a clip (mp4, mov, mkv, ...): the overlay as a clip with its sound, and a JSON line for each segment of a frame,
    with ids that last from frame to frame.
    """
    from maftplus.app.clips import check_span
    from maftplus.app.jobs import check_results, plan_jobs
    from maftplus.app.models import load_pipeline
    from maftplus.app.video import is_video

    span = {"every": every, "start": start, "end": end}
    check_span(**span)
    options = _read_options(labels, stuff, task, threshold)
    jobs = plan_jobs(pictures, out)
    check_results(jobs, overwrite)
    pipe = load_pipeline(model, device, dtype.value)
    failed = _segment_jobs(pipe, jobs, options, span, batch_size, overwrite=overwrite, is_quiet=quiet)
    if failed:
        kind = "pictures or clips" if any(is_video(job.path) for job in jobs) else "pictures"
        echo_error(f"{len(failed)} of {len(jobs)} {kind} failed: {', '.join(failed)}")
        raise typer.Exit(SOME_FAILED)


def _segment_jobs(pipe, jobs: list, options: dict, span: dict, batch_size: int, **how: bool) -> list[str]:
    """Pictures first, then clips. Returns the paths of those that failed."""
    from maftplus.app.segmenting import Segmenter, segment_clips
    from maftplus.app.tracking import BATCH_SIZE
    from maftplus.app.video import is_video

    clips = [job for job in jobs if is_video(job.path)]
    pictures = [job for job in jobs if job not in clips]
    failed = Segmenter(pipe, options, **how).run(pictures, batch_size)
    return failed + segment_clips(
        pipe, clips, how["is_quiet"], **options, **span, batch_size=max(batch_size, BATCH_SIZE)
    )


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
