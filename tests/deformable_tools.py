"""Deformable attention with places given from outside, as the papers and transformers write it."""

import torch
from torch import Tensor

from maftplus.segmenter_maftplus import Sizes, _extents, _sample


def multi_scale_deformable_attention(
    value: Tensor, spatial_shapes: Sizes | Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """
    Weighted sum of bilinear samples over all levels, as one gather: arXiv 2010.04159, equation 3.

    Each sample is four neighbouring tokens, so the result is a weighted sum of L * P * 4 rows of `value` for every
    query and head. Neighbours outside the map count zero. Differentiable in all three tensors.

    Args:
        value: Tokens of all levels, (B, S, M, E).
        spatial_shapes: (height, width) of every level in the order of the tokens; L pairs or an (L, 2) tensor.
        sampling_locations: (B, queries, M, L, P, 2) as (x, y), 0 and 1 being the outer edges of the map.
        attention_weights: (B, queries, M, L, P).

    Returns:
        (B, queries, M * E), of `value`'s dtype. Places and bilinear weights are computed in float32.

    Raises:
        ValueError: if `spatial_shapes` does not add up to the number of tokens.
    """
    sizes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    if sum(h * w for h, w in sizes) != value.shape[1]:
        raise ValueError(f"`spatial_shapes` {list(sizes)} do not add up to the {value.shape[1]} tokens of `value`.")
    locations = sampling_locations.float().flatten(3, 4)  # (B, queries, M, L * P, 2)
    heights, widths = _extents(sizes, sampling_locations.shape[4], locations)
    offsets = locations * torch.stack([widths, heights], dim=-1) - 0.5
    origin = torch.zeros(2, 1, 1, 1, dtype=torch.int32, device=locations.device)
    return _sample(value, sizes, offsets, (origin, origin.float()), attention_weights.float().flatten(3))
