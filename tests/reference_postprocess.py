"""Post-processing against the recorded numbers (`postprocess/*.npz` of the reference data)."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from reference_tools import Comparison, compare, compare_equal, load_arrays

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.postprocessing_maftplus import find_instances
from maftplus.predictions_maftplus import read_predictions, target_logits

SEM_SEG_TOLERANCE = 3e-4
TOLERANCE = 1e-4
MASK_NOISE = 1e-4  # tolerance of mask logits


def check_postprocess(path: Path) -> list[Comparison]:
    """Semantic in both orders, panoptic at every recorded threshold, instances as sets."""
    arrays = load_arrays(path)
    outputs = recorded_outputs(arrays)
    comparisons = []
    for order, semantic_resize in (("after", "class_maps"), ("before", "mask_logits")):
        comparisons += _check_semantic(arrays, outputs, order, semantic_resize)
    comparisons += _check_panoptic(arrays, outputs)
    for name, fused in (("inst_panoptic_on", stuff_ids(arrays)), ("inst_only", set())):
        comparisons += _check_instances(arrays, outputs, name, fused)
    return comparisons


def recorded_outputs(arrays: dict) -> SimpleNamespace:
    """The recorded head outputs under our names."""
    masks = torch.from_numpy(arrays["in/pred_masks"])
    return SimpleNamespace(
        class_queries_logits=torch.from_numpy(arrays["mid/mask_cls_results"])[None],
        masks_queries_logits=masks,
        unpadded_sizes=torch.from_numpy(arrays["in/image_hw"])[None],
        padded_sizes=4 * torch.tensor([masks.shape[-2:]]),
    )


def stuff_ids(arrays: dict) -> set[int]:
    return set(range(arrays["meta_json"]["C"])) - set(arrays["in/thing_ids"].tolist())


def _target(arrays: dict) -> list[tuple[int, int]]:
    return [tuple(arrays["in/output_hw"].tolist())]


def _check_semantic(arrays: dict, outputs, order: str, semantic_resize: str) -> list[Comparison]:
    processor = MaftPlusImageProcessorPil(semantic_resize=semantic_resize)
    target = _target(arrays)
    held = processor.post_process_semantic_segmentation(outputs, target, return_segmentation_scores=True)[0]
    tiled = processor.post_process_semantic_segmentation(outputs, target)[0]
    prefix = f"sem_seg_{order}"
    recorded = torch.from_numpy(arrays[f"out/{prefix}_argmax"]).long()
    decided = ~torch.from_numpy(arrays[f"out/{prefix}_argmax_gap_below_1e-4"])
    step = 5 if arrays["meta_json"]["C"] <= 10 else 12
    scores = held.segmentation_scores
    return [
        compare(f"{prefix}_every5", scores[:, ::step, ::step], arrays[f"out/{prefix}_every5"], SEM_SEG_TOLERANCE),
        compare(f"{prefix}_class_mean", scores.mean((1, 2)), arrays[f"out/{prefix}_class_mean"], SEM_SEG_TOLERANCE),
        _different_pixels(f"{prefix}_argmax", held.segmentation[decided], recorded[decided]),
        _different_pixels(f"{prefix}_argmax_tiled", tiled[decided], recorded[decided]),
    ]


def _different_pixels(name: str, ours: torch.Tensor, recorded: torch.Tensor) -> Comparison:
    return Comparison(name, float((ours != recorded).sum()), 0.0)


def _check_panoptic(arrays: dict, outputs) -> list[Comparison]:
    recorded = {
        name.removeprefix("out/panoptic_seg_"): (
            arrays[name],
            arrays["meta_json"][name.replace("out/panoptic_seg_", "segments_info_")],
        )
        for name in sorted(arrays)
        if name.startswith("out/panoptic_seg_")
    }
    return compare_panoptic(outputs, _target(arrays), stuff_ids(arrays), {"panoptic": recorded})


def compare_panoptic(outputs, target: list, stuff: set[int], recorded: dict) -> list[Comparison]:
    """Every recorded panoptic map and its segments, `{"obj<t>_ovl<o>": (map, segments)}`, against ours."""
    comparisons, undecided = [], _undecided(outputs, target)
    for name, (segmentation, infos) in recorded["panoptic"].items():
        threshold, overlap = map(float, re.search(r"obj([\d.]+)_ovl([\d.]+)", name).groups())
        result = MaftPlusImageProcessorPil().post_process_panoptic_segmentation(
            outputs, threshold, 0.5, overlap, stuff, target
        )[0]
        different = result["segmentation"] != torch.from_numpy(segmentation).int()
        ours = [(info["id"], not info["was_fused"], info["label_id"]) for info in result["segments_info"]]
        theirs = [(info["id"], info["isthing"], info["category_id"]) for info in infos]
        comparisons += [
            _pixels(f"panoptic_{name}", different, undecided),
            compare_equal(f"segments_{name}", ours, theirs),
        ]
    return comparisons


def _undecided(outputs, target: list) -> torch.Tensor:
    """Pixels of the target where noise within the tolerances may cross a threshold or swap two queries."""
    logits, item = _logits_at_target(outputs, target)
    scores = item.probabilities[:, :-1].amax(-1).view(-1, 1, 1) * logits.sigmoid()
    best = scores.topk(min(2, len(scores)), dim=0).values
    return (logits.abs() <= MASK_NOISE).any(0) | (best[0] - best[-1] <= MASK_NOISE)


def _logits_at_target(outputs, target: list):
    item = next(read_predictions(outputs, target))
    return target_logits(item, *(slice(0, size) for size in item.target_size)), item


def _pixels(name: str, different: torch.Tensor, undecided: torch.Tensor) -> Comparison:
    """Pixels that differ though nothing is near a threshold there; the others are counted in the name."""
    excused = int((different & undecided).sum())
    suffix = f" ({excused} pixels at a threshold)" if excused else ""
    return Comparison(name + suffix, float((different & ~undecided).sum()), 0.0)


def _check_instances(arrays: dict, outputs, name: str, stuff: set[int]) -> list[Comparison]:
    width = int(arrays["in/output_hw"][1])
    masks = np.unpackbits(arrays[f"out/{name}_masks_packbits"], axis=-1)[..., :width]
    recorded = {"scores": arrays[f"out/{name}_scores"], "classes": arrays[f"out/{name}_classes"], "masks": masks}
    top_k = int(arrays["in/topk"])
    return compare_instances(outputs, _target(arrays), stuff, top_k, {"instances": recorded}, prefix=name)


def compare_instances(
    outputs, target: list, stuff: set[int], top_k: int, recorded: dict, prefix: str = "instances"
) -> list[Comparison]:
    """Recorded instances as sets. Empty masks count too, so this looks below the public method, which drops them."""
    logits, _ = _logits_at_target(outputs, target)
    item = next(read_predictions(outputs, target, stuff))
    ours = find_instances(item, threshold=0.0, mask_threshold=0.5, top_k=top_k)
    labels, scores, masks = (torch.from_numpy(recorded["instances"][kind]) for kind in ("classes", "scores", "masks"))
    pairs = _pair(ours, labels, masks.bool())
    different = torch.stack([ours.masks[i] != masks[j].bool() for i, j in pairs]).any(0) if pairs else masks.sum(0) > 0
    return [
        compare_equal(f"{prefix}_number", (len(ours.labels), len(pairs)), (len(labels), len(labels))),
        _pixels(f"{prefix}_masks", different, (logits.abs() <= MASK_NOISE).any(0)),
        compare(f"{prefix}_scores", ours.scores[[i for i, _ in pairs]], scores[[j for _, j in pairs]], TOLERANCE),
    ]


def _pair(ours, labels: torch.Tensor, masks: torch.Tensor) -> list[tuple[int, int]]:
    """(ours, recorded) of one class with the most similar masks, each used once; the recorded order is arbitrary."""
    free, pairs = set(range(len(ours.labels))), []
    for index, (label, mask) in enumerate(zip(labels, masks)):
        candidates = [i for i in free if ours.labels[i] == label]
        if candidates:
            nearest = min(candidates, key=lambda i: int((ours.masks[i] != mask).sum()))
            pairs.append((nearest, index))
            free.remove(nearest)
    return pairs
