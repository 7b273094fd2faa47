"""The part of a model that becomes a graph: pictures in; masks and their embeddings out.

Everything after it (Content-Dependent Transfer, class scores, post-processing) and the text tower stay in torch, so
that words stay free and no logarithm is rewritten by an optimiser. MAFT's own proposer looks at the words: its graph
takes their rows, of any number, too.
Shapes: B images, Q queries, P synonyms, D joint space, H x W padded input (multiples of 32), h x w a feature map.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from maftplus.deploy.sessions import PIXEL_MASK, PIXELS, ROWS
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation, MaftPlusModel
from maftplus.segmenter_maftplus import MaftPlusMaskDecoder

ATTENTION_MASKS = "attention_masks"
SIZE_STEP = 32  # heights and widths of the graph are multiples of it, as the processor pads
EXAMPLE_SHAPE = (2, 3, 96, 160)  # no two sizes alike, or the exporter takes them for one
EXAMPLE_ROWS = 7
OPSET = 18


class PictureGraph(nn.Module):
    """
    `encode_picture` with tensors for arguments and results, named in `input_names` and `output_names`.

    `attention_masks` (B, Q, S) bool, what every layer of the mask decoder let every query see, is for `verify` alone.
    """

    def __init__(self, model: MaftPlusForUniversalSegmentation):
        super().__init__()
        self.model = model.model
        config = model.config
        self.input_names = [PIXELS, PIXEL_MASK, ROWS] if config.has_own_proposer else [PIXELS]
        names = {"class_embeds": config.has_segmenter, "dense_embeds": config.cdt_form != "off"}
        self.names = ["masks_queries_logits", "mask_embeds", *(name for name, is_given in names.items() if is_given)]
        self.output_names = [*self.names, ATTENTION_MASKS]

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, text_embeds: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(B, 3, H, W), for MAFT (B, H, W) and rows (P+1, D), void last -> `names`, then the attention masks."""
        with recorded_attention(self.model) as attention_masks:
            picture = self.model.encode_picture(pixel_values, pixel_mask)
            if text_embeds is not None:
                picture = self.model.propose_for_words(picture, text_embeds)
        return *(picture[name] for name in self.names), torch.cat(attention_masks, dim=-1)

    def examples(self) -> tuple[Tensor, ...]:
        """Arguments to trace with."""
        pixels = torch.randn(EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
        rows = torch.ones(EXAMPLE_ROWS, self.model.void_embedding.embedding_dim)
        every = {PIXELS: pixels, PIXEL_MASK: torch.ones(pixels[:, 0].shape), ROWS: rows}
        return tuple(every[name] for name in self.input_names)

    def dynamic_shapes(self) -> dict[str, dict]:
        """Which of their sizes are free."""
        dim = torch.export.Dim
        batch, height, width = dim("batch"), SIZE_STEP * dim("rows", max=1024), SIZE_STEP * dim("columns", max=1024)
        every = {
            PIXELS: {0: batch, 2: height, 3: width},
            PIXEL_MASK: {0: batch, 1: height, 2: width},
            ROWS: {0: dim("words")},
        }
        return {name: every[name] for name in self.input_names}


@contextlib.contextmanager
def replaced(owner: object, method: str, replacement: Callable) -> Iterator[None]:
    """`owner.method` is `replacement` for a while."""
    setattr(owner, method, replacement)
    try:
        yield
    finally:
        delattr(owner, method)


@contextlib.contextmanager
def recorded_attention(model: MaftPlusModel) -> Iterator[list[Tensor]]:
    """Collects what every layer of the mask decoder lets every query see, (B, Q, h_l * w_l) bool each."""
    decoder, found = mask_decoder(model), []
    compute = decoder._visible

    def record(normed: Tensor, level_features: Tensor) -> Tensor:
        found.append(compute(normed, level_features))
        return found[-1]

    with replaced(decoder, "_visible", record):
        yield found


def mask_decoder(model: MaftPlusModel) -> MaftPlusMaskDecoder:
    return next(module for module in model.modules() if isinstance(module, MaftPlusMaskDecoder))


def check_exportable(model: MaftPlusForUniversalSegmentation) -> None:
    """Raises ValueError for a model whose masks come from elsewhere."""
    if not (model.config.has_segmenter or model.config.has_own_proposer):
        raise ValueError(
            "Only a model that proposes masks itself can be exported; this one has a proposer of transformers or none."
        )


def write_onnx(model: MaftPlusForUniversalSegmentation, path: Path) -> None:
    """
    Write the model's graph, of any batch, height and width, as one ONNX file that says nothing of this machine.

    Args:
        model: In float32, on the CPU.
        path: The file.

    Raises:
        ValueError: for a model that does not propose masks itself.
    """
    check_exportable(model)
    graph = PictureGraph(model).eval()
    examples = graph.examples()
    with torch.no_grad(), _quiet_exporter():
        exported = torch.export.export(graph, examples, dynamic_shapes=tuple(graph.dynamic_shapes().values()))
        program = torch.onnx.export(
            exported,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.input_names,
            output_names=graph.output_names,
            verbose=False,
        )
    _forget_origin(program.model)
    program.save(str(path))


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of operators that we do not use, and of its own use of torch."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)


def _forget_origin(model) -> None:
    """Stack traces name the folders of the machine that exported; the names of operators stay."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for item in (graph, *graph.all_nodes(), *graph.inputs, *graph.initializers.values()):
            item.metadata_props.clear()
            item.doc_string = None
        for node in graph.all_nodes():
            for output in node.outputs:
                output.metadata_props.clear()
    model.metadata_props.clear()


__all__ = ["ATTENTION_MASKS", "PictureGraph", "check_exportable", "mask_decoder", "replaced", "write_onnx"]
