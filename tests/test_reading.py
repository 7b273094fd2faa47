"""One reader for pictures: what decoders raise, addresses with limits, label maps."""

import base64
import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin
from url_tools import serve

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.reading_maftplus import fetch_bytes, is_url, read_label_map, read_picture


def png(value: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 10, 20)).save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="module")
def server():
    with serve(png()) as (address, server):
        yield address, server


# --- Decoders ---

DECODERS_ERRORS = [
    struct.error("unpack requires a buffer"),
    SyntaxError("broken PNG file"),
    TypeError("NoneType"),
    AttributeError("size"),
    MemoryError(),
    OverflowError("too large"),
    zlib.error("incorrect data check"),
    IndexError("list"),
    KeyError("tag"),
    RecursionError("deep"),
    ZeroDivisionError("zero"),
    Image.DecompressionBombError("bomb"),
]


@pytest.mark.parametrize("error", DECODERS_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("read", [read_picture, read_label_map])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error, read):
    def fail(self):
        raise error

    path = tmp_path / "broken.png"
    path.write_bytes(png())
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"broken\.png"):
        read(path)


def test_whatever_opening_raises_names_the_file(tmp_path, monkeypatch):
    def fail(self):
        raise struct.error("unpack requires a buffer of 4 bytes")

    path = tmp_path / "broken.png"
    path.write_bytes(png())
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", fail)
    monkeypatch.setattr(ImageFile, "Parser", None)
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_picture(path)


def test_an_interruption_is_no_broken_picture(tmp_path, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    (tmp_path / "fine.png").write_bytes(png())
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_picture(tmp_path / "fine.png")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_picture_with_nan_is_refused_as_an_array_is(tmp_path, value):
    array = np.full((4, 4), 0.5, np.float32)
    array[1, 2] = value
    Image.fromarray(array).save(tmp_path / "float.tiff")
    for source in (array, Image.fromarray(array), tmp_path / "float.tiff"):
        with pytest.raises(ValueError, match="NaN or infinite"):
            read_picture(source)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png.*no file"):
        read_picture(tmp_path / "pipe.png")


def test_a_picture_that_is_a_program_is_refused_and_not_handed_to_ghostscript(tmp_path):
    path = tmp_path / "program.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(ValueError, match=r"program\.png' is EPS, which another program would run"):
        read_picture(path)


def test_embedded_pictures_are_read_and_broken_ones_refused_briefly():
    text = base64.b64encode(png()).decode()
    for source in (f"data:image/png;base64,{text}", text, f"DATA:image/png;base64,{text}"):
        assert read_picture(source).getpixel((0, 0)) == (200, 10, 20)
    with pytest.raises(ValueError, match="cannot read") as info:
        read_picture("data:image/png;base64," + "A" * 100_000)
    assert len(str(info.value)) < 500


def test_sixteen_bits_embedded_in_text_keep_their_high_byte():
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 100 << 8, np.uint16)).save(stream, "png")
    picture = read_picture("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
    assert picture.getpixel((0, 0)) == (100, 100, 100)


# --- Label maps ---


def test_a_label_map_of_one_bit_holds_0_and_1_and_one_of_floats_is_refused_by_name(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_label_map(tmp_path / "bits.png").tolist() == [[1, 0]]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(ValueError, match=r"integers.*floats\.tiff.*float32"):
        read_label_map(tmp_path / "floats.tiff")
    with pytest.raises(ValueError, match=r"missing\.png"):
        read_label_map(tmp_path / "missing.png")


def test_label_maps_may_be_tensors():
    assert read_label_map(torch.tensor([[3, 1]], dtype=torch.uint8)).tolist() == [[3, 1]]


# --- Addresses ---


def test_addresses_are_read_in_any_case_and_through_a_redirect(server):
    address, _ = server
    for url in (f"{address}/picture", f"{address}/moved", f"HTTP{address[4:]}/picture", f"{address}/picture?a=ü b"):
        assert read_picture(url).size == (6, 4)
    processor = MaftPlusImageProcessorPil(size={"shortest_edge": 32})
    assert processor(f"{address}/picture", return_tensors="pt").pixel_values.shape == (1, 3, 32, 64)


@pytest.mark.parametrize("path", ["missing", "loop", "file"])
def test_addresses_that_lead_nowhere_are_named(server, path):
    url = f"{server[0]}/{path}"
    with pytest.raises(ValueError, match=f"{url}: cannot be fetched"):
        fetch_bytes(url, timeout=5)


def test_an_address_without_a_server_is_named():
    with pytest.raises(ValueError, match="127.0.0.1:9/x.png: cannot be fetched"):
        fetch_bytes("http://127.0.0.1:9/x.png", timeout=5)


@pytest.mark.parametrize("path", ["drip", "drip_headers"])
def test_a_server_that_drips_is_given_up_in_time(server, path):
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"{path}.*`timeout`, 0.3 seconds"):
        fetch_bytes(f"{server[0]}/{path}", timeout=0.3)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("path", ["endless", "huge"])
def test_a_server_that_sends_ten_gigabytes_is_given_up_at_the_limit(server, path):
    address, process = server
    with pytest.raises(ValueError, match=f"{path}.*`max_bytes`, 1000000 bytes"):
        fetch_bytes(f"{address}/{path}", timeout=10, max_bytes=1_000_000)
    assert process.bytes_sent < 100_000_000


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"timeout": float("nan")}, {"max_bytes": 0}])
def test_limits_that_are_none_are_refused(server, limits):
    with pytest.raises(ValueError, match="must be positive"):
        fetch_bytes(f"{server[0]}/picture", **limits)


def test_what_is_an_address():
    sources = ["https://example.org", "HTTP://example.org", "http_picture.png", "ftp://example.org"]
    assert [is_url(source) for source in sources] == [True, True, False, False]
