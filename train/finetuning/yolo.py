"""YOLO's segmentation text: a file a picture, a line an object: its class and the corners of a polygon, from 0 to 1.

Names stand in `data.yaml` or a file of names, in the order of the classes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from maftplus.train.data.annotations import Item
from maftplus.train.data.registry import SegmentationDataset, ignore_value
from maftplus.train.finetuning.coco import picture_size
from maftplus.train.finetuning.folders import list_by_stem, pair_folders
from maftplus.train.finetuning.names import Names, find_names
from maftplus.train.finetuning.parts import Found, list_some, part_name
from maftplus.train.finetuning.segments import paint_objects
from maftplus.vocabularies.files import read_text

ENDINGS = (".txt",)


def read_yolo(root: Path, names: Names | None) -> Found | None:
    """
    Folders of pictures and of text files; None where there are no such folders.

    Raises:
        ValueError: without names, or where a line is no polygon; the message names file and line.
    """
    pairs = pair_folders(root, ENDINGS)
    if not pairs:
        return None
    names = names or find_names(root)
    if names is None:
        raise ValueError(
            f"{root}: the classes of YOLO's text files have no names; add data.yaml, or pass `--labels-file`."
        )
    vocabulary = replace(names.vocabulary, stuff=names.vocabulary.stuff or ())
    found = Found("pictures and YOLO segmentation text", {})
    for split, folders in pairs.items():
        images = list_by_stem(pair[0] for pair in folders)
        texts = list_by_stem(dict.fromkeys(pair[1] for pair in folders), ENDINGS)
        items = [
            Item(path, texts[stem], stem, vocabulary.raw_ids, path.relative_to(root).as_posix())
            for stem, path in sorted(images.items())
            if stem in texts
        ]
        lonely = sorted(set(images) - set(texts))
        if lonely:
            found.notes.append(f"{len(lonely)} pictures without annotation are left out: {list_some(lonely)}.")
        for item in items:
            found.classes[item.called] = {number for number, _ in read_lines(item)}
        name = part_name(root, split)
        found.parts[split] = SegmentationDataset(
            name, "panoptic", vocabulary, items, read_text_objects, ignore_value(vocabulary)
        )
    return found


def read_text_objects(item: Item) -> tuple[Any, list[dict[str, Any]]]:
    """Segment ids (H, W) and `segments_info` of a text file, in the size of its picture."""
    height, width = size = picture_size(item.image)
    objects = [
        {
            "segmentation": [[v * (height if place % 2 else width) for place, v in enumerate(corners)]],
            "category_id": item.extra[number],
        }
        for number, corners in read_lines(item)
    ]
    return paint_objects(objects, size, str(item.annotation))


def read_lines(item: Item) -> list[tuple[int, list[float]]]:
    """Class and corners (shares of width and height) of every line. Raises ValueError, naming the line."""
    objects = []
    for number, line in enumerate(read_text(item.annotation).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{item.annotation}, line {number}"
        try:
            label, corners = int(line.split()[0]), [float(word) for word in line.split()[1:]]
        except ValueError as error:
            raise ValueError(f"{where}: a line is a class and corners, x y x y ..., got {line!r:.60}.") from error
        if not 0 <= label < len(item.extra):
            raise ValueError(f"{where}: the class {label} has no name; there are {len(item.extra)}.")
        if len(corners) == 4:
            raise ValueError(f"{where}: this is a box, no polygon; boxes alone cannot be learnt from.")
        objects.append((label, corners))
    return objects
