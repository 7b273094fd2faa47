"""The whole chain of the shapes model in one command: captions, CLIP, proposals, MAFT+, words, half precision.

    python shapes/make_model.py --out models/shapes --link_code [--work runs/shapes_model] [--seed 0]
    python shapes/evaluate.py models/shapes

Stages that have finished in `--work` with the same seed and recipes are not repeated (`stages.py`). Numbers of steps
are fixed in the recipes (`shapes/recipes/shapes_clip.yaml`, `shapes_small.yaml`, `shapes.yaml`, `shapes_words.yaml`),
not minutes.
"""

import argparse
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import set_seed

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import all_names
from maftplus.shapes.pretrain import load_recipe, pretrain_once
from maftplus.shapes.scenes import CLASS_NAMES, STUFF_IDS, class_ids, export_coco_panoptic
from maftplus.shapes.stages import finished_settings, run_stage, train_to_the_end
from maftplus.shapes.vocabulary_dropout import VocabularyDropout
from maftplus.train.run import build_trainer, parse_arguments

logger = logging.getLogger("maftplus.shapes")

RECIPES = Path(__file__).parent / "recipes"
RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)
REPOSITORY = Path(__file__).resolve().parent.parent
SMALL_LAYOUT = {"size": 64, "num_things": (1, 2), "num_regions": (1, 2)}


def make(work: Path, seed: int = 0, num_small: int = 12000, num_whole: int = 6000) -> Path:
    """Everything up to the trained model, whose folder is returned; `seed` drives scenes, weights and order."""
    clip = make_clip(work, seed)
    small = make_small(work, seed, clip, num_small)
    data = export(work / "data", num_whole, seed, {})
    start = {"model_name_or_path": work / "small", "teacher_name_or_path": work / "clip"}
    whole = train("shapes.yaml", work / "maftplus", data, seed, start, small)
    start = {"model_name_or_path": work / "maftplus"}
    train("shapes_words.yaml", work / "words", data, seed + 7, start, whole, dropped=0.8)
    return work / "words"


def make_clip(work: Path, seed: int) -> dict[str, Any]:
    """The CLIP of a seed, in `clip` of the work folder; returns the stage's settings."""
    recipe = load_recipe(RECIPES / "shapes_clip.yaml", [f"seed={seed}"])
    return pretrain_once(recipe, work / "clip")


def make_small(work: Path, seed: int, clip: dict[str, Any], num_scenes: int = 12000) -> dict[str, Any]:
    """The segmenter on that CLIP, in `small`; `clip` and what is returned are settings of the stages."""
    data = export(work / "small_data", num_scenes, seed, SMALL_LAYOUT)
    start = {"clip_name_or_path": work / "clip"}
    return train("shapes_small.yaml", work / "small", data, seed, start, clip, dropped=0.0)


def export(folder: Path, num_scenes: int, seed: int, layout: dict) -> Path:
    """Training scenes with seen pairs only, for `train/run.py`; returns `folder`."""
    export_coco_panoptic(folder, "train", num_scenes, ("seen",), seed, **layout)
    return folder


def train(
    recipe: str,
    output: Path,
    data: Path,
    seed: int,
    start: dict[str, Path],
    after: dict[str, Any],
    dropped: float = 0.5,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    One stage: `train/run.py` with a recipe of this folder on exported scenes.

    Args:
        start: Options of `train/run.py` that name the folders to start from.
        after: Settings of the stages in these folders; the result depends on them, not on where they lie.
        dropped: Share of the batches that ask for a part of the words only (`VocabularyDropout`).
        options: Further options of `train/run.py`; they override the recipe.

    Returns: the settings of this stage, for those that start from it.
    """
    options = options or {}
    settings = {
        "recipe": yaml.safe_load((RECIPES / recipe).read_text()),
        "options": options,
        "seed": seed,
        "scenes": finished_settings(data),
        "dropped": dropped,
        "after": after,
    }
    given = {**_data_options(data), **start, **options, "output_dir": output, "seed": seed}
    return run_stage(output, settings, lambda: _train(recipe, given, dropped))


def _data_options(data: Path) -> dict[str, Path]:
    return {
        "panoptic_json": data / "panoptic.json",
        "image_folder": data / "images",
        "label_folder": data / "panoptic",
        "vocabulary": data / "vocabulary.json",
    }


def _train(recipe: str, options: dict[str, Any], dropped: float) -> None:
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    model_args, data_args, args = parse_arguments([str(RECIPES / recipe), "--do_train", *given])
    set_seed(args.seed)
    trainer = build_trainer(model_args, data_args, args)
    words = trainer.model.vocabulary_embeds, torch.tensor(trainer.model.config.prompt_class_ids)
    trainer.data_collator = VocabularyDropout(trainer.data_collator, *words, share=dropped)
    train_to_the_end(trainer)


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
    remove_code(out)  # `save_pretrained` copies it, and fails where a copy would replace a link to itself
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    path = out / "config.json"
    path.write_text(json.dumps(_in_float32(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")


def link_code(folder: Path) -> None:
    """
    Puts links to the repository's modules beside the weights, not copies, so that they never fall behind.

    Raises:
        ValueError: as `check_code`.
    """
    remove_code(folder)
    for name in _code_files():
        (folder / name).symlink_to(os.path.relpath(REPOSITORY / name, folder.resolve()))


def remove_code(folder: Path) -> None:
    """
    Removes links into this repository, and copies of its modules that `save_pretrained` made, letter for letter.

    Raises:
        ValueError: as `check_code`.
    """
    check_code(folder)
    for path in folder.glob("*.py"):
        if _is_ours(path):
            path.unlink()


def check_code(folder: Path) -> None:
    """Raises ValueError if a folder is the repository, or holds another file of a module's name than we made."""
    if folder.resolve() == REPOSITORY:
        raise ValueError(f"{folder} is this repository itself; give the folder of a saved model.")
    for path in map(folder.joinpath, _code_files()):
        if path.exists() and not _is_ours(path):
            raise ValueError(f"{path} is not a copy of this repository's module; move it, or give another folder.")


def _code_files() -> list[str]:
    return [f"{name}.py" for name in _modules(["modeling_maftplus", "processing_maftplus"])]


def _is_ours(path: Path) -> bool:
    """Whether a file is a link to a root module of this repository (that may be gone), or an exact copy of one."""
    if path.is_symlink():
        return path.resolve().parent == REPOSITORY
    module = REPOSITORY / path.name
    return module.is_file() and module.read_bytes() == path.read_bytes()


def _modules(entries: list[str]) -> list[str]:
    """These modules of the repository and all that they import from beside them."""
    names = list(entries)
    for name in names:  # grows while it is read
        text = (REPOSITORY / f"{name}.py").read_text()
        names += [other for other in RELATIVE_IMPORT.findall(text) if other not in names]
    return sorted(set(names))


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
    check_code(options.out)  # before the hour, not after it
    if not options.only_link:
        publish(make(options.work, options.seed), options.out)
    if options.link_code or options.only_link:
        link_code(options.out)


if __name__ == "__main__":
    main()
