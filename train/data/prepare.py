"""Convert what cannot be read as published, and check what lies on disk.

    maftplus prepare ade20k_panoptic ROOT     # once; finished work is not done again
    maftplus verify ade20k_150 ROOT           # counts, sizes, ids outside the vocabulary, with the file's path

`ade20k_panoptic` gets its panoptic PNGs and JSON, `pascal_context_59` a label PNG a picture (its JSON of a few hundred
megabytes can be read directly, but slowly), COCO-Stuff the list of training pictures that are void everywhere. All
other data sets are read as they are.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maftplus.pictures.files import write_atomically
from maftplus.train.data import annotations
from maftplus.train.data.layouts import SPLITS, context_59_raw_items, mirrored_items
from maftplus.train.data.registry import SegmentationDataset, data_set_folder, find_row, ignore_value, load_data_set
from maftplus.vocabularies.files import load_vocabulary_file, map_ids, raw_to_training

SKIPPED = "skipped."
CHUNK = 32  # pictures a task of a worker
SOME_PROBLEMS = 1000  # of one split; more are only counted


def prepare(name: str, root: str | Path, num_workers: int | None = None, progress: bool = True) -> list[str]:
    """
    Convert one data set below `root`, in parallel.

    Args:
        num_workers: Processes; default: one a core.

    Returns:
        What was done, a line a split.

    Raises:
        FileNotFoundError, ValueError: if raw files are missing or unreadable; the message names the file.
    """
    folder = data_set_folder(name, root)
    steps = {
        "ade20k_panoptic": _prepare_ade_panoptic,
        "pascal_context_59": _prepare_context_59,
        "coco_stuff_171": _prepare_coco_stuff,
        "coco_stuff_156_15": _prepare_coco_stuff,
    }
    if name not in steps:
        _require_some_split(name, root)
        return [f"{name}: nothing to prepare, its annotations are read as published."]

    def run(function: Callable, tasks: Sequence[Any]) -> list[Any]:
        return list(_in_parallel(function, tasks, num_workers, f"prepare {name}" if progress else None))

    done = [steps[name](folder, split, run) for split in SPLITS]
    if all(line.endswith(SKIPPED) for line in done):
        raise FileNotFoundError(f"{folder} holds nothing of {name}: " + " ".join(done))
    return done


def _require_some_split(name: str, root: str | Path) -> None:
    """Raises FileNotFoundError where `root` holds no split of the data set."""
    reasons = []
    for split in SPLITS:
        try:
            load_data_set(name, root, split)
            return
        except FileNotFoundError as error:
            reasons.append(str(error))
    raise FileNotFoundError(f"{root} holds nothing of {name}: {' '.join(reasons)}")


def verify(
    name: str,
    root: str | Path,
    splits: Sequence[str] = ("val",),
    num_workers: int | None = None,
    progress: bool = True,
) -> list[str]:
    """
    Everything that is missing or wrong, a line a finding that starts with the file's path; empty if all is well.

    Every picture and annotation is read: missing and unreadable files, other sizes, ids outside the vocabulary,
    segments that are not listed or have no pixel, other numbers of pictures than published.
    """
    find_row(name)  # an unknown name is the caller's mistake, not a finding
    return [line for split in splits for line in _verify_split(name, root, split, num_workers, progress)]


def _verify_split(name: str, root: str | Path, split: str, num_workers: int | None, progress: bool) -> list[str]:
    try:
        dataset = load_data_set(name, root, split)
    except (OSError, ValueError) as error:
        return [str(error)]
    findings = []
    published = find_row(name).num_images.get(split)
    if published is not None and len(dataset) != published:
        findings.append(
            f"{data_set_folder(name, root)}: {len(dataset)} pictures of {split}, published are {published}."
        )
    chunks = [replace(dataset, items=dataset.items[i : i + CHUNK]) for i in range(0, len(dataset), CHUNK)]
    label = f"verify {name} {split}" if progress else None
    for lines in _in_parallel(check_samples, chunks, num_workers, label):
        findings += lines
    if len(findings) > SOME_PROBLEMS:
        findings = [*findings[:SOME_PROBLEMS], f"... and {len(findings) - SOME_PROBLEMS} more."]
    return findings


def check_samples(dataset: SegmentationDataset) -> list[str]:
    """What is wrong with the samples of `dataset`, a line each."""
    findings = []
    for index, item in enumerate(dataset.items):
        try:
            labels = dataset.read_labels(index)
            image = annotations.open_image(item.image)
        except (OSError, ValueError) as error:
            findings.append(str(error))
            continue
        size = labels["segmentation_map"].shape
        if size != (image.height, image.width):
            findings.append(
                f"{item.annotation}: {size} (height, width), its picture is {(image.height, image.width)}."
            )
        if "segments_info" in labels and not find_row(dataset.name).has_overlaps:
            findings += _check_segments(labels, item.annotation)
    return findings


def _check_segments(labels: dict[str, Any], path: Path) -> Iterator[str]:
    ids, counts = np.unique(labels["segmentation_map"], return_counts=True)
    pixels = dict(zip(ids.tolist(), counts.tolist()))
    for segment in labels["segments_info"]:
        found = pixels.get(segment["id"], 0)
        if not found:
            yield f"{path}: segment {segment['id']} is listed but has no pixel."
        elif segment.get("area", found) != found:
            yield f"{path}: segment {segment['id']} has {found} pixels, its listed area is {segment['area']}."


# ------------------------------------------------------------------------------------------------ ADE20K panoptic


def _prepare_ade_panoptic(folder: Path, split: str, run: Callable) -> str:
    json_file, maps = folder / f"ade20k_panoptic_{split}.json", folder / f"ade20k_panoptic_{split}"
    if not (folder / "images" / SPLITS[split]).is_dir():
        return f"{split}: no pictures in {folder / 'images' / SPLITS[split]}, {SKIPPED}"
    items = mirrored_items(folder, SPLITS[split], "images/{split}", "annotations/{split}")
    if json_file.is_file() and all((maps / item.annotation.name).is_file() for item in items):
        return f"{split}: {json_file} is complete."
    maps.mkdir(exist_ok=True)
    vocabulary = load_vocabulary_file("ade20k_panoptic_150")
    instances = folder / "annotations_instance" / SPLITS[split]
    jobs = [(item, instances / item.annotation.name, maps / item.annotation.name, vocabulary.things) for item in items]
    records = [record for chunk in run(_convert_ade_panoptic, _chunks(jobs)) for record in chunk]
    categories = [
        {"id": index, "name": name, "isthing": int(index in vocabulary.things)}
        for index, name in enumerate(vocabulary.names)
    ]
    images, segments = zip(*records) if records else ((), ())
    content = {"images": images, "annotations": segments, "categories": categories}
    write_atomically(json_file, json.dumps(content))
    return f"{split}: wrote {json_file} and {len(records)} maps."


def _convert_ade_panoptic(jobs: list[tuple]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Entries for `images` and `annotations`; ids are the files' stems, as in the published conversion."""
    records = []
    for item, instance_file, output, things in jobs:
        semantic, instances = annotations.read_label_png(item.annotation), annotations.read_rgb_array(instance_file)
        if semantic.shape != instances.shape[:2]:
            raise ValueError(f"{instance_file} is {instances.shape[:2]}, but {item.annotation} is {semantic.shape}.")
        try:
            ids, segments = annotations.combine_ade_panoptic(semantic, instances, things)
        except ValueError as error:
            raise ValueError(f"{instance_file}: {error}") from error
        annotations.save_png(output, annotations.panoptic_colours(ids))
        height, width = ids.shape
        image = {"id": item.image_id, "file_name": item.image.name, "height": height, "width": width}
        records.append((image, {"image_id": item.image_id, "file_name": output.name, "segments_info": segments}))
    return records


# -------------------------------------------------------------------------------------------- PASCAL-Context, COCO


def _prepare_context_59(folder: Path, split: str, run: Callable) -> str:
    merged = annotations.load_merged_json(folder / "trainval_merged.json")
    output = folder / "maftplus_context59" / split
    items = context_59_raw_items(folder, split)
    missing = [item for item in items if not (output / f"{item.image.stem}.png").is_file()]
    partial_output = output.with_name(f"{split}.partial")  # a half-made folder must not pass for the whole split
    target = output if output.is_dir() else partial_output
    target.mkdir(parents=True, exist_ok=True)
    missing = [item for item in missing if not (target / f"{item.image.stem}.png").is_file()]
    jobs = [
        (merged.images[item.image_id], merged.annotations.get(item.image_id, []), target / f"{item.image.stem}.png")
        for item in missing
    ]
    done = sum(run(_convert_context_59, _chunks(jobs)))
    if target is partial_output:
        partial_output.rename(output)
    return f"{split}: {done} maps written to {output}, {len(items) - done} were there."


def _convert_context_59(jobs: list[tuple]) -> int:
    """Label PNGs with the raw ids of the 59 classes, 0 elsewhere; 16 bits, because ids go up to 458."""
    kept = {raw: raw for raw in load_vocabulary_file("pascal_context_59").raw_ids}
    for image, masks, output in jobs:
        merged = annotations.MergedJson(Path(image["file_name"]), {0: image}, {0: masks})
        labels = map_ids(merged.read(0), kept, 0).astype(np.uint16)
        annotations.save_png(output, labels)
    return len(jobs)


def _prepare_coco_stuff(folder: Path, split: str, run: Callable) -> str:
    output = folder / "stuffthingmaps" / f"maftplus_void_{split}2017.txt"
    if output.is_file():
        return f"{split}: {output} is there."
    if not (folder / f"{split}2017").is_dir():
        return f"{split}: no pictures in {folder / f'{split}2017'}, {SKIPPED}"
    items = mirrored_items(folder, f"{split}2017", "{split}", "stuffthingmaps/{split}")
    void = [stem for chunk in run(_find_void, _chunks([item.annotation for item in items])) for stem in chunk]
    write_atomically(output, "".join(f"{stem}\n" for stem in void))
    return f"{split}: {len(void)} of {len(items)} pictures are void everywhere, listed in {output}."


def _find_void(paths: list[Path]) -> list[str]:
    """Stems of the maps without any class."""
    vocabulary = load_vocabulary_file("coco_stuff_171")
    table, void = raw_to_training(vocabulary.raw_ids), ignore_value(vocabulary)
    return [path.stem for path in paths if (map_ids(annotations.read_label_png(path), table, void) == void).all()]


def _chunks(jobs: Sequence[Any]) -> list[list[Any]]:
    return [list(jobs[i : i + CHUNK]) for i in range(0, len(jobs), CHUNK)]


def _in_parallel(
    function: Callable, tasks: Sequence[Any], num_workers: int | None, label: str | None
) -> Iterable[Any]:
    """`function` of every task, in order; one task or one worker needs no other process."""
    bar = {"total": len(tasks), "desc": label, "unit": "chunk", "disable": label is None}
    num_workers = min(num_workers or os.cpu_count() or 1, len(tasks))
    if num_workers <= 1:
        yield from tqdm(map(function, tasks), **bar)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield from tqdm(pool.map(function, tasks), **bar)
