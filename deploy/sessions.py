"""The runtimes that run a graph: ONNX Runtime and OpenVINO behind one call, tensors by name in and out.

    session = open_session("onnx", "graph.onnx", torch.float32)
    session.run(pixel_values=pixels)["masks_queries_logits"]

A runtime is imported when it is opened. Both run on the CPU, on as many threads as torch does.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

GRAPH_FILES = {"onnx": ("graph.onnx",), "openvino": ("graph.xml", "graph.bin")}  # the first is opened
RUNTIMES = tuple(GRAPH_FILES)
PIXELS, PIXEL_MASK, ROWS = "pixel_values", "pixel_mask", "text_embeds"  # a graph's inputs


class OnnxSession:
    """ONNX Runtime. It computes in the precision of the file, whatever torch's part does."""

    def __init__(self, path: str, dtype: torch.dtype):
        runtime = import_runtime("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.description = f"ONNX Runtime {runtime.__version__}"

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Every output of the graph by name; a tensor of any precision is taken as float32."""
        arrays = {name: value.detach().float().cpu().numpy() for name, value in inputs.items()}
        return {name: torch.from_numpy(value) for name, value in zip(self.names, self.session.run(None, arrays))}


class OpenVinoSession:
    """OpenVINO. `dtype` is the precision in which it computes; the tensors that come and go are float32."""

    def __init__(self, path: str, dtype: torch.dtype):
        runtime = import_runtime("openvino", "openvino")
        hints = {torch.float32: runtime.Type.f32, torch.bfloat16: runtime.Type.bf16, torch.float16: runtime.Type.f16}
        self.options = {"INFERENCE_PRECISION_HINT": hints[dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.core, self.path = runtime.Core(), path
        self.compiled = self.core.compile_model(path, "CPU", self.options)
        self.of_one_size: dict[tuple[int, ...], Any] = {}
        self.names = [output.get_any_name() for output in self.compiled.outputs]
        self.description = f"OpenVINO {runtime.__version__.split('-')[0]}"

    def fix_size(self, shape: tuple[int, ...]) -> None:
        """Compile the graph once more, for `pixel_values` of this shape alone, in which it computes faster."""
        graph = self.core.read_model(self.path)
        graph.reshape({PIXELS: list(shape)})
        self.of_one_size[tuple(shape)] = self.core.compile_model(graph, "CPU", self.options)

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """As `OnnxSession.run`. A request of its own for every call, so that threads do not share one."""
        arrays = {name: value.detach().float().cpu().numpy() for name, value in inputs.items()}
        compiled = self.of_one_size.get(arrays[PIXELS].shape, self.compiled)
        request = compiled.create_infer_request()
        request.infer(arrays)
        # Copied, because the request owns its memory.
        return {name: torch.tensor(request.get_tensor(name).data) for name in self.names}


SESSIONS: dict[str, Callable] = {"onnx": OnnxSession, "openvino": OpenVinoSession}


def open_session(runtime: str, path: str | Path, dtype: torch.dtype) -> OnnxSession | OpenVinoSession:
    """
    Raises:
        ImportError: if the runtime is not installed; the message names the extra.
    """
    return SESSIONS[runtime](str(path), dtype)


def import_runtime(module: str, extra: str) -> ModuleType:
    """A module that an extra brings. Raises ImportError that names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f'`{module}` is not installed: pip install "maftplus[{extra}]"'
        raise ModuleNotFoundError(message, name=module) from error


__all__ = [
    "GRAPH_FILES",
    "PIXELS",
    "PIXEL_MASK",
    "ROWS",
    "RUNTIMES",
    "OnnxSession",
    "OpenVinoSession",
    "import_runtime",
    "open_session",
]
