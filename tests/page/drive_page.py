"""The page in a real browser, as visitors use it: `make test-page` (Debian's Chromium, Playwright; a minute).

Not among the tests that pytest collects by itself: a browser must be there.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from scipy.ndimage import distance_transform_edt

from maftplus.pictures.colours import class_colours
from maftplus.shapes.scenes import CLASS_NAMES, Scene, scenes

ROOT = Path(__file__).parents[2]
START_SECONDS, ANSWER_MS = 180, 60_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def address():
    """Where the page of `models/shapes` is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = (sys.executable, "-m", "maftplus.app.cli", "page", "--model", "shapes", "--port", str(port))
    server = subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_for(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urlopen(address, timeout=10).close()
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"The page did not start: exit code {server.poll()}.")


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=FLAGS)


@pytest.fixture
def visit(browser, address):
    """A function that comes to the page as somebody new."""
    contexts = []

    def come(viewport: dict[str, int] = DESKTOP) -> Page:
        contexts.append(browser.new_context(viewport=viewport))
        page = contexts[-1].new_page()
        page.set_default_timeout(ANSWER_MS)
        page.goto(address)
        expect(page.get_by_role("button", name="Segment", exact=True)).to_be_visible(timeout=ANSWER_MS)
        return page

    yield come
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def scene() -> Scene:
    return list(scenes("test", 2, seed=5))[1]


@pytest.fixture(scope="session")
def scene_file(scene, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(scene.image).save(path)
    return path


def upload(page: Page, path: Path) -> None:
    page.locator("#picture input[type=file]").first.set_input_files(str(path))
    expect(page.locator("#picture img").first).to_be_visible(timeout=ANSWER_MS)


def write_words(page: Page, *words: str) -> None:
    """The words in place of those that stand there."""
    box = page.locator("#words input")
    box.click()
    while page.locator("#words .token").count():
        box.press("Backspace")
    for word in words:
        box.fill(word)
        box.press("Enter")
    expect(page.locator("#words .token")).to_have_count(len(words))


def ask(page: Page) -> None:
    page.locator("#segment").click()


def words_in_table(page: Page):
    return page.locator("#table tbody tr td:nth-child(2)")


def expect_word(page: Page, word: str, count: int | None = None) -> None:
    cell = page.locator("#table").get_by_text(word, exact=True)
    if count is None:
        expect(cell.first).to_be_visible(timeout=ANSWER_MS)
    else:
        expect(cell).to_have_count(count, timeout=ANSWER_MS)


def inner_point(scene: Scene, word: str) -> tuple[float, float]:
    """(x, y) of the point of a thing that lies farthest from its border, as shares of the picture."""
    (segment,) = [one for one in scene.segments_info if CLASS_NAMES[one["category_id"]] == word]
    depth = distance_transform_edt(scene.segmentation == segment["id"])
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return (column + 0.5) / depth.shape[1], (row + 0.5) / depth.shape[0]
