"""CLIP's tokenizer for tests: whole where OpenAI's file is at hand, else the few merges that the tests' words need.

`MAFTPLUS_BPE=bpe_simple_vocab_16e6.txt.gz` (or an installed OpenCLIP, or `python tests/text_tools.py fetch`, which
takes the file out of OpenCLIP's wheel and lays it into this environment) gives every test the whole vocabulary. The
excerpt, `clip_merges.txt`, holds a merge a line with its rank; ids are those of the whole vocabulary, for the words
that it was made for and no others. It was made, and is made again when tests need more words, by
`python tests/text_tools.py bpe_simple_vocab_16e6.txt.gz`.
"""

import html
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from functools import cache
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

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
FETCHED = Path(sys.prefix) / BPE_FILE
EXCERPT = Path(__file__).parent / "clip_merges.txt"
RECORDED = Path(__file__).parent / "fixtures" / "text" / "text.json"
WORDS = """cat kitten dog puppy grass sky clouds person man woman tree wall floor table chair car bus train boat water
road building red green blue yellow circle square triangle star cross ring stripe shape a an the of and in small large
medium photo scene this there is"""


class UnknownWords(LookupError):
    """The excerpt of the vocabulary would give words ids that are not CLIP's."""


def load_tokenizer(bpe_path: str | Path | None = None, words: Iterable[str] = (), **kwargs):
    """
    The tokenizer from `bpe_path` or what `find_bpe` finds, else from the excerpt, good for the tests' words.

    Raises:
        UnknownWords: if only the excerpt is there and the texts `words` have other words than it was made for.
    """
    bpe_path = bpe_path or find_bpe()
    if bpe_path:
        return clip_tokenizer_from_bpe(bpe_path, **kwargs)
    tokenizer = _excerpt_tokenizer(**kwargs)
    unknown = sorted(_split(tokenizer.backend_tokenizer, words) - _excerpt_words())
    if unknown:
        raise UnknownWords(
            f"needs CLIP's whole vocabulary: the excerpt in tests/{EXCERPT.name} was not made for "
            f"{', '.join(unknown[:8])}{' and others' * (len(unknown) > 8)}. Set MAFTPLUS_BPE to OpenAI's {BPE_FILE}, "
            "or run `python tests/text_tools.py fetch`."
        )
    return tokenizer


def find_bpe() -> str | None:
    """The whole vocabulary on this machine: `MAFTPLUS_BPE`, the copy in an installed OpenCLIP, or a fetched one."""
    package = importlib.util.find_spec("open_clip")
    copies = [Path(package.origin).with_name(BPE_FILE)] if package else []
    found = [str(copy) for copy in (*copies, FETCHED) if copy.is_file()]
    return os.environ.get("MAFTPLUS_BPE") or next(iter(found), None)


def fetch_bpe(path: Path = FETCHED) -> None:
    """Take OpenAI's file out of OpenCLIP's wheel, which is downloaded and not installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            "open_clip_torch",
        ]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            path.write_bytes(wheel.read(f"open_clip/{BPE_FILE}"))


def _excerpt_tokenizer(**kwargs):
    lines = [line.split() for line in EXCERPT.read_text(encoding="utf-8").splitlines()]
    ids = {token: index for index, token in enumerate(byte_tokens())}
    ids |= {first + second: len(byte_tokens()) + int(rank) for rank, first, second in lines}
    ids |= {START: len(byte_tokens()) + NUM_MERGES, END: len(byte_tokens()) + NUM_MERGES + 1}
    return build_clip_tokenizer(ids, [(first, second) for _, first, second in lines], **kwargs)


def write_excerpt(bpe_path: str | Path) -> None:
    """Every merge that turns the recorded texts and `WORDS` into tokens, in order of rank."""
    words = _split(clip_tokenizer_from_bpe(bpe_path).backend_tokenizer, _excerpt_texts())
    merges = read_all_merges(bpe_path)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    used = sorted({rank for word in words for rank in _used_ranks(word, ranks)})
    EXCERPT.write_text("".join(f"{rank} {' '.join(merges[rank])}\n" for rank in used), encoding="utf-8")


def _excerpt_texts() -> list[str]:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    return [*WORDS.split(), *recorded["prompts"], *(entry["text"] for entry in recorded["tokenizer"])]


@cache
def _excerpt_words() -> frozenset[str]:
    """The words that the excerpt was made for, as the tokenizer splits them."""
    return frozenset(_split(_excerpt_tokenizer().backend_tokenizer, _excerpt_texts()))


def _split(backend, texts: Iterable[str]) -> set[str]:
    """The words of `texts` before byte-pair encoding."""
    texts = [backend.normalizer.normalize_str(html.unescape(html.unescape(text))) for text in texts]
    return {word for text in texts for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)}


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
    fetch_bpe() if sys.argv[1] == "fetch" else write_excerpt(sys.argv[1])
