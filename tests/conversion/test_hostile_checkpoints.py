"""Checkpoints that are damaged, odd or hostile: each ends in a CheckpointError that names the file, none hangs."""

import gzip
import json
import os
import signal
import time

import pytest
import torch
from conversion_tools import open_clip_state, tiny_overrides, tiny_state, written
from markdown_it import MarkdownIt
from safetensors.torch import load_file

from maftplus.conversion.checkpoint import STAGING_ENDING, CheckpointError, new_folders, read_state, unwrap
from maftplus.conversion.convert import convert, inspect_checkpoint, plan_conversion
from maftplus.conversion.model_card import code_span
from maftplus.conversion.rename import check_names
from maftplus.conversion.tokenizer import clip_tokenizer_from_bpe

HEADS = {"text_config": {"num_attention_heads": 2}}
WEIGHT = "ln_final.weight"


def convert_clip(folder, state, overrides=HEADS):
    """Convert an OpenCLIP state dict to `out` in `folder`."""
    (folder / "heads.json").write_text(json.dumps(overrides))
    return convert(
        written(folder / "clip.bin", state), folder / "out", config_file=folder / "heads.json", tokenizer="none"
    )


def expanded(tensor):
    return torch.zeros(1).expand(tensor.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: torch.full_like(tensor, float("nan")), "holds 64 values of 64 that are NaN or infinite"),
        (lambda tensor: torch.full_like(tensor, float("inf")), "that are NaN or infinite"),
        (lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64), "infinite in float32"),
        (lambda tensor: tensor.to(torch.int64), "is of type torch.int64"),
        (lambda tensor: tensor.to(torch.int8), "is of type torch.int8"),
        (lambda tensor: tensor.to(torch.uint16), "is of type torch.uint16"),
        (lambda tensor: tensor.bool(), "is of type torch.bool"),
        (lambda tensor: tensor.to(torch.complex64), "is of type torch.complex64"),
        (lambda tensor: tensor.to_sparse(), "is sparse"),
        (lambda tensor: tensor.to("meta"), "has no values"),
        (expanded, "repeats its values"),
        (lambda tensor: tensor[0].clone(), r"has shape \(\)"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(tmp_path, change, message):
    state = open_clip_state()
    state[WEIGHT] = change(state[WEIGHT])
    with pytest.raises(CheckpointError, match=rf"(?s)clip\.bin: .*(ln_final|final_layer_norm)\.weight`.*{message}"):
        convert_clip(tmp_path, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.bin", "heads.json"]


@pytest.mark.parametrize("name", ["token_embedding.weight", "text_projection", "visual.trunk.stem.0.weight"])
def test_a_scalar_where_sizes_are_read_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"clip\.bin: "):
        convert_clip(tmp_path, {**open_clip_state(), name: torch.tensor(1.0)})


@pytest.mark.parametrize(
    "overrides",
    [
        {"text_config": {"num_attention_heads": 2, "hidden_act": "nonsense"}},
        {"text_config": {"num_attention_heads": 0}},
        {"text_config": {"num_attention_heads": "two"}},
        {"text_config": {"num_attention_heads": 2, "hidden_size": 1}},
        {"text_config": None},
        {"text_config": [1]},
        {"vision_config": {"model_type": "nonsense"}},
        {"vision_config": {"num_channels": 0}},
        {"projection_dim": -1},
        {"visual_projection_type": 7},
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(tmp_path, overrides):
    with pytest.raises(CheckpointError, match=r"clip\.bin: "):
        convert_clip(tmp_path, open_clip_state(), overrides)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_cut_anywhere_is_said_to_be_cut(tmp_path, is_zip):
    whole = tmp_path / "whole.pt"
    torch.save({"model": {"a": torch.ones(5), "b": torch.zeros(2)}}, whole, _use_new_zipfile_serialization=is_zip)
    content, cut = whole.read_bytes(), tmp_path / "cut.pt"
    lengths = range(len(content)) if not is_zip else range(0, len(content), 7)
    for length in lengths:
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt: "):
            read_state(cut)


@pytest.mark.parametrize("length", [0, 1, 2, 10, 1000, -1])
def test_a_cut_file_of_merges_is_refused(tmp_path, length):
    merges = "".join(f"a{index} b{index}\n" for index in range(49_000))
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress(f"#version\n{merges}".encode())[:length])
    with pytest.raises(ValueError, match=r"bpe\.txt\.gz: "):
        clip_tokenizer_from_bpe(path)


def test_merges_that_unpack_to_gigabytes_are_refused(tmp_path):
    path = tmp_path / "bpe.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(30):
            file.write(bytes(1_000_000))
    with pytest.raises(ValueError, match=r"bpe\.txt\.gz: holds over 20 MB"):
        clip_tokenizer_from_bpe(path)


def test_a_damaged_tokenizer_folder_is_named(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    (tmp_path / "heads.json").write_text(json.dumps(HEADS))
    checkpoint = written(tmp_path / "clip.bin", open_clip_state())
    with pytest.raises(CheckpointError, match="tokenizer: found no CLIP tokenizer there"):
        convert(checkpoint, tmp_path / "out", config_file=tmp_path / "heads.json", tokenizer=tmp_path / "tokenizer")


def test_a_dictionary_that_contains_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match=r"loop\.pt: found no dictionary of tensors"):
        inspect_checkpoint(written(tmp_path / "loop.pt", content))


def test_wrappers_are_followed_to_a_fixed_depth(tmp_path):
    inner = {"a": torch.ones(1)}
    content = {"state_dict": {"model": {"model_state_dict": inner}}}
    assert unwrap(content, tmp_path) == inner
    for _ in range(10):
        content = {"model": content}
    with pytest.raises(CheckpointError, match="found no dictionary of tensors"):
        unwrap(content, tmp_path)


def test_a_block_number_of_a_million_millions_ends_at_once(tmp_path):
    state = open_clip_state() | {f"transformer.resblocks.{10**12}.ln_1.weight": torch.ones(64)}
    start = time.process_time()
    with pytest.raises(CheckpointError, match="missing `transformer.resblocks"):
        inspect_checkpoint(written(tmp_path / "many.pt", state))
    assert time.process_time() - start < 10


def test_a_gap_in_the_block_numbers_is_noticed_wherever_it_is():
    names = list(open_clip_state())
    for block in (0, 1):
        left = [name for name in names if f"transformer.resblocks.{block}." not in name]
        moved = [name.replace("resblocks.1.", "resblocks.7.") for name in left]
        with pytest.raises(ValueError, match=r"missing `transformer\.resblocks\.[0-7]\."):
            check_names(moved if block == 0 else [*left, "transformer.resblocks.5.ln_1.bias"], "open_clip")


def test_names_without_end_are_refused(tmp_path):
    state = open_clip_state() | {"a" * 100_000: torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"long\.pt: .*longest name has 100000 characters"):
        read_state(written(tmp_path / "long.pt", state))


def start_conversion(out):
    """A process that fills a new folder and never ends; its id."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with new_folders([out]) as folders:
            (folders[0] / "model.safetensors").write_bytes(bytes(1000))
            os.write(writer, b"!")
            time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return child


def test_what_a_killed_conversion_left_is_removed_by_the_next_one(tmp_path):
    child = start_conversion(tmp_path / "out")
    with new_folders([tmp_path / "other"]):  # it is still running: its folder stays
        assert len(list(tmp_path.glob(f".out.*{STAGING_ENDING}"))) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob(f".out.*{STAGING_ENDING}"))) == 1
    (tmp_path / f".mine.1.2{STAGING_ENDING}").touch()
    (tmp_path / ".out.somebody").mkdir()
    with new_folders([tmp_path / "out"]):
        pass
    names = [f".mine.1.2{STAGING_ENDING}", ".out.somebody", "other", "out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_unfinished_folder_of_another_machine_is_left_alone(tmp_path):
    theirs = tmp_path / f".out.elsewhere.{os.getpid() + 1}.abc{STAGING_ENDING}"
    theirs.mkdir()
    with new_folders([tmp_path / "out"]):
        pass
    assert theirs.is_dir()


def test_a_converted_model_holds_finite_floats_whatever_the_originals_precision(tmp_path):
    state = {name: tensor.to(torch.bfloat16) for name, tensor in open_clip_state().items()}
    weights = load_file(convert_clip(tmp_path, state) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["a.pth", "a`b", "``", "<b>", "new\nline # title", "\udcff.pth", "|[x](y)"])
def test_file_names_are_code_in_a_card_whatever_they_hold(name):
    (inline,) = [token for token in MarkdownIt().parse(f"from {code_span(name)}.") if token.type == "inline"]
    kinds = {child.type for child in inline.children}
    assert kinds == {"text", "code_inline"}
    (code,) = [child.content for child in inline.children if child.type == "code_inline"]
    assert code == name.replace("\n", "\ufffd").replace("\udcff", "\ufffd")


def test_the_full_models_plan_is_unchanged_by_the_checks(tmp_path):
    checkpoint = written(tmp_path / "model.pth", {"model": tiny_state()})
    assert plan_conversion(read_state(checkpoint), checkpoint, "semantic", tiny_overrides()).kind == "maftplus"
