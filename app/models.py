"""Loading a model for the command: a folder, a name that `maftplus get` knows, one on the Hub, an adapter's folder.

What is wrong with it is said in one line.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForUniversalSegmentation, PreTrainedConfig
from transformers.utils import logging

from maftplus.conversion.registry import find_model, may_be_on_hub
from maftplus.deploy.precision import AUTO, choose_dtype
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline
from maftplus.train.finetuning.lora import base_of, fetch_adapter, is_adapter, load_adapter

PROCESSOR_FILE = "processor_config.json"
MODEL_TYPES = ("maftplus", "maftplus_exported")  # of config.json


def resolve_model(model: str | None) -> str:
    """
    The folder that a model's name stands for (`find_model`), or that of an adapter on the Hub, which is fetched; what
    is no name is given back.

    Raises:
        ValueError: without a model, or for the name of one that is not here.
    """
    if model is None:
        raise ValueError(
            "--model is missing: give a model folder or name; --model shapes is the one that comes with the package, "
            "which knows a synthetic world of coloured shapes and no photograph."
        )
    return fetch_adapter(find_model(model))


def resolve_whole_model(model: str | None) -> str:
    """As `resolve_model`, for what takes no adapter (it would take the base without a word). Raises ValueError too."""
    folder = resolve_model(model)
    if is_adapter(folder):
        raise ValueError(f"{folder} is an adapter alone: make a model of it first, `maftplus merge {folder} OUT`.")
    return folder


def load_pipeline(model: str, device: str | None = None, dtype: str = AUTO) -> MaftPlusSegmentationPipeline:
    """
    The pipeline on a model, or on an exported one, with the network in `dtype` ("auto": see `network_dtype`).

    Raises:
        ValueError: if it is none, saying what it lacks, or if the device is none.
    """
    model = resolve_model(model)
    check_model_folder(model)
    check_device(device)
    logging.disable_progress_bar()
    network, processor = load_model(model, dtype, device), load_processor(model)
    try:
        return MaftPlusSegmentationPipeline(
            model=network, processor=processor, task="image-segmentation", device=device
        )
    except ValueError as error:  # a tokenizer that is not the text tower's
        raise ValueError(f"{model}: {error}") from error


def load_processor(model: str, base: str | None = None) -> MaftPlusProcessor:
    """
    The processor with its tokenizer; that of the base (default: the one it names) for an adapter without one.

    Raises:
        ValueError: if there is none or its files cannot be read.
    """
    if is_adapter(model) and not (Path(model) / PROCESSOR_FILE).is_file():
        model = base_of(model, base)
    try:
        return MaftPlusProcessor.from_pretrained(model)
    except Exception as error:  # the library of tokenizers raises bare Exceptions over damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{model}: the processor or its tokenizer cannot be read ({reason}).") from error


def load_model(model: str, dtype: str = AUTO, device: str | None = None) -> MaftPlusForUniversalSegmentation:
    """The network with all of its weights. Raises ValueError if some are missing or cannot be read."""
    if is_adapter(model):
        network = load_adapter(model)
        return network.to(network_dtype(network.config, dtype, device))
    try:
        config = AutoConfig.from_pretrained(model)
    except OSError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{model}: no model folder here, and no model from the Hub ({reason})") from error
    check_model_type(model, config.model_type)
    try:
        network, info = AutoModelForUniversalSegmentation.from_pretrained(
            model, config=config, dtype=network_dtype(config, dtype, device), output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"{model}: the weights cannot be read, the file may be cut off ({error}).") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{model}: {len(missing)} weights are missing, such as {missing[0]}.")
    return network


def network_dtype(config: PreTrainedConfig, dtype: str = AUTO, device: str | None = None) -> torch.dtype:
    """As `choose_dtype`; "auto" for a graph of ONNX Runtime, which computes in float32 or int8, is float32."""
    is_onnx = getattr(config, "runtime", None) == "onnx"
    return torch.float32 if is_onnx and dtype == AUTO else choose_dtype(device, dtype)


def describe_network(pipe: MaftPlusSegmentationPipeline) -> str:
    """What computes, where, and how precisely, for people: "torch on cpu, bfloat16"."""
    network = pipe.model
    if hasattr(network, "runtime"):
        return network.runtime
    return f"torch on {network.device}, {str(network.dtype).removeprefix('torch.')}"


def check_model_folder(model: str) -> None:
    """A folder must hold a segmentation model and weights; a name like `user/name` without folder is left to the Hub.

    Raises:
        ValueError: if the folder is missing (also `user/name` if there is a folder `user` here) or lacks something.
    """
    folder = Path(model)
    if not folder.is_dir():
        if not may_be_on_hub(model):
            raise ValueError(f"{model}: there is no such model folder; give one with --model.")
        return
    if is_adapter(folder):
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model}: this folder holds no model, config.json is missing.")
    check_model_type(model, read_model_type(folder / "config.json"))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{model}: this model folder holds no weights (model.safetensors).")


def read_model_type(path: Path) -> Any:
    """`model_type` of a configuration, `None` if it has none. Raises ValueError, naming the file, if it is no JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from error
    return content.get("model_type") if isinstance(content, dict) else None


def check_model_type(model: str, model_type: Any) -> None:
    if model_type not in MODEL_TYPES:
        known = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"{model}: no segmentation model; `model_type` must be {known}, it is {model_type!r}.")


def check_device(device: str | None) -> None:
    """Raises ValueError if nothing can be computed on a device, before a model is loaded for it."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {device}: this device cannot be used here ({reason}).") from error
