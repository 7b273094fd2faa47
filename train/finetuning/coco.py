"""Forms with one JSON file a split: COCO panoptic, with a folder of PNGs, and COCO instances, polygons or run lengths.

The JSON files lie in the folder or up to three levels below; words in their paths say which split they are
(`annotations/instances_val2017.json`, `valid/_annotations.coco.json`). Pictures are looked for below the folder.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from maftplus.train.data import annotations
from maftplus.train.data.annotations import Item
from maftplus.train.data.layouts import coco_panoptic_items, read_coco_panoptic
from maftplus.train.data.registry import SegmentationDataset, ignore_value
from maftplus.train.finetuning.folders import find_holder, split_of, words_of
from maftplus.train.finetuning.names import Names, find_names
from maftplus.train.finetuning.parts import Found, list_some, part_name, with_names
from maftplus.train.finetuning.segments import paint_objects, polygons_outside
from maftplus.vocabularies.files import VocabularyFile

PANOPTIC, INSTANCES = "panoptic", "instances"
MOST_FILES = 20  # JSON files of a folder; with more they are no annotation files of whole splits
OTHER_FILES = {"captions", "keypoints", "info"}  # words in the names of COCO's files that hold no masks
IMAGE = {"id": int | str, "file_name": str}
ANNOTATION = {"image_id": int | str, "category_id": int}
CATEGORY = {"id": int, "name": str}
SOME = 20  # file names by which a folder of pictures is recognised


def read_coco(root: Path, names: Names | None, kind: str) -> Found | None:
    """
    COCO annotations of one kind; None where the folder has no such file.

    Args:
        names: What the classes are to be called; default: as the file calls them.
        kind: `"panoptic"` or `"instances"`.

    Raises:
        ValueError: if a file lists pictures that are not there, has an object of a category without a name or a
            polygon that is none, or if two files are for one split.
    """
    files: dict[str, Path] = {}
    for path in find_files(root):
        if kind_of(path) == kind:
            split = split_of(path, root)
            if split in files:
                files[split] = _preferred(files[split], path, kind, root)
            else:
                files[split] = path
    if not files:
        return None
    read = _read_panoptic if kind == PANOPTIC else _read_instances
    contents = {split: load(path) for split, path in files.items()}
    vocabulary = with_names(_vocabulary(files, contents, kind, root), names)
    found = Found(f"COCO {kind} JSON ({list_some([path.name for path in files.values()])})", {})
    for split, path in files.items():
        found.parts[split] = read(path, root, split, vocabulary, found)
    load.cache_clear()  # the files of large data sets fill gigabytes
    return found


def find_files(root: Path) -> list[Path]:
    """JSON files that may hold COCO annotations."""
    by_folder = defaultdict(list)
    for depth in range(4):
        for path in sorted(root.glob("*/" * depth + "*.json")):
            by_folder[path.parent].append(path)
    files = [path for own in by_folder.values() if len(own) <= MOST_FILES for path in own]
    return [path for path in files if not set(words_of(path, root)) & OTHER_FILES]


def kind_of(path: Path) -> str | None:
    """Of a COCO file its kind, None of any other."""
    try:
        content = load(path)
    except ValueError:
        return None
    rows = content.get("annotations") if isinstance(content, dict) else None
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    if "segments_info" in first:
        return PANOPTIC
    is_instances = isinstance(content, dict) and "images" in content and ("segmentation" in first or "bbox" in first)
    return INSTANCES if is_instances else None


@lru_cache(maxsize=4)
def load(path: Path) -> Any:
    """A JSON file, kept: it is looked at to recognise the form and again to read it."""
    return annotations.read_json(path)


def _preferred(first: Path, second: Path, kind: str, root: Path) -> Path:
    named = [path for path in (first, second) if kind in words_of(path, root)]
    if len(named) == 1:
        return named[0]
    raise ValueError(f"{first} and {second} are both COCO {kind} files of the same split; move one away.")


def _vocabulary(files: dict[str, Path], contents: dict[str, Any], kind: str, root: Path) -> VocabularyFile:
    """From `categories`, which all splits share, or from a file of names with ids beside them."""
    rows = next((content["categories"] for content in contents.values() if content.get("categories")), None)
    path = next(iter(files.values()))
    if rows is None:
        names = find_names(root) or find_names(root.resolve().parent)
        if names is None or not names.has_ids:
            raise ValueError(
                f"{path}: it has no `categories`, so its classes have no names; pass `--labels-file FILE`."
            )
        return names.vocabulary
    rows = annotations.check_rows(rows, CATEGORY, f"{path}, `categories`")
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(f"{path}: two `categories` have the same id.")
    used = {
        row["category_id"] for content in contents.values() for row in content["annotations"] if "category_id" in row
    }
    if kind == INSTANCES:
        rows = [row for row in rows if row["id"] in used or not _is_heading(row, rows)]
    synonyms = tuple(tuple(part.strip() for part in row["name"].split(",") if part.strip()) for row in rows)
    if not all(synonyms):
        raise ValueError(f"{path}: a category has no name.")
    stuff = tuple(i for i, row in enumerate(rows) if kind == PANOPTIC and not row.get("isthing", 1))
    ids = tuple(row["id"] for row in rows)
    return VocabularyFile(path.stem, tuple(row["name"] for row in rows), synonyms, ids, stuff, source=str(path))


def _is_heading(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a category is only what others are filed under, as Roboflow writes one."""
    return any(other.get("supercategory") == row["name"] for other in rows if other is not row)


def _read_panoptic(
    path: Path, root: Path, split: str, vocabulary: VocabularyFile, found: Found
) -> SegmentationDataset:
    content = load(path)
    rows = annotations.check_rows(content["annotations"], {"file_name": str}, f"{path}, `annotations`")
    maps = find_holder(root, [row["file_name"] for row in rows[:SOME]], hint=path.stem)
    if maps is None:
        raise ValueError(
            f"{path}: its maps ({list_some([row['file_name'] for row in rows])}) are nowhere below {root}."
        )
    items = coco_panoptic_items(path, root, maps)
    images = _picture_folder(path, root, [item.name for item in items], avoid=[maps])
    items = [Item(images / item.name, item.annotation, item.image_id, item.extra, item.name) for item in items]
    _require_pictures(items, path, images)
    index = {raw: training for training, raw in enumerate(vocabulary.raw_ids)}
    for item in items:
        _require_categories((segment["category_id"] for segment in item.extra), index, f"{path}, picture {item.name}")
        found.classes[item.called] = {index[segment["category_id"]] for segment in item.extra}
    name = part_name(root, split)
    return SegmentationDataset(name, PANOPTIC, vocabulary, items, read_coco_panoptic, ignore_value(vocabulary))


def _read_instances(
    path: Path, root: Path, split: str, vocabulary: VocabularyFile, found: Found
) -> SegmentationDataset:
    content = load(path)
    images = annotations.check_rows(content["images"], IMAGE, f"{path}, `images`")
    objects = defaultdict(list)
    for row in annotations.check_rows(content["annotations"], ANNOTATION, f"{path}, `annotations`"):
        objects[row["image_id"]].append(row)
    _require_listed(objects, images, path)
    folder = _picture_folder(path, root, [image["file_name"] for image in images])
    annotated = [image for image in images if objects[image["id"]]]
    if len(annotated) < len(images):
        found.notes.append(f"{path.name}: {len(images) - len(annotated)} pictures without annotation are left out.")
    index = {raw: training for training, raw in enumerate(vocabulary.raw_ids)}
    items, outside = [], []
    for image in annotated:
        item = Item(folder / image["file_name"], path, image["id"], None, image["file_name"])
        own = _checked_objects(objects[image["id"]], _size(image, item), index, item, outside)
        items.append(Item(item.image, path, item.image_id, (_listed_size(image), own), item.name))
        found.classes[item.called] = {index[one["category_id"]] for one in own if not one["iscrowd"]}
    _require_pictures(items, path, folder)
    _tell_outside(path, outside, found)
    name = part_name(root, split)
    return SegmentationDataset(name, PANOPTIC, vocabulary, items, read_objects, ignore_value(vocabulary))


def read_objects(item: Item) -> tuple[Any, list[dict[str, Any]]]:
    """An item of an instances file as segment ids (H, W) and `segments_info`; `extra` holds size and objects."""
    size, objects = item.extra
    size = size or picture_size(item.image)
    return paint_objects(objects, size, f"{item.annotation}, picture {item.name}")


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it stands upright, from its header. Raises as `open_image`."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size if turned else image.size[::-1]
    except OSError:
        return annotations.open_image(path).size[::-1]  # says what is wrong


def _size(image: dict[str, Any], item: Item) -> tuple[int, int] | None:
    """As the JSON says, or as the picture has it; None where there is neither."""
    return _listed_size(image) or (picture_size(item.image) if item.image.is_file() else None)


def _listed_size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    is_size = type(height) is int and type(width) is int and 0 < height <= 1 << 16 and 0 < width <= 1 << 16
    return (height, width) if is_size else None


def _checked_objects(
    rows: list[dict[str, Any]],
    size: tuple[int, int] | None,
    index: dict[int, int],
    item: Item,
    outside: list[tuple[Any, bool]],
) -> list[dict[str, Any]]:
    """Objects with what `paint_objects` needs; of those outside the picture `outside` gets id and whether wholly."""
    kept = []
    for row in rows:
        where = f"{item.annotation}, annotation {row.get('id', '?')} of picture {item.name}"
        _require_categories([row["category_id"]], index, where)
        if not row.get("segmentation"):
            raise ValueError(f"{where}: it has no `segmentation`; boxes alone cannot be learnt from.")
        is_outside, is_beyond = polygons_outside(row["segmentation"], size or (1 << 16, 1 << 16), where)
        if is_beyond or is_outside:
            outside.append((row.get("id", item.name), is_outside))
        if not is_outside:
            fields = {key: row[key] for key in ("segmentation", "category_id")}
            kept.append({**fields, "iscrowd": int(bool(row.get("iscrowd", 0)))})
    return kept


def _tell_outside(path: Path, outside: list[tuple[Any, bool]], found: Found) -> None:
    gone = [name for name, is_outside in outside if is_outside]
    clipped = [name for name, is_outside in outside if not is_outside]
    if gone:
        found.notes.append(f"{path.name}: the annotations {list_some(gone)} lie outside their pictures, left out.")
    if clipped:
        found.notes.append(f"{path.name}: the annotations {list_some(clipped)} reach out of their pictures, clipped.")


def _picture_folder(path: Path, root: Path, names: list[str], avoid: Sequence[Path] = ()) -> Path:
    folder = find_holder(root, names[:SOME], avoid, hint=split_of(path, root))
    if folder is None:
        raise ValueError(
            f"{path} lists {len(names)} pictures ({list_some(names)}), and none of the first {min(SOME, len(names))} "
            f"lies below {root}; put the folder of pictures there."
        )
    return folder


def _require_pictures(items: list[Item], path: Path, folder: Path) -> None:
    missing = [item.name for item in items if not item.image.is_file()]
    if missing:
        raise ValueError(
            f"{path} lists {len(missing)} pictures that are not in {folder}: {list_some(missing)}; put them there or "
            "take them out of the file."
        )


def _require_categories(categories: Any, index: dict[int, int], where: str) -> None:
    unknown = [category for category in categories if category not in index]
    if unknown:
        raise ValueError(
            f"{where}: the category {unknown[0]} has no name in `categories`; add it there, or remove its annotations."
        )


def _require_listed(objects: dict[Any, list], images: list[dict[str, Any]], path: Path) -> None:
    unknown = set(objects) - {image["id"] for image in images}
    if unknown:
        raise ValueError(
            f"{path}: annotations are for the images {list_some(sorted(unknown, key=str))}, which it does not list."
        )
