"""MAFT's own mask proposals: a ResNet trunk, the segmenter's decoders, and between them a look at the words.

Sources: FreeSeg, arXiv 2303.17225, whose network it is; MAFT, arXiv 2310.00240, which keeps it frozen; Mask2Former,
arXiv 2112.01527; the trunk's stem and dilations, arXiv 1706.05587. Where papers and released code differ, this follows
the released code, whose weights it loads.
Shapes: B images, Q queries, P synonyms (+1 = void, always last), D joint space, C hidden width, n trunk stages,
L = n - 1 levels, h_l x w_l their sizes, h4 x w4 the finest map (stride 4), H x W padded input.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer, ResNetConvLayer, ResNetShortCut

from .configuration_maftplus import MaftPlusProposerConfig
from .layers_maftplus import MaftPlusMLP, to_tokens
from .segmenter_maftplus import (
    MaftPlusMaskDecoder,
    MaftPlusPixelDecoder,
    MaftPlusSegmenterOutput,
    init_decoder_weights,
)

NORM_EPS = 1e-5
NUM_COLOURS = 3
SCORES_AT_ONCE = 2**22  # of pixels with words, an image; larger tables leave the caches and gain nothing


class MaftPlusProposer(nn.Module):
    """
    Masks that depend on the words: `encode` needs the picture alone, `forward` what that gave and the words.

    MAFT keeps it frozen, in evaluation mode. The dropout of its own training (0.1 in pixel decoder and interaction) is
    left out; nothing else differs between its training and its use.
    """

    def __init__(self, config: MaftPlusProposerConfig, text_dim: int):
        super().__init__()
        self.trunk = MaftPlusTrunk(config)
        self.pixel_decoder = MaftPlusPixelDecoder(config, config.hidden_sizes)
        self.map_norm = nn.LayerNorm(config.hidden_dim)
        self.text_norm = nn.LayerNorm(text_dim)
        self.text_attn = MaftPlusTextAttention(config, text_dim)
        self.layer_scale = nn.Parameter(torch.ones(config.hidden_dim))
        self.decoder = MaftPlusTextMaskDecoder(config, len(config.hidden_sizes) - 1, text_dim)
        init_proposer_weights(self)

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Everything that no word changes: trunk and pixel decoder.

        Args:
            pixel_values: (B, 3, H, W), of the proposer's own normalisation, the padding zero.

        Returns:
            Mask features (B, C, h4, w4) and L levels (B, C, h_l, w_l), coarse to fine.
        """
        return self.pixel_decoder(self.trunk(pixel_values))

    def forward(
        self,
        mask_features: Tensor,
        levels: Sequence[Tensor],
        text_embeds: Tensor,
        output_auxiliary_logits: bool = False,
    ) -> MaftPlusSegmenterOutput:
        """
        Propose masks for these words.

        Args:
            mask_features, levels: What `encode` returned.
            text_embeds: (P+1, D), normalised class embeddings, void last; it takes part like a class.
            output_auxiliary_logits: Also return every earlier prediction.

        Returns:
            Masks and class embeddings; maps and levels as the interaction left them. FreeSeg classifies the class
            embeddings by 100 times their cosine with the words; MAFT does not read them.
        """
        *levels, mask_features = self._look_at_words([*levels, mask_features], text_embeds)
        predictions = self.decoder(mask_features, levels, output_auxiliary_logits)
        return MaftPlusSegmenterOutput.of_predictions(predictions, mask_features, tuple(levels))

    def _look_at_words(self, feature_maps: Sequence[Tensor], text_embeds: Tensor) -> list[Tensor]:
        """
        Every pixel attends to the class embeddings: maps (B, C, h_i, w_i) and text (P+1, D) -> maps of these shapes.

        As released: text is normed once more for every map, so the last map sees it normed n times, and what was
        attended to is added to the normed map, not to the map (`reference_maft_proposer.py` has the numbers).
        """
        text = text_embeds.expand(feature_maps[0].shape[0], -1, -1)
        refined = []
        for feature_map in feature_maps:
            text = self.text_norm(text)  # (B, P+1, D)
            tokens = self.map_norm(to_tokens(feature_map))  # (B, h_i * w_i, C)
            tokens = tokens + self.layer_scale * self.text_attn(tokens, text)
            refined.append(tokens.transpose(1, 2).unflatten(2, feature_map.shape[-2:]))
        return refined


class MaftPlusTrunk(nn.Module):
    """
    ResNet in DeepLab's form, of transformers' layers: a stem of three convolutions, the stride in the 3 x 3
    convolution, dilated blocks in the last stage, which stays at stride 32; batch norms that never move.
    """

    def __init__(self, config: MaftPlusProposerConfig):
        super().__init__()
        half = config.stem_size // 2
        self.stem = nn.Sequential(
            ResNetConvLayer(NUM_COLOURS, half, stride=2),
            ResNetConvLayer(half, half),
            ResNetConvLayer(half, config.stem_size),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        widths = (config.stem_size, *config.hidden_sizes)
        self.stages = nn.ModuleList(
            _build_stage(narrow, wide, depth, 1 if index == 0 else 2, config.bottleneck_reduction)
            for index, (narrow, wide, depth) in enumerate(zip(widths, widths[1:], config.depths))
        )
        for block, dilation in zip(self.stages[-1], config.last_stage_dilations):
            convolution = block.layer[1].convolution
            convolution.dilation = convolution.padding = (dilation, dilation)
        for part in [part for part in self.modules() if isinstance(part, (ResNetConvLayer, ResNetShortCut))]:
            part.normalization = MaftPlusFrozenNorm(part.normalization.num_features)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> n maps (B, C_i, H / s_i, W / s_i), fine to coarse, strides 4 to 32."""
        feature_map = self.stem(pixel_values)
        feature_maps = []
        for stage in self.stages:
            feature_map = stage(feature_map)
            feature_maps.append(feature_map)
        return feature_maps


class MaftPlusFrozenNorm(nn.Module):
    """Batch norm by stored statistics, in training too; nothing of it is a parameter."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(num_channels))
        self.register_buffer("bias", torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, feature_map: Tensor) -> Tensor:
        return F.batch_norm(
            feature_map, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=NORM_EPS
        )


class MaftPlusTextAttention(nn.Module):
    """
    Multi-head attention of many pixels to few words, (B, S, C) and (B, P, D) -> (B, S, C).

    The projections of queries and of results are applied to the words, which are few, and not to the pixels: with
    heads as wide as the maps, as released, that is a third of the work (150 words at 640 x 640). The numbers differ by
    rounding only.
    """

    def __init__(self, config: MaftPlusProposerConfig, text_dim: int):
        super().__init__()
        self.num_heads = config.interaction_heads
        self.q_proj = nn.Linear(config.hidden_dim, config.interaction_dim)
        self.k_proj = nn.Linear(text_dim, config.interaction_dim)
        self.v_proj = nn.Linear(text_dim, config.interaction_dim)
        self.out_proj = nn.Linear(config.interaction_dim, config.hidden_dim)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Tokens of a map (B, S, C) and text rows (B, P, D) -> what the tokens take from the words, (B, S, C)."""
        keys, biases, values = self._fold(text)  # (B, M * P, C), (B, 1, M * P), (B, M * P, C)
        at_once = max(1, SCORES_AT_ONCE // biases.shape[-1])
        parts = [tokens] if torch.compiler.is_compiling() else tokens.split(at_once, dim=1)
        attended = []
        for part in parts:
            scores = torch.baddbmm(biases, part, keys.transpose(1, 2))  # (B, part of S, M * P)
            weights = scores.unflatten(-1, (self.num_heads, -1)).softmax(-1).flatten(-2)
            attended.append(weights @ values)
        return torch.cat(attended, dim=1) + self.out_proj.bias

    def _fold(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a pixel's inner product with a word's key is with, what is added to it, and what the word gives."""
        heads = (self.num_heads, -1)
        keys, values = (
            project(text).unflatten(-1, heads).transpose(1, 2) for project in (self.k_proj, self.v_proj)
        )  # (B, M, P, E)
        keys = keys * keys.shape[-1] ** -0.5
        seen = keys @ self.q_proj.weight.unflatten(0, heads)  # (B, M, P, C)
        biases = keys @ self.q_proj.bias.unflatten(0, heads).unsqueeze(-1)  # (B, M, P, 1)
        given = values @ self.out_proj.weight.T.unflatten(0, heads)  # (B, M, P, C)
        return seen.flatten(1, 2), biases.flatten(1).unsqueeze(1), given.flatten(1, 2)


class MaftPlusTextMaskDecoder(MaftPlusMaskDecoder):
    """The segmenter's decoder with a class head that reads the queries alone, not what lies under their masks."""

    def add_class_head(self, config: MaftPlusProposerConfig, class_dim: int) -> None:
        self.class_embedder = MaftPlusMLP(config.hidden_dim, config.class_feedforward_dim, class_dim)

    def _embed_classes(self, normed: Tensor, mask_features: Tensor, logits: Tensor) -> Tensor:
        return self.class_embedder(normed)


def _build_stage(narrow: int, wide: int, depth: int, stride: int, reduction: int) -> nn.Sequential:
    first = ResNetBottleNeckLayer(narrow, wide, stride=stride, reduction=reduction)
    return nn.Sequential(
        first, *(ResNetBottleNeckLayer(wide, wide, stride=1, reduction=reduction) for _ in range(depth - 1))
    )


def init_proposer_weights(module: nn.Module) -> None:
    """
    Set every parameter and buffer of a `MaftPlusProposer`; does nothing for any other module.

    Meant to be called by `PreTrainedModel._init_weights` for every module, as `init_segmenter_weights` is.
    """
    if not isinstance(module, MaftPlusProposer):
        return
    init_decoder_weights(module)
    init.ones_(module.layer_scale)
    for part in module.modules():
        if isinstance(part, MaftPlusFrozenNorm):
            for ones, zeros in ((part.weight, part.bias), (part.running_var, part.running_mean)):
                init.ones_(ones)
                init.zeros_(zeros)


__all__ = ["MaftPlusProposer", "MaftPlusTrunk", "init_proposer_weights"]
