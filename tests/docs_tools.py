"""The examples of the pages: finding the fenced blocks, their marks, and running them. CONTRIBUTING says how to mark.

Blocks of one page run in order: Python in one namespace, shell commands in one folder that links the checkout.
`maftplus`, `python FILE` and `accelerate launch ... FILE` run inside this process, because importing torch for each
would take minutes (so `accelerate launch` is one process here; `tests/train/test_run.py` starts several). Other
commands, such as `cp` or `make`, run in bash.
"""

import fnmatch
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RUNS = ("python", "bash")  # languages of a fence that are run
SHOWS = ("text", "json", "yaml", "toml", "html")  # languages that are only shown
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
MARKS = re.compile(r"(?:^ *<!-- test: (?:.*?) -->\n+)+\Z", re.MULTILINE)
MARK = re.compile(r"<!-- test: (.*?) -->")
REPLACE = re.compile(r'replace "(.*)" with "(.*)"')
EXITS = re.compile(r"exits with (\d+)")
OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<"}
NO_CHECKOUT = {".git", ".venv", ".venv-lower", "out", "runs", "build", "dist"}  # what examples make or need not see


@dataclass
class Block:
    """A fenced block of a page, as it is run."""

    page: str
    line: int  # of its first line, from 1
    language: str
    code: str
    exit_code: int = 0
    reason: str | None = None  # why it is not run
    given: list[str] = field(default_factory=list)  # names in `docs_files.GIVEN`

    @property
    def where(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def title(self) -> str:
        """Its first line."""
        return self.code.strip().split("\n")[0]


def pages() -> list[str]:
    """Every page whose blocks are run, as a path below the root."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in paths if path.is_file()]


def read_blocks(page: str, text: str) -> list[Block]:
    """
    The page's blocks of Python and shell, marks applied.

    Raises:
        ValueError: on a fence without a known language, a mark that is none, or a replacement of what is not there.
    """
    blocks = []
    for match in FENCE.finditer(text):
        line, language = text.count("\n", 0, match.start("code")) + 1, match["language"]
        if language in SHOWS:
            continue
        if language not in RUNS:
            known = ", ".join(RUNS + SHOWS)
            raise ValueError(f"{page}, line {line}: the fence's language is {language!r}; write one of {known}.")
        indent = len(match["indent"])
        code = "".join(row[indent:] or "\n" for row in match["code"].splitlines(keepends=True))
        block = Block(page, line, language, code)
        before = MARKS.search(text, 0, match.start())
        for mark in MARK.findall(before[0]) if before else ():
            _apply(mark, block)
        blocks.append(block)
    return blocks


def _apply(mark: str, block: Block) -> None:
    kind, _, rest = mark.partition(" ")
    if kind == "replace" and (pair := REPLACE.fullmatch(mark)):
        if pair[1] not in block.code:
            raise ValueError(f"{block.where}: {pair[1]!r} is to be replaced, but the block does not hold it.")
        block.code = block.code.replace(pair[1], pair[2])
    elif kind == "needs" and rest:
        block.reason = rest
    elif exits := EXITS.fullmatch(mark):
        block.exit_code = int(exits[1])
    elif kind == "given" and rest:
        block.given.append(rest)
    else:
        raise ValueError(f"{block.where}: no mark is called {mark!r}; see CONTRIBUTING.md.")


def link_checkout(folder: Path) -> None:
    """Links to everything in the checkout but what examples write."""
    for path in ROOT.iterdir():
        if path.name not in NO_CHECKOUT and not path.name.endswith(".egg-info"):
            (folder / path.name).symlink_to(path)


def run_blocks(blocks: list[Block]) -> None:
    """Run the blocks that are not marked otherwise, in order, in the current folder. Raises what they raise."""
    namespace = {"__name__": "__main__"}
    for block in blocks:
        if block.reason is not None:
            continue
        try:
            if block.language == "python":
                exec(compile(block.code, block.where, "exec"), namespace)
            else:
                run_shell(block.code, block.exit_code)
        except BaseException as error:
            error.add_note(f"in the block of {block.where}:\n{block.code}")
            raise


def is_ignored(name: str) -> bool:
    """Whether `.gitignore` covers a file or folder of the root."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return any(fnmatch.fnmatch(name, line.strip("/")) for line in lines if line and line[0] != "#")


def run_shell(code: str, exit_code: int = 0) -> None:
    """One command a line; the last one must exit with `exit_code`, those before it with 0."""
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]
    for line in lines:
        wanted = exit_code if line is lines[-1] else 0
        got = run_line(line)
        assert got == wanted, f"`{line}` exits with {got} instead of {wanted}"


def run_line(line: str) -> int:
    """Run one command; returns its exit code."""
    words = shlex.split(line, comments=True)
    if words[0] not in ("maftplus", "python", "accelerate"):
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["bash", "-ec", line], env=environment).returncode
    if OPERATORS.intersection(words):
        raise ValueError(f"`{line}`: one plain command a line, please; pipes and the like are not run here.")
    if words[0] == "maftplus":
        return _call(["maftplus", *words[1:]], _run_maftplus)
    words = words[1:] if words[0] == "python" else words[words.index("launch") + 1 :]
    while not words[0].endswith(".py"):  # options of the launcher
        words = words[1:]
    return _call(words, lambda: runpy.run_path(words[0], run_name="__main__"))


def _run_maftplus() -> None:
    """As the console script that an installed package has."""
    from maftplus.app.cli import main

    main()


def _call(arguments: list[str], function: Callable[[], object]) -> int:
    """Call `function` as a command with these arguments; returns its exit code."""
    argv, path, threads = sys.argv, list(sys.path), torch.get_num_threads()
    sys.argv = arguments
    if arguments[0].endswith(".py"):
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))  # as Python does
    try:
        function()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv, sys.path[:] = argv, path
        torch.set_num_threads(threads)
    return 0
