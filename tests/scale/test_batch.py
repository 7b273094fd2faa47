"""The batch job: every picture once, through kills, cut files and full disks; the long version is `long.py`."""

import functools
import json
import os
import signal
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ray import cloudpickle
from tiny_tools import save_tiny
from typer.testing import CliRunner

from maftplus.app.batching import Batch, run_batch
from maftplus.app.cli import app
from maftplus.app.models import load_pipeline
from maftplus.scale import read_results
from maftplus.scale.batch import Pool, encode_words, plan_pool, ray_session, run_shards
from maftplus.scale.job import JobFolder
from maftplus.scale.sources import list_shards
from maftplus.scale.worker import MOST_DEATHS, ShardWorker, Task, model_identity

LABELS = ["cat, kitten", "dog", "grass"]
WORDS = {"candidate_labels": LABELS, "stuff_labels": ["grass"], "distractor_labels": ["sky"]}
FACTS = {"source": "", "labels": [], "stuff_ids": []}
OPTIONS = {"subtask": "panoptic", "threshold": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Ten noisy pictures of two sizes in two folders, two of one name, and two that are broken."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for index in range(10):
        path = root / "ab"[index % 2] / f"{index // 2}.png"
        path.parent.mkdir(exist_ok=True)
        size = (64, 64 + 32 * (index % 3 == 0), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    (root / "a" / "broken.jpg").write_bytes(b"nothing")
    (root / "b" / "empty.png").write_bytes(b"")
    return root


@pytest.fixture
def make_task(model, source, tmp_path):
    """A task of its own folder that has begun, and its words; shards of three."""

    def make(pictures: Path = source, load=None):
        load = load or functools.partial(load_pipeline, str(model), "cpu", "float32")
        words = encode_words(load_pipeline(str(model), "cpu", "float32"), **WORDS)
        folder = JobFolder(str(tmp_path / "out"))
        folder.begin({"source": str(pictures)}, list_shards(str(pictures), 3))
        return Task(str(pictures), folder, load, OPTIONS, {"model": "m", "options": "{}"}, batch_size=2), words

    return make


def ask(model, source, out, **changes) -> Batch:
    asked = {"source": str(source), "out": str(out), "model": str(model), "words": WORDS, "options": OPTIONS}
    asked |= {"device": "cpu", "dtype": "float32", "shard_size": 3, "batch_size": 2, "workers": 2, "threads": 1}
    return Batch(**{**asked, **changes})


@pytest.fixture(scope="module")
def ray():
    with ray_session(num_cpus=3):
        yield


@pytest.fixture(scope="module")
def out(ray, model, source, tmp_path_factory):
    """A job that has run through two actors."""
    folder = tmp_path_factory.mktemp("results") / "out"
    totals = run_batch(ask(model, source, folder), is_quiet=True)
    assert totals.failures == []
    assert totals.counts == {"shards": 4, "pictures": 12, "errors": 2, "bytes": totals.counts["bytes"]}
    return folder


def test_every_key_stands_once_and_broken_pictures_say_why(out):
    rows = {row["key"]: row for row in read_results(str(out))}
    assert len(read_results(str(out))) == len(rows) == 12
    assert {key: row["error"] for key, row in rows.items() if row["error"]} == {
        "a/broken.jpg": "ValueError: 'a/broken.jpg': no picture in 7 bytes.",
        "b/empty.png": "ValueError: 'b/empty.png': no picture in 0 bytes.",
    }


def test_results_are_the_pipelines(out, model, source):
    results, pipe = read_results(str(out)), load_pipeline(str(model), "cpu", "float32")
    num_segments = 0
    for row in results:
        if row["error"] is not None:
            continue
        expected, segments = pipe(str(source / row["key"]), **WORDS, **OPTIONS), results.segments(row)
        assert [one["label"] for one in expected] == [one.label for one in segments]
        torch.testing.assert_close([one["score"] for one in expected], [one.score for one in segments])
        for one, other in zip(expected, segments):
            assert ((np.asarray(one["mask"]) > 0) == other.mask).all()
        num_segments += len(segments)
    assert num_segments > 0


def test_a_row_measures_its_masks(out):
    results = read_results(str(out))
    row = next(row for row in results if row["segments"])
    for one, segment in zip(row["segments"], results.segments(row)):
        assert (one["area"], one["bbox"]) == (segment.area, segment.bbox)
        assert segment.mask.shape == (row["height"], row["width"])


def test_out_holds_one_file_a_shard_and_nothing_else_but_the_job(out):
    assert sorted(path.name for path in out.iterdir()) == ["_job", *(f"shard-{i:08d}.parquet" for i in range(4))]
    assert list((out / "_job" / "unfinished").iterdir()) == []


def test_resuming_a_finished_job_changes_nothing(out, model, source):
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    totals = run_batch(ask(model, source, out), is_resumed=True, is_quiet=True)
    assert (totals.failures, totals.counts["shards"]) == ([], 0)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": {"candidate_labels": ["bird"]}}, r'labels was \[\["cat", "kitten"\].*now \[\["bird"\]\]'),
        ({"options": {"subtask": "instance"}}, "options was .*panoptic.* now .*instance"),
        ({"dtype": "bfloat16"}, 'dtype was "float32", now "bfloat16"'),
        ({"shard_size": 4}, "shard_size was 3, now 4"),
    ],
)
def test_another_job_into_the_same_folder_is_refused_with_the_difference(out, model, source, changes, message):
    with pytest.raises(ValueError, match=message):
        run_batch(ask(model, source, out, **changes), is_resumed=True, is_quiet=True)


def test_a_job_is_gone_on_with_only_if_asked_to(out, model, source):
    with pytest.raises(ValueError, match="--resume"):
        run_batch(ask(model, source, out), is_quiet=True)


def test_a_file_that_is_missing_or_cut_off_is_made_again(out, model, source, monkeypatch):
    def run_here(asked, task, words, num_shards):
        return map(ShardWorker(task, words).run, next(task.folder.missing_shards(num_shards)))

    monkeypatch.setattr("maftplus.app.batching._run", run_here)
    before = {path: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))}
    first, second, *_ = before
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    totals = run_batch(ask(model, source, out), is_resumed=True, is_quiet=True)
    assert totals.counts["shards"] == 2
    assert {path: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))} == before


class DiesOnce:
    """Loads a pipeline in whose process the first picture is the last, until `marker` is there."""

    def __init__(self, load, marker: Path):
        self.load, self.marker = load, marker

    def __call__(self):
        pipe = self.load()
        if not self.marker.exists():
            self.marker.touch()
            pipe.postprocess = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
        return pipe


def test_the_rows_of_a_killed_actor_are_done_again(ray, make_task, model, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not have the tests in their path
    load = functools.partial(load_pipeline, str(model), "cpu", "float32")
    task, words = make_task(load=DiesOnce(load, tmp_path / "died"))
    reports = list(run_shards(task, words, Pool(1), [0, 1]))
    assert (tmp_path / "died").exists()
    assert sorted((report.shard, report.num_pictures, report.failure) for report in reports) == [
        (0, 3, None),
        (1, 3, None),
    ]


def test_a_full_disk_fails_the_shard_and_leaves_nothing(make_task, monkeypatch):
    task, words = make_task()
    worker = ShardWorker(task, words)
    monkeypatch.setattr("maftplus.scale.job.write_whole", raise_full)
    report = worker.run(0)
    assert report.is_fatal
    assert "No space left" in report.failure
    assert next(task.folder.missing_shards(1)) == [0]


def test_a_shard_over_which_workers_die_again_and_again_is_given_up(make_task):
    task, words = make_task()
    for _ in range(MOST_DEATHS):
        task.folder.count_begun(0)  # and no end
    worker = ShardWorker(task, words)
    assert worker.run(0).failure == "given up: the worker died over it 5 times"
    assert worker.run(0).failure is None  # the next one asked for it begins anew


def test_a_worker_of_a_killed_run_that_ends_a_shard_too_does_no_harm(make_task):
    folder = make_task()[0].folder
    folder.count_begun(0)
    folder.end(0)
    folder.end(0)


def test_a_model_is_told_apart_by_weights_and_settings(model):
    def identity(change=lambda pipe: None):
        pipe = load_pipeline(str(model), "cpu", "float32")
        change(pipe)
        return model_identity(pipe, "name")

    def change_weights(pipe):
        next(pipe.model.parameters()).data.add_(1)

    def change_settings(pipe):
        pipe.model.config.num_queries = 3

    assert identity() == identity()
    assert len({identity(), identity(change_weights), identity(change_settings)}) == 3


def raise_full(*arguments):
    raise OSError(28, "No space left on device")


def test_a_shard_that_cannot_be_read_has_no_file_and_is_done_once_it_can(make_task, source, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "part.tar", "w") as tar:
        tar.add(source / "a", arcname="a")
    content = (tars / "part.tar").read_bytes()
    (tars / "part.tar").write_bytes(content[: len(content) // 2])
    task, words = make_task(tars)
    worker = ShardWorker(task, words)
    report = worker.run(0)
    assert "cannot be read (ReadError" in report.failure
    assert not report.is_fatal
    (tars / "part.tar").write_bytes(content)
    assert worker.run(0).num_pictures == 6
    assert list(task.folder.missing_shards(1)) == []


def test_one_picture_that_the_network_refuses_does_not_take_its_batch_with_it(make_task):
    task, words = make_task()
    worker = ShardWorker(task, words)
    forward, calls = worker._forward, []

    def refuse_pairs(batch):
        calls.append(len(batch))
        if len(batch) > 1:
            raise RuntimeError("out of memory")
        return forward(batch)

    worker._forward = refuse_pairs
    assert worker.run(0).num_errors == 0
    assert calls[:3] == [2, 1, 1]


def test_a_killed_listing_is_begun_again(tmp_path, source):
    def cut():
        yield from list(list_shards(str(source), 3))[:2]
        raise KeyboardInterrupt

    folder = JobFolder(str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        folder.begin({"source": "s"}, cut())
    assert folder.begin({"source": "s"}, list_shards(str(source), 3), is_resumed=True) == 4


def test_a_folder_with_parquet_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="of no job of ours"):
        JobFolder(str(tmp_path)).begin({}, [])


def test_pictures_and_results_may_have_addresses(make_task, source):
    import fsspec

    memory, (task, words) = fsspec.filesystem("memory"), make_task()
    for path in source.glob("*/*"):
        memory.pipe(f"/pictures/{path.relative_to(source)}", path.read_bytes())
    task = replace(task, source="memory://pictures", folder=JobFolder("memory://results"))
    assert task.folder.begin(FACTS, list_shards(task.source, 6)) == 2
    worker = ShardWorker(task, words)
    assert worker.run(1).num_pictures == 6
    assert next(task.folder.missing_shards(2)) == [0]
    assert worker.run(0).num_errors == 1
    results = read_results("memory://results")
    assert len({row["key"] for row in results}) == len(results) == 12
    assert sum(len(results.segments(row)) for row in results) > 0
    assert sorted(memory.ls("/results", detail=False))[1:] == [f"/results/shard-0000000{i}.parquet" for i in range(2)]


@pytest.mark.parametrize(
    ("machines", "given", "pool"),
    [
        ([{"CPU": 16}], (None, None, None), Pool(4, 4)),
        ([{"CPU": 2}], (None, None, None), Pool(1, 2)),
        ([{"CPU": 16}], (None, 2, None), Pool(2, 8)),
        ([{"CPU": 2}], (None, 2, 1), Pool(2, 1)),
        ([{"CPU": 64}, {"CPU": 96, "GPU": 8}, {"CPU": 32, "GPU": 4}], (None, None, None), Pool(12, 8, 1)),
        ([{"CPU": 96, "GPU": 8}], ("cpu", None, None), Pool(24, 4)),
    ],
)
def test_actors_fit_on_the_machines_that_there_are(machines, given, pool, monkeypatch):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert plan_pool(*given) == pool


def test_a_busy_machine_on_which_ray_takes_too_long_is_tried_again(monkeypatch):
    calls = []

    def start(**options):
        calls.append(options["num_cpus"])
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(OSError, match="Ray does not start on this machine .*timed out"), ray_session(num_cpus=2):
        pass
    assert calls == [2, 2, 2]


def test_a_source_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        JobFolder(str(tmp_path / "out")).begin({}, [])


def test_the_commands_go_on_with_a_job_and_report_it(out, model, source, tmp_path):
    words = [part for label in LABELS for part in ("--labels", label)] + ["--stuff", "grass", "--distractors", "sky"]
    how = ["--model", str(model), "--device", "cpu", "--dtype", "float32", "--shard-size", "3", "--threshold", "0"]
    done = CliRunner().invoke(app, ["batch", str(source), str(out), *words, *how, "--resume", "--profile"])
    assert done.exit_code == 0, done.output
    assert "0 of 4 shards done in this call" in done.output
    assert "processor milliseconds a picture" in done.output
    html, coco = tmp_path / "report.html", tmp_path / "coco.json"
    done = CliRunner().invoke(app, ["report", str(out), "--html", str(html), "--coco", str(coco)])
    assert done.exit_code == 0, done.output
    page, document = html.read_text(encoding="utf-8"), json.loads(coco.read_text(encoding="utf-8"))
    assert page.count("<img") >= 10
    assert "no picture in N bytes" in page
    assert len(document["images"]) == 10
    assert len(document["annotations"]) == sum(len(row["segments"]) for row in read_results(str(out)))
