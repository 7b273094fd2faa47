"""The `maftplus` command as a whole: how fast it answers, what it says of itself, how it ends on errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from transformers import AutoConfig
from typer.testing import CliRunner

import maftplus
from maftplus.app import command
from maftplus.app.cli import COMMANDS, app

PACKAGE_PARENT = Path(maftplus.__file__).parents[1]


def run_module(*arguments, module="maftplus.app"):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
    line = [sys.executable, "-m", module, *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_the_help_takes_less_than_a_second_of_computing():
    before = os.times()
    result = run_module("--help")
    after = os.times()
    assert result.returncode == 0, result.stderr
    assert "segment" in result.stdout
    assert after.children_user - before.children_user + after.children_system - before.children_system < 1.0


def test_the_help_of_every_command_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv[0] = 'maftplus'\n"
        "from typer.testing import CliRunner\n"
        "from maftplus.app.cli import app, COMMANDS\n"
        "for name in [command.__name__ for command in COMMANDS]:\n"
        "    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0, name\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_version_is_printed():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"maftplus {maftplus.__version__}\n")


def test_importing_the_package_registers_its_classes():
    assert type(AutoConfig.for_model("maftplus")) is maftplus.MaftPlusConfig
    assert type(AutoConfig.for_model("maftplus_clip")) is maftplus.MaftPlusCLIPConfig


def test_every_public_name_is_there():
    for name in maftplus.__all__:
        assert getattr(maftplus, name).__name__ == name
    assert set(maftplus._MODULE_OF) | {"register_auto_classes"} == set(maftplus.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        maftplus.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad words"), "error: bad words"),
        (FileNotFoundError("a.png is missing"), "error: a.png is missing"),
        (ModuleNotFoundError("no", name="datasets.arrow"), 'pip install "maftplus[train]"'),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line_and_exit_code_2(error, message, capsys):
    @command.command(needs_model=False)
    def fail():
        raise error

    with pytest.raises(typer.Exit) as ended:
        fail()
    assert ended.value.exit_code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_module_that_is_missing_without_an_extra_is_not_hidden():
    @command.command(needs_model=False)
    def fail():
        raise ModuleNotFoundError("no", name="torch")

    with pytest.raises(ModuleNotFoundError):
        fail()


def test_every_module_of_the_commands_folder_is_registered():
    folder = Path(maftplus.__file__).parent / "app" / "commands"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {function.__module__.rsplit(".", 1)[1] for function in COMMANDS} == modules
