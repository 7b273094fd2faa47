"""See it work: a scene asked for in words that training never saw together, then 100 fresh scenes measured.

    make demo          # or: python train/demo.py --out out/demo

Nothing is downloaded: the model is `models/shapes`, the scenes are drawn (`train/shapes.py`).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import pipeline

from maftplus.train.shapes import CLASSES, KINDS, Scene, scenes
from maftplus.train.shapes_evaluation import evaluate, format_table
from maftplus.visualization_maftplus import overlay_image, segments_from_pipeline

MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes"
DEMO_SEED = 20  # of the demo's scenes; they belong to the test split, which no choice has seen


def find_scene() -> Scene:
    """The first scene that shows pairs of all three kinds."""
    for scene in scenes("test", 1000, seed=DEMO_SEED):
        if {CLASSES[s["category_id"]].kind for s in scene.segments_info} == set(KINDS):
            return scene
    raise RuntimeError("No scene with pairs of all three kinds among 1000.")


def words_for(scene: Scene) -> tuple[list[str], list[str]]:
    """What to ask for: everything in the scene by its last synonym, then two pairs that it lacks; and the stuff."""
    present = list(dict.fromkeys(s["category_id"] for s in scene.segments_info))
    absent = [index for index, entry in enumerate(CLASSES) if index not in present and entry.isthing]
    words = [CLASSES[index].names[-1] for index in [*present, absent[0], absent[-1]]]
    return words, [CLASSES[index].names[-1] for index in present if not CLASSES[index].isthing]


def show_scene(segmenter, out: Path) -> None:
    """One scene, asked for in words: `scene.png`, `overlay.png` and a line a segment."""
    scene = find_scene()
    words, stuff = words_for(scene)
    kinds = {name: entry.kind for entry in CLASSES for name in entry.names}
    print("Asked for:", ", ".join(f"{word} ({kinds[word]})" if word not in stuff else word for word in words))
    picture = Image.fromarray(scene.image)
    results = segmenter(picture, candidate_labels=words, stuff_labels=stuff, subtask="panoptic")
    for result in sorted(results, key=lambda one: -one["score"]):
        share = np.mean(np.asarray(result["mask"]) > 0)
        print(f"  {result['label']:<16} score {result['score']:.2f}   {share:6.1%} of the picture")
    missing = [word for word in words if word not in {result["label"] for result in results}]
    print("Not found:", ", ".join(missing) or "nothing")
    picture.resize((512, 512), Image.Resampling.BICUBIC).save(out / "scene.png")
    stuff_ids = [index for index, word in enumerate(words) if word in stuff]
    overlay_image(picture, segments_from_pipeline(results, stuff_ids)).save(out / "overlay.png")
    print(f"Wrote {out / 'scene.png'} and {out / 'overlay.png'}\n")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="A scene of the shapes world asked for in words, then 100 measured.")
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--num_scenes", type=int, default=100)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    segmenter = pipeline("image-segmentation", model=options.model, trust_remote_code=True)
    show_scene(segmenter, options.out)
    start = time.time()
    figures = evaluate(segmenter.model, segmenter.processor, options.num_scenes, split="test", seed=DEMO_SEED)
    print(
        f"{options.num_scenes} fresh scenes, all 42 names as the vocabulary ({time.time() - start:.0f} s), in percent:"
    )
    print(format_table(figures))


if __name__ == "__main__":
    main()
