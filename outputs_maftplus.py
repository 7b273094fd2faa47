"""What the models return, as dataclasses: a picture without words, the bare network's answer, the whole answer.

Shapes: B images, Q mask queries, K classes (+1 = void, always last), P synonyms, D joint space, C trunk channels,
h x w a feature map.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class Unproposed:
    """
    A picture whose masks wait for words, because MAFT's own proposer reads both.

    Args:
        mask_features (`Tensor` (B, C, h4, w4)), levels (`tuple` of `Tensor` (B, C, h_l, w_l)): What that proposer
            makes of the picture.
        vision (`MaftPlusVisionOutput`): What CLIP makes of it before any mask.
        padded_size (`tuple[int, int]`): Height and width that the masks are brought to.
    """

    mask_features: Tensor
    levels: tuple[Tensor, ...]
    vision: ModelOutput
    padded_size: tuple[int, int]


@dataclass
class MaftPlusPicture(ModelOutput):
    """
    What a picture gives before any word is read (`encode_picture`), for any number of vocabularies (`classify`).

    Args:
        masks_queries_logits (`Tensor` (B, Q, h, w)): Mask logits, > 0 inside; of the padded input. `None`, as
            `mask_embeds`, where masks depend on the words: `unproposed` has what they will be made of.
        mask_embeds (`Tensor` (B, Q, D)): CLIP embeddings of the masks, not normalised.
        class_embeds (`Tensor` (B, Q, D), *optional*): The segmenter's own embeddings of them, not normalised.
        void_probabilities (`Tensor` (B, Q, 1), *optional*): Void by a frozen proposer.
        dense_embeds (`Tensor` (B, D, h, w), *optional*): CLIP embedding of every place, for Content-Dependent
            Transfer; `None` where that is off.
        unpadded_sizes, padded_sizes (`Tensor` (B, 2)): (height, width) of the input before and after padding.
        dense_features (`Tensor`): The trunk's last map (B, C, h, w), or a ViT's hidden states (B, 1 + N, C), with
            gradient (compensation loss). Not needed by `classify`.
        image_embeds (`Tensor` (B, D), *optional*): Whole-image embeddings (self-distillation), when asked for.
        auxiliary_masks_queries_logits, auxiliary_class_embeds (tuple of `Tensor`, *optional*): Earlier predictions,
            learned queries first, when asked for.
        unproposed (`Unproposed`, *optional*): MAFT's own proposer: what `classify` makes the masks of.
    """

    masks_queries_logits: Tensor | None = None
    mask_embeds: Tensor | None = None
    class_embeds: Tensor | None = None
    void_probabilities: Tensor | None = None
    dense_embeds: Tensor | None = None
    unpadded_sizes: Tensor | None = None
    padded_sizes: Tensor | None = None
    dense_features: Tensor | None = None
    image_embeds: Tensor | None = None
    auxiliary_masks_queries_logits: tuple[Tensor, ...] | None = None
    auxiliary_class_embeds: tuple[Tensor, ...] | None = None
    unproposed: Unproposed | None = None

    @property
    def all_class_embeds(self) -> list[Tensor]:
        """`class_embeds` of every prediction, the last one first; none where masks came from elsewhere."""
        return [] if self.class_embeds is None else [self.class_embeds, *(self.auxiliary_class_embeds or ())]


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
        text_class_ids (`Tensor` (B, P)): Class of each of them but void, the same for every picture.
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
    text_class_ids: Tensor | None = None
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

    @classmethod
    def given(cls, proposal_logits: Tensor, batch: int) -> "Proposals":
        """
        Masks that a caller brought.

        Raises:
            ValueError: if `proposal_logits` is not (batch, masks, height, width).
        """
        if proposal_logits.ndim != 4 or proposal_logits.shape[0] != batch:
            raise ValueError(
                f"`proposal_logits` must be (batch = {batch}, masks, height, width), got "
                f"{tuple(proposal_logits.shape)}."
            )
        return cls(proposal_logits)


__all__ = [
    "MaftPlusForUniversalSegmentationOutput",
    "MaftPlusModelOutput",
    "MaftPlusPicture",
    "Proposals",
    "Unproposed",
]
