"""`maftplus segment`: pictures or clips and words in; overlays and what is in them as PNG and JSON out."""

from pathlib import Path
from typing import Any

import typer

from maftplus.app import options as given
from maftplus.app.command import SOME_FAILED, command, echo_error


@command()
def segment(
    pictures: given.Pictures,
    labels: given.LabelList = None,
    labels_file: given.LabelsFile = None,
    vocabulary: given.VocabularyName = None,
    stuff: given.StuffList = None,
    distractors: given.DistractorList = None,
    distractor_vocabulary: given.DistractorVocabulary = None,
    task: given.TaskChoice = given.Task.panoptic,
    threshold: given.Threshold = None,
    min_margin: given.MinMargin = None,
    heatmaps: given.Heatmaps = False,
    out: given.OutFolder = Path("out"),
    overwrite: given.Overwrite = False,
    quiet: given.Quiet = False,
    model: given.Model = None,
    device: given.Device = None,
    dtype: given.Dtype = given.Precision.auto,
    batch_size: given.BatchSize = 1,
    every: given.Every = 1,
    start: given.Start = 0.0,
    end: given.End = None,
) -> None:
    """
    Segment pictures: for each an overlay with a legend, a label PNG (COCO panoptic) and a JSON document.

    Of a clip (mp4, mov, mkv, ...): the overlay as a clip with its sound, and a JSON line for each segment of a frame,
    with ids that last from frame to frame.
    """
    from maftplus.app.clips import check_span
    from maftplus.app.jobs import check_results, plan_jobs
    from maftplus.app.models import describe_network, load_pipeline, resolve_model
    from maftplus.app.video import is_video
    from maftplus.app.words import first_names, gather_distractors, gather_words

    span = {"every": every, "start": start, "end": end}
    check_span(**span)
    folder = resolve_model(model)
    words = gather_words(labels, labels_file, vocabulary, stuff)
    words |= gather_distractors(distractors, distractor_vocabulary, words["candidate_labels"], quiet)
    options = _read_options(words, task.value, threshold, min_margin, heatmaps)
    jobs = plan_jobs(pictures, out)
    if heatmaps and any(is_video(job.path) for job in jobs):
        raise ValueError("`--heatmaps` draws maps of pictures, not of clips; leave it out.")
    check_results(jobs, overwrite, first_names(words["candidate_labels"]) if heatmaps else ())
    pipe = load_pipeline(folder, device, dtype.value)
    if not quiet:
        typer.echo(f"network: {describe_network(pipe)}", err=True)
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
        pipe, clips, how["is_quiet"], **_of_clips(options), **span, batch_size=max(batch_size, BATCH_SIZE)
    )


def _of_clips(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "return_score_maps"}


def _read_options(
    words: dict[str, Any], task: str, threshold: float | None, min_margin: float | None, heatmaps: bool
) -> dict[str, Any]:
    """The pipeline's arguments. Thresholds that the task does not read raise ValueError here."""
    from maftplus.pipeline_maftplus import check_thresholds

    numbers = {"threshold": threshold, "min_margin": min_margin}
    options = {"subtask": task, **{name: value for name, value in numbers.items() if value is not None}}
    check_thresholds(task, options)
    return {**words, **options, "return_score_maps": heatmaps}
