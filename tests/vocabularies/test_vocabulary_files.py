"""Vocabulary files: what they may hold, what is refused, and how labels come out of them."""

import json

import pytest

import maftplus
from maftplus.vocabularies.files import LARGEST_FILE, available_vocabularies, load_labels, load_vocabulary_file
from maftplus.words_maftplus import find_label_ids, parse_classes


def write_json(path, rows):
    path.write_text(json.dumps({"classes": rows}))
    return path


def write_bytes(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", available_vocabularies())
def test_labels_of_every_shipped_vocabulary_are_what_the_pipeline_takes(name):
    labels, vocabulary = load_labels(name), load_vocabulary_file(name)
    classes = parse_classes(labels["candidate_labels"])
    assert len(classes) == vocabulary.num_labels
    assert find_label_ids(classes, labels["stuff_labels"]) == list(vocabulary.stuff or ())


def test_load_labels_is_public():
    assert maftplus.load_labels("pascal_voc_20")["candidate_labels"][0][0] == "aeroplane"


def test_a_line_is_a_class_with_synonyms_and_a_mark_for_stuff(tmp_path):
    path = write_bytes(tmp_path / "words.txt", b"cat, kitten\r\nstuff: grass, lawn\r\n\r\nStuff:sky\r\n")
    assert load_labels(path) == {
        "candidate_labels": [["cat", "kitten"], ["grass", "lawn"], ["sky"]],
        "stuff_labels": [["grass", "lawn"], ["sky"]],
    }


def test_a_line_may_begin_with_the_class_id(tmp_path):
    vocabulary = load_vocabulary_file(write_bytes(tmp_path / "words.txt", b"7: cat\n 3 :stuff: grass\n"))
    assert (vocabulary.raw_ids, vocabulary.names, vocabulary.stuff) == ((7, 3), ("cat", "grass"), (1,))


def test_synonyms_given_as_a_string_are_split_at_commas_not_into_letters(tmp_path):
    path = write_json(tmp_path / "words.json", [{"name": "cat", "synonyms": "cat, kitten"}])
    assert load_vocabulary_file(path).classes == (("cat", "kitten"),)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "cat", "id": 1}, {"name": "dog", "id": 1}], "class 1 gives the id 1 a second time"),
        ([{"name": "cat"}, {"synonyms": ["dog"]}], "class 1: expected an object with a `name`"),
        ([{"name": "cat", "synonyms": [1]}], "class 0: `synonyms` must be a list of names"),
        ([{"name": "cat", "id": "1"}], "class 0: `id` must be a whole number"),
        ([{"name": "cat", "isthing": 1}, {"name": "dog"}], "class 1: `isthing` is missing"),
        ([{"name": "cat", "isthing": "no"}], "class 0: `isthing` must be true or false"),
        ([{"name": " "}], "class 0: a class has an empty name"),
        ([{"name": "\ud800"}], "class 0: .* half a surrogate pair"),
        ([{"name": "a" * 1001}], "class 0: a name has 1,001 characters"),
        ([], "holds no class"),
        ("cat", "holds no class"),
    ],
)
def test_a_bad_class_of_a_json_file_is_named_with_its_file(tmp_path, rows, message):
    with pytest.raises(ValueError, match=rf"words\.json.*{message}"):
        load_vocabulary_file(write_json(tmp_path / "words.json", rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.json", b'{"classes": [\n{"name": "cat"},,\n]}', r"words\.json, line 2: this is no JSON"),
        ("words.json", b"[" * 100_000, r"words\.json: this JSON is nested too deep"),
        ("words.txt", "cat\n".encode("utf-16"), r"words\.txt is UTF-16"),
        ("words.json", "{}".encode("utf-16"), r"words\.json is UTF-16"),
        ("words.txt", "cat\ncafé\n".encode("latin-1"), r"words\.txt, line 2: not UTF-8"),
        ("words.txt", b"1:cat\ndog\n", r"words\.txt, line 2 gives no id"),
        ("words.txt", b"cat\n" + b"a" * 1001, r"words\.txt, line 2: a name has 1,001 characters"),
        ("words.txt", b"a" * (LARGEST_FILE + 1), r"words\.txt is larger than 10 MB"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_vocabulary_file(write_bytes(tmp_path / name, content))


def test_names_that_differ_in_case_only_are_the_same_name(tmp_path):
    vocabulary = load_vocabulary_file(write_bytes(tmp_path / "words.txt", b"Cat\npuma, cat\n"))
    assert vocabulary.repeated_names() == {"Cat": [0, 1]}
