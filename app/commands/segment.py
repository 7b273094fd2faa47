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
    masks: given.Masks = None,
    tile: given.Tile = None,
    tile_overlap: given.TileOverlap = None,
    heatmaps: given.Heatmaps = False,
    style: given.StyleChoice = given.Style.fill,
    coco: given.Coco = None,
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
    from maftplus.app.masks import find_mask_files
    from maftplus.app.models import describe_network, load_pipeline, resolve_model
    from maftplus.app.segmenting import Segmenter
    from maftplus.app.video import is_video
    from maftplus.app.words import first_names, gather_distractors, gather_words

    span = {"every": every, "start": start, "end": end}
    check_span(**span)
    folder = resolve_model(model)
    words = gather_words(labels, labels_file, vocabulary, stuff)
    words |= gather_distractors(distractors, distractor_vocabulary, words["candidate_labels"], quiet)
    numbers = {"threshold": threshold, "min_margin": min_margin, "tile_size": tile, "tile_overlap": tile_overlap}
    options = {**words, **_read_options(task.value, numbers, heatmaps, masks is not None)}
    jobs = plan_jobs(pictures, out)
    if any(is_video(job.path) for job in jobs):
        _refuse_for_clips(heatmaps=heatmaps, masks=masks, tile=tile, coco=coco, style=style != given.Style.fill)
    check_results(jobs, overwrite, first_names(words["candidate_labels"]) if heatmaps else (), coco)
    mask_files = None if masks is None else find_mask_files(masks, jobs)
    pipe = load_pipeline(folder, device, dtype.value)
    if not quiet:
        typer.echo(f"network: {describe_network(pipe)}", err=True)
    segmenter = Segmenter(pipe, options, overwrite, quiet, style.value, mask_files)
    failed = _segment_jobs(segmenter, jobs, span, batch_size)
    if coco is not None:
        segmenter.coco.write(coco)
    if failed:
        kind = "pictures or clips" if any(is_video(job.path) for job in jobs) else "pictures"
        echo_error(f"{len(failed)} of {len(jobs)} {kind} failed: {', '.join(failed)}")
        raise typer.Exit(SOME_FAILED)


def _refuse_for_clips(**asked: Any) -> None:
    for option, value in asked.items():
        if value:
            raise ValueError(f"`--{option}` is for pictures, not for clips; leave it out.")


def _segment_jobs(segmenter: Any, jobs: list, span: dict, batch_size: int) -> list[str]:
    """Pictures first, then clips. Returns the paths of those that failed."""
    from maftplus.app.segmenting import segment_clips
    from maftplus.app.tracking import BATCH_SIZE
    from maftplus.app.video import is_video

    clips = [job for job in jobs if is_video(job.path)]
    pictures = [job for job in jobs if job not in clips]
    failed, options = segmenter.run(pictures, batch_size), _of_clips(segmenter.options)
    return failed + segment_clips(
        segmenter.pipe, clips, segmenter.is_quiet, **options, **span, batch_size=max(batch_size, BATCH_SIZE)
    )


def _of_clips(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "return_score_maps"}


def _read_options(task: str, numbers: dict[str, float | None], heatmaps: bool, has_masks: bool) -> dict[str, Any]:
    """The pipeline's arguments but for the words. Raises ValueError for options that have no effect on each other."""
    from maftplus.masks_maftplus import check_options_with_masks
    from maftplus.pipeline_maftplus import check_thresholds
    from maftplus.tiles_maftplus import check_options_with_tiles

    options = {"subtask": task, **{name: value for name, value in numbers.items() if value is not None}}
    options["return_score_maps"] = heatmaps
    check_thresholds(task, options)
    check_options_with_tiles(options)
    if not has_masks:
        return options
    if task == given.Task.panoptic:  # the default, which nobody may have asked for
        del options["subtask"]
    check_options_with_masks(options)
    return options
