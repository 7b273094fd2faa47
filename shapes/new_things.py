"""Three shapes that the shipped model has never met, as somebody's own labelled pictures, to fine-tune it on.

    python shapes/new_things.py --out new_things        # train/ and test/ with images/ and labels/, and names.txt
    maftplus finetune --data new_things/train --labels-file new_things/names.txt --model shapes --out runs/new_things

Label maps hold the three shapes, whatever their colour, the pairs of colour and shape that the model was trained on,
and the ground. With `--only_new` the old things are in no picture: whoever trains on those alone forgets them.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maftplus.shapes.scenes import (
    CLASSES,
    COLOURS,
    NEW_SHAPES,
    SPLIT_SEEDS,
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
SEEN = class_ids("seen", things_only=True)
NUM_NEW = len(NEW_SHAPES)
SEED = 18  # keeps these scenes apart from those of `shapes.scenes.scenes`


def new_scenes(
    split: str, num_scenes: int, seed: int = 0, kinds: Sequence[str] = ("seen",), **layout
) -> Iterator[Scene]:
    """
    Scenes of the new shapes in all colours and of old things of these kinds; `category_id` counts `CLASSES`, then
    `NEW_CLASSES`.
    """
    allowed = [len(CLASSES) + index for index in range(len(NEW_CLASSES))] + class_ids(*kinds, things_only=True)
    for index in range(num_scenes):
        rng = np.random.default_rng((SPLIT_SEEDS[split], SEED, seed, index))
        yield draw_scene(rng, allowed, classes=(*CLASSES, *NEW_CLASSES), **layout)


def labelled_ids(only_new: bool = False) -> list[int]:
    """Class ids of the label maps' values after the new shapes: old things, unless `only_new`, and the ground."""
    return [*([] if only_new else SEEN), *STUFF_IDS]


def names(only_new: bool = False) -> list[str]:
    """Lines of names.txt, in the order of the label maps' values."""
    old = [CLASSES[index] for index in labelled_ids(only_new)]
    lines = [("" if entry.isthing else "stuff: ") + ", ".join(entry.names) for entry in old]
    return [*(", ".join((shape, *synonyms)) for shape, synonyms in NEW_SHAPES.items()), *lines]


def label_map(scene: Scene, only_new: bool = False) -> np.ndarray:
    """(S, S) uint8: indices of `names`, 255 elsewhere."""
    table, old = np.full(256, UNLABELLED, np.uint8), labelled_ids(only_new)
    table[old] = NUM_NEW + np.arange(len(old))
    table[len(CLASSES) + np.arange(len(NEW_CLASSES))] = np.repeat(np.arange(NUM_NEW), len(COLOURS))
    return table[scene.semantic]


def write(folder: Path, num_train: int = 200, num_test: int = 200, seed: int = 0, only_new: bool = False) -> None:
    """
    `train/` and `test/` with `images/` and `labels/`, and `names.txt`; what is there already is left as it is.

    Raises:
        ValueError: if `folder` holds files that nothing here wrote.
    """
    counts = {"train": num_train, "test": num_test}
    run_stage(folder, {**counts, "seed": seed, "only_new": only_new}, lambda: _write(folder, counts, seed, only_new))


def _write(folder: Path, counts: dict[str, int], seed: int, only_new: bool) -> None:
    (folder / "names.txt").write_text("\n".join(names(only_new)) + "\n")
    kinds = () if only_new else ("seen",)
    for split, count in counts.items():
        for name in ("images", "labels"):
            (folder / split / name).mkdir(parents=True)
        for index, scene in enumerate(new_scenes(split, count, seed, kinds)):
            Image.fromarray(scene.image).save(folder / split / "images" / f"{index:04d}.png", compress_level=1)
            Image.fromarray(label_map(scene, only_new)).save(folder / split / "labels" / f"{index:04d}.png")


def main(arguments: list[str] | None = None) -> None:
    """Writes the pictures and their label maps."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_train", type=int, default=200)
    parser.add_argument("--num_test", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only_new", action="store_true", help="Without the world's other things.")
    options = vars(parser.parse_args(arguments))
    write(options.pop("out"), **options)


if __name__ == "__main__":
    main()
