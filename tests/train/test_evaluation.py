"""Evaluation: truth as prediction, several processes, bad predictions, reports, predictions on disk, a real model."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_set_tools import make_voc
from evaluation_tools import NAMES, WORDS, make_dataset, make_maps, shifted, truth
from PIL import Image
from tiny_tools import tiny_model, tiny_processor

from maftplus.train.data.annotations import decode_run_lengths, read_panoptic_png
from maftplus.train.data.sources import load_entry
from maftplus.train.evaluation.evaluate import ModelPredictor, SampleStream, count_predictions, evaluate_data_sets
from maftplus.train.evaluation.predictions import PredictionWriter
from maftplus.train.evaluation.reports import format_table, write_per_class, write_report
from maftplus.train.options import DataArguments
from maftplus.vocabularies.files import VocabularyFile


def test_truth_as_prediction_is_perfect_in_one_run_over_several_data_sets(tmp_path):
    datasets = [make_dataset(tmp_path, 5), make_dataset(tmp_path, 3, "panoptic", "segments")]
    semantic, panoptic = evaluate_data_sets(truth, datasets)
    assert (semantic.num_images, panoptic.num_images) == (5, 3)
    assert semantic.figures["mean_iou"] == semantic.figures["harmonic_mean_iou"] == 1.0
    assert panoptic.figures["pq"] == panoptic.figures["pq_stuff"] == 1.0


def test_a_panoptic_data_set_also_gives_semantic_figures_when_asked(tmp_path):
    evaluations = evaluate_data_sets(truth, [make_dataset(tmp_path, 3, "panoptic")], ["panoptic", "semantic"])
    assert [evaluation.figures["mean_iou" if e else "pq"] for e, evaluation in enumerate(evaluations)] == [1.0, 1.0]
    with pytest.raises(ValueError, match="without segments"):
        evaluate_data_sets(truth, [make_dataset(tmp_path, 1)], ["panoptic"])


def test_batches_and_a_limit_change_nothing_but_the_count(tmp_path):
    dataset = make_dataset(tmp_path, 5)
    one, two = (evaluate_data_sets(shifted, [dataset], batch_size=size)[0] for size in (1, 2))
    np.testing.assert_array_equal(one.counts, two.counts)
    assert evaluate_data_sets(shifted, [dataset], max_samples=3)[0].num_images == 3


WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from evaluation_tools import make_dataset, shifted
from maftplus.train.evaluation.evaluate import evaluate_data_sets
from maftplus.train.processes import process_state
folder = Path({folder!r})
state = process_state()
datasets = [make_dataset(folder / str(state.process_index), n, name=f"blocks{{n}}") for n in (5, 21)]
found = evaluate_data_sets(shifted, datasets, save_predictions=folder / "predictions")
content = [(e.num_images, e.counts.tolist(), [x.name for x in e.examples]) for e in found]
(folder / f"{{state.process_index}}_of_{{state.num_processes}}.json").write_text(json.dumps(content))
state.destroy_process_group()
"""


def test_two_processes_count_every_sample_once(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--standalone", str(script)], check=True, env=environment, timeout=300)
    first, second = (json.loads((tmp_path / f"{rank}_of_2.json").read_text()) for rank in (0, 1))
    datasets = [make_dataset(tmp_path / "0", n, name=f"blocks{n}") for n in (5, 21)]
    alone = evaluate_data_sets(shifted, datasets, save_predictions=tmp_path / "alone")
    assert first == second == [[e.num_images, e.counts.tolist(), [x.name for x in e.examples]] for e in alone]
    assert [row[0] for row in first] == [5, 21]
    for name in ("blocks5", "blocks21"):
        files = [tmp_path / folder / name / "semantic.json" for folder in ("predictions", "alone")]
        assert files[0].read_text() == files[1].read_text()


def test_best_and_worst_pictures_are_kept_in_order(tmp_path):
    dataset = make_dataset(tmp_path, 9)
    every = evaluate_data_sets(shifted, [dataset], num_examples=9)[0].examples
    few = evaluate_data_sets(shifted, [dataset], num_examples=2)[0].examples
    assert len(every) == 9
    assert [example.name for example in few] == [example.name for example in every[:2] + every[-2:]]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"semantic": np.zeros((4, 4), int)}, "000.png: the prediction is 4 x 4"),
        ({"semantic": np.full((15, 24), 9)}, "000.png: the prediction holds 9, outside the 4 classes"),
        ({"semantic": np.full((15, 24), np.nan)}, "000.png: the prediction holds NaN"),
    ],
)
def test_bad_predictions_name_the_picture(prediction, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate_data_sets(lambda samples, *_: [prediction], [make_dataset(tmp_path, 1)])


def test_the_report_says_the_same_everywhere(tmp_path):
    datasets = [make_dataset(tmp_path, 4), make_dataset(tmp_path, 3, "panoptic", "segments")]
    evaluations = evaluate_data_sets(lambda *a: [{**t, **s} for t, s in zip(truth(*a), shifted(*a))], datasets)
    write_report(evaluations, tmp_path / "report", command="python x")
    results = json.loads((tmp_path / "report/results.json").read_text())
    mean_iou = evaluations[0].figures["mean_iou"]
    assert results["data_sets"][0]["figures"]["mean_iou"] == mean_iou
    assert f"{100 * mean_iou:.2f}" in format_table(evaluations)
    with (tmp_path / "report/blocks_semantic_per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(NAMES)
    assert [row["split"] for row in rows] == ["seen", "unseen", "seen", "seen"]
    assert float(rows[0]["iou"]) == pytest.approx(evaluations[0].figures["per_category_iou"][0], abs=1e-6)
    assert Image.open(tmp_path / "report/segments_panoptic_examples.png").width > 3 * 24
    assert "python x" in (tmp_path / "report/model_card_lines.md").read_text()


def test_undefined_figures_are_null_in_the_results(tmp_path):
    dataset = make_dataset(tmp_path, 1)
    dataset.read = lambda item: np.full((15, 24), 255)
    evaluation = evaluate_data_sets(lambda samples, *_: [{"semantic": np.zeros((15, 24), int)}], [dataset])
    write_report(evaluation, tmp_path / "report")
    results = json.loads((tmp_path / "report/results.json").read_text())
    assert results["data_sets"][0]["figures"]["mean_iou"] is None
    assert "-" in format_table(evaluation)


def test_saved_predictions_read_back_with_the_data_sets_own_ids(tmp_path):
    datasets = [make_dataset(tmp_path, 2), make_dataset(tmp_path, 2, "panoptic", "segments")]
    evaluate_data_sets(truth, datasets, save_predictions=tmp_path / "out")
    records = json.loads((tmp_path / "out/blocks/semantic.json").read_text())
    restored = np.full((15, 24), 255)
    for record in records:
        if record["image_id"] == 1:
            restored[decode_run_lengths(record["segmentation"], "test")] = record["category_id"]
    np.testing.assert_array_equal(restored, make_maps(datasets[0].items[1]))
    labels = np.asarray(Image.open(tmp_path / "out/blocks/semantic/001.png"))
    np.testing.assert_array_equal(labels, datasets[0][1]["segmentation_map"])
    annotation = json.loads((tmp_path / "out/segments/panoptic.json").read_text())["annotations"][1]
    ids = read_panoptic_png(tmp_path / "out/segments/panoptic" / annotation["file_name"])
    assert {s["id"] for s in annotation["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    assert all(s["id"] == s["category_id"] for s in annotation["segments_info"])


def test_a_model_is_evaluated_with_one_encoding_of_the_vocabulary(tmp_path, monkeypatch):
    model, processor = tiny_model(), tiny_processor()
    calls = []
    encode = model.encode_vocabulary
    monkeypatch.setattr(model, "encode_vocabulary", lambda **prompts: calls.append(1) or encode(**prompts))
    datasets = [make_dataset(tmp_path, 2), make_dataset(tmp_path, 2, "panoptic", "segments")]
    evaluations = evaluate_data_sets(
        ModelPredictor(model, processor), datasets, save_predictions=tmp_path / "out/predictions"
    )
    assert [evaluation.num_images for evaluation in evaluations] == [2, 2]
    assert len(calls) == 1
    assert (tmp_path / "out/predictions/blocks/semantic/000.png").is_file()


def test_of_classes_with_the_same_names_the_first_one_wins(tmp_path):
    twice = VocabularyFile("twice", ("cat", "dog", "cat"), (("cat",), ("dog",), ("cat",)), (0, 1, 2))
    encoded = ModelPredictor(tiny_model(), tiny_processor()).encode(twice)
    assert encoded["text_class_ids"].tolist() == [0, 1]
    assert encoded["seen_classes"].shape == (3,)
    samples = [make_dataset(tmp_path, 1)[0]]
    result = ModelPredictor(tiny_model(), tiny_processor())(samples, twice, {"semantic": "semantic"})[0]["semantic"]
    assert result.max() <= 1


def test_logits_that_are_not_numbers_name_the_picture(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.segmenter.decoder.mask_embedder.layers[0].weight.fill_(float("nan"))
    predict = ModelPredictor(model, tiny_processor())
    with pytest.raises(ValueError, match=r"000\.png: the model's `.*` hold NaN"):
        evaluate_data_sets(predict, [make_dataset(tmp_path, 1)])


def test_unconnected_processes_are_an_error(monkeypatch):
    from maftplus.train.processes import process_state

    process_state()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="pass `--use_cpu`"):
        process_state()


def test_hub_data_is_named_on_the_command_line_with_its_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    labels = Image.fromarray(np.array([[0, 1, 2, 0]] * 4, dtype=np.uint8))  # 0 is unlabelled, 1 and 2 cat and dog
    rows = [{"image": Image.new("RGB", (4, 4)), "annotation": labels} for _ in range(2)]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    (tmp_path / "words.txt").write_text("0:cat\n1:dog\n")
    entry = f"hub:{tmp_path / 'data'}={tmp_path / 'words.txt'}"
    arguments = DataArguments(data_sets=[entry], label_column="annotation", eval_split="train", do_reduce_labels=True)
    predict = ModelPredictor(tiny_model(), tiny_processor())
    (evaluation,) = evaluate_data_sets(predict, [load_entry(entry, arguments)])
    assert evaluation.counts[:, :-1].sum(axis=0).tolist() == [8, 8]
    with pytest.raises(ValueError, match="needs its classes"):
        load_entry(f"hub:{tmp_path / 'data'}", arguments)


def test_a_prompt_file_replaces_the_words_of_the_data_set_it_is_named_with(tmp_path):
    make_voc(tmp_path)
    (tmp_path / "prompts.txt").write_text("".join(f"{index}:word{index}\n" for index in range(20)))
    entry = f"pascal_voc_20={tmp_path / 'prompts.txt'}"
    dataset = load_entry(entry, DataArguments(data_sets=[entry], data_root=str(tmp_path)))
    assert dataset.vocabulary.classes[:2] == (("word0",), ("word1",))
    assert dataset.vocabulary.names[0] == "aeroplane"


def test_predictions_of_pictures_with_one_stem_are_as_many_files(tmp_path):
    names = ["a.jpg", "a.png", "x/a.png", "b.jpg", "../../c.png"]
    writer = PredictionWriter(tmp_path / "out", WORDS, names)
    for index, name in enumerate(names):
        writer.add({"name": name, "image_id": index}, np.zeros((2, 2), np.uint8), "semantic")
    found = sorted(path.relative_to(tmp_path / "out/semantic").as_posix() for path in tmp_path.rglob("*.png"))
    assert found == ["a.jpg.png", "a.png.png", "b.png", "c.png", "x/a.png"]


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path):
    names = ("=HYPERLINK(1)", "+1", "-1", "@sum", "cat")
    words = VocabularyFile("words", names, tuple((name,) for name in names), (0, 1, 2, 3, 4))
    stream = SampleStream("s", words, [{"name": "a", "image": None, "segmentation_map": np.zeros((2, 2), int)}])
    counted = count_predictions(lambda *_: [{"semantic": np.zeros((2, 2), int)}], stream, {"semantic": "semantic"})
    write_per_class(counted["semantic"], tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["'=HYPERLINK(1)", "'+1", "'-1", "'@sum", "cat"]


def test_one_pass_of_a_model_may_be_counted_in_several_ways(tmp_path):
    passes = []

    class Watched(ModelPredictor):
        def forward(self, samples, vocabulary):
            passes.append(len(samples))
            return super().forward(samples, vocabulary)

    dataset = make_dataset(tmp_path, 3, "panoptic")
    stream = SampleStream("blocks", dataset.vocabulary, (dataset[i] for i in range(3)), "panoptic")
    kinds = {"semantic": "semantic", "clip_semantic": "semantic", "in_vocabulary_panoptic": "panoptic"}
    counted = count_predictions(Watched(tiny_model(), tiny_processor()), stream, kinds, batch_size=2)
    assert passes == [2, 1]
    assert {name: evaluation.counts.shape for name, evaluation in counted.items()} == {
        "semantic": (5, 5),
        "clip_semantic": (5, 5),
        "in_vocabulary_panoptic": (4, 4),
    }
