"""What the command is asked to do, before any of it is done: which pictures and clips, and where their results go."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from maftplus.app.video import is_video, is_video_result, video_result_paths
from maftplus.pictures.files import list_pictures
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
    paths = pictures_of(Path(given), out)
    if not paths:
        raise ValueError(f"{given}: this folder holds no picture that can be read.")
    return [(str(path), path.relative_to(given).with_suffix("")) for path in paths]


def pictures_of(folder: Path, out: Path) -> list[Path]:
    """`list_pictures` without results of earlier runs, and without all of `out` if it lies inside."""
    results, is_inside = out.resolve(), folder.resolve() in out.resolve().parents
    paths = (path for path in list_pictures(folder) if not (is_inside and results in path.resolve().parents))
    return [path for path in paths if not is_result(path)]
