"""Checks of MAFT's recorded numbers: the mask-aware ViT tower (`ip_clip.npz`)."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from reference_tools import Comparison, compare, compare_equal, load_arrays, original_state

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig
from maftplus.conversion.rename import convert_state
from maftplus.towers_maftplus import VISIBLE_FROM

TOLERANCE = 1e-4  # of a tensor's largest value
TIE = 1e-6  # a patch this near to the threshold may fall on either side; so may everything that its mask's token saw


def check_ip_clip(path: Path) -> list[Comparison]:
    """The visual tower alone: features under masks, without masks, dense, and its states layer by layer."""
    arrays = load_arrays(path)
    model = ip_clip_model(arrays["config_json"])
    with torch.no_grad():
        ours = _features(model, arrays) | _states(model, arrays)
        is_tie = _ties(model, arrays)  # (B, Q, patches)
    tied, first = is_tie.any(-1), model.config.first_masked_layer
    sides = [(name, value, torch.from_numpy(arrays[name])) for name, value in ours.items()]
    found = [
        compare(name, *(_without_ties(tied, first, name, side) for side in both), TOLERANCE, relative=True)
        for name, *both in sides
    ]
    found += _exact(model, arrays, is_tie)
    recorded = {name for name in arrays if name.startswith(("out/", "mid/"))}
    return found + [compare_equal("every recorded array", sorted(recorded - {c.name for c in found}), [])]


def ip_clip_model(sizes: dict) -> MaftPlusCLIPModel:
    """Our model with the recorded tower's weights, from the sizes in `config_json`; the text tower is a stub."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "image_size": sizes["input_resolution"],
        "patch_size": sizes["patch_size"],
    }
    text = {
        "vocab_size": 3,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = MaftPlusCLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=sizes["output_dim"],
        first_masked_layer=sizes["start_layers"],
        position_align_corners=True,
    )
    model = MaftPlusCLIPModel(config).eval()
    prefix = sizes["weight_name_prefix"]
    state = original_state({prefix + name: shape for name, shape in _visual_shapes(sizes).items()})
    renamed = {name.removeprefix("clip."): value for name, value in convert_state(state, "maft", False).items()}
    _, unexpected = model.load_state_dict(renamed, strict=False)
    absent = {name for name in model.state_dict() if name.startswith("vis")} - set(renamed)
    if unexpected or absent:
        raise KeyError(f"unexpected weights {sorted(unexpected)}, missing weights {sorted(absent)}")
    return model


def _features(model: MaftPlusCLIPModel, arrays: dict) -> dict[str, torch.Tensor]:
    pixels, masks = torch.from_numpy(arrays["in/pixels"]), torch.from_numpy(arrays["in/masks"])
    vision = model.encode_image(pixels)
    return {
        "out/mask_features": model.get_mask_features(pixels, masks),
        "out/mask_features_first_image_only": model.get_mask_features(pixels[:1], masks[:1]),
        "out/cls_unmasked": model.embed_image(vision),
        "out/dense_unmasked": model.embed_dense(vision).permute(0, 2, 3, 1),
        "out/dense_masked": model.embed_dense(vision, see_class_token=False).permute(0, 2, 3, 1),
    }


def _states(model: MaftPlusCLIPModel, arrays: dict) -> dict[str, torch.Tensor]:
    """Tokens after every block, class tokens first, as the original lays them out: (tokens, B, C)."""
    pixels, masks = torch.from_numpy(arrays["in/pixels"]), torch.from_numpy(arrays["in/masks"])
    embeddings = model.vision_model.embeddings
    states = {"mid/positional_embedding_resized": embeddings.interpolate_pos_encoding(None, *pixels.shape[-2:])[0]}
    for block, tokens in enumerate(_tokens_by_block(model, pixels, masks)):
        tokens = tokens.transpose(0, 1)
        name = f"mid/block_{block}_tokens_every8"
        if name in arrays:
            states[name] = tokens[::8]
    states["mid/last_block_first100"] = tokens[:100].transpose(0, 1)
    return states


def _tokens_by_block(model: MaftPlusCLIPModel, pixels: torch.Tensor, masks: torch.Tensor) -> list[torch.Tensor]:
    """(B, tokens, C) after every block; after a masked block the tokens are Q class tokens and the patches."""
    recorded = []

    def record(_module, _inputs, output):
        recorded.append(torch.cat(output[::-1], dim=1) if isinstance(output, tuple) else output)

    tower = model.vision_model
    handles = [layer.register_forward_hook(record) for layer in tower.encoder.layers]
    vision = model.encode_image(pixels)
    visible = tower.visible_patches(masks, vision.grid_size)
    class_states, patches = vision.dense_features[:, :1], vision.dense_features[:, 1:]
    for layer in tower.encoder.layers[tower.first_masked_layer :]:
        patches, class_states = layer(patches, None, class_states, visible)
    for handle in handles:
        handle.remove()
    return recorded


def _ties(model: MaftPlusCLIPModel, arrays: dict) -> torch.Tensor:
    """Where a mask on the token grid is within `TIE` of the threshold, (B, Q, patches)."""
    masks = torch.from_numpy(arrays["in/masks"])
    grid = model.encode_image(torch.from_numpy(arrays["in/pixels"])).grid_size
    resized = F.interpolate(masks, size=grid, mode="bilinear", align_corners=False)
    return ((resized - VISIBLE_FROM).abs() <= TIE).flatten(2)


def _without_ties(tied: torch.Tensor, first_masked: int, name: str, value: torch.Tensor) -> torch.Tensor:
    """A recorded array, or ours, with zeros where it belongs to a mask with ties; `tied` is (B, Q)."""
    if name.startswith("out/mask_features") or name == "mid/last_block_first100":
        return value.masked_fill(tied[: len(value), :, None], 0.0)
    block = re.fullmatch(r"mid/block_(\d+)_tokens_every8", name)
    if block is None or int(block[1]) < first_masked:
        return value
    tokens = tied.T[::8]  # class tokens come before the patches
    return torch.cat([value[: len(tokens)].masked_fill(tokens[..., None], 0.0), value[len(tokens) :]])


def _exact(model: MaftPlusCLIPModel, arrays: dict, is_tie: torch.Tensor) -> list[Comparison]:
    pixels, masks = torch.from_numpy(arrays["in/pixels"]), torch.from_numpy(arrays["in/masks"])
    visible = model.vision_model.visible_patches(masks, model.encode_image(pixels).grid_size)[:, 0, :, :-1]
    recorded = torch.from_numpy(arrays["mid/mask_attendable"]).reshape(visible.shape)
    differing = (visible != recorded) & ~is_tie
    found = [
        compare_equal("mid/mask_attendable", bool(differing.any()), False),
        Comparison(f"ties in {int(is_tie.any(-1).sum())} masks, {int(is_tie.sum())} patches", 0.0, 0.0),
    ]
    with torch.no_grad():
        blocks = _tokens_by_block(model, pixels, masks)
    counts = [(f"mid/block_{block}_n_tokens", tokens.shape[1]) for block, tokens in enumerate(blocks)]
    return found + [compare_equal(name, count, int(arrays[name])) for name, count in counts if name in arrays]


def _visual_shapes(sizes: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original tower."""
    width, patch = sizes["width"], sizes["patch_size"]
    positions = (sizes["input_resolution"] // patch) ** 2 + 1
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (positions, width),
        "proj": (width, sizes["output_dim"]),
        "conv1.weight": (width, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for block in range(sizes["layers"]):
        prefix = f"transformer.resblocks.{block}."
        shapes |= {prefix + name: shape for name, shape in _block_shapes(width).items()}
    return shapes


def _block_shapes(width: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes
