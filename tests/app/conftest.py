"""A tiny model and a picture of noise, for tests of the commands."""

import pytest
from PIL import Image
from tiny_tools import noise_pixels, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), ["cat, kitten", "grass"], stuff=["grass"])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "one.png"
    path.parent.mkdir()
    Image.fromarray(noise_pixels(0)).save(path)
    return path
