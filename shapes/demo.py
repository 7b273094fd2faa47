"""See it work: a scene asked for in words that training never saw together, then 100 fresh scenes measured.

    make demo          # or: python shapes/demo.py --out out/demo

Nothing is downloaded: the model is `models/shapes`, the scenes are drawn (`shapes/scenes.py`).
"""

import argparse
import time
from pathlib import Path

from PIL import Image
from transformers import pipeline

from maftplus.app.tables import print_table
from maftplus.pictures.results import write_results
from maftplus.pictures.segments import segments_from_pipeline
from maftplus.shapes.evaluate import evaluate, format_table
from maftplus.shapes.scenes import CLASSES, KINDS, Scene, scenes

MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes"
DEMO_SEED = 20  # of the 100 scenes that are measured: of the test split, which no choice has seen
SCENE_SEED = 34  # of the scene to look at, one that comes out whole: so do 16 of the 40 scenes of seeds 20 to 59


def find_scene() -> Scene:
    """The first scene that shows pairs of all three kinds."""
    for scene in scenes("test", 1000, seed=SCENE_SEED):
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
    """One scene, asked for in words: `scene.png`, the results that `maftplus segment` writes, and their table."""
    scene = find_scene()
    words, stuff = words_for(scene)
    kinds = {name: entry.kind for entry in CLASSES for name in entry.names}
    print("Asked for:", ", ".join(f"{word} ({kinds[word]})" if word not in stuff else word for word in words))
    picture, path = Image.fromarray(scene.image), out / "scene.png"
    picture.save(path)
    options = {"candidate_labels": words, "stuff_labels": stuff, "subtask": "panoptic"}
    classes, stuff_ids = segmenter.classes_and_stuff(words, stuff)
    segments = segments_from_pipeline(segmenter(picture, **options), stuff_ids)
    about = {"image": str(path), "task": options["subtask"], "labels": classes}
    written = write_results(path.with_suffix(""), picture, segments, about)
    print_table(path, segments, written["overlay"])
    missing = [word for word in words if word not in {segment.label for segment in segments}]
    print("Not found:", ", ".join(missing) or "nothing")
    print(f"Wrote {', '.join(map(str, [path, *written.values()]))}\n")


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
