"""What words are to the network (`Vocabulary`), and how they classify masks: transfer, similarity, synonyms, ensemble.

Sources: arXiv 2408.00744, "Content-Dependent Transfer" (MAFT+); arXiv 2308.02487, "Method" and "Geometric ensemble"
(FC-CLIP).
Shapes: B images, Q mask queries, K classes (+1 = void, always last), P synonyms (K <= P), D joint space, h x w a
feature map.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_maftplus import MaftPlusConfig
from .layers_maftplus import MaftPlusAttention, can_read_values, sine_position_embedding, to_tokens

MAX_LOGIT_SCALE = 100.0
LOG_FLOOR = 1e-8
# What generic code of transformers passes to any model, and this one does not need.
IGNORED_ARGUMENTS = frozenset({"output_attentions", "output_hidden_states", "return_dict", "return_loss"})


class VocabularyArguments(TypedDict, total=False):
    """
    The words of a call, as every door of the models takes them: prompts, or class embeddings made from them before.

    Args:
        input_ids, attention_mask, prompt_class_ids, prompt_synonym_ids: The prompts that `processor(text=...)` makes;
            see `encode_vocabulary`. Leave them on the CPU: their numbers decide sizes.
        text_embeds (`Tensor` (P, D)), text_class_ids (`Tensor` (P,)): What `encode_vocabulary` returned.
        seen_classes (`Tensor` (K,) bool, *optional*): Classes that training saw (geometric ensemble); an entry for
            each class, so it tells K. Without it K is the largest class id plus one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_class_ids: Tensor
    prompt_synonym_ids: Tensor
    text_embeds: Tensor
    text_class_ids: Tensor
    seen_classes: Tensor


@dataclass
class Vocabulary:
    """
    Encoded classes.

    Args:
        text_embeds (`Tensor` (P, D)): A normalised row a synonym.
        text_class_ids (`Tensor` (P,)): The class of each row, 0 to K-1.
        seen_classes (`Tensor` (K,) bool): Classes that training saw.
    """

    text_embeds: Tensor
    text_class_ids: Tensor
    seen_classes: Tensor

    @property
    def num_classes(self) -> int:
        """K."""
        return self.seen_classes.shape[0]

    def to(self, device: torch.device) -> "Vocabulary":
        """The same on a device."""
        return Vocabulary(*(tensor.to(device) for tensor in vars(self).values()))


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
    """
    Segment maximum: (..., P+1) row logits to (..., K+1) class logits; void, the last row, is a class by itself.

    A class without rows scores minus infinity. A class id of K or more is an error of the device, never void.
    """
    index = text_class_ids.expand(*logits.shape[:-1], -1)
    empty = logits.new_full((*logits.shape[:-1], num_classes), float("-inf"))
    classes = empty.scatter_reduce(-1, index, logits[..., :-1], "amax", include_self=False)
    return torch.cat([classes, logits[..., -1:]], dim=-1)


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
        value = to_tokens(dense_embeds)  # (B, hw, D)
        key = to_tokens(dense_embeds + position)
        text_embeds = text_embeds.expand(batch, -1, -1)
        transferred = self.linear(self.attn(text_embeds, key, value))  # (B, P+1, D)
        if self.form == "semantic":
            return self.layer_norm(text_embeds + transferred)
        return text_embeds + self.layer_norm(transferred)


def only_words(arguments: dict[str, Any]) -> dict[str, Any]:
    """
    The words among the further arguments of a call; those that say nothing (`None`) are left out.

    Raises:
        TypeError: for an argument that does not exist.
    """
    unknown = sorted(arguments.keys() - VocabularyArguments.__annotations__.keys() - IGNORED_ARGUMENTS)
    if unknown:
        raise TypeError(
            f"Unknown arguments {unknown}: words come as {', '.join(VocabularyArguments.__annotations__)}; labels as "
            "`mask_labels` and `class_labels`."
        )
    return {name: value for name, value in arguments.items() if value is not None and name not in IGNORED_ARGUMENTS}


def count_ids(ids: Tensor) -> int:
    """How many things are counted from 0: the largest id plus one; without values (meta) the most there can be."""
    return ids.shape[0] if ids.is_meta else int(ids.max()) + 1


def check_class_embeds(text_embeds: Tensor, text_class_ids: Tensor | None, width: int) -> None:
    """Raise ValueError unless these are `text_embeds` (P, width) with the class of each row, `text_class_ids` (P,)."""
    if text_embeds.ndim != 2 or text_embeds.shape[-1] != width or not text_embeds.shape[0]:
        raise ValueError(
            f"`text_embeds` must be (synonyms, {width}), this model's joint space, got {tuple(text_embeds.shape)}. "
            "Encode the words with this model's `encode_vocabulary`."
        )
    if text_class_ids is None or text_class_ids.shape != text_embeds.shape[:1] or text_class_ids.is_floating_point():
        got = None if text_class_ids is None else (tuple(text_class_ids.shape), text_class_ids.dtype)
        raise ValueError(f"`text_class_ids` must name the class of each of the {len(text_embeds)} rows, got {got}.")


def checked_seen_classes(seen_classes: Tensor | None, class_ids: Tensor) -> Tensor:
    """
    Which classes training saw, (K,) bool; none of them where nobody said so.

    Raises:
        ValueError: for another shape or type, or a class id that has no entry (read on a CPU only).
    """
    if seen_classes is None:
        seen_classes = torch.zeros(count_ids(class_ids), dtype=torch.bool)
    if seen_classes.ndim != 1 or seen_classes.dtype != torch.bool:
        raise ValueError(
            f"`seen_classes` must be (classes,) bool, got {tuple(seen_classes.shape)} of {seen_classes.dtype}."
        )
    if not can_read_values(class_ids):
        return seen_classes
    least, most = int(class_ids.min()), int(class_ids.max())
    if least < 0 or most >= seen_classes.shape[0]:
        raise ValueError(
            f"Class ids must count from 0 and `seen_classes` must have an entry for each class; got ids from {least} "
            f"to {most} and {seen_classes.shape[0]} entries."
        )
    return seen_classes


def check_prompts(**prompts: Tensor | None) -> None:
    """Raise ValueError, naming it, for a part of the prompts that is missing, empty or no tensor."""
    for name, value in prompts.items():
        if isinstance(value, Tensor) and value.shape[:1] == (0,):
            raise ValueError(f"`{name}` is empty: there must be at least one class.")
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`{name}` must be a tensor, got {type(value).__name__}: pass everything that "
                '`processor(text=..., return_tensors="pt")` returns.'
            )


__all__ = [
    "ContentDependentTransfer",
    "Vocabulary",
    "VocabularyArguments",
    "ZeroLinear",
    "check_class_embeds",
    "check_prompts",
    "checked_seen_classes",
    "class_log_probabilities",
    "classification_logits",
    "count_ids",
    "max_over_synonyms",
    "only_words",
]
