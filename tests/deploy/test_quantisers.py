"""Quantisers of the ecosystem on our linear layers, as docs/deploy.md promises."""

import pytest
import torch
from tiny_tools import tiny_model

from maftplus.layers_maftplus import MaftPlusLinear
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

torchao = pytest.importorskip("torchao.quantization")


def test_torchao_quantises_our_linear_layers_and_the_answer_stays_close():
    model = tiny_model()
    words = {"text_embeds": torch.eye(3, 16), "text_class_ids": torch.arange(3)}
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values=pixels, **words)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        assert any(type(part.weight) is not torch.nn.Parameter for part in model.modules() if is_linear(part))
        found = model(pixel_values=pixels, **words)
    scale = expected.masks_queries_logits.abs().max()
    assert (found.masks_queries_logits - expected.masks_queries_logits).abs().median() < 0.05 * scale


def is_linear(part: torch.nn.Module) -> bool:
    return isinstance(part, MaftPlusLinear)


def test_a_quantization_config_of_transformers_loads(model_folder):
    from transformers import TorchAoConfig

    quantised = MaftPlusForUniversalSegmentation.from_pretrained(
        model_folder, quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig())
    )
    with torch.no_grad():
        outputs = quantised(pixel_values=torch.zeros(1, 3, 64, 64))
    assert outputs.class_queries_logits.isfinite().all()
    assert any(type(part.weight) is not torch.nn.Parameter for part in quantised.modules() if is_linear(part))
