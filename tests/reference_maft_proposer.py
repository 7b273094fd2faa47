"""MAFT with its own mask proposer: from picture to result (`*proposer.npz`); its head alone (`*interaction_head.npz`).

The configuration is read off names and shapes as a conversion reads it, so these checks test that reading too; what
shapes do not tell (numbers of heads, dilations) comes from the recorded configuration.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from reference_maft_forward import image_processor, images, text_rows
from reference_tools import Comparison, compare, compare_equal, load_arrays, original_state, sibling

from maftplus.configuration_maftplus import MaftPlusProposerConfig
from maftplus.conversion.released import infer_config
from maftplus.conversion.rename import convert_maft_model_state, convert_state
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.proposer_maftplus import MaftPlusProposer

TRUNK, MULTI_SCALE, SEMANTIC, RELATIVE = 1e-5, 2e-5, 3e-4, 1e-4
PREFIX = "proposer."


def check_proposer(path: Path) -> list[Comparison]:
    """`*proposer.npz` with its `*_config.json` beside it; part by part (`single/`, `batch/`, `spread/`)."""
    arrays, settings = load_arrays(path), json.loads(sibling(path, "_config.json", ".npz").read_text())
    parts = sorted({name.split("/")[0] for name in arrays} - {"text"})
    found = []
    for part in parts:
        model = build_model(settings, settings.get(part, {}))
        of_part = {
            name.removeprefix(f"{part}/"): array for name, array in arrays.items() if name.startswith(f"{part}/")
        }
        with torch.no_grad():
            compared = _check_part(
                model, settings, _sizes(settings, part), of_part, arrays["text/rows_with_non_object"]
            )
        found += [Comparison(f"{part}/{c.name}", c.difference, c.tolerance) for c in compared]
    return found + _check_settings(model, settings) + _check_text(model, settings, arrays)


def build_model(settings: dict, part: dict | list) -> MaftPlusForUniversalSegmentation:
    """MAFT with its own proposer and the recorded weights; a part may multiply some of them."""
    state = original_state({name: spec[0] for name, spec in settings["keys"].items()})
    gains = part.get("weight_gain", {}) if isinstance(part, dict) else {}
    state |= {name: state[name] * gain for name, gain in gains.items()}
    model = MaftPlusForUniversalSegmentation(infer_config(state, "maft", overrides=_untold(settings)))
    model.load_state_dict(convert_maft_model_state(state))
    return model.eval()


def _untold(settings: dict) -> dict:
    """What names and shapes do not tell, from the recorded configuration."""
    clip, decoder = settings["clip"], settings["decoder"]
    scaled = {
        f"{ours}image_{ending}": [value / 255 for value in settings[f"{theirs}pixel_{ending}"]]
        for ours, theirs in (("", "clip_"), ("proposer_", ""))
        for ending in ("mean", "std")
    }  # 0 to 1
    return scaled | {
        "clip_config": {
            "text_config": {"num_attention_heads": clip["text_heads"]},
            "vision_config": {"num_attention_heads": clip["vheads"]},
            "first_masked_layer": clip["start"],
        },
        "clip_image_size": clip["clip_input"],
        "proposer_config": {
            "num_attention_heads": decoder["heads"],
            "num_points": settings["pixel_decoder"]["points"],
            "interaction_heads": settings["interaction"]["heads"],
            "last_stage_dilations": settings["backbone"]["res5_conv2_dilation_per_block"],
        },
    }


def _sizes(settings: dict, part: str) -> list:
    """Recorded output sizes; None is the picture's own."""
    own = settings.get(part)
    return own["out"] if isinstance(own, dict) else settings[f"{part}_out"]


def _check_part(model, settings: dict, sizes: list, recorded: dict, rows: np.ndarray) -> list[Comparison]:
    processor = image_processor(settings)
    inputs = processor(images=images(recorded), return_tensors="pt")
    vocabulary = {"text_embeds": torch.from_numpy(rows[:-1]), "text_class_ids": torch.arange(len(rows) - 1)}
    outputs = model(**inputs, **vocabulary)
    sizes = [size or recorded[f"in/image_{index}"].shape[:2] for index, size in enumerate(sizes)]
    maps = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    ours = _proposer_values(model, inputs, torch.from_numpy(rows)) | _classified(model, inputs, outputs)
    ours |= {f"out/sem_seg_{i}": (found["segmentation_scores"], SEMANTIC, False) for i, found in enumerate(maps)}
    attendable = np.array_equal(_attendable(model, outputs).numpy(), recorded["mid/mask_attendable"])
    forgotten = {name for name in recorded if name.startswith(("mid/", "out/"))} - ours.keys()
    return [
        *(compare(name, ours[name][0], recorded[name], *ours[name][1:]) for name in ours if name in recorded),
        compare_equal("mid/mask_attendable", attendable, True),
        compare_equal("every recorded array", forgotten, {"mid/mask_attendable"}),
    ]


def _proposer_values(model, inputs, text_embeds: torch.Tensor) -> dict[str, tuple]:
    """What the proposer computes on the way, {name: (value, tolerance, is_relative)}."""
    proposer, rows = model.model.proposer, []
    pixels = model.model._proposer_pixels(inputs["pixel_values"], inputs["pixel_mask"])
    mask_features, levels = proposer.encode(pixels)
    handle = proposer.text_norm.register_forward_hook(lambda _, __, output: rows.append(output[0]))
    found = proposer(mask_features, levels, text_embeds, output_auxiliary_logits=True)
    handle.remove()
    trunk = {"mid/stem": proposer.trunk.stem(pixels)}
    trunk |= {f"mid/res{2 + index}": feature for index, feature in enumerate(proposer.trunk(pixels))}
    maps = {"mid/mask_features": mask_features, "mid/mask_features_after_interaction": found.mask_features}
    for ending, of in (("", levels), ("after_interaction_", found.multi_scale_features)):
        maps |= {f"mid/multi_scale_{ending}{index}": level for index, level in enumerate(of)}
    maps |= {f"mid/text_rows_level_{index}": row for index, row in enumerate(rows)}
    predicted = _predictions(found)
    predicted["mid/proposer_class_logits"] = 100 * F.normalize(found.class_embeds, dim=-1) @ text_embeds.T
    return (
        {name: (value, TRUNK, False) for name, value in trunk.items()}
        | {name: (value, MULTI_SCALE, False) for name, value in maps.items()}
        | {name: (value, RELATIVE, True) for name, value in predicted.items()}
    )


def _predictions(found) -> dict[str, torch.Tensor]:
    """Class embeddings and mask logits, and those of every prediction."""
    masks = torch.stack([*found.auxiliary_masks_queries_logits, found.masks_queries_logits]).flatten(1)
    return {
        "mid/class_embeddings": found.class_embeds,
        "mid/pred_masks": found.masks_queries_logits,
        "mid/aux_class_embeddings": torch.stack([*found.auxiliary_class_embeds, found.class_embeds]),
        "mid/aux_pred_masks_meanstd": torch.stack([masks.mean(1), masks.std(1)], dim=1),
    }


def _classified(model, inputs, outputs) -> dict[str, tuple]:
    """What CLIP makes of the masks."""
    return {
        "mid/clip_input_every16": (
            model.model.clip_pixel_values(inputs["pixel_values"])[..., ::16, ::16],
            TRUNK,
            False,
        ),
        "mid/ipclip_mask_features": (outputs.mask_embeds, RELATIVE, True),
        "mid/clip_cls_logits": (outputs.out_vocab_logits, RELATIVE, True),
    }


def _attendable(model, outputs) -> torch.Tensor:
    """Which patches of the token grid lie in which mask."""
    side = model.config.clip_image_size // model.config.clip_config.vision_config.patch_size
    return F.interpolate(outputs.masks_queries_logits.sigmoid(), (side, side), mode="bilinear") >= 0.5


def _check_settings(model, settings: dict) -> list[Comparison]:
    """What was read off names and shapes is what was recorded."""
    read, backbone = model.config.proposer_config, settings["backbone"]
    reading = {
        "layers of the decoder": (read.decoder_layers, settings["decoder"]["layers"]),
        "layers of the encoder": (read.encoder_layers, settings["pixel_decoder"]["encoder_layers"]),
        "blocks of the trunk": (list(read.depths), backbone["blocks_per_stage"]),
        "widths of the trunk": (list(read.hidden_sizes), backbone["out_channels"]),
        "width of the attention to text": (read.interaction_dim, settings["interaction"]["attention_dim"]),
    }
    return [compare_equal(name, *values) for name, values in reading.items()]


def _check_text(model, settings: dict, arrays: dict) -> list[Comparison]:
    recorded = arrays["text/rows_with_non_object"]
    void = F.normalize(model.model.void_embedding.weight, dim=-1)[0]
    found = [compare("text/non_object_row", void, recorded[-1], RELATIVE, relative=True)]
    rows = text_rows(model, settings["text"]["classes"])
    return found + ([] if rows is None else [compare("text/rows", rows, recorded[:-1], RELATIVE, relative=True)])


def check_interaction_head(path: Path) -> list[Comparison]:
    """`*interaction_head.npz`: pixel decoder, interaction and decoder on given maps; sizes in its `config_json`."""
    arrays = load_arrays(path)
    settings, text = arrays["config_json"], torch.from_numpy(arrays["in/text"])
    proposer = _head(settings)
    given = sorted((name for name in arrays if re.fullmatch(r"in/res\d+", name)), key=lambda name: int(name[6:]))
    with torch.no_grad():
        mask_features, levels = proposer.pixel_decoder([torch.from_numpy(arrays[name]) for name in given])
        found = proposer(mask_features, levels, text)
    ours = {"mid/mask_features": mask_features, "mid/mask_features_after_interaction": found.mask_features}
    for ending, of in (("", levels), ("after_interaction_", found.multi_scale_features)):
        ours |= {f"mid/multi_scale_{ending}{index}": level for index, level in enumerate(of)}
    results = {"out/pred_masks": found.masks_queries_logits, "out/pred_logits": found.class_embeds}
    forgotten = [n for n in arrays if n.startswith(("mid/", "out/")) and n not in ours.keys() | results.keys()]
    return [
        *(compare(name, value, arrays[name], MULTI_SCALE) for name, value in ours.items() if name in arrays),
        *(compare(name, value, arrays[name], RELATIVE, relative=True) for name, value in results.items()),
        compare_equal("every recorded array", forgotten, []),
    ]


def _head(settings: dict) -> MaftPlusProposer:
    """The proposer behind its trunk, with the recorded weights; the trunk is a stub that gives the recorded widths."""
    config = MaftPlusProposerConfig(
        stem_size=2,
        hidden_sizes=settings["channels"],
        depths=[1] * len(settings["channels"]),
        last_stage_dilations=[1],
        bottleneck_reduction=1,
        num_queries=settings["queries"],
        hidden_dim=settings["hidden"],
        num_attention_heads=settings["nheads"],
        encoder_layers=settings["enc"],
        encoder_feedforward_dim=_size(settings, "pixel_decoder.transformer.encoder.layers.0.linear1.weight"),
        decoder_layers=settings["dec"],
        dim_feedforward=settings["ffn"],
        interaction_dim=settings["inter_dim"],
        interaction_heads=settings["inter_heads"],
        class_feedforward_dim=settings["embed_hidden"],
    )
    proposer = MaftPlusProposer(config, settings["embed"])
    state = original_state({name: spec[0] for name, spec in settings["keys"].items()})
    converted = convert_state(state, "maft", is_complete=False)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in converted.items()}
    missing, unexpected = proposer.load_state_dict(state, strict=False)
    if unexpected or any(not name.startswith("trunk.") for name in missing):
        raise KeyError(f"unexpected weights {sorted(unexpected)}, missing weights {sorted(missing)}")
    return proposer.eval()


def _size(settings: dict, ending: str) -> int:
    """Rows of the recorded tensor whose name ends so."""
    return next(spec[0][0] for name, spec in settings["keys"].items() if name.endswith(ending))
