"""Mask proposals from a trunk's feature maps: pixel decoder (deformable attention) and masked-attention decoder.

Sources: Mask2Former, arXiv 2112.01527, "Masked-attention Mask Transformer"; deformable attention, arXiv 2010.04159,
"Multi-scale Deformable Attention Module"; class embeddings for text, FC-CLIP, arXiv 2308.02487, "Class-Agnostic Mask
Generator". Where paper and released code differ, this follows the released code, whose weights it loads.
Shapes: B images, Q queries, C hidden width, D joint space, n feature maps, L = n - 1 deformable levels, h_l x w_l
their sizes, S = sum of h_l * w_l tokens, M heads, E = C / M, P sampling points, h4 x w4 the finest map (stride 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_maftplus import MaftPlusConfig, MaftPlusProposerConfig
from .layers_maftplus import (
    MaftPlusAttention,
    MaftPlusLinear,
    MaftPlusMLP,
    pool_masks,
    position_tokens,
    relu,
    to_tokens,
)

NUM_NORM_GROUPS = 32
FARTHEST = float(1 << 20)  # pixels; a place beyond is outside every map as much as this one
LOGIT_SCALE_INIT = math.log(1 / 0.07)
Sizes = Sequence[tuple[int, int]]
Anchors = tuple[Tensor, Tensor]  # places in pixels: whole ones (int32) and what is to be added to them


@dataclass
class MaftPlusSegmenterOutput(ModelOutput):
    """
    What the segmenter proposes.

    Args:
        masks_queries_logits (`Tensor` of shape (B, Q, h4, w4)): Mask logits of the last prediction.
        class_embeds (`Tensor` of shape (B, Q, D)): Un-normalised embeddings of these masks, to be classified by text.
        mask_features (`Tensor` of shape (B, C, h4, w4)): What the masks were read from.
        multi_scale_features (`tuple` of L `Tensor` of shape (B, C, h_l, w_l)): Refined levels, coarse to fine.
        auxiliary_masks_queries_logits, auxiliary_class_embeds (`tuple`, *optional*):
            The same of every earlier prediction, the one on the learned queries first; `None` unless asked for.
    """

    masks_queries_logits: Tensor | None = None
    class_embeds: Tensor | None = None
    mask_features: Tensor | None = None
    multi_scale_features: tuple[Tensor, ...] | None = None
    auxiliary_masks_queries_logits: tuple[Tensor, ...] | None = None
    auxiliary_class_embeds: tuple[Tensor, ...] | None = None

    @classmethod
    def of_predictions(
        cls, predictions: Sequence[tuple[Tensor, Tensor]], mask_features: Tensor, levels: tuple[Tensor, ...]
    ) -> "MaftPlusSegmenterOutput":
        """From (mask logits, class embeddings) of every prediction, or of the last alone."""
        auxiliary = tuple(zip(*predictions[:-1])) or (None, None)
        return cls(*predictions[-1], mask_features, levels, *auxiliary)


class MaftPlusSegmenter(nn.Module):
    """Mask queries against a convolutional trunk's maps; `logit_scale` is that of the class embeddings."""

    def __init__(self, config: MaftPlusConfig):
        super().__init__()
        self.num_feature_maps = len(config.clip_config.vision_config.hidden_sizes)
        hidden_sizes = config.clip_config.vision_config.hidden_sizes
        self.pixel_decoder = MaftPlusPixelDecoder(config, hidden_sizes)
        self.decoder = MaftPlusMaskDecoder(config, len(hidden_sizes) - 1, config.clip_config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE_INIT))
        init_segmenter_weights(self, config)

    def forward(
        self, feature_maps: Sequence[Tensor], output_auxiliary_logits: bool = False
    ) -> MaftPlusSegmenterOutput:
        """
        Propose masks.

        Args:
            feature_maps: One map a trunk stage, fine to coarse, (B, C_i, h_i, w_i); of any sizes, at least 1 x 1.
            output_auxiliary_logits: Also return every earlier prediction (for deep supervision).

        Raises:
            ValueError: if `feature_maps` has another length than the trunk has stages.
        """
        if len(feature_maps) != self.num_feature_maps:
            raise ValueError(
                f"`feature_maps` has {len(feature_maps)} maps, but the trunk in `clip_config.vision_config` has "
                f"{self.num_feature_maps} stages; pass one map a stage, fine to coarse."
            )
        mask_features, levels = self.pixel_decoder(feature_maps)  # (B, C, h4, w4), L x (B, C, h_l, w_l)
        predictions = self.decoder(mask_features, levels, output_auxiliary_logits)
        return MaftPlusSegmenterOutput.of_predictions(predictions, mask_features, levels)


class MaftPlusPixelDecoder(nn.Module):
    """Exchange between the coarse levels by deformable attention, then one step up to the finest map."""

    def __init__(self, config: MaftPlusConfig | MaftPlusProposerConfig, hidden_sizes: Sequence[int]):
        super().__init__()
        finest, *channels = hidden_sizes  # of the trunk's maps
        hidden = config.hidden_dim
        self.input_projections = nn.ModuleList(
            MaftPlusConvNorm(size, hidden, bias=True) for size in reversed(channels)
        )
        self.level_embed = nn.Parameter(torch.zeros(len(channels), hidden))
        self.layers = nn.ModuleList(
            MaftPlusDeformableLayer(config, len(channels)) for _ in range(config.encoder_layers)
        )
        self.lateral = MaftPlusConvNorm(finest, hidden)
        self.output = MaftPlusConvNorm(hidden, hidden, kernel_size=3)
        self.mask_features = nn.Conv2d(hidden, hidden, 1)

    def forward(self, feature_maps: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """n maps (B, C_i, h_i, w_i), fine to coarse -> mask features (B, C, h4, w4), L levels coarse to fine."""
        finest, *coarser = feature_maps
        levels = [project(x) for project, x in zip(self.input_projections, reversed(coarser))]
        levels = self._refine(levels)  # coarse to fine
        upsampled = F.interpolate(levels[-1], size=finest.shape[-2:], mode="bilinear", align_corners=False)
        fused = relu(self.output(self.lateral(finest) + upsampled))
        return self.mask_features(fused), levels

    def _refine(self, levels: list[Tensor]) -> tuple[Tensor, ...]:
        sizes = [tuple(x.shape[-2:]) for x in levels]
        position = torch.cat(
            [position_tokens(x) + embed.to(x.dtype) for x, embed in zip(levels, self.level_embed)], dim=1
        )
        anchors = _anchors(sizes, self.layers[0].self_attn.grid[-1], levels[0].device)
        tokens = torch.cat([to_tokens(x) for x in levels], dim=1)  # (B, S, C)
        for layer in self.layers:
            tokens = layer(tokens, position, anchors, sizes)
        parts = tokens.split([height * width for height, width in sizes], dim=1)
        return tuple(part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes))


class MaftPlusConvNorm(nn.Module):
    """Convolution that keeps the size, then GroupNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = False):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = nn.GroupNorm(NUM_NORM_GROUPS, out_channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.norm(self.convolution(feature_map))


class MaftPlusDeformableLayer(GradientCheckpointingLayer):
    """Deformable self-attention over all levels and a feed-forward network, both post-norm."""

    def __init__(self, config: MaftPlusConfig | MaftPlusProposerConfig, num_levels: int):
        super().__init__()
        self.self_attn = MaftPlusDeformableAttention(config, num_levels)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.fc1 = MaftPlusLinear(config.hidden_dim, config.encoder_feedforward_dim)
        self.fc2 = MaftPlusLinear(config.encoder_feedforward_dim, config.hidden_dim)
        self.final_layer_norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, tokens: Tensor, position: Tensor, anchors: Anchors, sizes: Sizes) -> Tensor:
        """Tokens (B, S, C), their position (1, S, C) and their `_anchors` (2, S, 1, L * P) -> (B, S, C)."""
        attended = self.self_attn(tokens + position, tokens, anchors, sizes)
        tokens = self.self_attn_layer_norm(tokens + attended)
        return self.final_layer_norm(tokens + self.fc2(relu(self.fc1(tokens))))


class MaftPlusDeformableAttention(nn.Module):
    """Every query reads P points of every level, at places and with weights that it chooses itself."""

    def __init__(self, config: MaftPlusConfig | MaftPlusProposerConfig, num_levels: int):
        super().__init__()
        hidden, heads = config.hidden_dim, config.num_attention_heads
        self.grid = (heads, num_levels, config.num_points)
        self.sampling_offsets = MaftPlusLinear(hidden, math.prod(self.grid) * 2)
        self.attention_weights = MaftPlusLinear(hidden, math.prod(self.grid))
        self.value_proj = MaftPlusLinear(hidden, hidden)
        self.output_proj = MaftPlusLinear(hidden, hidden)

    def forward(self, query: Tensor, tokens: Tensor, anchors: Anchors, sizes: Sizes) -> Tensor:
        """Queries (B, S, C) read `tokens` (B, S, C) around `anchors` (2, S, 1, L * P) -> (B, S, C)."""
        heads, levels, points = self.grid
        value = self.value_proj(tokens).unflatten(-1, (heads, -1))
        # Offsets are in pixels of the level they point into.
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels * points, 2)).float()
        weights = _softmax_of_few(self.attention_weights(query).unflatten(-1, (heads, levels * points)).float())
        return self.output_proj(_sample(value, sizes, offsets, anchors, weights))


def _sample(value: Tensor, sizes: Sizes, offsets: Tensor, anchors: Anchors, weights: Tensor) -> Tensor:
    """
    Tokens (B, S, M, E) read at `offsets` (B, queries, M, L * P, 2), (x, y) in pixels, from `anchors` (0: centre of a
    level's first pixel), summed with `weights` (B, queries, M, L * P) -> (B, queries, M * E).
    """
    batch, num_tokens, heads, width = value.shape
    points = offsets.shape[-2] // len(sizes)
    heights, widths = _extents(sizes, points, anchors[0])
    (columns, column_shares), (rows, row_shares) = [
        _neighbours(offset, anchor, extent)
        for offset, *anchor, extent in zip(offsets.unbind(-1), *anchors, (widths, heights))
    ]
    # One table row a token and head. Four separate planes, then one `cat`: broadcasting over the two pairs is slower.
    starts = _table_starts(batch, num_tokens, heads, sizes, points, anchors[0])
    rows = [row * (widths * heads) + starts for row in rows]
    columns = [column * heads for column in columns]
    row_shares = [share * weights for share in row_shares]
    index = torch.cat([row + column for row in rows for column in columns], dim=-1)  # (B, queries, M, 4 * L * P)
    shares = torch.cat([row * column for row in row_shares for column in column_shares], dim=-1)
    summed = _weighted_row_sum(value.reshape(-1, width), index.flatten(0, 2), shares.flatten(0, 2))
    return summed.view(batch, -1, heads * width)


def _neighbours(
    offset: Tensor, anchor: Anchors, extent: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """
    Along one axis, the two pixels around a place (int32) and their shares, each of `offset`'s shape.

    A pixel outside the map is moved into it and has no share. A place that is not a number still gives
    pixels that exist.
    """
    whole, rest = anchor
    place = (offset + rest).clamp(-FARTHEST, FARTHEST)
    floor = place.floor()
    fraction = place - floor
    low = floor.int() + whole
    high = low + 1
    first, last = torch.zeros_like(extent), extent - 1
    pixels = low.clamp(first, last), high.clamp(first, last)
    return pixels, ((1 - fraction) * (pixels[0] == low), fraction * (pixels[1] == high))


def _softmax_of_few(logits: Tensor) -> Tensor:
    """Softmax over a short last dimension, where the parts are five times faster than the whole on a CPU."""
    exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def _extents(sizes: Sizes, points: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of the map that each of the L * P samples reads, (L * P,) each."""
    return tuple(_per_level(extent, points, like) for extent in zip(*sizes))


def _table_starts(batch: int, num_tokens: int, heads: int, sizes: Sizes, points: int, like: Tensor) -> Tensor:
    """Row of a level's first token in the table of B * S * M rows, (B, 1, M, L * P), of `like`'s kind, int32."""
    starts = [sum(h * w for h, w in sizes[:level]) * heads for level in range(len(sizes))]
    level_start = _per_level(starts, points, like)
    head = torch.arange(heads, device=like.device, dtype=torch.int32)[:, None]
    image = torch.arange(batch, device=like.device, dtype=torch.int32)[:, None, None, None]
    return image * (num_tokens * heads) + head + level_start


def _per_level(numbers: Sequence[int], points: int, like: Tensor) -> Tensor:
    """(L * P,) of `like`'s kind. Filled one by one: a graph with dynamic sizes cannot make a tensor of a list."""
    return torch.cat([like.new_full((points,), number) for number in numbers])


def _weighted_row_sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Rows of `table` (N, E) picked by `index` (bags, k), summed with `weight` (bags, k) -> (bags, E)."""
    weight = weight.to(table.dtype)
    if torch.compiler.is_exporting():  # exporters make a loop over the bags of `embedding_bag`
        return (weight[:, None] @ F.embedding(index, table)).squeeze(1)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


class MaftPlusMaskDecoder(nn.Module):
    """Queries look at one level after another, each only inside the mask that it predicted before."""

    def __init__(self, config: MaftPlusConfig | MaftPlusProposerConfig, num_levels: int, class_dim: int):
        super().__init__()
        hidden = config.hidden_dim
        self.queries_features = nn.Embedding(config.num_queries, hidden)
        self.queries_embedder = nn.Embedding(config.num_queries, hidden)
        self.level_embed = nn.Embedding(num_levels, hidden)
        self.layers = nn.ModuleList(MaftPlusMaskDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(hidden)
        self.mask_embedder = MaftPlusMLP(hidden, hidden, hidden, hidden)
        self.add_class_head(config, class_dim)

    def add_class_head(self, config: MaftPlusConfig | MaftPlusProposerConfig, class_dim: int) -> None:
        """What `_embed_classes` needs."""
        hidden = config.hidden_dim
        self.pooled_norm = nn.LayerNorm(hidden)
        self.pooled_proj = nn.Linear(hidden, hidden)
        self.class_embedder = MaftPlusMLP(hidden, hidden, hidden, class_dim)

    def forward(
        self, mask_features: Tensor, levels: Sequence[Tensor], output_auxiliary_logits: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """
        Mask features (B, C, h4, w4) and L levels (B, C, h_l, w_l) -> (mask logits, class embeddings) of the last
        prediction, or of all of them, the one on the learned queries first.
        """
        memories = [self._memory(index, level) for index, level in enumerate(levels)]
        level_features = [_resize(mask_features.detach(), level.shape[-2:]).flatten(2) for level in levels]
        query_position = self.queries_embedder.weight
        queries = self.queries_features.weight.expand(mask_features.shape[0], -1, -1)  # (B, Q, C)
        predicting = []  # what predictions are made of, (B, Q, C) each
        for index, layer in enumerate(self.layers):
            normed = self.layer_norm(queries)
            if output_auxiliary_logits:
                predicting.append(normed)
            level = index % len(levels)
            visible = self._visible(normed, level_features[level])  # (B, Q, h_l * w_l)
            queries = layer(queries, query_position, *memories[level], visible)
        predicting.append(self.layer_norm(queries))
        # All at once: one gradient of the features.
        logits, class_embeds = self._predict(torch.cat(predicting, dim=1), mask_features)
        num_queries = queries.shape[1]
        return list(zip(logits.split(num_queries, dim=1), class_embeds.split(num_queries, dim=1)))

    def _memory(self, index: int, level: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a level, (B, h_l * w_l, C); only keys carry the position."""
        value = to_tokens(level) + self.level_embed.weight[index]
        return value + position_tokens(level), value

    def _visible(self, normed: Tensor, level_features: Tensor) -> Tensor:
        """
        Where the coming layer may look, (B, Q, h_l * w_l): where the mask so far is >= 1/2; everywhere if nowhere.

        The mask is wanted at the level's size only. Resizing is linear, so mask features resized once per level give
        the logits that resizing every full-size mask would give. The comparison ends every gradient.
        """
        visible = self.mask_embedder(normed) @ level_features >= 0
        return visible | ~visible.any(-1, keepdim=True)

    def _predict(self, normed: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        """Normed queries (B, Q, C) -> mask logits (B, Q, h4, w4) and class embeddings (B, Q, D)."""
        logits = (self.mask_embedder(normed) @ mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])
        return logits, self._embed_classes(normed, mask_features, logits)

    def _embed_classes(self, normed: Tensor, mask_features: Tensor, logits: Tensor) -> Tensor:
        """Class embeddings (B, Q, D) of normed queries, from what lies under their masks."""
        pooled = pool_masks(mask_features, logits)
        return self.class_embedder(self.pooled_proj(self.pooled_norm(pooled)) + normed)


class MaftPlusMaskDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention and a feed-forward network, all post-norm."""

    def __init__(self, config: MaftPlusConfig | MaftPlusProposerConfig):
        super().__init__()
        hidden, heads = config.hidden_dim, config.num_attention_heads
        self.cross_attn = MaftPlusAttention(hidden, heads)
        self.cross_attn_layer_norm = nn.LayerNorm(hidden)
        self.self_attn = MaftPlusAttention(hidden, heads)
        self.self_attn_layer_norm = nn.LayerNorm(hidden)
        self.fc1 = MaftPlusLinear(hidden, config.dim_feedforward)
        self.fc2 = MaftPlusLinear(config.dim_feedforward, hidden)
        self.final_layer_norm = nn.LayerNorm(hidden)

    def forward(self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Queries (B, Q, C), their position (Q, C), memory (B, S, C) twice, `visible` (B, Q, S) bool -> (B, Q, C)."""
        attended = self.cross_attn(queries + position, keys, values, visible.unsqueeze(1))
        queries = self.cross_attn_layer_norm(queries + attended)
        placed = queries + position
        queries = self.self_attn_layer_norm(queries + self.self_attn(placed, placed, queries))
        return self.final_layer_norm(queries + self.fc2(relu(self.fc1(queries))))


def _anchors(sizes: Sizes, points: int, device: Any) -> Anchors:
    """
    Where every token's pixel centre lies in every level, (2, S, 1, L * P) as (x, y), in that level's pixels.

    Centres are `arange + 0.5` over the size (`linspace` does not export dynamic sizes).
    """
    if torch.compiler.is_exporting():
        return _anchors_in_integers(sizes, points, device)
    centres = []
    for height, width in sizes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)]).flatten(1))
    x, y = torch.cat(centres, dim=1)[..., None, None]  # (S, 1, 1) each, in [0, 1]
    heights, widths = _extents(sizes, points, x)
    whole = torch.zeros(2, 1, 1, 1, device=device, dtype=torch.int32)
    return whole, torch.stack([x * widths - 0.5, y * heights - 0.5])


def _anchors_in_integers(sizes: Sizes, points: int, device: Any) -> Anchors:
    """
    As `_anchors`, with whole pixels apart: a runtime that computes a graph in bfloat16 leaves integers alone.

    Pixel i of n is at (i + 1/2) / n of N pixels, minus 1/2: ((2 i + 1) N + n) / 2 n - 1.
    """
    odd, counts = [], []  # 2 i + 1 and n of every token, (2, h * w) as (x, y)
    for height, width in sizes:
        y = 2 * torch.arange(height, device=device, dtype=torch.int32) + 1
        x = 2 * torch.arange(width, device=device, dtype=torch.int32) + 1
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])
        odd.append(grid.flatten(1))
        counts.append(torch.stack([torch.full_like(grid[0], width), torch.full_like(grid[1], height)]).flatten(1))
    odd, counts = (torch.cat(parts, dim=1)[..., None, None] for parts in (odd, counts))  # (2, S, 1, 1)
    heights, widths = _extents(sizes, points, odd)
    numerator = odd * torch.stack([widths, heights])[:, None, None] + counts
    whole = numerator // (2 * counts)
    return whole - 1, (numerator - whole * (2 * counts)) / (2 * counts)


def _resize(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(feature_map, size=tuple(size), mode="bilinear", align_corners=False)


def init_segmenter_weights(module: nn.Module, config: MaftPlusConfig | None = None) -> None:
    """
    Set every parameter of a `MaftPlusSegmenter`; does nothing for any other module.

    Meant to be called by `PreTrainedModel._init_weights` for every module: parents come after their children there,
    so the segmenter's own rules win over general ones, and parameters that a checkpoint has filled are left alone.
    """
    if not isinstance(module, MaftPlusSegmenter):
        return
    init.constant_(module.logit_scale, LOGIT_SCALE_INIT)
    init_decoder_weights(module)


def init_decoder_weights(module: nn.Module) -> None:
    """Set everything below a module that has a `pixel_decoder`, bare parameters of other parts excepted."""
    for part in module.modules():
        _init_part(part)
    for layer in module.pixel_decoder.layers:
        _init_sampling(layer.self_attn)


def _init_part(part: nn.Module) -> None:
    if isinstance(part, MaftPlusPixelDecoder):
        init.normal_(part.level_embed)
    elif isinstance(part, nn.Embedding):
        init.normal_(part.weight)
    elif isinstance(part, nn.Linear):
        init.xavier_uniform_(part.weight)
        init.zeros_(part.bias)
    elif isinstance(part, nn.Conv2d):
        init.kaiming_uniform_(part.weight, a=1)
        _zero_bias(part)
    elif isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
        init.ones_(part.weight)
        init.zeros_(part.bias)


def _init_sampling(attention: MaftPlusDeformableAttention) -> None:
    """Every head starts in a direction of its own, point p at p + 1 pixels, all points with the same weight."""
    heads, levels, points = attention.grid
    angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)  # on the square's edge, as (x, y)
    steps = torch.arange(1, points + 1, dtype=torch.float32)
    offsets = directions[:, None, None] * steps[None, None, :, None]  # (M, 1, P, 2)
    init.copy_(attention.sampling_offsets.bias, offsets.expand(-1, levels, -1, -1).flatten())
    for weight in (attention.sampling_offsets.weight, attention.attention_weights.weight):
        init.zeros_(weight)


def _zero_bias(part: nn.Module) -> None:
    if part.bias is not None:
        init.zeros_(part.bias)


__all__ = [
    "MaftPlusMaskDecoder",
    "MaftPlusPixelDecoder",
    "MaftPlusSegmenter",
    "MaftPlusSegmenterOutput",
    "init_decoder_weights",
    "init_segmenter_weights",
]
