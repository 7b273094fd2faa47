"""Large pictures in tiles: where these lie, and how their results are joined."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tools import tiny_model, tiny_processor

from maftplus.pipeline_maftplus import MaftPlusSegmentationPipeline
from maftplus.predictions_maftplus import read_predictions
from maftplus.tiles_maftplus import InstanceSeams, PanopticSeams, SemanticSeams, check_tiling, plan_tiles

LABELS = ["cat, kitten", "grass", "sky"]


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return MaftPlusSegmentationPipeline(
        model=tiny_model(), processor=tiny_processor(), task="image-segmentation", device="cpu"
    )


def info(label_id=0, score=0.5):
    return {"label_id": label_id, "score": score, "second_label_id": None, "second_score": None}


def split(mask, tiles, infos):
    """A mask of the picture as each tile sees it."""
    for tile, one in zip(tiles, infos):
        part = torch.from_numpy(mask[tile.window])
        yield tile, [(one, part)] if part.any() else []


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 200), (130, 129), (500, 77)])
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_tiles_cover_the_picture_and_overlap_by_at_least_as_much_as_asked(size, overlap):
    tiles = plan_tiles(size, 64, overlap)
    covered = np.zeros(size, dtype=int)
    decided = np.full(size, -1)
    for index, tile in enumerate(tiles):
        covered[tile.window] += 1
        decided[tile.own] = index
        assert [part.stop - part.start for part in tile.window] == [min(64, edge) for edge in size]
    assert covered.min() == 1
    assert len(set(decided.ravel())) == len(tiles)  # none is there for nothing
    rows = sorted({(tile.rows.start, tile.rows.stop) for tile in tiles})
    assert all(before[1] - after[0] >= overlap for before, after in zip(rows, rows[1:]))


def test_a_tile_below_what_the_network_takes_and_a_wrong_overlap_are_refused():
    assert check_tiling(64, None, least=32) == 16
    with pytest.raises(ValueError, match="`tile_size` must be at least 32 pixels, .* got 31"):
        check_tiling(31, None, least=32)
    for overlap in (-1, 33):
        with pytest.raises(ValueError, match="`tile_overlap` must lie between 0 and half"):
            check_tiling(64, overlap, least=32)


@pytest.mark.parametrize("make", [PanopticSeams, InstanceSeams])
def test_an_object_across_seams_is_one_object_with_its_best_score(make):
    mask = np.zeros((100, 100), dtype=bool)
    mask[30:75, 20:90] = True
    tiles = plan_tiles(mask.shape, 64, 16)
    seams = make(mask.shape)
    for tile, segments in split(mask, tiles, [info(score=score) for score in (0.3, 0.9, 0.4, 0.5)]):
        seams.add(tile, segments)
    ((found, joined),) = seams.result()
    assert found["score"] == 0.9
    np.testing.assert_array_equal(joined.numpy(), mask)


@pytest.mark.parametrize("make", [PanopticSeams, InstanceSeams])
def test_another_class_and_a_mask_elsewhere_are_not_joined(make):
    size = (64, 112)
    left, right = plan_tiles(size, 64, 16)
    for second_label, second_rows in ((1, slice(10, 40)), (0, slice(38, 64))):
        seams = make(size)
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 10:40, 20:] = True
        masks[1, second_rows, :30] = True
        seams.add(left, [(info(0), masks[0])])
        seams.add(right, [(info(second_label), masks[1])])
        assert len(list(seams.result())) == 2


def test_two_objects_side_by_side_stay_two():
    size = (64, 112)
    seams = InstanceSeams(size)
    for tile in plan_tiles(size, 64, 16):
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 5:30], masks[1, 34:60] = True, True
        seams.add(tile, [(info(score=0.9), masks[0]), (info(score=0.8), masks[1])])
    found = list(seams.result())
    assert [one["score"] for one, _ in found] == [0.9, 0.8]
    assert [int(mask.sum()) for _, mask in found] == [25 * 112, 26 * 112]


def test_stuff_is_one_segment_though_its_parts_never_meet():
    size = (64, 200)
    tiles = plan_tiles(size, 64, 16)
    masks = [torch.zeros(64, 64, dtype=torch.bool) for _ in tiles]
    masks[0][:, :10], masks[-1][:, -10:] = True, True
    results = {}
    for stuff in ((), (0,)):
        seams = PanopticSeams(size, stuff)
        for tile, mask in zip(tiles, masks):
            seams.add(tile, [(info(0), mask)] if mask.any() else [])
        results[stuff] = list(seams.result())
    assert [len(found) for found in results.values()] == [2, 1]


def test_each_tile_decides_up_to_the_middle_of_an_overlap():
    size = (64, 112)
    seams = PanopticSeams(size)
    everything = torch.ones(64, 64, dtype=torch.bool)
    for label, tile in enumerate(plan_tiles(size, 64, 16)):
        seams.add(tile, [(info(label), everything)])
    (_, first), (_, second) = seams.result()
    assert first[:, :56].all()
    assert not first[:, 56:].any()
    assert second[:, 56:].all()
    assert not second[:, :56].any()


def test_class_scores_are_averaged_where_tiles_overlap():
    """Two tiles, one query and one class each way: the surer one wins all but the other's side of the overlap."""
    size = (64, 96)
    tiles = plan_tiles(size, 64, 32)
    seams = SemanticSeams(size, tiles, "class_maps")
    for tile, probabilities in zip(tiles, ([0.9, 0.1], [0.2, 0.8])):
        logits = torch.tensor([[[*probabilities, 1e-8]]]).log()
        outputs = Outputs(logits, torch.full((1, 1, 16, 16), 20.0))
        seams.add(tile, next(read_predictions(outputs, [(64, 64)])))
    x = torch.arange(32, 64) + 0.5
    weights = torch.stack([64 - x, x - 32])  # of either tile: the distance from its end
    scores = torch.tensor([[0.9, 0.2], [0.1, 0.8]]) @ weights
    assert (seams.labels[0, :32] == 0).all()
    assert (seams.labels[0, 64:] == 1).all()
    torch.testing.assert_close(seams.labels[0, 32:64].long(), scores.argmax(0))


class Outputs:
    def __init__(self, class_queries_logits, masks_queries_logits):
        self.class_queries_logits, self.masks_queries_logits = class_queries_logits, masks_queries_logits


def test_scores_are_kept_of_two_rows_of_tiles_only():
    size = (320, 128)
    tiles = plan_tiles(size, 64, 16)
    seams = SemanticSeams(size, tiles, "class_maps")
    for tile in tiles:
        outputs = Outputs(torch.zeros(1, 1, 3), torch.zeros(1, 1, 16, 16))
        seams.add(tile, next(read_predictions(outputs, [(64, 64)])))
        assert len(seams._items) <= 2 * 3


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_a_picture_no_larger_than_a_tile_gives_what_it_gives_without(pipe, subtask):
    options = {"candidate_labels": LABELS, "stuff_labels": ["grass"], "subtask": subtask}
    options |= {} if subtask == "semantic" else {"threshold": 0.0}
    whole, tiled = pipe(noise(70, 50), **options), pipe(noise(70, 50), tile_size=96, **options)
    assert [(one["label"], one["score"]) for one in tiled] == [(one["label"], one["score"]) for one in whole]
    for one, other in zip(whole, tiled):
        np.testing.assert_array_equal(np.asarray(one["mask"]), np.asarray(other["mask"]))


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_results_in_tiles_have_the_pictures_size_whatever_the_batch(pipe, subtask):
    options = {"candidate_labels": LABELS, "distractor_labels": ["sand"], "subtask": subtask, "tile_size": 64}
    options |= {} if subtask == "semantic" else {"threshold": 0.0, "min_margin": 0.0}
    alone, batched = (pipe([noise(150, 90)], batch_size=size, **options)[0] for size in (1, 4))
    assert alone
    for one, other in zip(alone, batched, strict=True):
        assert one["mask"].size == (150, 90)
        assert (np.asarray(one["mask"]) != np.asarray(other["mask"])).mean() < 1e-3
    if subtask != "instance":
        assert sum((np.asarray(one["mask"]) > 0).astype(int) for one in alone).max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 16}, "at least 32 pixels"),
        ({"tile_size": 64, "tile_overlap": 40}, "half of `tile_size`"),
        ({"tile_overlap": 8}, "no effect without `tile_size`"),
        ({"tile_size": 64, "return_score_maps": True}, "Score maps are as large as the picture"),
    ],
)
def test_bad_tilings_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(noise(70, 50), candidate_labels=LABELS, **options)
