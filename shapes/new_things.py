"""Three shapes that the shipped model has never met, as somebody's own labelled pictures, to fine-tune it on.

    python shapes/new_things.py --out new_things        # train/ and test/ with images/ and labels/, and names.txt
    maftplus finetune --data new_things/train --labels-file new_things/names.txt --model shapes --out runs/new_things

Label maps hold the three shapes, whatever their colour, and the ground; the world's other things are in no picture,
so that whoever trains on them alone may well forget them. With `--with_old` they are there too, and unlabelled.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maftplus.shapes.scenes import (
    CLASSES,
    COLOURS,
    NEW_SHAPES,
    SPLIT_SEEDS,
    STUFF,
    STUFF_IDS,
    Scene,
    ShapeClass,
    class_ids,
    draw_scene,
)
from maftplus.shapes.stages import run_stage

UNLABELLED = 255
NEW_CLASSES = tuple(
    ShapeClass((shape, *synonyms), "new", True, colour, shape)
    for shape, synonyms in NEW_SHAPES.items()
    for colour in COLOURS
)
NAMES = (*NEW_SHAPES, *STUFF)  # of the label maps' values, from 0
NUM_NEW = len(NEW_SHAPES)
SEED = 18  # keeps these scenes apart from those of `shapes.scenes.scenes`


def new_scenes(split: str, num_scenes: int, seed: int = 0, with_old: bool = False, **layout) -> Iterator[Scene]:
    """Scenes of the new shapes in all colours; `category_id` counts `CLASSES`, then `NEW_CLASSES`."""
    allowed = [len(CLASSES) + index for index in range(len(NEW_CLASSES))]
    allowed += class_ids("seen", "unseen", "novel", things_only=True) if with_old else []
    for index in range(num_scenes):
        rng = np.random.default_rng((SPLIT_SEEDS[split], SEED, seed, index))
        yield draw_scene(rng, allowed, classes=(*CLASSES, *NEW_CLASSES), **layout)


def label_map(scene: Scene) -> np.ndarray:
    """(S, S) uint8: indices of `NAMES`, 255 where the world's other things are."""
    table = np.full(256, UNLABELLED, np.uint8)
    table[list(STUFF_IDS)] = NUM_NEW + np.arange(len(STUFF))
    new_ids = len(CLASSES) + np.arange(len(NEW_CLASSES))
    table[new_ids] = np.repeat(np.arange(NUM_NEW), len(COLOURS))
    return table[scene.semantic]


def write(folder: Path, num_train: int = 200, num_test: int = 200, seed: int = 0, with_old: bool = False) -> None:
    """
    `train/` and `test/` with `images/` and `labels/`, and `names.txt`; what is there already is left as it is.

    Raises:
        ValueError: if `folder` holds files that nothing here wrote.
    """
    counts = {"train": num_train, "test": num_test}
    run_stage(folder, {**counts, "seed": seed, "with_old": with_old}, lambda: _write(folder, counts, seed, with_old))


def _write(folder: Path, counts: dict[str, int], seed: int, with_old: bool) -> None:
    lines = [f"stuff: {name}" if name in STUFF else name for name in NAMES]
    (folder / "names.txt").write_text("\n".join(lines) + "\n")
    for split, count in counts.items():
        for name in ("images", "labels"):
            (folder / split / name).mkdir(parents=True)
        for index, scene in enumerate(new_scenes(split, count, seed, with_old)):
            Image.fromarray(scene.image).save(folder / split / "images" / f"{index:04d}.png", compress_level=1)
            Image.fromarray(label_map(scene)).save(folder / split / "labels" / f"{index:04d}.png")


def main(arguments: list[str] | None = None) -> None:
    """Writes the pictures and their label maps."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_train", type=int, default=200)
    parser.add_argument("--num_test", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--with_old", action="store_true", help="The world's other things are there too, unlabelled.")
    options = vars(parser.parse_args(arguments))
    write(options.pop("out"), **options)


if __name__ == "__main__":
    main()
