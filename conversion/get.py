"""A released model by its name -> a folder that `from_pretrained` loads: `maftplus get maftplus-large`.

Fetch (Google Drive through gdown, the Hub through huggingface_hub; either goes on where it was cut), look whether it
is what it should be, convert, check the result, put it in its place, remove the original. A model appears whole or
not at all; what was fetched and is whole stays until a model was made of it.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import tqdm as HubBar
from tqdm import tqdm

from maftplus.conversion.checkpoint import (
    WEIGHT_FILES,
    CheckpointError,
    check_new_folders,
    new_folders,
    read_state,
    require_space,
)
from maftplus.conversion.convert import BPE_FILE, convert, inspect_checkpoint, load_tokenizer
from maftplus.conversion.registry import (
    RELEASES,
    DriveFile,
    Release,
    download_folder,
    find_release,
    home,
    released_folder,
)
from maftplus.conversion.selfcheck import ODD, OK, WRONG, Finding, check_model
from maftplus.vocabularies.files import load_vocabulary_file

RETRIES = 5  # of a transfer that is cut, before the command gives up; the next one goes on where it was
TIMEOUT = 60.0  # seconds without a byte
PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
CHUNK_BYTES = 1 << 22


class DownloadError(OSError):
    """The network says no; the message, one line, has the address to open by hand and the command to go on with."""


class _NoBar(HubBar):
    """The Hub's progress bar, never drawn."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "disable": True})


@dataclass(frozen=True)
class Got:
    """The new model's folder, what the self-check found, and where the original stayed, if it did."""

    folder: Path
    findings: list[Finding]
    original: Path | None


def get(
    name: str,
    file: str | Path | None = None,
    keep: bool = False,
    tokenizer: str | Path | None = None,
    show_progress: bool = False,
) -> Got:
    """
    Make the folder of a released model; afterwards its name stands for it (`registry.find_model`).

    Args:
        name: One of `registry.RELEASES`.
        file: The original, where it is at hand; it is read, never removed. Default: it is fetched.
        keep: Keep the original that was fetched.
        tokenizer: As `convert` takes it. Default: `openai/clip-vit-base-patch16` from the Hub.
        show_progress: Draw progress bars on the terminal.

    Raises:
        DownloadError: if it cannot be fetched.
        CheckpointError: if the file is something else, cannot be converted, does not pass the self-check, or does not
            fit on the disk.
        ValueError: if no released model has this name, or no public link is known and no `file` was given.
    """
    release, folder = find_release(name), released_folder(name)
    check_new_folders([folder])
    if file is not None:
        return _make(release, Path(file), tokenizer, show_progress)
    _require_link(release)
    _require_tokenizer(release, tokenizer)  # before the long part
    with _alone(release):
        original = fetch(release, show_progress)
        got = _make_of_fetched(release, original, tokenizer, show_progress)
        if keep:
            return Got(got.folder, got.findings, original)
        shutil.rmtree(original.parent)
    return got


def remove(name: str) -> int:
    """
    Remove a model that `get` made, and what is left of its original. Returns the number of bytes.

    Raises:
        ValueError: if no released model has this name, or nothing of it is there.
    """
    find_release(name)
    places = [place for place in (released_folder(name), download_folder(name)) if place.is_dir()]
    if not places:
        raise ValueError(f"{name}: nothing of this model is in {home()}.")
    num_bytes = sum(path.stat().st_size for place in places for path in place.rglob("*") if path.is_file())
    for place in places:
        shutil.rmtree(place)
    return num_bytes


def fetch(release: Release, show_progress: bool = False) -> Path:
    """
    The original, whole, in `registry.download_folder`. What an earlier call fetched is not fetched again.

    Raises:
        DownloadError: if the network says no.
        CheckpointError: if it does not fit on the disk.
    """
    folder = download_folder(release.name)
    for name in (release.file_name, *WEIGHT_FILES):
        if (folder / name).is_file():
            return folder / name
    fetch_from = _fetch_from_drive if isinstance(release.source, DriveFile) else _fetch_from_hub
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return fetch_from(release, folder, show_progress)
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise DownloadError(_by_hand(release, _one_line(error))) from error
    except DownloadError:
        raise
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise CheckpointError(
            f"{folder}: could not be written ({reason}). What was fetched stays; the same command goes on."
        ) from error


def _fetch_from_drive(release: Release, folder: Path, show_progress: bool) -> Path:
    from gdown.exceptions import DownloadError as CannotFetch  # an extra
    from requests import RequestException

    try:
        try:
            return _download_from_drive(release, folder, show_progress)
        except CannotFetch as error:
            if "byte range" not in str(error):
                raise
            _remove_parts(folder)  # of another file, or whole already: nothing can be added to them
            return _download_from_drive(release, folder, show_progress)
    except (CannotFetch, RequestException) as error:
        raise DownloadError(_by_hand(release, _one_line(error))) from error


def _download_from_drive(release: Release, folder: Path, show_progress: bool) -> Path:
    import gdown

    path = folder / release.file_name
    with tqdm(desc=release.file_name, unit="B", unit_scale=True, disable=not show_progress) as bar:
        gdown.download(
            id=release.source.id,
            output=str(path),
            quiet=True,
            use_cookies=False,
            resume=True,
            retries=RETRIES,
            timeout=TIMEOUT,
            progress=partial(_follow, bar, folder),
        )
    return path


def _follow(bar: tqdm, folder: Path, num_bytes: int, total: int | None) -> None:
    """A step of the progress bar; at the first one, what is to come must fit. Raises CheckpointError if not."""
    if bar.total is None and total is not None:
        _require_room(folder, total - num_bytes, total)
        bar.total = total
    bar.update(num_bytes - bar.n)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("*.part"):
        part.unlink()


def _fetch_from_hub(release: Release, folder: Path, show_progress: bool) -> Path:
    repository = release.source.repository
    there = HfApi().list_repo_files(repository)
    name = next((name for name in WEIGHT_FILES if name in there), None)
    if name is None:
        raise DownloadError(_by_hand(release, f"{repository} holds none of {', '.join(WEIGHT_FILES)}"))
    size = get_hf_file_metadata(hf_hub_url(repository, name)).size
    if size is not None:
        _require_room(folder, size, size)
    return Path(hf_hub_download(repository, name, local_dir=folder, tqdm_class=None if show_progress else _NoBar))


def _require_room(folder: Path, num_missing: int, num_bytes: int) -> None:
    """The rest of the original and the model made of it, which is no larger, must fit. Raises CheckpointError."""
    require_space(folder, num_missing + num_bytes)


def _require_link(release: Release) -> None:
    if release.source is None:
        raise ValueError(
            f"{release.name}: no public link is known; where the file is at hand: "
            f"maftplus get {release.name} --from {release.file_name}"
        )


@contextmanager
def _alone(release: Release) -> Iterator[None]:
    """One process at a time fetches a model. Raises ValueError if another one does."""
    lock = home() / f".{release.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"{release.name}: another process is fetching it ({lock} is taken).") from error


def _make_of_fetched(release: Release, original: Path, tokenizer: str | Path | None, show_progress: bool) -> Got:
    """As `_make`; a file that is no checkpoint is removed, another one stays and the message says where."""
    try:
        _refuse_page(original)
        read_state(original)
    except CheckpointError as error:
        original.unlink()
        raise CheckpointError(f"{error} It was removed; {_open_by_hand(release)}") from error
    try:
        return _make(release, original, tokenizer, show_progress)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} The file that was fetched stays; `maftplus get --remove {release.name}` removes it."
        ) from error


def _make(release: Release, original: Path, tokenizer: str | Path | None, show_progress: bool) -> Got:
    """Convert, check, put in place. Raises CheckpointError; then nothing was put there."""
    _refuse_page(original)
    _check_identity(release, original)
    folder, digest = released_folder(release.name), sha256_of(original)
    seen = release.training_classes and load_vocabulary_file(release.training_classes).prompts
    with new_folders([folder]) as [staging]:
        convert(
            original,
            staging,
            task=release.task,
            tokenizer=tokenizer,
            training_classes=seen,
            show_progress=show_progress,
            notes=[_provenance(release, original, digest)],
        )
        findings = [*_check_digest(release, digest), *check_model(staging, release)]
        wrong = [f"{one.subject}: {one.message}" for one in findings if one.state == WRONG]
        if wrong:
            raise CheckpointError(f"{original}: the model made of it does not work ({'; '.join(wrong)}).")
    return Got(folder, findings, None)


def _refuse_page(path: Path) -> None:
    """Raise CheckpointError if the file is a web page, as servers send in place of what was asked for."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith(PAGE_STARTS):
        raise CheckpointError(f"{path}: this is a web page, no checkpoint.")


def _check_identity(release: Release, path: Path) -> None:
    """Raise CheckpointError if the file is another model than the release; reads names and shapes only."""
    found = inspect_checkpoint(path)
    if _is_like(release, found):
        return
    others = [other.name for other in RELEASES.values() if _is_like(other, found)]
    hint = f" `maftplus get {others[0]} --from {path}` takes it." if others else ""
    task = f", {found['task']}" if found["task"] else ""
    wanted = f"{release.variant or release.kind}{f', {release.task}' if release.task else ''}"
    raise CheckpointError(f"{path}: this is {found['variant']}{task}; {release.name} is {wanted}.{hint}")


def _is_like(release: Release, found: dict[str, Any]) -> bool:
    """Whether a checkpoint, as `inspect_checkpoint` describes it, can be the release."""
    is_variant = release.variant in (None, found["variant"])
    return is_variant and release.kind == found["kind"] and found["task"] in (None, release.task)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _provenance(release: Release, original: Path, digest: str) -> str:
    """The card's sentence on the file that the model was made of."""
    link = "no public link is known" if release.source is None else f"its project's link is {release.source.address}"
    size = original.stat().st_size
    return f"Made by `maftplus get {release.name}` on {date.today()} ({link}): {size} bytes, SHA-256 `{digest}`."


def _check_digest(release: Release, digest: str) -> list[Finding]:
    if release.sha256 is None:
        return []
    if digest == release.sha256:
        return [Finding("checksum", OK, "as stated for this file")]
    return [Finding("checksum", ODD, f"SHA-256 {digest}, not {release.sha256}, which somebody stated for this file")]


def _require_tokenizer(release: Release, tokenizer: str | Path | None) -> None:
    try:
        load_tokenizer(tokenizer, released_folder(release.name))
    except CheckpointError as error:
        if tokenizer is not None:
            raise
        raise DownloadError(f"{_by_hand(release, _one_line(error, 120))} --tokenizer {BPE_FILE}") from error


def _by_hand(release: Release, reason: str) -> str:
    return f"{release.name}: cannot be fetched ({reason}). {_open_by_hand(release)}"


def _open_by_hand(release: Release) -> str:
    """What is left to a person."""
    command = f"maftplus get {release.name} --from {release.file_name}"
    return f"Open {release.source.address} in a browser, then: {command}"


def _one_line(error: Exception, length: int = 200) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:length].rstrip(".")


__all__ = ["DownloadError", "Got", "fetch", "get", "remove", "sha256_of"]
