"""CLIP's tokenizer from the byte-pair merges that OpenAI published (`bpe_simple_vocab_16e6.txt.gz`, in any OpenCLIP).

Source: arXiv 2103.00020, section 2.4. The released MAFT and MAFT+ checkpoints carry weights only, so a converted
folder gets its tokenizer from here. The ids equal the recorded ones (`tests/reference_text.py`).
"""

import gzip
import zlib
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
NUM_MERGES = 49152 - 256 - 2  # the file holds more; CLIP was trained with these
CONTEXT_LENGTH = 77
LARGEST_FILE = 20_000_000  # bytes


def clip_tokenizer_from_bpe(path: str | Path, model_max_length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """
    Args:
        path: `bpe_simple_vocab_16e6.txt.gz` or the same, unpacked.
        model_max_length: Longest prompt in tokens, start and end included (77 for every released CLIP).

    Raises:
        ValueError: if the file does not hold CLIP's merges.
    """
    merges = read_merges(path)
    tokens = [*byte_tokens(), *("".join(merge) for merge in merges), START, END]
    return build_clip_tokenizer({token: index for index, token in enumerate(tokens)}, merges, model_max_length)


def build_clip_tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], model_max_length: int = CONTEXT_LENGTH
) -> CLIPTokenizer:
    """CLIP's tokenizer from `{token: id}` and merges in order of priority; it pads with the end token."""
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=model_max_length)


def read_merges(path: str | Path) -> list[tuple[str, str]]:
    """The merges that CLIP uses, in order of priority."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; `bpe_simple_vocab_16e6.txt.gz` comes with every OpenCLIP.")
    lines = _read_text(path).split("\n")[1 : NUM_MERGES + 1]  # the first line is the version
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != NUM_MERGES or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{path}: expected a version line and {NUM_MERGES} merges of two tokens; this is not CLIP's.")
    return merges


def _read_text(path: Path) -> str:
    """The file's text, unpacked if need be. Raises ValueError if it is cut short, no text or far too large."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        text = data.decode("utf-8")
    except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cut short or not CLIP's merges ({error}).") from error
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{path}: holds over {LARGEST_FILE // 1_000_000} MB; CLIP's merges take 3 MB.")
    return text


def byte_tokens() -> list[str]:
    """The 512 tokens that stand for single bytes: within a word, then at its end. Ids 0 to 511."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    return characters + [f"{character}</w>" for character in characters]


__all__ = ["build_clip_tokenizer", "byte_tokens", "clip_tokenizer_from_bpe", "read_merges"]
