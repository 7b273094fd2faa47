"""What towers, segmenter and classification share: linear layers, attention, mask pooling, sine positions.

Sources: mask pooling, arXiv 2308.02487, "Method"; sine positions, arXiv 2005.12872, released code. The measurements
behind `MaftPlusLinear` are in LOG.md.
Shapes: B images, Q queries or masks, S tokens, C width, M heads of E channels, h x w a map.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN_FROM = 20480  # numbers; torch keeps smaller inputs of a convolution from oneDNN


class MaftPlusLinear(nn.Linear):
    """
    `nn.Linear` for many tokens, (..., in) -> (..., out).

    On a CPU in float32 it runs as a 1 x 1 convolution: that goes to oneDNN rather than to the BLAS library behind
    `nn.Linear`, and takes half the time on AMD cores. The numbers differ by rounding only.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.device.type != "cpu" or tokens.dtype != torch.float32 or tokens.numel() == 0:
            return super().forward(tokens)
        if type(self.weight) is not nn.Parameter or torch.compiler.is_exporting():  # a quantised weight is no kernel
            return super().forward(tokens)
        columns = tokens.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, in, 1, tokens), channels last
        outputs = F.conv2d(columns, self.weight[:, :, None, None], self.bias, dilation=_way_to_onednn(tokens))
        return outputs.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], self.out_features)


def _way_to_onednn(tokens: Tensor) -> int:
    """
    The dilation of a 1 x 1 convolution, on which its result does not depend. With one thread torch sends such a
    convolution to BLAS after all unless it is dilated (`use_mkldnn` in its Convolution.cpp); oneDNN halves the time.
    """
    if torch.compiler.is_compiling() or torch.get_num_threads() > 1 or not torch.backends.mkldnn.is_available():
        return 1
    return 2 if tokens.numel() > ONEDNN_FROM else 1


class MaftPlusAttention(nn.Module):
    """Multi-head attention with queries, keys and values given apart; fused (scaled dot product)."""

    def __init__(self, hidden_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = MaftPlusLinear(hidden_dim, hidden_dim)
        self.k_proj = MaftPlusLinear(hidden_dim, hidden_dim)
        self.v_proj = MaftPlusLinear(hidden_dim, hidden_dim)
        self.out_proj = MaftPlusLinear(hidden_dim, hidden_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """
        (B, Q, C), (B, S, C), (B, S, C) -> (B, Q, C).

        `attention_mask` is boolean (`True`: may look) or additive, and broadcasts to (B, M, Q, S); every query must
        be allowed to look somewhere.
        """
        query, key, value = (
            self._heads(self.q_proj(query)),
            self._heads(self.k_proj(key)),
            self._heads(self.v_proj(value)),
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, M, tokens, E)


class MaftPlusMLP(nn.Module):
    """Linear layers with ReLU between them, by their sizes: the input's, the inner ones, the output's."""

    def __init__(self, *sizes: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:]))

    def forward(self, tokens: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            tokens = layer(tokens).relu()
        return last(tokens)


def relu(values: Tensor) -> Tensor:
    """In place where no gradient needs the input: a fresh map costs page faults, and autograd copies views."""
    return values.relu() if torch.is_grad_enabled() else values.relu_()


def pool_masks(features: Tensor, mask_logits: Tensor) -> Tensor:
    """
    Mean of `features` (B, C, h, w) inside every mask, where `mask_logits` (B, Q, h, w) > 0 -> (B, Q, C).

    An empty mask gives zeros. No gradient reaches `mask_logits`. Pixels are weighed before they are summed: a sum over
    a large map would leave float16. The released code adds 1e-8 to the area; dividing by at least one pixel gives the
    same numbers, and no optimiser of an exported graph takes it for zero.
    """
    inside = (mask_logits > 0).flatten(2)
    area = inside.sum(-1, keepdim=True, dtype=torch.float32)
    weights = (inside / area.clamp(min=1)).to(features.dtype)
    return weights @ to_tokens(features)


def sine_position_embedding(
    height: int, width: int, num_features_per_axis: int, device: Any = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """
    Sine encoding of the pixels of a map, (1, 2 * num_features_per_axis, height, width), rows before columns.

    Position i of k counts (i + 1) / (k + 1e-6) turns; sine and cosine alternate (arXiv 2005.12872, released code).
    """
    rows = _axis_encoding(height, num_features_per_axis, device).to(dtype)[:, :, None].expand(-1, -1, width)
    columns = _axis_encoding(width, num_features_per_axis, device).to(dtype)[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns]).unsqueeze(0)


def _axis_encoding(extent: int, num_features: int, device: Any) -> Tensor:
    """One axis, (num_features, extent); kept apart because the two axes do not mix."""
    turns = torch.arange(1, extent + 1, device=device, dtype=torch.float32) / (extent + 1e-6) * (2 * math.pi)
    pair = torch.arange(num_features, device=device) // 2
    angles = turns / 10000 ** (2 * pair / num_features)[:, None]
    return torch.stack([angles[0::2].sin(), angles[1::2].cos()], dim=1).flatten(0, 1)


def position_tokens(level: Tensor) -> Tensor:
    """Sine encoding of a level (B, C, h, w) as tokens, (1, h * w, C)."""
    channels, height, width = level.shape[1:]
    return to_tokens(sine_position_embedding(height, width, channels // 2, level.device, level.dtype))


def to_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def renormalise(
    pixel_values: Tensor,
    old: tuple[Sequence[float], Sequence[float]],
    new: tuple[Sequence[float], Sequence[float]],
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """
    Pictures (B, 3, H, W) from the `old` mean and deviation to the `new` ones.

    The padding, where `pixel_mask` (B, H, W) is 0, is zero before and after.
    """
    (old_mean, old_std), (new_mean, new_std) = [
        [pixel_values.new_tensor(values)[:, None, None] for values in statistics] for statistics in (old, new)
    ]
    pixels = (pixel_values * old_std + old_mean - new_mean) / new_std
    return pixels if pixel_mask is None else pixels * pixel_mask[:, None]


def can_read_values(tensor: Tensor) -> bool:
    """Whether checks may look at numbers: elsewhere that would wait for a GPU, break a graph, or find none (meta)."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


class OnOneDevice:
    """Put before `PreTrainedModel`: a `device_map` must not split a model whose parts read each other's tensors."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """
        As for every model of transformers.

        Raises:
            ValueError: if `device_map` spreads the model over several devices.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        devices = sorted({str(device) for device in getattr(model, "hf_device_map", {}).values()})
        if len(devices) > 1 or "disk" in devices:
            raise ValueError(
                f"`device_map` puts parts of this model on {', '.join(devices)}, but it runs on one device only: pass "
                '`device_map={"": 0}` (or "cpu"), and `dtype="float16"` where memory is short.'
            )
        return loaded


def input_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(height, width) of every picture before and after padding, both (B, 2)."""
    batch, _, height, width = pixel_values.shape
    padded = torch.tensor([[height, width]], device=pixel_values.device).expand(batch, 2)
    if pixel_mask is None:
        return padded, padded
    if pixel_mask.shape != (batch, height, width):
        raise ValueError(
            f"`pixel_mask` must have the pictures' shape {(batch, height, width)}, got {tuple(pixel_mask.shape)}."
        )
    seen = pixel_mask.bool()
    return torch.stack([seen.any(2).sum(1), seen.any(1).sum(1)], dim=1), padded


__all__ = [
    "MaftPlusAttention",
    "MaftPlusLinear",
    "MaftPlusMLP",
    "OnOneDevice",
    "can_read_values",
    "input_sizes",
    "pool_masks",
    "position_tokens",
    "relu",
    "renormalise",
    "sine_position_embedding",
    "to_tokens",
]
