"""The whole chain of the shapes model in one command: captions, CLIP, proposals, MAFT+, words, half precision.

    python shapes/make_model.py --out models/shapes --link_code [--work runs/shapes_model] [--seed 0]
    python shapes/evaluate.py models/shapes

Steps that have already left their result in `--work` are not repeated. Numbers of steps are fixed in the recipes
(`shapes/recipes/shapes_clip.yaml`, `shapes_small.yaml`, `shapes.yaml`, `shapes_words.yaml`), not minutes.
"""

import argparse
import json
import logging
import os
import re
from pathlib import Path

import torch
from transformers import set_seed

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import all_names
from maftplus.shapes.pretrain import load_recipe, pretrain
from maftplus.shapes.scenes import CLASS_NAMES, STUFF_IDS, class_ids, export_coco_panoptic
from maftplus.shapes.vocabulary_dropout import VocabularyDropout
from maftplus.train.run import build_trainer, parse_arguments

logger = logging.getLogger("maftplus.train")

RECIPES = Path(__file__).parent / "recipes"
RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)
REPOSITORY = Path(__file__).resolve().parent.parent
SMALL_LAYOUT = {"size": 64, "num_things": (1, 2), "num_regions": (1, 2)}


def make(work: Path, seed: int = 0, num_small: int = 12000, num_whole: int = 6000) -> Path:
    """Everything up to the trained model, whose folder is returned; `seed` drives scenes, weights and order."""
    clip, small, whole, words = (work / name for name in ("clip", "small", "maftplus", "words"))
    if not (clip / "config.json").is_file():
        pretrain(load_recipe(RECIPES / "shapes_clip.yaml", [f"seed={seed}"]), clip)
    if not (small / "config.json").is_file():
        data = export(work / "small_data", num_small, seed, SMALL_LAYOUT)
        train("shapes_small.yaml", small, data, seed, "--clip_name_or_path", str(clip), dropped=0.0)
    if not (whole / "config.json").is_file():
        data = export(work / "data", num_whole, seed, {})
        paths = ["--model_name_or_path", str(small), "--teacher_name_or_path", str(clip)]
        train("shapes.yaml", whole, data, seed, *paths)
    if not (words / "config.json").is_file():
        data = export(work / "data", num_whole, seed, {})
        train("shapes_words.yaml", words, data, seed + 7, "--model_name_or_path", str(whole), dropped=0.8)
    return words


def export(folder: Path, num_scenes: int, seed: int, layout: dict) -> Path:
    """Training scenes with seen pairs only, for `train/run.py`."""
    export_coco_panoptic(folder, "train", num_scenes, ("seen",), seed, **layout)
    return folder


def train(recipe: str, output: Path, data: Path, seed: int, *options: str, dropped: float = 0.5) -> None:
    """`train/run.py` with a recipe of this folder on exported scenes; `dropped` is `VocabularyDropout`'s share."""
    paths = {
        "output_dir": output,
        "panoptic_json": data / "panoptic.json",
        "image_folder": data / "images",
        "label_folder": data / "panoptic",
        "vocabulary": data / "vocabulary.json",
        "seed": seed,
    }
    arguments = [part for name, value in paths.items() for part in (f"--{name}", str(value))]
    model_args, data_args, args = parse_arguments([str(RECIPES / recipe), "--do_train", *arguments, *options])
    set_seed(args.seed)
    trainer = build_trainer(model_args, data_args, args)
    classes = torch.tensor(trainer.model.config.prompt_class_ids)
    words = trainer.model.vocabulary_embeds, classes
    trainer.data_collator = VocabularyDropout(trainer.data_collator, *words, share=dropped)
    trainer.train()
    if trainer.sigterm.received:  # a saved model would pass for a finished one when the chain is run again
        raise SystemExit(f"Stopped by SIGTERM; {output} holds a checkpoint, not a finished model.")
    trainer.save_model()


def publish(trained: Path, out: Path) -> None:
    """
    The trained model with all names as its stored vocabulary, weights in half precision, computing in float32.

    What the world knows of seen and unseen goes into the processor (`training_classes`).
    """
    model = MaftPlusForUniversalSegmentation.from_pretrained(trained).eval()
    processor = MaftPlusProcessor.from_pretrained(trained)
    names = all_names()
    processor.training_classes = [names[index] for index in class_ids("seen")]
    model.set_vocabulary(processor, names, stuff=[CLASS_NAMES[index] for index in STUFF_IDS])
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    path = out / "config.json"
    path.write_text(json.dumps(_in_float32(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")


def link_code(folder: Path) -> None:
    """Puts links to the repository's modules beside the weights, not copies, so that they never fall behind."""
    for path in folder.glob("*.py"):
        path.unlink()
    for name in _modules(["modeling_maftplus", "processing_maftplus", "image_processing_maftplus"]):
        (folder / f"{name}.py").symlink_to(os.path.relpath(REPOSITORY / f"{name}.py", folder.resolve()))


def _modules(entries: list[str]) -> list[str]:
    """These modules of the repository and all that they import from beside them."""
    found = list(entries)
    for name in found:  # grows while it is read
        text = (REPOSITORY / f"{name}.py").read_text()
        found += [other for other in RELATIVE_IMPORT.findall(text) if other not in found]
    return sorted(set(found))


def _in_float32(config: dict) -> dict:
    """Every `dtype` of a configuration and its parts: half-precision files load as half unless it says otherwise."""
    for name, value in config.items():
        if isinstance(value, dict):
            _in_float32(value)
        elif name == "dtype":
            config[name] = "float32"
    return config


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Makes the small model of the shapes world from nothing.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/shapes_model"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--link_code", action="store_true", help="Code as links into this repository, not as copies.")
    parser.add_argument("--only_link", action="store_true", help="Nothing but that: after a module came or went.")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.num_threads)
    if not options.only_link:
        publish(make(options.work, options.seed), options.out)
    if options.link_code or options.only_link:
        link_code(options.out)


if __name__ == "__main__":
    main()
