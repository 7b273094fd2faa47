"""The folder of an inference endpoint: a model folder with `handler.py` and `requirements.txt` beside the weights.

    write_endpoint("models/shapes", "out/endpoint")

The handler runs without this package where the folder carries its own code; an exported folder needs the package.
"""

import shutil
from importlib.resources import files
from pathlib import Path

from maftplus.conversion.checkpoint import new_folders

HANDLER_FILES = {"handler.py": "handler.py", "precision.py": "precision_maftplus.py"}  # in this room -> in the folder
PACKAGE_IMPORT, FOLDER_IMPORT = "from maftplus.deploy.precision import", "from precision_maftplus import"
REQUIREMENTS = ["torch>=2.11", "transformers>=5.17,<6", "pillow", "scipy", "pycocotools"]


def write_endpoint(model_folder: str | Path, out: str | Path) -> None:
    """
    Copy a model folder and add what the service needs.

    Args:
        model_folder: A folder on disk, with the code that it travels with, or an exported one.
        out: The new folder.

    Raises:
        ValueError: if the model folder has no `config.json`, or `out` is in use.
    """
    source = Path(model_folder)
    if not (source / "config.json").is_file():
        raise ValueError(f"{source}: this folder holds no model, config.json is missing.")
    with new_folders([Path(out)]) as [folder]:
        shutil.copytree(source, folder, dirs_exist_ok=True)  # links become files
        for name, copied in HANDLER_FILES.items():
            text = (files("maftplus.deploy") / name).read_text(encoding="utf-8")
            (folder / copied).write_text(text.replace(PACKAGE_IMPORT, FOLDER_IMPORT), encoding="utf-8")
        requirements = "\n".join([*REQUIREMENTS, *_runtime_requirements(source)]) + "\n"
        (folder / "requirements.txt").write_text(requirements, encoding="utf-8")


def _runtime_requirements(source: Path) -> list[str]:
    """Of an exported folder: its runtime, and this package."""
    if (source / "graph.onnx").is_file():
        return ["maftplus[onnx]"]
    return ["maftplus[openvino]"] if (source / "graph.xml").is_file() else []


__all__ = ["write_endpoint"]
