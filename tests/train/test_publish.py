"""What a run leaves and pushes: only what it wrote, no secrets, private stays private, names that are no markup."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_tools import write_folder_data

from maftplus.train import publish
from maftplus.train.publish import MANIFEST, escaped, fenced, push_files
from maftplus.train.run import main

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
SECRET = "hf_nobodyMayReadThis"


class Hub:
    """Stands in for `HfApi`: remembers every call."""

    def __init__(self, private: bool = True):
        self.calls, self.private = {}, private

    def __call__(self, token=None):
        self.calls["token"] = token
        return self

    def create_repo(self, repository, **options):
        self.calls["create_repo"] = {"repository": repository, **options}
        return SimpleNamespace(repo_id=repository)

    def repo_info(self, repository, token=None):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options):
        self.calls["upload_folder"] = options


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = Hub()
    monkeypatch.setattr(publish, "HfApi", hub)
    return hub


def test_a_run_pushes_what_it_wrote_and_its_token_stands_in_no_file(tmp_path, hub):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".env", "id_rsa.pem", "customers.csv"):
        (out / name).write_text("mine")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((RECIPES / "overfit.yaml").read_text() + f"hub_token: {SECRET}\n")
    options = {**write_folder_data(tmp_path), "output_dir": out, "hub_model_id": "somebody/tiny", "max_steps": 1}
    options.update(hub_token=SECRET, hub_private_repo="true", data_sets="folder", max_eval_samples=1)
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    switches = ["--do_train", "--do_eval", "--push_to_hub", "--use_cpu", "--disable_tqdm", "true"]
    switches.append(f"--hub_token={SECRET}")  # either form
    main([str(recipe), *switches, "--save_strategy", "steps", "--save_steps", "1", *given])
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == [recipe]
    assert hub.calls["token"] == hub.calls["upload_folder"]["token"] == hub.calls["create_repo"]["token"] == SECRET
    assert hub.calls["create_repo"]["private"] is True
    pushed = set(hub.calls["upload_folder"]["allow_patterns"])
    assert {"model.safetensors", "config.json", "README.md", "results.json", "tokenizer.json"} <= pushed
    assert not {".env", "id_rsa.pem", "customers.csv", "training_args.bin"} & pushed
    assert not any("checkpoint-" in name for name in pushed)


def test_nothing_is_pushed_to_a_public_repository_that_should_be_private(tmp_path, hub):
    hub.private = False
    (tmp_path / "a.txt").write_text("a")
    assert not push_files(tmp_path, [tmp_path / "a.txt"], "somebody/open", private=True)
    assert "upload_folder" not in hub.calls
    assert "public" in json.loads((tmp_path / MANIFEST).read_text())["reason"]


def test_an_error_of_the_hub_does_not_write_the_token_down(tmp_path, hub, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError(f"401 for {SECRET}")

    monkeypatch.setattr(hub, "create_repo", fail)
    (tmp_path / "a.txt").write_text("a")
    assert not push_files(tmp_path, [tmp_path / "a.txt"], "somebody/tiny", token=SECRET)
    assert SECRET not in (tmp_path / MANIFEST).read_text()


def test_file_names_are_no_patterns(tmp_path, hub):
    (tmp_path / "a[1]*.csv").write_text("a")
    push_files(tmp_path, [tmp_path / "a[1]*.csv"], "somebody/tiny")
    assert hub.calls["upload_folder"]["allow_patterns"] == ["a[[]1][*].csv"]


def test_names_in_a_card_are_no_markup():
    assert escaped("[x](http://y)<b>\n# z") == r"\[x\]\(http://y\)\<b\> \# z"
    assert fenced("a\n```\nb").startswith("````\n")
