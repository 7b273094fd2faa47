"""The pipeline, and everything that loads from a saved folder: with the package installed, and without it."""

import logging
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tools import save_tiny, tiny_model, tiny_processor
from transformers import ImageSegmentationPipeline, pipeline
from transformers.utils import ModelOutput
from url_tools import serve

from maftplus import predictions_maftplus
from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline

LABELS = ["cat, kitten", "grass", "sky"]
EVERYTHING = {"threshold": 0.0, "overlap_mask_area_threshold": 0.0, "min_margin": 0.0}


def picture(width=70, height=50, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), LABELS, stuff=["grass", "sky"])


@pytest.fixture(scope="module")
def pipe():
    model, processor = tiny_model(), tiny_processor()
    return MaftPlusSegmentationPipeline(model=model, processor=processor, task="image-segmentation", device="cpu")


@pytest.fixture(scope="module")
def stored(folder):
    return pipeline("image-segmentation", model=str(folder), trust_remote_code=True, device="cpu")


@pytest.mark.parametrize("subtask", [None, "panoptic", "instance", "semantic"])
def test_every_subtask_gives_masks_of_the_pictures_size(pipe, subtask):
    thresholds = {"semantic": {}, "instance": {"threshold": 0.0}}.get(subtask, EVERYTHING)
    results = pipe(picture(), candidate_labels=LABELS, subtask=subtask, **thresholds)
    assert results
    for result in results:
        assert result["label"] == LABELS[result["label_id"]].split(",")[0]
        assert result["mask"].size == (70, 50)
        assert set(np.unique(result["mask"])) <= {0, 255}
        assert (result["score"] is None) == (subtask == "semantic")


def test_instances_leave_stuff_out_and_panoptic_merges_it(pipe):
    options = {"candidate_labels": LABELS, "stuff_labels": LABELS}
    assert pipe(picture(), subtask="instance", threshold=0.0, **options) == []
    ids = [result["label_id"] for result in pipe(picture(), subtask="panoptic", **options, **EVERYTHING)]
    assert len(ids) == len(set(ids)) > 0


def test_pictures_of_several_sizes_make_one_batch(pipe):
    pictures = [picture(), picture(96, 40, seed=1), picture(30, 60, seed=2)]
    options = {"candidate_labels": LABELS, "subtask": "semantic"}
    batched = pipe(pictures, batch_size=3, **options)
    assert [result[0]["mask"].size for result in batched] == [one.size for one in pictures]


def test_equal_pictures_give_equal_results_in_a_batch_and_alone(pipe):
    options = {"candidate_labels": LABELS, "subtask": "instance", "threshold": 0.0}
    alone = pipe(picture(), **options)
    for result in pipe([picture()] * 3, batch_size=2, **options):
        assert [one["label"] for one in result] == [one["label"] for one in alone]
        np.testing.assert_allclose([one["score"] for one in result], [one["score"] for one in alone], atol=1e-5)


def test_a_pictures_result_does_not_depend_on_its_batch_mates(pipe):
    options = {"candidate_labels": LABELS, "subtask": "instance", "threshold": 0.0}
    pictures = [picture(), picture(120, 40, seed=1), picture(30, 60, seed=2), picture(66, 50, seed=3)]
    for one, batched in zip(pictures, pipe(pictures, batch_size=4, **options)):
        alone = pipe(one, **options)
        assert [segment["label"] for segment in batched] == [segment["label"] for segment in alone]
        scores = ([segment["score"] for segment in segments] for segments in (batched, alone))
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_pictures_of_one_padded_size_go_through_the_network_together(pipe, monkeypatch):
    sizes = []
    forward = pipe.model.forward
    monkeypatch.setattr(
        pipe.model, "forward", lambda **inputs: sizes.append(len(inputs["pixel_values"])) or forward(**inputs)
    )
    pictures = [picture(), picture(120, 40, seed=1), picture(66, 50, seed=3)]
    pipe(pictures, batch_size=3, candidate_labels=LABELS, subtask="semantic")
    assert sizes == [2, 1]


def test_an_address_is_read_with_the_calls_limits(pipe):
    stream = BytesIO()
    picture().save(stream, "png")
    options = {"candidate_labels": LABELS, "subtask": "semantic"}
    with serve(stream.getvalue()) as (address, _):
        assert pipe(f"{address}/picture", **options)[0]["mask"].size == (70, 50)
        with pytest.raises(ValueError, match="`max_bytes`, 10 bytes"):
            pipe(f"{address}/picture", max_bytes=10, **options)
        with pytest.raises(ValueError, match=r"`timeout`, 0\.2 seconds"):
            pipe(f"{address}/drip", timeout=0.2, **options)


def test_words_are_encoded_once_for_many_pictures_and_calls(pipe, monkeypatch):
    calls = []
    encode = pipe.model.encode_vocabulary
    monkeypatch.setattr(pipe.model, "encode_vocabulary", lambda **inputs: calls.append(1) or encode(**inputs))
    for labels in (["dog", "tree"], ["dog", "tree"], ["tree", "dog"]):
        pipe([picture(), picture(seed=1)], candidate_labels=labels, subtask="semantic")
    assert len(calls) == 2


def test_old_words_are_forgotten_in_the_end(pipe):
    for index in range(12):
        pipe(picture(), candidate_labels=[f"cat {index}"], subtask="semantic")
    assert len(pipe._vocabularies) <= 8


def test_words_may_be_given_when_the_pipeline_is_made():
    options = {"candidate_labels": LABELS, "stuff_labels": ["grass"], "subtask": "semantic"}
    pipe = MaftPlusSegmentationPipeline(
        model=tiny_model(), processor=tiny_processor(), task="image-segmentation", device="cpu", **options
    )
    assert pipe(picture())[0]["label"] in ("cat", "grass", "sky")
    assert pipe(picture(), candidate_labels=["grass"])[0]["label"] == "grass"
    with pytest.raises(ValueError, match="'grass'"):
        pipe(picture(), candidate_labels=["dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "candidate_labels"),
        ({"candidate_labels": []}, "at least one"),
        ({"candidate_labels": ["cat", "cat"]}, "repeats"),
        ({"candidate_labels": ["cat", ""]}, "empty"),
        ({"candidate_labels": ["cat"], "stuff_labels": ["dog"]}, "'dog'"),
        ({"candidate_labels": ["cat"], "subtask": "other"}, "subtask"),
        ({"candidate_labels": ["cat"], "treshold": 0.5}, "treshold"),
        ({"candidate_labels": ["cat", "&nbsp;"]}, "empty"),
        ({"candidate_labels": ["cat", "&amp;nbsp;"]}, "empty"),
        ({"candidate_labels": ["cat"], "threshold": 1.5}, "`threshold` must lie"),
        ({"candidate_labels": ["cat"], "mask_threshold": -0.1}, "`mask_threshold` must lie"),
        ({"candidate_labels": ["cat"], "overlap_mask_area_threshold": 2}, "`overlap_mask_area_threshold` must lie"),
        ({"candidate_labels": ["cat"], "threshold": 0.5, "subtask": "semantic"}, "`threshold` has no effect"),
        ({"candidate_labels": ["cat"], "mask_threshold": 0.5, "subtask": "semantic"}, "`mask_threshold` has no"),
        (
            {"candidate_labels": ["cat"], "overlap_mask_area_threshold": 0.5, "subtask": "instance"},
            "`overlap_mask_area_threshold` has no effect on instance",
        ),
    ],
)
def test_bad_words_and_options_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(picture(), **options)


def test_a_threshold_is_refused_where_the_subtask_was_chosen_before():
    model, processor = tiny_model(), tiny_processor()
    options = {"task": "image-segmentation", "device": "cpu", "subtask": "semantic", "candidate_labels": LABELS}
    pipe = MaftPlusSegmentationPipeline(model=model, processor=processor, **options)
    with pytest.raises(ValueError, match="`threshold` has no effect on semantic"):
        pipe(picture(), threshold=0.5)
    assert pipe(picture(), threshold=0.5, subtask="panoptic") is not None
    assert pipe(picture())


@pytest.mark.parametrize("subtask", ["panoptic", "instance"])
@pytest.mark.parametrize("name", ["threshold", "mask_threshold", "overlap_mask_area_threshold"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_post_processing_refuses_thresholds_that_are_no_shares(pipe, subtask, name, value):
    process = getattr(pipe.processor, f"post_process_{subtask}_segmentation")
    outputs = ModelOutput(class_queries_logits=torch.zeros(1, 2, 3), masks_queries_logits=torch.zeros(1, 2, 4, 4))
    assert process(outputs, **{name: 0.5})
    with pytest.raises(ValueError, match=f"^`{name}` must lie between 0 and 1"):
        process(outputs, **{name: value})


def test_labels_may_come_from_generators(pipe):
    stuff = ["grass", "sky"]
    options = {"subtask": "panoptic", **EVERYTHING}
    expected = pipe(picture(), candidate_labels=LABELS, stuff_labels=stuff, **options)
    found = pipe(picture(), candidate_labels=iter(LABELS), stuff_labels=(name for name in stuff), **options)
    assert expected
    assert [(one["label"], one["score"]) for one in found] == [(one["label"], one["score"]) for one in expected]


def test_a_template_alone_is_one_template(pipe):
    template = "a drawing of a {}"
    for processor, options in ((tiny_processor(templates=template), {}), (pipe.processor, {"templates": template})):
        inputs = processor(text=["cat"], return_tensors="pt", **options)
        expected = pipe.processor(text=["cat"], return_tensors="pt", templates=[template])
        assert inputs["input_ids"].shape[0] == 1
        torch.testing.assert_close(inputs["input_ids"], expected["input_ids"])


def test_half_precision_gives_masks_too():
    model = tiny_model().to(torch.bfloat16)
    pipe = MaftPlusSegmentationPipeline(
        model=model, processor=tiny_processor(), task="image-segmentation", device="cpu"
    )
    for subtask in ("panoptic", "instance", "semantic"):
        assert isinstance(pipe(picture(), candidate_labels=LABELS, subtask=subtask), list)


def test_a_broken_picture_is_refused_by_name(pipe, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png"):
        pipe(str(tmp_path / "broken.png"), candidate_labels=["cat"])
    with pytest.raises(ValueError, match="at least one picture"):
        pipe(candidate_labels=["cat"])


def test_paths_and_pictures_give_the_same(pipe, tmp_path):
    picture().save(tmp_path / "picture.png")
    options = {"candidate_labels": LABELS, "subtask": "semantic"}
    ours, theirs = pipe(picture(), **options), pipe(str(tmp_path / "picture.png"), **options)
    assert [np.asarray(one["mask"]).tolist() for one in ours] == [np.asarray(one["mask"]).tolist() for one in theirs]


def test_one_result_comes_for_each_of_the_pictures_given(pipe):
    options = {"candidate_labels": LABELS, "subtask": "semantic"}
    assert pipe([], **options) == []
    assert len(pipe((picture(), picture(seed=1)), **options)) == 2
    assert pipe(np.asarray(picture()), **options)[0]["mask"].size == (70, 50)


def test_a_saved_folder_makes_our_pipeline_which_knows_the_stored_words(stored):
    assert type(stored).__name__ == "MaftPlusSegmentationPipeline"
    assert stored.classes_and_stuff() == ([["cat", "kitten"], ["grass"], ["sky"]], [1, 2])
    labels = {result["label"] for result in stored(picture(), subtask="instance", threshold=0.0)}
    assert labels <= {"cat"}
    with pytest.raises(ValueError, match="'dog'"):
        stored(picture(), stuff_labels=["dog"])


def test_stored_words_and_the_same_words_given_agree(stored):
    options = {"subtask": "instance", "threshold": 0.0}
    given = stored(picture(), candidate_labels=LABELS, stuff_labels=["grass", "sky"], **options)
    kept = stored(picture(), **options)
    np.testing.assert_allclose([one["score"] for one in given], [one["score"] for one in kept], atol=1e-5)


def test_a_pipeline_can_be_saved_and_loaded_again(stored, tmp_path):
    stored.save_pretrained(tmp_path)
    again = pipeline("image-segmentation", model=str(tmp_path), trust_remote_code=True, device="cpu")
    assert type(again).__name__ == "MaftPlusSegmentationPipeline"


def test_the_stock_pipeline_works_on_the_stored_words(folder):
    stock = pipeline(
        "image-segmentation", model=str(folder), pipeline_class=ImageSegmentationPipeline, device="cpu", **EVERYTHING
    )
    results = stock(picture(), threshold=0.0)
    assert {result["label"] for result in results} <= {"cat", "grass", "sky"}
    assert {result["label"] for result in stock(picture(), subtask="semantic")} <= {"cat", "grass", "sky"}
    assert len(stock([picture(), picture(seed=1)], batch_size=2)) == 2


WITHOUT_PACKAGE = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "maftplus":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
    folder, again = sys.argv[1:]

    import numpy as np
    from PIL import Image
    from transformers import (
        AutoConfig, AutoModel, AutoModelForImageSegmentation, AutoModelForUniversalSegmentation, AutoProcessor,
        AutoTokenizer, pipeline,
    )
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    for source in (folder, again):
        options = {"trust_remote_code": True}
        assert AutoConfig.from_pretrained(source, **options).vocabulary == [["cat", "kitten"], ["grass"], ["sky"]]
        model = AutoModelForUniversalSegmentation.from_pretrained(source, **options)
        assert type(AutoModelForImageSegmentation.from_pretrained(source, **options)).__name__ == type(model).__name__
        assert type(AutoModel.from_pretrained(source, **options)).__name__ == "MaftPlusModel"
        images = AutoImageProcessor.from_pretrained(source, **options)
        assert type(images).__name__.startswith("MaftPlusImageProcessor")
        assert type(AutoTokenizer.from_pretrained(source, **options)).__name__ == "CLIPTokenizer"
        processor = AutoProcessor.from_pretrained(source, **options)
        inputs = processor(images=picture, text=["person, man", "grass"], return_tensors="pt")
        outputs = model(**inputs)
        assert outputs.class_queries_logits.shape == (1, 8, 3)
        result = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(50, 70)])[0]
        assert result["segmentation"].shape == (50, 70)
        segmenter = pipeline("image-segmentation", model=source, **options)
        assert type(segmenter).__name__ == "MaftPlusSegmentationPipeline"
        assert segmenter(picture, candidate_labels=["cat", "dog"], subtask="semantic")
        assert segmenter(picture, subtask="semantic")
        if source == folder:
            segmenter.model.save_pretrained(again)
            processor.save_pretrained(again)
    assert "maftplus" not in sys.modules
    print("all loaded")
"""


def test_the_pipelines_file_travels_with_a_saved_model(folder, stored, tmp_path):
    stored.save_pretrained(tmp_path)
    for place in (folder, tmp_path):
        names = {path.name for path in place.glob("*.py")}
        assert {"pipeline_maftplus.py", "reading_maftplus.py", "words_maftplus.py"} <= names


def test_everything_loads_and_saves_again_where_the_package_is_not_importable(folder, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_PACKAGE), str(folder), str(tmp_path / "again")]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "all loaded" in run.stdout


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_distractors_compete_and_are_never_reported(pipe, subtask):
    words = LABELS
    thresholds = {"semantic": {}, "instance": {"threshold": 0.0, "min_margin": 0.0}, "panoptic": EVERYTHING}[subtask]
    everything = pipe(picture(), candidate_labels=words, subtask=subtask, **thresholds)
    hidden = everything[0]["label"]
    labels = [word for word in words if word.split(",")[0] != hidden]
    options = {
        "candidate_labels": labels,
        "distractor_labels": [word for word in words if word not in labels],
        "subtask": subtask,
        **thresholds,
    }
    kept = pipe(picture(), **options)
    assert len(kept) < len(everything)
    wanted = [describe(one) for one in everything if one["label"] != hidden]
    if subtask == "instance":  # what a distractor wins is no object, though other words had a share in it
        assert all(describe(one) in wanted for one in kept)
    else:
        assert sorted(map(describe, kept)) == sorted(wanted)


def describe(segment):
    score = segment["score"] or 0.0
    return segment["label"], round(score, 4), int((np.asarray(segment["mask"]) > 0).sum())


def test_a_distractor_that_shares_a_name_with_a_label_is_left_out(pipe):
    options = {"candidate_labels": ["cat, kitten", "dog"], "subtask": "instance", "threshold": 0.0}
    without = pipe(picture(), **options)
    assert pipe(picture(), distractor_labels=["Kitten, cub"], **options) == without
    assert pipe(picture(), distractor_labels=[], **options) == without


def test_distractors_compete_with_the_stored_words_too(stored):
    options = {"subtask": "panoptic", "distractor_labels": ["dog", "cat"], **EVERYTHING}
    kept = stored(picture(), **options)
    given = stored(picture(), candidate_labels=LABELS, stuff_labels=["grass", "sky"], **options)
    assert [one["label"] for one in kept] == [one["label"] for one in given]
    np.testing.assert_allclose([one["score"] for one in kept], [one["score"] for one in given], atol=1e-5)


def test_words_known_before_are_not_encoded_again_for_new_distractors(pipe, monkeypatch):
    calls = []
    encode = pipe.model.encode_vocabulary
    monkeypatch.setattr(pipe.model, "encode_vocabulary", lambda **inputs: calls.append(1) or encode(**inputs))
    for others in (["lake"], ["lake", "pond"], ["lake"]):
        pipe(picture(), candidate_labels=["ship", "boat"], distractor_labels=others, subtask="semantic")
    assert len(calls) == 3


def test_every_segment_names_the_next_best_word(pipe):
    options = {"subtask": "panoptic", **EVERYTHING}
    for segment in pipe(picture(), candidate_labels=["cat", "dog"], **options):
        assert {segment["label"], segment["second_label"]} == {"cat", "dog"}
        assert 0 <= segment["second_score"] <= segment["score"]
    options = {"subtask": "instance", "threshold": 0.0}
    (alone,) = {
        (one["second_label"], one["second_score"]) for one in pipe(picture(), candidate_labels=["cat"], **options)
    }
    assert alone == (None, None)
    semantic = pipe(picture(), candidate_labels=["cat", "dog"], subtask="semantic")
    assert {one["second_label"] for one in semantic} == {None}


def test_score_maps_agree_with_the_semantic_result(pipe):
    result = pipe(picture(), candidate_labels=LABELS, subtask="semantic", return_score_maps=True)
    assert result["labels"] == ["cat", "grass", "sky"]
    maps, confidence = result["score_maps"], result["confidence"]
    assert maps.shape == (3, 50, 70)
    assert maps.min() >= 0
    assert maps.sum(0).max() <= 1 + 1e-6
    torch.testing.assert_close(confidence, maps.amax(0))
    for segment in result["segments"]:
        is_here = torch.from_numpy(np.asarray(segment["mask"]) > 0)
        assert (maps.argmax(0)[is_here] == segment["label_id"]).all()


def test_averaged_with_its_mirror_image_a_picture_and_its_mirror_image_get_the_same(pipe):
    straight = picture(64, 32)
    mirrored = straight.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    options = {"candidate_labels": LABELS, "subtask": "semantic", "return_score_maps": True, "batch_size": 2}

    def maps(**others):
        first, second = pipe([straight, mirrored], **options, **others)
        return first["score_maps"], second["score_maps"].flip(-1)

    torch.testing.assert_close(*maps(flip_average=True), atol=1e-4, rtol=0)
    first, second = maps()
    assert (first - second).abs().max() > 1e-3


def test_score_maps_leave_distractors_out_and_their_share_too(pipe):
    options = {"subtask": "panoptic", "return_score_maps": True}
    with_others = pipe(picture(), candidate_labels=["cat"], distractor_labels=["dog", "tree"], **options)
    together = pipe(picture(), candidate_labels=["cat", "dog", "tree"], **options)
    torch.testing.assert_close(with_others["score_maps"], together["score_maps"][:1])


def test_a_picture_is_encoded_once_for_any_words(pipe, monkeypatch):
    encoded = pipe.encode(picture())
    expected = {word: pipe(picture(), candidate_labels=[word, "sky"], **EVERYTHING) for word in ("cat", "dog")}
    calls = []
    for module in (pipe.model.model.clip.vision_model, pipe.model.model.segmenter.pixel_decoder):
        monkeypatch.setattr(module, "forward", lambda *_, **__: calls.append(1))
    monkeypatch.setattr(pipe.model, "encode_picture", lambda *_, **__: calls.append(1))
    for word, segments in expected.items():
        found = pipe(encoded, candidate_labels=[word, "sky"], **EVERYTHING)
        assert [one["label"] for one in found] == [one["label"] for one in segments]
        np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in segments], atol=1e-5)
    assert calls == []


def test_encoded_pictures_and_others_make_one_batch(pipe):
    options = {"candidate_labels": LABELS, "subtask": "semantic"}
    mixed = [picture(), pipe.encode(picture(96, 40, seed=1)), picture(30, 60, seed=2)]
    results = pipe(mixed, batch_size=3, **options)
    assert [result[0]["mask"].size for result in results] == [(70, 50), (96, 40), (30, 60)]


def test_an_encoded_picture_has_no_mirror_image(pipe):
    with pytest.raises(ValueError, match="`flip_average` needs the picture itself"):
        pipe(pipe.encode(picture()), candidate_labels=LABELS, subtask="semantic", flip_average=True)


def test_an_encoded_picture_of_another_model_is_refused(pipe):
    other = MaftPlusSegmentationPipeline(model=tiny_model(seed=1), processor=tiny_processor(), device="cpu")
    with pytest.raises(ValueError, match="encoded by another model"):
        pipe(other.encode(picture()), candidate_labels=LABELS)


def test_threads_that_share_a_pipeline_get_the_answers_to_their_own_words(pipe):
    def ask(words):
        return [(one["label"], one["score"]) for one in pipe(picture(), candidate_labels=words, **EVERYTHING)]

    vocabularies = [[f"cat {index}", f"dog {index}"] for index in range(12)]
    expected = [ask(words) for words in vocabularies]
    pipe._vocabularies = type(pipe._vocabularies)(2)  # so small that threads push each other's words out
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, vocabularies * 2))
    for ours, theirs in zip(found, expected * 2):
        assert [label for label, _ in ours] == [label for label, _ in theirs]
        np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], atol=1e-5)


def test_a_pipeline_can_be_copied_to_another_process(pipe):
    again = pickle.loads(pickle.dumps(pipe._vocabularies))
    assert len(again) == 0


def test_templates_and_training_classes_are_arguments_of_a_call():
    model, processor = tiny_model(ensemble_alpha=0.4, ensemble_beta=0.8), tiny_processor()
    pipe = MaftPlusSegmentationPipeline(model=model, processor=processor, device="cpu")
    options = {"candidate_labels": ["cat", "dog"], "subtask": "instance", "threshold": 0.0}

    def scores(**others):
        return [one["score"] for one in pipe(picture(), **options, **others)]

    plain = scores()
    templated, seen = scores(templates=["drawing {}"]), scores(training_classes=["cat"])
    assert plain != templated
    assert plain != seen
    assert scores() == plain
    pipe.processor.templates = ["drawing {}"]
    assert scores() == templated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate_labels": ["cat"], "distractor_labels": ["dog", "dog"]}, "`distractor_labels`: Label 1"),
        ({"candidate_labels": ["cat"], "distractor_labels": [""]}, "`distractor_labels`: Label 0"),
        ({"candidate_labels": ["cat"], "min_margin": 2}, "`min_margin` must lie"),
        ({"candidate_labels": ["cat"], "min_margin": 0.5, "subtask": "semantic"}, "`min_margin` has no effect"),
        ({"candidate_labels": ["cat"], "templates": ["no place"]}, "has no `{}`"),
        ({"candidate_labels": ["cat"], "flip_average": True}, "`flip_average` averages class maps"),
        ({"candidate_labels": ["cat"], "training_classes": ["cat", "cat"]}, "repeats"),
    ],
)
def test_bad_distractors_margins_and_templates_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(picture(), **options)


def test_templates_are_refused_for_words_that_are_encoded_already(stored):
    with pytest.raises(ValueError, match="`templates` has no effect on the words stored"):
        stored(picture(), templates=["a {}"])


def test_prebuilt_models_work_with_our_class_given_by_name():
    model, processor = tiny_model(), tiny_processor()
    pipe = pipeline(
        "image-segmentation",
        model=model,
        processor=processor,
        pipeline_class=MaftPlusSegmentationPipeline,
        device="cpu",
    )
    assert pipe(picture(), candidate_labels=["cat"], subtask="semantic")[0]["label"] == "cat"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_model_works_as_it_is():
    model = torch.ao.quantization.quantize_dynamic(tiny_model(), {torch.nn.Linear}, torch.qint8)
    pipe = MaftPlusSegmentationPipeline(model=model, processor=tiny_processor(), device="cpu")
    assert pipe(picture(), candidate_labels=["cat"], subtask="semantic")[0]["label"] == "cat"


def test_a_model_patched_with_adapters_works_as_it_is():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])).eval()
    pipe = MaftPlusSegmentationPipeline(model=model, processor=tiny_processor(), device="cpu")
    assert pipe(picture(), candidate_labels=["cat"], subtask="semantic")[0]["label"] == "cat"
    assert pipe(pipe.encode(picture()), candidate_labels=["dog"], subtask="semantic")[0]["label"] == "dog"


def test_the_stock_class_says_that_it_knows_no_words_of_a_call(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    predictions_maftplus.logger.warning_once.cache_clear()
    model, processor = tiny_model(), tiny_processor()
    model.set_vocabulary(processor, LABELS)
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    stock = pipeline("image-segmentation", model=model, processor=processor, device="cpu", **parts)
    assert type(stock) is ImageSegmentationPipeline
    stock(picture(), candidate_labels=["dog"], threshold=0.0)
    assert "ignores `candidate_labels`" in caplog.text


def test_the_stock_class_without_stored_words_is_told_the_way():
    model, processor = tiny_model(), tiny_processor()
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    stock = pipeline("image-segmentation", model=model, processor=processor, device="cpu", **parts)
    with pytest.raises(ValueError, match="No vocabulary.*MaftPlusSegmentationPipeline"):
        stock(picture(), candidate_labels=["dog"])
