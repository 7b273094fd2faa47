"""A tiny random model with everything a saved folder needs: seconds become milliseconds, answers mean nothing."""

from pathlib import Path

import numpy as np
import torch
from text_tools import load_tokenizer

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor

TEMPLATES = ["a photo of a {}.", "a {}"]


def tiny_config(**kwargs) -> MaftPlusConfig:
    """A ConvNeXt tower of four small stages, two layers everywhere else; 8 queries."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 49408,
        "eos_token_id": 49407,
    }
    vision = {
        "model_type": "convnext",
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "layer_norm_eps": 1e-6,
    }
    sizes = {
        "num_queries": 8,
        "hidden_dim": 32,
        "num_attention_heads": 4,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 32,
        "decoder_layers": 2,
        "dim_feedforward": 32,
    }
    clip = {"text_config": text, "vision_config": vision, "projection_dim": 16}
    return MaftPlusConfig(clip_config=clip, **{**sizes, **kwargs})


def tiny_model(seed: int = 0, **kwargs) -> MaftPlusForUniversalSegmentation:
    """In evaluation mode."""
    torch.manual_seed(seed)
    return MaftPlusForUniversalSegmentation(tiny_config(**kwargs)).eval()


def tiny_processor(**kwargs) -> MaftPlusProcessor:
    """Short edge 64, two templates."""
    image_processor = MaftPlusImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    return MaftPlusProcessor(image_processor, load_tokenizer(), **{"templates": TEMPLATES, **kwargs})


def save_tiny(folder: Path, labels: list | None = None, stuff: list | tuple = ()) -> Path:
    """Model and processor in `folder`, with a stored vocabulary if `labels` are given."""
    model, processor = tiny_model(), tiny_processor()
    if labels:
        model.set_vocabulary(processor, labels, stuff=stuff)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noise_pixels(seed: int) -> np.ndarray:
    """(50, 70, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 255, (50, 70, 3), dtype=np.uint8)
