"""Files that people write: vocabularies (JSON, lines), recipes, configuration files, panoptic annotations; damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data_set_tools import mat_bytes
from fuzz.mutations import Damage, damaged, damages
from fuzz.targets import Target, refused
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from maftplus.conversion.convert import read_overrides
from maftplus.train.data.annotations import load_merged_json, read_context_mat
from maftplus.train.data.registry import load_coco_panoptic
from maftplus.train.options import read_recipe
from maftplus.vocabularies.files import FOLDER, load_labels, load_vocabulary_file

SHIPPED = (FOLDER / "pascal_voc_20.json").read_bytes()
LINES = b"0: cat, kitten\n1: stuff: grass, lawn\n2:sky\n3: invalid_class_id\n\xc3\xa9t\xc3\xa9\n"
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("cat, dog")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
ROW_KEYS = st.sampled_from(["name", "id", "synonyms", "isthing", "unseen", "colour"])
ROWS = st.one_of(
    VALUES,
    st.dictionaries(ROW_KEYS, VALUES, max_size=5),
    st.fixed_dictionaries({"name": st.text(max_size=6)}, optional={"id": st.integers(-1, 3), "synonyms": VALUES}),
)
DOCUMENTS = st.one_of(VALUES, st.fixed_dictionaries({"classes": st.lists(ROWS, max_size=4)})).map(json.dumps)
VOCABULARY_FILES = st.one_of(
    st.tuples(st.just(".json"), DOCUMENTS.map(lambda text: text.encode("utf-8", "surrogatepass"))),
    st.tuples(st.just(".json"), damages().map(lambda what: damaged(SHIPPED, what))),
    st.tuples(st.just(".txt"), damages().map(lambda what: damaged(LINES, what))),
    st.tuples(st.sampled_from([".txt", ".json"]), st.binary(max_size=200)),
    st.tuples(st.just(".txt"), st.text(max_size=100).map(lambda text: text.encode())),
    st.tuples(st.just(".txt"), st.text(max_size=40).map(lambda text: text.encode("utf-16"))),
)


def check_vocabulary(case: tuple[str, bytes], folder: Path) -> str:
    ending, content = case
    path = folder / f"words{ending}"
    path.write_bytes(content)
    try:
        vocabulary = load_vocabulary_file(path)
        labels = load_labels(path)
    except (ValueError, OSError) as error:
        return refused(error, path)
    num_labels = len(vocabulary.names)
    assert num_labels == len(vocabulary.classes) == len(set(vocabulary.raw_ids)) == len(labels["candidate_labels"])
    assert all(name.strip() for names in vocabulary.classes for name in names)
    assert all(0 <= index < num_labels for index in (*(vocabulary.stuff or ()), *(vocabulary.unseen or ())))
    return "taken"


RECIPE = b"dataset: folder\nmax_steps: 10\nmodel_config: {num_queries: 8, clip_config: {a: 16}}\nlist: [1, *a]\n"
LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" if n else "a0: &a0 [1, 2]\n" for n in range(12))
YAML = st.one_of(
    damages(least=1).map(lambda what: damaged(RECIPE, what)),
    damages().map(lambda what: damaged(LAUGHS.encode(), what)),
    st.sampled_from([b"a: &a [*a]\n", b"!!python/object/apply:os.getcwd []\n", b"a: !!binary x\n", b"{" * 5000]),
    st.binary(max_size=100),
    VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
)


def check_recipe(content: bytes, folder: Path) -> str:
    """Read as a recipe and, as JSON, as a configuration file."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    outcomes = {_taken(read_recipe, path), _taken(read_overrides, path)}
    return "taken" if "taken" in outcomes else "refused"


def _taken(read: Callable[[Path], Any], path: Path) -> str:
    try:
        read(path)
    except (ValueError, OSError) as error:
        return refused(error, path)
    return "taken"


SEGMENTS = {"id": 1, "category_id": 0, "iscrowd": 0}
PANOPTIC = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [SEGMENTS, {**SEGMENTS, "id": 2}]}],
    "categories": [{"id": 0, "name": "cat", "isthing": 1}],
}


def replaced(document: dict[str, Any], name: str, value: Any) -> bytes:
    return json.dumps({**document, name: value}).encode()


ANNOTATIONS: SearchStrategy[bytes] = st.one_of(
    damages().map(lambda what: damaged(json.dumps(PANOPTIC).encode(), what)),
    st.tuples(st.sampled_from(sorted(PANOPTIC)), VALUES).map(lambda part: replaced(PANOPTIC, *part)),
)


def check_annotations(case: tuple[bytes, list[Damage]], folder: Path) -> str:
    """A panoptic JSON file and its PNG, damaged: samples are read, or refused by the name of one of them."""
    document, what = case
    for name in ("images", "labels"):
        (folder / name).mkdir()
    Image.new("RGB", (6, 4)).save(folder / "images" / "a.png")
    ids = np.ones((4, 6, 3), np.uint8) * np.array([1, 0, 0], np.uint8)
    Image.fromarray(ids).save(folder / "labels" / "a.png")
    png = folder / "labels" / "a.png"
    png.write_bytes(damaged(png.read_bytes(), what))
    (folder / "panoptic.json").write_bytes(document)
    (folder / "words.txt").write_text("cat\n")
    try:
        words = load_vocabulary_file(folder / "words.txt")
        data = load_coco_panoptic(folder / "panoptic.json", folder / "images", folder / "labels", words)
        for index in range(len(data)):
            data[index]
    except (ValueError, OSError) as error:
        return refused(error, folder)
    return "taken"


MAT = mat_bytes("LabelMap", [[1, 2], [3, 0]])
RUNS = {"size": [4, 6], "counts": [3, 5, 16]}
SIZES = st.one_of(VALUES, st.lists(st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**32, 10**12])), max_size=3))
COUNTS = st.one_of(
    VALUES, st.lists(st.integers(-3, 30), max_size=4), st.text("0123456789:;<=>?@ABCo`\ud800", max_size=9)
)
MASKS = st.one_of(VALUES, st.fixed_dictionaries({}, optional={"size": SIZES, "counts": COUNTS}), st.just(RUNS))
IMAGE = {"image_id": 1, "file_name": "a.jpg", "phase": "val", "height": 4, "width": 6}
FIELD = st.tuples(st.sampled_from([*IMAGE, "unknown"]), st.one_of(VALUES, st.sampled_from([0, -1, 10**6, 10**12])))


@st.composite
def merged_files(draw) -> bytes:
    """PASCAL-Context's merged JSON with masks, fields and bytes of any kind."""
    annotation = {"image_id": 1, "category_id": draw(st.one_of(st.just(7), VALUES)), "segmentation": draw(MASKS)}
    image = {**IMAGE, **dict(draw(st.lists(FIELD, max_size=1)))}
    document = {"images": [image], "annos_segmentation": [annotation]}
    return damaged(json.dumps(document).encode(), draw(st.one_of(st.just([]), damages(most=2))))


def check_mat(what: list[Damage], folder: Path) -> str:
    path = folder / "labels.mat"
    path.write_bytes(damaged(MAT, what))
    return _taken(read_context_mat, path)


def check_merged(content: bytes, folder: Path) -> str:
    """Every picture's label map is made, of its size, or the file is refused by name."""
    path = folder / "merged.json"
    path.write_bytes(content)

    def read(path: Path) -> None:
        merged = load_merged_json(path)
        for image_id, image in merged.images.items():
            assert merged.read(image_id).shape == (image["height"], image["width"])

    load_merged_json.cache_clear()
    return _taken(read, path)


VOCABULARIES = Target("vocabularies", VOCABULARY_FILES, check_vocabulary)
RECIPES = Target("recipes", YAML, check_recipe)
ANNOTATION_FILES = Target("annotations", st.tuples(ANNOTATIONS, damages(most=3)), check_annotations)
MAT_FILES = Target("mat_files", damages(least=1), check_mat)
MERGED_FILES = Target("merged_files", merged_files(), check_merged)
