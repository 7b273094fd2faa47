"""CLIP's tokenizer for tests: whole where OpenAI's file is at hand, else the few merges that the tests' words need.

`MAFTPLUS_BPE=bpe_simple_vocab_16e6.txt.gz` (or an installed OpenCLIP) gives every test the whole vocabulary. The
excerpt, `clip_merges.txt`, holds a merge a line with its rank; ids are those of the whole vocabulary. It was made, and
is made again when tests need more words, by `python tests/text_tools.py bpe_simple_vocab_16e6.txt.gz`.
"""

import html
import importlib.util
import json
import os
import sys
from pathlib import Path

from maftplus.conversion.tokenizer import (
    END,
    NUM_MERGES,
    START,
    build_clip_tokenizer,
    byte_tokens,
    clip_tokenizer_from_bpe,
)
from maftplus.conversion.tokenizer import read_merges as read_all_merges

EXCERPT = Path(__file__).parent / "clip_merges.txt"
RECORDED = Path(__file__).parent / "fixtures" / "text" / "text.json"
WORDS = """cat kitten dog puppy grass sky clouds person man woman tree wall floor table chair car bus train boat water
road building red green blue yellow circle square triangle star cross ring stripe shape a an the of and in small large
medium photo scene this there is"""


def load_tokenizer(bpe_path: str | Path | None = None, **kwargs):
    """The tokenizer from `bpe_path` or what `find_bpe` finds, else from the excerpt, good for the tests' words."""
    bpe_path = bpe_path or find_bpe()
    return clip_tokenizer_from_bpe(bpe_path, **kwargs) if bpe_path else _excerpt_tokenizer(**kwargs)


def find_bpe() -> str | None:
    """The whole vocabulary on this machine: `MAFTPLUS_BPE`, or the copy in an installed OpenCLIP."""
    package = importlib.util.find_spec("open_clip")
    copy = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz") if package else None
    return os.environ.get("MAFTPLUS_BPE") or (str(copy) if copy and copy.is_file() else None)


def _excerpt_tokenizer(**kwargs):
    lines = [line.split() for line in EXCERPT.read_text(encoding="utf-8").splitlines()]
    ids = {token: index for index, token in enumerate(byte_tokens())}
    ids |= {first + second: len(byte_tokens()) + int(rank) for rank, first, second in lines}
    ids |= {START: len(byte_tokens()) + NUM_MERGES, END: len(byte_tokens()) + NUM_MERGES + 1}
    return build_clip_tokenizer(ids, [(first, second) for _, first, second in lines], **kwargs)


def write_excerpt(bpe_path: str | Path) -> None:
    """Every merge that turns the recorded texts and `WORDS` into tokens, in order of rank."""
    backend = clip_tokenizer_from_bpe(bpe_path).backend_tokenizer
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    texts = [*WORDS.split(), *recorded["prompts"], *(entry["text"] for entry in recorded["tokenizer"])]
    texts = [backend.normalizer.normalize_str(html.unescape(html.unescape(text))) for text in texts]
    words = {word for text in texts for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)}
    merges = read_all_merges(bpe_path)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    used = sorted({rank for word in words for rank in _used_ranks(word, ranks)})
    EXCERPT.write_text("".join(f"{rank} {' '.join(merges[rank])}\n" for rank in used), encoding="utf-8")


def _used_ranks(word: str, ranks: dict[tuple[str, str], int]) -> set[int]:
    """Ranks of the merges that byte-pair encoding applies to a word: the lowest there is, wherever it fits."""
    parts, used = [*word[:-1], f"{word[-1]}</w>"], set()
    while pairs := {ranks[pair] for pair in zip(parts, parts[1:]) if pair in ranks}:
        used.add(min(pairs))
        merged = []
        for part in parts:
            if merged and ranks.get((merged[-1], part)) == min(pairs):
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return used


if __name__ == "__main__":
    write_excerpt(sys.argv[1])
