"""Folders and files by address, here or elsewhere: a path, `s3://`, `gs://`, `hdfs://`, whatever fsspec knows."""

import os
import posixpath
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem


def is_remote(address: str) -> bool:
    """Whether an address names a file system, rather than a path here."""
    return "://" in address


def open_address(address: str) -> tuple[FileSystem, str]:
    """
    The file system of an address and the path in it. What Arrow does not know is left to fsspec.

    Raises:
        ValueError: if nobody knows the file system; the message says what to install.
    """
    if not is_remote(address):
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(address))
    try:
        return FileSystem.from_uri(address)
    except ArrowInvalid:
        pass
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address}: this file system cannot be opened ({error}).") from error
    return PyFileSystem(FSSpecHandler(system)), path


def absolute(address: str) -> str:
    """The address as other processes find it."""
    return address if is_remote(address) else os.path.abspath(os.path.expanduser(address))


def walk_files(system: FileSystem, folder: str) -> Iterator[str]:
    """
    Paths of the files below a folder, in an order that does not change: folder by folder, by name. One folder's names
    are held at a time. Nothing that is hidden; links to folders are not followed.
    """
    if isinstance(system, LocalFileSystem):
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.path) for entry in found)
    else:
        found = system.get_file_info(FileSelector(folder))
        entries = sorted((info.base_name, info.type == FileType.Directory, info.path) for info in found)
    for name, is_folder, path in entries:
        if name.startswith("."):
            continue
        if is_folder:
            yield from walk_files(system, path)
        else:
            yield path


def read_bytes(system: FileSystem, path: str) -> bytes:
    """All of a file, as it is. Raises OSError."""
    with system.open_input_stream(path, compression=None) as stream:
        return stream.read()


def write_whole(system: FileSystem, path: str, content: bytes, aside: str) -> None:
    """
    Write a file in the folder `aside` and move it to its place, where it appears whole or not at all.

    Raises:
        OSError: if it cannot be written; then nothing is left behind.
    """
    unfinished = posixpath.join(aside, f"{posixpath.basename(path)}.{uuid.uuid4().hex}.part")
    try:
        with system.open_output_stream(unfinished, compression=None) as stream:
            stream.write(content)
        if isinstance(system, LocalFileSystem):  # a power cut must leave no empty file under a finished one's name
            with Path(unfinished).open("rb+") as file:
                os.fsync(file.fileno())
        system.move(unfinished, path)
    except OSError:
        if system.get_file_info(unfinished).type != FileType.NotFound:
            system.delete_file(unfinished)
        raise
