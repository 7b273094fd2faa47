"""transformers' own common tests on our classes: `python tests/common/run.py [pytest arguments]` (`make test-common`).

The tests come from the source distribution of the installed transformers, which is downloaded into a temporary folder;
nothing of it is kept here. It lacks a few of its own helper modules: `STUBS` stands in for them. What fails for a
reason of ours is fixed; what cannot hold for this kind of model is listed with its reason in `suites.py`.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

# Module of the test tree that the source distribution leaves out -> a stand-in without tests.
STUBS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "tests/distributed_testing_utils.py": "def run_distributed(*args, **kwargs):\n    raise NotImplementedError\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = download_tests(Path(folder))
        for name, text in STUBS.items():
            write(root / name, text)
        for package in ("tests", "tests/exporters", "tests/generation", "tests/utils", "tests/maftplus_common"):
            write(root / package / "__init__.py", "")
        suites = Path(__file__).with_name("suites.py").read_text(encoding="utf-8")
        write(root / "tests/maftplus_common/test_suites.py", suites)
        tools = f"import sys\nsys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(root / 'utils')!r}]\n"
        write(root / "conftest.py", tools)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/maftplus_common",
            "-p",
            "no:cacheprovider",
            *sys.argv[1:],
        ]
        return subprocess.run(command, cwd=root, check=False).returncode


def download_tests(folder: Path) -> Path:
    """The unpacked source distribution of the transformers that is installed."""
    name = f"transformers=={transformers.__version__}"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, name], check=True)
    archive = next(folder.glob("transformers-*.tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def write(path: Path, text: str) -> None:
    """Write unless the source distribution brings the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
