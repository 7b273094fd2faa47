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
from maftplus.shapes.clips import clips, write_clip
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


def segment_scene(page: Page, path: Path, *words: str) -> None:
    upload(page, path)
    write_words(page, *words)
    ask(page)


def expect_word(page: Page, word: str, is_there: bool = True) -> None:
    """A row of the table whose word it is, or none."""
    rows = page.locator("#table").get_by_role("row", name=re.compile(rf"^\d+ {word} (thing|stuff)"))
    if is_there:
        expect(rows.first).to_be_visible(timeout=ANSWER_MS)
    else:
        expect(rows).to_have_count(0, timeout=ANSWER_MS)


def inner_point(scene: Scene, word: str) -> tuple[float, float]:
    """(x, y) of the point of a thing that lies farthest from its border, as shares of the picture."""
    (segment,) = [one for one in scene.segments_info if CLASS_NAMES[one["category_id"]] == word]
    depth = distance_transform_edt(scene.segmentation == segment["id"])
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return (column + 0.5) / depth.shape[1], (row + 0.5) / depth.shape[0]


def coloured(page: Page, place: tuple[float, float]) -> np.ndarray:
    """RGB of the annotated picture at a place, as the visitor sees it."""
    box = page.locator("#annotated img").first
    box.scroll_into_view_if_needed()
    seen = np.asarray(Image.open(BytesIO(box.screenshot())).convert("RGB"), np.float64)
    return seen[int(place[1] * seen.shape[0]), int(place[0] * seen.shape[1])]


def test_a_scene_and_words_give_a_table_and_a_coloured_picture(visit, scene, scene_file):
    page = visit()
    segment_scene(page, scene_file, "purple ring", "green ring", "stuff: grass")
    expect_word(page, "purple ring")
    expect_word(page, "grass")
    place = inner_point(scene, "purple ring")
    row, column = int(place[1] * len(scene.image)), int(place[0] * len(scene.image))
    colour = np.array(class_colours(["purple ring", "green ring", "grass"])["purple ring"], np.float64)
    plain = scene.image[row, column].astype(np.float64)
    seen = coloured(page, place)
    assert np.abs(seen - colour).max() < 0.5 * np.abs(plain - colour).max()


def test_other_words_give_another_answer(visit, scene_file):
    page = visit()
    segment_scene(page, scene_file, "purple ring", "stuff: grass")
    expect_word(page, "purple ring")
    write_words(page, "blue circle, azure ball", "stuff: water")
    ask(page)
    expect_word(page, "blue circle")
    expect_word(page, "purple ring", is_there=False)


def test_a_broken_file_ends_in_a_message(visit, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    page = visit()
    page.locator("#picture input[type=file]").first.set_input_files(str(path))
    expect(page.locator("#picture").get_by_label("Remove Image")).to_be_visible()
    ask(page)
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("cannot read 'broken.png' as a picture", timeout=ANSWER_MS)


def test_no_picture_ends_in_a_message(visit):
    page = visit()
    ask(page)
    expect(page.get_by_test_id("toast-body")).to_contain_text("There is no picture yet", timeout=ANSWER_MS)


def test_two_visitors_at_once_get_their_own_answers(visit, scene_file):
    pages = visit(), visit()
    words = ("purple ring", "blue circle")
    for page, word in zip(pages, words):
        upload(page, scene_file)
        write_words(page, word, "stuff: grass")
    for page in pages:
        ask(page)
    for page, word, other in zip(pages, words, reversed(words)):
        expect_word(page, word)
        expect_word(page, other, is_there=False)


def test_a_word_has_a_heat_map_and_an_answer_its_downloads(visit, scene_file):
    page = visit()
    segment_scene(page, scene_file, "purple ring", "stuff: grass")
    expect_word(page, "purple ring")
    for name in ("picture_overlay", "picture_labels", "picture_coco"):
        expect(page.locator("#files").get_by_text(re.compile(name)).first).to_be_visible()
    page.locator("#heat-word input").click()
    page.get_by_role("option", name="grass").click()
    expect(page.locator("#heat img").first).to_be_visible(timeout=ANSWER_MS)


def test_an_example_and_a_vocabulary_to_start_from_give_an_answer(visit):
    page = visit()
    page.locator("button.gallery-item").nth(1).click()
    expect(page.locator("#picture img").first).to_be_visible(timeout=ANSWER_MS)
    page.locator("#vocabulary input").click()
    page.get_by_role("option", name="the model's own words").click()
    expect(page.locator("#words .token")).to_have_count(len(CLASS_NAMES), timeout=ANSWER_MS)
    ask(page)
    expect_word(page, "purple ring")


def test_a_clip_gives_tracks_and_a_clip(visit, tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, next(clips("test", 1, num_frames=4)))
    page = visit()
    page.get_by_role("tab", name="Clip").click()
    page.locator("#clip input[type=file]").first.set_input_files(str(path))
    expect(page.locator("#clip video")).to_be_visible(timeout=ANSWER_MS)
    page.locator("#segment-clip").click()
    expect(page.locator("#overlay video")).to_be_visible(timeout=ANSWER_MS)
    rows = page.locator("#tracks").get_by_role("row", name=re.compile(r"^1 .+ 0 3 4"))
    expect(rows).to_be_visible(timeout=ANSWER_MS)


def test_a_broken_clip_ends_in_a_message(visit, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no clip")
    page = visit()
    page.get_by_role("tab", name="Clip").click()
    page.locator("#clip input[type=file]").first.set_input_files(str(path))
    expect(page.locator("#clip video")).to_be_visible(timeout=ANSWER_MS)
    page.locator("#segment-clip").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("broken.mp4", timeout=ANSWER_MS)


def test_a_telephone_shows_the_page_without_scrolling_sideways(visit):
    page = visit(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
