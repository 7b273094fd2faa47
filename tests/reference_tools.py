"""What every reference check shares: the weight rule of the recorded numbers and the comparison with a tolerance.

The recorded models carry no weights: each tensor is a pure function of its name and shape (`../shared/reference`,
README section 2). `original_state` rebuilds them under the original's names; the rename tables of
`maftplus.conversion.convert` carry them into our models, so a check also tests the tables.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

EMBEDDINGS = (
    "token_embedding.weight",
    "positional_embedding",
    "query_feat.weight",
    "query_embed.weight",
    "level_embed.weight",
    "level_embed",
    "void_embedding.weight",
)
NATURAL = ("empty_weight", "pixel_mean", "pixel_std")


@dataclass
class Comparison:
    """One recorded tensor against ours: `difference` must not exceed `tolerance` (both absolute)."""

    name: str
    difference: float
    tolerance: float

    @property
    def ratio(self) -> float:
        if self.difference == 0.0:
            return 0.0
        return (
            float("inf")
            if not np.isfinite(self.difference) or self.tolerance == 0
            else self.difference / self.tolerance
        )


def compare(name: str, ours, recorded, tolerance: float, relative: bool = False) -> Comparison:
    """Largest absolute difference; `relative` scales `tolerance` by the recorded array's largest value."""
    ours, recorded = _as_array(ours), _as_array(recorded)
    if ours.shape != recorded.shape:
        return Comparison(f"{name} (shape {ours.shape}, recorded {recorded.shape})", float("inf"), tolerance)
    if recorded.size == 0:
        return Comparison(name, 0.0, tolerance)
    difference = np.abs(ours.astype(np.float64) - recorded.astype(np.float64))
    largest = float("inf") if np.isnan(difference).any() else float(difference.max())
    return Comparison(name, largest, tolerance * float(np.abs(recorded).max()) if relative else tolerance)


def compare_equal(name: str, ours, recorded) -> Comparison:
    """Exact equality of anything: difference 0 or infinite."""
    return Comparison(name, 0.0 if ours == recorded else float("inf"), 0.0)


def recorded_weight(name: str, shape: Iterable[int]) -> torch.Tensor:
    """The recorded model's tensor called `name` (its full original key)."""
    shape = tuple(shape)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))
    draw = generator.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.asarray(_scale(name, shape, draw), dtype=np.float32).reshape(shape))


def original_state(shapes: dict[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """A whole original state dict from `{name: shape}`; tensors with natural values are left out."""
    return {name: recorded_weight(name, shape) for name, shape in shapes.items() if name.split(".")[-1] not in NATURAL}


def _scale(name: str, shape: tuple[int, ...], w: np.ndarray) -> np.ndarray:
    last = name.split(".")[-1]
    if last == "running_var":
        return 1 + np.float32(0.1) * np.abs(w)
    if name.endswith("sampling_offsets.bias"):
        return np.float32(0.5) * w
    if last == "logit_scale":
        return np.float32(np.log(1 / 0.07)) + np.float32(0.1) * w
    if last == "gamma":
        return np.float32(0.5) + np.float32(0.1) * w
    if name.endswith(EMBEDDINGS):
        return np.float32(0.5) * w
    if len(shape) <= 1:
        return (1 if name.endswith("weight") else 0) + np.float32(0.1) * w
    return w / np.float32(np.sqrt(np.prod(shape[1:])))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz`; names that end in `_json` hold JSON documents and come back parsed."""
    with np.load(path) as archive:
        return {
            name: json.loads(str(archive[name])) if name.endswith("_json") else archive[name] for name in archive.files
        }


def sibling(path: Path, ending: str, replaces: str) -> Path:
    """The file beside `path` whose name has `ending` where `path` has `replaces`."""
    return path.with_name(path.name[: -len(replaces)] + ending)


def _as_array(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    return np.asarray(value)
