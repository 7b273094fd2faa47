"""The exported graph and its stand-in: parity by construction, proof, refusal."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from transformers import AutoModelForUniversalSegmentation, pipeline
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.app.models import describe_network, load_pipeline
from maftplus.deploy.export import export
from maftplus.deploy.exported import MaftPlusExportedForUniversalSegmentation, stand_in
from maftplus.deploy.graph import check_exportable
from maftplus.deploy.sessions import open_session
from maftplus.deploy.verify import TIE, Ties, _count_ties, agreement, compare, random_pictures, relative_difference
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor

LABELS = ["cat, kitten", "grass", "dog"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(model_folder) -> MaftPlusForUniversalSegmentation:
    return MaftPlusForUniversalSegmentation.from_pretrained(model_folder).eval()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8))


def test_the_graph_computes_what_the_model_computes_at_sizes_and_batches_it_never_saw(model, onnx_folder):
    exported = MaftPlusExportedForUniversalSegmentation.from_pretrained(onnx_folder).eval()
    differences = compare(model, exported, shapes=[(1, 64, 96), (3, 96, 160), (5, 64, 64)])
    assert all(difference.is_within for difference in differences), differences


def test_inputs_and_outputs_have_names_and_free_sizes(graph):
    described = onnx.load(graph).graph
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*described.input, *described.output)
    }
    assert [*sizes] == [
        "pixel_values",
        "masks_queries_logits",
        "mask_embeds",
        "class_embeds",
        "dense_embeds",
        "attention_masks",
    ]
    free = [isinstance(size, str) for size in sizes["pixel_values"]]
    assert free == [True, False, True, True]
    assert len({size for size in sizes["pixel_values"] if isinstance(size, str)}) == 3


def test_the_file_says_nothing_of_the_machine_that_wrote_it(graph):
    content = graph.read_bytes()
    for text in (b"site-packages", b"stack_trace", b".py", str(graph.parent).encode()):
        assert text not in content


def test_the_graph_has_no_loop_and_no_gather_of_many_axes(graph):
    kinds = {node.op_type for node in onnx.load(graph).graph.node}
    assert not kinds & {"Loop", "GatherND", "Scan"}


def test_pipeline_and_auto_class_take_an_exported_folder_like_any_other(model_folder, onnx_folder, picture):
    found, expected = (
        pipeline("image-segmentation", model=str(folder), trust_remote_code=True)(
            picture, candidate_labels=LABELS, subtask="semantic"
        )
        for folder in (onnx_folder, model_folder)
    )
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    shares = [np.mean(np.asarray(a["mask"]) == np.asarray(b["mask"])) for a, b in zip(found, expected)]
    assert min(shares) > 0.99
    loaded = AutoModelForUniversalSegmentation.from_pretrained(onnx_folder)
    assert isinstance(loaded, MaftPlusExportedForUniversalSegmentation)
    assert loaded.config.id2label == {0: "cat", 1: "grass", 2: "sky"}


def test_the_segment_command_takes_an_exported_folder_and_says_what_runs_it(onnx_folder, picture, tmp_path):
    picture.save(tmp_path / "one.png")
    result = run("segment", tmp_path / "one.png", "--model", onnx_folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "network: ONNX Runtime" in result.output
    assert (tmp_path / "out" / "one.json").is_file()
    assert describe_network(load_pipeline(str(onnx_folder), "cpu")).endswith("float32")


def test_an_exported_model_holds_no_weight_of_the_picture_half(onnx_folder):
    loaded = MaftPlusExportedForUniversalSegmentation.from_pretrained(onnx_folder)
    names = {name for name, _ in loaded.named_parameters()}
    assert not [name for name in names if "vision_model" in name or "decoder" in name]
    assert {"model.segmenter.logit_scale", "model.clip.logit_scale", "model.void_embedding.weight"} <= names


def test_an_exported_model_refuses_what_its_graph_does_not_compute(onnx_folder):
    loaded = MaftPlusExportedForUniversalSegmentation.from_pretrained(onnx_folder)
    with pytest.raises(ValueError, match="proposal_logits"):
        loaded(pixel_values=torch.zeros(1, 3, 64, 64), proposal_logits=torch.zeros(1, 2, 16, 16))


def test_a_stand_in_without_a_graph_encodes_words_as_its_model_does(model, model_folder):
    prompts = MaftPlusProcessor.from_pretrained(model_folder)(text=LABELS, return_tensors="pt")
    expected, found = (each.encode_vocabulary(**prompts) for each in (model, stand_in(model)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_folder_without_its_graph_is_named(onnx_folder, tmp_path):
    folder = shutil.copytree(onnx_folder, tmp_path / "damaged")
    (folder / "graph.onnx").unlink()
    with pytest.raises(OSError, match="graph.onnx"):
        MaftPlusExportedForUniversalSegmentation.from_pretrained(folder)


def test_the_command_proves_the_graph_and_writes_the_proof_into_the_card(model_folder, with_graph, tmp_path):
    result = run("export", model_folder, tmp_path / "out")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 3 | 352 x 544 |" in card
    assert "| 5 | 96 x 128 |" in card


def test_one_altered_weight_makes_the_command_exit_with_1(model_folder, with_graph, tmp_path):
    altered = shutil.copytree(model_folder, tmp_path / "altered")
    model = MaftPlusForUniversalSegmentation.from_pretrained(altered)
    with torch.no_grad():
        model.model.segmenter.decoder.mask_embedder.layers[2].bias[0] += 0.1
    model.save_pretrained(altered)
    result = run("export", altered, tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert (tmp_path / "out" / "graph.onnx").is_file()


def test_openvino_takes_the_same_graph_and_its_precision_is_that_of_the_model(
    model, model_folder, with_graph, tmp_path
):
    pytest.importorskip("openvino")
    report = export(str(model_folder), tmp_path / "out", runtime="openvino")
    assert report.is_within, report
    assert str(tmp_path).encode() not in (tmp_path / "out" / "graph.xml").read_bytes()
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert loaded.runtime.startswith("OpenVINO")
    assert loaded.runtime.endswith("bfloat16")


def test_a_graph_of_one_size_computes_the_same_and_other_sizes_still_run(model, graph):
    pytest.importorskip("openvino")
    exported = stand_in(model, runtime="openvino").eval()
    exported.model.session = open_session("openvino", graph, torch.float32)
    pictures = [random_pictures(shape) for shape in ((1, 64, 96), (2, 96, 64))]
    expected = [exported.encode_picture(each).masks_queries_logits for each in pictures]
    exported.fix_size(64, 96)
    found = [exported.encode_picture(each).masks_queries_logits for each in pictures]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="must be multiples of 32"):
        exported.fix_size(64, 100)


def test_one_size_is_for_openvino(onnx_folder):
    exported = MaftPlusExportedForUniversalSegmentation.from_pretrained(onnx_folder)
    with pytest.raises(ValueError, match="`fix_size` is for OpenVINO"):
        exported.fix_size(64, 96)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_int8_is_calibrated_on_pictures_and_its_agreement_is_measured(
    model_folder, with_graph, picture, tmp_path, runtime
):
    pytest.importorskip("nncf")
    (tmp_path / "photos").mkdir()
    for index in range(2):
        picture.rotate(90 * index).save(tmp_path / "photos" / f"{index}.png")
    report = export(str(model_folder), tmp_path / "out", runtime, int8=True, calibrate=tmp_path / "photos")
    assert report.on_pictures
    assert 0.5 < report.agreement <= 1
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert "int8" in loaded.runtime


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--calibrate"),
        (["--dtype", "bfloat16"], "OpenVINO"),
        (["--calibrate", "photos"], "--int8"),
        (["--int8", "--calibrate", "empty"], "no picture"),
    ],
)
def test_options_that_do_not_fit_end_in_one_line(model_folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = run("export", model_folder, "out", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_runtime_is_one_line_that_names_the_extra(model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    result = run("export", model_folder, tmp_path / "out")
    assert result.exit_code == 2
    assert 'pip install "maftplus[onnx]"' in result.output


def test_a_model_without_a_proposer_of_its_own_is_refused(model):
    model.config.proposer_config = model.config.clip_config
    with pytest.raises(ValueError, match="proposes masks itself"):
        check_exportable(model)


def test_ties_are_counted_and_a_clear_difference_is_no_tie():
    logits = torch.tensor([[[1.0, 1e-7, -1.0], [1.0, 2.0, -1.0]]])
    ties = Ties()
    _count_ties(ties, logits, logits >= 0, torch.tensor([[[True, False, False], [True, True, False]]]))
    assert ties.count == 1
    assert ties.largest < TIE
    _count_ties(ties, logits, logits >= 0, torch.tensor([[[True, True, False], [True, False, False]]]))
    assert ties.count == 2
    assert ties.largest == 1


def test_a_query_that_sees_everything_on_one_side_is_a_tie_if_its_largest_logit_is():
    logits = torch.tensor([[[-1e-7, -2.0, -3.0]]])
    ties = Ties()
    _count_ties(ties, logits, torch.ones(1, 1, 3, dtype=torch.bool), torch.tensor([[[True, False, False]]]))
    assert ties.count == 1
    assert ties.largest < TIE


def test_a_difference_is_relative_to_the_largest_value_and_nan_is_infinite():
    assert relative_difference(torch.tensor([10.0, 1.0]), torch.tensor([10.0, 2.0])) == pytest.approx(0.1)
    assert relative_difference(torch.tensor([0.5]), torch.tensor([0.25])) == pytest.approx(0.25)
    assert relative_difference(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")


def test_agreement_of_a_model_with_itself_is_whole(model):
    assert agreement(model, model, [random_pictures((1, 64, 96))]) == 1
