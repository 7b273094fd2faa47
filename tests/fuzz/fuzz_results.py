"""Post-processing in tiles against the plain one: equal but where rounding decides."""

from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from fuzz import brute_force
from fuzz.targets import Target
from hypothesis import strategies as st

from maftplus import postprocessing_maftplus, predictions_maftplus
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil

SHARES = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), st.floats(0, 1))


@st.composite
def pictures(draw) -> brute_force.Picture:
    """Any sizes, few and many classes, smooth, steep, constant and infinite masks, equal queries."""
    num_queries, num_classes = draw(st.integers(1, 7)), draw(st.sampled_from([1, 2, 5, 31, 33, 60]))
    grid = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    padded = tuple(4 * edge for edge in grid) if draw(st.booleans()) else draw(st.tuples(*[st.integers(1, 60)] * 2))
    unpadded = tuple(draw(st.integers(1, edge)) for edge in padded)
    target = draw(st.tuples(*[st.one_of(st.integers(1, 40), st.integers(90, 210))] * 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    classes = torch.randn(num_queries, num_classes + 1, generator=generator) * draw(
        st.sampled_from([0.0, 1.0, 4.0, 30.0])
    )
    masks = torch.randn(num_queries, *grid, generator=generator) * draw(st.sampled_from([0.1, 3.0, 20.0, 1e3]))
    kind = draw(st.sampled_from(["random", "random", "steps", "twins", "infinite", "flat"]))
    if kind == "steps":
        masks = masks.sign() * 4
    elif kind == "twins":
        masks[-1], classes[-1] = masks[0], classes[0]
    elif kind == "infinite":
        masks[masks > masks.mean()] = float("inf")
    elif kind == "flat":
        masks = masks.amax((1, 2), keepdim=True).expand_as(masks).contiguous()
    stuff = frozenset(draw(st.sets(st.integers(0, num_classes - 1), max_size=3)))
    return brute_force.Picture(classes, masks, padded, unpadded, target, stuff)


CASES = st.tuples(
    pictures(), st.tuples(SHARES, SHARES, SHARES), st.sampled_from([1, 5, 100]), st.sampled_from([8, 96])
)


def check(case: tuple, folder: Path) -> str:
    picture, shares, top_k, tile_edge = case
    with ExitStack() as stack:
        stack.enter_context(patch.object(predictions_maftplus, "TILE_EDGE", tile_edge))
        stack.enter_context(patch.object(postprocessing_maftplus, "TILE_NUMBERS", 1 << (10 if tile_edge == 8 else 21)))
        ties = [*_semantic(picture), _panoptic(picture, shares), _instances(picture, shares, top_k)]
    return "tied" if any(ties) else "equal"


def _semantic(picture: brute_force.Picture) -> list[int]:
    ties = []
    for order in ("class_maps", "mask_logits"):
        processor = MaftPlusImageProcessorPil(semantic_resize=order)
        found = processor.post_process_semantic_segmentation(picture.outputs(), [picture.target])[0]
        ties.append(brute_force.check_semantic(picture, order, found))
    return ties


def _panoptic(picture: brute_force.Picture, shares: tuple[float, float, float]) -> int:
    found = MaftPlusImageProcessorPil().post_process_panoptic_segmentation(
        picture.outputs(), *shares, label_ids_to_fuse=picture.stuff, target_sizes=[picture.target]
    )[0]
    return brute_force.check_panoptic(picture, shares, found)


def _instances(picture: brute_force.Picture, shares: tuple[float, float, float], top_k: int) -> int:
    threshold, mask_threshold, overlap = shares
    options = {"label_ids_to_fuse": picture.stuff, "target_sizes": [picture.target], "top_k": top_k}
    process = MaftPlusImageProcessorPil().post_process_instance_segmentation
    found = process(picture.outputs(), threshold, mask_threshold, return_binary_maps=True, **options)[0]
    masks, infos = found["segmentation"], found["segments_info"]
    drawn = process(picture.outputs(), threshold, mask_threshold, overlap, **options)[0]
    ids, kept = brute_force.draw(masks, overlap)
    brute_force.require(torch.equal(drawn["segmentation"], ids), "the id map is not that of its masks")
    brute_force.require(len(drawn["segments_info"]) == len(kept), "the id map has other objects than its masks")
    return brute_force.check_instances(picture, threshold, mask_threshold, top_k, masks, infos)


RESULTS = Target("results", CASES, check)
