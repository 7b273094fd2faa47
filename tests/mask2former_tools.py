"""The segmenter assembled from transformers' own Mask2Former modules: the yardstick of tests and benchmarks.

Those modules carry no promise, so only their outputs are compared, never their code used. They know no class
embeddings; `copy_weights` fills them from one of our segmenters.
"""

import re

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.segmenter_maftplus import MaftPlusSegmenter

# Ours -> theirs, in order.
RENAMES = (
    (r"(input_projections\.\d+)\.convolution\.", r"\1.0."),
    (r"(input_projections\.\d+)\.norm\.", r"\1.1."),
    (r"^pixel_decoder\.layers\.", "pixel_decoder.encoder.layers."),
    (r"^pixel_decoder\.lateral\.", "pixel_decoder.adapter_1."),
    (r"^pixel_decoder\.output\.", "pixel_decoder.layer_1."),
    (r"(adapter_1|layer_1)\.convolution\.", r"\1.0."),
    (r"(adapter_1|layer_1)\.norm\.", r"\1.1."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"^decoder\.(queries_features|queries_embedder|level_embed)\.", r"transformer.\1."),
    (r"^decoder\.layer_norm\.", "transformer.decoder.layernorm."),
    (r"^decoder\.layers\.", "transformer.decoder.layers."),
    (r"^decoder\.mask_embedder\.layers\.(\d)\.", r"transformer.decoder.mask_predictor.mask_embedder.\1.0."),
)
OURS_ALONE = ("logit_scale", "decoder.pooled_norm.", "decoder.pooled_proj.", "decoder.class_embedder.")


class Mask2FormerModules(nn.Module):
    """Pixel decoder and masked-attention decoder of transformers in the sizes of a `MaftPlusConfig`."""

    def __init__(self, config: MaftPlusConfig):
        super().__init__()
        theirs = _configuration(config)
        channels = list(config.clip_config.vision_config.hidden_sizes)
        self.pixel_decoder = modeling_mask2former.Mask2FormerPixelDecoder(theirs, feature_channels=channels)
        self.transformer = modeling_mask2former.Mask2FormerTransformerModule(config.hidden_dim, theirs)

    def forward(
        self, feature_maps: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], list[Tensor]]:
        """Mask features, levels coarse to fine, mask logits and normed queries (B, Q, C) of every prediction."""
        pixel = self.pixel_decoder(list(feature_maps), output_hidden_states=False)
        found = self.transformer(pixel.multi_scale_features, pixel.mask_features)
        queries = [states.transpose(0, 1) for states in found.intermediate_hidden_states]
        return pixel.mask_features, pixel.multi_scale_features, found.masks_queries_logits, queries


def copy_weights(segmenter: MaftPlusSegmenter, modules: Mask2FormerModules) -> None:
    """Every weight of `segmenter` but the class head's, under their names; a missing or left-over name is an error."""
    state = {}
    for name, tensor in segmenter.state_dict().items():
        if not name.startswith(OURS_ALONE):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            state[name] = tensor
    modules.load_state_dict(_join_cross_attention(state))


def _join_cross_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their cross-attention keeps the three input projections in one tensor."""
    joined = {name: tensor for name, tensor in state.items() if not re.search(r"cross_attn\.[qkv]_proj", name)}
    for name in [name for name in state if "cross_attn.q_proj" in name]:
        parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        joined[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return joined


def _configuration(config: MaftPlusConfig) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        feature_size=config.hidden_dim,
        mask_feature_size=config.hidden_dim,
        hidden_dim=config.hidden_dim,
        encoder_feedforward_dim=config.encoder_feedforward_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,  # theirs counts the prediction on the learned queries
        num_attention_heads=config.num_attention_heads,
        dim_feedforward=config.dim_feedforward,
        num_queries=config.num_queries,
        dropout=0.0,
    )
