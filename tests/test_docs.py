"""README, CONTRIBUTING and docs/: every block of Python and shell runs, or is listed here with the reason why not."""

import re
from pathlib import Path

import pytest
from docs_files import GIVEN
from docs_tools import ROOT, is_ignored, link_checkout, pages, read_blocks, run_blocks, run_shell

README_LINES = 120
# Every block that does not run: page, its first line, why. A new one is added here and marked on its page.
NOT_RUN = [
    (
        "README.md",
        "pip install torch        # first, and the build for your machine: https://pytorch.org/get-started/locally",
        "the network",
    ),
    ("README.md", 'pip install ".[get]"', "the network"),
    ("docs/get.md", 'pip install ".[get]"         # gdown, for Google Drive', "the network"),
    (
        "docs/get.md",
        "maftplus get maftplus-large --from maftp_l.pth --tokenizer bpe_simple_vocab_16e6.txt.gz",
        "the file of a released model",
    ),
    (
        "docs/get.md",
        "python tests/first_minute.py out/first_minute --picture photo.jpg",
        "9 GB of disk and a minute or two",
    ),
    (
        "docs/benchmarks.md",
        "python tests/check_reference.py FOLDER",
        "tensors recorded from the original code, which are not in this repository",
    ),
    ("docs/integrations.md", "import fiftyone", "fiftyone"),
    ("docs/integrations.md", "import numpy as np", "label-studio-ml"),
    ("docs/integrations.md", "import cvat_sdk.auto_annotation as cvataa", "cvat-sdk"),
    ("docs/evaluate.md", "maftplus prepare ade20k_panoptic datasets", "the full ADE20K with its instances"),
    (
        "docs/experiments.md",
        "python shapes/ablation.py --minutes 40        # goes on where the last call stopped, ends after a piece",
        "hours of two cores, a piece at a time",
    ),
    (
        "docs/experiments.md",
        "python shapes/make_model.py --out runs/my_shapes --seed 1   # how the shipped model is made",
        "an hour of one core",
    ),
    (
        "docs/experiments.md",
        "python shapes/unseen_words.py --msrc MSRC_v2 --embeddings zegclip_vitb16/coco_multi.npy \\",
        "the MSRC-21 photographs, CLIP's vectors and half an hour",
    ),
    (
        "docs/train.md",
        "accelerate launch train/run.py train/recipes/maftplus_base.yaml --do_train --do_eval \\",
        "COCO-Stuff, the weights of OpenCLIP and GPUs",
    ),
    (
        "docs/train.md",
        "python train/run.py train/recipes/overfit.yaml --do_train --dataset hub:NAME --image_column image \\",
        "the network",
    ),
    ("docs/deploy.md", "import torch", "a folder exported for OpenVINO, which takes minutes"),
    (
        "docs/finetune.md",
        "maftplus finetune --data msrc --model scratch --out runs/msrc",
        "the MSRC-21 photographs and an hour",
    ),
    (
        "docs/finetune.md",
        "python shapes/new_things_runs.py --out runs/new --presets lora --max_steps 3000 --learning-rate 0.004 "
        "--lora-rank 16 --patience 0",
        "two hours of one core",
    ),
    ("docs/scale.md", "ray start --head --port 6379              # on the first machine", "a Ray cluster"),
    (
        "docs/page.md",
        "maftplus page --model shapes       # a folder, a name of `maftplus get`, or one of the Hub",
        "somebody who stops it",
    ),
    ("docs/page.md", "maftplus page --model shapes --space my_space", "pip and setuptools, which build the wheel"),
    ("docs/page.md", "python -m venv my_space/venv", "the network"),
]


def blocks_of(page: str):
    return read_blocks(page, (ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", pages())
def test_the_examples_of_a_page_run_in_order_and_write_what_git_ignores(page, tmp_path, monkeypatch):
    blocks = blocks_of(page)
    link_checkout(tmp_path)
    for name in dict.fromkeys(name for block in blocks for name in block.given):
        GIVEN[name](tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run_blocks(blocks)
    written = {path.name for path in tmp_path.iterdir()} - before
    assert not [name for name in written if not is_ignored(name)]


def test_the_blocks_that_do_not_run_are_exactly_those_listed_here():
    not_run = [
        (block.page, block.title, block.reason) for page in pages() for block in blocks_of(page) if block.reason
    ]
    assert sorted(not_run) == sorted(NOT_RUN)


def test_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", [*pages(), "CHANGELOG.md", "LOG.md", "models/shapes/README.md"])
def test_links_to_files_and_headings_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)|src=\"(?!https?:)([^\"]+)\"", text)
    for target in (one or other for one, other in targets):
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not heading or heading in headings(file), f"{page}: {target}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_a_failing_block_is_named_with_its_page_and_line():
    blocks = read_blocks("page.md", "# Page\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_blocks(blocks)
    assert "page.md, line 4" in caught.value.__notes__[0]


def test_blocks_of_a_page_share_their_names_and_marks_change_what_is_run():
    text = """
```python
steps = 60000
```
<!-- test: replace "wrong" with "1" -->
```python
assert steps == 60000
steps = wrong
```
<!-- test: needs a GPU -->
```python
raise RuntimeError
```
```python
assert steps == 1
```
"""
    run_blocks(read_blocks("page.md", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nls\n```\n", "language"),
        ("<!-- test: nonsense -->\n```bash\nls\n```\n", "nonsense"),
        ('<!-- test: replace "cat" with "dog" -->\n```bash\nls\n```\n', "does not hold it"),
    ],
)
def test_what_the_marks_do_not_mean_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_blocks("page.md", text)


def test_a_command_that_exits_otherwise_than_the_page_says_fails():
    run_shell("false", exit_code=1)
    with pytest.raises(AssertionError, match="exits with 1 instead of 0"):
        run_shell("false\ntrue")
