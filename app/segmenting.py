"""The loop of `maftplus segment`: pictures in, results and tables out; one that fails is named and the rest go on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from maftplus.app.command import echo_error
from maftplus.app.jobs import Job
from maftplus.app.masks import load_masks
from maftplus.app.tables import count_frames, print_table, print_tracks, with_progress
from maftplus.app.video import segment_video
from maftplus.pictures.coco import CocoDocument
from maftplus.pictures.heatmap import heatmap_image
from maftplus.pictures.overlay import Style
from maftplus.pictures.results import confidence_path, heatmap_paths, write_results
from maftplus.pictures.segments import segments_from_pipeline
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.reading_maftplus import read_picture
from maftplus.tiles_maftplus import check_tiling
from maftplus.words_maftplus import parse_distractors, split_distractors

logger = logging.get_logger(__name__)

URL_TIMEOUT = 60  # seconds


class Segmenter:
    """
    A pipeline with the words and options of one call of the command.

    Args:
        pipe: The pipeline.
        options: Its arguments: `candidate_labels`, `stuff_labels`, `subtask`, thresholds; with
            `return_score_maps` heat maps are drawn.
        overwrite: Replace files that we did not write.
        is_quiet: Print errors only.
        style: Of the overlays.
        mask_files: Where the masks of every picture are, if they are there already.

    Raises:
        ValueError: without labels where the model stores none, on labels that cannot be used, and on tiles that the
            network does not take.
    """

    def __init__(
        self,
        pipe: MaftPlusSegmentationPipeline,
        options: dict[str, Any],
        overwrite: bool = False,
        is_quiet: bool = False,
        style: Style = "fill",
        mask_files: Mapping[Job, Path] | None = None,
    ):
        self.pipe, self.options, self.overwrite, self.is_quiet = pipe, options, overwrite, is_quiet
        self.classes, self.stuff_ids = pipe.classes_and_stuff(options["candidate_labels"], options["stuff_labels"])
        self.style, self.mask_files = style, mask_files
        self.coco = CocoDocument(self.classes, self.stuff_ids)
        if options.get("tile_size") is not None:
            least = pipe.processor.image_processor.size_divisor
            check_tiling(options["tile_size"], options.get("tile_overlap"), least)
        distractors = parse_distractors(options.get("distractor_labels"), pipe.processor.do_split_synonyms)
        self.distractors = split_distractors(self.classes, distractors)[0]

    def run(self, jobs: Sequence[Job], batch_size: int = 1) -> list[str]:
        """Segment and write every picture. Returns the paths of those that failed."""
        failed, batch = [], []
        for index, job in enumerate(self._with_progress(jobs), start=1):
            picture = self._read(job)
            if picture is None:
                failed.append(job.path)
            else:
                batch.append((job, picture))
            if batch and (len(batch) == batch_size or index == len(jobs)):
                failed += self._segment_batch(batch, batch_size)
                batch = []
        return failed

    def _with_progress(self, jobs: Sequence[Job]) -> Iterable[Job]:
        return jobs if self.is_quiet or len(jobs) <= 1 else with_progress(jobs, "Segmenting")

    def _read(self, job: Job) -> Image.Image | None:
        try:
            return read_picture(job.path, timeout=URL_TIMEOUT)
        except MemoryError:  # ours: a decoder's, over a damaged header, is a ValueError by now
            raise
        except Exception as error:
            _tell(job, error)
            return None

    def _segment_batch(self, batch: list[tuple[Job, Image.Image]], batch_size: int) -> list[str]:
        """Paths of the pictures of a batch that failed. One picture must not take its batch with it."""
        try:
            options = {**self.options, **self._load_masks([job for job, _ in batch])}
            results = self.pipe([picture for _, picture in batch], batch_size=batch_size, **options)
        except MemoryError:
            raise
        except Exception as error:
            if len(batch) == 1:
                _tell(batch[0][0], error)
                return [batch[0][0].path]
            return [path for one in batch for path in self._segment_batch([one], batch_size)]
        written = (self._write(job, picture, result) for (job, picture), result in zip(batch, results))
        return [path for path in written if path is not None]

    def _load_masks(self, jobs: Sequence[Job]) -> dict[str, Any]:
        return {} if self.mask_files is None else {"masks": [load_masks(self.mask_files[job]) for job in jobs]}

    def _write(self, job: Job, picture: Image.Image, result: list[dict[str, Any]] | dict[str, Any]) -> str | None:
        """The picture's path if its results cannot be written."""
        try:
            has_maps = isinstance(result, dict)
            drawings = _plan_maps(job.stem, picture, result) if has_maps else {}
            segments = segments_from_pipeline(result["segments"] if has_maps else result, self.stuff_ids)
            about = {"image": job.path, "task": self.options.get("subtask", "masks"), "labels": self.classes}
            optional = {"distractors": self.distractors, "heatmaps": [path.name for path in drawings]}
            about |= {name: value for name, value in optional.items() if value}
            written = write_results(job.stem, picture, segments, about, self.overwrite, drawings, self.style)
        except (ValueError, OSError) as error:
            _tell(job, error)
            return job.path
        self.coco.add(job.path, picture.size, segments)
        if not self.is_quiet:
            print_table(job.path, segments, written["overlay"])
        return None


def _plan_maps(stem: Path, picture: Image.Image, result: dict[str, Any]) -> dict[Path, Callable[[], Image.Image]]:
    """What draws the heat map of every word, and that of the best word's score, by where they go."""
    maps = zip(heatmap_paths(stem, result["labels"]), result["labels"], result["score_maps"])
    drawings = {path: partial(heatmap_image, picture, scores.numpy(), word) for path, word, scores in maps}
    title = "confidence: the best word's score"
    return {**drawings, confidence_path(stem): partial(heatmap_image, picture, result["confidence"].numpy(), title)}


def segment_clips(
    pipe: MaftPlusSegmentationPipeline, jobs: Sequence[Job], is_quiet: bool = False, **options: Any
) -> list[str]:
    """
    Segment and write every clip (`maftplus.app.video.segment_video`, whose `options` these are), and print its tracks.
    Returns the paths of those that failed; of one that is broken, what came before is written.
    """
    failed = []
    for job in jobs:
        try:
            with count_frames(job.path, is_quiet) as progress:
                result = segment_video(job.path, job.stem, pipe, progress=progress, **options)
        except (ValueError, OSError) as error:
            _tell(job, error)
            failed.append(job.path)
            continue
        if not is_quiet:
            print_tracks(job.path, result)
        if result.error is not None:
            echo_error(result.error)
            failed.append(job.path)
    return failed


def _tell(job: Job, error: Exception) -> None:
    """One line that names the picture, and the kind of an error that has nothing of ours to say."""
    logger.debug("%s failed", job.path, exc_info=error)
    message = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
    echo_error(message if job.path in message else f"{job.path}: {message}")
