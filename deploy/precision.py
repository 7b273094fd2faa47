"""The precision in which our commands run a network: bfloat16 where the processor or the GPU computes it.

It is written without any other module of ours, so that an endpoint's folder can carry it.
"""

import torch

AUTO = "auto"


def choose_dtype(device: str | torch.device | None = None, wanted: str = AUTO) -> torch.dtype:
    """
    Args:
        device: Where the network is to run; `None`: the accelerator, if there is one, else the CPU.
        wanted: `"auto"`, or the name of a type of torch, as `"float32"`.

    Raises:
        ValueError: if torch has no floating-point type of that name.
    """
    if wanted != AUTO:
        dtype = getattr(torch, wanted, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"`dtype` must be 'auto', 'float32', 'bfloat16' or 'float16', got {wanted!r}.")
        return dtype
    device = default_device() if device is None else torch.device(device)
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def default_device() -> torch.device:
    """The accelerator, if there is one, else the CPU: where a pipeline goes that was told nothing."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; elsewhere it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_computes_bfloat16()


def _cpu_computes_bfloat16() -> bool:
    """
    avx512_bf16, AMX, or ARM's own. `torch.ops.mkldnn._is_mkldnn_bf16_supported` is true for any AVX-512, emulated.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        return any(found for name, found in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


__all__ = ["choose_dtype", "computes_bfloat16", "default_device"]
