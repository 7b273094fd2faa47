"""Pre-trains the small CLIP of the shapes world on captions, and its tokenizer: no masks, no class ids reach an image.

    python shapes/pretrain.py shapes/recipes/shapes_clip.yaml --out runs/shapes_clip [name=value ...]
    python shapes/pretrain.py shapes/recipes/shapes_clip_vit.yaml --teacher runs/shapes_clip --out runs/shapes_clip_vit

What is learned from what: `objective.py`. A folder that is finished with these settings is left as it is.
Shapes: B images, Q masks, D joint space.
"""

import argparse
import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from transformers import CLIPTokenizer

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig
from maftplus.shapes.captions import caption_scene
from maftplus.shapes.objective import CaptionedScenes, Normalise, Objective, VitObjective, make_batch
from maftplus.shapes.scenes import CLASSES, class_ids, scenes
from maftplus.shapes.stages import finished_settings, run_stage
from maftplus.shapes.tokenizer import train_tokenizer
from maftplus.shapes.vit import build_vit_clip, load_teacher, pool_patches, prepare_tower
from maftplus.words_maftplus import VILD_TEMPLATES

logger = logging.getLogger("maftplus.shapes")

# --------------------------------------------------------------------------------------------------------- training


def build_clip(tokenizer, config: dict) -> MaftPlusCLIPModel:
    """A CLIP of the recipe's sizes with random weights, its token ids taken from the tokenizer."""
    text = dict(config["text_config"], vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length)
    text.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return MaftPlusCLIPModel(MaftPlusCLIPConfig(**{**config, "text_config": text}))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; vectors, embeddings and scalars do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, num_steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def train_stage(
    objective: Objective, data: CaptionedScenes, stage: dict, normalise: Normalise, seed: int, judged_on: dict
) -> None:
    """Runs one stage of the recipe: a fixed number of steps on scenes of one layout; a ViT is `judged_on` another."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(parameter_groups(objective.trained, stage["weight_decay"]), betas=(0.9, 0.98))
    objective.model.train()
    options = {name: stage[name] for name in ("location_share",) if name in stage}  # a ViT's objective has none
    start = time.time()
    for step in range(stage["num_steps"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, stage["num_steps"], stage["warmup"], stage["learning_rate"])
        rows = rng.choice(len(data.images), stage["batch_size"], replace=False)
        loss, losses = objective(make_batch(data, rows, normalise, rng), **options)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.trained.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            logger.info("step %d loss %.3f %s (%.0f s)", step + 1, loss.item(), parts, time.time() - start)
        if (step + 1) % 250 == 0:  # a ViT's window of positions is for training; it is judged on whole scenes
            layout = stage["layout"] if objective.model.config.takes_masks_by_pooling else judged_on
            logger.info("mask accuracy %s", mask_accuracy(objective, normalise, 100, 5, **layout))
            objective.model.train()


# ------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def class_embeddings(objective: Objective) -> Tensor:
    """(K, D): mean over templates of every class's canonical name, normalised."""
    texts = [template.format(entry.names[0]) for entry in CLASSES for template in VILD_TEMPLATES]
    embeds = objective.encode_text(texts).view(len(CLASSES), len(VILD_TEMPLATES), -1)
    return F.normalize(embeds.mean(1), dim=-1)


@torch.no_grad()
def mask_accuracy(
    objective: Objective, normalise: Normalise, num_scenes: int, seed: int, split: str = "validation", **layout
) -> dict[str, float]:
    """
    Share of ground-truth masks whose embeddings are nearest to their own name, among the names of all classes.

    Returns: the share over all masks ("all"), over stuff, over the things of each kind, and "spread": how far a
    class's probability differs between the masks of its picture (largest less smallest, mean over the classes that
    are there). Of a ViT also "pooled" and "pooled_spread": the same over all masks by `pool_patches`.
    """
    model = objective.model.eval()
    text = class_embeddings(objective)
    scale = model.logit_scale.exp().clamp(max=100)
    values: dict[str, list[float]] = {"all": []}
    for scene in scenes(split, num_scenes, seed=seed, **layout):
        ids = [segment["id"] for segment in scene.segments_info]
        truth = torch.tensor([segment["category_id"] for segment in scene.segments_info])
        masks = torch.stack([torch.from_numpy(scene.segmentation == i) for i in ids])[None]
        vision = model.encode_image(normalise(scene.image[None]))
        scores = _class_scores(model.embed_masks(vision, masks), text)
        hits = scores.argmax(-1) == truth
        for index, hit in zip(truth, hits.tolist()):
            entry = CLASSES[index]
            for key in ("all", entry.kind if entry.isthing else "stuff"):
                values.setdefault(key, []).append(hit)
        values.setdefault("spread", []).extend(_spread(scores * scale, truth))
        if not model.config.takes_masks_by_pooling:
            scores = _class_scores(pool_patches(model, vision, masks), text)
            values.setdefault("pooled", []).extend((scores.argmax(-1) == truth).tolist())
            values.setdefault("pooled_spread", []).extend(_spread(scores * scale, truth))
    return {key: round(float(np.mean(found)), 4) for key, found in values.items()}


def _class_scores(embeds: Tensor, text: Tensor) -> Tensor:
    """Cosines of the masks of one picture with the classes, (1, Q, D) and (K, D) -> (Q, K)."""
    return (F.normalize(embeds, dim=-1) @ text.T)[0]


def _spread(logits: Tensor, truth: Tensor) -> list[float]:
    """Largest less smallest probability over the masks (Q, K), of each class that the picture shows."""
    if len(truth) < 2:  # one mask differs from none
        return []
    probabilities = logits.softmax(-1)[:, truth.unique()]
    return (probabilities.amax(0) - probabilities.amin(0)).tolist()


@torch.no_grad()
def retrieval(objective: Objective, normalise: Normalise, num_scenes: int, seed: int, split: str, **layout) -> float:
    """Share of scenes nearest to their own caption, which names everything, and of captions nearest to their scene."""
    drawn = list(scenes(split, num_scenes, ("seen", "unseen"), seed, **layout))
    captions = [caption_scene(scene, np.random.default_rng((9, seed, i))).text for i, scene in enumerate(drawn)]
    model = objective.model.eval()
    pictures = model.embed_image(model.encode_image(normalise(np.stack([scene.image for scene in drawn]))))
    scores = F.normalize(pictures, dim=-1) @ objective.encode_text(captions).T
    right = torch.arange(len(drawn))
    return float(((scores.argmax(0) == right).float() + (scores.argmax(1) == right).float()).mean() / 2)


def pretrain_once(recipe: dict, out: Path, first_stage: int = 0, teacher: Path | None = None) -> dict[str, Any]:
    """`pretrain`, unless `out` is finished with this recipe and teacher; returns the settings of `run_stage`."""
    settings = {"recipe": recipe, "teacher": None if teacher is None else finished_settings(teacher)}
    make = partial(pretrain, recipe, out, first_stage, teacher)
    return run_stage(out, settings, make, goes_on=first_stage > 0)


def pretrain(recipe: dict, out: Path, first_stage: int = 0, teacher: Path | None = None) -> MaftPlusCLIPModel:
    """
    Tokenizer and random weights (or, from `first_stage` on, what `out` holds), then the stages; all in `out`.

    A recipe of a ViT needs a `teacher`, whose tokenizer it takes over.
    """
    torch.manual_seed(recipe["seed"])
    make = _make_objective if teacher is None else partial(_make_vit_objective, teacher=teacher)
    objective = make(recipe, out if first_stage else None)
    model, tokenizer = objective.model, objective.tokenizer
    normalise = Normalise(recipe["image_mean"], recipe["image_std"])
    judged_on = recipe.get("judged_on", {})  # the layout of scenes, by default whole ones
    natural_captions = recipe.get("natural_captions", False)
    logger.info("%d parameters", sum(p.numel() for p in model.parameters()))
    for index, stage in enumerate(recipe["stages"]):
        if index < first_stage:
            continue
        seed = recipe["seed"] * 10 + index
        if index:  # the first goes on from the random weights; the others start alike after a stop
            torch.manual_seed(recipe["seed"] + index)
        data = CaptionedScenes.draw(stage["num_scenes"], seed, natural_captions, **stage["layout"])
        logger.info("stage %d: %d scenes drawn", index, stage["num_scenes"])
        train_stage(objective, data, stage, normalise, seed, judged_on)
        logger.info("mask accuracy, whole scenes: %s", mask_accuracy(objective, normalise, 200, 5, **judged_on))
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return model


def _make_objective(recipe: dict, start: Path | None) -> Objective:
    if start is not None:
        model, tokenizer = MaftPlusCLIPModel.from_pretrained(start), CLIPTokenizer.from_pretrained(start)
    else:
        tokenizer = train_tokenizer(_tokenizer_corpus(recipe["seed"]), recipe["vocabulary_size"])
        model = build_clip(tokenizer, recipe["clip_config"])
        if not model.config.takes_masks_by_pooling:
            prepare_tower(model.vision_model)
    return Objective(model, tokenizer, recipe["loss_weights"], recipe["use_bfloat16"])


def _make_vit_objective(recipe: dict, start: Path | None, teacher: Path) -> VitObjective:
    guide, tokenizer = load_teacher(teacher)
    model = build_vit_clip(recipe["clip_config"], guide)
    if start is not None:
        model.load_state_dict(MaftPlusCLIPModel.from_pretrained(start).state_dict())
    return VitObjective(model, tokenizer, recipe["loss_weights"], recipe["use_bfloat16"], guide)


def _tokenizer_corpus(seed: int) -> list[str]:
    """Captions of a few thousand scenes, and every name in every template."""
    captions = [caption.text for caption in CaptionedScenes.draw(2000, seed + 1000, size=64).captions]
    names = [name for index in class_ids("seen", "unseen") for name in CLASSES[index].names]
    return captions + [template.format(name) for template in VILD_TEMPLATES for name in names]


def load_recipe(path: Path, overrides: list[str]) -> dict:
    """The recipe's dictionary with `name=value` put over its top level (values are read as YAML)."""
    recipe = yaml.safe_load(path.read_text())
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in recipe:
            raise ValueError(f"`{name}` is not in {path}; it has {', '.join(recipe)}.")
        recipe[name] = yaml.safe_load(value)
    return recipe


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-trains the small CLIP of the shapes world on captions.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first_stage", type=int, default=0, help="Go on from this stage with the model in --out.")
    parser.add_argument("--teacher", type=Path, help="For a ViT: the ConvNeXt CLIP to learn from.")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.num_threads)
    pretrain_once(load_recipe(options.recipe, options.overrides), options.out, options.first_stage, options.teacher)


if __name__ == "__main__":
    main()
