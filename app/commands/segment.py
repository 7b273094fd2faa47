"""`maftplus segment`: pictures and words in, overlays, label PNGs and JSON out."""

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
) -> None:
    """Segment pictures: for each an overlay with a legend, a label PNG (COCO panoptic) and a JSON document."""
    from maftplus.app.jobs import check_results, plan_jobs
    from maftplus.app.models import load_pipeline, resolve_model
    from maftplus.app.segmenting import Segmenter
    from maftplus.app.words import first_names, gather_distractors, gather_words

    folder = resolve_model(model)
    words = gather_words(labels, labels_file, vocabulary, stuff)
    words |= gather_distractors(distractors, distractor_vocabulary, words["candidate_labels"], quiet)
    options = _read_options(words, task.value, threshold, min_margin, heatmaps)
    jobs = plan_jobs(pictures, out)
    check_results(jobs, overwrite, first_names(words["candidate_labels"]) if heatmaps else ())
    pipe = load_pipeline(folder, device, dtype.value)
    failed = Segmenter(pipe, options, overwrite=overwrite, is_quiet=quiet).run(jobs, batch_size)
    if failed:
        echo_error(f"{len(failed)} of {len(jobs)} pictures failed: {', '.join(failed)}")
        raise typer.Exit(SOME_FAILED)


def _read_options(
    words: dict[str, Any], task: str, threshold: float | None, min_margin: float | None, heatmaps: bool
) -> dict[str, Any]:
    """The pipeline's arguments. Thresholds that the task does not read raise ValueError here."""
    from maftplus.pipeline_maftplus import check_thresholds

    numbers = {"threshold": threshold, "min_margin": min_margin}
    options = {"subtask": task, **{name: value for name, value in numbers.items() if value is not None}}
    check_thresholds(task, options)
    return {**words, **options, "return_score_maps": heatmaps}
