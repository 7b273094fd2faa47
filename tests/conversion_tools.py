"""What the tests of conversion share: tiny checkpoints in the originals' layout, lists of names, the command."""

import gzip
import json
from pathlib import Path

import torch
from reference_tools import original_state
from typer.testing import CliRunner

from maftplus.app.cli import app

FIXTURES = Path(__file__).parent / "fixtures"
TINY = FIXTURES / "tiny"


def full_size_state(name: str) -> dict[str, torch.Tensor]:
    """The shapes of a released checkpoint under its names, on the meta device."""
    with gzip.open(FIXTURES / "keys" / f"{name}.json.gz", "rt") as file:
        shapes = json.load(file)
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


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


def run_cli(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
