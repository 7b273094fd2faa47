"""Configuration of MAFT+ and of CLIP that takes masks: every switch of the model family in one place.

Sources: MAFT, arXiv 2310.00240; MAFT+, arXiv 2408.00744; FC-CLIP, arXiv 2308.02487; Mask2Former, arXiv 2112.01527.
One configuration covers the family. MAFT+ is ConvNeXt, CDT on, alpha = beta = 1. FC-CLIP is the same with
`cdt_form="off"`, `ensemble_alpha=0.4`, `ensemble_beta=0.8`. MAFT is a ViT tower behind a frozen proposer: its own
(`MaftPlusProposerConfig`) or a model of transformers, whichever `proposer_config` describes.
"""

import copy
import math
from typing import Any

from transformers import AutoConfig, CLIPTextConfig, CLIPVisionConfig, ConvNextConfig, PreTrainedConfig

VISION_MODEL_TYPES = ("convnext", "clip_vision_model")
INTERACTION_SIZES = ("interaction_dim", "interaction_heads")

# What the Auto classes load from a folder that carries this code (see README, "Remote code").
CLIP_AUTO_MAP = {
    "AutoConfig": "configuration_maftplus.MaftPlusCLIPConfig",
    "AutoModel": "clip_maftplus.MaftPlusCLIPModel",
}
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_maftplus.MaftPlusConfig",
    "AutoModel": "modeling_maftplus.MaftPlusModel",
    "AutoModelForUniversalSegmentation": "modeling_maftplus.MaftPlusForUniversalSegmentation",
    "AutoModelForImageSegmentation": "modeling_maftplus.MaftPlusForUniversalSegmentation",
}
# What `pipeline("image-segmentation", model=folder, trust_remote_code=True)` builds from such a folder.
CUSTOM_PIPELINES = {
    "image-segmentation": {
        "impl": "processing_maftplus.MaftPlusSegmentationPipeline",
        "pt": ["AutoModelForUniversalSegmentation"],
    }
}


class MaftPlusCLIPConfig(PreTrainedConfig):
    r"""
    CLIP whose vision tower takes masks (`MaftPlusCLIPModel`).

    Args:
        text_config (`CLIPTextConfig` or `dict`, *optional*): CLIP's text tower.
        vision_config (`ConvNextConfig`, `CLIPVisionConfig` or `dict`, *optional*):
            The vision tower; `model_type` is `"convnext"` (mask pooling) or `"clip_vision_model"` (masked attention).
        projection_dim (`int`, defaults to 512): Width D of the joint space.
        logit_scale_init_value (`float`, defaults to ln(1/0.07)): Initial `logit_scale`, a logarithm.
        visual_projection_type (`str`, defaults to `"linear"`):
            `"linear"` (one bias-free Linear) or `"mlp"` (Linear with bias to 2D, GELU, bias-free Linear to D).
        first_masked_layer (`int`, defaults to 8):
            ViT only: the first layer whose class tokens see only their mask's patches (arXiv 2310.00240, IP-CLIP).
        position_align_corners (`bool`, defaults to `False`):
            ViT only: how position embeddings are resized. `True` is what MAFT's released code does; `False` is CLIP.
        initializer_factor (`float`, defaults to 1.0): Scales CLIP's initialisation.

    Raises:
        ValueError: if a value is not one of those above; the message names the argument.
    """

    model_type = "maftplus_clip"
    sub_configs = {"text_config": CLIPTextConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float = math.log(1 / 0.07)
    visual_projection_type: str = "linear"
    first_masked_layer: int = 8
    position_align_corners: bool = False
    initializer_factor: float = 1.0

    def __post_init__(self, **kwargs: Any):
        self.text_config = _as_text_config(self.text_config)
        self.vision_config = _as_vision_config(self.vision_config)
        _require_choice("visual_projection_type", self.visual_projection_type, ("linear", "mlp"))
        _require_positive(self, "projection_dim")
        if self.first_masked_layer < 0:
            raise ValueError(f"`first_masked_layer` must not be negative, got {self.first_masked_layer}.")
        kwargs["auto_map"] = {**CLIP_AUTO_MAP, **(kwargs.get("auto_map") or {})}
        super().__post_init__(**kwargs)

    @property
    def takes_masks_by_pooling(self) -> bool:
        """Whether masks pool a convolutional map (ConvNeXt) rather than steer attention (ViT)."""
        return self.vision_config.model_type == "convnext"


class MaftPlusProposerConfig(PreTrainedConfig):
    r"""
    MAFT's own mask proposer (`MaftPlusProposer`): a ResNet, the segmenter's decoders and a look at the words between
    them. The defaults are the released sizes; the joint space's width is the CLIP's.

    Args:
        stem_size (`int`, defaults to 128): Channels that the stem of three 3 x 3 convolutions gives (DeepLab's form).
        hidden_sizes, depths (`list[int]`): Channels and bottleneck blocks of the four stages, fine to coarse.
        bottleneck_reduction (`int`, defaults to 4): A block's outer width over its inner one.
        last_stage_dilations (`list[int]`): Dilation of the 3 x 3 convolution in each block of the last stage.
        hidden_dim, num_attention_heads, encoder_layers, encoder_feedforward_dim, num_points, num_queries,
        decoder_layers, dim_feedforward (`int`): As in `MaftPlusConfig`; the released decoder has 10 layers.
        interaction_dim, interaction_heads (`int`, default to 2048 and 8): Text interaction: inner width and heads.
        class_feedforward_dim (`int`, defaults to 1024): Inner width of the head of the class embeddings.

    Raises:
        ValueError: if a value or a combination of values is impossible; the message names the argument.
    """

    model_type = "maftplus_proposer"

    stem_size: int = 128
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    bottleneck_reduction: int = 4
    last_stage_dilations: list[int] | tuple[int, ...] = (1, 2, 4)
    hidden_dim: int = 256
    num_attention_heads: int = 8
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    num_points: int = 4
    interaction_dim: int = 2048
    interaction_heads: int = 8
    num_queries: int = 100
    decoder_layers: int = 10
    dim_feedforward: int = 2048
    class_feedforward_dim: int = 1024

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        _check_decoders(self)
        _require_positive(self, "stem_size", "bottleneck_reduction", "class_feedforward_dim", *INTERACTION_SIZES)
        if self.interaction_dim % self.interaction_heads:
            raise ValueError(
                f"`interaction_dim` ({self.interaction_dim}) must be a multiple of `interaction_heads` "
                f"({self.interaction_heads})."
            )
        if len(self.hidden_sizes) != len(self.depths) or len(self.last_stage_dilations) != self.depths[-1]:
            raise ValueError(
                f"`depths` {list(self.depths)} must have a number for each of `hidden_sizes` "
                f"{list(self.hidden_sizes)}, and `last_stage_dilations` {list(self.last_stage_dilations)} one for "
                "each block of the last stage."
            )
        if any(size % self.bottleneck_reduction for size in self.hidden_sizes):
            raise ValueError(
                f"`hidden_sizes` {list(self.hidden_sizes)} must be multiples of `bottleneck_reduction` "
                f"({self.bottleneck_reduction})."
            )


class MaftPlusConfig(PreTrainedConfig):
    r"""
    MAFT, MAFT+ or FC-CLIP: CLIP that takes masks, a mask proposer, text classification.

    Args:
        clip_config (`MaftPlusCLIPConfig` or `dict`, *optional*): CLIP that takes masks.
        proposer_config (`MaftPlusProposerConfig`, `PreTrainedConfig` or `dict`, *optional*):
            A frozen mask proposer (MAFT): its own, or a universal-segmentation model of transformers. `None`: the
            segmenter, which reads a ConvNeXt's maps; a ViT without a proposer classifies the masks that it is given.
        proposer_image_mean, proposer_image_std (`list[float]`, *optional*):
            The proposer's own normalisation, in [0, 1] pixel units; the padding stays zero. `None`: ImageNet's.
        use_proposer_void (`bool`, defaults to `True`):
            Read the void probability from the last class of a transformers proposer; MAFT's own has no classes.
        proposal_align_corners (`bool`, defaults to `True`):
            ViT: how mask logits are resized to the padded picture before attention reads them (released MAFT code).
        clip_image_size (`int`, *optional*):
            MAFT stretches the padded image to this square before CLIP sees it (480). `None`: no stretching.
        image_mean, image_std (`list[float]`): What the image processor normalises with; undone for a proposer.
        num_queries, hidden_dim, num_attention_heads, num_points (`int`):
            Segmenter: mask queries, width, heads, sampling points a head and level.
        encoder_layers, encoder_feedforward_dim (`int`): Pixel decoder.
        decoder_layers, dim_feedforward (`int`): Masked-attention decoder; the prediction on queries is not counted.
        cdt_form (`str`, defaults to `"semantic"`):
            Content-Dependent Transfer: `"off"`, `"semantic"` (`LayerNorm(t + Linear(attn))`) or
            `"panoptic"` (`t + LayerNorm(Linear(attn))`).
        cdt_token_order (`str`, defaults to `"pixels"`):
            `"released"` reads runs of consecutive numbers as the released code does (converted weights need it).
        cdt_num_attention_heads (`int`, defaults to 8): Heads of that cross-attention.
        ensemble_alpha, ensemble_beta (`float`, default to 1.0):
            Weight of the out-of-vocabulary score for seen and unseen classes; 1 and 1 is MAFT+, 0.4 and 0.8 FC-CLIP.
        vocabulary (`list[list[str]]`, *optional*): Stored classes, each a list of synonyms (`set_vocabulary`).
        stuff_ids (`list[int]`, *optional*): Which of them are stuff.
        seen_ids (`list[int]`, *optional*): Which of them count as seen in training (for the ensemble).
        class_weight, mask_weight, dice_weight, no_object_weight (`float`): Set criterion.
        mask_aware_weight (`float`, defaults to 1.0): Mask-aware loss.
        compensation_weight, distillation_weight (`float`, default to 0.1 and 0.0):
            The losses against the frozen original CLIP: MAFT+ has the first, MAFT (0.0, 0.1) the second.
        train_num_points, oversample_ratio, importance_sample_ratio: Point sampling of the mask losses.
        use_auxiliary_loss (`bool`, defaults to `True`): Deep supervision on every prediction.
        loss_padding (`str`, defaults to `"released"`): `"released"` (padding counts as background) or `"ignored"`.
        initializer_range (`float`, defaults to 0.02): Deviation of freshly initialised Linear and Embedding weights.

    Raises:
        ValueError: if a value or a combination of values is impossible; the message names the argument.
    """

    model_type = "maftplus"
    sub_configs = {"clip_config": MaftPlusCLIPConfig, "proposer_config": AutoConfig}

    clip_config: dict | PreTrainedConfig | None = None
    proposer_config: dict | PreTrainedConfig | None = None
    proposer_image_mean: list[float] | None = None
    proposer_image_std: list[float] | None = None
    use_proposer_void: bool = True
    proposal_align_corners: bool = True
    clip_image_size: int | None = None
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    num_queries: int = 100
    hidden_dim: int = 256
    num_attention_heads: int = 8
    num_points: int = 4
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 9
    dim_feedforward: int = 2048
    cdt_form: str = "semantic"
    cdt_token_order: str = "pixels"
    cdt_num_attention_heads: int = 8
    ensemble_alpha: float = 1.0
    ensemble_beta: float = 1.0
    vocabulary: list[list[str]] | None = None
    stuff_ids: list[int] | None = None
    seen_ids: list[int] | None = None
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    mask_aware_weight: float = 1.0
    compensation_weight: float = 0.1
    distillation_weight: float = 0.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    use_auxiliary_loss: bool = True
    loss_padding: str = "released"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        if kwargs.get("model_type", self.model_type) != self.model_type:
            raise ValueError(
                f"This folder holds a {kwargs['model_type']!r} model, not a {self.model_type!r} one. A CLIP that "
                "takes masks loads with `MaftPlusCLIPModel` or `AutoModel`."
            )
        self.clip_config = _as_clip_config(self.clip_config)
        self.proposer_config = _as_proposer_config(self.proposer_config)
        kwargs["auto_map"] = {**MODEL_AUTO_MAP, **(kwargs.get("auto_map") or {})}
        kwargs["custom_pipelines"] = {**copy.deepcopy(CUSTOM_PIPELINES), **(kwargs.get("custom_pipelines") or {})}
        super().__post_init__(**kwargs)
        if self.vocabulary is not None:
            self._adopt_vocabulary_names()
        self.check()

    def check(self) -> None:
        """
        Refuse impossible values. Models call it too: `from_pretrained(folder, name=value)` sets values afterwards.

        Raises:
            ValueError: naming the field, what it got and what it takes.
        """
        _check_choices(self)
        _check_numbers(self)
        _check_transfer(self)
        _check_segmenter(self)
        _check_vocabulary(self)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary of plain values; `pipeline(...)` puts classes where the names of Auto classes stood."""
        output = super().to_dict()
        for task in output.get("custom_pipelines", {}).values():
            task["pt"] = [name if isinstance(name, str) else name.__name__ for name in task.get("pt", ())]
        return output

    def store_vocabulary(self, vocabulary: list[list[str]], stuff_ids: list[int], seen_ids: list[int]) -> None:
        """Make `vocabulary` (a list of synonyms a class) the stored one; `id2label` and `label2id` follow it."""
        self.vocabulary, self.stuff_ids, self.seen_ids = vocabulary, stuff_ids, seen_ids
        self.id2label = None
        self._adopt_vocabulary_names()

    def _adopt_vocabulary_names(self) -> None:
        """`id2label` is the first synonym of every class; `check` refuses another one."""
        _check_words(self.vocabulary)
        default = {index: f"LABEL_{index}" for index in range(2)}  # what transformers puts where nothing was said
        if self.id2label in (None, default):
            self.id2label = _first_synonyms(self.vocabulary)
        self.label2id = {name: index for index, name in self.id2label.items()}

    @property
    def has_segmenter(self) -> bool:
        """Whether the model proposes masks itself: no other proposer, and a ConvNeXt that the segmenter can read."""
        return self.proposer_config is None and self.clip_config.vision_config.model_type == "convnext"

    @property
    def has_own_proposer(self) -> bool:
        """Whether MAFT's own proposer makes the masks, rather than the segmenter or a model of transformers."""
        return isinstance(self.proposer_config, MaftPlusProposerConfig)

    @property
    def prompt_class_ids(self) -> list[int]:
        """Class of every stored synonym, (P,): row p of the stored class embeddings belongs to class `[p]`."""
        return [index for index, synonyms in enumerate(self.vocabulary or []) for _ in synonyms]


def _as_text_config(config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    return CLIPTextConfig(**(config or {}))


def _as_vision_config(config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if config is None:
        return CLIPVisionConfig()
    if isinstance(config, PreTrainedConfig):
        model_type = config.model_type
    else:
        model_type = config.get("model_type", "clip_vision_model")
        _require_choice("vision_config.model_type", model_type, VISION_MODEL_TYPES)
        config = {"convnext": ConvNextConfig, "clip_vision_model": CLIPVisionConfig}[model_type](**config)
    _require_choice("vision_config.model_type", model_type, VISION_MODEL_TYPES)
    return config


def _as_proposer_config(config: dict | PreTrainedConfig | None) -> PreTrainedConfig | None:
    if not isinstance(config, dict):
        return config
    if "model_type" not in config:
        raise ValueError(
            "`proposer_config` must name its `model_type` ('maftplus_proposer', 'mask2former' or 'maskformer')."
        )
    if config["model_type"] == MaftPlusProposerConfig.model_type:
        return MaftPlusProposerConfig(**config)
    return AutoConfig.for_model(**config)


def _as_clip_config(config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        _require_choice("clip_config.model_type", config.model_type, (MaftPlusCLIPConfig.model_type,))
        return config
    if config is None:  # the base model of the paper, without weights
        return MaftPlusCLIPConfig(
            text_config={
                "hidden_size": 640,
                "intermediate_size": 2560,
                "num_attention_heads": 10,
                "hidden_act": "gelu",
            },
            vision_config={
                "model_type": "convnext",
                "hidden_sizes": [128, 256, 512, 1024],
                "depths": [3, 3, 27, 3],
                "layer_norm_eps": 1e-6,
            },
            projection_dim=640,
        )
    return MaftPlusCLIPConfig(**config)


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _require_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"`{name}` must be a positive whole number, got {value!r}.")


def _require_range(config: PreTrainedConfig, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"`{name}` must be a number between {low} and {high}, got {value!r}.")


def _check_choices(config: MaftPlusConfig) -> None:
    _require_choice("cdt_form", config.cdt_form, ("off", "semantic", "panoptic"))
    _require_choice("cdt_token_order", config.cdt_token_order, ("released", "pixels"))
    _require_choice("loss_padding", config.loss_padding, ("released", "ignored"))


def _check_numbers(config: MaftPlusConfig) -> None:
    _require_range(config, 0.0, 1.0, "ensemble_alpha", "ensemble_beta", "importance_sample_ratio")
    _require_range(config, 1.0, math.inf, "oversample_ratio")
    weights = ("class_weight", "mask_weight", "dice_weight", "no_object_weight")
    _require_range(config, 0.0, math.inf, *weights, "mask_aware_weight", "compensation_weight", "distillation_weight")
    _require_positive(config, "train_num_points")
    if config.clip_image_size is not None:
        _require_positive(config, "clip_image_size")
    for name in ("image_std", "proposer_image_std"):
        if getattr(config, name) is not None and min(getattr(config, name)) <= 0:
            raise ValueError(f"`{name}` must be positive, got {getattr(config, name)}.")


def _check_transfer(config: MaftPlusConfig) -> None:
    if config.cdt_form == "off":
        return
    _require_positive(config, "cdt_num_attention_heads")
    width = config.clip_config.projection_dim
    if width % config.cdt_num_attention_heads or width % 4:
        raise ValueError(
            f"`clip_config.projection_dim` ({width}) must be a multiple of 4 (sine positions of two axes) and of "
            f"`cdt_num_attention_heads` ({config.cdt_num_attention_heads}), or `cdt_form` be 'off'."
        )


def _check_segmenter(config: MaftPlusConfig) -> None:
    if config.has_segmenter:
        _check_decoders(config)


def _check_decoders(config: MaftPlusConfig | MaftPlusProposerConfig) -> None:
    """Sizes of pixel decoder and masked-attention decoder."""
    sizes = ("num_queries", "hidden_dim", "num_attention_heads", "num_points", "encoder_layers", "decoder_layers")
    _require_positive(config, *sizes, "encoder_feedforward_dim", "dim_feedforward")
    if config.hidden_dim % 32 or config.hidden_dim % config.num_attention_heads:
        raise ValueError(
            f"`hidden_dim` ({config.hidden_dim}) must be a multiple of 32 (normalisation groups) and of "
            f"`num_attention_heads` ({config.num_attention_heads})."
        )


def _check_vocabulary(config: MaftPlusConfig) -> None:
    """Words, their names and their ids must tell the same story as the stored class embeddings."""
    if config.vocabulary is None:
        return
    _check_words(config.vocabulary)
    names = _first_synonyms(config.vocabulary)
    if config.id2label != names:
        raise ValueError(
            f"`id2label` ({len(config.id2label)} labels) contradicts `vocabulary` ({len(names)} classes). "
            "Change the words with `model.set_vocabulary(processor, names)`, which keeps both in step."
        )
    for field in ("stuff_ids", "seen_ids"):
        wrong = [index for index in getattr(config, field) or [] if index not in names]
        if wrong:
            raise ValueError(f"`{field}` names classes {wrong}, but `vocabulary` has classes 0 to {len(names) - 1}.")


def _check_words(vocabulary: Any) -> None:
    if not all(isinstance(words, (list, tuple)) and words for words in vocabulary):
        raise ValueError("`vocabulary` must be a list of classes, each a list of at least one synonym.")


def _first_synonyms(vocabulary: list[list[str]]) -> dict[int, str]:
    return {index: synonyms[0] for index, synonyms in enumerate(vocabulary)}


MaftPlusCLIPConfig.register_for_auto_class()
MaftPlusConfig.register_for_auto_class()

__all__ = ["MaftPlusCLIPConfig", "MaftPlusConfig", "MaftPlusProposerConfig"]
