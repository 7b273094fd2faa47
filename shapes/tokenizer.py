"""A byte-pair tokenizer learned from captions, in CLIP's form.

`tokenizers`' own trainer did not merge common words of these captions (`LOG.md`), so the merges are counted here.
"""

import re
from collections import Counter

from maftplus.conversion.tokenizer import build_clip_tokenizer, byte_tokens

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = re.compile(r"[a-z]+|[^\sa-z0-9]+")  # as CLIP cuts English before it merges


def train_tokenizer(captions: list[str], vocabulary_size: int = 800, model_max_length: int = 77):
    """
    A byte-pair tokenizer learned from captions, in CLIP's form: it encodes any string, unknown words byte by byte.

    Args:
        captions: Sentences to learn merges from.
        vocabulary_size: At most so many tokens (512 stand for single bytes).
        model_max_length: Longest prompt in tokens, start and end included.
    """
    words = Counter(word for caption in captions for word in WORD.findall(caption.lower()))
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words if word.isascii()}
    merges = []
    while len(merges) < vocabulary_size - 514 and (pair := _most_frequent_pair(spelled, words)):
        merges.append(pair)
        spelled = {word: _merge(parts, pair) for word, parts in spelled.items()}
    tokens = [*byte_tokens(), *("".join(merge) for merge in merges), START, END]
    return build_clip_tokenizer({token: index for index, token in enumerate(tokens)}, merges, model_max_length)


def _most_frequent_pair(spelled: dict[str, list[str]], counts: Counter) -> tuple[str, str] | None:
    pairs = Counter()
    for word, parts in spelled.items():
        for pair in zip(parts, parts[1:]):
            pairs[pair] += counts[word]
    return max(pairs, key=lambda pair: (pairs[pair], pair)) if pairs else None


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
