"""A graph in 8 bits: weights and activations of convolutions and linear layers, ranges measured on real pictures.

Products of two activations (masks, attention, sampling) stay in floating point. What it costs in quality is in
docs/deploy.md.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from maftplus.deploy.sessions import PIXELS, import_runtime

ONNX_LAYERS = ["Conv", "MatMul", "Gemm"]


def quantise_onnx(source: Path, target: Path, pictures: Sequence[Tensor]) -> None:
    """
    Static int8 for ONNX Runtime, a scale a channel of the weights.

    Args:
        source, target: The graph in float32, and where the other goes.
        pictures: Calibration, (1, 3, H, W) each.
    """
    tools = import_runtime("onnxruntime.quantization", "onnx")

    class Reader(tools.CalibrationDataReader):
        """Hands out one picture after the other."""

        def __init__(self):
            self.feeds = ({PIXELS: picture.numpy()} for picture in pictures)

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    tools.quantize_static(
        str(source),
        str(target),
        Reader(),
        op_types_to_quantize=ONNX_LAYERS,
        nodes_to_exclude=_products_of_activations(source),
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
    )


def _products_of_activations(source: Path) -> list[str]:
    """Names of the products that hold no weight: mask logits in 8 bits cost 12 points of mIoU."""
    graph = import_runtime("onnx", "onnx").load(source).graph
    weights = {weight.name for weight in graph.initializer}
    return [node.name for node in graph.node if node.op_type in ONNX_LAYERS and node.input[1] not in weights]


def quantise_openvino(graph, pictures: Sequence[Tensor]):
    """
    An OpenVINO model in int8 by NNCF, from one in float32; as a transformer, without which quality breaks down.

    Args:
        graph: An `openvino.Model`.
        pictures: As `quantise_onnx`.
    """
    nncf = import_runtime("nncf", "openvino")
    products = [node for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    sources = [node.input_value(1).get_node().get_type_name() for node in products]
    ignored = [node.get_friendly_name() for node, source in zip(products, sources) if source != "Constant"]
    return nncf.quantize(
        graph,
        nncf.Dataset([picture.numpy() for picture in pictures]),
        subset_size=len(pictures),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=ignored),  # products of activations, as above
        fast_bias_correction=True,
    )


__all__ = ["quantise_onnx", "quantise_openvino"]
