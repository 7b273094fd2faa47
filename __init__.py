"""maftplus: open-vocabulary segmentation with your own words (MAFT, arXiv 2310.00240; MAFT+, arXiv 2408.00744).

Importing this package registers its classes with transformers' Auto classes, so that
`AutoModelForUniversalSegmentation.from_pretrained(folder)` needs no `trust_remote_code`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
)

# Not from the top: there, transformers 5.17 asks for torchvision, which the class itself does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .clip_maftplus import MaftPlusCLIPModel
from .configuration_maftplus import MaftPlusCLIPConfig, MaftPlusConfig
from .image_processing_maftplus import MaftPlusImageProcessor, MaftPlusImageProcessorPil
from .modeling_maftplus import MaftPlusForUniversalSegmentation, MaftPlusModel
from .outputs_maftplus import MaftPlusForUniversalSegmentationOutput, MaftPlusModelOutput, MaftPlusPicture
from .processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline

__version__ = "0.1.0"

AutoConfig.register("maftplus_clip", MaftPlusCLIPConfig, exist_ok=True)
AutoConfig.register("maftplus", MaftPlusConfig, exist_ok=True)
AutoModel.register(MaftPlusCLIPConfig, MaftPlusCLIPModel, exist_ok=True)
AutoModel.register(MaftPlusConfig, MaftPlusModel, exist_ok=True)
AutoModelForUniversalSegmentation.register(MaftPlusConfig, MaftPlusForUniversalSegmentation, exist_ok=True)
AutoModelForImageSegmentation.register(MaftPlusConfig, MaftPlusForUniversalSegmentation, exist_ok=True)
AutoImageProcessor.register(
    MaftPlusConfig,
    image_processor_classes={"pil": MaftPlusImageProcessorPil, "torchvision": MaftPlusImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(MaftPlusConfig, MaftPlusProcessor, exist_ok=True)

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
    "MaftPlusSegmentationPipeline",
]
