"""What the pages' examples take as given: photographs, own data, a data set's folder, a released checkpoint.

Small stand-ins, made in the folder where a page runs. A block asks for one with `<!-- test: given NAME -->`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reference_tools import original_state
from text_tools import load_tokenizer

from maftplus.shapes.scenes import export_coco_panoptic, scenes

TINY = Path(__file__).parent / "fixtures" / "tiny"


def write_photos(folder: Path) -> None:
    """`photos/`: two scenes."""
    (folder / "photos").mkdir(exist_ok=True)
    for index, scene in enumerate(scenes("test", 2, seed=1)):
        Image.fromarray(scene.image).save(folder / "photos" / f"{index}.png")


def write_scene(folder: Path) -> None:
    """`out/demo/scene.png`, as `make demo` leaves it."""
    from maftplus.shapes.demo import find_scene

    (folder / "out" / "demo").mkdir(parents=True, exist_ok=True)
    Image.fromarray(find_scene().image).save(folder / "out" / "demo" / "scene.png")


def write_sam(folder: Path) -> None:
    """`sam.json`: the masks of `out/demo/scene.png`, as Segment Anything's automatic generator writes them."""
    from maftplus.shapes.demo import find_scene

    scene = find_scene()
    masks = [scene.segmentation == segment["id"] for segment in scene.segments_info]
    records = [{"segmentation": run_lengths(mask), "area": int(mask.sum()), "predicted_iou": 0.98} for mask in masks]
    (folder / "sam.json").write_text(json.dumps(records))


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed ones: column by column, 0 first."""
    pixels = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def write_large(folder: Path) -> None:
    """`large.png`: a scene of 320 x 256 pixels."""
    (scene,) = scenes("test", 1, seed=4, size=320, num_things=(24, 24))
    Image.fromarray(scene.image[:256]).save(folder / "large.png")


def write_my_data(folder: Path) -> None:
    """`my_data/`: pictures and label maps of one stem, two for training and one to measure, and the classes' names."""
    labels = np.repeat(np.arange(3), 32)[:, None].repeat(128, 1).astype(np.uint8)
    for split, count in (("train", 2), ("val", 1)):
        for name in ("images", "labels"):
            (folder / "my_data" / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / "my_data" / split
            Image.fromarray(np.stack([labels * 60 + index] * 3, axis=-1)).save(path / "images" / f"{index}.jpg")
            Image.fromarray(labels).save(path / "labels" / f"{index}.png")
    (folder / "my_data" / "names.txt").write_text("cat, kitten\ngrass\nsky\n")


def write_scenes(folder: Path) -> None:
    """`my_scenes/`: two pictures in COCO's panoptic format, 65 and 128 pixels."""
    export_coco_panoptic(folder / "my_scenes", "validation", 2)


def write_datasets(folder: Path) -> None:
    """`datasets/`: two validation pictures of ADE20K in its own layout."""
    root = folder / "datasets" / "ADEChallengeData2016"
    for name in ("images/validation", "annotations/validation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes("test", 2, seed=2)):
        Image.fromarray(scene.image).save(root / "images" / "validation" / f"{index}.jpg")
        Image.fromarray(scene.segmentation).save(root / "annotations" / "validation" / f"{index}.png")


def write_checkpoint(folder: Path) -> None:
    """`maftp_l.pth` (a tiny MAFT+ under the released names), `heads.json` that it needs, and `tokenizer/`."""
    shapes = json.loads((TINY / "tiny_a_semantic_keys.json").read_text())
    settings = json.loads((TINY / "tiny_a_semantic_config.json").read_text())
    torch.save({"model": original_state({name: shape for name, (shape, _) in shapes.items()})}, folder / "maftp_l.pth")
    text = {"num_attention_heads": settings["text_heads"]}
    heads = {"num_attention_heads": settings["nheads"], "clip_config": {"text_config": text}}
    (folder / "heads.json").write_text(json.dumps(heads))
    load_tokenizer().save_pretrained(folder / "tokenizer")


GIVEN = {
    "photos": write_photos,
    "scene": write_scene,
    "sam": write_sam,
    "large": write_large,
    "my_data": write_my_data,
    "my_scenes": write_scenes,
    "datasets": write_datasets,
    "checkpoint": write_checkpoint,
}
