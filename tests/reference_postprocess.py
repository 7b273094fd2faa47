"""Post-processing against the recorded numbers (`postprocess/*.npz` of the reference data)."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from reference_tools import Comparison, compare, compare_equal, load_arrays

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil, _instances, _predictions

SEM_SEG_TOLERANCE = 3e-4
TOLERANCE = 1e-4


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
    comparisons = []
    for key in sorted(name for name in arrays if name.startswith("out/panoptic_seg_")):
        threshold, overlap = map(float, re.search(r"obj([\d.]+)_ovl([\d.]+)", key).groups())
        result = MaftPlusImageProcessorPil().post_process_panoptic_segmentation(
            outputs, threshold, 0.5, overlap, stuff_ids(arrays), _target(arrays)
        )[0]
        name = key.removeprefix("out/panoptic_seg_")
        recorded = torch.from_numpy(arrays[key]).int()
        comparisons.append(_different_pixels(f"panoptic_{name}", result["segmentation"], recorded))
        ours = [(info["id"], not info["was_fused"], info["label_id"]) for info in result["segments_info"]]
        infos = arrays["meta_json"][f"segments_info_{name}"]
        theirs = [(info["id"], info["isthing"], info["category_id"]) for info in infos]
        comparisons.append(compare_equal(f"segments_{name}", ours, theirs))
    return comparisons


def _check_instances(arrays: dict, outputs, name: str, fused: set[int]) -> list[Comparison]:
    """Empty masks are compared too, so this looks below the public method, which drops them."""
    width = int(arrays["in/output_hw"][1])
    masks = np.unpackbits(arrays[f"out/{name}_masks_packbits"], axis=-1)[..., :width].astype(bool)
    item = next(_predictions(outputs, _target(arrays), fused))
    ours = _instances(item, threshold=0.0, mask_threshold=0.5, top_k=int(arrays["in/topk"]))
    ours = _as_set(ours.labels.numpy(), ours.scores.numpy(), ours.masks.numpy())
    theirs = _as_set(arrays[f"out/{name}_classes"], arrays[f"out/{name}_scores"], masks)
    return [
        compare_equal(f"{name}_classes_and_masks", [entry[:2] for entry in ours], [entry[:2] for entry in theirs]),
        compare(f"{name}_scores", [entry[2] for entry in ours], [entry[2] for entry in theirs], TOLERANCE),
    ]


def _as_set(labels: np.ndarray, scores: np.ndarray, masks: np.ndarray) -> list[tuple]:
    """Sorted by class, mask and score: the recorded order is that of an unsorted top-k."""
    return sorted(
        (int(label), np.packbits(mask).tobytes(), float(score)) for label, score, mask in zip(labels, scores, masks)
    )
