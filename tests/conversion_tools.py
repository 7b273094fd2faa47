"""What the tests of conversion share: checkpoints on disk, the full-size lists of names, the command."""

import gzip
import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from maftplus.app.cli import app

FIXTURES = Path(__file__).parent / "fixtures"
KEYS = FIXTURES / "keys"


def full_size_state(name: str) -> dict[str, torch.Tensor]:
    with gzip.open(KEYS / f"{name}.json.gz", "rt") as file:
        shapes = json.load(file)
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def written(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def run_cli(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
