"""README, CONTRIBUTING and docs/: every block of Python and shell runs, or is listed here with the reason why not."""

from pathlib import Path

import pytest
from docs_files import GIVEN
from docs_tools import ROOT, link_checkout, pages, read_blocks, run_blocks, run_shell

README_LINES = 120
# Every block that does not run: page, its first line, why. A new one is added here and marked on its page.
NOT_RUN = [
]


def blocks_of(page: str):
    return read_blocks(page, (ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", pages())
def test_the_examples_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    link_checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run_blocks(blocks_of(page), tmp_path, GIVEN)


def test_the_blocks_that_do_not_run_are_exactly_those_listed_here():
    not_run = [(block.page, block.title, block.reason) for page in pages() for block in blocks_of(page) if block.reason]
    assert sorted(not_run) == sorted(NOT_RUN)


def test_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_links_between_pages_and_to_files_lead_somewhere():
    ...
