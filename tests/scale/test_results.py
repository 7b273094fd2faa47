"""Summaries of results: which pictures are shown, and which errors are one kind."""

import pytest

from maftplus.scale import read_results
from maftplus.scale.summary import SHOWN, _Choice, _mean_score, error_kind


def test_errors_that_differ_by_name_and_number_are_one_kind():
    errors = [f"ValueError: '{key}': no picture in {size} bytes." for key, size in (("a", 1), ("b/2.png", 20))]
    kinds = {error_kind(error) for error in errors}
    assert kinds == {"ValueError: it: no picture in N bytes."}


def test_sheets_show_the_best_the_most_doubtful_and_any():
    choice = _Choice(seed=0)
    for start in range(0, 100, 10):
        choice.offer([(key / 100, 0, str(key)) for key in range(start, start + 10)])
    sheets = {name: [int(key) for _, _, key in entries] for name, entries in choice.sheets().items()}
    assert sheets["Best"] == list(range(99, 99 - SHOWN, -1))
    assert sheets["Doubtful"] == list(range(SHOWN))
    assert len(set(sheets["Random"])) == SHOWN
    assert max(sheets["Random"]) > 50 > min(sheets["Random"])


def test_pictures_without_scores_are_shown_at_random_only():
    choice = _Choice(seed=0)
    choice.offer([(None, 0, "a")])
    assert choice.sheets() == {"Random": [[None, 0, "a"]], "Best": [], "Doubtful": []}


def test_a_score_is_the_mean_of_the_area():
    segments = [{"score": 0.5, "area": 3}, {"score": 0.9, "area": 1}, {"score": None, "area": 5}]
    assert _mean_score(segments) == pytest.approx(0.6)
    assert _mean_score([]) is None


def test_a_folder_without_a_job_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no job here"):
        read_results(str(tmp_path))
