"""A model whose picture half is a graph for another runtime: it loads and answers like any other model of ours.

    AutoModelForUniversalSegmentation.from_pretrained("exported folder")     (with `import maftplus`)

Only `encode_picture` differs, and `propose_for_words` where MAFT's own proposer waits for words. The folder holds
the graph, our configuration, the processor, and in `model.safetensors` what stays in torch: text tower, class
scores, Content-Dependent Transfer.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import cached_file, logging

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.deploy.sessions import GRAPH_FILES, RUNTIMES, open_session
from maftplus.layers_maftplus import input_sizes
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation, MaftPlusModel
from maftplus.outputs_maftplus import MaftPlusPicture

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
PADDED_TO = 32  # what the processor pads heights and widths to a multiple of


class MaftPlusExportedConfig(MaftPlusConfig):
    r"""
    `MaftPlusConfig` of an exported folder.

    Args:
        runtime (`str`, defaults to `"onnx"`): What runs the graph, `"onnx"` or `"openvino"`.
        graph_precision (`str`, defaults to `"float32"`): In which it was written, `"float32"` or `"int8"`.
    """

    model_type = "maftplus_exported"
    _auto_class = None  # the folder carries no code of the network

    runtime: str = "onnx"
    graph_precision: str = "float32"

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.auto_map = {}
        if self.runtime not in RUNTIMES:
            raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {self.runtime!r}.")


@dataclass
class WaitingPicture:
    """A picture whose graph also reads words: pixels (B, 3, H, W) and their mask (B, H, W)."""

    pixel_values: Tensor
    pixel_mask: Tensor


class MaftPlusExportedModel(MaftPlusModel):
    """The bare network around a graph; what the graph computes is not built."""

    config_class = MaftPlusExportedConfig
    _auto_class = None

    def __init__(self, config: MaftPlusExportedConfig):
        super().__init__(config)
        self.clip.vision_model = self.clip.visual_projection = nn.Identity()
        if config.has_segmenter:
            self.segmenter.pixel_decoder = self.segmenter.decoder = nn.Identity()
        else:
            self.proposer = nn.Identity()
        self.session = None

    def open_graph(self, path: str) -> None:
        """Let the runtime load the graph, in the precision of the rest of the model where it can choose."""
        self.session = open_session(self.config.runtime, path, self.dtype)

    def encode_picture(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        proposal_logits: Tensor | None = None,
        output_auxiliary_logits: bool = False,
        output_image_embeds: bool = False,
    ) -> MaftPlusPicture:
        """
        As `MaftPlusModel.encode_picture`, out of the graph.

        Raises:
            ValueError: for masks from elsewhere, earlier predictions and image embeddings, which it does not compute.
        """
        if proposal_logits is not None or output_auxiliary_logits or output_image_embeds:
            raise ValueError(
                "An exported model proposes its own masks and computes nothing for training: `proposal_logits`, "
                "labels, `output_auxiliary_logits` and `output_image_embeds` need the original model."
            )
        if self.session is None:
            raise ValueError("The graph is not loaded: open an exported folder with `from_pretrained`.")
        unpadded_sizes, padded_sizes = input_sizes(pixel_values, pixel_mask)
        picture = MaftPlusPicture(unpadded_sizes=unpadded_sizes, padded_sizes=padded_sizes)
        if self.config.has_own_proposer:
            pixel_mask = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
            return replace(picture, unproposed=WaitingPicture(pixel_values, pixel_mask))
        return self._with_outputs(picture, self.session.run(pixel_values=pixel_values))

    def propose_for_words(self, picture: MaftPlusPicture, text_embeds: Tensor) -> MaftPlusPicture:
        """As `MaftPlusModel.propose_for_words`: a graph that reads words runs here."""
        if picture.unproposed is None:
            return picture
        return self._with_outputs(picture, self.session.run(**vars(picture.unproposed), text_embeds=text_embeds))

    def _with_outputs(self, picture: MaftPlusPicture, outputs: dict[str, Tensor]) -> MaftPlusPicture:
        """What a graph computed, on our device and, but for the mask logits, in our precision."""
        void = self.void_embedding.weight
        names = ("mask_embeds", "class_embeds", "dense_embeds")
        return replace(
            picture,
            masks_queries_logits=outputs["masks_queries_logits"].to(void.device),
            **{name: outputs[name].to(void) for name in names if name in outputs},
        )


class MaftPlusExportedForUniversalSegmentation(MaftPlusForUniversalSegmentation):
    """`MaftPlusForUniversalSegmentation` around a graph: same calls, same outputs, no training."""

    config_class = MaftPlusExportedConfig
    _auto_class = None

    def __init__(self, config: MaftPlusExportedConfig):
        super().__init__(config)
        self.model = MaftPlusExportedModel(config)

    @classmethod
    def from_pretrained(cls, folder: str, *args: Any, **kwargs: Any) -> Any:
        """
        As for every model of transformers; `dtype` is also the precision in which OpenVINO computes.

        Raises:
            ImportError: if the runtime is not installed; the message names the extra.
            OSError: if the folder holds no graph.
        """
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        path, *_ = [cached_file(folder, name, **hub) for name in GRAPH_FILES[model.config.runtime]]
        model.model.open_graph(path)
        logger.info("%s: the graph runs on %s", folder, model.runtime)
        return loaded

    def fix_size(self, height: int, width: int, batch: int = 1) -> None:
        """
        Compile the graph for padded pictures of one size, too: those take an eighth less time, others what they took.

        Args:
            height, width: Multiples of 32, as the processor pads.
            batch: Pictures at once.

        Raises:
            ValueError: unless OpenVINO runs the graph; for sizes that no padded picture has.
        """
        if self.config.runtime != "openvino":
            raise ValueError(f"`fix_size` is for OpenVINO; this graph runs on {self.config.runtime}.")
        if min(height, width, batch) < 1 or height % PADDED_TO or width % PADDED_TO:
            raise ValueError(
                f"`height` and `width` must be multiples of {PADDED_TO} and `batch` at least 1, "
                f"got {height}, {width} and {batch}."
            )
        self.model.session.fix_size((batch, 3, height, width))

    @property
    def runtime(self) -> str:
        """What runs the graph, for people: "OpenVINO 2026.4.1, int8 and bfloat16"."""
        return f"{self.model.session.description}, {graph_precision(self.config, self.dtype)}"


def graph_precision(config: MaftPlusExportedConfig, dtype: torch.dtype) -> str:
    """In which precision a graph computes if the rest of the model is of a type."""
    computed = "float32" if config.runtime == "onnx" else str(dtype).removeprefix("torch.")
    return computed if config.graph_precision == "float32" else f"{config.graph_precision} and {computed}"


def stand_in(model: MaftPlusForUniversalSegmentation, **settings: str) -> MaftPlusExportedForUniversalSegmentation:
    """The exported form of a model, without its graph; it shares the model's tensors."""
    config = MaftPlusExportedConfig(**{**model.config.to_dict(), "model_type": "maftplus_exported", **settings})
    config.architectures = [MaftPlusExportedForUniversalSegmentation.__name__]
    with torch.device("meta"):
        exported = MaftPlusExportedForUniversalSegmentation(config)
    state = model.state_dict()
    exported.load_state_dict({name: state[name] for name in exported.state_dict()}, assign=True)
    for name, _ in exported.named_buffers():  # also those that no state holds: on "meta" they would read as garbage
        owner, _, attribute = name.rpartition(".")
        setattr(exported.get_submodule(owner), attribute, model.get_buffer(name))
    return exported


__all__ = [
    "MaftPlusExportedConfig",
    "MaftPlusExportedForUniversalSegmentation",
    "MaftPlusExportedModel",
    "graph_precision",
    "stand_in",
]
