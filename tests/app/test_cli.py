"""`maftplus segment`: what it writes, what it prints, and how it fails."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_tools import noise_pixels
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.app.jobs import pictures_of, plan_jobs
from maftplus.app.models import check_model_folder, load_pipeline
from maftplus.deploy.precision import choose_dtype
from maftplus.pictures.files import write_atomically
from maftplus.pictures.overlay import (
    overlay_image,
    segment_colour,
)
from maftplus.pictures.results import write_results
from maftplus.pictures.segments import Segment, label_image
from maftplus.processing_maftplus import MaftPlusSegmentationPipeline
from maftplus.shapes import demo


def noise_picture(seed):
    return Image.fromarray(noise_pixels(seed))


def run(*arguments):
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


def segment(id=1, label_id=0, score=0.5, size=(50, 70), box=(0, 0, 10, 20)):
    mask = np.zeros(size, dtype=bool)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return Segment(id=id, label=f"label {label_id}", label_id=label_id, isthing=True, score=score, mask=mask)


def test_a_picture_becomes_an_overlay_a_label_png_a_json_and_a_table(folder, picture, tmp_path):
    out = tmp_path / "out"
    words = ("--labels", "cat, kitten", "--labels", "grass", "--stuff", "grass")
    result = run(picture, *words, "--task", "instance", "--threshold", 0, "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["one.json", "one_labels.png", "one_overlay.png"]
    document = json.loads((out / "one.json").read_text())
    assert (document["width"], document["height"], document["task"]) == (70, 50, "instance")
    assert document["labels"] == [["cat", "kitten"], ["grass"]]
    assert document["segments"]
    for found in document["segments"]:
        assert set(found) == {
            "id",
            "label",
            "label_id",
            "isthing",
            "score",
            "second_label",
            "second_score",
            "area",
            "bbox",
        }
        assert (found["label"], found["label_id"], found["isthing"]) == ("cat", 0, True)
    assert Image.open(out / "one_labels.png").size == (70, 50)
    assert "cat" in result.output


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_without_labels_the_stored_words_are_used(folder, picture, tmp_path, task):
    result = run(picture, "--task", task, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "one.json").read_text())
    assert {found["label"] for found in document["segments"]} <= {"cat", "grass"}
    assert all(found["isthing"] == (found["label"] == "cat") for found in document["segments"])


def test_a_broken_picture_is_named_the_rest_go_on_and_the_exit_code_is_1(folder, picture, tmp_path):
    (picture.parent / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    whole = (picture.parent / "one.png").read_bytes()
    (picture.parent / "cut.png").write_bytes(whole[: len(whole) // 2])
    missing, out = tmp_path / "missing.png", tmp_path / "out"
    result = run(picture.parent, missing, "--labels", "cat", "--model", folder, "--out", out)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    for name in ("broken.jpg", "cut.png", "missing.png"):
        assert name in result.output.replace("\n", "")
    assert {path.stem.split("_")[0] for path in out.iterdir()} == {"one"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "cat", "--labels", "Cat"], "repeats"),
        (["--labels", ""], "empty"),
        (["--labels", "cat", "--stuff", "dog"], "'dog'"),
        (["--stuff", "dog"], "'dog'"),
        (["--labels", "&nbsp;"], "empty"),
        (["--labels", "cat", "--threshold", "7"], "threshold"),
        (["--labels", "cat", "--threshold", "0.5", "--task", "semantic"], "threshold"),
        (["--labels", "cat", "--device", "bogus"], "bogus"),
        (["--labels", "cat", "--task", "other"], "task"),
    ],
)
def test_bad_words_end_in_a_message_and_write_nothing(folder, picture, tmp_path, arguments, message):
    result = run(picture, *arguments, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_model_folder_that_is_none_is_named(picture, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "nowhere", "no such model folder"), (tmp_path / "empty", "config.json")):
        result = run(picture, "--labels", "cat", "--model", folder)
        assert result.exit_code == 2
        assert message in result.output
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "maftplus"}')
    with pytest.raises(ValueError, match="no weights"):
        check_model_folder(str(tmp_path / "empty"))


def test_results_keep_the_folders_structure_and_never_share_a_name(tmp_path):
    for name in ("a.png", "a.jpg", "deep/a.png", "notes.txt", "out/old_overlay.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    out = tmp_path / "in" / "out"
    jobs = plan_jobs([str(tmp_path / "in"), str(tmp_path / "in" / "a.png")], out)
    stems = [job.stem.relative_to(out).as_posix() for job in jobs]
    assert stems == ["a", "a_2", "deep/a", "a_3"]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no picture"):
        plan_jobs([str(tmp_path)], tmp_path / "out")


@pytest.mark.parametrize("model_type", ["maftplus_clip", "clip"])
def test_a_folder_with_another_kind_of_model_is_refused(folder, picture, tmp_path, model_type):
    shutil.copytree(folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "clip" / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    result = run(picture, "--labels", "cat", "--model", tmp_path / "clip", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"'{model_type}'" in result.output
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: this is no JSON"):
        check_model_folder(str(tmp_path))


def test_weights_that_are_cut_off_or_incomplete_end_in_a_message(folder, picture, tmp_path):
    cut, part = (shutil.copytree(folder, tmp_path / name) for name in ("cut", "part"))
    content = (folder / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "decoder" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, part / "model.safetensors", {"format": "pt"}
    )
    for broken, message in ((cut, "cannot be read"), (part, name)):
        result = run(picture, "--labels", "cat", "--model", broken, "--out", tmp_path / "out")
        assert (result.exit_code, type(result.exception)) == (2, SystemExit)
        assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_missing_is_named(folder):
    for device in ("cuda", "meta"):
        with pytest.raises(ValueError, match=f"--device {device}"):
            load_pipeline(str(folder), device)


def test_a_missing_folder_inside_a_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="models/nope: there is no such model folder"):
        check_model_folder("models/nope")
    check_model_folder("user/name")


def test_a_name_that_is_neither_folder_nor_on_the_hub_ends_in_one_line(picture, tmp_path, monkeypatch):
    def fail(name):
        raise OSError(f"We could not connect to load {name}.\nCheck your connection.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    result = run(picture, "--labels", "cat", "--model", "user/name", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.output.strip().startswith("error: user/name: no model folder here")
    assert len(result.output.strip().splitlines()) == 1


def test_the_demo_writes_what_the_command_writes_and_prints_tables(tmp_path, capsys):
    demo.main(["--out", str(tmp_path), "--num_scenes", "5"])
    printed = capsys.readouterr().out
    names = ["scene.json", "scene.png", "scene_labels.png", "scene_overlay.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    segments = json.loads((tmp_path / "scene.json").read_text())["segments"]
    ids = np.asarray(Image.open(tmp_path / "scene_labels.png"))[..., 0]
    assert set(np.unique(ids)) - {0} == {found["id"] for found in segments} != set()
    assert Image.open(tmp_path / "scene.png").size == ids.shape[::-1]
    for text in ("score", "area", segments[0]["label"], "5 fresh scenes", "harmonic"):
        assert text in printed


def test_a_missing_picture_is_said_to_be_missing(folder, tmp_path):
    result = run(tmp_path / "missing.png", "--labels", "cat", "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "there is no such file" in result.output.replace("\n", " ")
    assert "base64" not in result.output


def test_a_picture_may_be_given_by_its_url(folder, picture, tmp_path, monkeypatch):
    asked = []

    def fetch(url, timeout, max_bytes):
        asked.append(url)
        return picture.read_bytes()

    monkeypatch.setattr("maftplus.reading_maftplus.fetch_bytes", fetch)
    url, out = "https://example.org/pictures/cat.jpg?size=2", tmp_path / "out"
    result = run(url, "--labels", "cat", "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert asked == [url]
    assert json.loads((out / "cat.json").read_text())["image"] == url


def test_folders_give_what_can_be_opened_and_is_not_hidden(tmp_path):
    for name in ("a.png", "b.JPG", "deep/c.webp", ".hidden/d.png", ".e.png", "f.pdf", "g.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in pictures_of(tmp_path, tmp_path / "out")]
    assert found == ["a.png", "b.JPG", "deep/c.webp"]


def test_results_may_go_into_the_pictures_own_folder_again_and_again(folder, picture):
    noise_picture(1).save(picture.parent / "my_labels.png")  # named like a result, and none: it has no JSON
    for _ in range(2):
        result = run(picture.parent, "--labels", "cat", "--model", folder, "--out", picture.parent)
        assert result.exit_code == 0, result.output
    documents = sorted(path.name for path in picture.parent.glob("*.json"))
    assert documents == ["my_labels.json", "one.json"]


def test_label_pictures_hold_ids_in_base_256_and_better_scores_on_top():
    segments = [segment(1, score=0.9), segment(70_000, score=0.4, box=(5, 5, 30, 30))]
    pixels = np.asarray(label_image(segments, (70, 50))).astype(int) @ [1, 256, 65536]
    assert pixels[7, 7] == 1
    assert pixels[20, 20] == 70_000
    assert pixels[40, 60] == 0


def test_area_and_box_of_a_segment_are_in_pixels():
    found = segment(box=(3, 4, 10, 20))
    assert (found.area, found.bbox) == (7 * 16, [4, 3, 16, 7])
    assert segment(box=(0, 0, 0, 0)).bbox == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (700, 500), (500, 700), (20, 900)])
@pytest.mark.parametrize("count", [0, 1, 70])
def test_an_overlay_with_legend_can_be_drawn_for_any_size_and_number(size, count):
    segments = [segment(index + 1, index, size=size[::-1], box=(0, 0, 1 + index, 1 + index)) for index in range(count)]
    sheet = overlay_image(Image.new("RGB", size), segments)
    assert sheet.width >= size[0]
    assert sheet.height >= size[1]
    assert sheet.width * sheet.height > size[0] * size[1]


def test_neighbouring_segments_have_colours_that_differ():
    colours = np.array([segment_colour(index) for index in range(40)], dtype=int)
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 60
    assert len({tuple(colour) for colour in colours}) == 40


def test_a_result_is_never_half_written(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    (tmp_path / "one.json").write_text("old")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "one.json", b"new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_labels_in_any_script_reach_the_json(tmp_path):
    one = segment()
    one.label = "猫"
    write_results(tmp_path / "one", Image.new("RGB", (70, 50)), [one], {})
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))["segments"][0]["label"] == "猫"


@pytest.mark.parametrize("name", ["one.json", "one_labels.png", "one_overlay.png"])
def test_files_of_others_are_never_replaced_unasked(folder, picture, tmp_path, name):
    out, theirs = tmp_path / "out", b'{"my": "notes"}'
    out.mkdir()
    (out / name).write_bytes(theirs)
    arguments = (picture, "--labels", "cat", "--model", folder, "--out", out)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert name in result.output.replace("\n", "")
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_bytes() == theirs
    assert run(*arguments, "--overwrite").exit_code == 0
    assert (out / name).read_bytes() != theirs
    assert run(*arguments).exit_code == 0  # now it is ours


def test_a_picture_is_never_replaced_by_a_result_even_when_asked(folder, picture):
    labels = picture.with_name("one_labels.png")
    noise_picture(1).save(labels)
    before = labels.read_bytes()
    result = run(picture, labels, "--labels", "cat", "--model", folder, "--out", picture.parent, "--overwrite")
    assert result.exit_code == 2
    assert "would replace this picture" in result.output.replace("\n", " ")
    assert labels.read_bytes() == before


def test_results_of_earlier_runs_are_known_by_their_mark_not_by_their_name(picture):
    folder = picture.parent
    write_results(folder / "one", Image.open(picture), [segment()], {})
    noise_picture(1).save(folder / "two_labels.png")
    (folder / "two.json").write_text("{}")
    assert [path.name for path in pictures_of(folder, folder)] == ["one.png", "two_labels.png"]


@pytest.mark.parametrize("error", [KeyError("exif"), TypeError("no"), RuntimeError("codec")])
def test_whatever_a_decoder_raises_the_rest_go_on(folder, picture, tmp_path, monkeypatch, error):
    noise_picture(1).save(picture.with_name("two.png"))

    def read(path, timeout=None):
        if path.endswith("one.png"):
            raise error
        return Image.open(path).convert("RGB")

    monkeypatch.setattr("maftplus.app.segmenting.read_picture", read)
    result = run(picture.parent, "--labels", "cat", "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"one.png: {type(error).__name__}" in result.output.replace("\n", "")
    assert (tmp_path / "out" / "two.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_and_too_little_memory_of_ours_end_the_run(folder, picture, tmp_path, monkeypatch, error):
    def read(path, timeout=None):
        raise error

    monkeypatch.setattr("maftplus.app.segmenting.read_picture", read)
    result = run(picture, "--labels", "cat", "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert "pictures failed" not in result.output


def test_a_picture_that_the_network_cannot_take_does_not_take_its_batch_with_it(
    folder, picture, tmp_path, monkeypatch
):
    for name in ("two", "three"):
        noise_picture(1).save(picture.with_name(f"{name}.png"))
    Image.new("RGB", (33, 34)).save(picture.with_name("bad.png"))
    preprocess = MaftPlusSegmentationPipeline.preprocess

    def refuse(pipe, image, **options):
        if image.size == (33, 34):
            raise RuntimeError("out of memory")
        return preprocess(pipe, image, **options)

    monkeypatch.setattr(MaftPlusSegmentationPipeline, "preprocess", refuse)
    out = tmp_path / "out"
    result = run(picture.parent, "--labels", "cat", "--model", folder, "--out", out, "--batch-size", 3)
    assert result.exit_code == 1
    assert "1 of 4 pictures failed" in result.output
    assert sorted(path.stem for path in out.glob("*.json")) == ["one", "three", "two"]


def test_quiet_prints_errors_only(folder, picture, tmp_path):
    arguments = ("--labels", "cat", "--model", folder, "--out", tmp_path / "out", "--quiet")
    assert run(picture, *arguments).output == ""
    assert "missing.png" in run(picture, tmp_path / "missing.png", *arguments).output


def test_the_network_computes_in_the_precision_asked_for(folder, picture, tmp_path):
    chosen = choose_dtype("cpu")
    for asked, expected in (("auto", chosen), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert load_pipeline(str(folder), "cpu", asked).model.dtype == expected
    options = ("--model", folder, "--out", tmp_path / "out", "--dtype", "bfloat16")
    result = run(picture, "--labels", "cat", *options)
    assert result.exit_code == 0, result.output
    assert "network: torch on cpu, bfloat16" in result.output


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_tokenizer_that_knows_no_word_is_refused_before_any_picture(folder, picture, tmp_path, damage):
    broken = shutil.copytree(folder, tmp_path / "broken")
    tokenizer = broken / "tokenizer.json"
    content = tokenizer.read_bytes()
    tokenizer.unlink()
    if damage != "missing":
        tokenizer.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    result = run(picture, "--labels", "cat", "--model", broken, "--out", tmp_path / "out")
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "tokenizer" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
