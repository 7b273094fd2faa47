"""`maftplus get`: released models by name, against servers on the loopback that stand in for their sources."""

import errno
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from conversion_tools import full_size_state, open_clip_state, tiny_state, written
from drive_server import routed, serve
from hub_server import point_at, serve_hub
from safetensors.torch import load_file, save_file
from text_tools import load_tokenizer
from tiny_tools import save_tiny
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.conversion.convert import plan_conversion
from maftplus.conversion.get import RELEASES, sha256_of
from maftplus.conversion.registry import DriveFile, HubFile, Release, find_model, home
from maftplus.conversion.released import main_settings, variant_name
from maftplus.train.options import ModelArguments

TINY = Release("tiny", "maftplus", "MAFT+ of width 16", "semantic", "tiny.pth", DriveFile("1a"))
OTHER = Release("tiny-clip", "open_clip", "OpenCLIP of width 16", None, "clip.safetensors", HubFile("laion/tiny"))
PIECE = 1 << 19  # bytes that gdown writes at a time
RECORDED = {
    "maftplus-base": "maft_plus_convnext_base_w_320_semantic171",
    "maftplus-large": "maft_plus_convnext_large_d_320_semantic171",
    "maftplus-large-panoptic": "maft_plus_convnext_large_d_320_panoptic133",
    "maft-vit-b": "maft_v1_vitb16_r101_full",
    "fcclip-large": "fcclip_convnext_large_d_320_panoptic133",
    "clip-convnext-base-w-320": "open_clip_convnext_base_w_320",
    "clip-convnext-large-d-320": "open_clip_convnext_large_d_320",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    load_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder where models are kept; two tiny releases are registered."""
    monkeypatch.setenv("MAFTPLUS_HOME", str(tmp_path / "kept"))
    monkeypatch.setitem(RELEASES, "tiny", TINY)
    monkeypatch.setitem(RELEASES, "tiny-clip", OTHER)
    return tmp_path / "kept"


@pytest.fixture
def drive(tmp_path):
    content = {"model": tiny_state(), "optimizer": {"state": torch.zeros(750_000)}}  # several of gdown's pieces
    with serve(written(tmp_path / "served.pth", content)) as server, routed(server.address):
        yield server


@pytest.fixture
def hub(monkeypatch):
    with serve_hub() as server:
        point_at(server, monkeypatch)
        yield server


def maftplus(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def one_line(output: str) -> str:
    """The error of a command: it must be one line."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert output.strip().endswith(lines[0])
    return lines[0]


# The registry


@pytest.mark.parametrize("name", RECORDED)
def test_the_registry_says_of_a_release_what_its_recorded_names_and_shapes_say(name):
    release, state = RELEASES[name], full_size_state(RECORDED[name])
    conversion = plan_conversion(state, RECORDED[name])
    assert (release.kind, release.task) == (conversion.kind, conversion.task)
    assert release.variant == variant_name(conversion.config, conversion.kind)
    assert release.num_parameters == sum(tensor.numel() for tensor in state.values())
    assert release.settings.items() <= main_settings(conversion.config).items()


def test_the_list_names_every_release_its_licence_and_what_is_unknown(kept):
    code, output = maftplus("get", "--list")
    assert code == 0
    names = ("maftplus-base", "maftplus-large-panoptic", "maft-vit-l", "freeseg", "clip-convnext-large-d-320")
    assert all(name in output for name in names)
    assert "apache-2.0" in output
    assert "unstated" in output
    assert "unknown" in output
    assert "maftplus-large: 15.1 / 36.1 / 21.6 / 59.4 / 96.5; https://drive" in output
    assert "2.9 GB" in output
    assert f"Kept in {kept}" in output


def test_models_are_kept_beside_the_hubs_cache_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("MAFTPLUS_HOME", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert home() == tmp_path / "maftplus"
    monkeypatch.setenv("MAFTPLUS_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"


@pytest.mark.parametrize("command", [("get", "maftplus-lagre"), ("check", "maftplus-lagre")])
def test_an_unknown_name_exits_with_2_and_names_the_nearest(kept, command):
    code, output = maftplus(*command)
    assert code == 2
    assert "did you mean maftplus-large?" in one_line(output)


def test_a_model_without_a_public_link_wants_the_file(kept):
    code, output = maftplus("get", "maftplus-large-panoptic")
    assert code == 2
    assert "maftplus get maftplus-large-panoptic --from maftp_l_pano.pth" in one_line(output)


# Google Drive


def test_a_model_comes_from_drive_through_its_confirmation_page_and_its_name_is_a_model(kept, words, drive, tmp_path):
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 0, output
    assert "every number finite" in output
    assert "not empty on the test picture" in output
    assert sorted(path.name for path in kept.iterdir() if path.name[0] != ".") == ["downloads", "tiny"]
    assert not any((kept / "downloads").iterdir())
    card = (kept / "tiny" / "README.md").read_text()
    assert sha256_of(tmp_path / "served.pth") in card
    assert TINY.source.address in card
    assert find_model("tiny") == str(kept / "tiny")
    assert maftplus("check", "tiny")[0] == 0
    code, output = maftplus("get", "tiny")
    assert code == 0
    assert "is there already" in output


def test_a_transfer_that_is_cut_goes_on_where_it_was(kept, words, drive, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    drive.cuts = [2 * PIECE + 100_000, PIECE + 50_000]
    assert maftplus("get", "tiny", "--tokenizer", words)[0] == 0
    assert drive.starts[0] == 0
    assert drive.starts[-2:] == [2 * PIECE, 3 * PIECE]


def test_a_command_that_gave_up_goes_on_with_what_it_had(kept, words, drive, monkeypatch):
    monkeypatch.setattr("maftplus.conversion.get.RETRIES", 0)
    drive.cuts = [2 * PIECE + 100_000]
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 2
    assert TINY.source.address in one_line(output)
    assert not (kept / "tiny").exists()
    assert maftplus("get", "tiny", "--tokenizer", words, "--keep")[0] == 0
    assert drive.starts[-1] == 2 * PIECE
    original = kept / "downloads" / "tiny" / "tiny.pth"
    assert original.read_bytes() == drive.path.read_bytes()


def test_a_part_that_nothing_can_be_added_to_is_fetched_anew(kept, words, drive):
    folder = kept / "downloads" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.pth12345678.part").write_bytes(drive.path.read_bytes())
    assert maftplus("get", "tiny", "--tokenizer", words)[0] == 0


def test_where_the_network_says_no_one_line_tells_what_to_open_and_how_to_go_on(kept, words, drive):
    drive.has_quota_exceeded = True
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    error = one_line(output)
    assert code == 2
    assert "Too many users" in error
    assert f"Open {TINY.source.address} in a browser, then: maftplus get tiny --from tiny.pth" in error


def test_no_server_at_all_is_one_line_too(kept, words, monkeypatch):
    monkeypatch.setattr("maftplus.conversion.get.RETRIES", 0)
    with routed("http://127.0.0.1:9"):
        code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 2
    assert "maftplus get tiny --from tiny.pth" in one_line(output)


def test_a_missing_extra_is_named(kept, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    monkeypatch.setitem(sys.modules, "gdown.exceptions", None)
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 2
    assert 'pip install "maftplus[get]"' in one_line(output)


def test_a_web_page_in_place_of_the_file_is_refused_and_removed(kept, words, drive):
    drive.path.write_text("<!DOCTYPE html><html>Sign in</html>")
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 2
    assert "this is a web page" in one_line(output)
    assert TINY.source.address in output
    assert not any((kept / "downloads" / "tiny").iterdir())
    assert not (kept / "tiny").exists()


def test_the_checkpoint_of_another_model_is_refused_named_and_kept_until_it_is_removed(kept, words, drive):
    torch.save(open_clip_state(), drive.path)
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    error = one_line(output)
    assert code == 2
    assert "this is OpenCLIP of width 16; tiny is MAFT+ of width 16, semantic" in error
    assert "maftplus get tiny-clip --from" in error
    assert not (kept / "tiny").exists()
    assert (kept / "downloads" / "tiny" / "tiny.pth").is_file()
    assert maftplus("get", "tiny", "--remove")[0] == 0
    assert not (kept / "downloads" / "tiny").exists()
    code, output = maftplus("get", "tiny", "--remove")
    assert code == 2
    assert "nothing of this model" in one_line(output)


def test_room_is_looked_at_before_the_transfer_goes_on(kept, words, drive, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
    code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 2
    assert "GB are needed, 0.00 GB are free" in one_line(output)
    assert not (kept / "tiny").exists()


def test_a_disk_that_fills_up_ends_in_one_line_and_what_was_fetched_stays(kept, words, drive, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("maftplus.conversion.get._follow", full)
        code, output = maftplus("get", "tiny", "--tokenizer", words)
    assert code == 2
    assert "No space left on device" in one_line(output)
    assert [path.suffix for path in (kept / "downloads" / "tiny").iterdir()] == [".part"]
    assert maftplus("get", "tiny", "--tokenizer", words)[0] == 0


# A file at hand, and what the check finds


def test_a_file_at_hand_needs_no_network_and_stays(kept, words, tmp_path):
    path = written(tmp_path / "mine.pth", tiny_state())
    code, output = maftplus("get", "tiny", "--from", path, "--tokenizer", words)
    assert code == 0, output
    assert path.is_file()
    assert (kept / "tiny" / "config.json").is_file()
    assert not (kept / "downloads").exists()


def test_a_configuration_that_is_not_the_published_one_is_refused(kept, words, tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASES, "tiny", replace(TINY, settings={"num_queries": 100}))
    path = written(tmp_path / "mine.pth", tiny_state())
    code, output = maftplus("get", "tiny", "--from", path, "--tokenizer", words)
    assert code == 2
    assert "num_queries is 10, not 100" in one_line(output)
    assert not (kept / "tiny").exists()


def test_a_checksum_that_is_another_is_told_not_refused(kept, words, tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASES, "tiny", replace(TINY, sha256="0" * 64))
    path = written(tmp_path / "mine.pth", tiny_state())
    code, output = maftplus("get", "tiny", "--from", path, "--tokenizer", words)
    assert code == 0
    assert f"odd   checksum: SHA-256 {sha256_of(path)}" in output


def test_a_number_that_is_none_fails_the_check(tmp_path):
    folder = save_tiny(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code, output = maftplus("check", folder)
    assert code == 1
    assert f"wrong tensors: 1 of {len(tensors)} hold NaN or infinity, such as {name}" in output


def test_the_shipped_model_has_a_name_and_an_odd_text_tower(kept):
    code, output = maftplus("check", "shapes")
    assert code == 0
    assert "ok    tensors" in output
    assert "ok    masks" in output
    assert "odd   sentences" in output
    code, output = maftplus("get", "shapes")
    assert code == 0
    assert "comes with the package" in output


def test_a_released_name_that_is_not_there_says_how_to_get_it(kept, tmp_path):
    code, output = maftplus("segment", tmp_path / "no.png", "--model", "maftplus-large", "--out", tmp_path / "out")
    assert code == 2
    assert "`maftplus get maftplus-large` fetches it" in one_line(output)


# The Hub


def test_openclips_weights_come_from_the_hub_and_go_on_where_they_were_cut(kept, words, hub, tmp_path):
    save_file(open_clip_state(), tmp_path / "clip.safetensors")
    content = (tmp_path / "clip.safetensors").read_bytes()
    hub.repositories["laion/tiny"] = {"open_clip_model.safetensors": content, "README.md": b"CLIP"}
    hub.cuts = [1000]
    code, output = maftplus("get", "tiny-clip", "--tokenizer", words)
    assert code == 0, output
    assert "two halves of the test picture have finite embeddings of their own" in output
    assert (kept / "tiny-clip" / "model.safetensors").is_file()


def test_a_hub_that_does_not_know_the_repository_is_one_line(kept, words, hub):
    code, output = maftplus("get", "tiny-clip", "--tokenizer", words)
    error = one_line(output)
    assert code == 2
    assert "https://huggingface.co/laion/tiny" in error
    assert "maftplus get tiny-clip --from clip.safetensors" in error


def test_offline_is_said_with_what_to_open(kept, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, output = maftplus("get", "tiny-clip", "--tokenizer", words)
    assert code == 2
    assert "Open https://huggingface.co/laion/tiny" in one_line(output)


LOADED_BY_NAME = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "maftplus":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
from PIL import Image
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="user/tiny", trust_remote_code=True)
picture = Image.fromarray(np.zeros((50, 70, 3), dtype=np.uint8))
assert segmenter(picture, candidate_labels=["cat", "dog"], subtask="semantic")
assert "maftplus" not in sys.modules
print("loaded", type(segmenter).__name__)
"""


def test_a_model_pushed_to_a_hub_loads_by_its_name_in_a_process_without_the_package(hub, tmp_path):
    from maftplus import MaftPlusForUniversalSegmentation, MaftPlusProcessor

    folder = save_tiny(tmp_path / "model")
    MaftPlusForUniversalSegmentation.from_pretrained(folder).push_to_hub("user/tiny", token="hf_none")
    MaftPlusProcessor.from_pretrained(folder).push_to_hub("user/tiny", token="hf_none")
    assert {"model.safetensors", "config.json", "modeling_maftplus.py"} <= set(hub.repositories["user/tiny"])
    cleared = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment = {**cleared, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOADED_BY_NAME]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "loaded MaftPlusSegmentationPipeline", result.stderr
    assert ("GET", "user/tiny", "model.safetensors") in hub.asked


def test_a_name_is_a_model_for_training_too_and_folders_and_hub_names_stay_what_they_are(kept, tmp_path, monkeypatch):
    arguments = ModelArguments(model_name_or_path="shapes", tokenizer_name_or_path="bytes")
    assert arguments.model_name_or_path == find_model("shapes")
    assert arguments.tokenizer_name_or_path == "bytes"
    with pytest.raises(ValueError, match="maftplus get clip-convnext-base-w-320"):
        ModelArguments(clip_name_or_path="clip-convnext-base-w-320")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "maftplus-base")
    assert [find_model(name) for name in ("user/name", "maftplus-base")] == ["user/name", "maftplus-base"]
