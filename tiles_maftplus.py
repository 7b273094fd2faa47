"""Large pictures in tiles that overlap: where these lie, and how their results become one.

Scores of classes are averaged where tiles overlap. Segments are joined across a seam by their class and by how far
their masks agree there, and each tile decides up to the middle of an overlap. What is held at once is the result and
what two rows of tiles need: mask logits for scores, nothing for segments; never scores of the whole picture.
Shapes: H x W the picture, K classes, Q queries.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .postprocessing_maftplus import VOID, class_scores_at, hide_distractors, semantic_map
from .predictions_maftplus import Prediction

LEAST_AGREEMENT = 0.5  # intersection over union, where two tiles overlap, of masks that are one object's
OVERLAP_SHARE = 4  # a tile's part of this much is the default overlap
BLOCK_EDGE = 96  # pixels of an overlap that are averaged together, down and across

Segments = Iterable[tuple[dict[str, Any], Tensor]]  # what is said of each, and its mask (h, w) bool


class Span(NamedTuple):
    """A tile along one axis: `start` to `stop`; it decides from `cut` on, and earlier tiles reach up to `seen`."""

    start: int
    stop: int
    cut: int
    seen: int

    def within(self, start: int, stop: int) -> slice:
        """Pixels of the picture as pixels of the tile."""
        return slice(start - self.start, stop - self.start)

    def depths(self, part: slice) -> Tensor:
        """How far pixels of the picture lie from the nearer end, in pixels."""
        middles = torch.arange(part.start, part.stop) + 0.5
        return torch.minimum(middles - self.start, self.stop - middles)


@dataclass(frozen=True)
class Tile:
    """A part of the picture."""

    rows: Span
    columns: Span

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, as PIL crops."""
        return self.columns.start, self.rows.start, self.columns.stop, self.rows.stop

    @property
    def window(self) -> tuple[slice, slice]:
        """All of its pixels."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    @property
    def own(self) -> tuple[slice, slice]:
        """The pixels that it decides, until later tiles take theirs."""
        return slice(self.rows.cut, self.rows.stop), slice(self.columns.cut, self.columns.stop)

    def to_local(self, window: tuple[slice, slice]) -> tuple[slice, slice]:
        """Pixels of the picture as the tile's own."""
        rows, columns = window
        return self.rows.within(rows.start, rows.stop), self.columns.within(columns.start, columns.stop)

    def weights(self, window: tuple[slice, slice]) -> Tensor:
        """How much it counts at pixels of the picture, (h, w): less and less towards its border."""
        rows, columns = (span.depths(part) for span, part in zip((self.rows, self.columns), window))
        return rows[:, None] * columns


def check_options_with_tiles(options: Mapping[str, Any]) -> None:
    """Refuses, with ValueError, an overlap without tiles and what is not made in tiles."""
    if options.get("tile_size") is None:
        if options.get("tile_overlap") is not None:
            raise ValueError("`tile_overlap` has no effect without `tile_size`.")
    elif options.get("return_score_maps"):
        raise ValueError("Score maps are as large as the picture for every label; leave `tile_size` out, or them.")


def check_tiling(tile_size: int, tile_overlap: int | None, least: int) -> int:
    """
    The overlap in pixels, a quarter of the tile by default.

    Args:
        tile_size: Pixels of a tile's edge.
        least: The smallest picture that the network takes unpadded.

    Raises:
        ValueError: for a tile below that, or an overlap that is negative or over half a tile.
    """
    if tile_size < least:
        raise ValueError(f"`tile_size` must be at least {least} pixels, which this network takes, got {tile_size}.")
    overlap = tile_size // OVERLAP_SHARE if tile_overlap is None else tile_overlap
    if not 0 <= overlap <= tile_size // 2:
        raise ValueError(f"`tile_overlap` must lie between 0 and half of `tile_size` ({tile_size}), got {overlap}.")
    return overlap


def plan_tiles(size: tuple[int, int], tile_size: int, tile_overlap: int) -> list[Tile]:
    """
    The fewest tiles that cover a picture with at least this overlap, evenly spread, row by row; all of one size.

    Args:
        size: (height, width) of the picture. Where that is less than a tile, the tile is as large.
    """
    rows, columns = (_spans(length, tile_size, tile_overlap) for length in size)
    return [Tile(*spans) for spans in product(rows, columns)]


def _spans(length: int, tile: int, overlap: int) -> list[Span]:
    if length <= tile:
        return [Span(0, length, 0, 0)]
    count = ceil((length - overlap) / (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    later = [
        Span(start, start + tile, (before + tile + start) // 2, before + tile) for before, start in pairwise(starts)
    ]
    return [Span(0, tile, 0, 0), *later]


# --- Semantic ---


class SemanticSeams:
    """
    One map of classes from tiles given in their order: the mean of their class scores wins where they overlap.

    Args:
        size: (height, width) of the picture.
        tiles: All of them.
        semantic_resize: As the image processor's.
    """

    def __init__(self, size: tuple[int, int], tiles: list[Tile], semantic_resize: str):
        self.semantic_resize = semantic_resize
        self.labels = torch.full(size, VOID, dtype=torch.int32)  # (H, W)
        self._tiles = tiles
        self._cuts = [sorted({edge for tile in tiles for edge in tile_edges(tile, axis)}) for axis in (0, 1)]
        self._items: dict[Tile, Prediction] = {}  # of tiles that later ones overlap

    def add(self, tile: Tile, item: Prediction) -> None:
        """A tile's prediction, whose target is the tile. Raises ValueError as `semantic_map`."""
        self.labels[tile.window] = semantic_map(item, self.semantic_resize).int().cpu()
        self._items = {one: kept for one, kept in self._items.items() if one.rows.stop > tile.rows.start}
        self._items[tile] = item
        for window in self._windows(tile):
            sharing = [one for one in self._tiles if _covers(one, window)]
            if len(sharing) > 1 and sharing[-1] == tile:  # no later tile has a say
                self._average(window, sharing)

    def result(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Every class that was found and its mask (H, W) bool."""
        nothing = {"score": None, "second_label_id": None, "second_score": None}
        for label in self.labels.unique().tolist():
            if label != VOID:
                yield {"label_id": label, **nothing}, self.labels == label

    def _windows(self, tile: Tile) -> Iterator[tuple[slice, slice]]:
        """The parts of a tile, each of which the same tiles cover, in blocks."""
        parts = ([slice(*ends) for ends in pairwise(cuts)] for cuts in self._cuts)
        for window in product(*parts):
            if _covers(tile, window):
                yield from product(*(_blocks(part) for part in window))

    def _average(self, window: tuple[slice, slice], tiles: list[Tile]) -> None:
        items = [self._items[tile] for tile in tiles]
        scores = sum(
            class_scores_at(item, self.semantic_resize, *tile.to_local(window)) * tile.weights(window).to(item.masks)
            for tile, item in zip(tiles, items)
        )  # (K, h, w)
        self.labels[window] = hide_distractors(scores.argmax(0), items[0]).int().cpu()


def tile_edges(tile: Tile, axis: int) -> tuple[int, int]:
    """Where a tile begins and ends along an axis."""
    span = (tile.rows, tile.columns)[axis]
    return span.start, span.stop


def _covers(tile: Tile, window: tuple[slice, slice]) -> bool:
    pairs = zip((tile.rows, tile.columns), window)
    return all(span.start <= part.start and part.stop <= span.stop for span, part in pairs)


def _blocks(part: slice) -> list[slice]:
    return [slice(start, min(start + BLOCK_EDGE, part.stop)) for start in range(part.start, part.stop, BLOCK_EDGE)]


# --- Segments ---


class _Groups:
    """Numbers from 0 that turn out to be one and the same."""

    def __init__(self):
        self._parents: list[int] = []

    def new(self) -> int:
        self._parents.append(len(self._parents))
        return self._parents[-1]

    def find(self, number: int) -> int:
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._parents[high] = low


def _best(infos: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What is said of the whole: what is said of its best part."""
    return max(infos, key=lambda info: info["score"])


class PanopticSeams:
    """
    One panoptic result from tiles given in their order.

    Args:
        size: (height, width) of the picture.
        stuff_ids: Classes that are one segment wherever they are.
    """

    def __init__(self, size: tuple[int, int], stuff_ids: Iterable[int] = ()):
        self.ids = np.zeros(size, dtype=np.int32)  # (H, W), a part's number plus one
        self.stuff_ids = set(stuff_ids)
        self._infos: list[dict[str, Any]] = []
        self._groups = _Groups()
        self._stuff: dict[int, int] = {}  # class -> its first part

    def add(self, tile: Tile, segments: Segments) -> None:
        """A tile's segments, which do not overlap; masks (tile height, tile width) bool."""
        window = self.ids[tile.window]
        earlier = _seen_by_earlier(tile, window.shape)
        known, areas = np.unique(window[earlier], return_counts=True)
        areas = dict(zip(known.tolist(), areas.tolist()))
        mine = np.zeros(window.shape, dtype=np.int32)
        for info, mask in segments:
            mask, number = mask.cpu().numpy(), self._groups.new()
            self._infos.append(info)
            mine[mask] = number + 1
            self._join(number, window[mask & earlier], areas)
        self.ids[tile.own] = mine[tile.to_local(tile.own)]

    def _join(self, number: int, below: np.ndarray, areas: dict[int, int]) -> None:
        """Join a part with those of its class that lie `below` it where earlier tiles saw the same pixels."""
        label = self._infos[number]["label_id"]
        if label in self.stuff_ids:
            self._groups.join(number, self._stuff.setdefault(label, number))
            return
        for other, shared in zip(*(values.tolist() for values in np.unique(below, return_counts=True))):
            agrees = shared >= LEAST_AGREEMENT * (len(below) + areas[other] - shared)
            if other and agrees and self._infos[other - 1]["label_id"] == label:
                self._groups.join(number, other - 1)

    def result(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Every segment that still has pixels, and its mask (H, W) bool."""
        roots = [self._groups.find(number) for number in range(len(self._infos))]
        ids = torch.from_numpy(np.array([0, *(root + 1 for root in roots)], dtype=np.int32)[self.ids])
        for root in (ids.unique()[ids.unique() > 0] - 1).tolist():
            yield _best(info for info, its in zip(self._infos, roots) if its == root), ids == root + 1


def _seen_by_earlier(tile: Tile, shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a tile earlier ones saw, (h, w) bool."""
    seen = np.zeros(shape, dtype=bool)
    seen[: max(0, tile.rows.seen - tile.rows.start)] = True
    seen[:, : max(0, tile.columns.seen - tile.columns.start)] = True
    return seen


class _Part(NamedTuple):
    """An instance as one tile sees it: its mask within the box that holds it."""

    info: dict[str, Any]
    number: int
    top: int
    left: int
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """The box as pixels of the picture."""
        return slice(self.top, self.top + self.mask.shape[0]), slice(self.left, self.left + self.mask.shape[1])

    def within(self, window: tuple[slice, slice]) -> np.ndarray:
        """The mask at pixels of the picture, (h, w) bool."""
        rows, columns = window
        result = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
        shared = shared_window(self.window, window)
        if shared is not None:
            result[_relative(shared, rows.start, columns.start)] = self.mask[_relative(shared, self.top, self.left)]
        return result


def _relative(window: tuple[slice, slice], top: int, left: int) -> tuple[slice, slice]:
    return tuple(slice(part.start - start, part.stop - start) for part, start in zip(window, (top, left)))


def shared_window(one: tuple[slice, slice], other: tuple[slice, slice]) -> tuple[slice, slice] | None:
    """The pixels that lie in both windows, `None` if there are none."""
    window = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other))
    return window if all(part.start < part.stop for part in window) else None


class InstanceSeams:
    """
    Objects of the picture, which may overlap, from those of tiles given in their order.

    Args:
        size: (height, width) of the picture.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self._parts: dict[Tile, list[_Part]] = {}
        self._groups = _Groups()

    def add(self, tile: Tile, segments: Segments) -> None:
        """A tile's objects; masks (tile height, tile width) bool."""
        parts = [self._crop(tile, info, mask.cpu().numpy()) for info, mask in segments if mask.any()]
        for other, its in self._parts.items():
            shared = shared_window(tile.window, other.window)
            if shared is not None:
                self._join(parts, its, shared)
        self._parts[tile] = parts

    def _crop(self, tile: Tile, info: dict[str, Any], mask: np.ndarray) -> _Part:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        return _Part(
            info, self._groups.new(), tile.rows.start + int(rows[0]), tile.columns.start + int(columns[0]), cropped
        )

    def _join(self, parts: list[_Part], others: list[_Part], window: tuple[slice, slice]) -> None:
        """Join pairs of two tiles' objects that agree where both tiles see them, the best first, each once."""
        pairs = [
            (agreement, one.number, other.number)
            for one, other in product(parts, others)
            if one.info["label_id"] == other.info["label_id"]
            and (agreement := _agreement(one.within(window), other.within(window))) >= LEAST_AGREEMENT
        ]
        taken = set()
        for _, one, other in sorted(pairs, reverse=True):
            if not taken & {one, other}:
                taken |= {one, other}
                self._groups.join(one, other)

    def result(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Every object and its mask (H, W) bool, the best score first."""
        groups: dict[int, list[_Part]] = {}
        for part in (part for parts in self._parts.values() for part in parts):
            groups.setdefault(self._groups.find(part.number), []).append(part)
        found = [(_best(part.info for part in parts), parts) for parts in groups.values()]
        for info, parts in sorted(found, key=lambda pair: -pair[0]["score"]):
            mask = np.zeros(self.size, dtype=bool)
            for part in parts:
                mask[part.window] |= part.mask
            yield info, torch.from_numpy(mask)


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union; 0 for two empty masks."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def make_seams(
    subtask: str, size: tuple[int, int], tiles: list[Tile], stuff_ids: Iterable[int], semantic_resize: str
) -> SemanticSeams | InstanceSeams | PanopticSeams:
    """What joins the tiles of a picture of `size` (height, width) for a subtask."""
    if subtask == "semantic":
        return SemanticSeams(size, tiles, semantic_resize)
    return InstanceSeams(size) if subtask == "instance" else PanopticSeams(size, stuff_ids)


__all__ = [
    "InstanceSeams",
    "PanopticSeams",
    "SemanticSeams",
    "Tile",
    "check_options_with_tiles",
    "check_tiling",
    "make_seams",
    "plan_tiles",
]
