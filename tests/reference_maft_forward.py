"""The whole MAFT forward with given mask proposals: features, class logits and semantic maps (inference).

The golden of 2026-11 was recorded with a tower that is shallower than the first masked layer of its code: no layer was
masked, and the "features of the masks" are the first tokens of the plain sequence (class token, then patches). The
margin recorded beside them is that of the true masks. So the features are compared with our masked ones where the
recording was masked, else with our plain tokens, and the masks by their margin; `ip_clip.npz` holds the masked tower.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from reference_tools import Comparison, compare, load_arrays, original_state, sibling

from maftplus.classifier_maftplus import class_log_probabilities, classification_logits
from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.rename import convert_maft_model_state
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

CLASS_LOGITS, SEMANTIC, RELATIVE, MARGIN = 1e-4, 3e-4, 1e-4, 1e-7
STRETCHED = 480  # whatever the size that the position embeddings were trained for


def check_forward(path: Path) -> list[Comparison]:
    """`*maft_v1_forward.npz` with its `*_config.json` beside it."""
    arrays, settings = load_arrays(path), load_settings(path)
    model, processor = build_model(settings), image_processor(settings)
    inputs = processor(images=images(arrays), return_tensors="pt")
    proposals = torch.from_numpy(arrays["in/pred_mask_logits"])
    vocabulary = recorded_vocabulary(arrays)
    with torch.no_grad():
        outputs = model(**inputs, **vocabulary, proposal_logits=proposals)
        embeds = recorded_mask_embeds(model, inputs["pixel_values"], outputs.mask_embeds, arrays)
    logits = class_logits(model, embeds, outputs.text_embeds, vocabulary)
    outputs.class_queries_logits = class_log_probabilities(logits, outputs.void_probabilities)
    sizes = [size or arrays[f"in/image_{index}"].shape[:2] for index, size in enumerate(settings["outs"])]
    maps = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    recorded_rows = arrays["mid/text_features_with_non_object"]
    return [
        compare("void row", outputs.text_embeds[0, -1], recorded_rows[-1], RELATIVE, relative=True),
        compare("mask margin", _margin(model, outputs), arrays["margin/resized_mask_min_gap_to_half"], MARGIN),
        compare("ipclip_features", embeds, arrays["mid/ipclip_features"], RELATIVE, relative=True),
        compare("clip_cls_logits", logits, arrays["mid/clip_cls_logits"], CLASS_LOGITS),
        *(
            compare(f"sem_seg_{index}", found["segmentation_scores"], arrays[f"out/sem_seg_{index}"], SEMANTIC)
            for index, found in enumerate(maps)
        ),
    ]


def recorded_mask_embeds(model, pixel_values: torch.Tensor, masked: torch.Tensor, arrays: dict) -> torch.Tensor:
    """Our embeddings of what was recorded: `masked`, or the first tokens of the plain sequence (B, Q, D)."""
    recorded = torch.from_numpy(arrays["mid/ipclip_features"])
    clip = model.model.clip
    vision = clip.encode_image(model.model.clip_pixel_values(pixel_values))
    patches = clip.embed_dense(vision).flatten(2).transpose(1, 2)  # (B, N, D)
    plain = torch.cat([clip.embed_image(vision)[:, None], patches], dim=1)[:, : masked.shape[1]]
    return min((masked, plain), key=lambda embeds: float((embeds.detach() - recorded).abs().max()))


def class_logits(model, embeds: torch.Tensor, text_embeds: torch.Tensor, vocabulary: dict) -> torch.Tensor:
    """Class logits (B, Q, K+1) of mask embeddings by the model's own rule."""
    ids = vocabulary["text_class_ids"]
    return classification_logits(embeds, text_embeds, model.model.clip.logit_scale, ids, len(ids))


def _margin(model, outputs) -> torch.Tensor:
    """How near a resized mask comes to the threshold 0.5 on the token grid."""
    side = model.config.clip_image_size // model.config.clip_config.vision_config.patch_size
    masks = outputs.masks_queries_logits.sigmoid()
    return (F.interpolate(masks, (side, side), mode="bilinear", align_corners=False) - 0.5).abs().min()


def load_settings(path: Path) -> dict:
    """The golden's `*_config.json`."""
    return json.loads(sibling(path, "_config.json", ".npz").read_text())


def build_model(settings: dict) -> MaftPlusForUniversalSegmentation:
    """MAFT without a proposer of its own, with the recorded weights, in evaluation mode."""
    model = MaftPlusForUniversalSegmentation(model_config(settings))
    state = original_state({name: spec[0] for name, spec in settings["keys"].items()})
    model.load_state_dict(convert_maft_model_state(state))
    return model.eval()


def model_config(settings: dict) -> MaftPlusConfig:
    """Our configuration for the recorded one."""
    text = {
        "hidden_size": settings["twidth"],
        "intermediate_size": 4 * settings["twidth"],
        "num_attention_heads": settings["twidth"] // 64,
        "num_hidden_layers": settings["tlayers"],
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": settings["vwidth"],
        "intermediate_size": 4 * settings["vwidth"],
        "num_attention_heads": settings["vheads"],
        "num_hidden_layers": settings["vlayers"],
        "patch_size": settings["patch"],
        "image_size": settings["res"],
    }
    clip = {
        "text_config": text,
        "vision_config": vision,
        "projection_dim": settings["embed"],
        "first_masked_layer": settings["start"],
        "position_align_corners": True,
    }
    return MaftPlusConfig(clip_config=clip, cdt_form="off", clip_image_size=STRETCHED, distillation_weight=0.1)


def image_processor(settings: dict) -> MaftPlusImageProcessorPil:
    """The recorded preparation: no resizing, CLIP statistics in 0 to 255, padded to a multiple of 32."""
    mean, deviation = settings["clip_pixel_mean"], settings["clip_pixel_std"]
    scaled = {"image_mean": [value / 255 for value in mean], "image_std": [value / 255 for value in deviation]}
    return MaftPlusImageProcessorPil(do_resize=False, size_divisor=32, **scaled)


def recorded_vocabulary(arrays: dict) -> dict[str, torch.Tensor]:
    """The recorded text rows without the non-object one; whole names, so one row a class."""
    rows = torch.from_numpy(arrays["mid/text_features_with_non_object"])[:-1]
    return {"text_embeds": rows, "text_class_ids": torch.arange(len(rows))}


def images(arrays: dict) -> list[Image.Image]:
    """The recorded pictures."""
    count = sum(name.startswith("in/image_") for name in arrays)
    return [Image.fromarray(arrays[f"in/image_{index}"]) for index in range(count)]
