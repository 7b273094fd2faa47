"""MAFT's graph, which reads the words: parity for other numbers of words, and the folder in use."""

import pytest
import torch
from test_proposer import maft, words

from maftplus.deploy.exported import stand_in
from maftplus.deploy.graph import PictureGraph, write_onnx
from maftplus.deploy.sessions import open_session
from maftplus.deploy.verify import MASK_TOLERANCE, compare, relative_difference


@pytest.fixture(scope="module")
def model():
    return maft()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("maft") / "graph.onnx"
    write_onnx(model, path)
    loaded = stand_in(model, runtime="onnx").eval()
    loaded.model.session = open_session("onnx", path, torch.float32)
    return loaded


def test_a_graph_that_reads_words_has_them_among_its_inputs(model):
    assert PictureGraph(model).input_names == ["pixel_values", "pixel_mask", "text_embeds"]


def test_mafts_graph_agrees_at_other_sizes_and_batches(model, exported):
    differences = compare(model, exported, shapes=[(1, 64, 96), (3, 96, 160)])
    assert all(difference.is_within for difference in differences), differences


@pytest.mark.parametrize("count", [1, 5, 11])
def test_it_takes_any_number_of_words_and_pictures_with_padding(model, exported, count):
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    mask[1, 40:], mask[1, :, 70:] = 0, 0
    with torch.no_grad():
        found, expected = (
            one(pixel_values=pixels * mask[:, None], pixel_mask=mask, **words(count)) for one in (exported, model)
        )
    assert found.class_queries_logits.shape == (2, 6, count + 1)
    assert relative_difference(found.masks_queries_logits, expected.masks_queries_logits) < 10 * MASK_TOLERANCE
    assert found.unpadded_sizes.tolist() == [[64, 96], [40, 70]]


def test_a_picture_is_read_once_the_words_are_there(exported):
    picture = exported.encode_picture(torch.zeros(1, 3, 64, 64))
    assert picture.masks_queries_logits is None
    assert exported.classify(picture, **words(2)).masks_queries_logits.shape == (1, 6, 64, 64)
