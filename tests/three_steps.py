"""Losses of three seeded training steps of the shipped model, to compare a change of the code with what was before.

python tests/three_steps.py        # a line a step; float64, so that only a change of meaning shows
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from training_tools import make_trainer

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

SHAPES = Path(__file__).parent.parent / "models" / "shapes"
WEIGHTS = {"mask_aware_weight": 1.0, "compensation_weight": 0.1}


def three_steps() -> list[dict[str, float]]:
    """Every named loss of three steps on `training_tools.Pictures`: all losses of MAFT+, the segmenter's included."""
    model = MaftPlusForUniversalSegmentation.from_pretrained(SHAPES, dtype=torch.float64, **WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, model=model, max_steps=3)
        trainer.train()
    return [row for row in trainer.state.log_history if "loss_ce" in row]


if __name__ == "__main__":
    for row in three_steps():
        sys.stdout.write(json.dumps({name: value for name, value in row.items() if "loss" in name}) + "\n")
