"""Heat maps: their colours, their scale, and where they are written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maftplus.pictures.heatmap import colourise, heatmap_image
from maftplus.pictures.results import heatmap_paths


def test_colours_grow_brighter_with_the_score():
    colours = colourise(np.linspace(0, 1, 11)).astype(int)
    assert (np.diff(colours.sum(-1)) > 0).all()


def test_a_heat_map_shows_scores_in_their_places_beside_a_bar_of_all_colours():
    scores = np.zeros((500, 600))
    scores[:, 300:] = 1.0
    drawing = np.asarray(heatmap_image(Image.new("RGB", (600, 500)), scores, "cat")).astype(int)
    below_title = drawing[drawing.shape[0] // 2]
    assert below_title[450].sum() > below_title[150].sum() + 200
    bar = drawing[60:530, 600 + 20].sum(-1)  # right of the picture
    assert (np.diff(bar) <= 3).all()
    assert bar[0] > bar[-1] + 200


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (3000, 20)])
def test_a_heat_map_can_be_drawn_for_any_size(size):
    drawing = heatmap_image(Image.new("RGB", size), np.zeros(size[::-1]), "a word " * 30)
    assert max(drawing.size) < 12_000


def test_scores_of_another_size_are_refused():
    with pytest.raises(ValueError, match="`scores`"):
        heatmap_image(Image.new("RGB", (6, 5)), np.zeros((6, 5)), "cat")


def test_every_word_has_a_file_of_its_own_whatever_its_letters():
    words = ["cat", "Cat", "a/b", "a b", "кошка", "😀", "..", "x" * 300]
    paths = heatmap_paths(Path("out") / "one", words)
    assert len({str(path).casefold() for path in paths}) == len(words)
    assert {path.parent for path in paths} == {Path("out")}
    assert paths[4].name == "one_heatmap_кошка.png"
    assert max(len(path.name.encode()) for path in paths) < 255
