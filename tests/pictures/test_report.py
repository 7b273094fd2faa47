"""The writer of HTML reports: a page that stands alone, in which no text is markup."""

import base64
import io
import re

from PIL import Image

from maftplus.pictures.report import LARGEST_SIDE, Report, embed


def test_texts_are_escaped_wherever_they_come_in():
    report, evil = Report("<b>", "<b>"), "<script>"
    report.add_text(evil, evil)
    report.add_table(evil, [evil], [[evil]], note=evil)
    report.add_facts(evil, {evil: evil})
    report.add_bars(evil, {evil: 1})
    report.add_curves(evil, {evil: [(0, 1), (1, 0)]})
    report.add_pictures(evil, [(evil, Image.new("RGB", (2, 2)))])
    page = report.to_html()
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") >= 14


def test_a_page_fetches_nothing():
    report = Report("Job")
    report.add_pictures("Best", [("a", Image.new("RGB", (2, 2)))])
    assert not re.search(r"(src|href)=\"(?!data:)", report.to_html())


def test_large_pictures_are_embedded_smaller():
    content = base64.b64decode(embed(Image.new("RGB", (2000, 1000))).partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (LARGEST_SIDE, LARGEST_SIDE // 2)


def test_parts_without_content_are_left_out():
    report = Report("Job")
    report.add_bars("Errors", {})
    report.add_pictures("Best", [])
    report.add_curves("Loss", {"loss": []})
    assert "<h2>" not in report.to_html()


def test_the_longest_bar_is_the_largest_count():
    report = Report("Job")
    report.add_bars("Scores", {"a": 1, "b": 4})
    assert re.findall(r"width: ([\d.]+)%\"", report.to_html()) == ["25.0", "100.0"]


def test_a_curve_goes_from_corner_to_corner_of_its_box():
    report = Report("Run")
    report.add_curves("Loss", {"loss": [(0, 2.0), (10, 1.0)]})
    assert 'points="0.0,0.0 640.0,240.0"' in report.to_html()


def test_a_report_is_written_with_its_folder(tmp_path):
    Report("Job").write(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
