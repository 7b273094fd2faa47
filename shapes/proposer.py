"""The frozen mask proposer that MAFT stands on, in the shapes world: a small Mask2Former of transformers.

    python shapes/proposer.py shapes/recipes/shapes_proposer.yaml --data runs/shapes_data \\
        --clip runs/shapes_clip --out runs/shapes_proposer [max_steps=100 ...]

It learns masks, not words: every segment of the training scenes (seen pairs alone) has the one class "object", so that
its void score means the same for pairs it has never met. Its trunk starts from a pre-trained ConvNeXt CLIP, whose
stages it continues by one. `--data` is a folder of `scenes.export_coco_panoptic`; pictures are normalised as CLIP's.

Sources: Mask2Former, arXiv 2112.01527; what MAFT asks of a proposer, arXiv 2310.00240.
Shapes: B images, Q queries, N segments of a scene.
"""

import argparse
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Trainer, TrainingArguments, set_seed

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.shapes.pretrain import load_recipe
from maftplus.shapes.scenes import CLASSES, scenes
from maftplus.shapes.stages import finished_settings, run_stage
from maftplus.train.data.augmentation import AugmentedDataset, TrainingCollator, build_transforms, void_value
from maftplus.train.data.registry import load_coco_panoptic
from maftplus.vocabularies.files import load_vocabulary_file

logger = logging.getLogger("maftplus.shapes")


def build_proposer(recipe: dict, clip: MaftPlusCLIPModel | None = None) -> Mask2FormerForUniversalSegmentation:
    """Random weights, but for the stages of the trunk that `clip`'s ConvNeXt has too."""
    config = Mask2FormerConfig(
        backbone_config=recipe["backbone_config"], id2label={0: "object"}, **recipe["model_config"]
    )
    proposer = Mask2FormerForUniversalSegmentation(config)
    if clip is not None:
        trunk = proposer.model.pixel_level_module.encoder
        shared = {name: value for name, value in clip.vision_model.state_dict().items() if name in trunk.state_dict()}
        trunk.load_state_dict(shared, strict=False)
        logger.info("%d of the trunk's %d tensors are CLIP's", len(shared), len(trunk.state_dict()))
    return proposer


class ObjectCollator:
    """A training collator whose segments all have class 0, and whose batches hold what a Mask2Former takes."""

    def __init__(self, collator: TrainingCollator):
        self.collator = collator

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(samples)
        return {
            "pixel_values": batch["pixel_values"],
            "mask_labels": [masks.float() for masks in batch["mask_labels"]],
            "class_labels": [torch.zeros_like(ids) for ids in batch["class_labels"]],
        }


def train_proposer_once(recipe: dict, data: Path, out: Path, clip: Path | None = None) -> dict[str, Any]:
    """`train_proposer`, unless `out` is finished with these settings; returns the settings of `run_stage`."""
    start = None if clip is None else finished_settings(clip)
    settings = {"recipe": recipe, "scenes": finished_settings(data), "clip": start}
    return run_stage(out, settings, partial(train_proposer, recipe, data, out, clip))


def train_proposer(
    recipe: dict, data: Path, out: Path, clip: Path | None = None
) -> Mask2FormerForUniversalSegmentation:
    """Trains a proposer as the recipe says, on the scenes in `data`, and saves it in `out`."""
    training = {name: value for name, value in recipe.items() if name not in ("backbone_config", "model_config")}
    arguments = TrainingArguments(
        str(out), use_cpu=True, save_strategy="no", report_to=[], remove_unused_columns=False, **training
    )
    set_seed(arguments.seed)
    vocabulary = load_vocabulary_file(data / "vocabulary.json")
    dataset = load_coco_panoptic(data / "panoptic.json", data / "images", data / "panoptic", vocabulary)
    void = void_value(dataset)
    flips = build_transforms([{"name": "random_flip"}], ignore_index=void)
    collator = TrainingCollator(MaftPlusImageProcessorPil(), vocabulary.num_labels, void)
    trainer = Trainer(
        model=build_proposer(recipe, None if clip is None else MaftPlusCLIPModel.from_pretrained(clip)),
        args=arguments,
        train_dataset=AugmentedDataset(dataset, flips, seed=arguments.seed),
        data_collator=ObjectCollator(collator),
    )
    trainer.train()
    trainer.save_model()
    return trainer.model.eval()


@torch.no_grad()
def mask_recall(
    proposer: Mask2FormerForUniversalSegmentation, num_scenes: int, split: str = "validation", seed: int = 5
) -> dict[str, float]:
    """
    How well the best of an image's masks covers each segment, whatever class either has.

    Returns: over all segments the mean best IoU and the share with at least 0.5 ("recall_50") and 0.75; and the mean
    best IoU over stuff and over the things of each kind.
    """
    processor, best = MaftPlusImageProcessorPil(), {"iou": []}
    for scene in scenes(split, num_scenes, seed=seed):
        pixels = processor(images=scene.image, do_resize=False, return_tensors="pt")["pixel_values"]
        masks = proposer(pixel_values=pixels).masks_queries_logits
        inside = F.interpolate(masks, size=scene.segmentation.shape, mode="bilinear")[0] > 0
        ids = torch.tensor([segment["id"] for segment in scene.segments_info])
        truth = torch.from_numpy(scene.segmentation)[None] == ids[:, None, None]
        for segment, iou in zip(scene.segments_info, _best_iou(truth, inside).tolist()):
            entry = CLASSES[segment["category_id"]]
            for key in ("iou", entry.kind if entry.isthing else "stuff"):
                best.setdefault(key, []).append(iou)
    all_iou = torch.tensor(best["iou"])
    recall = {f"recall_{level}": float((all_iou >= level / 100).float().mean()) for level in (50, 75)}
    return {**{name: sum(values) / len(values) for name, values in best.items()}, **recall}


def _best_iou(truth: Tensor, masks: Tensor) -> Tensor:
    """Largest IoU of each of N segments (N, H, W) with any of Q masks (Q, H, W), both bool: (N,)."""
    truth, masks = truth.flatten(1).float(), masks.flatten(1).float()
    overlap = truth @ masks.T
    union = truth.sum(1)[:, None] + masks.sum(1)[None] - overlap
    return (overlap / union).amax(1)


def main(arguments: list[str] | None = None) -> None:
    """Trains the mask proposer of the shapes world and prints how well its masks cover validation scenes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    parser.add_argument("--data", type=Path, required=True, help="Exported scenes (shapes/scenes.py).")
    parser.add_argument("--clip", type=Path, help="A ConvNeXt CLIP to start the trunk from (shapes/pretrain.py).")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_scenes", type=int, default=200, help="Validation scenes that it is judged on.")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.num_threads)
    recipe = load_recipe(options.recipe, options.overrides)
    train_proposer_once(recipe, options.data, options.out, options.clip)
    proposer = Mask2FormerForUniversalSegmentation.from_pretrained(options.out).eval()
    figures = mask_recall(proposer, options.num_scenes)
    typer.echo(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
