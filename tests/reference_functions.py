"""Recorded single functions: class logits, mask pooling, sine encoding, deformable attention, CDT alone."""

from pathlib import Path

import torch
from deformable_tools import multi_scale_deformable_attention
from reference_tools import Comparison, compare, load_arrays, recorded_weight

from maftplus.classifier_maftplus import ContentDependentTransfer, classification_logits
from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.rename import convert_state
from maftplus.layers_maftplus import pool_masks, sine_position_embedding

RELATIVE = 1e-4


def check_functions(path: Path) -> list[Comparison]:
    """Every recorded output of `functions.npz`, each within 1e-4 of its largest value."""
    arrays = load_arrays(path)
    groups = (_classification, _pooling, _positions, _deformable, _transfer)
    return [comparison for group in groups for comparison in group(arrays)]


def class_ids(num_templates) -> torch.Tensor:
    """Class of every text row from the number of synonyms of every class."""
    return torch.repeat_interleave(torch.arange(len(num_templates)), torch.as_tensor(num_templates))


def _tensor(arrays, name: str) -> torch.Tensor:
    return torch.from_numpy(arrays[name])


def _classification(arrays) -> list[Comparison]:
    ids = class_ids(arrays["cls/num_templates"])
    found = []
    for name in (name for name in arrays if name.startswith("cls/out_")):
        _, kind, scale = name.removeprefix("cls/").split("_", 2)
        logit_scale = _tensor(arrays, f"cls/logit_scale_{scale}")
        text = _tensor(arrays, f"cls/text_{kind}")
        ours = classification_logits(
            _tensor(arrays, "cls/x"), text, logit_scale, ids, len(arrays["cls/num_templates"])
        )
        found.append(compare(name, ours, arrays[name], RELATIVE, relative=True))
    return found


def _pooling(arrays) -> list[Comparison]:
    features, logits = _tensor(arrays, "pool/feat"), _tensor(arrays, "pool/mask_logits")
    resized = torch.nn.functional.interpolate(logits, features.shape[-2:], mode="bilinear", align_corners=False)
    return [compare("pool/out", pool_masks(features, resized), arrays["pool/out"], RELATIVE, relative=True)]


def _positions(arrays) -> list[Comparison]:
    found = []
    for name in (name for name in arrays if name.startswith("pos/sine_")):
        features, height, width = (int(part.lstrip("hw")) for part in name.removeprefix("pos/sine_").split("_"))
        ours = sine_position_embedding(height, width, features, device="cpu", dtype=torch.float32)
        found.append(compare(name, ours, arrays[name], RELATIVE, relative=True))
    return found


def _deformable(arrays) -> list[Comparison]:
    sizes = [tuple(size) for size in arrays["msda/spatial_shapes"].tolist()]
    ours = multi_scale_deformable_attention(
        _tensor(arrays, "msda/value"), sizes, _tensor(arrays, "msda/locations"), _tensor(arrays, "msda/weights")
    )
    return [compare("msda/out", ours, arrays["msda/out"], RELATIVE, relative=True)]


def _transfer(arrays) -> list[Comparison]:
    found = []
    for form in ("semantic", "panoptic"):
        text = _tensor(arrays, f"cdt_{form}/text")
        module = _recorded_transfer(form, text.shape[-1])
        ours = module(text, _tensor(arrays, f"cdt_{form}/img_feat"))
        found.append(compare(f"cdt_{form}/out", ours, arrays[f"cdt_{form}/out"], RELATIVE, relative=True))
    return found


def _recorded_transfer(form: str, width: int) -> ContentDependentTransfer:
    clip = {"projection_dim": width, "vision_config": {"model_type": "convnext"}}
    module = ContentDependentTransfer(MaftPlusConfig(clip_config=clip, cdt_form=form))
    shapes = {
        "multihead_attn.in_proj_weight": (3 * width, width),
        "multihead_attn.in_proj_bias": (3 * width,),
        "multihead_attn.out_proj.weight": (width, width),
        "multihead_attn.out_proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "MLP.weight": (width, width),
        "MLP.bias": (width,),
    }
    original = {
        f"cdt.cross_atten.{name}": recorded_weight(f"cdt.cross_atten.{name}", shape) for name, shape in shapes.items()
    }
    renamed = convert_state(original, "maftplus", is_complete=False)
    module.load_state_dict({name.removeprefix("cdt."): tensor for name, tensor in renamed.items()})
    return module.eval().requires_grad_(False)
