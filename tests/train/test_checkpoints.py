"""Checkpoints that count, those that do not, full disks, finished folders, SIGTERM."""

import errno
import json
import logging
import signal

import pytest
import torch
from chaos.killed_while_saving import kill_while_saving
from training_tools import SelfDestruction, make_trainer, save_checkpoints

from maftplus.train.checkpoints import MARKER, checkpoint_fault, disk_errors, last_whole_checkpoint
from maftplus.train.options import parse_arguments
from maftplus.train.run import _make_room, find_checkpoint, save_whole


def resume_options(folder, *more):
    return parse_arguments(["--output_dir", str(folder), *more])[2]


def test_every_checkpoint_ends_with_a_marker_that_lists_its_files(tmp_path):
    save_checkpoints(tmp_path, steps=2)
    listed = json.loads((tmp_path / "checkpoint-2" / MARKER).read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= set(listed)
    assert checkpoint_fault(tmp_path / "checkpoint-2") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", MARKER])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_broken_checkpoint_is_left_out_and_both_are_named(name, how, tmp_path, caplog):
    save_checkpoints(tmp_path, steps=2)
    path = tmp_path / "checkpoint-2" / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING, logger="maftplus.train"):
        found = find_checkpoint(resume_options(tmp_path, "--resume_from_checkpoint", "last"))
    assert found == str(tmp_path / "checkpoint-1")
    assert "checkpoint-2 is left out" in caplog.text
    assert "Going on from" in caplog.text
    make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=found)


def test_without_a_whole_checkpoint_the_error_says_what_is_wrong(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no whole checkpoint: checkpoint-7: it lacks {MARKER}"):
        last_whole_checkpoint(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_taken_by_its_path(tmp_path):
    save_checkpoints(tmp_path, steps=1)
    (tmp_path / "checkpoint-1" / MARKER).unlink()
    path = str(tmp_path / "checkpoint-1")
    assert find_checkpoint(resume_options(tmp_path, "--resume_from_checkpoint", path)) == path


def test_old_checkpoints_go_only_once_the_new_one_counts(tmp_path, monkeypatch):
    save_checkpoints(tmp_path, steps=1)
    monkeypatch.setattr("maftplus.train.trainer.mark_as_whole", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoints(tmp_path, 2, str(tmp_path / "checkpoint-1"), save_total_limit=1)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_the_limit_keeps_the_newest(tmp_path):
    save_checkpoints(tmp_path, steps=3, save_total_limit=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path):
    hits = kill_while_saving(tmp_path, num_kills=2)
    assert hits == 2


def test_what_torch_says_of_a_full_disk_becomes_an_error_with_the_folder():
    with pytest.raises(OSError, match=r"runs/a: a file could not be written"), disk_errors("runs/a"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] PytorchStreamWriter failed writing file data/0")
    with pytest.raises(RuntimeError, match="something else"), disk_errors("runs/a"):
        raise RuntimeError("something else")


def test_a_full_disk_leaves_the_old_model_as_it_was(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    save_whole(trainer, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr(trainer.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_whole(trainer, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not (tmp_path / ".unfinished").exists()


def test_a_folder_with_a_run_is_not_trained_into_without_a_word(tmp_path):
    save_checkpoints(tmp_path, steps=1)
    mine = tmp_path / "checkpoint-9"  # a user's own folder of that name
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="--resume_from_checkpoint last, or start anew with --overwrite_output_dir"):
        _make_room(resume_options(tmp_path))
    _make_room(resume_options(tmp_path, "--resume_from_checkpoint", "last"))
    assert (tmp_path / "checkpoint-1").is_dir()
    _make_room(resume_options(tmp_path, "--overwrite_output_dir"))
    assert not (tmp_path / "checkpoint-1").exists()
    assert (mine / "notes.txt").read_text() == "mine"


def test_after_sigterm_the_shell_sees_143_and_nothing_counts_as_finished(tmp_path, monkeypatch):
    from maftplus.train import run

    def build(*args):
        trainer = make_trainer(tmp_path, max_steps=50)
        trainer.add_callback(SelfDestruction(1, signal.SIGTERM))
        return trainer

    monkeypatch.setattr(run, "build_trainer", build)
    with pytest.raises(SystemExit) as stopped:
        run.main(["--output_dir", str(tmp_path), "--do_train", "--use_cpu"])
    assert stopped.value.code == 143
    assert checkpoint_fault(tmp_path / "checkpoint-2") is None
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "README.md").exists()
