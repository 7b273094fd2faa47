"""Fine-tuning: presets, the estimate, what is kept of other words, the report, the folder that is left."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from form_tools import make_panoptic
from PIL import Image
from tiny_tools import save_tiny, tiny_config
from training_tools import make_trainer
from transformers import pipeline

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.train.data.registry import SegmentationDataset
from maftplus.train.evaluation.evaluate import Evaluation
from maftplus.train.evaluation.pages import has_truth, worst_pairs
from maftplus.train.finetuning.finetune import Progress, _check_out, _clear_out, choose_mixture, finetune, pick_watched
from maftplus.train.finetuning.kept import Kept, find_others, opinions, stored_vocabulary
from maftplus.train.finetuning.objects import find_objects
from maftplus.train.finetuning.page import write_page
from maftplus.train.finetuning.plan import make_plan, measure_steps
from maftplus.train.finetuning.presets import (
    FinetuneOptions,
    let_segmenter_speak,
    make_arguments,
    training_transforms,
)
from maftplus.vocabularies.files import parse_lines


def write_data(folder: Path, count: int = 10) -> Path:
    """`images/`, `labels/` and names: three bands of grey, a class each."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    labels = np.repeat(np.arange(3), 22)[:64, None].repeat(64, 1).astype(np.uint8)
    for index in range(count):
        Image.fromarray(np.stack([labels * 60 + index] * 3, axis=-1)).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    (folder / "names.txt").write_text("cat, kitten\nstuff: grass\nsky\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "pets")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"), ["dog", "tree"])


def run(data, base, out, **options):
    lines = []
    given = {"max_steps": 2, "use_cpu": True, "image_size": 128, **options}
    return finetune(FinetuneOptions(str(data), out, str(base), **given), lines.append), lines


@pytest.fixture(scope="module")
def finished(data, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pets"
    return (*run(data, base, out, preset="full"), out)


def test_the_model_folder_knows_its_words_and_stuff(finished):
    segmenter = pipeline("image-segmentation", model=str(finished[2] / "model"), trust_remote_code=True)
    config = segmenter.model.config
    assert config.vocabulary == [["cat", "kitten"], ["grass"], ["sky"]]
    assert config.stuff_ids == [1]
    segmenter(Image.new("RGB", (64, 64)))


def test_before_and_after_are_measured_on_pictures_held_out(finished):
    story, lines, out = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert story.before.num_images == story.after.num_images == len(story.form.validation)
    assert set(metrics) >= {"before", "after", "kept", "num_steps", "num_trained", "peak_bytes", "plan"}
    assert any(line.startswith("after: mIoU") for line in lines)


def test_the_end_says_how_the_model_is_used(finished):
    _, lines, out = finished
    assert f"maftplus segment PICTURE --model {out / 'model'}" in lines[-2]
    assert "pipeline(" in lines[-1]


def test_the_report_tells_the_whole_story(finished):
    text = (finished[2] / "report.html").read_text()
    for heading in ("Data", "Training", "Losses on", "On the held-out", "Classes", "Other words", "After: best"):
        assert f"<h2>{heading}" in text, heading
    assert "kitten" not in text.split("<h2>Classes")[1].split("</table>")[0]  # a class goes by its first name


def test_a_model_that_is_worse_than_its_base_is_called_so(finished):
    story = replace(finished[0], before=finished[0].after)
    assert story.worse is None
    right, wrong = np.diag(np.full(4, 9)), np.full((4, 4), 9)
    before, after = replace(story.after, counts=right), replace(story.after, counts=wrong)
    story = replace(story, before=before, after=after)
    assert "mIoU 100.0 before" in story.worse
    assert story.caveats[-1] == story.worse


def test_the_figures_are_said_to_be_chosen_on_the_same_pictures(finished):
    _, lines, out = finished
    chosen = "chosen on these pictures, so the figures flatter"
    assert any(chosen in line for line in lines)
    assert chosen in (out / "report.html").read_text()
    assert chosen in (out / "model" / "README.md").read_text()


def test_no_checkpoint_is_left(finished):
    assert not list(finished[2].glob("checkpoint-*"))


def test_the_card_lists_the_model_s_classes_and_says_what_was_measured(finished):
    card = (finished[2] / "model" / "README.md").read_text()
    assert 'candidate_labels=["cat", "grass", "sky"]' in card
    assert "held out" in card
    assert "# pets\n\nBase model: " in card
    assert f'model="{finished[2] / "model"}"' in card
    assert "- Data: pets (2 of 10 pictures set aside by seed 0), 8 pictures, 3 classes" in card.replace("\\", "")
    assert "```yaml" not in card
    assert "maftplus finetune" in card


def test_a_folder_that_holds_something_is_refused(finished, data, base):
    with pytest.raises(ValueError, match="earlier run"):
        run(data, base, finished[2], preset="full")


def test_files_of_others_are_never_overwritten(tmp_path, data, base):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="holds files"):
        run(data, base, tmp_path, overwrite=True)


def test_quick_leaves_the_trunk_as_it_was(data, base, tmp_path):
    run(data, base, tmp_path / "out", preset="quick")
    before, after = (MaftPlusForUniversalSegmentation.from_pretrained(f) for f in (base, tmp_path / "out" / "model"))
    old, new = before.state_dict(), after.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if "vision_model" in name)
    assert any(not torch.equal(old[name], new[name]) for name in old if "segmenter" in name)


def test_words_that_clip_named_alone_stay_with_it(data, tmp_path):
    """A base's training classes do not become the segmenter's business when it learns others."""
    base = save_tiny(tmp_path / "base", ["dog", "tree"])
    processor = MaftPlusProcessor.from_pretrained(base)
    processor.training_classes = [["dog"]]
    processor.save_pretrained(base)
    run(data, base, tmp_path / "out", max_steps=1)
    trained = MaftPlusProcessor.from_pretrained(tmp_path / "out" / "model").training_classes
    assert [list(names) for names in trained] == [["cat", "kitten"], ["grass"], ["sky"]]


def test_lora_leaves_an_adapter_and_a_merged_model(data, base, tmp_path):
    pytest.importorskip("peft")
    story, _ = run(data, base, tmp_path / "out", preset="lora", lora_rank=2)
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert f"maftplus segment picture.jpg --model {tmp_path / 'out' / 'adapter'}" in card
    assert f"its base is {base}" in card
    assert "pipeline(" in (tmp_path / "out" / "model" / "README.md").read_text()
    assert story.num_trained < story.num_parameters / 2
    model = MaftPlusForUniversalSegmentation.from_pretrained(tmp_path / "out" / "model")
    assert model.config.vocabulary[0] == ["cat", "kitten"]


def test_panoptic_data_tell_what_is_taken_for_what_too(base, tmp_path):
    story, _ = run(make_panoptic(tmp_path / "data", 8).parent, base, tmp_path / "out", max_steps=1)
    assert story.after.task == "panoptic"
    pairs = worst_pairs(story.after.pixels)
    text = (tmp_path / "out" / "report.html").read_text()
    table = text.split("<h2>After: what is taken for what")[1].split("</table>")[0]
    assert table.count("<tr") == 1 + len(pairs) > 1


def test_things_are_pasted_where_single_objects_are_known(data, base, tmp_path, monkeypatch):
    used = []
    keep = "maftplus.train.finetuning.finetune._train"
    monkeypatch.setattr(keep, lambda trainer: used.append(trainer.train_dataset))
    run(data, base, tmp_path / "objects", max_steps=1)
    run(data, base, tmp_path / "asked", max_steps=1, copy_paste=0.25)
    bare = write_data(tmp_path / "bare")
    (bare / "names.txt").write_text("cat\ngrass\nsky\n")
    run(bare, base, tmp_path / "semantic", max_steps=1)
    assert [one.copy_paste for one in used] == [0.8, 0.25, 0.0]
    with pytest.raises(ValueError, match="--copy-paste needs single objects"):
        run(bare, base, tmp_path / "refused", max_steps=1, copy_paste=0.5)


def test_a_class_that_no_picture_holds_has_no_figure(finished, tmp_path):
    vocabulary = parse_lines(["cat", "dog", "tree"], "here")
    counts = np.array([[0.9, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])  # IoU, found, false, missed
    assert has_truth(Evaluation("pets", "panoptic", vocabulary, counts)).tolist() == [True, False, True]
    confusion = np.array([[9, 0, 0, 0], [1, 0, 0, 0], [0, 0, 3, 5], [0, 0, 0, 5]])  # dogs only in error
    semantic = Evaluation("pets", "semantic", vocabulary, confusion)
    assert has_truth(semantic).tolist() == [True, False, True]
    write_page(replace(finished[0], before=None, after=semantic), tmp_path / "report.html")
    rows = (tmp_path / "report.html").read_text().split("<h2>Classes</h2>")[1].split("</table>")[0]
    cells = re.sub(r"(<[^>]*>|\s)+", " ", rows)
    assert "cat 90.0 dog - tree 100.0" in cells


def test_scratch_needs_no_model(data, tmp_path):
    story, lines = run(data, "scratch", tmp_path / "out", max_steps=1)
    assert "a batch holds all 8 training pictures" in lines
    assert story.before is None
    assert story.kept == []
    assert (tmp_path / "out" / "model" / "config.json").is_file()


def test_lora_from_scratch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leave it out"):
        FinetuneOptions("data", tmp_path, "scratch", preset="lora").check()


def test_the_compensation_weight_is_a_knob(base, tmp_path):
    options = FinetuneOptions("data", tmp_path, str(base), preset="full", compensation_weight=0.7, use_cpu=True)
    model_args, _, _ = make_arguments(options, "eval_mean_iou", 8)
    assert model_args.model_config["compensation_weight"] == 0.7


def test_a_batch_holds_no_more_pictures_than_there_are(base, tmp_path):
    options = FinetuneOptions("data", tmp_path, str(base), use_cpu=True)
    assert make_arguments(options, "eval_mean_iou", 3)[2].per_device_train_batch_size == 3


@pytest.mark.parametrize(
    ("recipe", "form", "weights"),
    [
        ("quick", "off", (0.0, 0.0)),
        ("quick", "semantic", (0.0, 1.0)),
        ("lora", "off", (0.0, 1.0)),
        ("scratch", "off", (1.0, 1.0)),
    ],
)
def test_trained_classes_go_by_the_segmenter_while_they_are_learnt(recipe, form, weights):
    config = tiny_config(cdt_form=form)
    let_segmenter_speak(config, recipe)
    assert (config.ensemble_alpha, config.mask_aware_weight) == weights


def test_the_mixture_that_does_best_on_held_out_pictures_is_kept():
    config, figures = tiny_config(), {0.0: 0.2, 0.4: 0.5, 1.0: 0.3}

    def look():
        return SimpleNamespace(task="semantic", figures={"mean_iou": figures[config.ensemble_alpha]})

    assert choose_mixture(config, look).figures["mean_iou"] == 0.5
    assert config.ensemble_alpha == 0.4


def test_the_command_is_recorded_without_defaults(tmp_path):
    options = FinetuneOptions("my pets", Path("out"), "shapes", max_steps=5)
    assert options.command() == (
        "maftplus finetune --data 'my pets' --out out --model shapes --preset quick --max-steps 5"
    )


def test_training_pictures_are_squares_of_the_evaluation_s_size():
    names = [entry["name"] for entry in training_transforms({"shortest_edge": 100, "longest_edge": 200})]
    assert names == ["resize_shortest_edge", "random_crop", "random_flip"]


def test_three_steps_leave_weights_and_chance_as_they_were(tmp_path):
    trainer = make_trainer(tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert measure_steps(trainer) > 0
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    torch.testing.assert_close(torch.random.get_rng_state(), state)
    assert trainer.optimizer is None


def test_three_steps_save_memory_as_training_will(tmp_path):
    trainer = make_trainer(tmp_path, gradient_checkpointing=True)
    measure_steps(trainer)
    assert trainer.model.is_gradient_checkpointing


def test_a_plan_fills_the_minutes_evaluations_included():
    plan = make_plan(step_seconds=1.0, eval_seconds=6.0, minutes=10)
    assert plan.max_steps % plan.eval_steps == 0
    assert 540 <= plan.seconds <= 600


def test_a_plan_leaves_time_for_what_is_measured_before_and_after():
    plan = make_plan(step_seconds=1.0, eval_seconds=6.0, minutes=10, other_seconds=300.0)
    assert 540 <= plan.seconds <= 600
    assert plan.max_steps < 300


def test_so_few_steps_name_the_minutes_that_would_do():
    plan = make_plan(10, 150, minutes=10, other_seconds=1650)
    assert plan.max_steps == 1
    assert make_plan(10, 150, plan.minutes_for(30), None, 1650).max_steps >= 30


def test_of_many_held_out_pictures_fifty_are_measured_on_the_way():
    def data(count):
        vocabulary = parse_lines(["cat"], "here")
        return SegmentationDataset("d", "semantic", vocabulary, list(range(count)), read=None, ignore_index=255)

    assert len(pick_watched(data(50))) == 50
    watched = pick_watched(data(120)).items
    assert (len(watched), watched[0], watched[-1]) == (50, 0, 117)


def test_steps_win_over_minutes():
    plan = make_plan(1.0, 6.0, minutes=10, max_steps=25)
    assert (plan.max_steps, plan.eval_steps) == (25, 3)


def test_a_slow_evaluation_is_done_rarely():
    assert make_plan(1.0, 100.0, minutes=10).max_steps // make_plan(1.0, 100.0, minutes=10).eval_steps == 1


def test_a_model_agrees_with_its_own_opinions():
    vocabulary = parse_lines(["cat", "dog"], "here")
    picture = {"name": "a", "image": Image.new("RGB", (4, 4)), "segmentation_map": np.zeros((4, 4), int)}

    class Data(list):
        name = "pets"

    def predict(samples, vocabulary, kinds):
        return [{"semantic": torch.tensor([[0, 1], [-1, 1]])} for _ in samples]

    kept = opinions(predict, Data([picture]), vocabulary, [0, 1])
    (sample,) = kept.data
    assert sample["segmentation_map"].tolist() == [[0, 1], [255, 1]]
    assert sample["image"] is picture["image"]
    assert "2 other words" in kept.what


def test_what_a_model_forgets_is_counted_over_words_that_are_not_trained():
    vocabulary = parse_lines(["cat", "dog", "tree"], "here")
    others = find_others(vocabulary, parse_lines(["cat, kitten", "sky"], "here"))
    assert others == [1, 2]
    counts = np.array([[90, 0, 0, 0], [0, 6, 2, 0], [0, 2, 0, 0], [10, 0, 0, 0]])
    evaluation = Evaluation("pets", "semantic", vocabulary, counts)
    figures = Kept("", None, others).of_others(evaluation)
    assert figures == {"mean_iou_present": 0.3, "overall_accuracy": 0.6}


def test_a_model_without_stored_words_has_no_vocabulary_to_keep(base):
    config = MaftPlusForUniversalSegmentation.from_pretrained(base).config
    assert stored_vocabulary(config).names == ("dog", "tree")
    config.vocabulary = None
    assert stored_vocabulary(config) is None


NAMES = ["cat", "stuff: grass"]


def test_things_that_do_not_touch_are_objects_and_stuff_is_one():
    labels = np.full((20, 20), 1)
    labels[2:8, 2:8] = labels[10:16, 10:16] = 0
    labels[0] = 255
    ids, segments = find_objects(labels, parse_lines(NAMES, "here"))
    assert [segment["label_id"] for segment in segments] == [0, 0, 1]
    assert [int((ids == segment["id"]).sum()) for segment in segments] == [36, 36, 380 - 72]
    assert (ids[0] == 0).all()


def test_specks_belong_to_the_largest_object_of_their_class():
    labels = np.full((20, 20), 1)
    labels[2:8, 2:8] = 0
    labels[12, 12] = labels[15, 3] = 0
    ids, segments = find_objects(labels, parse_lines(NAMES, "here"))
    assert len(segments) == 2
    assert ids[12, 12] == ids[15, 3] == ids[2, 2] == 1


def test_a_class_of_specks_alone_is_one_object():
    labels = np.full((20, 20), 1)
    labels[12, 12:14] = labels[15, 3] = 0
    ids, segments = find_objects(labels, parse_lines(NAMES, "here"))
    assert [segment["label_id"] for segment in segments] == [0, 1]
    assert ids[12, 12] == ids[15, 3] == 1


def test_overwrite_leaves_what_is_not_its_own(data, base, tmp_path):
    out = tmp_path / "again"
    out.mkdir()
    for name in ("finetune.json", "metrics.json", "mine.txt"):
        (out / name).write_text("{}")
    _check_out(FinetuneOptions(str(data), out, str(base), overwrite=True))
    assert len(list(out.iterdir())) == 3
    _clear_out(out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_overwrite_deletes_nothing_before_all_is_looked_at(base, tmp_path):
    (tmp_path / "finetune.json").write_text("{}")
    with pytest.raises(OSError, match="no folder"):
        run(tmp_path / "typo", base, tmp_path, overwrite=True)
    assert (tmp_path / "finetune.json").is_file()


def test_overwrite_keeps_the_model_that_it_starts_from(data, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "finetune.json").write_text("{}")
    with pytest.raises(ValueError, match="--model .* lies in"):
        run(data, tmp_path / "model", tmp_path, overwrite=True)


def test_an_interrupted_run_is_gone_on_with(data, base, tmp_path, monkeypatch, caplog):
    def interrupt(self, args, state, control, metrics=None, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_evaluate", interrupt)
        with pytest.raises(SystemExit, match="130"):
            run(data, base, tmp_path / "out")
    assert "go on with --resume" in caplog.text
    story, _ = run(data, base, tmp_path / "out", resume=True)
    assert story.num_steps == 2


def test_resume_refuses_other_options_and_names_them(data, base, tmp_path):
    options = FinetuneOptions(str(data), tmp_path, str(base), batch_size=2)
    (tmp_path / "finetune.json").write_text(json.dumps({"options": options.recorded()}))
    with pytest.raises(ValueError, match="--batch-size was 2, is 4"):
        _check_out(replace(options, batch_size=4, resume=True))
    with pytest.raises(ValueError, match="no checkpoint"):
        _check_out(replace(options, resume=True))
    (tmp_path / "checkpoint-1").mkdir()
    _check_out(replace(options, resume=True, use_cpu=True))


def test_resume_takes_a_path_however_it_is_typed(data, base, tmp_path, monkeypatch):
    options = FinetuneOptions(str(data), tmp_path, str(base))
    plan = {"options": options.recorded(), "working_folder": str(tmp_path)}
    (tmp_path / "finetune.json").write_text(json.dumps(plan))
    (tmp_path / "checkpoint-1").mkdir()
    monkeypatch.chdir(data.parent)
    _check_out(replace(options, data=f"./{data.name}", resume=True))
    with pytest.raises(ValueError, match="--data was .*, is elsewhere"):
        _check_out(replace(options, data="elsewhere", resume=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "quick", "compensation_weight": 0.5}, "does nothing with quick"),
        ({"model": "scratch", "compensation_weight": 0.5}, "does nothing with scratch"),
        ({"model": "scratch", "preset": "full"}, "leave it out"),
        ({"preset": "full", "lora": "trunk"}, "does nothing with full"),
        ({"minutes": 0}, "more than 0"),
        ({"learning_rate": -1}, "more than 0"),
    ],
)
def test_what_would_do_nothing_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        FinetuneOptions("data", tmp_path, **{"model": "shapes", **given}).check()


def test_nothing_to_go_on_with_is_said(data, base, tmp_path):
    with pytest.raises(ValueError, match="no run to go on with"):
        run(data, base, tmp_path, preset="quick", resume=True)
