"""Where the data sets keep their files, as their authors publish them, and how one annotation of each is read.

A layout takes the data set's folder and a split ("train" or "val") and returns items; a reader takes an item and
returns the raw label map (H, W), or segment ids and `segments_info` for panoptic annotations.
"""

from pathlib import Path
from typing import Any

import numpy as np

from maftplus.train.data import annotations
from maftplus.train.data.annotations import Item

SPLITS = {"train": "training", "val": "validation"}  # ADE20K's names for them
SEGMENT = {"id": int, "category_id": int}  # what an entry of `segments_info` holds at least


def mirrored_items(folder: Path, split: str, images: str, labels: str) -> list[Item]:
    """Pictures in one folder, PNGs of the same stems in another; `{split}` stands for the folder's name."""
    images, labels = images.format(split=split), labels.format(split=split)
    return [
        Item(path, folder / labels / f"{path.stem}.png", path.stem) for path in list_files(folder / images, (".jpg",))
    ]


def ade_items(folder: Path, split: str, labels: str = "annotations/{split}") -> list[Item]:
    return mirrored_items(folder, SPLITS[split], "images/{split}", labels)


def ade_full_items(folder: Path, split: str) -> list[Item]:
    """`*_seg.png` beside their pictures, in a tree of scenes below `training` or `validation`."""
    maps = sorted((folder / "images").rglob("*_seg.png"))
    maps = [path for path in maps if SPLITS[split] in path.relative_to(folder).parts]
    stems = [path.name.removesuffix("_seg.png") for path in maps]
    return [Item(path.with_name(f"{stem}.jpg"), path, stem) for path, stem in zip(maps, stems)]


def voc_items(folder: Path, split: str) -> list[Item]:
    """`SegmentationClassAug` serves training where it and its list are there, validation where nothing else is."""
    lists = folder / "ImageSets" / "Segmentation"
    augmented = [lists / name for name in ("trainaug.txt", "train_aug.txt") if (lists / name).is_file()]
    use_augmented = split == "train" and augmented and (folder / "SegmentationClassAug").is_dir()
    labels = folder / ("SegmentationClassAug" if use_augmented else "SegmentationClass")
    if not labels.is_dir() and (folder / "SegmentationClassAug").is_dir():
        labels = folder / "SegmentationClassAug"
    stems = read_list(augmented[0] if use_augmented else lists / f"{split}.txt")
    return [Item(folder / "JPEGImages" / f"{stem}.jpg", labels / f"{stem}.png", stem) for stem in stems]


def context_59_items(folder: Path, split: str) -> list[Item]:
    """The merged JSON, or the PNGs that `maftplus prepare pascal_context_59` made of it."""
    prepared = folder / "maftplus_context59" / split
    if prepared.is_dir():
        stems = [path.stem for path in list_files(prepared, (".png",))]
        return [Item(folder / "JPEGImages" / f"{stem}.jpg", prepared / f"{stem}.png", stem) for stem in stems]
    return context_59_raw_items(folder, split)


def context_59_raw_items(folder: Path, split: str) -> list[Item]:
    path = folder / "trainval_merged.json"
    images = [image for image in annotations.load_merged_json(path).images.values() if image["phase"] == split]
    images.sort(key=lambda image: image["file_name"])
    return [Item(folder / "JPEGImages" / image["file_name"], path, image["image_id"]) for image in images]


def context_459_items(folder: Path, split: str) -> list[Item]:
    """`trainval/*.mat`; which of them validate says a list, or the merged JSON of the 59 classes."""
    names = (f"ImageSets/SegmentationContext/{split}.txt", f"pascalcontext_{split}.txt", f"{split}.txt")
    found = [folder / name for name in names if (folder / name).is_file()]
    if found:
        stems = read_list(found[0])
    elif (folder / "trainval_merged.json").is_file() or (folder / "maftplus_context59").is_dir():
        stems = [item.image.stem for item in context_59_items(folder, split)]
    else:
        raise FileNotFoundError(
            f"{folder}: no list of the split {split}; looked for {', '.join(names)} and the merged JSON."
        )
    return [Item(folder / "JPEGImages" / f"{stem}.jpg", folder / "trainval" / f"{stem}.mat", stem) for stem in stems]


def coco_stuff_items(folder: Path, split: str) -> list[Item]:
    """All pictures; of training those whose map is void everywhere are left out once `prepare` has listed them."""
    items = mirrored_items(folder, f"{split}2017", "{split}", "stuffthingmaps/{split}")
    void_list = folder / "stuffthingmaps" / f"maftplus_void_{split}2017.txt"
    void = set(read_list(void_list)) if split == "train" and void_list.is_file() else set()
    return [item for item in items if item.image_id not in void]


def coco_panoptic_folder_items(folder: Path, split: str) -> list[Item]:
    maps = folder / "annotations" / f"panoptic_{split}2017"
    maps = maps if maps.is_dir() else folder / f"panoptic_{split}2017"
    return coco_panoptic_items(folder / "annotations" / f"panoptic_{split}2017.json", folder / f"{split}2017", maps)


def ade_panoptic_items(folder: Path, split: str) -> list[Item]:
    json_file = folder / f"ade20k_panoptic_{split}.json"
    if not json_file.is_file():
        raise FileNotFoundError(
            f"{json_file} does not exist; make it with `maftplus prepare ade20k_panoptic {folder}`."
        )
    return coco_panoptic_items(json_file, folder / "images" / SPLITS[split], folder / f"ade20k_panoptic_{split}")


def coco_panoptic_items(json_file: Path, images: Path, maps: Path) -> list[Item]:
    """
    Items of a COCO panoptic JSON. Only `annotations` is needed; without `images` a picture is its map's stem and .jpg.

    Raises:
        ValueError: if the file has no `annotations`.
    """
    content = annotations.read_json(json_file)
    if not isinstance(content, dict) or "annotations" not in content:
        raise ValueError(f"{json_file}: no COCO panoptic JSON; it lacks `annotations`.")
    try:
        names = {image["id"]: image["file_name"] for image in content.get("images", [])}
        return [_panoptic_item(annotation, names, images, maps) for annotation in content["annotations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{json_file}: no COCO panoptic JSON; an entry lacks {error}.") from error


def _panoptic_item(annotation: dict[str, Any], names: dict[Any, str], images: Path, maps: Path) -> Item:
    name = names.get(annotation["image_id"], f"{Path(annotation['file_name']).stem}.jpg")
    path = maps / annotation["file_name"]
    segments = annotations.check_rows(annotation["segments_info"], SEGMENT, f"{path}: `segments_info`")
    for segment in segments:
        if not isinstance(segment.get("iscrowd", 0), int) or not isinstance(segment.get("area", 0), int | float):
            raise ValueError(f"{path}: `iscrowd` and `area` of segment {segment['id']} must be numbers.")
    return Item(images / name, path, annotation["image_id"], segments, name)


def read_labels(item: Item) -> np.ndarray:
    return annotations.read_label_png(item.annotation)


def read_ade_full(item: Item) -> np.ndarray:
    return annotations.read_ade_full(item.annotation)


def read_context_59(item: Item) -> np.ndarray:
    if item.annotation.suffix == ".json":
        return annotations.load_merged_json(item.annotation).read(item.image_id)
    return annotations.read_label_png(item.annotation)


def read_context_459(item: Item) -> np.ndarray:
    return annotations.read_context_mat(item.annotation)


def read_coco_panoptic(item: Item) -> tuple[np.ndarray, list[dict[str, Any]]]:
    return annotations.read_panoptic_png(item.annotation), item.extra


def list_files(folder: str | Path, endings: tuple[str, ...]) -> list[Path]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} does not exist.")
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in endings)


def read_list(path: Path) -> list[str]:
    """First word of every line; VOC's lists may carry more columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a list of pictures is UTF-8, this is not ({error}).") from error
    return [Path(line.split()[0]).stem for line in lines if line.strip()]
