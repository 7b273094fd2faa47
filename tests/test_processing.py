"""Words: how class names become synonyms, prompts and ids, and what is refused."""

import json
import logging
from contextlib import nullcontext
from inspect import signature

import pytest
import torch
from PIL import Image
from reference_text import check_text
from text_tools import RECORDED, load_tokenizer
from tiny_tools import tiny_model
from transformers import CLIPTextConfig, PreTrainedTokenizerFast

from maftplus import processing_maftplus
from maftplus.conversion.tokenizer import clip_tokenizer_from_bpe
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil, read_picture
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.words_maftplus import (
    VILD_TEMPLATES,
    build_prompts,
    canonical_name,
    class_key,
    find_label_ids,
    parse_classes,
)


@pytest.fixture(scope="module")
def processor():
    return MaftPlusProcessor(MaftPlusImageProcessorPil(), load_tokenizer())


def test_recorded_prompts_flags_and_token_ids_are_met():
    failed = [comparison.name for comparison in check_text(RECORDED) if comparison.ratio > 1]
    assert not failed


def test_a_string_is_cut_at_commas_and_a_list_is_not():
    assert parse_classes(["cat , kitten", ["black, small dog", "puppy"]]) == [
        ["cat", "kitten"],
        ["black, small dog", "puppy"],
    ]


def test_a_string_alone_is_one_class():
    assert parse_classes("cat, kitten") == [["cat", "kitten"]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one"),
        (["cat", " "], "Label 1"),
        (["cat,,dog"], "empty synonym"),
        ([["cat", ""]], "empty synonym"),
        ([[]], "Label 0"),
        (["cat", "dog", "Cat "], "repeats label 0"),
        (["cat, kitten", ["kitten", "cat"]], "repeats label 0"),
        (["rock &amp; sand", "rock & sand"], "repeats label 0"),
        ([3], "Label 0"),
        ([["cat", 3]], "Label 0"),
        (["caf\u00e9", "cafe\u0301"], "repeats label 0"),
        (["cat", "dog \udc80"], "Label 1 .*surrogate"),
        (["cat", "x" * 10_000_000], "Label 1 has 10,000,000 characters"),
        (["cat", ["x" * 1001]], "Label 1 has 1,001 characters"),
        ([",".join(map(str, range(100_001)))], "100,001 synonyms"),
        (["a," * 5_000_000], "5,000,001 synonyms"),
    ],
)
def test_labels_that_cannot_be_told_apart_or_read_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        parse_classes(labels)


def test_two_classes_may_share_a_synonym():
    assert len(parse_classes(["bag", "bag, sack", "sack"])) == 3


def test_stuff_is_found_by_its_first_synonym_or_all_of_them():
    classes = parse_classes(["cat, kitten", "grass, lawn", "sky"])
    assert find_label_ids(classes, ["Sky", "grass,lawn"]) == [1, 2]
    assert find_label_ids(classes, ["grass"]) == [1]
    assert find_label_ids(classes, None) == []


def test_a_class_is_the_same_whatever_the_order_of_its_synonyms():
    classes = parse_classes(["cat, kitten", "grass, lawn"])
    assert find_label_ids(classes, ["lawn, Grass"]) == [1]
    assert find_label_ids(classes, [["kitten", "cat"], "grass"]) == [0, 1]
    assert class_key(["cat", "Kitten "]) == class_key(["kitten", "cat"])


def test_a_name_is_the_same_however_its_letters_are_composed():
    assert canonical_name("Caf\u00e9  au lait") == canonical_name("cafe\u0301 au\tlait") == "caf\u00e9 au lait"
    assert find_label_ids([["caf\u00e9"]], ["cafe\u0301"]) == [0]


def test_a_stuff_label_that_is_not_among_the_labels_is_refused():
    with pytest.raises(ValueError, match="'lawn'"):
        find_label_ids(parse_classes(["cat", "grass, lawn"]), ["lawn"])


def test_prompts_go_class_by_class_synonym_by_synonym_template_by_template():
    prompts = build_prompts([["cat", "kitten"], ["{} dog"]], ["a {}", "the {}."])
    assert prompts.texts == ["a cat", "the cat.", "a kitten", "the kitten.", "a {} dog", "the {} dog."]
    assert prompts.class_ids == [0, 0, 0, 0, 1, 1]
    assert prompts.synonym_ids == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("templates", [None, []])
def test_without_templates_the_name_itself_is_the_prompt(templates):
    assert build_prompts([["cat", "kitten"]], templates).texts == ["cat", "kitten"]


def test_a_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(ValueError, match="a photo"):
        build_prompts([["cat"]], ["a photo"])
    with pytest.raises(ValueError, match="A template has 2,002 characters"):
        build_prompts([["cat"]], ["{}" + "x" * 2000])


def test_prompts_are_padded_to_the_longest_only(processor):
    encoded = processor(text=["cat, kitten", "grass"], return_tensors="pt")
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape
    assert encoded["input_ids"].shape[0] == 3 * len(VILD_TEMPLATES)
    assert encoded["attention_mask"].sum(-1).max() == encoded["input_ids"].shape[1] < 20
    assert encoded["prompt_class_ids"].tolist() == [0] * 28 + [1] * 14
    assert encoded["prompt_synonym_ids"].tolist() == [0] * 14 + [1] * 14 + [2] * 14
    assert "seen_classes" not in encoded


def test_a_row_of_a_batch_of_prompts_is_the_prompt_alone(processor):
    together = processor(text=["a small dog in the grass", "cat"], templates=None, return_tensors="pt")
    alone = processor(text=["cat"], templates=None, return_tensors="pt")
    length = alone["input_ids"].shape[1]
    torch.testing.assert_close(together["input_ids"][1, :length], alone["input_ids"][0])
    assert together["attention_mask"][1, length:].sum() == 0


def test_a_prompt_over_77_tokens_is_cut_with_a_warning_that_names_the_class(processor, caplog):
    with caplog.at_level(logging.WARNING):
        encoded = processor(text=["cat", "dog " * 100], templates=["a {}"], return_tensors="pt")
    assert encoded["input_ids"].shape == (2, 77)
    assert encoded["input_ids"][1, -1] == processor.tokenizer.eos_token_id
    assert "dog dog" in caplog.text
    assert "'cat'" not in caplog.text


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|startoftext|>"])
def test_special_tokens_in_a_label_are_text(processor, name):
    encoded = processor(text=[f"cat {name} dog", "cat dog"], templates=None)
    special = [
        [token for token in row if token in processor.tokenizer.all_special_ids] for row in encoded["input_ids"]
    ]
    ends = [processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id]
    assert special[0] == ends
    assert processor.tokenizer.decode(encoded["input_ids"][0][1:-1]).replace(" ", "") == f"cat{name}dog"


def test_a_fast_tokenizer_of_another_class_takes_special_tokens_for_text_too(processor):
    general = PreTrainedTokenizerFast(
        tokenizer_object=processor.tokenizer.backend_tokenizer,
        **{name: getattr(processor.tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")},
    )
    other = MaftPlusProcessor(processor.image_processor, general)
    text = ["cat <|endoftext|> dog"]
    assert other(text=text)["input_ids"] == processor(text=text)["input_ids"]


def test_a_folder_without_tokenizer_file_is_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        MaftPlusProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({"vocab_size": 49408, "eos_token_id": 49407}, True),
        ({"vocab_size": 49408, "eos_token_id": 2}, True),  # CLIP's old files: the end token is the largest id
        ({"vocab_size": 1000, "eos_token_id": 999}, False),
        ({"vocab_size": 49408, "eos_token_id": 49406}, False),
    ],
)
def test_the_tokenizer_must_be_the_text_towers(processor, fields, is_right):
    with nullcontext() if is_right else pytest.raises(ValueError, match="another model's"):
        processor.check_text_tower(CLIPTextConfig(**{"bos_token_id": 0, "pad_token_id": 1, **fields}))


def test_a_vocabulary_is_stored_only_with_the_text_towers_tokenizer(processor):
    model = tiny_model()
    model.config.clip_config.text_config.eos_token_id = 5
    with pytest.raises(ValueError, match="another model's"):
        model.set_vocabulary(processor, ["cat"])
    with pytest.raises(ValueError, match="another model's"):
        MaftPlusSegmentationPipeline(model=model, processor=processor, task="image-segmentation", device="cpu")


def test_post_processing_says_what_it_takes(processor):
    for name in ("semantic", "instance", "panoptic"):
        ours, theirs = (
            signature(getattr(one, f"post_process_{name}_segmentation")).parameters
            for one in (processor, processor.image_processor)
        )
        assert list(ours) == list(theirs)
        assert [one.default for one in ours.values()] == [one.default for one in theirs.values()]


def test_html_entities_are_read_twice(processor):
    once, twice, plain = (processor(text=[text], templates=None)["input_ids"] for text in ("&lt;", "&amp;lt;", "<"))
    assert once == twice == plain


def test_seen_classes_are_those_that_share_a_synonym_with_a_training_class(processor):
    encoded = processor(
        text=["person, man", "grass", "Sky"], training_classes=["man, boy", "sky"], return_tensors="pt"
    )
    assert encoded["seen_classes"].tolist() == [True, False, True]


def test_pictures_and_words_come_in_one_call(processor):
    picture = Image.new("RGB", (40, 30))
    encoded = processor(images=picture, text=["cat"], return_tensors="pt")
    assert {"pixel_values", "pixel_mask", "input_ids", "prompt_class_ids"} <= set(encoded)
    assert encoded["pixel_values"].shape[:2] == (1, 3)


def test_a_call_without_pictures_and_words_is_refused(processor):
    with pytest.raises(ValueError, match="images"):
        processor()


def test_the_processor_survives_saving(processor, tmp_path):
    saved = MaftPlusProcessor(processor.image_processor, processor.tokenizer, ["a {}"], training_classes=["man, boy"])
    saved.save_pretrained(tmp_path)
    loaded = MaftPlusProcessor.from_pretrained(tmp_path)
    assert loaded.templates == ["a {}"]
    assert loaded.training_classes == [["man", "boy"]]
    assert loaded(text=["cat", "man"])["input_ids"] == saved(text=["cat", "man"])["input_ids"]
    assert loaded(text=["cat", "man"])["seen_classes"] == [False, True]


def test_no_templates_survive_saving(processor, tmp_path):
    MaftPlusProcessor(processor.image_processor, processor.tokenizer, templates=None).save_pretrained(tmp_path)
    assert MaftPlusProcessor.from_pretrained(tmp_path).templates is None
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "MaftPlusProcessor"


def test_ten_thousand_labels_make_prompts_of_their_own_length(processor):
    encoded = processor(text=[f"cat {index}" for index in range(10_001)], templates=None, return_tensors="pt")
    assert encoded["input_ids"].shape[0] == 10_001
    assert encoded["prompt_class_ids"][-1] == 10_000


def test_a_file_that_is_not_the_merges_is_named(tmp_path):
    path = tmp_path / "bpe.txt"
    path.write_text("version\na b\n")
    with pytest.raises(ValueError, match="bpe.txt"):
        clip_tokenizer_from_bpe(path)
    with pytest.raises(ValueError, match="nothing.gz"):
        clip_tokenizer_from_bpe(tmp_path / "nothing.gz")


def test_a_broken_picture_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(ValueError, match="broken.jpg"):
        read_picture(path)
    with pytest.raises(ValueError, match="missing.png"):
        read_picture(str(tmp_path / "missing.png"))


def test_a_picture_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (40, 30))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (30, 40)


def test_words_that_can_only_be_spelt_are_told_in_one_line(processor, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    processing_maftplus.logger.warning_once.cache_clear()
    processor(text=["cat, xqzvwk", "dog"])
    (line,) = [record.message for record in caplog.records if "hardly met" in record.message]
    assert "'xqzvwk'" in line
    assert "cat" not in line
    processor(text=["cat", "dog"])
    assert len([record for record in caplog.records if "hardly met" in record.message]) == 1
