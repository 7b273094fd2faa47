"""maftplus: open-vocabulary segmentation with your own words (MAFT, arXiv 2310.00240; MAFT+, arXiv 2408.00744).

Importing this package registers its classes with transformers' Auto classes, so that
`AutoModelForUniversalSegmentation.from_pretrained(folder)` needs no `trust_remote_code`. Only the `maftplus` command
puts that off until it needs a model: torch and transformers take seconds, `maftplus --help` takes none.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clip_maftplus import MaftPlusCLIPModel
    from .configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig, MaftPlusProposerConfig
    from .image_processing_maftplus import MaftPlusImageProcessor, MaftPlusImageProcessorPil
    from .modeling_maftplus import MaftPlusForUniversalSegmentation, MaftPlusModel
    from .outputs_maftplus import MaftPlusForUniversalSegmentationOutput, MaftPlusModelOutput, MaftPlusPicture
    from .processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline
    from .vocabularies.files import load_labels

__version__ = "0.1.0"

__all__ = [
    "MaftPlusCLIPConfig",
    "MaftPlusCLIPModel",
    "MaftPlusConfig",
    "MaftPlusForUniversalSegmentation",
    "MaftPlusForUniversalSegmentationOutput",
    "MaftPlusImageProcessor",
    "MaftPlusImageProcessorPil",
    "MaftPlusModel",
    "MaftPlusModelOutput",
    "MaftPlusPicture",
    "MaftPlusProcessor",
    "MaftPlusProposerConfig",
    "MaftPlusSegmentationPipeline",
    "load_labels",
    "register_auto_classes",
]

_MODULE_OF = {
    "MaftPlusCLIPConfig": "configuration_maftplus",
    "MaftPlusCLIPModel": "clip_maftplus",
    "MaftPlusConfig": "configuration_maftplus",
    "MaftPlusForUniversalSegmentation": "modeling_maftplus",
    "MaftPlusForUniversalSegmentationOutput": "outputs_maftplus",
    "MaftPlusImageProcessor": "image_processing_maftplus",
    "MaftPlusImageProcessorPil": "image_processing_maftplus",
    "MaftPlusModel": "modeling_maftplus",
    "MaftPlusModelOutput": "outputs_maftplus",
    "MaftPlusPicture": "outputs_maftplus",
    "MaftPlusProcessor": "processing_maftplus",
    "MaftPlusProposerConfig": "configuration_maftplus",
    "MaftPlusSegmentationPipeline": "processing_maftplus",
    "load_labels": "vocabularies.files",
}
_COMMAND_STARTS = (("-m", "maftplus.app"), ("-m", "maftplus.app.cli"))


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def register_auto_classes() -> None:
    """Make transformers' Auto classes know ours. Importing the package does it; the command, when it needs a model."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageSegmentation,
        AutoModelForUniversalSegmentation,
        AutoProcessor,
    )

    # Not from the top: there, transformers 5.17 asks for torchvision, which the class itself does not need.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from . import (
        clip_maftplus,
        configuration_maftplus,
        image_processing_maftplus,
        modeling_maftplus,
        processing_maftplus,
    )
    from .deploy import exported

    clip_config, config = configuration_maftplus.MaftPlusCLIPConfig, configuration_maftplus.MaftPlusConfig
    segmentation = modeling_maftplus.MaftPlusForUniversalSegmentation
    image_processors = {
        "pil": image_processing_maftplus.MaftPlusImageProcessorPil,
        "torchvision": image_processing_maftplus.MaftPlusImageProcessor,
    }
    AutoConfig.register("maftplus_clip", clip_config, exist_ok=True)
    AutoConfig.register("maftplus", config, exist_ok=True)
    AutoModel.register(clip_config, clip_maftplus.MaftPlusCLIPModel, exist_ok=True)
    AutoModel.register(config, modeling_maftplus.MaftPlusModel, exist_ok=True)
    AutoModelForUniversalSegmentation.register(config, segmentation, exist_ok=True)
    AutoModelForImageSegmentation.register(config, segmentation, exist_ok=True)
    AutoImageProcessor.register(config, image_processor_classes=image_processors, exist_ok=True)
    AutoProcessor.register(config, processing_maftplus.MaftPlusProcessor, exist_ok=True)
    AutoConfig.register("maftplus_exported", exported.MaftPlusExportedConfig, exist_ok=True)
    AutoModelForUniversalSegmentation.register(
        exported.MaftPlusExportedConfig, exported.MaftPlusExportedForUniversalSegmentation, exist_ok=True
    )
    AutoProcessor.register(exported.MaftPlusExportedConfig, processing_maftplus.MaftPlusProcessor, exist_ok=True)


def _is_command() -> bool:
    """Whether this process is the installed `maftplus` command, or `python -m maftplus.app`."""
    program, words = (sys.argv or [""])[0], sys.orig_argv
    if program != "-m":  # what stands there while a module's parent packages are imported
        return Path(program).stem == "maftplus"
    return any(pair in _COMMAND_STARTS for pair in zip(words, words[1:]))


if not _is_command():
    register_auto_classes()
