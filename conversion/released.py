"""What a checkpoint is, read off its names and shapes: kind, task, configuration.

Sources: the released configurations of MAFT+ (arXiv 2408.00744), FC-CLIP (arXiv 2308.02487), MAFT (arXiv 2310.00240).
Shapes tell widths, depths and numbers of queries. What they cannot tell follows the released rule (text heads of
width 64, 8 heads and 4 points in the segmenter, CDT's token order) and can be overruled by a configuration file.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging

from maftplus.configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig
from maftplus.conversion.checkpoint import CheckpointError
from maftplus.conversion.rename import convert_state

logger = logging.get_logger(__name__)

# kind -> its rename table; FC-CLIP's names are MAFT+'s without CDT and teacher
TABLE_OF = {
    "maftplus": "maftplus",
    "fcclip": "maftplus",
    "maft": "maft",
    "freeseg": "freeseg",
    "open_clip": "open_clip",
    "openai_clip": "openai_clip",
}
TITLES = {
    "maftplus": "MAFT+",
    "fcclip": "FC-CLIP",
    "maft": "MAFT",
    "freeseg": "FreeSeg",
    "open_clip": "OpenCLIP",
    "openai_clip": "CLIP",
}
MAFT_KINDS = ("maft", "freeseg")
# Names of a converted model -> what people call the part; the first that fits counts.
PARTS = {
    "proposer.": "mask proposer",
    "segmenter.": "segmenter",
    "cdt.": "Content-Dependent Transfer",
    "vision_model.": "CLIP's vision tower",
    "visual_projection.": "CLIP's vision tower",
    "text_model.": "CLIP's text tower",
    "text_projection.": "CLIP's text tower",
    "": "single rows and scales",
}
TASKS = ("semantic", "panoptic")
TASK_OF_CLASS_WEIGHTS = {172: "semantic", 134: "panoptic"}  # COCO-Stuff 171 and COCO panoptic 133, void added
HEAD_WIDTH = 64
SEGMENTER_HEADS, SEGMENTER_POINTS = 8, 4
END_OF_TEXT = 49407
MAFT_FIRST_MASKED_LAYER = 8
MAFT_IMAGE_SIZE = 480


def detect_kind(names: Iterable[str]) -> str:
    """
    One of `TABLE_OF`, from the state dict's names.

    Raises:
        CheckpointError: if it is none of these, is converted already, or a CLIP that transformers loads as it is.
    """
    names = list(names)
    if _any_starts(names, "IPCLIP."):
        return "maft"
    if _any_starts(names, "clip_adapter.clip_model.") and _any_starts(names, "sem_seg_head.interaction."):
        return "freeseg"
    if _any_starts(names, "backbone.clip_model."):
        return "maftplus" if _any_starts(names, "cdt.") else "fcclip"
    if _any_starts(names, "visual.trunk."):
        return "open_clip"
    if _any_starts(names, "visual.conv1.", "visual.class_embedding"):
        return "openai_clip"
    if _any_starts(names, "model.clip.", "vision_model.encoder.stages."):
        raise CheckpointError(
            "This is converted already, nothing is left to do: `from_pretrained` of transformers loads its folder."
        )
    if _any_starts(names, "text_model.") and _any_starts(names, "vision_model."):
        raise CheckpointError(
            "This is a transformers CLIP; nothing to convert: `MaftPlusCLIPModel.from_pretrained` loads its folder."
        )
    raise CheckpointError(
        "Unknown architecture: neither MAFT+, FC-CLIP, MAFT (`IPCLIP.*`), FreeSeg (`clip_adapter.*`), "
        "OpenCLIP's ConvNeXt (`visual.trunk.*`) nor "
        f"OpenAI's CLIP (`visual.conv1.*`). The first names are: {', '.join(names[:5])}."
    )


def infer_task(state: Mapping[str, Tensor], kind: str, task: str | None = None) -> str | None:
    """
    "semantic" or "panoptic" from the length of the loss's class weights; `task` overrules it. None for bare CLIPs.

    Raises:
        CheckpointError: if neither tells the task of a MAFT+ checkpoint, or `task` is another word.
    """
    if task is not None and task not in TASKS:
        raise CheckpointError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
    if kind not in ("maftplus", "fcclip"):
        return "semantic" if kind in MAFT_KINDS else None
    weights = state.get("criterion.empty_weight")
    found = None if weights is None else TASK_OF_CLASS_WEIGHTS.get(len(weights))
    if task is not None and found not in (None, task):
        logger.warning(f"The class weights are those of a {found} checkpoint; converted as {task}, as asked.")
    if task is None and found is None and kind == "maftplus":
        there = "no class weights (`criterion.empty_weight`)" if weights is None else f"{len(weights)} class weights"
        raise CheckpointError(
            "Semantic and panoptic MAFT+ checkpoints have the same names and differ in their number of class weights "
            f"(172: semantic, 134: panoptic); this one has {there}. "
            "Give `task` (`--task semantic` or `--task panoptic`)."
        )
    return task or found or "panoptic"


def infer_config(
    state: Mapping[str, Tensor],
    kind: str,
    task: str | None = None,
    overrides: dict[str, Any] | None = None,
    proposer_config: PreTrainedConfig | None = None,
) -> PreTrainedConfig:
    """
    The configuration of the converted model, from the original's names and shapes.

    Args:
        state: The original state dict; tensors of the meta device will do.
        kind: As `detect_kind` gives it.
        task: As `infer_task` gives it.
        overrides: Fields of the configuration (nested) that replace the released rule.
        proposer_config: MAFT: a proposer of transformers instead of its own; without any it becomes a bare CLIP.
    Raises:
        CheckpointError: if `overrides` has an unknown field or contradicts the shapes.
        ValueError: if names are unknown or missing.
    """
    converted = convert_state(state, TABLE_OF[kind])
    has_own_proposer = kind in MAFT_KINDS and proposer_config is None and _any_starts(converted, "proposer.")
    is_full = kind in ("maftplus", "fcclip") or proposer_config is not None or has_own_proposer
    clip = {name.removeprefix("clip."): tensor for name, tensor in converted.items()}
    shapes, rules = _clip_shapes(clip), _clip_rules(clip, kind)
    if is_full:
        shapes, rules = {"clip_config": shapes}, {"clip_config": rules, **_model_rules(kind, task)}
        shapes.update(_decoder_shapes(converted, "segmenter.") if kind not in MAFT_KINDS else {})
    if has_own_proposer:
        shapes["proposer_config"] = _proposer_shapes(converted)
        rules["proposer_config"] = _proposer_rules(shapes["proposer_config"])
    overrides = overrides or {}
    if not is_full:
        overrides = overrides.get("clip_config", overrides)  # the full model's file serves its CLIP alone, too
    _check_contradictions(shapes, overrides)
    fields = _merged(_merged(shapes, rules), overrides)
    if is_full and overrides.get("cdt_form", rules["cdt_form"]) != rules["cdt_form"]:
        _check_cdt_form(rules["cdt_form"], overrides["cdt_form"], task)
    if proposer_config is not None:
        fields["proposer_config"] = proposer_config
    config_class = MaftPlusConfig if is_full else MaftPlusCLIPConfig
    _check_fields(overrides, config_class(**_merged(shapes, rules), **_given(proposer_config)))
    config = config_class(**fields)
    _check_masked_layer(getattr(config, "clip_config", config))
    return config


def variant_name(config: PreTrainedConfig, kind: str) -> str:
    """What people call it: "MAFT+ base", or the kind and the width of the joint space."""
    clip = getattr(config, "clip_config", config)
    title = TITLES[kind]
    vision = clip.vision_config
    sizes = {(128, 640): "base", (192, 768): "large"} if vision.model_type == "convnext" else {}
    sizes.update({(768, 512): "ViT-B", (1024, 768): "ViT-L"} if not sizes else {})
    width = vision.hidden_sizes[0] if vision.model_type == "convnext" else vision.hidden_size
    return f"{title} {sizes.get((width, clip.projection_dim), f'of width {width}')}"


def describe(names: Iterable[str], kind: str) -> str:
    """One sentence: which of the released files these names are, and whether anything in them proposes masks."""
    has_proposer = _any_starts(names, "sem_seg_head.")
    return {
        "maftplus": "MAFT+: CLIP, its frozen teacher, segmenter and Content-Dependent Transfer",
        "fcclip": "FC-CLIP: CLIP and segmenter",
        "maft": "MAFT: mask-aware CLIP, its teacher and its own mask proposer"
        if has_proposer
        else "MAFT, CLIP only: mask-aware CLIP without a mask proposer",
        "freeseg": "FreeSeg, which MAFT's training starts from: the untouched CLIP and the mask proposer",
        "open_clip": "OpenCLIP, CLIP only",
        "openai_clip": "OpenAI's CLIP, CLIP only",
    }[kind]


def count_parts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameters of each part of a converted model, batch norms' stored statistics included."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.").removeprefix("clip.")
        part = next(label for prefix, label in PARTS.items() if name.startswith(prefix))
        counts[part] = counts.get(part, 0) + tensor.numel()
    return counts


def main_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The sizes and switches that tell one variant from another, flat."""
    clip = getattr(config, "clip_config", config)
    vision, text = clip.vision_config, clip.text_config
    fields = {"joint_space": clip.projection_dim, "visual_projection": clip.visual_projection_type}
    if vision.model_type == "convnext":
        fields["vision"] = f"ConvNeXt, widths {vision.hidden_sizes}, depths {vision.depths}"
    else:
        size = f"{vision.image_size} pixels in patches of {vision.patch_size}"
        fields["vision"] = f"ViT, width {vision.hidden_size}, {vision.num_hidden_layers} layers, {size}"
    fields["text"] = f"width {text.hidden_size}, {text.num_hidden_layers} layers, {text.num_attention_heads} heads"
    if clip is not config:
        names = ("num_queries", "hidden_dim", "encoder_layers", "decoder_layers", "num_attention_heads")
        decoders = config.proposer_config if config.has_own_proposer else config
        fields.update({name: getattr(decoders, name) for name in names})
        fields.update({name: getattr(config, name) for name in ("cdt_form", "ensemble_alpha", "ensemble_beta")})
    return fields


def _any_starts(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _given(proposer_config: PreTrainedConfig | None) -> dict[str, Any]:
    return {} if proposer_config is None else {"proposer_config": proposer_config}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of repeated blocks whose names start with `prefix` and their number."""
    rests = (name.removeprefix(prefix) for name in state if name.startswith(prefix))
    return len({rest.split(".")[0] for rest in rests})


def _clip_shapes(clip: Mapping[str, Tensor]) -> dict[str, Any]:
    tokens = clip["text_model.embeddings.token_embedding.weight"]
    text = {
        "vocab_size": tokens.shape[0],
        "hidden_size": tokens.shape[1],
        "max_position_embeddings": clip["text_model.embeddings.position_embedding.weight"].shape[0],
        "num_hidden_layers": _count(clip, "text_model.encoder.layers."),
        "intermediate_size": clip["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "projection_dim": clip["text_projection.weight"].shape[0],
    }
    is_convnext = "vision_model.embeddings.class_embedding" not in clip
    return {
        "text_config": text,
        "vision_config": _convnext_shapes(clip) if is_convnext else _vit_shapes(clip),
        "projection_dim": text["projection_dim"],
        "visual_projection_type": "linear" if "visual_projection.weight" in clip else "mlp",
    }


def _convnext_shapes(clip: Mapping[str, Tensor]) -> dict[str, Any]:
    patches = clip["vision_model.embeddings.patch_embeddings.weight"]
    stages = [
        f"vision_model.encoder.stages.{index}.layers." for index in range(_count(clip, "vision_model.encoder.stages."))
    ]
    return {
        "model_type": "convnext",
        "num_channels": patches.shape[1],
        "patch_size": patches.shape[2],
        "num_stages": len(stages),
        "hidden_sizes": [clip[f"{stage}0.dwconv.weight"].shape[0] for stage in stages],
        "depths": [_count(clip, stage) for stage in stages],
    }


def _vit_shapes(clip: Mapping[str, Tensor]) -> dict[str, Any]:
    patches = clip["vision_model.embeddings.patch_embedding.weight"]
    positions = clip["vision_model.embeddings.position_embedding.weight"].shape[0]
    return {
        "model_type": "clip_vision_model",
        "hidden_size": patches.shape[0],
        "num_channels": patches.shape[1],
        "patch_size": patches.shape[2],
        "image_size": patches.shape[2] * math.isqrt(positions - 1),
        "num_hidden_layers": _count(clip, "vision_model.encoder.layers."),
        "intermediate_size": clip["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "projection_dim": clip["visual_projection.weight"].shape[0],
    }


def _clip_rules(clip: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    """What the shapes of CLIP do not tell."""
    is_vit = "vision_model.embeddings.class_embedding" in clip
    vocabulary, width = clip["text_model.embeddings.token_embedding.weight"].shape
    text = {
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "hidden_act": "quick_gelu" if is_vit else "gelu",  # OpenAI's towers against OpenCLIP's
        "bos_token_id": min(END_OF_TEXT, vocabulary - 1) - 1,
        "eos_token_id": min(END_OF_TEXT, vocabulary - 1),
    }
    if not is_vit:
        return {
            "text_config": text,
            "vision_config": {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "image_size": 320},
        }
    width = clip["vision_model.embeddings.class_embedding"].shape[0]
    layers = _count(clip, "vision_model.encoder.layers.")
    return {
        "text_config": text,
        "vision_config": {"num_attention_heads": max(width // HEAD_WIDTH, 1), "hidden_act": "quick_gelu"},
        "first_masked_layer": min(MAFT_FIRST_MASKED_LAYER, layers - 1),
        "position_align_corners": kind in MAFT_KINDS,
    }


def _decoder_shapes(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Sizes of the pixel decoder and the masked-attention decoder below `prefix`."""
    queries = state[f"{prefix}decoder.queries_features.weight"]
    return {
        "num_queries": queries.shape[0],
        "hidden_dim": queries.shape[1],
        "encoder_layers": _count(state, f"{prefix}pixel_decoder.layers."),
        "encoder_feedforward_dim": state[f"{prefix}pixel_decoder.layers.0.fc1.weight"].shape[0],
        "decoder_layers": _count(state, f"{prefix}decoder.layers."),
        "dim_feedforward": state[f"{prefix}decoder.layers.0.fc1.weight"].shape[0],
    }


def _proposer_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = [f"proposer.trunk.stages.{index}." for index in range(_count(state, "proposer.trunk.stages."))]
    narrow, wide = (state[f"{stages[0]}0.layer.{index}.convolution.weight"].shape[0] for index in (1, 2))
    return {
        "model_type": MaftPlusProposerConfig.model_type,
        "stem_size": state["proposer.trunk.stem.2.convolution.weight"].shape[0],
        "hidden_sizes": [state[f"{stage}0.layer.2.convolution.weight"].shape[0] for stage in stages],
        "depths": [_count(state, stage) for stage in stages],
        "bottleneck_reduction": wide // narrow,
        **_decoder_shapes(state, "proposer."),
        "interaction_dim": state["proposer.text_attn.q_proj.weight"].shape[0],
        "class_feedforward_dim": state["proposer.decoder.class_embedder.layers.0.weight"].shape[0],
    }


def _proposer_rules(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes of MAFT's proposer do not tell."""
    return {
        "num_attention_heads": SEGMENTER_HEADS,
        "num_points": SEGMENTER_POINTS,
        "interaction_heads": SEGMENTER_HEADS,
        "last_stage_dilations": [2**index for index in range(shapes["depths"][-1])],
    }


def _model_rules(kind: str, task: str | None) -> dict[str, Any]:
    """The released settings of the whole model."""
    rules: dict[str, Any] = {"num_attention_heads": SEGMENTER_HEADS, "num_points": SEGMENTER_POINTS}
    if kind == "maftplus":
        return {**rules, "cdt_form": task, "cdt_token_order": "released"}
    off = {"cdt_form": "off", "compensation_weight": 0.0}
    if kind == "fcclip":
        return {**rules, **off, "ensemble_alpha": 0.4, "ensemble_beta": 0.8, "mask_aware_weight": 0.0}
    return {
        **off,
        "clip_image_size": MAFT_IMAGE_SIZE,
        "proposal_align_corners": True,
        "use_proposer_void": False,
        "distillation_weight": 0.1,
    }


def _merged(fields: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `others` laid over, nested dictionaries too."""
    result = dict(fields)
    for name, value in others.items():
        is_nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], value) if is_nested else value
    return result


def _check_contradictions(shapes: Mapping[str, Any], overrides: Mapping[str, Any], path: str = "") -> None:
    for name, value in overrides.items():
        if name not in shapes:
            continue
        if isinstance(shapes[name], Mapping) and isinstance(value, Mapping):
            _check_contradictions(shapes[name], value, f"{path}{name}.")
        elif value != shapes[name]:
            raise CheckpointError(
                f"`{path}{name}` is {value!r} in the configuration file, but the tensors' shapes say {shapes[name]!r}."
            )


def _check_fields(overrides: Mapping[str, Any], config: PreTrainedConfig, path: str = "") -> None:
    for name, value in overrides.items():
        if not hasattr(config, name):
            raise CheckpointError(f"`{path}{name}` in the configuration file is no field of {type(config).__name__}.")
        if isinstance(value, Mapping) and isinstance(getattr(config, name), PreTrainedConfig):
            _check_fields(value, getattr(config, name), f"{path}{name}.")


def _check_masked_layer(clip_config: MaftPlusCLIPConfig) -> None:
    if clip_config.takes_masks_by_pooling:
        return
    layers = clip_config.vision_config.num_hidden_layers
    if clip_config.first_masked_layer >= layers:
        raise CheckpointError(
            f"`first_masked_layer` ({clip_config.first_masked_layer}) must be below the tower's {layers} layers, or "
            "masks have no effect."
        )


def _check_cdt_form(inferred: str, given: str, task: str | None) -> None:
    """CDT cannot be added or taken away, and its form is the task's."""
    if "off" in (inferred, given):
        there = "has none" if inferred == "off" else "has it"
        raise CheckpointError(f"`cdt_form` is {given!r} in the configuration file, but the checkpoint {there}.")
    raise CheckpointError(
        f"`cdt_form` {given!r} in the configuration file contradicts the task {task!r}: give `task`."
    )


__all__ = [
    "MAFT_KINDS",
    "TABLE_OF",
    "TASKS",
    "count_parts",
    "describe",
    "detect_kind",
    "infer_config",
    "infer_task",
    "main_settings",
    "variant_name",
]
