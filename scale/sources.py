"""Whatever holds pictures -> numbered shards in a stable order, and a shard -> its pictures' bytes, one after another.

A shard is described by a small JSON object; nothing of it is read before its turn comes. Kinds of source: a folder, a
glob or one file, in which picture files, Parquet files and tar files (WebDataset) count, each by its ending; a folder
written by `datasets`, or a data set's name on the Hub.
Keys are paths relative to the source: `cats/1.jpg`, `part.parquet#12`, `part.tar/0001.jpg`, `train#12`.
"""

import functools
import posixpath
import re
import tarfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow.fs import FileSystem, FileType

from maftplus.reading_maftplus import fetch_bytes, is_url
from maftplus.scale.addresses import is_remote, open_address, read_bytes, walk_files

PARQUET, TAR = (".parquet", ".pq"), (".tar",)
PICTURE_TYPES = (r"struct<(.*, )?bytes: ", r"(large_)?binary", r"(large_)?string")  # of a column, the best first
WILDCARDS = re.compile(r"[*?\[]")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DATASETS_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")  # that `save_to_disk` leaves


class Item(NamedTuple):
    """A picture of a shard: its key, and what reads its bytes."""

    key: str
    read: Callable[[], bytes]


def list_shards(source: str, shard_size: int, column: str | None = None, skip: str | None = None) -> Iterator[dict]:
    """
    Cut a source into shards, while it is being listed.

    Args:
        source: Folder, glob, file or address of one of them, or a data set's name on the Hub.
        shard_size: Most pictures a shard; a tar file is one shard, whatever it holds.
        column: Of a table, the one with the pictures; else it is found.
        skip: Address of a folder that does not count (the results').

    Raises:
        ValueError: if there is no such source, or a table has no column of pictures.
    """
    if _is_data_set(source):
        yield from _data_set_shards(source, shard_size, column)
        return
    system, paths, root = _find_files(source)
    names: list[str] = []
    for path in paths:
        if skip is not None and path.startswith(f"{open_address(skip)[1]}/"):
            continue
        ending, name = posixpath.splitext(path)[1].lower(), posixpath.relpath(path, root)
        if ending in _picture_endings():
            names.append(name)
        elif ending in TAR:
            yield {"kind": "tar", "root": root, "name": name}
        elif ending in PARQUET:
            yield from _parquet_shards(system, root, name, shard_size, column)
        if len(names) == shard_size:
            yield {"kind": "files", "root": root, "names": names}
            names = []
    if names:
        yield {"kind": "files", "root": root, "names": names}


def read_shard(source: str, shard: dict[str, Any]) -> Iterator[Item]:
    """
    The pictures of a shard, in its order.

    Raises:
        OSError, ValueError, tarfile.TarError: if the shard itself cannot be read, at once or on the way.
    """
    if shard["kind"] == "data set":
        return _read_data_set(source, shard)
    system = open_address(source)[0]
    read = {"files": _read_files, "tar": _read_tar, "parquet": _read_parquet}[shard["kind"]]
    return read(system, shard)


# --- Files ---


@functools.cache
def _picture_endings() -> set[str]:
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _find_files(source: str) -> tuple[FileSystem, Iterator[str], str]:
    """File system, paths in a stable order, and the folder that keys are relative to."""
    system, path = open_address(source)
    kind = system.get_file_info(path).type
    if kind == FileType.Directory:
        return system, walk_files(system, path), path
    if kind == FileType.File:
        return system, iter([path]), posixpath.dirname(path)
    found = WILDCARDS.search(path)
    if found is None:
        raise ValueError(f"{source}: there is no such file, folder or data set.")
    from fsspec.utils import glob_translate

    root, pattern = posixpath.dirname(path[: found.start()]), re.compile(glob_translate(path))
    if system.get_file_info(root).type != FileType.Directory:
        raise ValueError(f"{source}: there is no folder {root}.")
    return system, (path for path in walk_files(system, root) if pattern.match(path)), root


def _read_files(system: FileSystem, shard: dict[str, Any]) -> Iterator[Item]:
    for name in shard["names"]:
        yield Item(name, functools.partial(read_bytes, system, posixpath.join(shard["root"], name)))


def _read_tar(system: FileSystem, shard: dict[str, Any]) -> Iterator[Item]:
    """A tar file is read from its beginning to its end, so the bytes are there already."""
    path = posixpath.join(shard["root"], shard["name"])
    with system.open_input_stream(path, compression=None) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.isfile() and posixpath.splitext(member.name)[1].lower() in _picture_endings():
                content = tar.extractfile(member).read()
                yield Item(f"{shard['name']}/{member.name}", functools.partial(bytes, content))


# --- Tables ---


def _parquet_shards(
    system: FileSystem, root: str, name: str, shard_size: int, column: str | None
) -> Iterator[dict[str, Any]]:
    """Spans of rows. A file that cannot be read is one shard, whose turn will tell what is wrong with it."""
    shard = {"kind": "parquet", "root": root, "name": name, "start": 0, "stop": None, "column": column}
    try:
        with system.open_input_file(posixpath.join(root, name)) as file:
            table = pq.ParquetFile(file)
            num_rows, schema = table.metadata.num_rows, table.schema_arrow
    except (OSError, pa.ArrowInvalid):
        yield shard
        return
    shard["column"] = _picture_column(schema, column, name)
    for span in _spans(num_rows, shard_size):
        yield {**shard, **span}


def _spans(num_rows: int, shard_size: int) -> Iterator[dict[str, int]]:
    for start in range(0, num_rows, shard_size):
        yield {"start": start, "stop": min(start + shard_size, num_rows)}


def _picture_column(schema: pa.Schema, column: str | None, name: str) -> str:
    """The column asked for, else the first that can hold pictures: `datasets`' pairs, then bytes, then paths."""
    if column is not None:
        if column not in schema.names:
            raise ValueError(f"{name}: no column {column!r}; there are {', '.join(schema.names)}.")
        return column
    for kind in PICTURE_TYPES:
        for field in schema:
            if re.match(kind, str(field.type)):
                return field.name
    raise ValueError(f"{name}: no column of pictures (bytes or paths); there are {', '.join(schema.names)}.")


def _read_parquet(system: FileSystem, shard: dict[str, Any]) -> Iterator[Item]:
    path, start = posixpath.join(shard["root"], shard["name"]), shard["start"]
    with system.open_input_file(path) as file:
        table = pq.ParquetFile(file)
        column = _picture_column(table.schema_arrow, shard["column"], shard["name"])
        stop = table.metadata.num_rows if shard["stop"] is None else shard["stop"]
        ends = list(accumulate(table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)))
        first = bisect_right(ends, start)
        groups, before = range(len(ends))[first : bisect_left(ends, stop) + 1], ends[first - 1] if first else 0
        batches = table.iter_batches(batch_size=32, row_groups=list(groups), columns=[column])
        values = (value for batch in batches for value in batch.column(0))
        for row, value in islice(enumerate(values, before), start - before, stop - before):
            read = functools.partial(_cell_bytes, value.as_py(), system, posixpath.dirname(path))
            yield Item(f"{shard['name']}#{row}", read)


def _cell_bytes(value: Any, system: FileSystem, folder: str) -> bytes:
    """Bytes, or what a path (from the table's folder) or an address leads to."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise ValueError("this row holds no picture.")
    if isinstance(value, bytes):
        return value
    if is_url(value):
        return fetch_bytes(value)
    if is_remote(value):
        return read_bytes(*open_address(value))
    return read_bytes(system, posixpath.join(folder, value))


# --- Data sets ---


def is_hub_name(source: str) -> bool:
    """Whether a source may be a data set's name on the Hub: of that form, and nothing of the kind lies here."""
    path = Path(source).expanduser()
    return HUB_NAME.fullmatch(source) is not None and not path.exists() and not path.parent.is_dir()


def _is_data_set(source: str) -> bool:
    """A folder of `datasets`, or a name on the Hub."""
    if is_hub_name(source):
        return True
    system, path = open_address(source)
    kinds = system.get_file_info([posixpath.join(path, name) for name in DATASETS_FILES])
    return any(info.type == FileType.File for info in kinds)


@functools.lru_cache(maxsize=2)
def _open_data_set(source: str) -> dict[str, Any]:
    """Its splits by name; rows stay on the disk."""
    import datasets

    try:
        found = datasets.load_dataset(source) if is_hub_name(source) else datasets.load_from_disk(source)
    except Exception as error:  # of the Hub, of builders, of damaged files
        raise ValueError(f"{source}: cannot be read as a data set ({str(error).splitlines()[0]}).") from error
    return {name: found[name] for name in sorted(found)} if isinstance(found, dict) else {"all": found}


def _data_set_shards(source: str, shard_size: int, column: str | None) -> Iterator[dict[str, Any]]:
    for split, rows in _open_data_set(source).items():
        chosen = _picture_column(rows.features.arrow_schema, column, f"{source}, {split}")
        for span in _spans(len(rows), shard_size):
            yield {"kind": "data set", "split": split, "column": chosen, **span}


def _read_data_set(source: str, shard: dict[str, Any]) -> Iterator[Item]:
    rows = _open_data_set(source)[shard["split"]].with_format("arrow")
    system, folder = open_address("." if is_hub_name(source) else source)
    for row in range(shard["start"], shard["stop"]):
        value = rows[row][shard["column"]][0].as_py()
        yield Item(f"{shard['split']}#{row}", functools.partial(_cell_bytes, value, system, folder))


def decode(key: str, content: bytes) -> Image.Image:
    """
    A lazy PIL picture that bears its key as its name.

    Raises:
        ValueError, OSError: if there is no picture in the bytes.
    """
    try:
        picture = Image.open(BytesIO(content))
    except Image.UnidentifiedImageError as error:  # its message holds an address in memory
        raise ValueError(f"{key!r}: no picture in {len(content)} bytes.") from error
    picture.filename = key
    return picture
