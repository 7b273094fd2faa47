"""Labels, synonyms, templates: prompts with one start and one end each, every class present, or a ValueError."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fuzz.targets import Target, refused
from hypothesis import strategies as st
from text_tools import load_tokenizer

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.words_maftplus import find_label_ids, find_seen_classes, parse_classes

ODD = (
    *("<|endoftext|>", "<|startoftext|>", "<|END|>", "[PAD]", "&amp;amp;lt;", "&#0;", "&#xD800;", "&nbsp;", "\u200b"),
    *("\ud800", "cafe\u0301", "caf\xe9", "\xdf", "\u0130", "\x00", "{}", "{0}", "{cat}", "%s", ",", " , ", "\n"),
    *("x" * 1001, "word " * 199, "\U0001f468\u200d\U0001f469", "\u202e", "\u0300" * 50, "cat", "dog", "grass"),
)
NAMES = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.text(st.characters(codec=None), max_size=6))
NAMES = st.one_of(NAMES, st.lists(NAMES, min_size=1, max_size=3).map("".join))
LABELS = st.one_of(NAMES, st.lists(NAMES, max_size=4), st.just(7), st.just(None), st.lists(st.integers(), max_size=1))
TEMPLATES = st.one_of(
    st.none(),
    st.lists(st.sampled_from(["a photo of a {}.", "{}", "{} {}", "{", "}", "{}<|endoftext|>", "{0}"]), max_size=2),
    st.lists(NAMES.map(lambda name: f"{name} {{}}"), max_size=2),
)


@cache
def processor() -> MaftPlusProcessor:
    return MaftPlusProcessor(MaftPlusImageProcessorPil(), load_tokenizer())


def check(case: tuple[list, list, Sequence[str] | None], folder: Path) -> str:
    labels, others, templates = case
    try:
        words = processor()(text=labels, templates=templates)
    except ValueError as error:
        return refused(error, "`text`", "Label ", "The labels", "emplate")
    classes = parse_classes(labels)
    _check_prompts(words, classes, templates)
    _check_names(classes, others)
    return "taken"


def _check_prompts(words, classes: list[list[str]], templates: Sequence[str] | None) -> None:
    tokenizer = processor().tokenizer
    num_prompts = sum(map(len, classes)) * max(1, len(templates or ()))
    assert len(words["input_ids"]) == len(words["prompt_class_ids"]) == num_prompts
    assert sorted(set(words["prompt_class_ids"])) == list(range(len(classes)))
    for ids, mask in zip(words["input_ids"], words["attention_mask"]):
        used = ids[: sum(mask)]
        assert len(used) <= 77
        assert used[0] == tokenizer.bos_token_id
        assert used[-1] == tokenizer.eos_token_id
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(used[1:-1])


def _check_names(classes: list[list[str]], others: list) -> None:
    """A class is found by its synonyms in any order, and shares its own names."""
    backwards = [names[::-1] for names in classes]
    assert find_label_ids(classes, backwards) == list(range(len(classes)))
    assert all(find_seen_classes(classes, classes))
    assert parse_classes(classes) == classes
    try:
        find_label_ids(classes, others)
    except ValueError as error:
        refused(error, "abel", "`text`")


WORDS = Target(
    "words", st.tuples(st.lists(LABELS, max_size=4), st.lists(LABELS, max_size=2), TEMPLATES), check, processor
)
