"""`maftplus export`: a model folder becomes one that runs on ONNX Runtime or OpenVINO, proved against torch."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import SOME_FAILED, command, echo_error


class Runtime(str, Enum):
    onnx = "onnx"
    openvino = "openvino"


class ExportPrecision(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


@command()
def export(
    model: Annotated[str, typer.Argument(help="Model folder or name.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    runtime: Annotated[Runtime, typer.Option(help="What is to run it.")] = Runtime.onnx,
    int8: Annotated[bool, typer.Option("--int8", help="8 bits; needs --calibrate.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="Folder of pictures like those to come (100 are read).")
    ] = None,
    dtype: Annotated[
        ExportPrecision, typer.Option(help="What it computes in, where it is loaded without a choice (OpenVINO).")
    ] = ExportPrecision.float32,
    verify: Annotated[bool, typer.Option(help="Compare with torch; beyond tolerance the exit code is 1.")] = True,
) -> None:
    """Make a folder that runs without torch's network: graph, configuration, processor, text tower, and the proof."""
    from maftplus.app.models import resolve_whole_model
    from maftplus.deploy.export import export as export_model

    report = export_model(
        resolve_whole_model(model), out, runtime.value, int8, calibrate, dtype.value, do_verify=verify
    )
    for line in report.lines():
        typer.echo(line)
    if not report.is_within:
        echo_error(f"{out}: the graph does not compute what the model computes, see above; the folder is written.")
        raise typer.Exit(SOME_FAILED)
    typer.echo(f"{out}: ready for `maftplus segment --model {out}` and the pipeline")
