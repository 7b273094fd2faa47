"""Open-vocabulary segmentation: mask proposals classified by CLIP features under the masks against refined text.

Sources: arXiv 2408.00744, "Content-Dependent Transfer" and "Mask-aware loss" (MAFT+); arXiv 2310.00240, "IP-CLIP
Encoder" (MAFT); arXiv 2308.02487, "Geometric ensemble" (FC-CLIP).
Shapes: B images, Q mask queries, K classes (+1 = void, always last), P synonyms (K <= P), N prompts, D joint space,
C trunk channels, H x W padded input, h x w a feature map.

A call has two halves: `encode_picture` reads the picture and no word, `classify` reads words and what the first half
left. Each may be done once and the other often.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForUniversalSegmentation, PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils.generic import can_return_tuple

from .classifier_maftplus import (
    ContentDependentTransfer,
    Vocabulary,
    VocabularyArguments,
    ZeroLinear,
    check_class_embeds,
    check_prompts,
    checked_seen_classes,
    class_log_probabilities,
    classification_logits,
    count_ids,
    only_words,
)
from .clip_maftplus import MaftPlusCLIPModel
from .configuration_maftplus import MaftPlusConfig
from .layers_maftplus import OnOneDevice, input_sizes, renormalise
from .loss_maftplus import segmentation_losses
from .outputs_maftplus import (
    MaftPlusForUniversalSegmentationOutput,
    MaftPlusModelOutput,
    MaftPlusPicture,
    Proposals,
    Unproposed,
)
from .proposer_maftplus import MaftPlusProposer, init_proposer_weights
from .segmenter_maftplus import MaftPlusSegmenter, init_segmenter_weights
from .towers_maftplus import MaftPlusVisionOutput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class MaftPlusPreTrainedModel(OnOneDevice, PreTrainedModel):
    """Loading, saving and initialisation of the MAFT+ models."""

    config: MaftPlusConfig
    config_class = MaftPlusConfig
    base_model_prefix = "model"
    _keys_to_ignore_on_load_unexpected = [r"^vocabulary_embeds$"]  # the bare network has no stored words
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["MaftPlusConvNextLayer", "MaftPlusDeformableLayer", "MaftPlusMaskDecoderLayer"]

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

        Raises:
            ValueError: for prompts that are no tensors, none at all, or more classes than `seen_classes` has entries.
        """
        prompts = {"prompt_class_ids": prompt_class_ids, "prompt_synonym_ids": prompt_synonym_ids}
        check_prompts(input_ids=input_ids, attention_mask=attention_mask, **prompts)
        device, num_synonyms = self.device, count_ids(prompt_synonym_ids)
        seen_classes = checked_seen_classes(seen_classes, prompt_class_ids)
        class_ids, synonym_ids = prompt_class_ids.to(device), prompt_synonym_ids.to(device)
        features = self.clip.encode_prompts(input_ids, attention_mask)  # (N, D)
        sums = features.new_zeros(num_synonyms, features.shape[-1]).index_add(0, synonym_ids, features)
        return {
            "text_embeds": F.normalize(sums, dim=-1),  # the mean's length does not matter
            "text_class_ids": class_ids.new_zeros(num_synonyms).scatter(0, synonym_ids, class_ids),
            "seen_classes": seen_classes.to(device),
        }

    def gather_vocabulary(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        prompt_class_ids: Tensor | None = None,
        prompt_synonym_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_class_ids: Tensor | None = None,
        seen_classes: Tensor | None = None,
    ) -> Vocabulary:
        """
        The words of a call (`VocabularyArguments`), checked here and nowhere else, on the model's device.

        Raises:
            ValueError: if there are no words, a tensor has the wrong shape, or (read on a CPU only) an id no class.
        """
        if text_embeds is None:
            if input_ids is None:
                raise ValueError(
                    "No vocabulary: pass `text` to the processor (`input_ids`), or `text_embeds` and `text_class_ids` "
                    "from `encode_vocabulary`, store one with `set_vocabulary`, or use MaftPlusSegmentationPipeline, "
                    "which takes `candidate_labels` (transformers' own pipeline class ignores them)."
                )
            return Vocabulary(
                **self.encode_vocabulary(input_ids, attention_mask, prompt_class_ids, prompt_synonym_ids, seen_classes)
            )
        check_class_embeds(text_embeds, text_class_ids, self.config.clip_config.projection_dim)
        seen_classes = checked_seen_classes(seen_classes, text_class_ids)
        return Vocabulary(text_embeds, text_class_ids, seen_classes).to(self.void_embedding.weight.device)

    def encode_picture(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        proposal_logits: Tensor | None = None,
        output_auxiliary_logits: bool = False,
        output_image_embeds: bool = False,
    ) -> MaftPlusPicture:
        """
        Everything that depends on the picture alone; `classify` brings the words.

        Args:
            pixel_values (`Tensor` (B, 3, H, W)): Normalised, padded pictures.
            pixel_mask (`Tensor` (B, H, W), *optional*): 1 on the picture, 0 on padding; only its size is used.
            proposal_logits (`Tensor` (B, Q, h, w), *optional*): Masks from elsewhere, instead of the proposer's; none
                (Q = 0) give outputs without queries.
            output_auxiliary_logits (`bool`): Keep the earlier predictions too.
            output_image_embeds (`bool`): Embed the whole image too.

        Raises:
            ValueError: if a tensor has the wrong shape, or nothing proposes masks.
        """
        unpadded_sizes, padded_sizes = input_sizes(pixel_values, pixel_mask)
        vision = self.clip.encode_image(self.clip_pixel_values(pixel_values))  # the one trunk pass
        picture = MaftPlusPicture(
            dense_embeds=self._embed_dense(vision),
            unpadded_sizes=unpadded_sizes,
            padded_sizes=padded_sizes,
            dense_features=vision.dense_features,
            image_embeds=self.clip.embed_image(vision) if output_image_embeds else None,
        )
        size = tuple(pixel_values.shape[-2:])
        if proposal_logits is None and self.config.has_own_proposer:
            with torch.no_grad():
                maps = self.proposer.encode(self._proposer_pixels(pixel_values, pixel_mask))
            return replace(picture, unproposed=Unproposed(*maps, vision, size))
        proposals = self._propose(pixel_values, pixel_mask, vision, proposal_logits, output_auxiliary_logits)
        return self._with_masks(picture, proposals, vision, size)

    def _with_masks(self, picture, proposals: Proposals, vision, size: tuple[int, int]) -> MaftPlusPicture:
        """The picture with its masks (B, Q, h, w), of the size that its tower reads, and CLIP's embedding of each."""
        mask_logits = self.clip.vision_model.fit_proposals(
            proposals.masks_queries_logits, size, self.config.proposal_align_corners
        )
        return replace(
            picture,
            masks_queries_logits=mask_logits,
            mask_embeds=self.clip.embed_mask_logits(vision, mask_logits),  # (B, Q, D)
            class_embeds=proposals.class_embeds,
            void_probabilities=proposals.void_probabilities,
            auxiliary_masks_queries_logits=proposals.auxiliary_masks_queries_logits,
            auxiliary_class_embeds=proposals.auxiliary_class_embeds,
        )

    def classify(self, picture: MaftPlusPicture, **words: Unpack[VocabularyArguments]) -> MaftPlusModelOutput:
        """
        Class logits of a picture's masks for these words.

        Args:
            picture (`MaftPlusPicture`): What `encode_picture` returned; of a runtime's graph, the first seven fields.
            **words: `VocabularyArguments`.

        Raises:
            ValueError: as `gather_vocabulary`.
            TypeError: for an argument that does not exist.
        """
        return self.classify_picture(picture, self.gather_vocabulary(**only_words(words)))

    def classify_picture(self, picture: MaftPlusPicture, vocabulary: Vocabulary) -> MaftPlusModelOutput:
        """`classify` with words that have been gathered."""
        classes = {"text_class_ids": vocabulary.text_class_ids, "num_classes": vocabulary.num_classes}
        text_embeds = self._append_void(vocabulary.text_embeds)  # (P+1, D)
        picture = self.propose_for_words(picture, text_embeds)
        refined = self._refine(text_embeds, picture)  # (B, P+1, D)
        out_vocab_logits = classification_logits(picture.mask_embeds, refined, self.clip.logit_scale, **classes)
        in_vocab_logits, *auxiliary = [
            classification_logits(embeds, text_embeds, self.segmenter.logit_scale, **classes)
            for embeds in picture.all_class_embeds
        ] or [None]  # (B, Q, K+1) each
        return MaftPlusModelOutput(
            masks_queries_logits=picture.masks_queries_logits,
            in_vocab_logits=in_vocab_logits,
            out_vocab_logits=out_vocab_logits,
            void_probabilities=_void_probabilities(picture, in_vocab_logits),
            mask_embeds=picture.mask_embeds,
            text_embeds=refined,
            text_class_ids=vocabulary.text_class_ids.expand(refined.shape[0], -1),
            dense_features=picture.dense_features,
            image_embeds=picture.image_embeds,
            unpadded_sizes=picture.unpadded_sizes,
            padded_sizes=picture.padded_sizes,
            auxiliary_in_vocab_logits=tuple(auxiliary) or None,
            auxiliary_masks_queries_logits=picture.auxiliary_masks_queries_logits,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        proposal_logits: Tensor | None = None,
        output_auxiliary_logits: bool = False,
        output_image_embeds: bool = False,
        **words: Unpack[VocabularyArguments],
    ) -> MaftPlusModelOutput:
        """
        `encode_picture`, then `classify`; their arguments and errors.

        Args:
            pixel_values, pixel_mask, proposal_logits, output_auxiliary_logits, output_image_embeds:
                See `encode_picture`.
            **words: See `VocabularyArguments`.
        """
        vocabulary = self.gather_vocabulary(**only_words(words))
        options = output_auxiliary_logits, output_image_embeds
        picture = self.encode_picture(pixel_values, pixel_mask, proposal_logits, *options)
        return self.classify_picture(picture, vocabulary)

    def clip_pixel_values(self, pixel_values: Tensor) -> Tensor:
        """MAFT shows CLIP the padded picture stretched to a square (released code; no such step in MAFT+)."""
        if self.config.clip_image_size is None:
            return pixel_values
        size = (self.config.clip_image_size,) * 2
        return F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)

    def _propose(self, pixel_values, pixel_mask, vision, proposal_logits, output_auxiliary_logits) -> Proposals:
        if proposal_logits is not None:
            return Proposals.given(proposal_logits, pixel_values.shape[0])
        if self.config.proposer_config is not None:
            return self._propose_externally(pixel_values, pixel_mask)
        if not self.config.has_segmenter:
            raise ValueError(
                "This model has no mask proposer: pass `proposal_logits` (images, masks, height, width), or build it "
                "with a `proposer_config`."
            )
        maps = [feature.detach() for feature in vision.feature_maps]  # the trunk learns from CLIP's losses alone
        output = self.segmenter(maps, output_auxiliary_logits=output_auxiliary_logits)
        return Proposals(
            output.masks_queries_logits,
            class_embeds=output.class_embeds,
            auxiliary_masks_queries_logits=output.auxiliary_masks_queries_logits,
            auxiliary_class_embeds=output.auxiliary_class_embeds,
        )

    def propose_for_words(self, picture: MaftPlusPicture, text_embeds: Tensor) -> MaftPlusPicture:
        """The picture with masks: those of MAFT's own proposer depend on the words, any others are there already."""
        rest = picture.unproposed
        if rest is None:
            return picture
        with torch.no_grad():
            output = self.proposer(rest.mask_features, rest.levels, text_embeds.to(rest.mask_features))
        return self._with_masks(picture, Proposals(output.masks_queries_logits), rest.vision, rest.padded_size)

    @torch.no_grad()
    def _propose_externally(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Proposals:
        output = self.proposer(pixel_values=self._proposer_pixels(pixel_values, pixel_mask))
        void = output.class_queries_logits.softmax(-1)[..., -1:] if self.config.use_proposer_void else None
        return Proposals(output.masks_queries_logits, void_probabilities=void)

    def _proposer_pixels(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """From our normalisation to the proposer's own; the padding is zero in both."""
        config = self.config
        ours = config.image_mean, config.image_std
        its = config.proposer_image_mean or IMAGENET_MEAN, config.proposer_image_std or IMAGENET_STD
        return renormalise(pixel_values, ours, its, pixel_mask).to(next(self.proposer.parameters()).dtype)

    def _embed_dense(self, vision: MaftPlusVisionOutput) -> Tensor | None:
        """What Content-Dependent Transfer looks at, (B, D, h, w)."""
        if self.config.cdt_form == "off":
            return None
        return self.clip.embed_dense(vision, token_order=self.config.cdt_token_order)

    def _append_void(self, text_embeds: Tensor) -> Tensor:
        void = F.normalize(self.void_embedding.weight, dim=-1)
        return torch.cat([text_embeds.to(void), void])

    def _refine(self, text_embeds: Tensor, picture: MaftPlusPicture) -> Tensor:
        """Class embeddings (P+1, D) as each image sees them, (B, P+1, D); CDT off: as they are."""
        if self.config.cdt_form == "off":
            return text_embeds.expand(picture.mask_embeds.shape[0], -1, -1)
        return self.cdt(text_embeds, picture.dense_embeds)


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

    def encode_vocabulary(self, **prompts: Tensor) -> dict[str, Tensor]:
        """Class embeddings of `processor(text=...)`, computed once; see `MaftPlusModel.encode_vocabulary`."""
        return self.model.encode_vocabulary(**prompts)

    def encode_picture(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **options: Any
    ) -> MaftPlusPicture:
        """Everything that depends on the picture alone; see `MaftPlusModel.encode_picture`."""
        return self.model.encode_picture(pixel_values, pixel_mask, **options)

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

    def classify(
        self, picture: MaftPlusPicture, **words: Unpack[VocabularyArguments]
    ) -> MaftPlusForUniversalSegmentationOutput:
        """
        Final class scores of a picture's masks for these words, or for the stored vocabulary where there are none.

        Args:
            picture (`MaftPlusPicture`): What `encode_picture` returned.
            **words: `VocabularyArguments`.

        Raises:
            ValueError: as `MaftPlusModel.gather_vocabulary`.
            TypeError: for an argument that does not exist.
        """
        return self._classify(picture, *self._gather_vocabulary(words))

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        proposal_logits: Tensor | None = None,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        loss_counts: Tensor | None = None,
        point_seeds: list[int] | None = None,
        output_auxiliary_logits: bool | None = None,
        **words: Unpack[VocabularyArguments],
    ) -> MaftPlusForUniversalSegmentationOutput:
        """
        `encode_picture`, then `classify`, then the losses.

        Args:
            pixel_values, pixel_mask, proposal_logits: See `MaftPlusModel.encode_picture`.
            mask_labels (`list` of `Tensor` (N, H, W), *optional*): Ground-truth masks of each picture, padded size.
            class_labels (`list` of `Tensor` (N,), *optional*): Their classes; with them the losses are computed.
            loss_counts (`Tensor` (3,), *optional*):
                What the losses are divided by (`count_targets`); default: the counts of this batch.
            point_seeds (`list[int]`, *optional*): Seeds of each picture's random points (exact resumption).
            output_auxiliary_logits (`bool`, *optional*): Earlier predictions too; default: when a loss reads them.
            **words: `VocabularyArguments`; none of them: the stored vocabulary.

        Raises:
            ValueError: if only one of the labels is given, or as in `encode_picture` and `classify`.
            TypeError: for an argument that does not exist.
        """
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("`mask_labels` and `class_labels` go together: pass both, or neither.")
        has_labels = mask_labels is not None
        if output_auxiliary_logits is None:
            output_auxiliary_logits = has_labels and self.config.use_auxiliary_loss
        vocabulary = self._gather_vocabulary(words)
        picture = self.model.encode_picture(
            pixel_values,
            pixel_mask,
            proposal_logits,
            output_auxiliary_logits=output_auxiliary_logits,
            output_image_embeds=has_labels and self.config.distillation_weight > 0,
        )
        outputs = self._classify(picture, *vocabulary)
        if has_labels:
            outputs.loss_dict = self._losses(outputs, mask_labels, class_labels, pixel_mask, loss_counts, point_seeds)
            outputs.loss = sum(outputs.loss_dict.values())
        return outputs

    def _gather_vocabulary(self, words: dict[str, Any]) -> tuple[Vocabulary, Tensor | None]:
        """The words of a call, or the stored ones and which of those are stuff, (K,)."""
        words = only_words(words)
        if words or self.vocabulary_embeds is None:
            return self.model.gather_vocabulary(**words), None
        device, config = self.vocabulary_embeds.device, self.config
        class_ids = torch.tensor(config.prompt_class_ids, device=device)
        seen, stuff = (self._stored_flags(ids) for ids in (config.seen_ids, config.stuff_ids))
        return Vocabulary(self.vocabulary_embeds, class_ids, seen), stuff

    def _stored_flags(self, class_ids: list[int] | None) -> Tensor:
        """Which classes of the stored vocabulary are among `class_ids`, (K,) bool."""
        flags = [index in (class_ids or ()) for index in range(len(self.config.vocabulary))]
        return torch.tensor(flags, device=self.vocabulary_embeds.device)

    def _classify(
        self, picture: MaftPlusPicture, vocabulary: Vocabulary, stuff_classes: Tensor | None
    ) -> MaftPlusForUniversalSegmentationOutput:
        outputs = self.model.classify_picture(picture, vocabulary)
        scores = class_log_probabilities(
            outputs.out_vocab_logits,
            outputs.void_probabilities,
            outputs.in_vocab_logits,
            self._ensemble_weights(vocabulary),
        )
        if stuff_classes is not None:
            stuff_classes = stuff_classes.expand(scores.shape[0], -1)
        return MaftPlusForUniversalSegmentationOutput(
            **outputs, class_queries_logits=scores, stuff_classes=stuff_classes
        )

    def _ensemble_weights(self, vocabulary: Vocabulary) -> Tensor | None:
        """Weight of the out-of-vocabulary score of each class, (K,); `None`: that score alone."""
        alpha, beta = self.config.ensemble_alpha, self.config.ensemble_beta
        return None if (alpha, beta) == (1.0, 1.0) else torch.where(vocabulary.seen_classes, alpha, beta)

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


def _void_probabilities(picture: MaftPlusPicture, in_vocab_logits: Tensor | None) -> Tensor:
    """(B, Q, 1): the segmenter's, the proposer's, or zero where masks came without a class."""
    if in_vocab_logits is not None:
        return in_vocab_logits.softmax(-1)[..., -1:]
    if picture.void_probabilities is not None:
        return picture.void_probabilities
    return picture.mask_embeds.new_zeros(*picture.mask_embeds.shape[:2], 1)


MaftPlusModel.register_for_auto_class("AutoModel")
MaftPlusForUniversalSegmentation.register_for_auto_class("AutoModelForUniversalSegmentation")

__all__ = ["MaftPlusForUniversalSegmentation", "MaftPlusModel", "MaftPlusPreTrainedModel"]
