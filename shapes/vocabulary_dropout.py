"""Teaches a segmenter what void means: a training batch asks for a random part of the vocabulary only.

Trained on all its classes at once, a model never meets an object that nobody asked for, so it gives every object some
word, however wrong. Here objects whose class is left out are no targets: their queries have to choose void. Not part
of the papers; the shapes model needs it, because its users ask for few words.
Shapes: K classes, P synonyms, D joint space, N objects of a picture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class VocabularyDropout:
    """
    Wraps a training collator: half of the batches (`share`) ask for 1 to K - 1 classes, chosen by chance.

    Args:
        collator: Makes batches with `mask_labels`, `class_labels` and `point_seeds`, which seed the choice.
        text_embeds (`Tensor` (P, D)), text_class_ids (`Tensor` (P,)): The whole vocabulary.
        share: Share of the batches that ask for a part only.

    Raises:
        ValueError: if `share` is not in [0, 1].
    """

    def __init__(
        self, collator: Callable[[Sequence], dict], text_embeds: Tensor, text_class_ids: Tensor, share: float = 0.5
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"`share` must lie between 0 and 1, got {share}.")
        self.collator, self.share = collator, share
        self.text_embeds, self.text_class_ids = text_embeds.detach().cpu(), text_class_ids.cpu()
        self.num_classes = int(text_class_ids.max()) + 1

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(samples)
        rng = np.random.default_rng(batch["point_seeds"].tolist())
        if self.num_classes < 2 or rng.random() >= self.share:
            return batch
        asked = np.sort(rng.permutation(self.num_classes)[: rng.integers(1, self.num_classes)])
        return self.ask(batch, torch.from_numpy(asked))

    def ask(self, batch: dict[str, Any], asked: Tensor) -> dict[str, Any]:
        """The batch with the classes `asked` (ascending ids) as its vocabulary, numbered anew from 0."""
        new_ids = torch.full((self.num_classes,), -1)
        new_ids[asked] = torch.arange(len(asked))
        rows = new_ids[self.text_class_ids] >= 0
        labels = [new_ids[ids] for ids in batch["class_labels"]]
        return {
            **batch,
            "mask_labels": [masks[ids >= 0] for masks, ids in zip(batch["mask_labels"], labels)],
            "class_labels": [ids[ids >= 0] for ids in labels],
            "text_embeds": self.text_embeds[rows],
            "text_class_ids": new_ids[self.text_class_ids[rows]],
        }
