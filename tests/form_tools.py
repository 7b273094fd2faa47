"""Small labelled folders in the usual forms, for tests of what reads them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "grass")
SIZE = (8, 12)  # height, width


def save_picture(path: Path, number: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """A picture of noise; every number makes another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


def save_map(path: Path, labels, dtype=np.uint8, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(labels).astype(dtype))
    if palette:
        picture = picture.convert("P") if picture.mode != "L" else picture
        picture.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    picture.save(path)
    return path


def bands(*values: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A map of vertical bands with these values, (H, W)."""
    columns = np.arange(size[1]) * len(values) // size[1]
    return np.asarray(values)[columns][None].repeat(size[0], 0)


def make_label_maps(
    root: Path, number: int = 5, values=(0, 1, 2, 255), images: str = "images", labels: str = "labels", **options
) -> Path:
    """`images/0.png`, `labels/0.png`, ... and `names.txt` with a line a class."""
    root.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        save_picture(root / images / f"{index}.png", index)
        save_map(root / labels / f"{index}.png", bands(*values), **options)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    return root


def square(left: float = 2, top: float = 1, side: float = 4) -> list[list[float]]:
    """An object's polygons: one square."""
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def coco_content(number: int = 5, objects=None, first: int = 0) -> dict:
    """An instances document: `objects` (segmentation and category) for every picture."""
    objects = objects or [{"segmentation": square(), "category_id": 7}]
    images = [
        {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(first, first + number)
    ]
    rows = [{"image_id": image["id"], "iscrowd": 0, **one} for image in images for one in objects]
    annotations = [{"id": index, **row} for index, row in enumerate(rows)]
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_instances(root: Path, content: dict | None = None, name: str = "instances.json", images="images") -> Path:
    content = content or coco_content()
    for image in content["images"]:
        save_picture(root / images / image["file_name"], image["id"])
    path = root / "annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def make_panoptic(root: Path, number: int = 3) -> Path:
    """Pictures with a cat (7) on grass (9), a JSON and a folder of PNGs."""
    annotations, images = [], []
    for index in range(number):
        save_picture(root / "images" / f"{index}.jpg", index)
        ids = bands(1, 2)
        save_map(root / "panoptic" / f"{index}.png", np.stack([ids, 0 * ids, 0 * ids], -1))
        segments = [{"id": 1, "category_id": 7, "iscrowd": 0}, {"id": 2, "category_id": 9, "iscrowd": 0}]
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
        images.append({"id": index, "file_name": f"{index}.jpg"})
    categories = [{"id": 7, "name": "cat, kitten", "isthing": 1}, {"id": 9, "name": "grass", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))
    return root


def make_voc(root: Path, with_objects: bool = True, number: int = 4) -> Path:
    """Two dogs (12) beside background, an outline of 255 between them; lists of the split."""
    for index in range(number):
        save_picture(root / "JPEGImages" / f"2007_{index}.jpg", index)
        save_map(root / "SegmentationClass" / f"2007_{index}.png", bands(0, 12, 255, 12), palette=True)
        if with_objects:
            save_map(root / "SegmentationObject" / f"2007_{index}.png", bands(0, 1, 255, 2), palette=True)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    stems = [f"2007_{index}" for index in range(number)]
    (lists / "train.txt").write_text("\n".join(stems[:-1]))
    (lists / "val.txt").write_text(stems[-1])
    return root
