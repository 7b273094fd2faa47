"""What the small CLIP of the shapes world learns from: batches of scenes with captions, and the losses on them.

Whole captions against whole pictures teach a bag of words. What binds a colour to a shape is (1) scenes with one thing
first, then whole scenes, and (2) an objective on *dense* features: every phrase looks for its place. For an image and
a phrase, attention over locations pools the similarity (contrasted both ways over the batch) and the features
themselves (the pooled features must be recognised among all phrases), and every location must be explained by the
phrases of its own caption. The last two lean on captions that name everything, which captions of photographs do not;
that two phrases mean the same ("a red ball", "the crimson disc") is read from the world's lexicon, so that no true
pair counts as wrong. How a ViT learns: `vit.py`.

Related: two-way attention between words and places, arXiv 2111.07783; CLIP, arXiv 2103.00020.
Shapes: B images, L locations, U phrases of a batch, C channels of the trunk's last map, D joint space.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.shapes.captions import Caption, caption_scene
from maftplus.shapes.scenes import CLASSES, scenes
from maftplus.shapes.vit import Imitation, hidden_states, opinion_loss, teacher_maps
from maftplus.words_maftplus import VILD_TEMPLATES

ATTENTION_SCALE = 10.0  # of cosines; the learned scale would look at one location, and a mask has many

# ------------------------------------------------------------------------------------------------------------- data


@dataclass
class CaptionedScenes:
    """Pictures (n, S, S, 3) uint8 and their captions, drawn once and kept in memory."""

    images: np.ndarray
    captions: list[Caption]

    @classmethod
    def draw(cls, num_scenes: int, seed: int, natural_captions: bool = False, **layout) -> "CaptionedScenes":
        images, captions = [], []
        for index, scene in enumerate(scenes("train", num_scenes, ("seen", "unseen"), seed, **layout)):
            images.append(scene.image)
            captions.append(caption_scene(scene, np.random.default_rng((7, seed, index)), natural_captions))
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
        losses = {}
        if self.weights.keys() - {"caption"}:  # without, an image-level CLIP
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
    """The same for a ViT beside a teacher, see `vit.py`; the text tower is the teacher's and does not learn."""

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
