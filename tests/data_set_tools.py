"""A small sample of every data set's official layout, its bytes written from the format's description.

Sources: PNG, W3C Recommendation (third edition), sections 5 and 11; MAT-files, "MAT-File Format" (MathWorks), level 5;
COCO, cocodataset.org "Data format"; ADE20K, groups.csail.mit.edu/vision/datasets/ADE20K "R/10*256+G"; scene parsing
challenge 2017 "R category, G instance"; VOC2012 development kit, "Segmentation"; PASCAL-Context, "LabelMap".
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GREY, COLOUR, PALETTE = 0, 2, 3  # PNG colour types


def png_bytes(rows, colour_type: int = GREY, depth: int = 8, palette: bytes = b"") -> bytes:
    """A PNG file: signature, IHDR, PLTE, one IDAT of unfiltered rows, IEND; numbers are big-endian."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    values = np.asarray(rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour_type, 0, 0, 0)
    data = b"".join(b"\0" + row.astype(">u2" if depth == 16 else ">u1").tobytes() for row in values)
    parts = [chunk(b"IHDR", header), chunk(b"PLTE", palette) if palette else b"", chunk(b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def mat_bytes(name: str, rows) -> bytes:
    """A level 5 MAT-file with one uint16 matrix, stored column by column, little-endian, every element padded to 8."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    values = np.asarray(rows)
    matrix = element(6, struct.pack("<II", 11, 0)) + element(5, struct.pack("<ii", *values.shape))  # mxUINT16_CLASS
    matrix += element(1, name.encode()) + element(4, values.T.astype("<u2").tobytes())
    header = b"MATLAB 5.0 MAT-file".ljust(116) + b"\0" * 8 + struct.pack("<H", 0x0100) + b"IM"
    return header + element(14, matrix)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(path: Path, height: int = 2, width: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).save(path)
    return path


def make_ade(root: Path) -> list[list[int]]:
    picture(root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg")
    write(
        root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", png_bytes([[0, 1, 2], [150, 13, 0]])
    )
    return [[255, 0, 1], [149, 12, 255]]


def make_ade_full(root: Path) -> list[list[int]]:
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    picture(folder / "ADE_val_00000001.jpg")
    # wall is 2978 = 11 * 256 + 162, building 312 = 1 * 256 + 56; R is ten times the first, B is the instance
    wall, building, unknown, nothing = (110, 162, 7), (10, 56, 0), (0, 1, 0), (0, 0, 0)
    seg = np.array([[wall, building, unknown], [nothing, (119, 162, 1), wall]])
    write(folder / "ADE_val_00000001_seg.png", png_bytes(seg, COLOUR))
    write(folder / "ADE_val_00000001_parts_1.png", png_bytes(seg, COLOUR))
    return [[0, 1, 65535], [65535, 0, 0]]


def make_context_59(root: Path) -> list[list[int]]:
    folder = root / "VOCdevkit/VOC2010"
    picture(folder / "JPEGImages/2008_000002.jpg")
    image = {"image_id": 2008000002, "file_name": "2008_000002.jpg", "height": 2, "width": 3, "phase": "val"}
    # column by column: two zeros, three ones, one zero; compressed, numbers below 16 are the digit itself
    compressed = {"image_id": 2008000002, "category_id": 2, "segmentation": {"size": [2, 3], "counts": "231"}}
    listed = {"image_id": 2008000002, "category_id": 458, "segmentation": {"size": [2, 3], "counts": [5, 1]}}
    other = {**image, "image_id": 7, "file_name": "2008_000007.jpg", "phase": "train"}
    content = {"images": [image, other], "annos_segmentation": [compressed, listed], "categories": []}
    write(folder / "trainval_merged.json", json.dumps(content))
    return [[255, 0, 0], [255, 0, 58]]


def make_context_459(root: Path) -> list[list[int]]:
    folder = root / "VOCdevkit/VOC2010"
    picture(folder / "JPEGImages/2008_000002.jpg")
    write(folder / "trainval/2008_000002.mat", mat_bytes("LabelMap", [[0, 1, 2], [459, 284, 1]]))
    write(folder / "ImageSets/SegmentationContext/val.txt", "2008_000002\n")
    return [[65535, 0, 1], [458, 283, 0]]


def make_voc(root: Path) -> list[list[int]]:
    folder = root / "VOCdevkit/VOC2012"
    picture(folder / "JPEGImages/2007_000033.jpg")
    palette = bytes(range(256)) * 3
    write(
        folder / "SegmentationClass/2007_000033.png", png_bytes([[0, 1, 255], [20, 15, 0]], PALETTE, palette=palette)
    )
    write(folder / "ImageSets/Segmentation/val.txt", "2007_000033\n")
    return [[255, 0, 255], [19, 14, 255]]


def make_coco_stuff(root: Path, split: str = "val") -> list[list[int]]:
    picture(root / f"coco/{split}2017/000000000139.jpg")
    # PNG values are the official ids less one, with gaps: 12 is stop sign, number 11; all 11 gaps lie below 91
    write(root / f"coco/stuffthingmaps/{split}2017/000000000139.png", png_bytes([[0, 12, 255], [181, 20, 123]]))
    return [[0, 11, 255], [170, 19, 112]]


def make_coco_panoptic(root: Path) -> list[list[int]]:
    picture(root / "coco/val2017/000000000139.jpg")
    # ids R + 256 G + 65536 B: 5, 517 = 5 + 2 * 256, 196608 = 3 * 65536
    ids = np.array([[(5, 0, 0), (5, 2, 0), (5, 2, 0)], [(0, 0, 3), (0, 0, 0), (5, 0, 0)]])
    write(root / "coco/annotations/panoptic_val2017/000000000139.png", png_bytes(ids, COLOUR))
    segments = [(5, 1, 0, 2), (517, 17, 1, 2), (196608, 200, 0, 1)]
    segments = [dict(zip(("id", "category_id", "iscrowd", "area"), segment)) for segment in segments]
    annotation = {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}
    write(root / "coco/annotations/panoptic_val2017.json", json.dumps({"annotations": [annotation]}))
    return [[5, 517, 517], [196608, 0, 5]]


def make_ade_panoptic(root: Path) -> list[list[int]]:
    make_ade(root)
    folder = root / "ADEChallengeData2016"
    # red is the category of 100: 1 is bed (8 of 150), 4 is person (13); green the instance; a bed covers the building
    instances = np.array([[(0, 0, 0), (0, 0, 0), (1, 1, 0)], [(0, 0, 0), (4, 2, 0), (0, 0, 0)]])
    write(folder / "annotations_instance/validation/ADE_val_00000001.png", png_bytes(instances, COLOUR))
    return [[0, 1, 3], [0, 4, 0]]  # the flag (150) is a thing without an instance


LAYOUTS = {
    "ade20k_150": make_ade,
    "ade20k_847": make_ade_full,
    "ade20k_572_275": make_ade_full,
    "pascal_context_59": make_context_59,
    "pascal_context_459": make_context_459,
    "pascal_voc_20": make_voc,
    "pascal_voc_15_5": make_voc,
    "coco_stuff_171": make_coco_stuff,
    "coco_stuff_156_15": make_coco_stuff,
    "coco_panoptic": make_coco_panoptic,
    "ade20k_panoptic": make_ade_panoptic,
}
