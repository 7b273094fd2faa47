"""The experiment on the papers' claims: pieces that are done once, their figures on disk, rows, table and picture."""

import json

import numpy as np
import pytest
import torch
import yaml

from maftplus.shapes import ablation, pretrain
from maftplus.shapes.ablation import (
    ROWS,
    SEGMENTER,
    TRUTH,
    VIT_ROWS,
    Case,
    chosen_rate,
    missing_pieces,
    plan,
    run_pieces,
    trial_name,
)
from maftplus.shapes.ablation_table import format_clips, format_rows, gains
from maftplus.shapes.captions import caption_scene
from maftplus.shapes.evaluate import evaluate
from maftplus.shapes.scenes import CLASS_NAMES, CLASSES, STUFF_IDS, scenes

LAYOUT = {"size": 64, "num_things": [1, 1], "num_regions": [1, 2]}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
VISION = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
VIT = {
    "model_type": "clip_vision_model",
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 128,
    "intermediate_size": 16,
}


@pytest.fixture
def recipe():
    """The real one with two steps of everything and tiny towers."""
    recipe = yaml.safe_load(ablation.RECIPE.read_text())
    recipe.update(layout=LAYOUT, num_training_scenes=16, num_validation_scenes=2, num_test_scenes=2)
    recipe.update(segmenter_steps=1, row_steps=1, learning_rates=[1e-4, 1e-3])
    stage = {"num_steps": 2, "batch_size": 4, "num_scenes": 8, "learning_rate": 1e-3, "warmup": 1, "weight_decay": 0.0}
    recipe["pretraining"].update(vocabulary_size=300, use_bfloat16=False, judged_on=LAYOUT)
    recipe["pretraining"]["stages"] = [{**stage, "layout": LAYOUT}]
    recipe["pretraining"]["clip_config"] = {"projection_dim": 16, "text_config": TEXT, "vision_config": VISION}
    vit = {**VIT, "intermediate_size": 16, "num_attention_heads": 8, "num_hidden_layers": 2}
    clip = {"projection_dim": 16, "first_masked_layer": 1, "text_config": TEXT, "vision_config": vit}
    recipe["clips"]["vit_image"] = {"proposer": {"max_steps": 1}, "pretraining": {"clip_config": clip}}
    return recipe


@pytest.fixture
def case(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_tokenizer_corpus", lambda seed: list(CLASS_NAMES))  # not thousands of scenes
    return Case("convnext_image", 0, tmp_path / "work", tmp_path / "results", recipe)


def keep_all(case, harmonic=0.5):
    """Figures for every piece of a case, without its models."""
    for name, _ in plan(case):
        case.keep(name, {**dict.fromkeys(("harmonic", "pq", "all"), harmonic), "processor_seconds": 60})


def test_a_finished_piece_is_not_run_again_and_its_models_are_not_needed(case):
    keep_all(case)
    run_pieces([case], minutes=1)
    assert not case.work.exists()
    assert missing_pieces([case]) == []


def test_figures_of_another_recipe_do_not_count(case):
    keep_all(case)
    other = Case(case.clip, 0, case.work, case.results, {**case.experiment, "row_steps": 9})
    assert len(missing_pieces([other])) == len(list(plan(case)))


def test_no_piece_begins_after_the_time_is_over(case, monkeypatch):
    monkeypatch.setattr(ablation, "judge_clip", lambda case: {"all": 1.0})
    run_pieces([case], minutes=-1)
    assert not case.path.exists()


def test_the_learning_rate_is_the_best_of_the_first_seed_s_trials(case):
    row = ROWS[2]
    for rate, quality in ((1e-4, 0.3), (1e-3, 0.6)):
        case.keep(trial_name(row, rate), {"harmonic": 0.0, "pq": quality})
    assert chosen_rate(case.of(seed=2), row.folder) == 1e-3
    assert chosen_rate(case, "start") is None


def test_a_later_seed_without_the_first_one_s_trials_is_refused(case):
    with pytest.raises(ValueError, match="name it among `--seeds`"):
        chosen_rate(case.of(seed=1), ROWS[1].folder)


def test_only_the_first_seed_tries_learning_rates(case):
    assert sum(name.startswith("validation") for name, _ in plan(case)) == 2 * (len(ROWS) - 1)
    assert not any(name.startswith("validation") for name, _ in plan(case.of(seed=1)))


def test_every_folder_of_a_row_that_does_not_train_is_made_by_another():
    for rows in (ROWS, VIT_ROWS):
        made = {"start", *(row.folder for row in rows if row.trains)}
        assert {row.folder for row in rows} == made


def test_a_clip_learns_from_captions_alone_and_is_judged(case):
    figures = ablation.judge_clip(case)
    assert {"all", "spread", "retrieval"} <= figures.keys()
    assert all(0 <= value <= 1 for value in figures.values())


def test_a_row_goes_on_from_the_segmenter_and_is_measured(case):
    name, work = next((name, work) for name, work in plan(case) if name == trial_name(ROWS[4], 1e-3))
    figures = work()
    assert {"harmonic", "pq", "mask_sensitivity", "retrieval"} <= figures.keys()
    assert (case.folder / "cdt_0.001" / "model.safetensors").is_file()


@pytest.fixture
def vit_case(case, monkeypatch):
    """A ViT behind a proposer of few layers."""
    train_proposer_once = ablation.train_proposer_once

    def train_small(recipe, data, out, clip):
        sizes = {"hidden_sizes": [8, 16, 8, 8, 8], "depths": [1, 1, 1, 1, 1], "patch_size": 4}
        recipe = {**recipe, "backbone_config": {**recipe["backbone_config"], **sizes}}
        recipe["model_config"] = {**recipe["model_config"], "decoder_layers": 2, "num_queries": 5}
        return train_proposer_once({**recipe, "per_device_train_batch_size": 2}, data, out, clip)

    monkeypatch.setattr(ablation, "train_proposer_once", train_small)
    return case.of("vit_image")


def test_a_vit_learns_from_captions_alone_and_stands_behind_three_kinds_of_masks(vit_case):
    pieces = dict(plan(vit_case))
    figures = pieces["clip"]()
    assert {"pooled", "pooled_spread", "retrieval"} <= figures.keys()
    trial = pieces[trial_name(VIT_ROWS[3], 1e-3)]()
    assert (vit_case.folder / "distilled_0.001" / "model.safetensors").is_file()
    behind = [pieces[f"test, frozen, pooled patches{masks}"]() for masks in ("", f", {SEGMENTER}", f", {TRUTH}")]
    for figures in (trial, *behind):
        assert all(0 <= figures[name] <= 1 for name in ("retrieval", "pq"))


def test_a_natural_caption_names_at_least_one_thing_and_leaves_something_out():
    drawn = list(scenes("train", 40, size=64, num_things=(1, 2), num_regions=(1, 2)))
    captions = [caption_scene(scene, np.random.default_rng(i), is_natural=True) for i, scene in enumerate(drawn)]
    assert all(any(CLASSES[index].isthing for index in caption.phrase_classes) for caption in captions)
    whole = [len({segment["category_id"] for segment in scene.segments_info}) for scene in drawn]
    assert sum(len(caption.phrases) for caption in captions) < 0.8 * sum(whole)


def test_true_masks_come_as_logits_and_empty_where_another_scene_has_more():
    batch = list(scenes("validation", 4, size=64, num_things=(1, 2), num_regions=(1, 2)))
    logits = ablation.true_proposals(batch)["proposal_logits"]
    for scene, masks in zip(batch, logits):
        num_segments = len(scene.segments_info)
        for segment, mask in zip(scene.segments_info, masks):
            assert torch.equal(mask > 0, torch.from_numpy(scene.segmentation == segment["id"]))
        assert not (masks[num_segments:] > 0).any()


def test_masks_from_elsewhere_reach_the_model():
    asked = []

    class Model:
        def eval(self):
            return self

        def encode_vocabulary(self, **words):
            return {}

        def __call__(self, **inputs):
            asked.append(inputs["proposal_logits"])
            raise StopIteration

    with pytest.raises(StopIteration):
        evaluate(Model(), lambda **_: {}, 1, layout=LAYOUT, propose=ablation.true_proposals)
    assert asked[0].shape[-2:] == (64, 64)


def test_a_gain_is_over_the_control_of_the_same_case(case):
    keep_all(case)
    case.keep("test, mask-aware", {"pq": 0.6})
    finished = [(case.clip, case.seed, case.pieces())]
    assert gains(finished)["mask-aware"] == [(50.0, pytest.approx(10.0))]
    assert gains([("convnext_image", 1, {"clip": {"all": 0.5}})]) == {}


def test_tables_have_mean_and_deviation_over_seeds_and_count_them(case):
    keep_all(case)
    keep_all(case.of(seed=1), harmonic=0.7)
    finished = [(each.clip, each.seed, each.pieces()) for each in (case, case.of(seed=1))]
    row = "| convnext_image: + CDT | - | - | - | 60.0 ± 14.1 | 60.0 ± 14.1 | - | - | - | - | - | 2 |"
    assert row in format_rows(finished)
    assert "| convnext_image | - | 50.0 |" in format_clips(finished[:1])


def test_the_command_shows_what_is_there_and_draws_it(case, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    keep_all(case)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(case.experiment))
    given = ["--recipe", str(path), "--work", str(case.work), "--results", str(case.results), "--seeds", "0"]
    ablation.main([*given, "--only_finished", "--picture", str(tmp_path / "gains.png")])
    assert "convnext_image: control, as long" in capsys.readouterr().out
    assert (tmp_path / "gains.png").stat().st_size < 40_000
    ablation.main([*given, "--plan", "--clips", "convnext_image", "--seeds", "0", "1"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{len(ROWS) + 1} pieces: about")


def test_committed_figures_are_small_and_of_the_recipe_that_is_there(tmp_path):
    experiment = yaml.safe_load(ablation.RECIPE.read_text())
    paths = [path for clip in experiment["clips"] for path in ablation.RESULTS.glob(f"{clip}_?.json")]
    assert paths
    for path in paths:
        clip, seed = path.stem.rsplit("_", 1)
        assert path.stat().st_size < 30_000
        assert json.loads(path.read_text())["recipe"] == Case(clip, int(seed), tmp_path, tmp_path, experiment).recipe


def test_what_one_clip_has_of_its_own_does_not_touch_another_s_figures(case):
    keep_all(case)
    others = {**case.experiment["clips"], "vit_image": {"row_steps": 7}}
    again = Case(case.clip, 0, case.work, case.results, {**case.experiment, "clips": others})
    assert missing_pieces([again]) == []
    assert again.of("vit_image").recipe["row_steps"] == 7


def test_stuff_may_be_left_out_of_a_caption_but_never_all_things():
    rng = np.random.default_rng(0)
    scene = next(scenes("train", 1, size=64, num_things=(1, 1), num_regions=(2, 2)))
    named = [set(caption_scene(scene, rng, is_natural=True).phrase_classes) for _ in range(30)]
    assert any(not classes & set(STUFF_IDS) for classes in named)
    assert all(classes - set(STUFF_IDS) for classes in named)
