"""Our classes under transformers' common tests; runs inside its test tree, see `run.py`."""

import tempfile
import unittest
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from tiny_tools import tiny_config, tiny_processor

from maftplus import (
    MaftPlusCLIPConfig,
    MaftPlusCLIPModel,
    MaftPlusConfig,
    MaftPlusForUniversalSegmentation,
    MaftPlusImageProcessorPil,
    MaftPlusModel,
    MaftPlusProcessor,
)

from ..test_configuration_common import ConfigTester
from ..test_image_processing_common import (
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    prepare_image_inputs,
)
from ..test_modeling_common import ModelTesterMixin, floats_tensor
from ..test_processing_common import ProcessorTesterMixin


class SegmentationTester:
    """Tiny configuration and inputs of the segmentation models."""

    batch_size, num_channels, height, width = 2, 3, 32, 64
    num_hidden_layers, hidden_size, num_attention_heads, seq_length = 1, 16, 2, 7
    is_training = False

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config(train_num_points=16)

    def prepare_config_and_inputs_for_common(self):
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, self.num_channels, self.height, self.width]),
            "pixel_mask": torch.ones(self.batch_size, self.height, self.width, dtype=torch.long),
            "text_embeds": torch.nn.functional.normalize(floats_tensor([3, 16]), dim=-1),
            "text_class_ids": torch.tensor([0, 1, 1]),
        }
        return self.get_config(), inputs


class CLIPTester(SegmentationTester):
    """Tiny configuration and inputs of CLIP that takes masks."""

    def get_config(self):
        return tiny_config().clip_config

    def prepare_config_and_inputs_for_common(self):
        ids = torch.tensor([[49406, 320, 1125, 539, 320, 2368, 49407]] * self.batch_size)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": floats_tensor([self.batch_size, self.num_channels, self.height, self.width]),
        }
        return self.get_config(), inputs


def without(reason: str, *names: str):
    """Skips the common tests `names` of a suite, which cannot hold for this kind of model, with the reason."""

    def skip(suite: type) -> type:
        for name in names:
            setattr(suite, name, unittest.skip(reason)(getattr(suite, name)))
        return suite

    return skip


@without(
    "the towers record hidden states (`clip.vision_model`, `clip.text_model`), not the whole",
    "test_hidden_states_output",
    "test_retain_grad_hidden_states_attentions",
)
class CommonModelTests(ModelTesterMixin):
    """What holds for both kinds of model."""

    test_resize_embeddings = False
    test_torch_exportable = False
    has_attentions = False
    is_encoder_decoder = False


class SegmentationModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (MaftPlusModel, MaftPlusForUniversalSegmentation)

    def setUp(self):
        self.model_tester = SegmentationTester(self)

    def test_config(self):
        ConfigTester(self, config_class=MaftPlusConfig, has_text_modality=False).run_common_tests()


@without(
    "a ConvNeXt has a width a stage (`hidden_sizes`), not one `hidden_size`",
    "test_get_image_features_output_0",
    "test_get_image_features_output_2",
)
@without(
    "a ConvNeXt records its stages, not `num_hidden_layers` of the text tower",
    "test_get_image_features_hidden_states",
)
class CLIPModelTest(CommonModelTests, unittest.TestCase):
    all_model_classes = (MaftPlusCLIPModel,)

    def setUp(self):
        self.model_tester = CLIPTester(self)

    def test_config(self):
        ConfigTester(self, config_class=MaftPlusCLIPConfig, has_text_modality=False).run_common_tests()


class ImageProcessorTester:
    """Settings of a small image processor and pictures for it."""

    batch_size, num_channels, min_resolution, max_resolution = 3, 3, 30, 60

    def __init__(self, parent):
        self.parent = parent

    def prepare_image_processor_dict(self):
        return {"size": {"shortest_edge": 32, "longest_edge": 64}, "size_divisor": 32}

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return prepare_image_inputs(
            self.batch_size,
            self.min_resolution,
            self.max_resolution,
            self.num_channels,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )

    def expected_output_image_shape(self, images):
        processor = MaftPlusImageProcessorPil(**self.prepare_image_processor_dict())
        return tuple(processor(images, return_tensors="pt").pixel_values.shape[1:])

    def prepare_post_process_semantic_segmentation_inputs(self):
        outputs = SimpleNamespace(
            class_queries_logits=torch.randn(self.batch_size, 5, 4),
            masks_queries_logits=torch.randn(self.batch_size, 5, 8, 12),
        )
        return {"outputs": outputs}, {"height": 32, "width": 48, "num_labels": 3}


@without(
    "pictures become RGB, whatever they were; a fourth channel is dropped",
    "test_call_numpy_4_channels",
)
@without(
    "there is no torchvision for CPU-only torch; the class exists and is registered",
    "test_new_models_require_torchvision_backend",
)
class ImageProcessorTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_list = {"pil": MaftPlusImageProcessorPil}
    image_processing_classes = {"pil": MaftPlusImageProcessorPil}
    test_slow_image_processor = False

    def setUp(self):
        self.image_processor_tester = ImageProcessorTester(self)

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()


@without(
    "a CLIP text tower takes 77 tokens at most; a longer `max_length` is cut to that",
    "test_kwargs_overrides_default_subprocessor_kwargs_0_images",
    "test_subprocessor_defaults_preserved_by_kwargs_0_images",
)
@without(
    "`templates` and `training_classes` are stored defaults that a call may replace, so they are both",
    "test_init_arguments_not_in_processor_kwargs",
)
@without(
    "saving adds `auto_map`, which makes the folder loadable where the package is not installed",
    "test_processor_from_and_save_pretrained",
    "test_processor_from_and_save_pretrained_as_nested_dict",
)
@without(
    "components alone do not carry the stored `templates`",
    "test_processor_from_pretrained_vs_from_components",
)
@without(
    "text is class names: each becomes one prompt a template, and a name given twice is an error",
    "test_processor_text_has_no_visual",
    "test_replacement_offsets",
    "test_subprocessor_defaults_0_text",
)
class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MaftPlusProcessor

    @classmethod
    def setUpClass(cls):
        cls.tmpdirname, cls.full_tmpdirname = tempfile.mkdtemp(), None
        tiny_processor().save_pretrained(cls.tmpdirname)

    def prepare_image_inputs(self, batch_size=None, nested=False):
        picture = Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8))
        return picture if batch_size is None else [picture] * batch_size
