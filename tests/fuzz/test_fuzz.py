"""A seeded share of the fuzzing, 24 seconds in all; `make fuzz MINUTES=5` goes on from there."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from fuzz import brute_force
from fuzz.fuzzing import TARGETS, in_words
from fuzz.targets import Target, refused, run_target
from hypothesis import strategies as st

SECONDS = 24
SECURITY = Path(__file__).parents[2] / "SECURITY.md"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_is_found_in_a_seeded_share(target):
    counts = run_target(target, SECONDS * TARGETS[target] / sum(TARGETS.values()), first_seed=12)
    assert counts["FOUND"] == 0, in_words(counts)
    assert sum(counts.values()) - counts["slowest_ms"] >= 3


def test_a_finding_is_counted():
    def check(case, folder):
        raise KeyError("found")

    assert run_target(Target("broken", st.integers(), check), seconds=0.2)["FOUND"] > 0


def test_a_hang_is_a_finding(monkeypatch):
    def check(case, folder):
        while True:
            pass

    monkeypatch.setattr("fuzz.targets.CASE_SECONDS", 0.05)
    assert run_target(Target("endless", st.just(0), check), seconds=0.1)["FOUND"] > 0


def test_an_error_must_name_the_input():
    assert refused(ValueError("a.png: broken"), "a.png") == "refused"
    with pytest.raises(AssertionError, match="names none of"):
        refused(ValueError("broken"), "a.png")


def test_one_wrong_pixel_is_a_difference():
    masks = torch.tensor([4.0, -4.0]).view(2, 1, 1).expand(2, 3, 3).contiguous()
    classes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    picture = brute_force.Picture(classes, masks, (12, 12), (12, 12), (5, 5))
    found = torch.zeros(5, 5, dtype=torch.int64)
    assert brute_force.check_semantic(picture, "class_maps", found) == 0
    found[2, 3] = 1
    with pytest.raises(AssertionError, match="1 pixels"):
        brute_force.check_semantic(picture, "class_maps", found)


def test_the_plain_post_processing_knows_ties():
    picture = brute_force.Picture(torch.zeros(2, 3), torch.ones(2, 2, 2), (8, 8), (8, 8), (4, 4))
    assert brute_force.check_semantic(picture, "mask_logits", torch.zeros(4, 4, dtype=torch.int64)) == 16


def test_every_limit_that_the_security_page_names_exists():
    rows = [line for line in SECURITY.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    names = re.findall(r"`([A-Za-z_.]+)\.([A-Z_]+)`(?:, `([A-Z_]+)`)?(?:, `([A-Z_]+)`)?", "\n".join(rows))
    assert len(names) == 8
    for module, *limits in names:
        home = importlib.import_module(module if module.startswith("PIL") else f"maftplus.{module}")
        assert all(getattr(home, limit) > 0 for limit in limits if limit)
