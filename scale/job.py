"""The folder of a job: which shards there are, which are done, and what was asked of which model.

    OUT/shard-00000012.parquet     one file a shard, there as soon as it is whole
    OUT/_job/job.json              model, words, options, source; `num_shards` once all of them are listed
    OUT/_job/shards/00000012.json  a shard's description, see `sources.py`
    OUT/_job/unfinished/           what is being written
    OUT/_job/begun/00000012        how often a shard that is not done has been begun in this run

Nothing here grows in memory with the number of pictures: shards are written while they are listed, and looked at in
windows.
"""

import contextlib
import json
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileType

from maftplus.scale.addresses import absolute, open_address, read_bytes, write_whole

COUNT = "num_shards"
WINDOW = 2048  # shards that are looked at together


class JobFolder:
    """
    Args:
        address: Where the results go; it may be missing.
    """

    def __init__(self, address: str):
        self.address = absolute(address)
        self.system, self.path = open_address(self.address)
        self.aside, self._begun = self._join("_job", "unfinished"), self._join("_job", "begun")

    def __reduce__(self):
        return type(self), (self.address,)

    def _join(self, *names: str) -> str:
        return posixpath.join(self.path, *names)

    def result_path(self, shard: int) -> str:
        """The file of a finished shard."""
        return self._join(f"shard-{shard:08d}.parquet")

    def _shard_path(self, shard: int) -> str:
        return self._join("_job", "shards", f"{shard:08d}.json")

    # --- Beginning ---

    def begin(self, facts: dict[str, Any], shards: Iterable[dict[str, Any]], is_resumed: bool = False) -> int:
        """
        Make the job, or go on with it.

        Args:
            facts: What was asked: model, words, options, source. A job is never mixed with another.
            shards: Their descriptions; read only if they have not been listed yet.
            is_resumed: Allow a folder that holds this job.

        Returns:
            The number of shards.

        Raises:
            ValueError: if the folder holds another job or, unless `is_resumed`, any; if it holds Parquet files of
                somebody else; if the source holds no picture.
            OSError: if something cannot be written.
        """
        known = self.read_facts()
        if known is None:
            self._refuse_strangers()
            known = facts
        elif not is_resumed:
            raise ValueError(f"{self.address}: a job has begun here; go on with --resume, or give another folder.")
        self._refuse_differences(known, facts)
        self.system.create_dir(self._join("_job", "shards"), recursive=True)
        for folder in (self.aside, self._begun):
            self.system.create_dir(folder, recursive=True)
            self.system.delete_dir_contents(folder)
        if COUNT not in known:
            self._write_json(self._join("_job", "job.json"), facts)
            known = {**facts, COUNT: self._write_shards(shards)}
            self._write_json(self._join("_job", "job.json"), known)
        return known[COUNT]

    def read_facts(self) -> dict[str, Any] | None:
        """What `begin` wrote down, `None` if no job has begun. Raises ValueError if it cannot be read."""
        path = self._join("_job", "job.json")
        if self.system.get_file_info(path).type != FileType.File:
            return None
        try:
            return json.loads(read_bytes(self.system, path))
        except ValueError as error:
            raise ValueError(f"{path}: this is no JSON ({error}); give another folder.") from error

    def _refuse_strangers(self) -> None:
        found = self.system.get_file_info(FileSelector(self.path, allow_not_found=True))
        files = [info.path for info in found if info.extension == "parquet"]
        if files:
            raise ValueError(f"{files[0]}: this file is of no job of ours; give an empty folder.")

    def _refuse_differences(self, known: dict[str, Any], facts: dict[str, Any]) -> None:
        changes = [
            f"{name} was {_short(known.get(name))}, now {_short(value)}"
            for name, value in facts.items()
            if known.get(name) != value
        ]
        if changes:
            raise ValueError(f"{self.address}: another job has begun here: {'; '.join(changes)}. Give another folder.")

    def _write_shards(self, shards: Iterable[dict[str, Any]]) -> int:
        count = 0
        for count, shard in enumerate(shards, start=1):
            self._write_json(self._shard_path(count - 1), shard)
        if not count:
            raise ValueError("SOURCE holds no picture: no picture, Parquet or tar file by its ending.")
        return count

    def _write_json(self, path: str, content: dict[str, Any]) -> None:
        write_whole(self.system, path, json.dumps(content, ensure_ascii=False).encode(), self.aside)

    # --- Shards ---

    def read_shard(self, shard: int) -> dict[str, Any]:
        """A shard's description."""
        return json.loads(read_bytes(self.system, self._shard_path(shard)))

    def count_begun(self, shard: int) -> int:
        """How often a shard has been begun before without an end: a picture may take the whole process with it."""
        path = posixpath.join(self._begun, f"{shard:08d}")
        is_first = self.system.get_file_info(path).type == FileType.NotFound
        count = 0 if is_first else int(read_bytes(self.system, path))
        write_whole(self.system, path, str(count + 1).encode(), self.aside)
        return count

    def end(self, shard: int) -> None:
        """A shard has come to its end, good or bad. A worker of a killed run may still live and have said so."""
        with contextlib.suppress(FileNotFoundError):
            self.system.delete_file(posixpath.join(self._begun, f"{shard:08d}"))

    def write_result(self, shard: int, table: pa.Table) -> int:
        """A shard's file, whole; returns its bytes. Raises OSError if it cannot be written."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        content = buffer.getvalue()
        write_whole(self.system, self.result_path(shard), content, self.aside)
        return content.size

    def missing_shards(self, num_shards: int) -> Iterator[list[int]]:
        """The shards without a file, or with one that is cut off, window by window."""
        with ThreadPoolExecutor(16) as pool:
            for start in range(0, num_shards, WINDOW):
                window = range(start, min(start + WINDOW, num_shards))
                missing = [shard for shard, is_done in zip(window, pool.map(self._is_done, window)) if not is_done]
                if missing:
                    yield missing

    def _is_done(self, shard: int) -> bool:
        """A Parquet file's end is written last, and read first."""
        try:
            with self.system.open_input_file(self.result_path(shard)) as file:
                pq.read_metadata(file)
        except (OSError, pa.ArrowInvalid):
            return False
        return True


def _short(value: Any, length: int = 200) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= length else f"{text[:length]}..."
