"""The vision towers of CLIP that takes masks, ConvNeXt (mask pooling) and ViT (masked attention), with one interface.

Sources: arXiv 2310.00240, "Mask-aware CLIP" (ViT tower with mask-aware attention, IP-CLIP); arXiv 2408.00744 and
arXiv 2308.02487 (ConvNeXt tower with mask pooling). Modules and parameter names are those of transformers' towers.
Shapes: B images, Q masks, C tower channels, H x W input, h x w the map or patch grid of the tower, N = h * w patches,
A attention heads of d channels.

A tower answers in its own channels after its last LayerNorm; `MaftPlusCLIPModel` projects into the joint space.

    encode(pixel_values)                 the one trunk pass: `MaftPlusVisionOutput`, which the next three read
    embed_masks(vision, masks)           (B, Q, C)
    embed_dense(vision, token_order, see_class_token)    (B, N, C)
    embed_image(vision)                  (B, C)
    grid_size(pixel_values)              h and w of its grid
    resize_masks(masks, size)            masks as the numbers that it reads: logits (ConvNeXt) or probabilities (ViT)
    masks_from_logits(mask_logits)       mask logits as such numbers
    fit_proposals(mask_logits, size, align_corners)      a proposer's mask logits at the size to classify
    check_mask_values(masks)             ValueError for numbers of the other kind
    empty_mask_value                     the number outside of every mask
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings, eager_attention_forward
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.utils import ModelOutput

from .layers_maftplus import MaftPlusLinear, pool_masks, to_tokens

VISIBLE_FROM = 0.5  # a patch belongs to a mask from this probability on (arXiv 2310.00240)
SELF_SLOT_WIDTH = 8  # extra head channels that carry a token's score with itself; 8 keeps fused kernels aligned
MASKS_AT_ONCE = 64  # masks of another type converted to float32 together when they are resized


@dataclass
class MaftPlusVisionOutput(ModelOutput):
    """
    What one pass of the vision trunk leaves for masks, for the segmenter and for the whole image.

    Args:
        dense_features (`Tensor`):
            ConvNeXt: the last map before the final LayerNorm, (B, C, h, w). ViT: the hidden states that enter layer
            `first_masked_layer`, class token first, (B, 1 + N, C).
        feature_maps (`tuple[Tensor, ...]`):
            ConvNeXt: one un-normed map a stage, fine to coarse, (B, C_i, H / s_i, W / s_i). ViT: empty.
        grid_size (`tuple[int, int]`): h and w.
    """

    dense_features: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    grid_size: tuple[int, int] | None = None


class MaftPlusConvNextTower(ConvNextModel):
    """
    transformers' ConvNeXt with blocks that can be checkpointed; a mask averages the last map inside itself.

    It has no attention and would refuse the `attn_implementation` that the text tower was asked for: build it with
    `_from_config(config, attn_implementation="eager")`.
    """

    empty_mask_value = -1.0

    def __init__(self, config: ConvNextConfig):
        super().__init__(config)
        for stage, width in zip(self.encoder.stages, config.hidden_sizes):
            rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in stage.layers]
            stage.layers = nn.ModuleList(MaftPlusConvNextLayer(config, width, rate) for rate in rates)

    def encode(self, pixel_values: Tensor) -> MaftPlusVisionOutput:
        """Walks the stages, because recording hidden states would break a compiled graph."""
        hidden_states = self.embeddings(pixel_values)
        feature_maps = []
        for stage in self.encoder.stages:
            hidden_states = stage(hidden_states)
            feature_maps.append(hidden_states)
        return MaftPlusVisionOutput(hidden_states, tuple(feature_maps), tuple(hidden_states.shape[-2:]))

    def embed_masks(self, vision: MaftPlusVisionOutput, masks: Tensor) -> Tensor:
        """The map's average where a mask, resized to the map, is > 0."""
        return self.layernorm(pool_masks(vision.dense_features, self.resize_masks(masks, vision.grid_size)))

    def embed_dense(
        self, vision: MaftPlusVisionOutput, token_order: str = "pixels", see_class_token: bool = True
    ) -> Tensor:
        """Pixels, or with `"released"` the runs of C numbers that MAFT+'s released reshape without a permute reads."""
        dense = vision.dense_features
        if token_order == "released":
            return self.layernorm(dense.flatten(1).unflatten(1, (-1, dense.shape[1])))
        return self.layernorm(to_tokens(dense))

    def embed_image(self, vision: MaftPlusVisionOutput) -> Tensor:
        """The average of the map."""
        return self.layernorm(vision.dense_features.mean((-2, -1)))

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        """Cells of the last map, (h, w)."""
        stride = self.config.patch_size * 2 ** (len(self.config.hidden_sizes) - 1)
        return tuple(size // stride for size in pixel_values.shape[-2:])

    def resize_masks(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, Q, h, w) in float32; bool masks become -1 and 1."""
        return _resize_masks(masks, size, _as_signs)

    def masks_from_logits(self, mask_logits: Tensor) -> Tensor:
        """As they are."""
        return mask_logits

    def fit_proposals(self, mask_logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        """As they are: pooling reads them at the map's size anyway."""
        return mask_logits

    def check_mask_values(self, masks: Sequence[Tensor]) -> None:
        """Refuse what must be probabilities: as logits every value over 0 would lie inside its mask."""
        masks = [mask for mask in masks if mask.is_floating_point() and mask.numel()]
        if not masks or any(mask.min() < 0 or mask.max() > 1 for mask in masks):
            return
        if not all(((mask == 0) | (mask == 1)).all() for mask in masks):
            raise ValueError(
                "`masks` all lie in [0, 1], but a ConvNeXt tower reads numbers as logits: pass bool masks or logits; "
                "a probability p is the logit log(p / (1 - p))."
            )


class MaftPlusViTTower(CLIPVisionModel):
    """transformers' ViT with embeddings that resize positions and layers that carry one class token a mask."""

    empty_mask_value = 0.0

    def __init__(self, config: CLIPVisionConfig, first_masked_layer: int, position_align_corners: bool):
        super().__init__(config)
        self.first_masked_layer = first_masked_layer
        self.embeddings = MaftPlusVisionEmbeddings(config, position_align_corners)
        self.encoder.layers = nn.ModuleList(MaftPlusVisionLayer(config) for _ in self.encoder.layers)

    def encode(self, pixel_values: Tensor) -> MaftPlusVisionOutput:
        """CLIP's layers before the first masked one."""
        embeddings = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        hidden_states = self.pre_layrnorm(embeddings)  # transformers spells it so
        for layer in self.encoder.layers[: self.first_masked_layer]:
            hidden_states = layer(hidden_states, None)
        return MaftPlusVisionOutput(hidden_states, (), self.grid_size(pixel_values))

    def embed_masks(self, vision: MaftPlusVisionOutput, masks: Tensor) -> Tensor:
        """One class token a mask, which sees itself and the patches of its mask."""
        if self.first_masked_layer >= self.config.num_hidden_layers:
            raise ValueError(
                f"`first_masked_layer` ({self.first_masked_layer}) must be below the vision tower's number of layers "
                f"({self.config.num_hidden_layers}), or masks have no effect; set it in the configuration."
            )
        _, class_states = self._run_masked_layers(vision, self.visible_patches(masks, vision.grid_size))
        return self.post_layernorm(class_states)

    def embed_dense(
        self, vision: MaftPlusVisionOutput, token_order: str = "pixels", see_class_token: bool = True
    ) -> Tensor:
        """Patches, which see the class token as in CLIP, or only each other as they do beside masks."""
        if see_class_token:
            return self.post_layernorm(self._run_plain_layers(vision)[:, 1:])
        return self.post_layernorm(self._run_patches_alone(vision))

    def embed_image(self, vision: MaftPlusVisionOutput) -> Tensor:
        """CLIP's class token."""
        return self.post_layernorm(self._run_plain_layers(vision)[:, 0])

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        """Patches, (h, w)."""
        return tuple(size // self.config.patch_size for size in pixel_values.shape[-2:])

    def resize_masks(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities (B, Q, h, w) in float32; bool masks become 0 and 1."""
        return _resize_masks(masks, size, Tensor.float)

    def masks_from_logits(self, mask_logits: Tensor) -> Tensor:
        """Probabilities."""
        return mask_logits.sigmoid()

    def fit_proposals(self, mask_logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        """Brought to the padded picture, as MAFT does before attention reads them."""
        if mask_logits.shape[1] == 0:
            return mask_logits.new_zeros(*mask_logits.shape[:2], *size)
        return F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=align_corners)

    def check_mask_values(self, masks: Sequence[Tensor]) -> None:
        """Refuse what lies outside [0, 1]."""
        for mask in masks:
            if mask.is_floating_point() and mask.numel():
                _check_probabilities(mask)

    def visible_patches(self, masks: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Which patches, and always itself, a mask's class token sees, (B, 1, Q, N + 1) bool."""
        visible = self.resize_masks(masks, grid_size).flatten(2) >= VISIBLE_FROM
        return F.pad(visible, (0, 1), value=True)[:, None]

    def _run_masked_layers(self, vision: MaftPlusVisionOutput, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and one class token a mask through the masked layers: (B, N, C) and (B, Q, C)."""
        *layers, last = self.encoder.layers[self.first_masked_layer :]
        class_states, patches = vision.dense_features[:, :1], vision.dense_features[:, 1:]
        for layer in layers:
            patches, class_states = layer(patches, None, class_states, visible)
        return last(patches, None, class_states, visible, update_patches=False)

    def _run_patches_alone(self, vision: MaftPlusVisionOutput) -> Tensor:
        """Patches through the masked layers as they run beside masks, (B, N, C)."""
        patches = vision.dense_features[:, 1:]
        for layer in self.encoder.layers[self.first_masked_layer :]:
            patches = layer(patches, None)
        return patches

    def _run_plain_layers(self, vision: MaftPlusVisionOutput) -> Tensor:
        """CLIP's remaining layers on class token and patches, (B, 1 + N, C)."""
        hidden_states = vision.dense_features
        for layer in self.encoder.layers[self.first_masked_layer :]:
            hidden_states = layer(hidden_states, None)
        return hidden_states


class MaftPlusConvNextLayer(GradientCheckpointingLayer, ConvNextLayer):
    """ConvNeXt's block, which transformers does not checkpoint by itself, with linear layers that suit a CPU."""

    def __init__(self, config, dim: int, drop_path: float = 0.0):
        super().__init__(config, dim, drop_path)
        self.pwconv1 = MaftPlusLinear(dim, 4 * dim)
        self.pwconv2 = MaftPlusLinear(4 * dim, dim)


class MaftPlusVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch and position embeddings; with `align_corners` positions are always resized, as MAFT does."""

    def __init__(self, config, align_corners: bool):
        super().__init__(config)
        self.align_corners = align_corners

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        return super().forward(pixel_values, interpolate_pos_encoding or self.align_corners)

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Positions for an input of `height` x `width` pixels, (1, 1 + N, C)."""
        if not self.align_corners:
            return super().interpolate_pos_encoding(embeddings, height, width)
        table = self.position_embedding.weight
        side = int((table.shape[0] - 1) ** 0.5)
        grid = table[1:].float().T.reshape(1, -1, side, side)
        size = (height // self.patch_size, width // self.patch_size)
        grid = F.interpolate(grid, size=size, mode="bicubic", align_corners=True)
        return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])[None]


class MaftPlusVisionLayer(CLIPEncoderLayer):
    """
    CLIP's vision layer that also carries one class token a mask (arXiv 2310.00240, "Mask-aware CLIP").

    A class token sees itself and the patches of its mask; patches see patches. Patches never see a class token, so
    their cost does not depend on the number of masks.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        class_states: Tensor | None = None,
        visible: Tensor | None = None,
        update_patches: bool = True,
        **kwargs,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: without `class_states` CLIP's sequence; with them the patches alone, (B, N, C).
            class_states: (B, Q, C), or (B, 1, C) where all masks still share one state.
            visible: (B, 1, Q, N + 1) bool; the last column is the token itself, always visible.
            update_patches: False in the last layer, whose patches nobody reads.

        Returns:
            CLIP's hidden states, or patches (B, N, C) and class states (B, Q, C).
        """
        if class_states is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        normed = self.layer_norm1(hidden_states)
        keys, values = self._heads("k_proj", normed), self._heads("v_proj", normed)
        attended = self._attend_classes(self.layer_norm1(class_states), keys, values, visible)
        class_states = self._add_mlp(class_states + attended)  # (B, Q, C)
        if update_patches:
            attended = self._attend(self._heads("q_proj", normed), keys, values)
            hidden_states = self._add_mlp(hidden_states + attended)  # (B, N, C)
        return hidden_states, class_states

    def _heads(self, projection: str, states: Tensor) -> Tensor:
        """(B, n, C) -> (B, A, n, d)."""
        projected = getattr(self.self_attn, projection)(states)
        return projected.unflatten(-1, (-1, self.self_attn.head_dim)).transpose(1, 2)

    def _add_mlp(self, states: Tensor) -> Tensor:
        return states + self.mlp(self.layer_norm2(states))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention among patches through the chosen implementation, (B, N, C)."""
        attention = self.self_attn
        implementation = attention.config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = attention.dropout if self.training else 0.0
        attended, _ = function(attention, queries, keys, values, None, scaling=attention.scale, dropout=dropout)
        return attention.out_proj(attended.flatten(2))

    def _attend_classes(self, normed: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Attention of every class token to itself and the patches of its mask, (B, Q, C).

        Every token has its own self key, so keys would differ from query to query. One shared extra key, the self
        slot, does it instead: extra head channels hold the token's score with itself on the query's side and 1 on the
        slot's, and the slot's value is 1 in one extra channel, which returns the weight of the token's own value.
        """
        queries = self._heads("q_proj", normed)
        own_keys, own_values = self._heads("k_proj", normed), self._heads("v_proj", normed)
        own_scores = (queries.float() * own_keys.float()).sum(-1, keepdim=True)
        queries = _append_self_score(queries, own_scores).expand(-1, -1, visible.shape[2], -1)
        queries = queries.contiguous()  # fused attention on a CPU is six times slower on a broadcast view
        keys, values = _append_self_slot(keys, 2), _append_self_slot(values, 1)
        attended = self._masked_attention(queries, keys, values, visible)  # (B, A, Q, d + slot)
        attended, own_weights = attended[..., :-SELF_SLOT_WIDTH], attended[..., -SELF_SLOT_WIDTH, None]
        attended = attended + own_weights * own_values
        return self.self_attn.out_proj(attended.transpose(1, 2).flatten(2))

    def _masked_attention(self, queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Eager where asked for, else fused: flash kernels take no mask, sdpa does."""
        attention = self.self_attn
        dropout = attention.dropout if self.training else 0.0
        if attention.config._attn_implementation != "eager":
            return F.scaled_dot_product_attention(queries, keys, values, visible, dropout, scale=attention.scale)
        scores = (queries @ keys.transpose(-1, -2)).float() * attention.scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1).to(values.dtype)
        return F.dropout(weights, dropout) @ values


def _append_self_score(queries: Tensor, scores: Tensor) -> Tensor:
    """Queries with their own scores in the first two extra channels, (B, A, n, d + slot).

    A score that is rounded to half precision would be off by more than attention's own sums, which are kept in
    float32; the second channel holds what the rounding lost.
    """
    rounded = scores.to(queries.dtype)
    lost = (scores - rounded.float()).to(queries.dtype)
    padding = queries.new_zeros(*queries.shape[:-1], SELF_SLOT_WIDTH - 2)
    return torch.cat([queries, rounded, lost, padding], dim=-1)


def _append_self_slot(states: Tensor, num_ones: int) -> Tensor:
    """Keys or values with the self slot as last token: ones in the first extra channels, (B, A, N + 1, d + slot)."""
    width = states.shape[-1]
    slot = torch.zeros(width + SELF_SLOT_WIDTH, dtype=states.dtype, device=states.device)
    slot[width : width + num_ones] = 1.0
    padded = F.pad(states, (0, SELF_SLOT_WIDTH))
    return torch.cat([padded, slot.expand(*padded.shape[:2], 1, -1)], dim=2)


def _resize_masks(masks: Tensor, size: tuple[int, int], as_numbers: Callable[[Tensor], Tensor]) -> Tensor:
    """Masks resized bilinearly, without corner alignment and without gradient, (B, Q, h, w) in float32."""
    if masks.shape[0] == 0 or masks.shape[1] == 0:
        return torch.zeros(*masks.shape[:2], *size, device=masks.device)
    # A float32 copy of a thousand large bool masks would take gigabytes; a compiled graph never holds it.
    is_costly = masks.dtype != torch.float32 and not torch.compiler.is_compiling()
    images = masks.detach().flatten(0, 1)[:, None]  # one channel each: ten times faster on a CPU than Q channels
    parts = images.split(MASKS_AT_ONCE) if is_costly else [images]
    resized = [F.interpolate(as_numbers(part), size=size, mode="bilinear") for part in parts]
    return torch.cat(resized).view(*masks.shape[:2], *size)


def _as_signs(masks: Tensor) -> Tensor:
    """Masks as float32; bool masks become -1 and 1."""
    return 2 * masks.float() - 1 if masks.dtype == torch.bool else masks.float()


def _check_probabilities(probabilities: Tensor) -> None:
    low, high = torch.stack(probabilities.aminmax()).tolist()
    is_within = low >= -1e-4 and high <= 1 + 1e-4  # False for NaN too
    if not is_within:
        raise ValueError(
            "`masks` must be bool or probabilities in [0, 1] for a ViT tower, got values from "
            f"{low:.3g} to {high:.3g}; pass logits through a sigmoid first."
        )


__all__ = [
    "MaftPlusConvNextLayer",
    "MaftPlusConvNextTower",
    "MaftPlusViTTower",
    "MaftPlusVisionLayer",
    "MaftPlusVisionOutput",
]
