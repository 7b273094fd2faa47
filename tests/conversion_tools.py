"""Tiny checkpoints in the originals' layout, for the tests of conversion."""

import json
from pathlib import Path

import torch
from reference_tools import original_state

TINY = Path(__file__).parent / "fixtures" / "tiny"


def tiny_state(golden: str = "tiny_a_semantic") -> dict[str, torch.Tensor]:
    shapes = json.loads((TINY / f"{golden}_keys.json").read_text())
    return original_state({name: shape for name, (shape, _) in shapes.items()})


def tiny_overrides(golden: str = "tiny_a_semantic") -> dict:
    """The recorded models' numbers of heads, which break the released rule."""
    settings = json.loads((TINY / f"{golden}_config.json").read_text())
    text = {"num_attention_heads": settings["text_heads"]}
    return {"num_attention_heads": settings["nheads"], "clip_config": {"text_config": text}}


def open_clip_state() -> dict[str, torch.Tensor]:
    """A tiny OpenCLIP ConvNeXt: the student of a tiny MAFT+."""
    prefix = "backbone.clip_model."
    return {name.removeprefix(prefix): value for name, value in tiny_state().items() if name.startswith(prefix)}


def written(path: Path, content) -> Path:
    torch.save(content, path)
    return path
