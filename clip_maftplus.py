"""CLIP that takes masks: given an image and Q masks, their Q embeddings in CLIP's joint space.

Sources: arXiv 2310.00240, "Mask-aware CLIP" (ViT tower with mask-aware attention, IP-CLIP); arXiv 2408.00744 and
arXiv 2308.02487 (ConvNeXt tower with mask pooling). Without masks the model is CLIP, parameter names included.
Shapes: B images, Q masks, C tower channels, D joint space, H x W input, h x w the map or patch grid of the tower,
N = h * w patches, A attention heads of d channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModel, ConvNextModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.utils import ModelOutput

from .configuration_maftplus import MaftPlusCLIPConfig
from .layers_maftplus import MaftPlusLinear

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


class MaftPlusProjection(nn.Module):
    """OpenCLIP's `mlp` projection: Linear(C, 2D), exact GELU, bias-free Linear(2D, D)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, 2 * out_features)
        self.fc2 = nn.Linear(2 * out_features, out_features, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


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


class MaftPlusCLIPModel(CLIPModel):
    r"""
    CLIP whose vision tower, a ConvNeXt or a ViT, embeds masks of an image (`get_mask_features`).

    Everything that `CLIPModel` offers works unchanged, and a folder saved by it loads with `from_pretrained`.
    """

    config: MaftPlusCLIPConfig
    _no_split_modules = [
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
        "MaftPlusVisionEmbeddings",
        "MaftPlusVisionLayer",
        "MaftPlusConvNextLayer",
    ]

    def __init__(self, config: MaftPlusCLIPConfig):
        CLIPPreTrainedModel.__init__(self, config)  # CLIPModel's own constructor knows no ConvNeXt
        self.projection_dim = config.projection_dim
        self.text_embed_dim = config.text_config.hidden_size
        self.takes_masks_by_pooling = config.takes_masks_by_pooling
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = _build_convnext(config) if self.takes_masks_by_pooling else _build_vit(config)
        self.vision_embed_dim = (
            config.vision_config.hidden_sizes[-1] if self.takes_masks_by_pooling else config.vision_config.hidden_size
        )
        self.visual_projection = _build_projection(config, self.vision_embed_dim)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Sets every parameter and buffer, also those that a checkpoint lacks."""
        if not isinstance(module, MaftPlusCLIPModel):
            super()._init_weights(module)
            return
        factor = self.config.initializer_factor
        init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        init.normal_(module.text_projection.weight, std=module.text_embed_dim**-0.5 * factor)
        if isinstance(module.visual_projection, nn.Linear):
            init.normal_(module.visual_projection.weight, std=module.vision_embed_dim**-0.5 * factor)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embeddings.token_embedding = value

    def encode_image(self, pixel_values: Tensor) -> MaftPlusVisionOutput:
        """
        The one trunk pass of a step: everything that `embed_masks`, `embed_dense` and `embed_image` read.

        Args:
            pixel_values: (B, 3, H, W), normalised; any size of at least one patch.

        Raises:
            ValueError: if `pixel_values` is not a batch of images or smaller than one cell of the tower's grid.
        """
        self._check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.vision_model.dtype)
        if self.takes_masks_by_pooling:
            return self._encode_by_stages(pixel_values)
        return self._encode_up_to_masks(pixel_values)

    def embed_masks(self, vision: MaftPlusVisionOutput, masks: Tensor) -> Tensor:
        """
        Embeddings of Q masks in the joint space, (B, Q, D), not normalised.

        No gradient reaches the masks. An empty mask gives the embedding of an all-zero average (ConvNeXt) or of a
        class token that sees only itself (ViT); both are finite.

        Args:
            vision: what `encode_image` returned.
            masks: (B, Q, h', w') of any size, stretched to the tower's grid. ConvNeXt: logits, inside where > 0.
                ViT: probabilities in [0, 1], inside where >= 0.5. Both: bool, inside where at least half (ViT) or
                more than half (ConvNeXt) of the interpolated mask is.

        Raises:
            ValueError: for masks of another rank or batch, probabilities outside [0, 1], a ViT without masked layers.
        """
        self._check_masks(vision, masks)
        if masks.shape[1] == 0:
            return vision.dense_features.new_zeros(masks.shape[0], 0, self.projection_dim)
        if self.takes_masks_by_pooling:
            return self._pool_under_masks(vision, masks)
        visible = self._visible_patches(masks, vision.grid_size)
        _, class_states = self._run_masked_layers(vision, visible)
        return self._project(class_states)

    def embed_dense(
        self, vision: MaftPlusVisionOutput, token_order: str = "pixels", see_class_token: bool = True
    ) -> Tensor:
        """
        The joint-space embedding of every position, (B, D, h, w), not normalised.

        Args:
            vision: what `encode_image` returned.
            token_order: ConvNeXt: `"pixels"`, or `"released"`, which reads runs of C consecutive numbers of the
                channel-first map as tokens, as the released MAFT+ code does.
            see_class_token: ViT: whether patches see the class token from layer `first_masked_layer` on (CLIP), or
                only each other, as they do beside masks.

        Raises:
            ValueError: for an unknown `token_order`.
        """
        if token_order not in ("pixels", "released"):
            raise ValueError(f"`token_order` must be 'pixels' or 'released', got {token_order!r}.")
        if self.takes_masks_by_pooling:
            tokens = _dense_tokens(vision.dense_features, token_order)
        elif see_class_token:
            tokens = self._run_plain_layers(vision)[:, 1:]
        else:
            tokens, _ = self._run_masked_layers(vision, None, update_last=True)
        return self._project(tokens).transpose(1, 2).unflatten(2, vision.grid_size)

    def embed_image(self, vision: MaftPlusVisionOutput) -> Tensor:
        """The embedding of the whole image, (B, D), not normalised: CLIP's `get_image_features`."""
        if self.takes_masks_by_pooling:
            return self._project(vision.dense_features.mean((-2, -1)))
        return self._project(self._run_plain_layers(vision)[:, 0])

    def get_mask_features(self, pixel_values: Tensor, masks: Tensor | Sequence[Tensor]) -> Tensor:
        """
        Embeddings of any number of masks from anywhere, (B, Q, D), not normalised (arXiv 2310.00240).

        Args:
            pixel_values: (B, 3, H, W), normalised. Masks and image show the same area; sizes may differ.
            masks: (B, Q, h', w'), or a list of B tensors (Q_i, h_i, w_i); Q is then the largest Q_i, and the rows
                from Q_i on are those of an empty mask, to be dropped by the caller. Values as in `embed_masks`:
                bool everywhere, or logits for a ConvNeXt tower and probabilities for a ViT tower.

        Raises:
            ValueError: as `encode_image` and `embed_masks`; for probabilities where a ConvNeXt tower wants logits.
        """
        if self.takes_masks_by_pooling and not torch.compiler.is_compiling():
            _check_logits([masks] if isinstance(masks, Tensor) else [torch.as_tensor(mask) for mask in masks])
        if not isinstance(masks, Tensor):
            masks = self._stack_masks(masks, pixel_values)
        if masks.ndim != 4 or masks.shape[0] != pixel_values.shape[0]:
            raise ValueError(_wrong_masks(masks, pixel_values.shape[0]))
        return self.embed_masks(self.encode_image(pixel_values), masks)

    def _encode_by_stages(self, pixel_values: Tensor) -> MaftPlusVisionOutput:
        """ConvNeXt: walks the stages, because recording hidden states would break a compiled graph."""
        hidden_states = self.vision_model.embeddings(pixel_values)
        feature_maps = []
        for stage in self.vision_model.encoder.stages:
            hidden_states = stage(hidden_states)
            feature_maps.append(hidden_states)
        return MaftPlusVisionOutput(hidden_states, tuple(feature_maps), tuple(hidden_states.shape[-2:]))

    def _encode_up_to_masks(self, pixel_values: Tensor) -> MaftPlusVisionOutput:
        """ViT: CLIP's layers before the first masked one."""
        embeddings = self.vision_model.embeddings(pixel_values, interpolate_pos_encoding=True)
        hidden_states = self.vision_model.pre_layrnorm(embeddings)  # transformers spells it so
        for layer in self.vision_model.encoder.layers[: self.config.first_masked_layer]:
            hidden_states = layer(hidden_states, None)
        patch = self.config.vision_config.patch_size
        return MaftPlusVisionOutput(hidden_states, (), tuple(size // patch for size in pixel_values.shape[-2:]))

    def _pool_under_masks(self, vision: MaftPlusVisionOutput, masks: Tensor) -> Tensor:
        inside = _resize_masks(masks, vision.grid_size, as_logits=True) > 0
        area = inside.sum((-2, -1), keepdim=True, dtype=torch.float32)
        weights = (inside / (area + 1e-8)).to(vision.dense_features)
        pooled = weights.flatten(2) @ vision.dense_features.flatten(2).transpose(1, 2)  # (B, Q, C)
        return self._project(pooled)

    def _visible_patches(self, masks: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Which patches, and always itself, a mask's class token sees, (B, 1, Q, N + 1) bool."""
        probabilities = _resize_masks(masks, grid_size)
        if not torch.compiler.is_compiling() and masks.is_floating_point():
            _check_probabilities(probabilities)
        visible = probabilities.flatten(2) >= VISIBLE_FROM
        return F.pad(visible, (0, 1), value=True)[:, None]

    def _run_masked_layers(
        self, vision: MaftPlusVisionOutput, visible: Tensor | None, update_last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Patches and one class token a mask through the masked layers: (B, N, C) and (B, Q, C)."""
        layers = self.vision_model.encoder.layers[self.config.first_masked_layer :]
        class_states, patches = vision.dense_features[:, :1], vision.dense_features[:, 1:]
        for index, layer in enumerate(layers):
            if visible is None:
                patches = layer(patches, None)
                continue
            update_patches = update_last or index + 1 < len(layers)
            patches, class_states = layer(patches, None, class_states, visible, update_patches)
        return patches, class_states

    def _run_plain_layers(self, vision: MaftPlusVisionOutput) -> Tensor:
        """CLIP's remaining layers on class token and patches, (B, 1 + N, C)."""
        hidden_states = vision.dense_features
        for layer in self.vision_model.encoder.layers[self.config.first_masked_layer :]:
            hidden_states = layer(hidden_states, None)
        return hidden_states

    def _project(self, states: Tensor) -> Tensor:
        """CLIP's vision head, final LayerNorm and projection, on (..., C) -> (..., D)."""
        norm = self.vision_model.layernorm if self.takes_masks_by_pooling else self.vision_model.post_layernorm
        return self.visual_projection(norm(states))

    def _stack_masks(self, masks: Sequence[Tensor], pixel_values: Tensor) -> Tensor:
        """Masks of different number and size, resized to the tower's grid and filled up with empty ones."""
        grid_size = self._grid_size(pixel_values)
        masks = [torch.as_tensor(mask, device=pixel_values.device) for mask in masks]
        for index, mask in enumerate(masks):
            if mask.ndim != 3:
                raise ValueError(f"`masks[{index}]` must be (masks, height, width), got shape {tuple(mask.shape)}.")
        resized = [_resize_masks(mask[None], grid_size, self.takes_masks_by_pooling) for mask in masks]
        most = max((mask.shape[1] for mask in resized), default=0)
        empty = -1.0 if self.takes_masks_by_pooling else 0.0
        filled = [F.pad(mask, (0, 0, 0, 0, 0, most - mask.shape[1]), value=empty) for mask in resized]
        return torch.cat(filled) if filled else pixel_values.new_zeros(0, 0, *grid_size)

    def _grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        config = self.config.vision_config
        stride = config.patch_size
        if self.takes_masks_by_pooling:
            stride *= 2 ** (len(config.hidden_sizes) - 1)
        return tuple(size // stride for size in pixel_values.shape[-2:])

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or min(self._grid_size(pixel_values)) < 1:
            raise ValueError(
                "`pixel_values` must be (images, channels, height, width) and at least one cell of the vision tower's "
                f"grid in size, got shape {tuple(pixel_values.shape)}."
            )

    def _check_masks(self, vision: MaftPlusVisionOutput, masks: Tensor) -> None:
        batch = vision.dense_features.shape[0]
        if masks.ndim != 4 or masks.shape[0] != batch:
            raise ValueError(_wrong_masks(masks, batch))
        layers = None if self.takes_masks_by_pooling else self.config.vision_config.num_hidden_layers
        if layers is not None and self.config.first_masked_layer >= layers:
            raise ValueError(
                f"`first_masked_layer` ({self.config.first_masked_layer}) must be below the vision tower's number of "
                f"layers ({layers}), or masks have no effect; set it in the configuration."
            )


def _build_vit(config: MaftPlusCLIPConfig) -> CLIPVisionModel:
    """transformers' ViT, its embeddings and layers replaced by those that resize positions and take masks."""
    tower = CLIPVisionModel._from_config(config.vision_config)
    tower.embeddings = MaftPlusVisionEmbeddings(tower.config, config.position_align_corners)
    tower.encoder.layers = nn.ModuleList(MaftPlusVisionLayer(tower.config) for _ in tower.encoder.layers)
    return tower


def _build_convnext(config: MaftPlusCLIPConfig) -> ConvNextModel:
    """transformers' ConvNeXt, its blocks replaced by those that can be checkpointed.

    It has no attention and would refuse the `attn_implementation` that the text tower was asked for.
    """
    tower = ConvNextModel._from_config(config.vision_config, attn_implementation="eager")
    for stage, width in zip(tower.encoder.stages, tower.config.hidden_sizes):
        rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in stage.layers]
        stage.layers = nn.ModuleList(MaftPlusConvNextLayer(tower.config, width, rate) for rate in rates)
    return tower


def _build_projection(config: MaftPlusCLIPConfig, width: int) -> nn.Module:
    if config.visual_projection_type == "mlp":
        return MaftPlusProjection(width, config.projection_dim)
    return nn.Linear(width, config.projection_dim, bias=False)


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


def _dense_tokens(dense_features: Tensor, token_order: str) -> Tensor:
    """The map as tokens, (B, N, C); `"released"` reproduces a reshape without a permute (MAFT+'s released code)."""
    if token_order == "released":
        return dense_features.flatten(1).unflatten(1, (-1, dense_features.shape[1]))
    return dense_features.flatten(2).transpose(1, 2)


def _resize_masks(masks: Tensor, size: tuple[int, int], as_logits: bool = False) -> Tensor:
    """Masks resized bilinearly, without corner alignment and without gradient, (B, Q, h, w) in float32."""
    if masks.shape[0] == 0 or masks.shape[1] == 0:
        return torch.zeros(*masks.shape[:2], *size, device=masks.device)
    # A float32 copy of a thousand large bool masks would take gigabytes; a compiled graph never holds it.
    is_costly = masks.dtype != torch.float32 and not torch.compiler.is_compiling()
    images = masks.detach().flatten(0, 1)[:, None]  # one channel each: ten times faster on a CPU than Q channels
    parts = images.split(MASKS_AT_ONCE) if is_costly else [images]
    resized = [F.interpolate(_as_values(part, as_logits), size=size, mode="bilinear") for part in parts]
    return torch.cat(resized).view(*masks.shape[:2], *size)


def _as_values(masks: Tensor, as_logits: bool) -> Tensor:
    """Masks as float32; bool masks become 0 and 1, or -1 and 1."""
    values = masks.float()
    return 2 * values - 1 if as_logits and masks.dtype == torch.bool else values


def _check_probabilities(probabilities: Tensor) -> None:
    low, high = torch.stack(probabilities.aminmax()).tolist()
    is_within = low >= -1e-4 and high <= 1 + 1e-4  # False for NaN too
    if not is_within:
        raise ValueError(
            "`masks` must be bool or probabilities in [0, 1] for a ViT tower, got values from "
            f"{low:.3g} to {high:.3g}; pass logits through a sigmoid first."
        )


def _check_logits(masks: Sequence[Tensor]) -> None:
    """Refuse what must be probabilities: as logits every value over 0 would lie inside its mask."""
    masks = [mask for mask in masks if mask.is_floating_point() and mask.numel()]
    if not masks or any(mask.min() < 0 or mask.max() > 1 for mask in masks):
        return
    if not all(((mask == 0) | (mask == 1)).all() for mask in masks):
        raise ValueError(
            "`masks` all lie in [0, 1], but a ConvNeXt tower reads numbers as logits: pass bool masks or logits; a "
            "probability p is the logit log(p / (1 - p))."
        )


def _wrong_masks(masks: Tensor, batch: int) -> str:
    return (
        f"`masks` must be (images, masks, height, width) with {batch} images like `pixel_values`, got shape "
        f"{tuple(masks.shape)}; pass a list of (masks, height, width) where the numbers differ."
    )


MaftPlusCLIPModel.register_for_auto_class("AutoModel")

__all__ = ["MaftPlusCLIPModel", "MaftPlusVisionOutput"]
