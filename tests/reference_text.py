"""The recorded words: how class names become synonyms, prompts and token ids (`text/text.json`)."""

import html
import json
from pathlib import Path

from reference_tools import Comparison, compare_equal
from text_tools import find_bpe, load_tokenizer

from maftplus.processing_maftplus import MAX_TOKENS, cut_tokens
from maftplus.words_maftplus import VILD_TEMPLATES, build_prompts, find_seen_classes, parse_classes


def check_text(path: Path, bpe_path: str | None = None) -> list[Comparison]:
    """Compare with a recorded `text.json`; `UnknownWords` where they need the whole vocabulary (text_tools)."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    words = [*recorded["prompts"], *(entry["text"] for entry in recorded["tokenizer"])]
    tokenizer = load_tokenizer(bpe_path, words)
    vocabulary = "whole vocabulary" if bpe_path or find_bpe() else "excerpt of the vocabulary"
    classes = parse_classes(recorded["class_names_test"])
    prompts = build_prompts(classes, recorded["templates"])
    expected = recorded["prompts"]
    seen = find_seen_classes(classes, recorded["class_names_train"])
    texts = [entry["text"] for entry in recorded["tokenizer"]]
    return [
        compare_equal("templates", list(VILD_TEMPLATES), recorded["templates"]),
        compare_equal("num_templates", [len(synonyms) for synonyms in classes], recorded["num_templates"]),
        compare_equal(
            "category_overlapping_mask", [int(flag) for flag in seen], recorded["category_overlapping_mask"]
        ),
        compare_equal("prompts", prompts.texts, [_without_quirk(prompt) for prompt in expected]),
        compare_equal("prompt ids", token_ids(tokenizer, prompts.texts), token_ids(tokenizer, expected)),
        compare_equal(
            f"token ids ({vocabulary})",
            token_ids(tokenizer, texts),
            [entry["ids_trimmed"] for entry in recorded["tokenizer"]],
        ),
    ]


def _without_quirk(prompt: str) -> str:
    """The original leaves a space before a comma in the synonym, we strip it; `prompt ids` shows: no id changes."""
    return " ".join(prompt.replace(" .", ".").split())


def token_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of every text as the processor makes them, padding left out."""
    texts = [html.unescape(html.unescape(text)) for text in texts]
    rows = tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
    return [cut_tokens(row, MAX_TOKENS) for row in rows]
