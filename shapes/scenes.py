"""The shapes world: a synthetic open vocabulary, with captions to learn words from and exact masks to be judged by.

What a scene holds: 2 or 3 textured regions (stuff) and, over them, coloured shapes (things) that overlap, turn and
vary in size and fill. A class of things is a pair (colour, shape), and the pairs come in three kinds:
*seen* (in captions and in segmentation training), *unseen* (in captions only), *novel* (in neither).
Words have synonyms ("ball" for circle); captions name everything in a scene, which captions of photographs do not.

    python shapes/scenes.py --out runs/scenes --num_scenes 8       # pictures, panoptic maps, vocabulary

Shapes: S side of a scene in pixels, K classes (42: colour-major pairs, then stuff), N segments of a scene.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maftplus.shapes.stages import run_stage

COLOURS = {
    "red": ((214, 40, 46), ("crimson",)),
    "green": ((38, 160, 62), ("emerald",)),
    "blue": ((44, 84, 220), ("azure",)),
    "yellow": ((240, 210, 40), ("golden",)),
    "purple": ((150, 54, 190), ("violet",)),
    "white": ((240, 240, 240), ("ivory",)),
}
SHAPES = {
    "circle": ("ball", "disc"),
    "square": ("box",),
    "triangle": ("wedge",),
    "star": ("asterisk",),
    "cross": ("plus",),
    "ring": ("hoop",),
}
NEW_SHAPES = {"heart": (), "moon": (), "arrow": ()}  # in no scene unless asked for: what the shipped model never met
STUFF = {
    "grass": ("lawn",),
    "bricks": ("wall",),
    "water": ("sea",),
    "sand": ("beach",),
    "wood": ("planks",),
    "gravel": ("pebbles",),
}
PATTERNS = ("plain", "striped", "dotted")
KINDS = ("seen", "unseen", "novel")
SUPERSAMPLING = 3
MIN_SIZE = 48
MIN_VISIBLE_SHARE = 0.6  # of a shape's pixels: what is hidden further is no longer a fair question


@dataclass(frozen=True)
class ShapeClass:
    """One class: every name people may use for it (canonical first), its kind, and what is drawn for it."""

    names: tuple[str, ...]
    kind: str
    isthing: bool
    colour: str | None = None
    shape: str | None = None


def _kind_of(colour_index: int, shape_index: int) -> str:
    """Diagonals of the (colour, shape) table, so that every colour and every shape occurs among the seen pairs."""
    diagonal = (shape_index - colour_index) % len(SHAPES)
    if diagonal in (1, 4):
        return "unseen"
    return "novel" if diagonal == 2 and colour_index % 2 == 0 else "seen"


def _thing_names(colour: str, shape: str) -> tuple[str, ...]:
    colours, shapes = (colour, *COLOURS[colour][1]), (shape, *SHAPES[shape])
    return tuple(f"{a} {b}" for a in colours for b in shapes)


def _build_classes() -> tuple[ShapeClass, ...]:
    things = [
        ShapeClass(_thing_names(colour, shape), _kind_of(i, j), True, colour, shape)
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
    ]
    return (*things, *(ShapeClass((name, *synonyms), "seen", False) for name, synonyms in STUFF.items()))


CLASSES = _build_classes()
CLASS_NAMES = tuple(entry.names[0] for entry in CLASSES)
STUFF_IDS = tuple(index for index, entry in enumerate(CLASSES) if not entry.isthing)


def class_ids(*kinds: str, things_only: bool = False) -> list[int]:
    """Ids of the classes of these kinds ("seen", "unseen", "novel"), ascending; stuff is seen."""
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"`kinds` must be among {KINDS}, got {sorted(unknown)}.")
    return [i for i, entry in enumerate(CLASSES) if entry.kind in kinds and (entry.isthing or not things_only)]


@dataclass
class Scene:
    """A picture and all that is true of it.

    `image` (S, S, 3) uint8; `segmentation` (S, S) uint8: segment ids from 1, every pixel has one (stuff of a class is
    one segment); `segments_info`: one `{"id", "category_id", "isthing", "pattern"}` a segment.
    """

    image: np.ndarray
    segmentation: np.ndarray
    segments_info: list[dict] = field(default_factory=list)

    @property
    def semantic(self) -> np.ndarray:
        """(S, S) uint8 class ids."""
        return self.lookup_table()[self.segmentation]

    def lookup_table(self) -> np.ndarray:
        """(256,) uint8: class of every segment id, 255 where there is none."""
        table = np.full(256, 255, np.uint8)
        for segment in self.segments_info:
            table[segment["id"]] = segment["category_id"]
        return table


# ---------------------------------------------------------------------------------------------------------- drawing


def _unit_outline(shape: str) -> np.ndarray:
    """Corners (n, 2) of a shape of about equal area, within the unit disc."""
    turn = 2 * math.pi
    if shape in ("circle", "ring"):
        angles, radii = np.arange(48) / 48 * turn, np.full(48, 0.92)
    elif shape == "square":
        angles, radii = (np.arange(4) + 0.5) / 4 * turn, np.full(4, 1.08)
    elif shape == "triangle":
        angles, radii = np.arange(3) / 3 * turn, np.full(3, 1.2)
    elif shape == "star":
        angles, radii = np.arange(10) / 10 * turn, np.tile([1.15, 0.5], 5)
    elif shape in NEW_SHAPES:
        return _new_outline(shape)
    else:
        arm = 0.36
        quarter = np.array([[arm, 1.05], [-arm, 1.05], [-arm, arm]])
        turns = [np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in np.arange(4) / 4 * turn]
        return np.concatenate([quarter @ rotation.T for rotation in turns])
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _new_outline(shape: str) -> np.ndarray:
    """As `_unit_outline`, of `NEW_SHAPES`."""
    if shape == "heart":
        t = np.arange(48) / 48 * 2 * math.pi
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, y], 1) / 15.5
    if shape == "moon":
        t = np.linspace(0.22, 1.78, 40) * math.pi
        outer = np.stack([np.cos(t), np.sin(t)], 1) * 1.12
        inner = np.stack([0.45 + 0.76 * np.cos(t), 0.76 * np.sin(t)], 1)
        return np.concatenate([outer, inner[::-1]])
    half = np.array([[1.15, 0.0], [0.2, 0.85], [0.2, 0.34], [-1.1, 0.34]])
    return np.concatenate([half, half[:0:-1] * (1, -1)])


OUTLINES = {shape: _unit_outline(shape) for shape in (*SHAPES, *NEW_SHAPES)}
RING_HOLE = 0.52  # of the outer radius


def draw_coverage(shape: str, radius: float, angle: float) -> np.ndarray:
    """Share of every pixel that the shape covers, (2r, 2r) float32 in [0, 1], antialiased by supersampling."""
    half = int(math.ceil(radius * 1.25))
    size = 2 * half * SUPERSAMPLING
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = OUTLINES[shape] @ rotation.T * radius * SUPERSAMPLING + size / 2
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    pen.polygon([tuple(corner) for corner in corners], fill=255)
    if shape == "ring":
        inner = (corners - size / 2) * RING_HOLE + size / 2
        pen.polygon([tuple(corner) for corner in inner], fill=0)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def draw_pattern(pattern: str, size: int, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness factor (size, size) of a fill: stripes and dots darken the colour, they never change it."""
    if pattern == "plain":
        return np.ones((size, size), np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    period, phase = rng.uniform(6, 9), rng.uniform(0, 6)
    along = (x * math.cos(angle) + y * math.sin(angle) + phase) / period * 2 * math.pi
    if pattern == "striped":
        return np.where(np.sin(along) > 0, 1.0, 0.68).astype(np.float32)
    across = (y * math.cos(angle) - x * math.sin(angle)) / period * 2 * math.pi
    return np.where(np.sin(along) * np.sin(across) > 0.3, 0.62, 1.0).astype(np.float32)


def _noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (size, size) in about [-1, 1], `cells` bumps along a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _bricks(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = rng.uniform(6, 8), rng.uniform(13, 17)
    row = np.floor(y / height)
    mortar = ((y % height) < 1.3) | (((x + row % 2 * width / 2) % width) < 1.3)
    shade = ((row * 7 + np.floor((x + row % 2 * width / 2) / width) * 13) % 5 - 2) * 7
    wall = np.array([150, 84, 62]) + shade[..., None]
    return np.where(mortar[..., None], np.array([196, 184, 170]), wall)


def _texture(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """One stuff texture over the whole scene, (S, S, 3) float in about [0, 255]."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x + rng.uniform(0, 40), y + rng.uniform(0, 40)
    fine = rng.standard_normal((size, size)).astype(np.float32)[..., None]
    soft = _noise(size, max(size // 10, 3), rng)[..., None]
    if name == "bricks":
        return _bricks(x, y, rng) + 4 * fine
    if name == "grass":
        blades = np.sin(x * 1.9 + 2.5 * soft[..., 0] + 0.35 * y)[..., None]
        return np.array([88, 128, 52]) + blades * np.array([16, 22, 10]) + 9 * fine + 10 * soft
    if name == "water":
        waves = np.sin(y * 0.75 + 1.3 * np.sin(x * 0.16) + 2 * soft[..., 0])[..., None]
        return np.array([92, 158, 190]) + waves * np.array([16, 18, 18]) + 3 * fine
    if name == "sand":
        return np.array([214, 188, 140]) + 11 * fine + 9 * soft
    if name == "wood":
        grain = np.sin(x * 0.12 + y * 1.15 + 3 * soft[..., 0])[..., None]
        seam = ((y % 16) < 1.4)[..., None]
        return np.where(seam, np.array([84, 52, 28]), np.array([160, 110, 66]) + 12 * grain) + 3 * fine
    pebbles = np.sin(x * 0.9 + 3 * soft[..., 0]) * np.sin(y * 0.9 - 3 * soft[..., 0])
    return np.array([124, 124, 128]) + 34 * pebbles[..., None] + 7 * fine


def paint_stuff(size: int, num_regions: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Regions parted by wavy lines: image (S, S, 3) float32, region of every pixel (S, S), classes of the regions."""
    chosen = rng.choice(STUFF_IDS, num_regions, replace=False).tolist()
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    region = np.zeros((size, size), np.uint8)
    angle = rng.uniform(0, 2 * math.pi)
    bounds = {1: [], 2: [rng.uniform(-0.2, 0.2)], 3: [rng.uniform(-0.3, -0.12), rng.uniform(0.12, 0.3)]}[num_regions]
    across = x * math.cos(angle) + y * math.sin(angle)
    along = y * math.cos(angle) - x * math.sin(angle)
    for bound in bounds:
        wave = 0.04 * np.sin(along * rng.uniform(5, 12) + rng.uniform(0, 6))
        region += across > bound + wave
    image = np.zeros((size, size, 3), np.float32)
    for index, class_id in enumerate(chosen):
        image = np.where((region == index)[..., None], _texture(CLASS_NAMES[class_id], size, rng), image)
    return image, region, chosen


@dataclass
class _Placed:
    """A thing put into a scene: class, fill, and the window of the scene that its coverage fills."""

    class_id: int
    pattern: str
    rows: slice
    columns: slice
    coverage: np.ndarray
    shading: np.ndarray


def clip_window(start: int, length: int, size: int) -> tuple[slice, slice]:
    """Part of a scene's axis and part of a stamp's axis that lie over each other."""
    low, high = max(start, 0), min(start + length, size)
    return slice(low, high), slice(low - start, high - start)


def _place(class_id: int, shape: str, size: int, rng: np.random.Generator, centred: bool) -> _Placed:
    radius, angle = rng.uniform(11, 22), rng.uniform(0, 2 * math.pi)
    coverage = draw_coverage(shape, radius, angle)
    pattern = PATTERNS[rng.choice(3, p=(0.5, 0.25, 0.25))]
    shading = draw_pattern(pattern, len(coverage), rng.uniform(0, math.pi), rng)
    margin = radius if centred else 0.8 * radius
    top, left = (rng.uniform(margin, size - margin, 2) - len(coverage) / 2).astype(int)
    rows, stamp_rows = clip_window(top, len(coverage), size)
    columns, stamp_columns = clip_window(left, len(coverage), size)
    return _Placed(
        class_id, pattern, rows, columns, coverage[stamp_rows, stamp_columns], shading[stamp_rows, stamp_columns]
    )


def _fits(thing: _Placed, owner: np.ndarray, areas: list[int]) -> bool:
    """Whether every thing below keeps enough of its pixels visible (`owner`: 0 stuff, i + 1 thing i)."""
    if not areas:
        return True
    visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:]
    window = owner[thing.rows, thing.columns]
    hidden = np.bincount(window[thing.coverage >= 0.5], minlength=len(areas) + 1)[1:]
    return bool(np.all(visible - hidden >= MIN_VISIBLE_SHARE * np.array(areas)))


def _paint_things(
    image: np.ndarray, ids: list[int], rng: np.random.Generator, classes: Sequence[ShapeClass]
) -> tuple[np.ndarray, list[_Placed]]:
    """Draws things over `image` in place, later ones on top; a thing that would hide another is left out."""
    size = len(image)
    owner, areas, placed = np.zeros((size, size), np.uint8), [], []
    for class_id in ids:
        thing = _place(class_id, classes[class_id].shape, size, rng, centred=len(ids) == 1)
        if not _fits(thing, owner, areas):
            continue
        placed.append(thing)
        areas.append(int((thing.coverage >= 0.5).sum()))
        owner[thing.rows, thing.columns][thing.coverage >= 0.5] = len(placed)
        colour = np.array(COLOURS[classes[class_id].colour][0]) + rng.uniform(-14, 14, 3)
        window, alpha = image[thing.rows, thing.columns], thing.coverage[..., None]
        image[thing.rows, thing.columns] = window + alpha * (colour * thing.shading[..., None] - window)
    return owner, placed


def draw_scene(
    rng: np.random.Generator,
    allowed: list[int],
    size: int = 128,
    num_things: tuple[int, int] = (3, 6),
    num_regions: tuple[int, int] = (2, 3),
    classes: Sequence[ShapeClass] = CLASSES,
) -> Scene:
    """
    Draws one scene.

    Args:
        rng: the source of all chance; equal states give equal scenes.
        allowed: class ids of the things that may occur.
        size: side S in pixels; things keep their size, so small scenes are crops of large ones.
        num_things, num_regions: least and most of each; a thing that would hide another is left out.
        classes: what class ids stand for; the world's own come first, as the ground is drawn of them.

    Raises:
        ValueError: if `size` is below 48.
    """
    if size < MIN_SIZE:
        raise ValueError(f"`size` must be at least {MIN_SIZE} pixels to hold a thing, got {size}.")
    image, region, stuff = paint_stuff(size, int(rng.integers(num_regions[0], num_regions[1] + 1)), rng)
    ids = rng.choice(allowed, int(rng.integers(num_things[0], num_things[1] + 1))).tolist()
    owner, things = _paint_things(image, ids, rng, classes)
    image = image * rng.uniform(0.88, 1.1) + rng.standard_normal(image.shape, np.float32) * 3
    return as_scene(np.clip(image, 0, 255).astype(np.uint8), owner, things, region, stuff, classes)


def as_scene(
    image: np.ndarray,
    owner: np.ndarray,
    things: list,
    region: np.ndarray,
    stuff: list[int],
    classes: Sequence[ShapeClass] = CLASSES,
) -> Scene:
    """A painted picture with its segments: things by `owner` (0: none, H, W), the ground by `region` (H, W)."""
    segmentation = np.where(owner > 0, owner, region + 1 + len(things)).astype(np.uint8)
    ids = [thing.class_id for thing in things] + stuff
    patterns = [thing.pattern for thing in things] + [None] * len(stuff)
    visible = np.bincount(segmentation.ravel(), minlength=len(ids) + 1)
    segments = [
        {"id": index + 1, "category_id": int(c), "isthing": classes[c].isthing, "pattern": pattern}
        for index, (c, pattern) in enumerate(zip(ids, patterns))
        if visible[index + 1]
    ]
    return Scene(image, segmentation, segments)


# ---------------------------------------------------------------------------------------------------------- streams

SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3}


def scenes(split: str, num_scenes: int, kinds: tuple[str, ...] = KINDS, seed: int = 0, **layout) -> Iterator[Scene]:
    """
    Yields scenes; the i-th depends on (split, seed, i) alone, and the splits share none.

    Args:
        split: "train", "validation" or "test".
        kinds: which kinds of pairs may occur; ("seen",) is segmentation training, ("seen", "unseen") the captions.
        layout: passed to `draw_scene` (`size`, `num_things`, `num_regions`).

    Raises:
        ValueError: if `split` or a kind is unknown.
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"`split` must be one of {', '.join(SPLIT_SEEDS)}, got {split!r}.")
    allowed = class_ids(*kinds, things_only=True)
    for index in range(num_scenes):
        yield draw_scene(np.random.default_rng((SPLIT_SEEDS[split], seed, index)), allowed, **layout)


def vocabulary_rows(kinds: tuple[str, ...] = KINDS) -> list[dict]:
    """Classes of these kinds as rows of a vocabulary file (`vocabularies/files.py`); ids are those of `CLASSES`."""
    return [
        {
            "id": index,
            "name": CLASSES[index].names[0],
            "synonyms": list(CLASSES[index].names),
            "isthing": int(CLASSES[index].isthing),
            "unseen": int(CLASSES[index].kind != "seen"),
        }
        for index in class_ids(*kinds)
    ]


def export_coco_panoptic(
    folder: Path, split: str, num_scenes: int, kinds: tuple[str, ...] = KINDS, seed: int = 0, **layout
) -> None:
    """
    Writes scenes in COCO's panoptic format, which `train/run.py` reads: `images/`, `panoptic/`, `panoptic.json`, and
    `vocabulary.json` with the classes of `kinds`. A folder that already holds these scenes is left as it is.

    Raises:
        ValueError: if `folder` holds files that no export wrote.
    """
    settings = {"split": split, "num_scenes": num_scenes, "kinds": kinds, "seed": seed, "layout": layout}
    run_stage(folder, settings, lambda: _write_coco_panoptic(folder, **settings))


def _write_coco_panoptic(folder: Path, kinds: tuple[str, ...], layout: dict, **which: Any) -> None:
    for name in ("images", "panoptic"):
        (folder / name).mkdir()
    vocabulary = {"name": "shapes", "source": "the shapes world", "classes": vocabulary_rows(kinds)}
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary, indent=1))
    images, annotations = [], []
    for index, scene in enumerate(scenes(kinds=kinds, **which, **layout)):
        name = f"{index:06d}.png"
        ids = np.zeros((*scene.segmentation.shape, 3), np.uint8)
        ids[..., 0] = scene.segmentation  # COCO: id = R + 256 G + 65536 B
        Image.fromarray(scene.image).save(folder / "images" / name, compress_level=1)
        Image.fromarray(ids).save(folder / "panoptic" / name, compress_level=1)
        segments = [{"id": s["id"], "category_id": s["category_id"], "iscrowd": 0} for s in scene.segments_info]
        images.append({"id": index, "file_name": name})
        annotations.append({"image_id": index, "file_name": name, "segments_info": segments})
    content = {"info": {**which, "kinds": kinds, "layout": layout}, "images": images, "annotations": annotations}
    (folder / "panoptic.json").write_text(json.dumps(content))


def main(arguments: list[str] | None = None) -> None:
    """Writes scenes to a folder, in COCO's panoptic format."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_scenes", type=int, default=8)
    parser.add_argument("--split", default="validation", choices=sorted(SPLIT_SEEDS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--num_things", type=int, nargs=2, default=[3, 6])
    parser.add_argument("--num_regions", type=int, nargs=2, default=[2, 3])
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    export_coco_panoptic(options.pop("out"), kinds=tuple(options.pop("kinds")), **options)


if __name__ == "__main__":
    main()
