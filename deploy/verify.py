"""Proof that a graph computes what the model computes, on pictures of sizes and batches that the exporter never saw.

Some steps of the network compare a number with a threshold: what a layer of the mask decoder may look at, and which
pixels a mask's embedding averages. Where it is at the threshold to the last digits, either answer is right, and all
that follows differs. So the model is run with the *graph's* answers (`replay`): then everything else must agree
closely, and every answer that differs must have been such a tie. Ties are counted.
Shapes: B images, Q queries, K classes, D joint space, h x w the mask grid.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maftplus.deploy.exported import MaftPlusExportedForUniversalSegmentation
from maftplus.deploy.graph import ATTENTION_MASKS, mask_decoder, replaced
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation, MaftPlusModel

HELD_SHAPES = ((1, 64, 96), (3, 352, 544), (5, 96, 128))  # batch, height, width; not the exporter's example
MASK_TOLERANCE, CLASS_TOLERANCE = 1e-4, 2e-4  # of the largest value, or of 1
TIE = 1e-4  # of a layer's largest logit: nearer to the threshold, rounding decides
LEAST_AGREEMENT = 0.9  # of the pixels' best classes, in less than float32
NUM_WORDS = 8


@dataclass
class Difference:
    """
    How far a graph's answer for a batch is from the model's.

    Args:
        shape: Batch, height and width.
        masks, classes: Largest difference of mask logits and of class log-probabilities, over the largest value.
        num_ties, largest_tie: (Query, layer) pairs whose attention mask differs, and how far the farthest of them was
            from the threshold, over the layer's largest logit.
    """

    shape: tuple[int, int, int]
    masks: float
    classes: float
    num_ties: int
    largest_tie: float

    @property
    def is_within(self) -> bool:
        return self.masks <= MASK_TOLERANCE and self.classes <= CLASS_TOLERANCE and self.largest_tie <= TIE

    def row(self) -> str:
        """A row of a table in Markdown."""
        batch, height, width = self.shape
        figures = f"{self.masks:.1e} | {self.classes:.1e} | {self.num_ties} | {self.largest_tie:.1e}"
        return f"| {batch} | {height} x {width} | {figures} |"


@dataclass
class Ties:
    """What `replay` found: (query, layer) pairs that differ, and the farthest from the threshold."""

    count: int = 0
    largest: float = 0.0


@torch.no_grad()
def compare(
    model: MaftPlusForUniversalSegmentation,
    exported: MaftPlusExportedForUniversalSegmentation,
    shapes: Sequence[tuple[int, int, int]] = HELD_SHAPES,
) -> list[Difference]:
    """
    The graph against the model in float32, a batch of random pictures a shape.

    Args:
        model: The original, in float32.
        exported: Its graph, opened in float32.
        shapes: Batch, height and width; heights and widths are multiples of 32.
    """
    words = random_words(model)
    return [_compare(model, exported, random_pictures(shape), words) for shape in shapes]


def _compare(model, exported, pixel_values: Tensor, words: dict[str, Tensor]) -> Difference:
    session, outputs = exported.model.session, {}
    run = session.run
    with replaced(session, "run", lambda **inputs: outputs.update(run(**inputs)) or outputs):
        found = exported(pixel_values=pixel_values, **words)
    with replay(model.model, outputs) as ties:
        expected = model(pixel_values=pixel_values, **words)
    masks = relative_difference(found.masks_queries_logits, expected.masks_queries_logits)
    classes = relative_difference(found.class_queries_logits, expected.class_queries_logits)
    batch, _, height, width = pixel_values.shape
    return Difference((batch, height, width), masks, classes, ties.count, ties.largest)


@contextlib.contextmanager
def replay(model: MaftPlusModel, outputs: dict[str, Tensor]) -> Iterator[Ties]:
    """The model looks where the graph looked and averages under its masks, for one call."""
    decoder, ties = mask_decoder(model), Ties()
    compute, embed_classes, embed_masks = decoder._visible, decoder._embed_classes, model.clip.embed_mask_logits
    masks, start = outputs["masks_queries_logits"], 0

    def visible(normed: Tensor, level_features: Tensor) -> Tensor:
        nonlocal start
        own, stop = compute(normed, level_features), start + level_features.shape[-1]
        graphs = outputs[ATTENTION_MASKS][..., start:stop]
        start = stop
        _count_ties(ties, decoder.mask_embedder(normed) @ level_features, own, graphs)
        return graphs

    with (
        replaced(decoder, "_visible", visible),
        replaced(decoder, "_embed_classes", lambda normed, features, _: embed_classes(normed, features, masks)),
        replaced(model.clip, "embed_mask_logits", lambda vision, _: embed_masks(vision, masks)),
    ):
        yield ties


def _count_ties(ties: Ties, logits: Tensor, own: Tensor, graphs: Tensor) -> None:
    """Add a layer's ties: `logits` (B, Q, S) against 0, and what both sides made of them."""
    differs = own != graphs
    margins = torch.where(differs, logits.abs(), 0).amax(-1)  # (B, Q)
    # A query that sees nothing sees everything: then its largest logit is what was at the threshold.
    sees_all = own.all(-1) | graphs.all(-1)
    margins = torch.where(differs.any(-1) & sees_all, logits.amax(-1).abs().minimum(margins), margins)
    ties.count += int(differs.any(-1).sum())
    ties.largest = max(ties.largest, float(margins.max() / logits.abs().max()))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value, or over 1 if all are smaller; NaN counts as infinite."""
    difference = (found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1)
    return float(difference.nan_to_num(float("inf")))


def random_pictures(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Patches of colour with noise, (B, 3, H, W), normalised."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch, 3, height // 16, width // 16, generator=generator)
    noise = torch.randn(batch, 3, height, width, generator=generator)
    return F.interpolate(patches, size=(height, width), mode="bilinear") + 0.1 * noise


def random_words(model: MaftPlusForUniversalSegmentation) -> dict[str, Tensor]:
    """Class embeddings of the stored vocabulary, or random ones, as arguments of `classify`."""
    if model.vocabulary_embeds is not None:
        return {}
    width = model.config.clip_config.projection_dim
    rows = torch.randn(NUM_WORDS, width, generator=torch.Generator().manual_seed(0))
    return {"text_embeds": F.normalize(rows, dim=-1), "text_class_ids": torch.arange(NUM_WORDS)}


@torch.no_grad()
def agreement(
    model: MaftPlusForUniversalSegmentation,
    exported: MaftPlusExportedForUniversalSegmentation,
    pictures: Sequence[Tensor],
) -> float:
    """Share of the mask grid's pixels, in pictures (B, 3, H, W), whose best class is the same in both."""
    words, same = random_words(model), []
    for pixel_values in pictures:
        labels = [_best_classes(one(pixel_values=pixel_values, **words)) for one in (model, exported)]
        same.append((labels[0] == labels[1]).float().mean())
    return float(torch.stack(same).mean())


def _best_classes(outputs) -> Tensor:
    """(B, h, w)."""
    probabilities = outputs.class_queries_logits.float().softmax(-1)[..., :-1]
    masks = outputs.masks_queries_logits.float().sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", probabilities, masks).argmax(1)


__all__ = ["Difference", "HELD_SHAPES", "LEAST_AGREEMENT", "agreement", "compare", "random_pictures", "replay"]
