"""The precision by default."""

import pytest
import torch

from maftplus.deploy import precision
from maftplus.deploy.precision import choose_dtype, computes_bfloat16


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"cpu_name": "bf16", "num_sockets": 1}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_dtype("cpu") == expected


@pytest.mark.parametrize(("answers", "expected"), [((False, True), True), ((False, False), False)])
def test_an_older_torch_is_asked_otherwise(monkeypatch, answers, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name, answer in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), answers):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert computes_bfloat16(torch.device("cpu")) == expected


def test_a_gpu_that_only_emulates_it_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert choose_dtype("cuda") == torch.float32


def test_the_wish_of_the_caller_comes_first(monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: True)
    assert choose_dtype("cpu", "float32") == torch.float32
    assert choose_dtype("cpu", "float16") == torch.float16


@pytest.mark.parametrize("name", ["int8", "no_such_type", "Tensor"])
def test_what_is_no_floating_point_type_is_refused(name):
    with pytest.raises(ValueError, match=name):
        choose_dtype("cpu", name)
