"""Sources cut into shards, and shards read: which pictures, under which keys, in which order."""

import io
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maftplus.scale.addresses import open_address, write_whole
from maftplus.scale.sources import decode, is_hub_name, list_shards, read_shard


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), shade, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """`cats/1.png`, `cats/2.png`, `dogs/1.png`; something hidden and something else."""
    root = tmp_path / "photos"
    for index, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png", ".hidden/1.png", "cats/words.txt")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(index))
    return root


def read_all(source, shard_size: int = 2, **options) -> list[list[tuple[str, int]]]:
    """Key and shade of every picture, shard by shard."""
    return [
        [(item.key, decode(item.key, item.read()).getpixel((0, 0))[0]) for item in read_shard(str(source), shard)]
        for shard in list_shards(str(source), shard_size, **options)
    ]


def test_a_folder_is_cut_by_name_and_equal_names_in_two_folders_are_two_keys(folder):
    assert read_all(folder) == [[("cats/1.png", 0), ("cats/2.png", 1)], [("dogs/1.png", 2)]]


def test_a_glob_takes_what_fits_with_keys_from_its_fixed_part(folder):
    assert read_all(folder / "*" / "1.png") == [[("cats/1.png", 0), ("dogs/1.png", 2)]]


def test_one_file_is_a_source(folder):
    assert read_all(folder / "cats" / "2.png") == [[("2.png", 1)]]


def test_an_address_is_a_source_as_a_path_is(folder):
    assert read_all(f"file://{folder}") == read_all(folder)


def test_what_fsspec_alone_knows_is_read_through_it(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/photos/cats/1.png", png(7))
    assert read_all("memory://photos") == [[("cats/1.png", 7)]]


def test_results_inside_the_source_are_no_pictures(folder):
    assert read_all(folder, skip=str(folder / "cats")) == [[("dogs/1.png", 2)]]


def test_links_to_folders_do_not_lead_in_circles(folder):
    (folder / "cats" / "again").symlink_to(folder)
    keys = [key for shard in list_shards(str(folder), 9) for key in shard["names"]]
    assert keys == ["cats/1.png", "cats/2.png", "dogs/1.png"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([png(0), png(1), png(2)]),
        pa.array(["cats/1.png", "cats/2.png", "dogs/1.png"]),
        pa.array(
            [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": "x"}, {"bytes": None, "path": "dogs/1.png"}]
        ),
    ],
    ids=["bytes", "paths", "pairs"],
)
def test_parquet_rows_hold_bytes_or_paths_and_shards_are_spans_over_row_groups(folder, values):
    table = pa.table({"id": range(3), "picture": values})
    pq.write_table(table, folder / "rows.parquet", row_group_size=1)
    expected = [[("rows.parquet#0", 0), ("rows.parquet#1", 1)], [("rows.parquet#2", 2)]]
    assert read_all(folder / "rows.parquet") == expected


def test_the_column_may_be_named(folder):
    table = pa.table({"thumbnail": [png(8)], "picture": [png(9)]})
    pq.write_table(table, folder / "rows.parquet")
    assert read_all(folder / "rows.parquet", column="picture") == [[("rows.parquet#0", 9)]]
    with pytest.raises(ValueError, match="no column 'image'; there are thumbnail, picture"):
        read_all(folder / "rows.parquet", column="image")


def test_a_table_without_pictures_is_refused(folder):
    pq.write_table(pa.table({"id": [1]}), folder / "rows.parquet")
    with pytest.raises(ValueError, match="no column of pictures"):
        read_all(folder / "rows.parquet")


def test_a_tar_file_is_one_shard_of_its_pictures(folder):
    with tarfile.open(folder / "part.tar", "w") as tar:
        tar.add(folder / "cats", arcname="cats")
    assert read_all(folder / "part.tar") == [[("part.tar/cats/1.png", 0), ("part.tar/cats/2.png", 1)]]


def test_a_folder_of_datasets_is_read_split_by_split(folder, tmp_path):
    from datasets import Dataset, DatasetDict
    from datasets import Image as ImageFeature

    rows = {"image": [str(folder / "cats" / "1.png"), str(folder / "cats" / "2.png")]}
    split = Dataset.from_dict(rows).cast_column("image", ImageFeature())
    DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(tmp_path / "saved")
    assert read_all(tmp_path / "saved") == [[("test#0", 1)], [("train#0", 0), ("train#1", 1)]]


def test_a_name_of_the_hub_is_what_is_no_path_here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert is_hub_name("somebody/photos")
    assert not is_hub_name("cats/missing")
    assert not is_hub_name("s3://bucket/photos")


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file, folder or data set"):
        next(list_shards(str(tmp_path / "nothing"), 2))


def test_a_picture_that_is_none_is_named_by_its_key_in_the_same_words_every_time():
    with pytest.raises(ValueError, match=r"^'a.jpg': no picture in 4 bytes\.$"):
        decode("a.jpg", b"nope")


def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path):
    system, path = open_address(str(tmp_path))
    with pytest.raises(OSError, match="missing"):
        write_whole(system, f"{path}/missing/x", b"content", path)
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)


def test_a_column_that_counts_bytes_is_no_picture(tmp_path):
    about = pa.array([{"num_bytes": 7}], pa.struct({"num_bytes": pa.int64()}))
    pq.write_table(pa.table({"about": about, "picture": [png(9)]}), tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    (shard,) = list_shards(source, shard_size=10)
    (item,) = read_shard(source, shard)
    assert decode(item.key, item.read()).size == (6, 4)
