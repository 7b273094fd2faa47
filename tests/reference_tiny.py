"""Whole tiny models, weights rebuilt by the naming rule, against every tensor recorded on the way and the results."""

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from PIL import Image
from reference_functions import class_ids
from reference_postprocess import compare_instances, compare_panoptic
from reference_tools import Comparison, compare, load_arrays, original_state, sibling

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.rename import convert_maftplus_state
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

TRUNK, MULTI_SCALE, MASK_LOGITS, CLASS_LOGITS, SEMANTIC, RELATIVE = 1e-5, 2e-5, 1e-4, 1e-4, 3e-4, 1e-4


def check_inference(path: Path) -> list[Comparison]:
    """A `*_single.npz` or `*_batch.npz` with its `*_config.json` and `*_keys.json`."""
    arrays, settings = load_arrays(path), load_settings(path)
    model = build_model(path)
    inputs = image_processor(settings)(images=_images(arrays), return_tensors="pt")
    vocabulary = recorded_vocabulary(path, arrays)
    pooled = []
    hook = model.model.clip.vision_model.layernorm.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    with torch.no_grad():
        outputs = model(**inputs, **vocabulary, output_auxiliary_logits=True)
        hook.remove()
        found = _text(model, arrays) + _network(model, inputs, outputs, pooled, arrays)
    return found + _results(settings, outputs, arrays)


def load_settings(path: Path) -> dict:
    """The golden's `*_config.json`."""
    return json.loads(_companion(path, "config").read_text())


@lru_cache(maxsize=4)
def _recorded_state(keys: Path) -> dict[str, torch.Tensor]:
    shapes = {name: spec[0] for name, spec in json.loads(keys.read_text()).items()}
    return convert_maftplus_state(original_state(shapes))


def build_model(path: Path) -> MaftPlusForUniversalSegmentation:
    """Our model with the golden's configuration and the recorded weights, in evaluation mode."""
    model = MaftPlusForUniversalSegmentation(model_config(load_settings(path)))
    model.load_state_dict(_recorded_state(_companion(path, "keys")))
    return model.eval()


def model_config(settings: dict) -> MaftPlusConfig:
    """Our configuration for a recorded `*_config.json`."""
    text = {
        "hidden_size": settings["text_width"],
        "intermediate_size": 4 * settings["text_width"],
        "num_attention_heads": settings["text_heads"],
        "num_hidden_layers": settings["text_layers"],
        "vocab_size": settings["text_vocab"],
        "max_position_embeddings": settings["text_context"],
        "hidden_act": "gelu",
    }
    vision = {
        "model_type": "convnext",
        "hidden_sizes": settings["dims"],
        "depths": settings["depths"],
        "layer_norm_eps": 1e-6,
    }
    clip = {
        "text_config": text,
        "vision_config": vision,
        "projection_dim": settings["embed_dim"],
        "visual_projection_type": settings["proj"],
    }
    return MaftPlusConfig(
        clip_config=clip,
        num_queries=settings["num_queries"],
        hidden_dim=settings["hidden_dim"],
        num_attention_heads=settings["nheads"],
        num_points=settings["n_points"],
        encoder_layers=settings["enc_layers"],
        encoder_feedforward_dim=settings["pixel_decoder_ffn"],
        decoder_layers=settings["dec_layers"] - 1,  # the original counts the prediction on the queries
        dim_feedforward=settings["dim_feedforward"],
        cdt_form="panoptic" if settings.get("panoptic_on") else "semantic",
        cdt_token_order="released",
        cdt_num_attention_heads=settings["cdt_heads"],
        train_num_points=settings["train_num_points"],
        oversample_ratio=settings["oversample_ratio"],
        importance_sample_ratio=settings["importance_sample_ratio"],
        class_weight=settings["class_weight"],
        mask_weight=settings["mask_weight"],
        dice_weight=settings["dice_weight"],
        no_object_weight=settings["no_object_weight"],
        compensation_weight=settings["rc_weights"],
    )


def image_processor(settings: dict) -> MaftPlusImageProcessorPil:
    """The recorded preparation: no resizing, CLIP statistics in 0 to 255, padded to a multiple of 32."""
    return MaftPlusImageProcessorPil(
        do_resize=False,
        image_mean=[value / 255 for value in settings["pixel_mean"]],
        image_std=[value / 255 for value in settings["pixel_std"]],
        size_divisor=settings["size_divisibility"],
        semantic_resize="mask_logits" if settings.get("panoptic_on") or settings.get("instance_on") else "class_maps",
    )


def recorded_vocabulary(path: Path, arrays: dict) -> dict[str, torch.Tensor]:
    """The recorded text rows (P, D) and their classes; a batch golden takes them from the single one beside it."""
    if "text/classifier" not in arrays:
        ending = "_batch.npz" if path.name.endswith("_batch.npz") else "_train.npz"
        arrays = load_arrays(sibling(path, "_single.npz", ending))
    ids = class_ids(arrays["text/num_templates"])
    return {"text_embeds": torch.from_numpy(arrays["text/classifier"]), "text_class_ids": ids}


def _companion(path: Path, kind: str) -> Path:
    stem = path.name
    for ending in ("_single.npz", "_batch.npz", "_train.npz"):
        stem = stem.removesuffix(ending)
    return path.with_name(f"{stem}_{kind}.json")


def _images(arrays: dict) -> list[Image.Image]:
    count = sum(name.startswith("in/image_") for name in arrays)
    return [Image.fromarray(arrays[f"in/image_{index}"]) for index in range(count)]


def _text(model, arrays: dict) -> list[Comparison]:
    if "text/token_ids" not in arrays:
        return []
    features = model.model.clip.get_text_features(torch.from_numpy(arrays["text/token_ids"])).pooler_output
    void = F.normalize(model.model.void_embedding.weight, dim=-1)
    return [
        compare("text/features", features, arrays["text/features_unnormalised"], RELATIVE, relative=True),
        compare("text/void_row", void, arrays["text/void_row"], RELATIVE, relative=True),
    ]


def _network(model, inputs, outputs, pooled: list[torch.Tensor], arrays: dict) -> list[Comparison]:
    clip, segmenter = model.model.clip, model.model.segmenter
    vision = clip.encode_image(inputs["pixel_values"])
    decoded = segmenter(vision.feature_maps)
    masks = torch.stack([*outputs.auxiliary_masks_queries_logits, outputs.masks_queries_logits])
    statistics = torch.stack([masks.flatten(1).mean(1), masks.flatten(1).std(1)], dim=1)
    queries = outputs.masks_queries_logits.shape[1]
    ours = {
        "padded_image": (inputs["pixel_values"], TRUNK),
        "stem": (clip.vision_model.embeddings(inputs["pixel_values"]), TRUNK),
        **{f"res{2 + index}": (feature, TRUNK) for index, feature in enumerate(vision.feature_maps)},
        "clip_vis_dense": (outputs.dense_features, TRUNK),
        "mask_features": (decoded.mask_features, MULTI_SCALE),
        **{f"multi_scale_{index}": (level, MULTI_SCALE) for index, level in enumerate(decoded.multi_scale_features)},
        "pred_masks": (outputs.masks_queries_logits, MASK_LOGITS),
        "pred_logits": (outputs.in_vocab_logits, CLASS_LOGITS),
        "out_vocab_cls_results": (outputs.out_vocab_logits, CLASS_LOGITS),
        "aux_pred_logits": (torch.stack([*outputs.auxiliary_in_vocab_logits, outputs.in_vocab_logits]), CLASS_LOGITS),
    }
    relative = {
        "aux_pred_masks_meanstd": statistics,
        "pooled_before_head": next(x for x in pooled if x.ndim == 3 and x.shape[1] == queries),
        "pooled_clip_feature": outputs.mask_embeds,
        "dense_clip_embedding": clip.embed_dense(vision, token_order="released"),
        "text_classifier_after_cdt": outputs.text_embeds,
    }
    recorded = {name.removeprefix("mid/"): array for name, array in arrays.items() if name.startswith("mid/")}
    absolute = [compare(name, ours[name][0], recorded[name], ours[name][1]) for name in ours if name in recorded]
    scaled = [compare(name, relative[name], recorded[name], RELATIVE, True) for name in relative if name in recorded]
    forgotten = recorded.keys() - ours.keys() - relative.keys()
    return absolute + scaled + [Comparison(f"{name} is not checked", float("inf"), 0.0) for name in sorted(forgotten)]


def _results(settings: dict, outputs, arrays: dict) -> list[Comparison]:
    processor = image_processor(settings)
    things = settings.get("test_thing_ids", settings["thing_ids"])
    num_classes = outputs.class_queries_logits.shape[-1] - 1
    stuff = {index for index in range(num_classes) if index not in things}
    sizes = [size or arrays[f"in/image_{i}"].shape[:2] for i, size in enumerate(arrays["meta_json"]["outputs_hw"])]
    scores = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    found = []
    for index, size in enumerate(sizes):
        logits = outputs.class_queries_logits[index]
        found.append(
            compare(f"mask_cls_results_{index}", logits, arrays[f"out/mask_cls_results_{index}"], CLASS_LOGITS)
        )
        sem_seg = scores[index]["segmentation_scores"]
        found.append(compare(f"sem_seg_{index}", sem_seg, arrays[f"out/sem_seg_{index}"], SEMANTIC))
        if settings.get("panoptic_on"):
            found += compare_panoptic(_one(outputs, index), [size], stuff, _of_image(arrays, index))
        if settings.get("instance_on"):
            found += compare_instances(_one(outputs, index), [size], stuff, settings["topk"], _of_image(arrays, index))
    return found


def _one(outputs, index: int) -> SimpleNamespace:
    """What post-processing reads of one picture."""
    names = ("class_queries_logits", "masks_queries_logits", "unpadded_sizes", "padded_sizes")
    return SimpleNamespace(**{name: getattr(outputs, name)[index : index + 1] for name in names})


def _of_image(arrays: dict, index: int) -> dict:
    """One picture's recorded results by names without its index; panoptic maps as {(thresholds): (map, segments)}."""
    segments = arrays["meta_json"].get("segments_info", {})
    prefix = f"out/panoptic_seg_{index}_"
    panoptic = {
        name.removeprefix(prefix): (array, segments[f"segments_info_{index}_{name.removeprefix(prefix)}"])
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    instances = {kind: arrays.get(f"out/inst_{kind}_{index}") for kind in ("scores", "classes", "masks")}
    return {"panoptic": panoptic, "instances": instances}
