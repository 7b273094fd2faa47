"""What the command is asked to do, before any of it is done: which pictures and clips, and where their results go."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from maftplus.app.video import is_video, is_video_result, video_result_paths
from maftplus.pictures.results import check_replaceable, confidence_path, heatmap_paths, is_result, result_paths
from maftplus.reading_maftplus import is_url


class Job(NamedTuple):
    """A picture (path or URL) or a clip, and folder and name without ending of its results."""

    path: str
    stem: Path


def plan_jobs(pictures: list[str], out: Path) -> list[Job]:
    """Every picture with the stem of its results: its name, and inside a given folder its path there.

    Raises:
        ValueError: if a folder holds no picture.
    """
    jobs, taken = [], set()
    for given in pictures:
        for path, name in name_pictures(given, out):
            stem, number = out / name, 2
            while stem in taken:
                stem, number = (out / name).with_name(f"{name.name}_{number}"), number + 1
            taken.add(stem)
            jobs.append(Job(path, stem))
    return jobs


def check_results(
    jobs: list[Job], overwrite: bool = False, heatmap_words: Sequence[str] = (), coco: Path | None = None
) -> None:
    """
    Look at every place that a result is to take, before anything is computed.

    Args:
        heatmap_words: Words that get a heat map each.
        coco: Where a document about all pictures goes.

    Raises:
        ValueError: if a file stands there that we did not write, unless `overwrite`; if it is one of the pictures,
            whatever `overwrite` says.
    """
    sources = {Path(job.path).resolve() for job in jobs if not is_url(job.path)}
    places = [] if coco is None else [coco]
    for job in jobs:
        maps = [*heatmap_paths(job.stem, heatmap_words), confidence_path(job.stem)] if heatmap_words else []
        paths = video_result_paths(job.stem) if is_video(job.path) else result_paths(job.stem)
        places += [*paths.values(), *maps]
    videos = {path for job in jobs if is_video(job.path) for path in video_result_paths(job.stem).values()}
    for path in places:
        if path.resolve() in sources:
            raise ValueError(f"{path}: a result would replace this picture; give another folder with --out.")
        if not overwrite and not (path in videos and is_video_result(path)):
            check_replaceable(path)


def name_pictures(given: str, out: Path) -> list[tuple[str, Path]]:
    """The pictures that an argument stands for, each with the name of its results. Raises as `plan_jobs`."""
    if is_url(given):
        return [(given, Path(Path(urlsplit(given).path).stem or "picture"))]
    if not Path(given).is_dir():
        return [(given, Path(Path(given).stem))]
    paths = list_pictures(Path(given), out)
    if not paths:
        raise ValueError(f"{given}: this folder holds no picture that can be read.")
    return [(str(path), path.relative_to(given).with_suffix("")) for path in paths]


def list_pictures(folder: Path, out: Path) -> list[Path]:
    """
    Files below `folder` with the ending of a picture, sorted.

    Left out: what is hidden or lies in a hidden folder, results of earlier runs, and all of `out` if it lies inside.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = (path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    shown = (path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts))
    results = out.resolve()
    if folder.resolve() in results.parents:
        shown = (path for path in shown if results not in path.resolve().parents)
    return sorted(path for path in shown if not is_result(path))
