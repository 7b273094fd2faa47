"""CLIP that takes masks: given an image and Q masks, their Q embeddings in CLIP's joint space.

Sources: arXiv 2310.00240, "Mask-aware CLIP" (IP-CLIP); arXiv 2408.00744 and arXiv 2308.02487 (mask pooling). What
masks mean to a ConvNeXt and to a ViT is told by the tower; this is the text tower, the projections and the checks.
Without masks the model is CLIP, parameter names included.
Shapes: B images, Q masks, C tower channels, D joint space, H x W input, h x w the map or patch grid of the tower.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel

from .configuration_maftplus import MaftPlusCLIPConfig
from .layers_maftplus import OnOneDevice, can_read_values
from .towers_maftplus import MaftPlusConvNextTower, MaftPlusVisionOutput, MaftPlusViTTower

PROMPTS_PER_CHUNK = 256


class MaftPlusProjection(nn.Module):
    """OpenCLIP's `mlp` projection: Linear(C, 2D), exact GELU, bias-free Linear(2D, D)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, 2 * out_features)
        self.fc2 = nn.Linear(2 * out_features, out_features, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


class MaftPlusCLIPModel(OnOneDevice, CLIPModel):
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
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model, self.vision_embed_dim = _build_tower(config)
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
        return self.vision_model.encode(pixel_values.to(self.vision_model.dtype))

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
            ValueError: for masks of another rank or batch, a ViT without masked layers; on a CPU also for logits
                where a ViT wants probabilities, or the other way round.
        """
        self._check_values([masks])
        return self._embed_masks(vision, masks)

    def embed_mask_logits(self, vision: MaftPlusVisionOutput, mask_logits: Tensor) -> Tensor:
        """As `embed_masks`, for mask logits (B, Q, h', w') whatever the tower, (B, Q, D)."""
        return self._embed_masks(vision, self.vision_model.masks_from_logits(mask_logits))

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
        tokens = self.vision_model.embed_dense(vision, token_order, see_class_token)
        return self.visual_projection(tokens).transpose(1, 2).unflatten(2, vision.grid_size)

    def embed_image(self, vision: MaftPlusVisionOutput) -> Tensor:
        """The embedding of the whole image, (B, D), not normalised: CLIP's `get_image_features`."""
        return self.visual_projection(self.vision_model.embed_image(vision))

    def get_mask_features(self, pixel_values: Tensor, masks: Tensor | Sequence[Tensor]) -> Tensor:
        """
        Embeddings of any number of masks from anywhere, (B, Q, D), not normalised (arXiv 2310.00240).

        Args:
            pixel_values: (B, 3, H, W), normalised. Masks and image show the same area; sizes may differ.
            masks: (B, Q, h', w'), or a list of B tensors (Q_i, h_i, w_i); Q is then the largest Q_i, and the rows
                from Q_i on are those of an empty mask, to be dropped by the caller. Values as in `embed_masks`:
                bool everywhere, or logits for a ConvNeXt tower and probabilities for a ViT tower.

        Raises:
            ValueError: as `encode_image` and `embed_masks`.
        """
        if isinstance(masks, Tensor):
            self._check_values([masks])
        else:
            masks = self._stack_masks(masks, pixel_values)
        _check_masks(masks, pixel_values.shape[0])
        return self._embed_masks(self.encode_image(pixel_values), masks)

    def encode_prompts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalised features (N, D) of prompts (N, T), in chunks of similar length: short ones see no padding."""
        if input_ids.is_meta:  # no lengths to read
            return F.normalize(self.get_text_features(input_ids).pooler_output, dim=-1)
        lengths = attention_mask.sum(-1).cpu()
        order = lengths.argsort(stable=True)
        features = []
        for chunk in order.split(PROMPTS_PER_CHUNK):
            longest = int(lengths[chunk[-1]])
            ids = input_ids[chunk.to(input_ids.device), :longest].to(self.device)
            features.append(F.normalize(self.get_text_features(ids).pooler_output, dim=-1))
        return torch.cat(features)[order.argsort().to(self.device)]

    def _embed_masks(self, vision: MaftPlusVisionOutput, masks: Tensor) -> Tensor:
        _check_masks(masks, vision.dense_features.shape[0])
        if masks.shape[1] == 0:
            return vision.dense_features.new_zeros(masks.shape[0], 0, self.projection_dim)
        return self.visual_projection(self.vision_model.embed_masks(vision, masks))

    def _stack_masks(self, masks: Sequence[Tensor], pixel_values: Tensor) -> Tensor:
        """Masks of different number and size, resized to the tower's grid and filled up with empty ones."""
        tower = self.vision_model
        grid_size = tower.grid_size(pixel_values)
        masks = [torch.as_tensor(mask) for mask in masks]
        self._check_values(masks)
        for index, mask in enumerate(masks):
            if mask.ndim != 3:
                raise ValueError(f"`masks[{index}]` must be (masks, height, width), got shape {tuple(mask.shape)}.")
        resized = [tower.resize_masks(mask[None].to(pixel_values.device), grid_size) for mask in masks]
        most = max((mask.shape[1] for mask in resized), default=0)
        filled = [F.pad(mask, (0, 0, 0, 0, 0, most - mask.shape[1]), value=tower.empty_mask_value) for mask in resized]
        return torch.cat(filled) if filled else pixel_values.new_zeros(0, 0, *grid_size)

    def _check_values(self, masks: Sequence[Tensor]) -> None:
        if all(can_read_values(mask) for mask in masks):
            self.vision_model.check_mask_values(masks)

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or min(self.vision_model.grid_size(pixel_values)) < 1:
            raise ValueError(
                "`pixel_values` must be (images, channels, height, width) and at least one cell of the vision tower's "
                f"grid in size, got shape {tuple(pixel_values.shape)}."
            )


def _build_tower(config: MaftPlusCLIPConfig) -> tuple[nn.Module, int]:
    """The vision tower and its number of channels."""
    vision = config.vision_config
    if config.takes_masks_by_pooling:
        return MaftPlusConvNextTower._from_config(vision, attn_implementation="eager"), vision.hidden_sizes[-1]
    settings = {
        "first_masked_layer": config.first_masked_layer,
        "position_align_corners": config.position_align_corners,
    }
    return MaftPlusViTTower._from_config(vision, **settings), vision.hidden_size


def _build_projection(config: MaftPlusCLIPConfig, width: int) -> nn.Module:
    if config.visual_projection_type == "mlp":
        return MaftPlusProjection(width, config.projection_dim)
    return nn.Linear(width, config.projection_dim, bias=False)


def _check_masks(masks: Tensor, batch: int) -> None:
    if masks.ndim != 4 or masks.shape[0] != batch:
        raise ValueError(
            f"`masks` must be (images, masks, height, width) with {batch} images like `pixel_values`, got shape "
            f"{tuple(masks.shape)}; pass a list of (masks, height, width) where the numbers differ."
        )


MaftPlusCLIPModel.register_for_auto_class("AutoModel")

__all__ = ["MaftPlusCLIPModel"]
