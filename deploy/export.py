"""A model folder becomes a folder whose picture half runs on ONNX Runtime or OpenVINO, with proof in its card.

    report = export("models/shapes", "out/shapes-onnx", runtime="onnx")
    report.is_within     # whether the graph agrees with torch

The command is `maftplus export`; docs/deploy.md says which runtime to choose.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maftplus.conversion.checkpoint import new_folders
from maftplus.deploy.exported import MaftPlusExportedForUniversalSegmentation, graph_precision, stand_in
from maftplus.deploy.graph import check_exportable, write_onnx
from maftplus.deploy.quantise import quantise_onnx, quantise_openvino
from maftplus.deploy.sessions import GRAPH_FILES, RUNTIMES, import_runtime
from maftplus.deploy.verify import (
    CLASS_TOLERANCE,
    HELD_SHAPES,
    LEAST_AGREEMENT,
    MASK_TOLERANCE,
    Difference,
    agreement,
    compare,
    random_pictures,
)
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.pictures.files import list_pictures
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.reading_maftplus import read_picture

MOST_PICTURES = 100  # of calibration
PARITY = """In float32, largest difference over the largest value: mask logits (tolerance {masks:.0e}), class scores
({classes:.0e}). A tie is a query whose attention mask was at its threshold to rounding in a layer; torch was given the
graph's answer there.
"""
AGREEMENT = """
As it computes by default: {share:.1f} % of the pixels of {where} have the class that they have in torch's float32
(at least {least:.0f} %)."""
PARITY_HEAD = """| batch | height x width | masks | classes | ties | farthest tie |
|---|---|---|---|---|---|
"""
CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [maftplus, {runtime}]
---
# {name} on {title}

Made by `maftplus export`, {precision}. Picture to masks runs on {title}; words, class scores and results run in torch,
so words stay free. Needs the package: `pip install "maftplus[{runtime}]"`.

```python
import maftplus
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="PATH", trust_remote_code=True)
segmenter("picture.jpg", candidate_labels=["cat, kitten", "grass"], stuff_labels=["grass"])
```

Heights and widths are multiples of 32 (the processor pads), batches of any size.

## Compared with torch

{proof}
"""


@dataclass
class ExportReport:
    """
    What was found out about a graph.

    Args:
        differences: Graph against torch, both in float32, a batch each; none for int8.
        agreement: Share of the pixels whose best class agrees, of a graph that computes in less than float32.
        on_pictures: Whether those were the given pictures, or random ones.
    """

    differences: list[Difference] = field(default_factory=list)
    agreement: float | None = None
    on_pictures: bool = False

    @property
    def is_within(self) -> bool:
        """Whether all of it is within its tolerance."""
        agrees = self.agreement is None or self.agreement >= LEAST_AGREEMENT
        return agrees and all(difference.is_within for difference in self.differences)

    def lines(self) -> list[str]:
        """For people, in Markdown."""
        lines = []
        if self.differences:
            lines.append(PARITY.format(masks=MASK_TOLERANCE, classes=CLASS_TOLERANCE))
            lines.append(PARITY_HEAD + "\n".join(each.row() for each in self.differences))
        if self.agreement is not None:
            where = "the calibration pictures" if self.on_pictures else "random pictures"
            lines.append(AGREEMENT.format(share=100 * self.agreement, where=where, least=100 * LEAST_AGREEMENT))
        return lines or ["Not verified (`--no-verify`)."]


def export(
    model_folder: str,
    out: str | Path,
    runtime: str = "onnx",
    int8: bool = False,
    calibrate: str | Path | None = None,
    dtype: str = "float32",
    do_verify: bool = True,
) -> ExportReport:
    """
    Write `out`: graph, configuration, processor, text tower, and a card with the differences.

    Args:
        model_folder: A model folder, or a name on the Hub.
        out: The new folder; it must not exist, or be empty.
        runtime: `"onnx"` or `"openvino"`.
        int8: Quantise weights and activations.
        calibrate: A folder of pictures like those to come; int8 needs it.
        dtype: In what the loaded folder computes by default: `"float32"`, or for OpenVINO `"bfloat16"`.
        do_verify: Compare with torch.

    Raises:
        ValueError: for a model that cannot be exported, options that do not fit together, a folder that is in use.
        ImportError: if a runtime or exporter is not installed; the message names the extra.
    """
    _check_options(runtime, int8, calibrate, dtype)
    _check_installed(runtime, int8)
    model = MaftPlusForUniversalSegmentation.from_pretrained(model_folder, dtype=torch.float32).eval()
    check_exportable(model)
    if int8 and model.config.has_own_proposer:
        raise ValueError("`int8` (--int8) is for ConvNeXt models; a graph that reads words is not calibrated.")
    processor = MaftPlusProcessor.from_pretrained(model_folder)
    pictures = read_calibration(processor, Path(calibrate)) if calibrate else []
    settings = {"runtime": runtime, "graph_precision": "int8" if int8 else "float32"}
    with new_folders([Path(out)]) as [folder]:
        exported = stand_in(model, **settings)
        exported.config.dtype = dtype
        exported.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_graph(model, folder, runtime, pictures if int8 else None)
        report = verify(model, folder, int8, dtype, pictures) if do_verify else ExportReport()
        card = make_card(Path(model_folder).name, exported.config, getattr(torch, dtype), report)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def write_graph(
    model: MaftPlusForUniversalSegmentation, folder: Path, runtime: str, pictures: Sequence[Tensor] | None
) -> None:
    """The graph's files; with `pictures` in int8. OpenVINO's is made from the ONNX graph."""
    target = folder / GRAPH_FILES[runtime][0]
    if runtime == "onnx" and pictures is None:
        write_onnx(model, target)
        return
    with tempfile.TemporaryDirectory() as temporary:
        onnx = Path(temporary) / "graph.onnx"
        write_onnx(model, onnx)
        if runtime == "onnx":
            quantise_onnx(onnx, target, pictures)
        else:
            _write_openvino(onnx, target, pictures)


def _write_openvino(onnx: Path, target: Path, pictures: Sequence[Tensor] | None) -> None:
    openvino = import_runtime("openvino", "openvino")
    graph = openvino.convert_model(str(onnx))
    if pictures is not None:
        graph = quantise_openvino(graph, pictures)
    about = graph.get_rt_info()
    for name in list(about):
        del about[name]  # one names the file that it was made from
    openvino.save_model(graph, str(target), compress_to_fp16=False)


def verify(
    model: MaftPlusForUniversalSegmentation, folder: Path, int8: bool, dtype: str, pictures: Sequence[Tensor]
) -> ExportReport:
    """What a written folder computes, against the model."""
    report = ExportReport(on_pictures=bool(pictures))
    load = MaftPlusExportedForUniversalSegmentation.from_pretrained
    if not int8:
        report.differences = compare(model, load(folder, dtype=torch.float32).eval())
    if int8 or dtype != "float32":
        chosen = pictures or [random_pictures(shape) for shape in HELD_SHAPES]
        report.agreement = agreement(model, load(folder, dtype=getattr(torch, dtype)).eval(), chosen)
    return report


def read_calibration(processor: MaftPlusProcessor, folder: Path) -> list[Tensor]:
    """Up to 100 pictures of a folder as the network sees them, (1, 3, H, W) each.

    Raises:
        ValueError: if there is none.
    """
    paths = list_pictures(folder)[:MOST_PICTURES]
    if not paths:
        raise ValueError(f"{folder}: no picture here to calibrate with.")
    return [processor(images=read_picture(path), return_tensors="pt")["pixel_values"] for path in paths]


def make_card(name: str, config: Any, dtype: torch.dtype, report: ExportReport) -> str:
    """The folder's README."""
    title = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[config.runtime]
    return CARD.format(
        name=name,
        title=title,
        runtime=config.runtime,
        precision=graph_precision(config, dtype),
        proof="\n".join(report.lines()),
    )


def _check_options(runtime: str, int8: bool, calibrate: str | Path | None, dtype: str) -> None:
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    if int8 and calibrate is None:
        raise ValueError("`int8` needs `calibrate` (--calibrate): a folder of pictures like those to come.")
    if calibrate is not None and not int8:
        raise ValueError("`calibrate` (--calibrate) is for `int8` (--int8) alone.")
    if dtype not in ("float32", "bfloat16") or (dtype == "bfloat16" and runtime == "onnx"):
        raise ValueError(
            f"`dtype` {dtype!r} is nothing that {runtime} computes on a CPU: float32, or bfloat16 on OpenVINO."
        )


def _check_installed(runtime: str, int8: bool) -> None:
    """Raises ImportError before minutes of work; the exporter of torch needs `onnxscript`."""
    needed = {"onnx": ["onnxruntime"], "openvino": ["openvino", *(["nncf"] if int8 else [])]}[runtime]
    for module in ("onnx", "onnxscript", *needed):
        import_runtime(module, runtime)


__all__ = ["ExportReport", "export", "make_card", "read_calibration", "verify", "write_graph"]
