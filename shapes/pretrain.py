"""Pre-trains the small CLIP of the shapes world on captions, and its tokenizer: no masks, no class ids reach an image.

    python shapes/pretrain.py shapes/recipes/shapes_clip.yaml --out runs/shapes_clip [name=value ...]
    python shapes/pretrain.py shapes/recipes/shapes_clip_vit.yaml --teacher runs/shapes_clip --out runs/shapes_clip_vit

Whole captions against whole pictures teach a bag of words. What binds a colour to a shape is (1) scenes with one thing
first, then whole scenes, and (2) an objective on *dense* features: every phrase looks for its place. For an image and
a phrase, attention over locations pools the similarity (contrasted both ways over the batch) and the features
themselves (the pooled features must be recognised among all phrases), and every location must be explained by the
phrases of its own caption. The last two lean on captions that name everything, which captions of photographs do not;
that two phrases mean the same ("a red ball", "the crimson disc") is read from the world's lexicon, so that no true
pair counts as wrong. How a ViT learns: `shapes_vit.py`.

Related: two-way attention between words and places, arXiv 2111.07783; CLIP, arXiv 2103.00020.
Shapes: B images, L locations, U phrases of a batch, C channels of the trunk's last map, D joint space.
"""

import argparse
import logging
import math
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from transformers import CLIPTokenizer

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig
from maftplus.conversion.tokenizer import build_clip_tokenizer, byte_tokens
from maftplus.shapes.scenes import CLASSES, Caption, caption_scene, class_ids, scenes
from maftplus.shapes.vit import (
    Imitation,
    build_vit_clip,
    hidden_states,
    load_teacher,
    opinion_loss,
    pool_patches,
    teacher_maps,
)
from maftplus.words_maftplus import VILD_TEMPLATES

logger = logging.getLogger(__name__)

ATTENTION_SCALE = 10.0  # of cosines; the learned scale would look at one location, and a mask has many
START, END = "<|startoftext|>", "<|endoftext|>"
WORD = re.compile(r"[a-z]+|[^\sa-z0-9]+")  # as CLIP cuts English before it merges


# -------------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(captions: list[str], vocabulary_size: int = 800, model_max_length: int = 77):
    """
    A byte-pair tokenizer learned from captions, in CLIP's form: it encodes any string, unknown words byte by byte.

    Args:
        captions: Sentences to learn merges from.
        vocabulary_size: At most so many tokens (512 stand for single bytes).
        model_max_length: Longest prompt in tokens, start and end included.
    """
    words = Counter(word for caption in captions for word in WORD.findall(caption.lower()))
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words if word.isascii()}
    merges = []
    while len(merges) < vocabulary_size - 514 and (pair := _most_frequent_pair(spelled, words)):
        merges.append(pair)
        spelled = {word: _merge(parts, pair) for word, parts in spelled.items()}
    tokens = [*byte_tokens(), *("".join(merge) for merge in merges), START, END]
    return build_clip_tokenizer({token: index for index, token in enumerate(tokens)}, merges, model_max_length)


def _most_frequent_pair(spelled: dict[str, list[str]], counts: Counter) -> tuple[str, str] | None:
    pairs = Counter()
    for word, parts in spelled.items():
        for pair in zip(parts, parts[1:]):
            pairs[pair] += counts[word]
    return max(pairs, key=lambda pair: (pairs[pair], pair)) if pairs else None


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


# ------------------------------------------------------------------------------------------------------------- data


@dataclass
class CaptionedScenes:
    """Pictures (n, S, S, 3) uint8 and their captions, drawn once and kept in memory."""

    images: np.ndarray
    captions: list[Caption]

    @classmethod
    def draw(cls, num_scenes: int, seed: int, **layout) -> "CaptionedScenes":
        images, captions = [], []
        for index, scene in enumerate(scenes("train", num_scenes, ("seen", "unseen"), seed, **layout)):
            images.append(scene.image)
            captions.append(caption_scene(scene, np.random.default_rng((7, seed, index))))
        return cls(np.stack(images), captions)


@dataclass
class PhraseBatch:
    """
    `pixel_values` (B, 3, S, S), `captions` (B,), `phrases` (U,) and the class each speaks of (U,); `holds` (B, U):
    whether image b shows phrase u.
    """

    pixel_values: Tensor
    captions: list[str]
    phrases: list[str]
    phrase_classes: Tensor
    holds: Tensor


def make_batch(data: CaptionedScenes, rows: np.ndarray, normalise, rng: np.random.Generator) -> PhraseBatch:
    """Pictures mirrored by chance, their captions, and two wordings of everything that these speak of."""
    images = data.images[rows]
    if rng.random() < 0.5:
        images = images[:, :, ::-1]
    if rng.random() < 0.5:
        images = images[:, ::-1]
    captions = [data.captions[row] for row in rows]
    wordings: dict[int, list[str]] = {}
    for caption in captions:
        for phrase, class_id in zip(caption.phrases, caption.phrase_classes):
            wordings.setdefault(class_id, []).append(phrase)
    chosen = [(c, words) for c, all_words in wordings.items() for words in _two_wordings(c, all_words, rng)]
    phrase_classes = torch.tensor([c for c, _ in chosen])
    present = torch.zeros(len(rows), len(CLASSES), dtype=torch.bool)
    for index, caption in enumerate(captions):
        present[index, caption.phrase_classes] = True
    return PhraseBatch(
        normalise(images),
        [c.text for c in captions],
        [w for _, w in chosen],
        phrase_classes,
        present[:, phrase_classes],
    )


def _two_wordings(class_id: int, wordings: list[str], rng: np.random.Generator) -> list[str]:
    """One phrase as a caption has it, one name in a template as the processor will ask for it."""
    name = rng.choice(CLASSES[class_id].names)
    template = VILD_TEMPLATES[rng.integers(len(VILD_TEMPLATES))]
    return [wordings[rng.integers(len(wordings))], template.format(name)]


class Normalise:
    """uint8 pictures (B, S, S, 3) to normalised pixel values (B, 3, S, S)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean, self.std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    def __call__(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        return (pixels - self.mean) / self.std


# -------------------------------------------------------------------------------------------------------- objective


def contrast(scores: Tensor, positive: Tensor, dim: int) -> Tensor:
    """
    Mean over positive pairs of -log(e^s / (e^s + sum of e over the negatives along `dim`)): positives are no rivals.

    Args:
        scores, positive: (B, U) logits and bool.

    Returns: a scalar, 0 without positives.
    """
    negatives = scores.masked_fill(positive, -torch.inf).logsumexp(dim, keepdim=True)
    losses = F.softplus((negatives - scores).clamp(min=-60))
    return (losses * positive).sum() / positive.sum().clamp(min=1)


def phrase_losses(
    model: MaftPlusCLIPModel, vision, text: Tensor, batch: PhraseBatch, location_share: float = 1.0
) -> dict[str, Tensor]:
    """
    The dense objective.

    Args:
        vision: what `encode_image` returned, with gradient.
        text: (U, D) normalised phrase embeddings.
        location_share: share of the locations that takes part, chosen at random.
    """
    holds, same_class = batch.holds, batch.phrase_classes[:, None] == batch.phrase_classes
    features = _some_locations(vision.dense_features.float(), location_share)  # (B, L, C)
    scale = model.logit_scale.exp().clamp(max=100)
    logits = F.normalize(_head(model, features), dim=-1) @ text.T * scale  # (B, L, U)
    attention = (logits / scale * ATTENTION_SCALE).softmax(1)
    scores = (attention * logits).sum(1)  # (B, U)
    images, phrases = holds.nonzero(as_tuple=True)
    pooled = (attention.transpose(1, 2) @ features)[images, phrases]  # (pairs, C)
    recognised = F.normalize(_head(model, pooled), dim=-1) @ text.T * scale  # (pairs, U)
    return {
        "phrase_to_image": contrast(scores, holds, 0),
        "image_to_phrase": contrast(scores, holds, 1),
        "region": contrast(recognised, same_class[phrases], 1),
        "explained": explained_loss(logits, holds),
    }


def _some_locations(dense_features: Tensor, share: float) -> Tensor:
    """A random share of an image's locations, (B, C, h, w) -> (B, L, C).

    Without it one location a thing learns its name and its neighbours do not, and a mask averages over all of them.
    """
    features = dense_features.flatten(2).transpose(1, 2)
    kept = max(int(features.shape[1] * share), 1)
    index = torch.rand(features.shape[:2]).argsort(1)[:, :kept]
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))


def _head(model: MaftPlusCLIPModel, features: Tensor) -> Tensor:
    return model.visual_projection(model.vision_model.layernorm(features))


def explained_loss(logits: Tensor, holds: Tensor) -> Tensor:
    """-log of the share that a location's own caption takes among all phrases of the batch, mean over locations."""
    own = logits.masked_fill(~holds[:, None], -torch.inf).logsumexp(2)
    return (logits.logsumexp(2) - own).mean()


def caption_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's own loss between whole pictures and whole captions, (B, D) each."""
    logits = F.normalize(image.float(), dim=-1) @ F.normalize(text, dim=-1).T * scale
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Objective:
    """Weighted sum of the named losses of a batch."""

    def __init__(self, model: MaftPlusCLIPModel, tokenizer, weights: dict[str, float], use_bfloat16: bool):
        self.model, self.tokenizer, self.weights, self.use_bfloat16 = model, tokenizer, weights, use_bfloat16
        self.trained: torch.nn.Module = model

    def __call__(self, batch: PhraseBatch, location_share: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.use_bfloat16):
            vision = self.model.encode_image(batch.pixel_values)
        losses = phrase_losses(self.model, vision, self.encode_text(batch.phrases), batch, location_share)
        if self.weights["caption"]:
            scale = self.model.logit_scale.exp().clamp(max=100)
            whole = self.model.embed_image(vision)
            losses["caption"] = caption_loss(whole, self.encode_text(batch.captions), scale)
        return sum(self.weights[name] * loss for name, loss in losses.items()), losses

    def encode_text(self, texts: list[str]) -> Tensor:
        """(n, D) normalised embeddings of sentences."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)


class VitObjective(Objective):
    """The same for a ViT beside a teacher, see `shapes_vit.py`; the text tower is the teacher's and does not learn."""

    def __init__(self, model, tokenizer, weights: dict[str, float], use_bfloat16: bool, teacher: MaftPlusCLIPModel):
        super().__init__(model, tokenizer, weights, use_bfloat16)
        self.teacher, self.trained = teacher, Imitation(model, teacher)

    def __call__(self, batch: PhraseBatch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.use_bfloat16):
            states = hidden_states(self.model.vision_model, batch.pixel_values)
            maps = teacher_maps(self.teacher, batch.pixel_values)
        with torch.no_grad():
            text, scale = self.encode_text(batch.phrases), self.model.logit_scale.exp().clamp(max=100)
            theirs = _head(self.teacher, maps[-1])
        ours = self.model.visual_projection(self.model.vision_model.post_layernorm(states[-1].float()))
        whole = F.normalize(ours[:, 0], dim=-1) @ text.T * scale  # (B, U)
        losses = {
            "hint": self.trained.loss(states, maps),
            "opinion": opinion_loss(ours[:, 1:], theirs, text, scale),
            "whole": contrast(whole, batch.holds, 0) + contrast(whole, batch.holds, 1),
        }
        return sum(self.weights[name] * loss for name, loss in losses.items()), losses


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


def train_stage(objective: Objective, data: CaptionedScenes, stage: dict, normalise: Normalise, seed: int) -> None:
    """Runs one stage of the recipe: a fixed number of steps on scenes of one layout."""
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
            layout = stage["layout"] if objective.model.config.takes_masks_by_pooling else {}
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
    objective: Objective, normalise: Normalise, num_scenes: int, seed: int, **layout
) -> dict[str, float]:
    """
    Share of ground-truth masks whose embeddings are nearest to their own name, among the names of all classes.

    Returns: the share over all masks ("all"), over stuff, over the things of each kind, and of a ViT also the share
    over all masks by `pool_patches` ("pooled").
    """
    model = objective.model.eval()
    text = class_embeddings(objective)
    right: dict[str, list[bool]] = {"all": []}
    for scene in scenes("validation", num_scenes, seed=seed, **layout):
        ids = [segment["id"] for segment in scene.segments_info]
        truth = torch.tensor([segment["category_id"] for segment in scene.segments_info])
        masks = torch.stack([torch.from_numpy(scene.segmentation == i) for i in ids])[None]
        vision = model.encode_image(normalise(scene.image[None]))
        hits = _nearest(model.embed_masks(vision, masks), text) == truth
        for index, hit in zip(truth, hits.tolist()):
            entry = CLASSES[index]
            for key in ("all", entry.kind if entry.isthing else "stuff"):
                right.setdefault(key, []).append(hit)
        if not model.config.takes_masks_by_pooling:
            right.setdefault("pooled", []).extend(_nearest(pool_patches(model, vision, masks), text) == truth)
    return {key: round(float(np.mean(values)), 4) for key, values in right.items()}


def _nearest(embeds: Tensor, text: Tensor) -> Tensor:
    """Best class of each mask of one image, (1, Q, D) -> (Q,)."""
    return (F.normalize(embeds, dim=-1) @ text.T).argmax(-1)[0]


def pretrain(recipe: dict, out: Path, first_stage: int = 0, teacher: Path | None = None) -> MaftPlusCLIPModel:
    """
    Tokenizer and random weights (or, from `first_stage` on, what `out` holds), then the stages; all in `out`.

    A recipe of a ViT needs a `teacher`, whose tokenizer it takes over.
    """
    torch.manual_seed(recipe["seed"] + first_stage)
    make = _make_objective if teacher is None else partial(_make_vit_objective, teacher=teacher)
    objective = make(recipe, out if first_stage else None)
    model, tokenizer = objective.model, objective.tokenizer
    normalise = Normalise(recipe["image_mean"], recipe["image_std"])
    logger.info("%d parameters", sum(p.numel() for p in model.parameters()))
    for index, stage in enumerate(recipe["stages"]):
        if index < first_stage:
            continue
        seed = recipe["seed"] * 10 + index
        data = CaptionedScenes.draw(stage["num_scenes"], seed, **stage["layout"])
        logger.info("stage %d: %d scenes drawn", index, stage["num_scenes"])
        train_stage(objective, data, stage, normalise, seed)
        logger.info("mask accuracy, whole scenes: %s", mask_accuracy(objective, normalise, 200, 5))
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return model


def _make_objective(recipe: dict, start: Path | None) -> Objective:
    if start is not None:
        model, tokenizer = MaftPlusCLIPModel.from_pretrained(start), CLIPTokenizer.from_pretrained(start)
    else:
        tokenizer = train_tokenizer(_tokenizer_corpus(recipe["seed"]), recipe["vocabulary_size"])
        model = build_clip(tokenizer, recipe["clip_config"])
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
    pretrain(load_recipe(options.recipe, options.overrides), options.out, options.first_stage, options.teacher)


if __name__ == "__main__":
    main()
