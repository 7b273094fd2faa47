"""Stages of the shapes world's trainings: done once, never half, and nothing that others made is removed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from maftplus.shapes import evaluate, make_model, none_of_these, pretrain, unseen_words
from maftplus.shapes.scenes import export_coco_panoptic
from maftplus.shapes.stages import MARKER, finished_settings, run_stage, train_to_the_end

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder, text):
    (folder / "result.txt").write_text(text)


def test_a_finished_stage_is_not_repeated(tmp_path):
    run_stage(tmp_path / "stage", {"seed": 0}, lambda: write(tmp_path / "stage", "first"))
    run_stage(tmp_path / "stage", {"seed": 0}, lambda: write(tmp_path / "stage", "second"))
    assert (tmp_path / "stage" / "result.txt").read_text() == "first"


def test_other_settings_mean_another_run_and_no_file_of_the_old_one(tmp_path):
    folder = tmp_path / "stage"
    run_stage(folder, {"seed": 0}, lambda: (folder / "old.txt").touch())
    assert run_stage(folder, {"seed": 1}, lambda: write(folder, "new")) == {"seed": 1}
    assert sorted(path.name for path in folder.iterdir()) == ["result.txt", MARKER]
    assert finished_settings(folder) == {"seed": 1}


def test_a_stage_that_was_stopped_runs_again(tmp_path):
    folder = tmp_path / "stage"

    def stop():
        write(folder, "half")
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_stage(folder, {"seed": 0}, stop)
    assert finished_settings(folder) is None
    run_stage(folder, {"seed": 0}, lambda: write(folder, "whole"))
    assert (folder / "result.txt").read_text() == "whole"


def test_a_folder_that_no_stage_made_is_refused_and_left_alone(tmp_path):
    write(tmp_path, "mine")
    with pytest.raises(ValueError, match="nothing here made it"):
        run_stage(tmp_path, {}, lambda: None)
    with pytest.raises(ValueError, match="nothing here made it"):
        export_coco_panoptic(tmp_path, "train", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]


def test_settings_are_compared_as_files_hold_them(tmp_path):
    for _ in range(2):
        run_stage(tmp_path / "stage", {"layout": (1, 2), "data": tmp_path, 3: None}, lambda: None)
    assert finished_settings(tmp_path / "stage") == {"layout": [1, 2], "data": str(tmp_path), "3": None}


@pytest.mark.parametrize("stopped", [False, True])
def test_after_sigterm_no_model_is_saved_and_the_exit_code_says_so(stopped):
    saved = []
    trainer = SimpleNamespace(
        train=lambda: None,
        save_model=lambda: saved.append(True),
        sigterm=SimpleNamespace(received=stopped),
        args=SimpleNamespace(output_dir="runs/x"),
    )
    if not stopped:
        train_to_the_end(trainer)
        assert saved
        return
    with pytest.raises(SystemExit) as stop:
        train_to_the_end(trainer)
    assert (stop.value.code, saved) == (143, [])


def test_another_seed_in_the_same_work_folder_pre_trains_again(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(pretrain, "pretrain", lambda recipe, *others: seeds.append(recipe["seed"]))
    for seed in (0, 0, 1):
        assert make_model.make_clip(tmp_path, seed)["recipe"]["seed"] == seed
    assert seeds == [0, 1]


def test_another_seed_in_the_same_work_folder_makes_the_whole_chain_again(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(pretrain, "pretrain", lambda *given: None)
    monkeypatch.setattr(make_model, "_train", lambda recipe, options, dropped: runs.append((recipe, options["seed"])))
    for seed in (0, 0, 1):
        make_model.make(tmp_path, seed, num_small=1, num_whole=1)
    recipes = ["shapes_small.yaml", "shapes.yaml", "shapes_words.yaml"]
    assert runs == list(zip(recipes * 2, [0, 0, 7, 1, 1, 8]))


def test_linking_code_keeps_files_that_are_not_ours(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    (tmp_path / "gone.py").symlink_to(REPOSITORY / "gone.py")
    copy = tmp_path / "words_maftplus.py"
    copy.write_bytes((REPOSITORY / copy.name).read_bytes())
    make_model.link_code(tmp_path)
    assert (tmp_path / "mine.py").read_text() == "x = 1"
    assert not (tmp_path / "gone.py").is_symlink()
    assert copy.resolve() == REPOSITORY / copy.name
    assert (tmp_path / "modeling_maftplus.py").is_symlink()


def test_a_model_is_published_where_links_are_already(tmp_path):
    for _ in range(2):
        make_model.publish(REPOSITORY / "models" / "shapes", tmp_path)
        make_model.link_code(tmp_path)
    assert (tmp_path / "modeling_maftplus.py").resolve() == REPOSITORY / "modeling_maftplus.py"
    assert (tmp_path / "model.safetensors").is_file()


def test_linking_code_refuses_a_module_that_somebody_changed(tmp_path):
    changed = tmp_path / "loss_maftplus.py"
    changed.write_text("mine = True")
    with pytest.raises(ValueError, match="loss_maftplus.py is not a copy"):
        make_model.link_code(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["loss_maftplus.py"]


def test_linking_code_into_the_repository_itself_is_refused(monkeypatch, tmp_path):
    (tmp_path / "modeling_maftplus.py").write_text("")
    monkeypatch.setattr(make_model, "REPOSITORY", tmp_path)
    with pytest.raises(ValueError, match="is this repository itself"):
        make_model.main(["--only_link", "--out", str(tmp_path)])
    assert (tmp_path / "modeling_maftplus.py").is_file()


@pytest.fixture
def msrc(tmp_path):
    """Two pictures in MSRC's form, class 2 (grass) and 4 (cow), and class vectors."""
    for name in ("Images", "newsegmentations_mats"):
        (tmp_path / "msrc" / name).mkdir(parents=True)
    for index in range(6):
        name = f"{index}_s"
        Image.new("RGB", (8, 8)).save(tmp_path / "msrc" / "Images" / f"{name}.jpg")
        content = {"newseg": np.ones((8, 8), np.uint8), "newlabels": np.array([[2]])}
        savemat(tmp_path / "msrc" / "newsegmentations_mats" / f"{name}_GT.mat", content)
    np.save(tmp_path / "vectors.npy", np.eye(171, 512))
    return ["--msrc", str(tmp_path / "msrc"), "--embeddings", str(tmp_path / "vectors.npy")]


def test_unseen_words_keeps_a_data_folder_that_it_did_not_make(msrc, tmp_path):
    data = tmp_path / "out" / "data"
    data.mkdir(parents=True)
    write(data, "mine")
    with pytest.raises(ValueError, match="nothing here made it"):
        unseen_words.main([*msrc, "--output_dir", str(tmp_path / "out")])
    assert (data / "result.txt").read_text() == "mine"


def test_unseen_words_finds_its_recipe_and_seeds_before_it_builds(msrc, tmp_path, monkeypatch):
    class Built(Exception):
        pass

    def build(model_args, data_args, args):
        assert args.max_steps == 7
        raise Built(torch.initial_seed())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unseen_words, "build_trainer", build)
    with pytest.raises(Built, match="^23$"):
        unseen_words.main([*msrc, "--output_dir", "out", "--seed", "23", "--max_steps", "7"])
    assert len(list((tmp_path / "out" / "data" / "images").iterdir())) > 0


def test_the_last_line_of_an_evaluation_is_json(capsys):
    given = ["--split", "validation", "--num_scenes", "2", "--absent_words", "2", "--num_threads", "1"]
    evaluate.main([str(REPOSITORY / "models" / "shapes"), *given])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["split"], figures["num_scenes"], figures["absent_words"]) == ("validation", 2, 2)
    for name in ("seen", "unseen", "novel", "harmonic", "pq", "absent_other_colours", "absent_same_colours"):
        assert 0 <= figures[name] <= 1


def test_no_library_takes_our_evaluate_for_hugging_face_s():
    """A script's folder comes first on `sys.path`, so `import evaluate` in a library would find ours."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import maftplus.shapes.ablation, maftplus.shapes.demo;"
        "print(sorted(m for m, x in sys.modules.items() if not m.startswith(('maftplus', '__main__'))"
        " and (getattr(x, '__file__', None) or '').startswith(sys.argv[1])))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(REPOSITORY / "shapes")], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_absent_words_are_measured_with_and_without_distractors(capsys):
    given = ["--split", "validation", "--num_scenes", "2", "--min_margin", "0", "0.6", "--num_threads", "1"]
    none_of_these.main([str(REPOSITORY / "models" / "shapes"), *given])
    rows = [line.split() for line in capsys.readouterr().out.strip().splitlines()[1:]]
    assert rows[0] == ["distractors", "min_margin", *none_of_these.COLUMNS]
    assert [row[:2] for row in rows[1:]] == [["no", "0.0"], ["no", "0.6"], ["yes", "0.0"], ["yes", "0.6"]]
    assert all(0 <= float(value) <= 100 for row in rows[1:] for value in row[2:])
