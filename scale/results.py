"""Reading the results of a job, shard by shard; masks are decoded when they are looked at."""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
from PIL import Image
from pyarrow.fs import FileSelector

from maftplus.masks_maftplus import read_masks
from maftplus.pictures.segments import Segment
from maftplus.reading_maftplus import read_picture
from maftplus.scale.job import JobFolder
from maftplus.scale.sources import decode, read_shard


class Results:
    """
    What a job has found so far; nothing is held in memory.

    Args:
        folder: The job's folder.

    Raises:
        ValueError: if no job has begun there.
    """

    def __init__(self, folder: str):
        self.folder = JobFolder(folder)
        self.facts = self.folder.read_facts()
        if self.facts is None:
            raise ValueError(f"{folder}: there is no job here (no _job/job.json); `maftplus batch` makes one.")
        self.classes: list[list[str]] = self.facts["labels"]  # synonyms of every class
        self.stuff_ids: list[int] = self.facts["stuff_ids"]

    @property
    def arrow(self) -> pa_dataset.Dataset:
        """All rows as an Arrow data set: `.to_table(columns=...)`, `.filter(...)`, `.count_rows()`."""
        return pa_dataset.dataset(self._paths(), filesystem=self.folder.system, format="parquet")

    def __len__(self) -> int:
        return self.arrow.count_rows()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, table in self.tables():
            yield from table.to_pylist()

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """A table a shard with the shard's number, in the order of the shards."""
        for path in self._paths():
            number = int(posixpath.basename(path).removeprefix("shard-").removesuffix(".parquet"))
            with self.folder.system.open_input_file(path) as file:
                yield number, pq.ParquetFile(file).read(columns=columns)

    def row(self, shard: int, key: str) -> dict[str, Any]:
        """One row. Raises KeyError if the shard has no such key."""
        with self.folder.system.open_input_file(self.folder.result_path(shard)) as file:
            rows = pq.read_table(file, filters=[("key", "=", key)]).to_pylist()
        if not rows:
            raise KeyError(key)
        return rows[0]

    def as_dataset(self) -> Any:
        """The same rows as a `datasets.Dataset`; needs `datasets`."""
        from datasets import Dataset

        return Dataset.from_generator(self.__iter__)

    def segments(self, row: dict[str, Any]) -> list[Segment]:
        """The segments of a row with their masks; none of a row with an error."""
        if not row["segments"]:
            return []
        masks = read_masks([one["rle"] for one in row["segments"]], (row["height"], row["width"]))
        return [
            Segment(number, one["label"], one["label_id"], one["label_id"] not in self.stuff_ids, one["score"], mask)
            for number, (one, mask) in enumerate(zip(row["segments"], masks), start=1)
        ]

    def picture(self, shard: int, key: str) -> Image.Image:
        """A picture from the source. Raises OSError, ValueError as `read_shard` and if it is there no more."""
        for item in read_shard(self.facts["source"], self.folder.read_shard(shard)):
            if item.key == key:
                return read_picture(decode(key, item.read()))
        raise ValueError(f"{key!r} is no longer in the source.")

    def missing_shards(self) -> list[int]:
        """Shards without a file, while a job runs or after it failed."""
        windows = self.folder.missing_shards(self.facts.get("num_shards", 0))
        return [shard for window in windows for shard in window]

    def _paths(self) -> list[str]:
        found = self.folder.system.get_file_info(FileSelector(self.folder.path))
        return sorted(info.path for info in found if info.base_name.endswith(".parquet"))


def read_results(folder: str) -> Results:
    """
    The results of `maftplus batch SOURCE FOLDER`: `for row in read_results(FOLDER): ...`.

    A row has `key`, `height`, `width`, `segments` (`label`, `label_id`, `score`, `area`, `bbox`, `rle`), `error`,
    `model` and `options`; `results.segments(row)` decodes the masks.

    Raises:
        ValueError: if no job has begun there.
    """
    return Results(folder)


__all__ = ["Results", "read_results"]
