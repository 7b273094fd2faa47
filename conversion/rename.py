"""Rename tables: the names of the original checkpoints, one rule a line, and ours.

Sources: released MAFT+ (arXiv 2408.00744), FC-CLIP (arXiv 2308.02487), MAFT (arXiv 2310.00240) and the FreeSeg that it
starts from (arXiv 2303.17225), OpenCLIP, OpenAI CLIP.
Everything here is a pure function of dictionaries {name: tensor}: no files, any sizes, the meta device included.
A rule reads `original -> ours`: `{i}`, `{j}`, `{k}` stand for numbers, `{p}` for `weight` and for `bias`, `{qkv}` for
`q`, `k` and `v` of a fused attention weight. Every name has a rule, dropping included; a name without one is an error.
Shapes: a parameter matrix that the original applies as `x @ P` (in, out) becomes a Linear's weight (out, in).
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

PLACEHOLDER = re.compile(r"\{([ijkp])\}")
MAX_LISTED = 8


@dataclass(frozen=True)
class Rule:
    """One line of a table. `target` is None where the tensor is dropped on purpose, then `note` says why."""

    source: str
    target: str | None
    do_transpose: bool = False
    constant: float | None = None
    note: str = ""

    def targets(self, numbers: Mapping[str, str]) -> list[str]:
        """Our names for one original name whose placeholders stand for `numbers`; three for a fused weight."""
        if self.target is None:
            return []
        parts = "qkv" if "{qkv}" in self.target else [""]
        return [self.target.format(**numbers, qkv=part) for part in parts]

    def convert(self, tensor: Tensor, numbers: Mapping[str, str]) -> dict[str, Tensor]:
        """Our tensors {name: tensor}, views of `tensor` wherever that is possible."""
        names = self.targets(numbers)
        if self.constant is not None:
            return {names[0]: torch.full_like(tensor, self.constant)}
        if len(names) > 1:
            return dict(zip(names, tensor.chunk(len(names), dim=0)))
        return dict.fromkeys(names, tensor.T if self.do_transpose and tensor.ndim == 2 else tensor)


@dataclass(frozen=True)
class Group:
    """Rules that are either all there or all absent (a projection head, CDT); `required` groups must be there."""

    name: str
    rules: tuple[Rule, ...]
    required: bool = True

    def moved(self, source: str, target: str = "", required: bool | None = None) -> "Group":
        """The same group under other prefixes."""
        rules = tuple(
            replace(rule, source=source + rule.source, target=None if rule.target is None else target + rule.target)
            for rule in self.rules
        )
        return replace(self, rules=rules, required=self.required if required is None else required)

    def dropped(self, note: str) -> "Group":
        """The same names, dropped on purpose."""
        return Group(self.name, tuple(replace(rule, target=None, note=note) for rule in self.rules), required=False)


def _rules(source: str, target: str, *lines: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{source}.{old}", f"{target}.{new}") for old, new in lines)


def _drop(source: str, note: str) -> Rule:
    return Rule(source, None, note=note)


def _transformer(source: str, target: str) -> tuple[Rule, ...]:
    """The blocks of CLIP's transformers, text and ViT alike."""
    return _rules(
        f"{source}.resblocks.{{i}}",
        f"{target}.layers.{{i}}",
        ("attn.in_proj_{p}", "self_attn.{qkv}_proj.{p}"),
        ("attn.out_proj.{p}", "self_attn.out_proj.{p}"),
        ("ln_1.{p}", "layer_norm1.{p}"),
        ("mlp.c_fc.{p}", "mlp.fc1.{p}"),
        ("mlp.c_proj.{p}", "mlp.fc2.{p}"),
        ("ln_2.{p}", "layer_norm2.{p}"),
    )


LOGIT_SCALE = Rule("logit_scale", "logit_scale")
TEXT = Group(
    "text tower",
    (
        Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *_transformer("transformer", "text_model.encoder"),
        Rule("ln_final.{p}", "text_model.final_layer_norm.{p}"),
        Rule("text_projection", "text_projection.weight", do_transpose=True),
    ),
)
CONVNEXT = Group(
    "ConvNeXt tower",
    (
        Rule("visual.trunk.stem.0.{p}", "vision_model.embeddings.patch_embeddings.{p}"),
        Rule("visual.trunk.stem.1.{p}", "vision_model.embeddings.layernorm.{p}"),
        Rule(
            "visual.trunk.stages.{i}.downsample.{k}.{p}", "vision_model.encoder.stages.{i}.downsampling_layer.{k}.{p}"
        ),
        *_rules(
            "visual.trunk.stages.{i}.blocks.{j}",
            "vision_model.encoder.stages.{i}.layers.{j}",
            ("conv_dw.{p}", "dwconv.{p}"),
            ("norm.{p}", "layernorm.{p}"),
            ("mlp.fc1.{p}", "pwconv1.{p}"),
            ("mlp.fc2.{p}", "pwconv2.{p}"),
            ("gamma", "layer_scale_parameter"),
        ),
        Rule("visual.trunk.head.norm.{p}", "vision_model.layernorm.{p}"),
    ),
)
LINEAR_HEAD = Group("linear head", (Rule("visual.head.proj.weight", "visual_projection.weight"),), required=False)
MLP_HEAD = Group(
    "MLP head",
    (
        Rule("visual.head.mlp.fc1.{p}", "visual_projection.fc1.{p}"),
        Rule("visual.head.mlp.fc2.weight", "visual_projection.fc2.weight"),
    ),
    required=False,
)
VIT = Group(
    "ViT tower",
    (
        Rule("class_embedding", "vision_model.embeddings.class_embedding"),
        Rule("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        Rule("conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        Rule("ln_pre.{p}", "vision_model.pre_layrnorm.{p}"),
        *_transformer("transformer", "vision_model.encoder"),
        Rule("ln_post.{p}", "vision_model.post_layernorm.{p}"),
        Rule("proj", "visual_projection.weight", do_transpose=True),
    ),
)
CLIP_EXTRAS = Group(
    "build-time numbers",
    tuple(
        _drop(name, "a number that the shapes repeat")
        for name in ("attn_mask", "input_resolution", "context_length", "vocab_size")
    ),
    required=False,
)
OPEN_CLIP = (Group("logit scale", (LOGIT_SCALE,)), TEXT, CONVNEXT, LINEAR_HEAD, MLP_HEAD, CLIP_EXTRAS)
OPENAI_CLIP = (Group("logit scale", (LOGIT_SCALE,)), TEXT, VIT.moved("visual."), CLIP_EXTRAS)

PIXEL_DECODER = Group(
    "pixel decoder",
    (
        Rule("input_proj.{i}.0.{p}", "input_projections.{i}.convolution.{p}"),
        Rule("input_proj.{i}.1.{p}", "input_projections.{i}.norm.{p}"),
        Rule("transformer.level_embed", "level_embed"),
        *_rules(
            "transformer.encoder.layers.{i}",
            "layers.{i}",
            ("self_attn.sampling_offsets.{p}", "self_attn.sampling_offsets.{p}"),
            ("self_attn.attention_weights.{p}", "self_attn.attention_weights.{p}"),
            ("self_attn.value_proj.{p}", "self_attn.value_proj.{p}"),
            ("self_attn.output_proj.{p}", "self_attn.output_proj.{p}"),
            ("norm1.{p}", "self_attn_layer_norm.{p}"),
            ("linear1.{p}", "fc1.{p}"),
            ("linear2.{p}", "fc2.{p}"),
            ("norm2.{p}", "final_layer_norm.{p}"),
        ),
        Rule("adapter_1.weight", "lateral.convolution.weight"),
        Rule("adapter_1.norm.{p}", "lateral.norm.{p}"),
        Rule("layer_1.weight", "output.convolution.weight"),
        Rule("layer_1.norm.{p}", "output.norm.{p}"),
        Rule("mask_features.{p}", "mask_features.{p}"),
    ),
)
DECODER_LAYERS = Group(
    "masked-attention decoder",
    (
        Rule("query_feat.weight", "queries_features.weight"),
        Rule("query_embed.weight", "queries_embedder.weight"),
        Rule("level_embed.weight", "level_embed.weight"),
        *_rules(
            "transformer_cross_attention_layers.{i}",
            "layers.{i}",
            ("multihead_attn.in_proj_{p}", "cross_attn.{qkv}_proj.{p}"),
            ("multihead_attn.out_proj.{p}", "cross_attn.out_proj.{p}"),
            ("norm.{p}", "cross_attn_layer_norm.{p}"),
        ),
        *_rules(
            "transformer_self_attention_layers.{i}",
            "layers.{i}",
            ("self_attn.in_proj_{p}", "self_attn.{qkv}_proj.{p}"),
            ("self_attn.out_proj.{p}", "self_attn.out_proj.{p}"),
            ("norm.{p}", "self_attn_layer_norm.{p}"),
        ),
        *_rules(
            "transformer_ffn_layers.{i}",
            "layers.{i}",
            ("linear1.{p}", "fc1.{p}"),
            ("linear2.{p}", "fc2.{p}"),
            ("norm.{p}", "final_layer_norm.{p}"),
        ),
        Rule("decoder_norm.{p}", "layer_norm.{p}"),
        Rule("mask_embed.layers.{i}.{p}", "mask_embedder.layers.{i}.{p}"),
        Rule("class_embed.layers.{i}.{p}", "class_embedder.layers.{i}.{p}"),
    ),
)
MASK_POOLING = Group(
    "class head's mask pooling",
    (
        Rule("_mask_pooling_proj.0.{p}", "pooled_norm.{p}"),
        Rule("_mask_pooling_proj.1.{p}", "pooled_proj.{p}"),
    ),
)
CDT = Group(
    "Content-Dependent Transfer",
    _rules(
        "cdt.cross_atten",
        "cdt",
        ("multihead_attn.in_proj_{p}", "attn.{qkv}_proj.{p}"),
        ("multihead_attn.out_proj.{p}", "attn.out_proj.{p}"),
        ("MLP.{p}", "linear.{p}"),
        ("norm.{p}", "layer_norm.{p}"),
    ),
    required=False,
)
SEGMENTER_SCALE = Group("segmenter's logit scale", (LOGIT_SCALE,))
VOID = Group("void embedding", (Rule("void_embedding.weight", "void_embedding.weight"),))
LOSS_BUFFERS = Group("loss", (_drop("criterion.empty_weight", "class weights of the training loss"),), required=False)
PIXEL_STATISTICS = Group(
    "pixel statistics",
    (_drop("pixel_mean", "the processor normalises"), _drop("pixel_std", "the processor normalises")),
    required=False,
)

MAFTPLUS = (
    *(group.moved("backbone.clip_model.", "clip.") for group in OPEN_CLIP),
    *(group.moved("backbone_t.clip_model.").dropped("the frozen teacher of training") for group in OPEN_CLIP),
    PIXEL_DECODER.moved("sem_seg_head.pixel_decoder.", "segmenter.pixel_decoder."),
    DECODER_LAYERS.moved("sem_seg_head.predictor.", "segmenter.decoder."),
    MASK_POOLING.moved("sem_seg_head.predictor.", "segmenter.decoder."),
    SEGMENTER_SCALE.moved("sem_seg_head.predictor.", "segmenter."),
    CDT,
    VOID,
    LOSS_BUFFERS,
    PIXEL_STATISTICS,
)


def _normed(source: str, target: str) -> tuple[Rule, ...]:
    """A convolution without bias and its frozen batch norm."""
    return (
        Rule(f"{source}.weight", f"{target}.convolution.weight"),
        Rule(f"{source}.norm.{{p}}", f"{target}.normalization.{{p}}"),
        Rule(f"{source}.norm.running_mean", f"{target}.normalization.running_mean"),
        Rule(f"{source}.norm.running_var", f"{target}.normalization.running_var"),
    )


def _resnet_stage(source: str, target: str) -> tuple[Rule, ...]:
    blocks = [_normed(f"{source}.{{i}}.conv{k + 1}", f"{target}.{{i}}.layer.{k}") for k in range(3)]
    return (*_normed(f"{source}.0.shortcut", f"{target}.0.shortcut"), *(rule for block in blocks for rule in block))


RESNET = Group(
    "ResNet trunk",
    (
        *(rule for k in range(3) for rule in _normed(f"stem.conv{k + 1}", f"stem.{k}")),
        *(rule for stage in range(4) for rule in _resnet_stage(f"res{stage + 2}", f"stages.{stage}")),
    ),
)
INTERACTION = Group(
    "text interaction",
    (
        Rule("gamma", "layer_scale"),
        Rule("layer_norm_q_1.{p}", "map_norm.{p}"),
        Rule("layer_norm_k_1.{p}", "text_norm.{p}"),
        *(Rule(f"attn.{part}_proj.{{p}}", f"text_attn.{part}_proj.{{p}}") for part in ("q", "k", "v", "out")),
    ),
)
OWN_PROPOSER = Group(
    "MAFT's own proposer",  # all of it or nothing
    tuple(
        rule
        for group in (
            RESNET.moved("backbone.", "proposer.trunk."),
            PIXEL_DECODER.moved("sem_seg_head.pixel_decoder.", "proposer.pixel_decoder."),
            INTERACTION.moved("sem_seg_head.interaction.", "proposer."),
            DECODER_LAYERS.moved("sem_seg_head.predictor.", "proposer.decoder."),
        )
        for rule in group.rules
    ),
    required=False,
)
MAFT_TEXT_SCALE = Group(
    "logit scale", (replace(LOGIT_SCALE, constant=math.log(100.0), note="MAFT ignores CLIP's own scale and uses 100"),)
)
NON_OBJECT = Group("non-object row", (Rule("clip_adapter.non_object_embedding", "void_embedding.weight"),))
MAFT_SHARED = (
    *(group.moved("clip_adapter.clip_model.", "clip.") for group in (TEXT, MAFT_TEXT_SCALE, CLIP_EXTRAS)),
    NON_OBJECT,
    PIXEL_STATISTICS,
    PIXEL_STATISTICS.moved("clip_adapter."),
    LOSS_BUFFERS,
)
MAFT = (
    VIT.moved("IPCLIP.", "clip."),
    *MAFT_SHARED,
    VIT.moved("clip_adapter.clip_model.visual.").dropped("the untouched CLIP tower, teacher of training"),
    VIT.moved("T.").dropped("a copy of the untouched CLIP tower that the original never reads"),
    OWN_PROPOSER,
)
FREESEG = (  # what MAFT's training starts from: the same system around the untouched CLIP
    VIT.moved("clip_adapter.clip_model.visual.", "clip."),
    *MAFT_SHARED,
    replace(OWN_PROPOSER, required=True),
)
TABLES = {
    "maftplus": MAFTPLUS,
    "maft": MAFT,
    "freeseg": FREESEG,
    "open_clip": OPEN_CLIP,
    "openai_clip": OPENAI_CLIP,
}


def convert_maftplus_state(state: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """
    MAFT+ or FC-CLIP (without `cdt.*` and teacher) -> `MaftPlusForUniversalSegmentation`; `prefix=""`: `MaftPlusModel`.

    Raises:
        ValueError: if a name is unknown or missing; the message lists the nearest names.
    """
    return {prefix + name: tensor for name, tensor in convert_state(state, "maftplus").items()}


def convert_open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's ConvNeXt CLIP -> `MaftPlusCLIPModel`. Raises ValueError as `convert_maftplus_state` does."""
    return convert_state(state, "open_clip")


def convert_openai_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's ViT CLIP -> transformers' CLIP names. Raises ValueError as `convert_maftplus_state` does."""
    return convert_state(state, "openai_clip")


def convert_maft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    MAFT's CLIP -> `MaftPlusCLIPModel`: the student tower (`IPCLIP`), the text tower, logit scale ln(100).

    The non-object row is left out; `convert_maft_model_state` has it. Raises ValueError as above.
    """
    renamed_state = convert_state(state, "maft")
    return {name.removeprefix("clip."): tensor for name, tensor in renamed_state.items() if name.startswith("clip.")}


def convert_maft_model_state(state: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """MAFT's CLIP, non-object row (as void) and, where it is there, proposer -> `MaftPlusForUniversalSegmentation`."""
    return {prefix + name: tensor for name, tensor in convert_state(state, "maft").items()}


def teacher_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen CLIP of training in a MAFT+ or MAFT state, under `MaftPlusCLIPModel` names; empty if it has none."""
    for prefix, kind in (("backbone_t.clip_model.", "open_clip"), ("clip_adapter.clip_model.", "openai_clip")):
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if part:
            return convert_state(part, kind)
    return {}


def convert_state(state: Mapping[str, Tensor], kind: str, is_complete: bool = True) -> dict[str, Tensor]:
    """
    Rename a whole state dict by the table `kind` ("maftplus", "maft", "freeseg", "open_clip", "openai_clip").

    Args:
        is_complete: `False` takes any part of a state dict (only `cdt.*`, only `IPCLIP.*`).
    Raises:
        ValueError: if a name is unknown or missing; the message lists the nearest names.
    """
    check_names(state, kind, is_complete)
    converted = {}
    for name, tensor in state.items():
        rule, numbers = _find(name, kind)
        converted.update(rule.convert(tensor, numbers))
    return converted


def renamed(name: str, kind: str = "maftplus") -> list[str]:
    """
    Our name(s), as in `MaftPlusModel` (or CLIP's for the CLIP tables), for one original name.

    Three for a fused attention weight, in the order q, k, v; none if it is dropped. Raises KeyError if it has no rule.
    """
    found = _find(name, kind)
    if found is None:
        raise KeyError(f"`{name}` has no rule in the table {kind!r}.")
    return found[0].targets(found[1])


def original_name(name: str, kind: str = "maftplus") -> str | None:
    """The original name behind one of ours (without `model.`), or None."""
    for group in TABLES[kind]:
        for rule in group.rules:
            match = rule.target and re.fullmatch(_as_pattern(rule.target).replace(r"\{qkv\}", "[qkv]"), name)
            if match:
                return _fill(rule.source, match.groupdict())
    return None


def check_names(names: Iterable[str], kind: str, is_complete: bool = True) -> None:
    """Raise ValueError if a name has no rule, or if a rule's name is missing, with the nearest names of each."""
    names = list(names)
    unknown = [name for name in names if _find(name, kind) is None]
    missing = [name for name in _expected(names, kind) if name not in set(names)] if is_complete else []
    if unknown or missing:
        raise ValueError(_describe(kind, unknown, missing, names))


def dropped(names: Iterable[str], kind: str) -> dict[str, int]:
    """How many of `names` are dropped, by the reason why."""
    counts: dict[str, int] = {}
    for name in names:
        found = _find(name, kind)
        if found and found[0].target is None:
            counts[found[0].note] = counts.get(found[0].note, 0) + 1
    return counts


def _find(name: str, kind: str) -> tuple[Rule, dict[str, str]] | None:
    for rule, pattern in _patterns(kind):
        match = pattern.fullmatch(name)
        if match:
            return rule, match.groupdict()
    return None


def _patterns(kind: str) -> list[tuple[Rule, re.Pattern]]:
    if kind not in TABLES:
        raise ValueError(f"`kind` must be one of {', '.join(TABLES)}, got {kind!r}.")
    return [(rule, _compiled(rule.source)) for group in TABLES[kind] for rule in group.rules]


@cache
def _compiled(template: str) -> re.Pattern:
    return re.compile(_as_pattern(template))


def _as_pattern(template: str) -> str:
    """The regular expression of a template: a named group a placeholder, `*` for anything."""
    pieces = PLACEHOLDER.split(template)  # literal, placeholder, literal, ...
    literals = [re.escape(piece).replace(r"\*", ".*") for piece in pieces[::2]]
    groups = [f"(?P<{key}>{'weight|bias' if key == 'p' else '[0-9]+'})" for key in pieces[1::2]]
    return "".join(literal + group for literal, group in zip(literals, [*groups, ""]))


def _fill(template: str, numbers: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: numbers[match[1]], template)


def _expected(names: list[str], kind: str) -> list[str]:
    """Original names that must be there: every rule of every required or present group, for every number seen."""
    expected: list[str] = []
    for group in TABLES[kind]:
        matches = {rule: [m for m in map(_compiled(rule.source).fullmatch, names) if m] for rule in group.rules}
        kept = [rule for rule in group.rules if rule.target is not None]
        if not group.required and not any(matches[rule] for rule in kept):
            continue
        for rule in kept:
            expected += _instances(rule.source, _numbers(rule, kept, matches))
    return expected


def _numbers(rule: Rule, rules: list[Rule], matches: dict[Rule, list[re.Match]]) -> list[dict[str, str]]:
    """Values of the number placeholders under the rule's repeated part, gaps filled, from all rules that share it."""
    head = _head(rule.source)
    seen = {
        tuple(int(value) for name, value in match.groupdict().items() if name != "p")
        for other in rules
        if _head(other.source) == head
        for match in matches[other]
    }
    keys = [key for key in PLACEHOLDER.findall(rule.source) if key != "p"]
    if not keys:
        return [{}]
    # n numbers that are not 0 to n - 1 leave one of these out: no need to count to the largest, which may be 10^12
    counts = Counter(values[:-1] for values in seen)
    filled = seen | {(*lead, last) for lead, count in counts.items() for last in range(count)}
    return [dict(zip(keys, map(str, values))) for values in sorted(filled or {(0,) * len(keys)})]


def _head(template: str) -> str:
    """The template up to its last number: `transformer.resblocks.{i}`."""
    return template[: max((template.rfind(key) + 3 for key in ("{i}", "{j}", "{k}")), default=0)]


def _instances(template: str, numbers: list[dict[str, str]]) -> list[str]:
    letters = ("weight", "bias") if "{p}" in template else ("",)
    return [_fill(template, {**values, "p": letter}) for values in numbers for letter in letters]


def _describe(kind: str, unknown: list[str], missing: list[str], names: list[str]) -> str:
    lines = [f"The names do not fit the table {kind!r}: {len(unknown)} unknown, {len(missing)} missing."]
    lines += _listing("unknown", unknown, missing or _expected(names, kind))
    lines += _listing("missing", missing, unknown or names)
    return "\n".join(lines)


def _listing(label: str, names: list[str], others: list[str]) -> list[str]:
    lines = []
    for name in names[:MAX_LISTED]:
        near = difflib.get_close_matches(name, others[:4000], n=2, cutoff=0.7)
        lines.append(f"  {label} `{name}`" + (f", nearest: {', '.join(near)}" if near else ""))
    return lines + ([f"  and {len(names) - MAX_LISTED} more {label}"] if len(names) > MAX_LISTED else [])


__all__ = [
    "TABLES",
    "convert_maft_model_state",
    "convert_maft_state",
    "convert_maftplus_state",
    "convert_open_clip_state",
    "convert_openai_clip_state",
    "convert_state",
    "original_name",
    "renamed",
    "teacher_state",
]
