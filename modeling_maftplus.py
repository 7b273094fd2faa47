"""Open-vocabulary segmentation: mask proposals classified by CLIP features under the masks against refined text.

Sources: arXiv 2408.00744, "Content-Dependent Transfer" and "Mask-aware loss" (MAFT+); arXiv 2310.00240, "IP-CLIP
Encoder" (MAFT); arXiv 2308.02487, "Geometric ensemble" (FC-CLIP).
Shapes: B images, Q mask queries, K classes (+1 = void, always last), P synonyms (K <= P), N prompts, D joint space,
C trunk channels, H x W padded input, h x w a feature map.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForUniversalSegmentation, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .clip_maftplus import MaftPlusCLIPModel
from .configuration_maftplus import MaftPlusConfig
from .loss_maftplus import segmentation_losses
from .proposer_maftplus import MaftPlusProposer, init_proposer_weights
from .segmenter_maftplus import MaftPlusAttention, MaftPlusSegmenter, init_segmenter_weights, sine_position_embedding

logger = logging.get_logger(__name__)

PROMPTS_PER_CHUNK = 256
MAX_LOGIT_SCALE = 100.0
LOG_FLOOR = 1e-8
# What generic code of transformers passes to any model, and this one does not need.
IGNORED_ARGUMENTS = frozenset({"output_attentions", "output_hidden_states", "return_dict", "return_loss", "labels"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class MaftPlusModelOutput(ModelOutput):
    """
    What the bare network computes. Every tensor is batch-first.

    Args:
        masks_queries_logits (`Tensor` (B, Q, h, w)): Mask logits, > 0 inside; of the padded input.
        in_vocab_logits (`Tensor` (B, Q, K+1), *optional*): The segmenter's own class logits (none with a proposer).
        out_vocab_logits (`Tensor` (B, Q, K+1)): CLIP's class logits of the masks.
        void_probabilities (`Tensor` (B, Q, 1)): Probability that a mask is no object.
        mask_embeds (`Tensor` (B, Q, D)): CLIP embeddings of the masks, not normalised.
        text_embeds (`Tensor` (B, P+1, D)): Class embeddings after Content-Dependent Transfer, void last.
        dense_features (`Tensor` (B, C, h, w)): The trunk's last map, with gradient (compensation loss).
        image_embeds (`Tensor` (B, D), *optional*): Whole-image embeddings (self-distillation), when asked for.
        unpadded_sizes, padded_sizes (`Tensor` (B, 2)): (height, width) of the input before and after padding.
        auxiliary_in_vocab_logits, auxiliary_masks_queries_logits (tuple of `Tensor`, *optional*): Earlier predictions,
            learned queries first, when asked for.
    """

    masks_queries_logits: Tensor | None = None
    in_vocab_logits: Tensor | None = None
    out_vocab_logits: Tensor | None = None
    void_probabilities: Tensor | None = None
    mask_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    dense_features: Tensor | None = None
    image_embeds: Tensor | None = None
    unpadded_sizes: Tensor | None = None
    padded_sizes: Tensor | None = None
    auxiliary_in_vocab_logits: tuple[Tensor, ...] | None = None
    auxiliary_masks_queries_logits: tuple[Tensor, ...] | None = None


@dataclass
class MaftPlusForUniversalSegmentationOutput(MaftPlusModelOutput):
    """
    `MaftPlusModelOutput` with what post-processing and training read.

    Args:
        loss (`Tensor` (), *optional*): Weighted sum of `loss_dict`, when labels were given.
        loss_dict (`dict[str, Tensor]`, *optional*): The named, weighted losses.
        class_queries_logits (`Tensor` (B, Q, K+1)): Log-probabilities of the classes, void last; a softmax gives the
            probabilities back.
        stuff_classes (`Tensor` (B, K) bool, *optional*): Which classes of the stored vocabulary are stuff.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    class_queries_logits: Tensor | None = None
    stuff_classes: Tensor | None = None


@dataclass
class Proposals:
    """Masks from whatever proposed them: logits (B, Q, h, w), and class evidence if the proposer has any."""

    masks_queries_logits: Tensor
    class_embeds: Tensor | None = None
    void_probabilities: Tensor | None = None
    auxiliary_masks_queries_logits: tuple[Tensor, ...] | None = None
    auxiliary_class_embeds: tuple[Tensor, ...] | None = None


def classification_logits(
    embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, text_class_ids: Tensor, num_classes: int
) -> Tensor:
    """
    Scaled similarity of embeddings to class rows, the maximum over each class's synonyms.

    Args:
        embeds (`Tensor` (B, Q, D)): Normalised here.
        text_embeds (`Tensor` (P+1, D) or (B, P+1, D)): Used as it comes; the last row is void.
        logit_scale (`Tensor` ()): A logarithm; its exponential is cut at 100.
        text_class_ids (`Tensor` (P,)): Class of every row but the last.
        num_classes (`int`): K.

    Returns:
        `Tensor` (B, Q, K+1), void last. Source: arXiv 2308.02487, "Method".
    """
    scale = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    logits = scale * F.normalize(embeds, dim=-1) @ text_embeds.transpose(-1, -2)  # (B, Q, P+1)
    return max_over_synonyms(logits, text_class_ids, num_classes)


def max_over_synonyms(logits: Tensor, text_class_ids: Tensor, num_classes: int) -> Tensor:
    """Segment maximum: (..., P+1) row logits to (..., K+1) class logits; void, the last row, is a class by itself."""
    void = text_class_ids.new_full((1,), num_classes)
    index = torch.cat([text_class_ids, void]).expand(logits.shape)
    empty = logits.new_full((*logits.shape[:-1], num_classes + 1), float("-inf"))
    return empty.scatter_reduce(-1, index, logits, "amax", include_self=False)


def class_log_probabilities(
    out_vocab_logits: Tensor,
    void_probabilities: Tensor,
    in_vocab_logits: Tensor | None = None,
    ensemble_weights: Tensor | None = None,
) -> Tensor:
    """
    Final class scores: `log([p * (1 - void), void] + 1e-8)`.

    Args:
        out_vocab_logits (`Tensor` (B, Q, K+1)): CLIP's logits; their void column is not used.
        void_probabilities (`Tensor` (B, Q, 1)): Probability of void.
        in_vocab_logits (`Tensor` (B, Q, K+1), *optional*): The segmenter's logits, for the geometric ensemble.
        ensemble_weights (`Tensor` (K,), *optional*): Weight of the out-of-vocabulary score per class, in [0, 1].

    Returns:
        `Tensor` (B, Q, K+1). Source: arXiv 2308.02487, "Geometric ensemble"; weights of 1 are arXiv 2408.00744.
    """
    scores, dtype = out_vocab_logits[..., :-1].float(), out_vocab_logits.dtype  # 1e-8 is zero in float16
    void_probabilities = void_probabilities.float()
    if in_vocab_logits is not None and ensemble_weights is not None:
        inside = in_vocab_logits[..., :-1].float().log_softmax(-1)
        scores = (1 - ensemble_weights) * inside + ensemble_weights * scores.log_softmax(-1)
    probabilities = scores.softmax(-1) * (1 - void_probabilities)
    return torch.log(torch.cat([probabilities, void_probabilities], dim=-1) + LOG_FLOOR).to(dtype)


class ZeroLinear(nn.Linear):
    """A Linear that starts at zero; of its own type, as `_init_weights` skips parents that hold no parameter."""


class ContentDependentTransfer(nn.Module):
    """Class embeddings look at the image before they classify it (arXiv 2408.00744, "Content-Dependent Transfer").

    One cross-attention from text (P+1 rows) to the projected dense CLIP feature; `config.cdt_form` chooses where the
    LayerNorm stands. The panoptic form starts as the identity: its Linear is initialised at zero.
    """

    def __init__(self, config: MaftPlusConfig):
        super().__init__()
        width = config.clip_config.projection_dim
        self.form = config.cdt_form
        self.attn = MaftPlusAttention(width, config.cdt_num_attention_heads)
        self.linear = (ZeroLinear if config.cdt_form == "panoptic" else nn.Linear)(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, text_embeds: Tensor, dense_embeds: Tensor) -> Tensor:
        """Text (P+1, D) and dense embeddings (B, D, h, w) to text that depends on the image (B, P+1, D)."""
        batch, width, height, columns = dense_embeds.shape
        position = sine_position_embedding(
            height, columns, width // 2, device=dense_embeds.device, dtype=dense_embeds.dtype
        )
        value = dense_embeds.flatten(2).transpose(1, 2)  # (B, hw, D)
        key = (dense_embeds + position).flatten(2).transpose(1, 2)
        text_embeds = text_embeds.expand(batch, -1, -1)
        transferred = self.linear(self.attn(text_embeds, key, value))  # (B, P+1, D)
        if self.form == "semantic":
            return self.layer_norm(text_embeds + transferred)
        return text_embeds + self.layer_norm(transferred)


class MaftPlusPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the MAFT+ models."""

    config: MaftPlusConfig
    config_class = MaftPlusConfig
    base_model_prefix = "model"
    _keys_to_ignore_on_load_unexpected = [r"^vocabulary_embeds$"]  # the bare network has no stored words
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = [
        "MaftPlusConvNextLayer",
        "MaftPlusDeformableLayer",
        "MaftPlusMaskDecoderLayer",
        "MaftPlusProposer",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_segmenter_weights(module, self.config)
        init_proposer_weights(module)
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, MaftPlusForUniversalSegmentation) and module.vocabulary_embeds is not None:
            init.zeros_(module.vocabulary_embeds)


class MaftPlusModel(MaftPlusPreTrainedModel):
    """The bare network: picture and class embeddings in; masks, their embeddings, both kinds of class logits out."""

    def __init__(self, config: MaftPlusConfig):
        super().__init__(config)
        config.check()
        self.clip = MaftPlusCLIPModel._from_config(config.clip_config)
        if config.has_segmenter:
            self.segmenter = MaftPlusSegmenter(config)
        elif config.has_own_proposer:
            width = config.clip_config.projection_dim
            self.proposer = MaftPlusProposer(config.proposer_config, width).requires_grad_(False)
        elif config.proposer_config is not None:
            self.proposer = AutoModelForUniversalSegmentation.from_config(config.proposer_config).requires_grad_(False)
        if config.cdt_form != "off":
            self.cdt = ContentDependentTransfer(config)
        self.void_embedding = nn.Embedding(1, config.clip_config.projection_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.clip.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.clip.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "MaftPlusModel":
        """As usual, but the proposer stays frozen: in evaluation mode, its statistics never move."""
        super().train(mode)
        if self.config.proposer_config is not None:
            self.proposer.eval()
        return self

    @torch.no_grad()
    def encode_vocabulary(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_class_ids: Tensor,
        prompt_synonym_ids: Tensor,
        seen_classes: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """
        Class embeddings of a vocabulary, to be computed once and passed to `forward` as often as needed.

        Args:
            input_ids, attention_mask (`Tensor` (N, T)): The prompts, as `MaftPlusProcessor` makes them.
            prompt_class_ids (`Tensor` (N,)): Class of each prompt, 0 to K-1.
            prompt_synonym_ids (`Tensor` (N,)): Synonym of each prompt, 0 to P-1.
            seen_classes (`Tensor` (K,) bool, *optional*): Classes that training saw (geometric ensemble).

        Returns:
            `dict` with `text_embeds` (P, D), each row the normalised mean of its normalised prompts, `text_class_ids`
            (P,) and `seen_classes` (K,). No gradient: the text tower is never trained.
        """
        prompts = {"prompt_class_ids": prompt_class_ids, "prompt_synonym_ids": prompt_synonym_ids}
        _check_prompts(input_ids=input_ids, attention_mask=attention_mask, **prompts)
        device = self.device
        class_ids, synonym_ids = prompt_class_ids.to(device), prompt_synonym_ids.to(device)
        features = self._encode_prompts(input_ids, attention_mask)  # (N, D)
        num_synonyms = int(synonym_ids.max()) + 1
        sums = features.new_zeros(num_synonyms, features.shape[-1]).index_add(0, synonym_ids, features)
        text_class_ids = class_ids.new_zeros(num_synonyms).scatter(0, synonym_ids, class_ids)
        if seen_classes is None:
            seen_classes = torch.zeros(int(class_ids.max()) + 1, dtype=torch.bool)
        return {
            "text_embeds": F.normalize(sums, dim=-1),  # the mean's length does not matter
            "text_class_ids": text_class_ids,
            "seen_classes": seen_classes.to(device),
        }

    def _encode_prompts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalised CLIP features of prompts, (N, D), in chunks of similar length: short ones never see padding."""
        lengths = attention_mask.sum(-1)
        order = lengths.argsort(stable=True)
        features = []
        for chunk in order.split(PROMPTS_PER_CHUNK):
            longest = int(lengths[chunk[-1]])
            ids = input_ids[chunk, :longest].to(self.device)
            features.append(F.normalize(self.clip.get_text_features(ids).pooler_output, dim=-1))
        return torch.cat(features)[order.argsort().to(self.device)]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        prompt_class_ids: Tensor | None = None,
        prompt_synonym_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_class_ids: Tensor | None = None,
        seen_classes: Tensor | None = None,
        proposal_logits: Tensor | None = None,
        output_auxiliary_logits: bool = False,
        output_image_embeds: bool = False,
        **_: Any,
    ) -> MaftPlusModelOutput:
        """
        Args:
            pixel_values (`Tensor` (B, 3, H, W)): Normalised, padded pictures.
            pixel_mask (`Tensor` (B, H, W), *optional*): 1 on the picture, 0 on padding; only its size is used.
            input_ids, attention_mask, prompt_class_ids, prompt_synonym_ids: The vocabulary as prompts, or
            text_embeds (`Tensor` (P, D)), text_class_ids (`Tensor` (P,)): as `encode_vocabulary` returned it.
            seen_classes (`Tensor` (K,) bool, *optional*): Classes that training saw.
            proposal_logits (`Tensor` (B, Q, h, w), *optional*): Masks from elsewhere, instead of the proposer's.
            output_auxiliary_logits (`bool`): Return the earlier predictions too.
            output_image_embeds (`bool`): Return whole-image embeddings too.

        Raises:
            ValueError: if no vocabulary was given or a tensor has the wrong shape.
        """
        vocabulary = self._vocabulary(
            input_ids, attention_mask, prompt_class_ids, prompt_synonym_ids, text_embeds, text_class_ids, seen_classes
        )
        unpadded_sizes, padded_sizes = _input_sizes(pixel_values, pixel_mask)
        text_embeds = self._append_void(vocabulary["text_embeds"])  # (P+1, D)
        vision = self.clip.encode_image(self._clip_pixels(pixel_values))  # the one trunk pass
        proposals = self._propose(
            pixel_values, pixel_mask, vision, text_embeds, proposal_logits, output_auxiliary_logits
        )
        masks = self._resize_proposals(proposals, pixel_values)  # (B, Q, h, w)
        mask_embeds = self._embed_masks(vision, masks)  # (B, Q, D)
        refined = self._refine(text_embeds, vision, len(pixel_values))  # (B, P+1, D)
        rows = vocabulary["text_class_ids"], vocabulary["seen_classes"].shape[0]
        out_vocab_logits = classification_logits(mask_embeds, refined, self.clip.logit_scale, *rows)  # (B, Q, K+1)
        in_vocab_logits = self._in_vocab_logits(proposals.class_embeds, text_embeds, *rows)
        return MaftPlusModelOutput(
            masks_queries_logits=masks,
            in_vocab_logits=in_vocab_logits,
            out_vocab_logits=out_vocab_logits,
            void_probabilities=_void_probabilities(proposals, in_vocab_logits, out_vocab_logits),
            mask_embeds=mask_embeds,
            text_embeds=refined,
            dense_features=vision.dense_features,
            image_embeds=self.clip.embed_image(vision) if output_image_embeds else None,
            unpadded_sizes=unpadded_sizes,
            padded_sizes=padded_sizes,
            auxiliary_in_vocab_logits=self._auxiliary_logits(proposals, text_embeds, *rows),
            auxiliary_masks_queries_logits=proposals.auxiliary_masks_queries_logits,
        )

    def _vocabulary(
        self,
        input_ids,
        attention_mask,
        prompt_class_ids,
        prompt_synonym_ids,
        text_embeds,
        text_class_ids,
        seen_classes,
    ) -> dict[str, Tensor]:
        if text_embeds is None:
            if input_ids is None:
                raise ValueError(
                    "No vocabulary: pass `text` to the processor (`input_ids`), or `text_embeds` and `text_class_ids` "
                    "from `encode_vocabulary`, or store one with `set_vocabulary`."
                )
            return self.encode_vocabulary(
                input_ids, attention_mask, prompt_class_ids, prompt_synonym_ids, seen_classes=seen_classes
            )
        _check_vocabulary(text_embeds, text_class_ids, seen_classes, self.config.clip_config.projection_dim)
        if seen_classes is None:
            seen_classes = torch.zeros(int(text_class_ids.max()) + 1, dtype=torch.bool, device=text_class_ids.device)
        return {"text_embeds": text_embeds, "text_class_ids": text_class_ids, "seen_classes": seen_classes}

    def _append_void(self, text_embeds: Tensor) -> Tensor:
        void = F.normalize(self.void_embedding.weight, dim=-1)
        return torch.cat([text_embeds.to(void), void])

    def _clip_pixels(self, pixel_values: Tensor) -> Tensor:
        """MAFT shows CLIP the padded picture stretched to a square (released code; no such step in MAFT+)."""
        if self.config.clip_image_size is None:
            return pixel_values
        return F.interpolate(
            pixel_values, size=(self.config.clip_image_size,) * 2, mode="bilinear", align_corners=False
        )

    def _propose(
        self, pixel_values, pixel_mask, vision, text_embeds, proposal_logits, output_auxiliary_logits
    ) -> Proposals:
        if proposal_logits is not None:
            return Proposals(_check_proposals(proposal_logits, pixel_values))
        if self.config.has_own_proposer:
            return self._propose_for_words(pixel_values, pixel_mask, text_embeds)
        if self.config.proposer_config is not None:
            return self._propose_externally(pixel_values, pixel_mask)
        if not self.config.has_segmenter:
            raise ValueError(
                "This model has no mask proposer: pass `proposal_logits` (images, masks, height, width), or build it "
                "with a `proposer_config`."
            )
        maps = [feature.detach() for feature in vision.feature_maps]  # the trunk learns from CLIP's losses alone
        found = self.segmenter(maps, output_auxiliary_logits=output_auxiliary_logits)
        return Proposals(
            found.masks_queries_logits,
            class_embeds=found.class_embeds,
            auxiliary_masks_queries_logits=found.auxiliary_masks_queries_logits,
            auxiliary_class_embeds=found.auxiliary_class_embeds,
        )

    @torch.no_grad()
    def _propose_for_words(self, pixel_values, pixel_mask, text_embeds: Tensor) -> Proposals:
        """MAFT's own proposer; it reads the words, and MAFT reads its masks alone."""
        maps = self.proposer.encode(self._proposer_pixels(pixel_values, pixel_mask))
        return Proposals(self.proposer(*maps, text_embeds.to(maps[0])).masks_queries_logits)

    @torch.no_grad()
    def _propose_externally(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Proposals:
        found = self.proposer(pixel_values=self._proposer_pixels(pixel_values, pixel_mask))
        void = found.class_queries_logits.softmax(-1)[..., -1:] if self.config.use_proposer_void else None
        return Proposals(found.masks_queries_logits, void_probabilities=void)

    def _proposer_pixels(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """From our normalisation to the proposer's own; the padding is zero in both."""
        config = self.config
        ours = [pixel_values.new_tensor(values)[:, None, None] for values in (config.image_mean, config.image_std)]
        theirs = [
            pixel_values.new_tensor(values)[:, None, None]
            for values in (config.proposer_image_mean or IMAGENET_MEAN, config.proposer_image_std or IMAGENET_STD)
        ]
        pixels = (pixel_values * ours[1] + ours[0] - theirs[0]) / theirs[1]
        pixels = pixels if pixel_mask is None else pixels * pixel_mask[:, None]
        return pixels.to(next(self.proposer.parameters()).dtype)

    def _resize_proposals(self, proposals: Proposals, pixel_values: Tensor) -> Tensor:
        """MAFT brings mask logits to the padded picture first, with corner alignment; pooling needs no such step."""
        masks = proposals.masks_queries_logits
        if self._pools_masks:
            return masks
        aligned = self.config.proposal_align_corners
        return F.interpolate(masks, size=pixel_values.shape[-2:], mode="bilinear", align_corners=aligned)

    @property
    def _pools_masks(self) -> bool:
        return self.config.clip_config.vision_config.model_type == "convnext"

    def _embed_masks(self, vision, masks_queries_logits: Tensor) -> Tensor:
        """Mask embeddings (B, Q, D): pooling reads logits, mask-aware attention reads probabilities."""
        return self.clip.embed_masks(
            vision, masks_queries_logits if self._pools_masks else masks_queries_logits.sigmoid()
        )

    def _refine(self, text_embeds: Tensor, vision, batch: int) -> Tensor:
        """Class embeddings (P+1, D) as this image sees them, (B, P+1, D); CDT off: as they are."""
        if self.config.cdt_form == "off":
            return text_embeds.expand(batch, -1, -1)
        dense_embeds = self.clip.embed_dense(vision, token_order=self.config.cdt_token_order)  # (B, D, h, w)
        return self.cdt(text_embeds, dense_embeds)

    def _in_vocab_logits(self, class_embeds, text_embeds, text_class_ids, num_classes) -> Tensor | None:
        if class_embeds is None:
            return None
        return classification_logits(
            class_embeds, text_embeds, self.segmenter.logit_scale, text_class_ids, num_classes
        )

    def _auxiliary_logits(self, proposals: Proposals, text_embeds, *rows) -> tuple[Tensor, ...] | None:
        if proposals.auxiliary_class_embeds is None:
            return None
        return tuple(self._in_vocab_logits(embeds, text_embeds, *rows) for embeds in proposals.auxiliary_class_embeds)


class MaftPlusForUniversalSegmentation(MaftPlusPreTrainedModel):
    """
    Semantic, instance and panoptic segmentation with any words: `MaftPlusModel`, final class scores, losses, and an
    optional stored vocabulary (`set_vocabulary`) that is used when a call brings no words of its own.
    """

    def __init__(self, config: MaftPlusConfig):
        super().__init__(config)
        self.model = MaftPlusModel(config)
        rows = len(config.prompt_class_ids)
        embeds = torch.zeros(rows, config.clip_config.projection_dim) if rows else None
        self.register_buffer("vocabulary_embeds", embeds)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def encode_vocabulary(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Class embeddings of `processor(text=...)`, computed once; see `MaftPlusModel.encode_vocabulary`."""
        return self.model.encode_vocabulary(**inputs)

    def set_vocabulary(
        self, processor: Any, names: list[str | list[str]], stuff: list[str] | tuple[str, ...] = ()
    ) -> None:
        """
        Store a vocabulary in the model: the default of every call without words, kept by `save_pretrained`.

        Args:
            processor (`MaftPlusProcessor`): Splits names into synonyms and writes the prompts.
            names (`list`): A class is a string with synonyms separated by commas, or a list of synonyms.
            stuff (`list[str]`): The classes that are stuff, by their first synonym or as they stand in `names`.

        Raises:
            ValueError: for a stuff label that is not among the names, names the processor refuses, or a processor
                whose tokenizer is another model's.
        """
        processor.check_text_tower(self.config.clip_config.text_config)
        synonyms = processor.split_labels(names)
        stuff_ids = processor.label_ids(synonyms, stuff)
        vocabulary = self.encode_vocabulary(**processor(text=names, return_tensors="pt"))
        self.vocabulary_embeds = vocabulary["text_embeds"].to(self.dtype)
        self.config.store_vocabulary(synonyms, stuff_ids, vocabulary["seen_classes"].nonzero().flatten().tolist())

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        prompt_class_ids: Tensor | None = None,
        prompt_synonym_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_class_ids: Tensor | None = None,
        seen_classes: Tensor | None = None,
        proposal_logits: Tensor | None = None,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        loss_counts: Tensor | None = None,
        point_seeds: list[int] | None = None,
        output_auxiliary_logits: bool | None = None,
        **unknown: Any,
    ) -> MaftPlusForUniversalSegmentationOutput:
        """
        As `MaftPlusModel.forward`, and:

        Args:
            mask_labels (`list` of `Tensor` (N, H, W), *optional*): Ground-truth masks of each picture, padded size.
            class_labels (`list` of `Tensor` (N,), *optional*): Their classes; with them the losses are computed.
            loss_counts (`Tensor` (3,), *optional*):
                What the losses are divided by (`count_targets`); default: the counts of this batch.
            point_seeds (`list[int]`, *optional*): Seeds of each picture's random points (exact resumption).
            output_auxiliary_logits (`bool`, *optional*): Earlier predictions too; default: when a loss reads them.

        Raises:
            ValueError: if only one of the labels is given, or as in `MaftPlusModel.forward`.
            TypeError: for an argument that does not exist.
        """
        if unknown.keys() - IGNORED_ARGUMENTS:
            names = sorted(unknown.keys() - IGNORED_ARGUMENTS)
            raise TypeError(f"`forward` got unknown arguments {names}; see its docstring for those it takes.")
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("`mask_labels` and `class_labels` go together: pass both, or neither.")
        trains = mask_labels is not None
        if output_auxiliary_logits is None:
            output_auxiliary_logits = trains and self.config.use_auxiliary_loss
        stored = input_ids is None and text_embeds is None and self.vocabulary_embeds is not None
        if stored:
            text_embeds, text_class_ids, seen_classes = self._stored_vocabulary()
        outputs = self.model(
            pixel_values,
            pixel_mask=pixel_mask,
            input_ids=input_ids,
            attention_mask=attention_mask,
            prompt_class_ids=prompt_class_ids,
            prompt_synonym_ids=prompt_synonym_ids,
            text_embeds=text_embeds,
            text_class_ids=text_class_ids,
            seen_classes=seen_classes,
            proposal_logits=proposal_logits,
            output_auxiliary_logits=output_auxiliary_logits,
            output_image_embeds=trains and self.config.distillation_weight > 0,
            return_dict=True,
        )
        result = MaftPlusForUniversalSegmentationOutput(
            **outputs,
            class_queries_logits=self._class_queries_logits(outputs, seen_classes),
            stuff_classes=self._stuff_classes(len(pixel_values)) if stored else None,
        )
        if trains:
            result.loss_dict = self._losses(outputs, mask_labels, class_labels, pixel_mask, loss_counts, point_seeds)
            result.loss = sum(result.loss_dict.values())
        return result

    def _stored_vocabulary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Class embeddings (P, D), their classes (P,) and which classes were seen (K,)."""
        device, config = self.vocabulary_embeds.device, self.config
        seen = torch.zeros(len(config.vocabulary), dtype=torch.bool, device=device)
        seen[config.seen_ids or []] = True
        return self.vocabulary_embeds, torch.tensor(config.prompt_class_ids, device=device), seen

    def _stuff_classes(self, batch: int) -> Tensor:
        stuff = torch.zeros(len(self.config.vocabulary), dtype=torch.bool, device=self.vocabulary_embeds.device)
        stuff[self.config.stuff_ids or []] = True
        return stuff.expand(batch, -1)

    def _class_queries_logits(self, outputs: MaftPlusModelOutput, seen_classes: Tensor | None) -> Tensor:
        alpha, beta = self.config.ensemble_alpha, self.config.ensemble_beta
        weights = None
        if outputs.in_vocab_logits is not None and (alpha, beta) != (1.0, 1.0):
            num_classes = outputs.out_vocab_logits.shape[-1] - 1
            if seen_classes is None:
                seen_classes = torch.zeros(num_classes, dtype=torch.bool, device=outputs.out_vocab_logits.device)
            weights = torch.where(seen_classes.to(outputs.out_vocab_logits.device), alpha, beta)
        return class_log_probabilities(
            outputs.out_vocab_logits, outputs.void_probabilities, outputs.in_vocab_logits, weights
        )

    def _losses(self, outputs, mask_labels, class_labels, pixel_mask, loss_counts, point_seeds) -> dict[str, Tensor]:
        """Every loss that needs no teacher; a frozen proposer has no predictions of its own to learn."""
        classes = [] if outputs.in_vocab_logits is None else [outputs.in_vocab_logits]
        masks = [outputs.masks_queries_logits]
        if self.config.use_auxiliary_loss and outputs.auxiliary_in_vocab_logits is not None:
            classes = [*outputs.auxiliary_in_vocab_logits, *classes]
            masks = [*outputs.auxiliary_masks_queries_logits, *masks]
        return segmentation_losses(
            self.config,
            class_logits=classes,
            mask_logits=masks,
            out_vocab_logits=outputs.out_vocab_logits,
            mask_labels=mask_labels,
            class_labels=class_labels,
            pixel_mask=pixel_mask,
            loss_counts=loss_counts,
            point_seeds=point_seeds,
        )


def _input_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(height, width) of every picture before and after padding, both (B, 2)."""
    batch, _, height, width = pixel_values.shape
    padded = torch.tensor([[height, width]], device=pixel_values.device).expand(batch, 2)
    if pixel_mask is None:
        return padded, padded
    if pixel_mask.shape != (batch, height, width):
        raise ValueError(
            f"`pixel_mask` must have the pictures' shape {(batch, height, width)}, got {tuple(pixel_mask.shape)}."
        )
    seen = pixel_mask.bool()
    return torch.stack([seen.any(2).sum(1), seen.any(1).sum(1)], dim=1), padded


def _check_vocabulary(
    text_embeds: Tensor, text_class_ids: Tensor | None, seen_classes: Tensor | None, width: int
) -> None:
    if text_embeds.ndim != 2 or text_embeds.shape[-1] != width or not len(text_embeds):
        raise ValueError(
            f"`text_embeds` must be (synonyms, {width}), this model's joint space, got {tuple(text_embeds.shape)}. "
            "Encode the words with this model's `encode_vocabulary`."
        )
    if text_class_ids is None or text_class_ids.shape != text_embeds.shape[:1] or text_class_ids.is_floating_point():
        got = None if text_class_ids is None else (tuple(text_class_ids.shape), text_class_ids.dtype)
        raise ValueError(f"`text_class_ids` must name the class of each of the {len(text_embeds)} rows, got {got}.")
    if torch.compiler.is_compiling():  # what follows reads values, which would break a graph
        return
    least, most = int(text_class_ids.min()), int(text_class_ids.max())
    if least < 0 or seen_classes is not None and (seen_classes.ndim != 1 or len(seen_classes) <= most):
        got = None if seen_classes is None else tuple(seen_classes.shape)
        raise ValueError(
            f"`text_class_ids` must count classes from 0 and `seen_classes` must have an entry for each; got ids from "
            f"{least} to {most} and {got} entries."
        )


def _check_prompts(**prompts: Tensor | None) -> None:
    for name, value in prompts.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`{name}` must be a tensor, got {type(value).__name__}: pass everything that "
                '`processor(text=..., return_tensors="pt")` returns.'
            )


def _check_proposals(proposal_logits: Tensor, pixel_values: Tensor) -> Tensor:
    if proposal_logits.ndim != 4 or len(proposal_logits) != len(pixel_values):
        raise ValueError(
            f"`proposal_logits` must be (batch = {len(pixel_values)}, masks, height, width), "
            f"got {tuple(proposal_logits.shape)}."
        )
    return proposal_logits


def _void_probabilities(proposals: Proposals, in_vocab_logits: Tensor | None, out_vocab_logits: Tensor) -> Tensor:
    """(B, Q, 1): the segmenter's, the proposer's, or zero where masks came without a class."""
    if in_vocab_logits is not None:
        return in_vocab_logits.softmax(-1)[..., -1:]
    if proposals.void_probabilities is not None:
        return proposals.void_probabilities
    return torch.zeros_like(out_vocab_logits[..., :1])


MaftPlusModel.register_for_auto_class("AutoModel")
MaftPlusForUniversalSegmentation.register_for_auto_class("AutoModelForUniversalSegmentation")

__all__ = [
    "MaftPlusForUniversalSegmentation",
    "MaftPlusForUniversalSegmentationOutput",
    "MaftPlusModel",
    "MaftPlusModelOutput",
    "MaftPlusPreTrainedModel",
]
