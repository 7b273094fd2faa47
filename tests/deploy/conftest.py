"""One tiny exported graph for all tests of this folder: the exporter takes most of a minute."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_tools import save_tiny

from maftplus.deploy import export as export_module
from maftplus.deploy.graph import write_onnx
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

LABELS = ["cat, kitten", "grass", "sky"]


def shared_folder(tmp_path_factory) -> Path:
    """One for all processes of a run of pytest."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if folder.name.startswith("popen-") else folder) / "deploy"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = shared_folder(tmp_path_factory)
    with FileLock(folder / "model.lock"):
        if not (folder / "model").exists():
            save_tiny(folder / "part", LABELS, stuff=["sky"])
            (folder / "part").rename(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def graph(model_folder) -> Path:
    """The ONNX graph of the model in `model_folder`."""
    path = model_folder.parent / "graph.onnx"
    with FileLock(model_folder.parent / "graph.lock"):
        if not path.exists():
            write_onnx(MaftPlusForUniversalSegmentation.from_pretrained(model_folder), path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    return path


@pytest.fixture
def with_graph(graph, monkeypatch) -> None:
    """`export` uses the graph that is there."""
    monkeypatch.setattr(export_module, "write_onnx", lambda model, path: shutil.copy(graph, path))


@pytest.fixture(scope="session")
def onnx_folder(model_folder, graph) -> Path:
    """`model_folder`, exported for ONNX Runtime, without proof."""
    folder = model_folder.parent / "onnx"
    with FileLock(model_folder.parent / "onnx.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "write_onnx", lambda model, path: shutil.copy(graph, path))
        if not folder.exists():
            export_module.export(str(model_folder), folder, do_verify=False)
    return folder
