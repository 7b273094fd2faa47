"""The whole MAFT with given mask proposals (`*masked_forward.npz`): states of the tower, class logits, semantic maps.

Training on the same golden is checked in `reference_train.py`.
"""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from reference_tools import Comparison, compare, compare_equal, load_arrays, original_state, sibling
from text_tools import UnknownWords, load_tokenizer

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.released import infer_config
from maftplus.conversion.rename import convert_maft_model_state
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.words_maftplus import build_prompts

CLASS_LOGITS, SEMANTIC, RELATIVE, MARGIN = 1e-4, 3e-4, 1e-4, 1e-7


def check_forward(path: Path) -> list[Comparison]:
    """A golden of given proposals with its `*_config.json` beside it."""
    arrays, settings = load_arrays(path), load_settings(path)
    model, processor = build_model(settings), image_processor(settings)
    inputs = processor(images=images(arrays), return_tensors="pt")
    proposals = torch.from_numpy(arrays["in/pred_mask_logits"])
    with torch.no_grad(), layer_outputs(model.model.clip) as states:
        outputs = model(**inputs, **recorded_vocabulary(arrays), proposal_logits=proposals)
    sizes = [size or arrays[f"in/image_{index}"].shape[:2] for index, size in enumerate(settings["outs"])]
    maps = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    return [
        *_check_words(model, outputs, settings, arrays),
        *_check_masks(model, outputs, arrays),
        *_check_states(states, arrays),
        *_check_features(model, inputs, outputs, arrays),
        compare("clip_cls_logits", outputs.out_vocab_logits, arrays["mid/clip_cls_logits"], RELATIVE, relative=True),
        *(
            compare(f"sem_seg_{index}", found["segmentation_scores"], arrays[f"out/sem_seg_{index}"], SEMANTIC)
            for index, found in enumerate(maps)
            if f"out/sem_seg_{index}" in arrays
        ),
    ]


@contextmanager
def layer_outputs(clip):
    """What every layer of the ViT gave, in order: a sequence, or patches and one class token a mask."""
    outputs = []
    layers = clip.vision_model.encoder.layers
    handles = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]
    yield outputs
    for handle in handles:
        handle.remove()


def _check_words(model, outputs, settings: dict, arrays: dict) -> list[Comparison]:
    recorded = arrays["mid/text_features_with_non_object"]
    found = [compare("void row", outputs.text_embeds[0, -1], recorded[-1], RELATIVE, relative=True)]
    rows = text_rows(model, settings["classes"])
    return found + ([] if rows is None else [compare("text rows", rows, recorded[:-1], RELATIVE, relative=True)])


def text_rows(model, classes: list[str]) -> torch.Tensor | None:
    """The text tower's rows of whole names, commas included; None where their words need the whole vocabulary."""
    prompts = build_prompts([[name] for name in classes])
    try:
        rows = load_tokenizer(words=prompts.texts)(prompts.texts, padding=True, return_tensors="pt")
    except UnknownWords:
        return None
    ids = {"prompt_class_ids": prompts.class_ids, "prompt_synonym_ids": prompts.synonym_ids}
    ids = {name: torch.tensor(values) for name, values in ids.items()}
    return model.encode_vocabulary(**rows, **ids)["text_embeds"]


def _check_masks(model, outputs, arrays: dict) -> list[Comparison]:
    """Masks on the token grid: which patches they cover, and how near they come to the threshold."""
    side = model.config.clip_image_size // model.config.clip_config.vision_config.patch_size
    masks = F.interpolate(outputs.masks_queries_logits.sigmoid(), (side, side), mode="bilinear", align_corners=False)
    attendable = np.array_equal((masks >= 0.5).numpy(), arrays["mid/mask_attendable"])
    margin = arrays["margin/resized_mask_min_gap_to_half"]
    return [
        compare_equal("mask_attendable", attendable, True),
        compare("mask margin", (masks - 0.5).abs().min(), margin, MARGIN),
    ]


def _check_states(states: list, arrays: dict) -> list[Comparison]:
    """The class token before the first masked layer, and one a mask from there on."""
    found = []
    for name, array in arrays.items():
        match = re.fullmatch(r"mid/(block_\d+|last_block)_(class_token|first\d+)", name)
        if match is None:
            continue
        output = states[-1 if match[1] == "last_block" else int(match[1].removeprefix("block_"))]
        value = output[:, 0] if match[2] == "class_token" else output[1]
        found.append(compare(name, value, array, RELATIVE, relative=True))
    return found


def _check_features(model, inputs, outputs, arrays: dict) -> list[Comparison]:
    """The masks' embeddings, and how far they lie from those of a tower without masked layers."""
    clip = model.model.clip
    with torch.no_grad():
        vision = clip.encode_image(model.model.clip_pixel_values(inputs["pixel_values"]))
        patches = clip.embed_dense(vision).flatten(2).transpose(1, 2)  # (B, N, D)
        plain = torch.cat([clip.embed_image(vision)[:, None], patches], dim=1)[:, : outputs.mask_embeds.shape[1]]
    features = [name for name in ("mid/ipclip_features", "mid/mask_features") if name in arrays]
    found = [compare(name, outputs.mask_embeds, arrays[name], RELATIVE, relative=True) for name in features]
    name = "control/max_abs_difference_to_tower_without_masked_blocks"
    distance = (outputs.mask_embeds - plain).abs().max()
    return found + [compare(name, distance, arrays[name], RELATIVE, relative=True)] * (name in arrays)


def load_settings(path: Path) -> dict:
    """The golden's `*_config.json`."""
    return json.loads(sibling(path, "_config.json", ".npz").read_text())


def build_model(settings: dict) -> MaftPlusForUniversalSegmentation:
    """MAFT without a proposer, with the recorded weights, in evaluation mode."""
    state = original_state({name: spec[0] for name, spec in settings["keys"].items()})
    clip = infer_config(state, "maft", overrides=_untold(settings))
    config = MaftPlusConfig(
        clip_config=clip,
        cdt_form="off",
        clip_image_size=settings["clip_input"],
        distillation_weight=settings["dis_weight"],
    )
    model = MaftPlusForUniversalSegmentation(config)
    model.load_state_dict(convert_maft_model_state(state))
    return model.eval()


def _untold(settings: dict) -> dict:
    """What names and shapes do not tell of CLIP."""
    return {
        "text_config": {"num_attention_heads": settings["text_heads"]},
        "vision_config": {"num_attention_heads": settings["vheads"]},
        "first_masked_layer": settings["start"],
    }


def image_processor(settings: dict) -> MaftPlusImageProcessorPil:
    """The recorded preparation: no resizing, CLIP statistics in 0 to 255, padded to a multiple of 32."""
    mean, deviation = settings["clip_pixel_mean"], settings["clip_pixel_std"]
    scaled = {"image_mean": [value / 255 for value in mean], "image_std": [value / 255 for value in deviation]}
    return MaftPlusImageProcessorPil(do_resize=False, size_divisor=settings["size_divisibility"], **scaled)


def recorded_vocabulary(arrays: dict) -> dict[str, torch.Tensor]:
    """The recorded text rows without the non-object one; whole names, so one row a class."""
    rows = torch.from_numpy(arrays["mid/text_features_with_non_object"])[:-1]
    return {"text_embeds": rows, "text_class_ids": torch.arange(len(rows))}


def images(arrays: dict) -> list[Image.Image]:
    """The recorded pictures."""
    count = sum(name.startswith("in/image_") for name in arrays)
    return [Image.fromarray(arrays[f"in/image_{index}"]) for index in range(count)]
