"""Options: recipes too large or broken, unknown options, what is recorded of a command, groups of `--help`."""

import io

import pytest

from maftplus.train.options import (
    OptionParser,
    is_secret,
    parse_arguments,
    read_recipe,
    recorded_command,
    recorded_recipe,
)
from maftplus.train.run import USER_ERROR, run

SECRET = "hf_nobodyMayReadThis"


def test_an_unknown_option_is_answered_with_the_nearest_one(tmp_path):
    with pytest.raises(ValueError, match="unknown option --learning_rat; did you mean --learning_rate"):
        parse_arguments(["--output_dir", str(tmp_path), "--learning_rat", "1"])


def test_the_old_spelling_of_data_sets_is_still_read(tmp_path):
    recipe = tmp_path / "old.yaml"
    recipe.write_text("benchmarks: ade20k_150\nbenchmark_batch_size: 4\n")
    _, data, _ = parse_arguments([str(recipe), "--output_dir", str(tmp_path)])
    assert (data.data_sets, data.data_set_batch_size) == (["ade20k_150"], 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1,\nb: }", "line 2: not a recipe in YAML"),
        ("output_dir: caf\u00e9".encode("latin-1"), "a recipe is UTF-8"),
        ("output_dir: a".encode("utf-16"), "a recipe is UTF-8"),
        (b"- a\n- b\n", "a recipe is a mapping of options, got list"),
        (b"a: &a [*a]", "a recipe holds at most"),
        (b"a: " + b"[" * 5000, "not a recipe in YAML"),
        (b"#" * (1 << 19), "a recipe has at most"),
    ],
)
def test_a_bad_recipe_is_named_in_one_line(content, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.yaml.*{message}") as error:
        read_recipe(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_recipe_of_a_billion_laughs_ends(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="laughs.yaml: a recipe holds at most"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_steps", "abc"], "invalid int value: 'abc'"),
        (["--model_config", '{"num_queries": '], "`model_config` must be JSON"),
        (["--augmentation", "{}"], "`augmentation` must be a JSON list"),
        (["--max_train_samples", "0"], "`max_train_samples` must be at least 1"),
        (["--copy_paste", "2"], "`copy_paste` is a probability between 0 and 1"),
        (["--image_folder", "nowhere"], "nowhere does not exist"),
        (["--dataset", "shapes"], "`dataset` must be 'folder'"),
        (["nowhere.yaml"], "'nowhere.yaml' belongs to no option"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    common = ["--output_dir", str(tmp_path / "out"), "--do_train", "--use_cpu", "--tokenizer_name_or_path", "bytes"]
    data = ["--dataset", "folder", "--label_folder", "nowhere", "--vocabulary", "pascal_voc_20"]
    assert run([*common, *data, *arguments]) == USER_ERROR
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in captured.err


def test_help_shows_our_options_apart_from_the_trainers():
    text = io.StringIO()
    OptionParser().print_help(text)
    titles = ["model:", "data:", "evaluation:", "training and losses:", "Trainer (transformers):"]
    positions = [text.getvalue().index(f"\n{title}\n") for title in titles]
    assert positions == sorted(positions)
    for option, title in (("--class_embeddings", 0), ("--data_sets", 2), ("--trunk_lr", 3), ("--adam_beta1", 4)):
        assert text.getvalue().index(f"  {option}") > positions[title]
    assert text.getvalue().index("  --adam_beta1") > positions[4] > text.getvalue().index("  --trunk_lr")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub_token", True),
        ("push-to-hub-token", True),
        ("API_KEY", True),
        ("apiSecret", True),
        ("authtoken", True),
        ("HUBTOKEN", True),
        ("include_num_input_tokens_seen", False),
        ("tokenizer_name_or_path", False),
        ("monkey", False),
    ],
)
def test_options_with_secrets_are_told_by_their_names(name, expected):
    assert is_secret(name) is expected


def test_a_recorded_command_holds_no_secret():
    arguments = ["r.yaml", "--hub_token", SECRET, f"--hub-token={SECRET}", "--seed", "3", "--model_config"]
    command = recorded_command([*arguments, f'{{"api_key": "{SECRET}", "num_queries": 9}}'])
    assert SECRET not in command
    assert "--seed 3" in command
    assert '"num_queries": 9' in command


@pytest.mark.parametrize("line", [f"hub_token: {SECRET}", f"# hub_token: {SECRET}", f"a: {{password: {SECRET}}}"])
def test_a_recorded_recipe_holds_no_secret_and_all_the_rest(line, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{line}\nseed: 3\n")
    assert SECRET not in recorded_recipe(path)
    assert "seed: 3" in recorded_recipe(path)


def test_a_recipe_without_secrets_is_recorded_as_it_stands(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# why\ntokenizer_name_or_path: bytes\n")
    assert recorded_recipe(path) == path.read_text()
