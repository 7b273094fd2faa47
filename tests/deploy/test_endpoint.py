"""The endpoint's folder and its handler, by the contract of the service."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from endpoint_tools import load_handler, serve
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.deploy.endpoint import write_endpoint
from maftplus.deploy.handler import read_labels, read_parameters

LABELS = ["cat, kitten", "grass", "sky"]


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("endpoint") / "out"
    write_endpoint(model_folder, out)
    return out


@pytest.fixture(scope="module")
def handler(folder):
    return load_handler(folder)


@pytest.fixture(scope="module")
def address(handler):
    with serve(handler) as address:
        yield address


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def png(picture) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def post(address: str, body: bytes, content_type: str, **query):
    """Status and answer."""
    request = Request(f"{address}?{urlencode(query)}", data=body, headers={"Content-Type": content_type})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def post_json(address: str, png: bytes, **parameters):
    body = {"inputs": base64.b64encode(png).decode(), "parameters": parameters}
    return post(address, json.dumps(body).encode(), "application/json")


def test_the_folder_holds_model_handler_and_requirements_and_needs_no_package(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"handler.py", "precision_maftplus.py", "requirements.txt", "config.json", "model.safetensors"} <= names
    assert not [path for path in folder.iterdir() if path.is_symlink()]
    code = "".join(path.read_text() for path in folder.glob("*.py") if path.stem in ("handler", "precision_maftplus"))
    assert "import maftplus" not in code
    assert "from maftplus" not in code


def test_an_exported_folder_asks_for_its_runtime(onnx_folder, tmp_path):
    write_endpoint(onnx_folder, tmp_path / "out")
    assert "maftplus[onnx]" in (tmp_path / "out" / "requirements.txt").read_text()


def test_a_picture_and_words_in_a_query_give_masks_in_base64(address, png):
    status, segments = post(address, png, "image/png", candidate_labels="cat, kitten; grass; sky", subtask="semantic")
    assert status == 200
    assert {segment["label"] for segment in segments} <= {"cat", "grass", "sky"}
    masks = [Image.open(io.BytesIO(base64.b64decode(segment["mask"]))) for segment in segments]
    assert {mask.size for mask in masks} == {(100, 70)}
    assert (sum((np.asarray(mask) > 0).astype(int) for mask in masks) == 1).all()


def test_json_gives_run_lengths_that_coco_reads(address, png):
    parameters = {"candidate_labels": LABELS, "subtask": "semantic", "mask_format": "rle"}
    status, segments = post_json(address, png, **parameters)
    assert status == 200
    assert sum(int(coco_mask.area(segment["mask"])) for segment in segments) == 70 * 100
    _, pictures = post_json(address, png, **{**parameters, "mask_format": "png"})
    for one, other in zip(segments, pictures):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(other["mask"])))) > 0
        np.testing.assert_array_equal(coco_mask.decode(one["mask"]) > 0, mask)


def test_the_answer_is_that_of_the_pipeline(handler, address, picture, png):
    expected = handler.pipe(picture, candidate_labels=LABELS, stuff_labels=["sky"], threshold=0.0)
    _, found = post_json(address, png, candidate_labels=LABELS, stuff_labels=["sky"], threshold="0")
    assert [(one["label"], one["score"]) for one in found] == [(one["label"], one["score"]) for one in expected]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": "much"}, "threshold"),
        ({"threshold": 2}, "threshold"),
        ({"subtask": "depth"}, "subtask"),
        ({"mask_format": "jpeg"}, "mask_format"),
        ({"labels": ["cat"]}, "labels"),
        ({"candidate_labels": "[cat"}, "JSON"),
        ({"candidate_labels": {"cat": 1}}, "candidate_labels"),
        ({"candidate_labels": []}, "class"),
    ],
)
def test_bad_parameters_are_answered_with_400_and_the_reason(address, png, parameters, message):
    status, answer = post_json(address, png, **parameters)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [("no picture", "base64"), ("/etc/hostname", "base64"), ("http://127.0.0.1/a.png", "base64"), (7, "inputs")],
)
def test_what_is_no_picture_is_answered_with_400_and_never_fetched(address, inputs, message):
    status, answer = post(address, json.dumps({"inputs": inputs}).encode(), "application/json")
    assert status == 400
    assert message in answer["error"]


def test_a_damaged_picture_is_answered_with_400(address, png):
    assert post(address, png[: len(png) // 2], "image/png")[0] == 400


def test_labels_come_as_lists_json_or_text_with_semicolons():
    wanted = ["cat, kitten", "grass"]
    for given in (wanted, json.dumps(wanted), "cat, kitten; grass", " cat, kitten ;grass; "):
        assert read_labels("candidate_labels", given) == wanted
    assert read_labels("candidate_labels", 7) == ["7"]


def test_parameters_without_a_value_are_left_out():
    assert read_parameters({"candidate_labels": None, "threshold": None}) == {"mask_format": "png"}


def test_words_are_encoded_once(handler, picture, monkeypatch):
    calls, encode = [], handler.pipe.model.encode_vocabulary
    monkeypatch.setattr(handler.pipe.model, "encode_vocabulary", lambda **words: calls.append(1) or encode(**words))
    for _ in range(3):
        handler({"inputs": picture, "parameters": {"candidate_labels": ["bird", "wall"]}})
    assert len(calls) == 1


def test_clients_at_the_same_time_get_their_own_answers(address, png):
    def ask(index: int) -> bool:
        if index % 10 == 0:
            return post_json(address, png, threshold="x")[0] == 400
        status, segments = post_json(address, png, candidate_labels=[f"word {index}"], subtask="semantic")
        return status == 200 and [segment["label"] for segment in segments] == [f"word {index}"]

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(ask, range(40)))


def test_the_command_writes_the_folder_and_refuses_one_in_use(model_folder, tmp_path):
    arguments = ["endpoint", str(model_folder), str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "out" / "handler.py").is_file()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already" in again.output
    missing = CliRunner().invoke(app, ["endpoint", str(tmp_path / "nothing"), str(tmp_path / "new")])
    assert missing.exit_code == 2
    assert "config.json" in missing.output
