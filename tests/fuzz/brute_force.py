"""Post-processing as the papers write it: float64, every map held whole, no tiles, no bounds, no shortcuts.

Sources: as in `maftplus.postprocessing_maftplus`; resizing is torch's own. Float32 may differ from this by rounding,
so every number comes with a tolerance. What a tolerance decides is a tie; all else must agree.
Shapes: Q queries, K classes (+1 = void), h x w the target; one picture.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maftplus.predictions_maftplus import LARGEST_LOGIT

POSITION = 1e-4  # how far float32's sampling points lie off, in pixels, generously
ROUNDING = 2e-6  # of probabilities


@dataclass
class Picture:
    """A picture's outputs in float64 and its sizes, outermost last: grid, padded, unpadded, target."""

    class_logits: Tensor  # (Q, K+1)
    mask_logits: Tensor  # (Q, grid height, grid width)
    padded: tuple[int, int]
    unpadded: tuple[int, int]
    target: tuple[int, int]
    stuff: frozenset[int] = field(default_factory=frozenset)

    @property
    def probabilities(self) -> Tensor:
        return self.class_logits.double().softmax(-1)

    @property
    def clamped(self) -> Tensor:
        return self.mask_logits.double().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)

    @property
    def noise(self) -> Tensor:
        """By how much a resized mask logit may be off, (Q, 1, 1)."""
        masks = self.clamped.flatten(1)
        return (POSITION * (masks.amax(1) - masks.amin(1)) + ROUNDING * masks.abs().amax(1) + 1e-6).view(-1, 1, 1)

    def outputs(self) -> SimpleNamespace:
        """As the model gives them: a batch of one, float32."""
        return SimpleNamespace(
            class_queries_logits=self.class_logits[None],
            masks_queries_logits=self.mask_logits[None],
            padded_sizes=torch.tensor([self.padded]),
            unpadded_sizes=torch.tensor([self.unpadded]),
        )


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, (N, a, b) -> (N, *size)."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def at_input(picture: Picture) -> Tensor:
    """Mask logits of the unpadded input."""
    height, width = picture.unpadded
    return resize(picture.clamped, picture.padded)[:, :height, :width]


def at_target(picture: Picture) -> Tensor:
    """Mask logits of the target (Q, h, w)."""
    return resize(at_input(picture), picture.target)


# --- Semantic ---


def class_scores(picture: Picture, semantic_resize: str) -> tuple[Tensor, Tensor]:
    """Least and largest class scores of every pixel that rounding allows, (K, h, w) each."""
    weights = picture.probabilities[:, :-1].T
    logits = at_target(picture) if semantic_resize == "mask_logits" else at_input(picture)
    bounds = []
    for sign in (-1, 1):
        masks = (logits + sign * picture.noise).sigmoid()
        scores = torch.einsum("kq,qhw->khw", weights, masks)
        scores = scores if semantic_resize == "mask_logits" else resize(scores, picture.target)
        bounds.append(scores + sign * (ROUNDING + POSITION) * weights.sum(1).view(-1, 1, 1))
    return bounds[0], bounds[1]


def check_semantic(picture: Picture, semantic_resize: str, found: Tensor) -> int:
    """
    Compare a map (h, w) with the plain one.

    Returns:
        The number of tied pixels, at which rounding decides.

    Raises:
        AssertionError: if a pixel has a class that cannot be the best there.
    """
    low, high = class_scores(picture, semantic_resize)
    best = low.amax(0)
    wrong = high.gather(0, found[None])[0] < best
    require(not wrong.any(), f"{int(wrong.sum())} pixels of {tuple(found.shape)} have a class that is not the best")
    return int(((high >= best).sum(0) > 1).sum())


# --- Panoptic ---


@dataclass
class Competition:
    """Who wins which pixel, and where rounding decides that. `winner`: (h, w), num_queries where nobody shows."""

    winner: Tensor
    tied: Tensor  # (h, w) bool
    scores: list[float]
    labels: list[int]
    won: list[tuple[int, int]]  # pixels won: at least, at most
    shown: list[tuple[int, int]]
    areas: list[tuple[int, int]]


def compete(picture: Picture, threshold: float, mask_threshold: float) -> Competition | None:
    """None where rounding decides which queries take part, or their classes."""
    probabilities = picture.probabilities
    best, labels = probabilities.max(-1)
    second = probabilities.topk(2).values[:, 1]
    if ((best - threshold).abs() < ROUNDING).any() or (best - second < ROUNDING).any():
        return None
    kept = (labels < probabilities.shape[-1] - 1) & (best > threshold)
    scores, labels = best[kept], labels[kept]
    logits, noise = at_target(picture)[kept], picture.noise[kept]
    if not len(scores):
        nobody = torch.zeros(picture.target, dtype=torch.int64)
        return Competition(nobody, nobody.bool(), [], [], [], [], [])
    low, high = ((logits + sign * noise).sigmoid() * scores.view(-1, 1, 1) for sign in (-1, 1))
    low, high = low - ROUNDING, high + ROUNDING
    can_win = high >= low.amax(0)
    is_clear = can_win.sum(0) == 1
    surely, maybe = (probability_at_least(logits + sign * noise, mask_threshold) for sign in (-1, 1))
    winner = (scores.view(-1, 1, 1) * logits.sigmoid()).argmax(0)
    is_shown = probability_at_least(logits, mask_threshold).gather(0, winner[None])[0]
    tied = ~is_clear | (surely != maybe).gather(0, winner[None])[0]
    return Competition(
        winner=torch.where(is_shown, winner, len(scores)),
        tied=tied,
        scores=scores.tolist(),
        labels=labels.tolist(),
        won=counts(can_win & is_clear, can_win),
        shown=counts(can_win & is_clear & surely, can_win & maybe),
        areas=counts(surely, maybe),
    )


def probability_at_least(logits: Tensor, threshold: float) -> Tensor:
    if threshold in (0.0, 1.0):  # no finite logit has either probability
        return torch.full_like(logits, threshold == 0.0, dtype=torch.bool)
    return logits >= torch.tensor(threshold, dtype=torch.float64).logit()


def counts(least: Tensor, most: Tensor) -> list[tuple[int, int]]:
    return list(zip(least.sum((1, 2)).tolist(), most.sum((1, 2)).tolist()))


def is_valid(won: tuple[int, int], shown: tuple[int, int], area: tuple[int, int], overlap: float) -> bool | None:
    """Whether a segment stays; None where rounding decides."""
    if shown[1] == 0:
        return False
    smallest, largest = won[0] / max(1, area[1]), won[1] / max(1, area[0])
    if smallest >= overlap and shown[0] > 0:
        return True
    return False if largest < overlap else None


def check_panoptic(picture: Picture, thresholds: tuple[float, float, float], found: dict[str, Any]) -> int:
    """As `check_semantic`, for `post_process_panoptic_segmentation`'s result. -1: rounding decides about segments."""
    threshold, mask_threshold, overlap = thresholds
    competition = compete(picture, threshold, mask_threshold)
    if competition is None:
        return -1
    rows = zip(competition.won, competition.shown, competition.areas)
    valid = [is_valid(*row, overlap) for row in rows]
    if None in valid:
        return -1
    ids, expected = number(valid, competition, picture.stuff)
    shown = [(info["id"], info["label_id"], info["was_fused"]) for info in found["segments_info"]]
    require(shown == [info[:3] for info in expected], f"segments {shown} in place of {expected}")
    for info, (*_, score) in zip(found["segments_info"], expected):
        require(abs(info["score"] - score) < 1e-5, f"score {info['score']} in place of {score}")
    wanted = torch.tensor([*ids, 0])[competition.winner]
    wrong = (found["segmentation"] != wanted) & ~competition.tied
    require(not wrong.any(), f"{int(wrong.sum())} pixels of {tuple(wanted.shape)} belong to another segment")
    return int(competition.tied.sum())


def number(valid: list[bool], competition: Competition, stuff: frozenset[int]) -> tuple[list[int], list[tuple]]:
    """Id of every query, and (id, label, is stuff, score) of every segment; stuff of one class is one segment."""
    ids, segments, of_class = [], [], {}
    for stays, label, score in zip(valid, competition.labels, competition.scores):
        if not stays:
            ids.append(0)
        elif label in of_class:
            index = of_class[label]
            ids.append(index + 1)
            segments[index] = (*segments[index][:3], max(segments[index][3], score))
        else:
            segments.append((len(segments) + 1, label, label in stuff, score))
            ids.append(len(segments))
            if label in stuff:
                of_class[label] = len(segments) - 1
    return ids, segments


# --- Instances ---


def check_instances(
    picture: Picture, threshold: float, mask_threshold: float, top_k: int, masks: Tensor, infos: list[dict[str, Any]]
) -> int:
    """As `check_panoptic`, for masks (N, h, w) bool and their `segments_info`."""
    candidates = instances(picture, mask_threshold, top_k)
    if candidates is None:
        return -1
    scores = [info["score"] for info in infos]
    require(scores == sorted(scores, reverse=True), f"scores do not descend: {scores}")
    unused = list(candidates)
    for info, mask in zip(infos, masks):
        match = next((one for one in unused if one.is_like(info, mask)), None)
        require(match is not None, f"{info} is no object of the plain post-processing")
        unused.remove(match)
    missing = [one for one in unused if one.area[0] > 0 and one.score - one.noise >= threshold]
    require(not missing, f"{len(missing)} objects are missing")
    wrong = [info for info in infos if info["score"] < threshold - 1e-6]
    require(not wrong, f"below the threshold: {wrong}")
    return sum(int(one.tied.sum()) for one in candidates)


@dataclass
class Candidate:
    """An object that the plain post-processing finds, with what rounding may do to it."""

    label: int
    score: float
    noise: float
    mask: Tensor
    tied: Tensor
    area: tuple[int, int]

    def is_like(self, info: dict[str, Any], mask: Tensor) -> bool:
        is_near = self.label == info["label_id"] and abs(self.score - info["score"]) <= self.noise
        return is_near and not ((self.mask != mask) & ~self.tied).any()


def instances(picture: Picture, mask_threshold: float, top_k: int) -> list[Candidate] | None:
    """The best pairs of query and thing; None where rounding decides which pairs they are."""
    classes = picture.probabilities[:, :-1]
    ordered = classes.flatten().sort(descending=True)
    top_k = min(top_k, classes.numel())
    if top_k < classes.numel() and ordered.values[top_k - 1] - ordered.values[top_k] < ROUNDING:
        return None
    logits = at_target(picture)
    surely, maybe = (logits + sign * picture.noise > _logit(mask_threshold) for sign in (-1, 1))
    inside = logits > _logit(mask_threshold)
    result = []
    for pair in ordered.indices[:top_k].tolist():
        query, label = divmod(pair, classes.shape[1])
        if label not in picture.stuff:
            result.append(_candidate(classes[query, label], label, logits[query], (surely, inside, maybe), query))
            result[-1].noise += float(picture.noise[query])
    return result


def _candidate(probability: Tensor, label: int, logits: Tensor, masks: tuple[Tensor, ...], query: int) -> Candidate:
    surely, inside, maybe = (mask[query] for mask in masks)
    area, tied = int(inside.sum()), surely != maybe
    quality = float((logits.sigmoid() * inside).sum()) / max(1, area)
    noise = 1e-5 + int(tied.sum()) / max(1, int(surely.sum()))
    return Candidate(label, float(probability) * quality, noise, inside, tied, (int(surely.sum()), int(maybe.sum())))


def _logit(probability: float) -> float:
    return float(torch.tensor(probability, dtype=torch.float64).logit())  # infinite for 0 and 1


def draw(masks: Tensor, overlap: float) -> tuple[Tensor, list[int]]:
    """Ids (h, w): each of the masks (N, h, w), best first, takes what is free, if that is enough of it."""
    ids, kept = torch.zeros(masks.shape[1:], dtype=torch.int32), []
    for index, mask in enumerate(masks):
        free = mask & (ids == 0)
        if free.any() and int(free.sum()) / int(mask.sum()) >= overlap:
            kept.append(index)
            ids[free] = len(kept)
    return ids, kept


def require(is_so: bool, otherwise: str) -> None:
    """Raises AssertionError."""
    if not is_so:
        raise AssertionError(otherwise)
