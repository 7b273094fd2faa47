"""The one writer of HTML reports: headings, facts, tables, bars, curves and pictures in a file that stands alone.

    report = Report("Job", "42 pictures")
    report.add_table("Classes", ["class", "IoU"], [["cat", "0.71"]])
    report.add_pictures("Best", [("1.jpg, 0.98", picture)])
    report.write("report.html")

Nothing is fetched and nothing runs when it is opened: pictures are embedded, curves are drawn as SVG, every text that
is passed in is escaped.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from maftplus.pictures.files import write_atomically
from maftplus.pictures.overlay import segment_colour

LARGEST_SIDE, WIDE_SIDE = 640, 1280  # of an embedded picture, in pixels
CURVE_SIZE = (640, 240)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e22; background: #fff; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.note { color: #5a6068; margin: 0 0 .5rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
th { border-bottom: 1px solid #c4c8ce; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
div.bar { background: #2c54dc; height: .8rem; min-width: 1px; }
td.bar { width: 24rem; }
div.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
div.wide { grid-template-columns: 1fr; } div.wide img { width: auto; max-width: 100%; }
figure { margin: 0; } figure img { width: 100%; } figcaption { overflow-wrap: anywhere; color: #5a6068; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #5a6068; }
"""


class Report:
    """
    A page that grows from top to bottom. An empty part is left out.

    Args:
        title: Its heading.
        note: A line below it.
    """

    def __init__(self, title: str, note: str = ""):
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(note)}</p>']

    def add_text(self, heading: str, *paragraphs: str) -> None:
        """Plain paragraphs."""
        self._add(heading, "".join(f"<p>{escape(text)}</p>" for text in paragraphs))

    def add_table(self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
        """A table; what looks like a number stands to the right."""
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._add(heading, f"<table><tr>{head}</tr>{body}</table>" if rows else "", note)

    def add_facts(self, heading: str, facts: Mapping[str, Any]) -> None:
        """Names and values, a line each."""
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()
        )
        self._add(heading, f"<table>{rows}</table>" if rows else "")

    def add_bars(self, heading: str, counts: Mapping[str, float], note: str = "") -> None:
        """A bar a name: counts by class, a histogram."""
        largest = max(counts.values(), default=0) or 1
        rows = "".join(
            f'<tr><td>{escape(name)}</td>{_cell(value)}<td class="bar">'
            f'<div class="bar" style="width: {100 * value / largest:.1f}%"></div></td></tr>'
            for name, value in counts.items()
        )
        self._add(heading, f"<table>{rows}</table>" if rows else "", note)

    def add_curves(self, heading: str, curves: Mapping[str, Sequence[tuple[float, float]]], note: str = "") -> None:
        """Lines through points (x, y) of one pair of axes: losses, scores over steps."""
        curves = {name: points for name, points in curves.items() if points}
        self._add(heading, _draw_curves(curves) if curves else "", note)

    def add_pictures(
        self, heading: str, pictures: Sequence[tuple[str, Image.Image]], note: str = "", is_wide: bool = False
    ) -> None:
        """A contact sheet: captions and pictures, in which large ones are made smaller; wide ones have a line each."""
        side = WIDE_SIDE if is_wide else LARGEST_SIDE
        figures = "".join(
            f'<figure><img alt="{escape(caption)}" src="{embed(picture, side)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in pictures
        )
        kind = "sheet wide" if is_wide else "sheet"
        self._add(heading, f'<div class="{kind}">{figures}</div>' if figures else "", note)

    def _add(self, heading: str, content: str, note: str = "") -> None:
        if content:
            note = f'<p class="note">{escape(note)}</p>' if note else ""
            self._parts.append(f"<h2>{escape(heading)}</h2>{note}{content}")

    def to_html(self) -> str:
        """The whole page."""
        head = f'<meta charset="utf-8"><title>{escape(self.title)}</title><style>{STYLE}</style>'
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(self._parts)}</body></html>\n'

    def write(self, path: str | Path) -> None:
        """The page as a file, whole or not at all; its folder is made. Raises OSError as `write_atomically`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.to_html())


def embed(picture: Image.Image, largest_side: int = LARGEST_SIDE) -> str:
    """A picture as a `data:` address."""
    picture = picture.convert("RGB")
    picture.thumbnail((largest_side, largest_side))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    is_number = isinstance(value, int | float) or text.replace(".", "", 1).isdigit()
    return f'<td class="number">{escape(text)}</td>' if is_number else f"<td>{escape(text)}</td>"


def _draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """SVG with the extremes of both axes and a legend."""
    width, height = CURVE_SIZE
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    parts = [f'<rect width="{width}" height="{height}" fill="none" stroke="#c4c8ce"/>']
    for index, (name, points) in enumerate(curves.items()):
        colour = "#{:02x}{:02x}{:02x}".format(*segment_colour(index))
        places = " ".join(
            f"{_share(x, left, right) * width:.1f},{(1 - _share(y, low, high)) * height:.1f}" for x, y in points
        )
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{8 + 160 * index}" y="{height + 34}" style="fill: {colour}">{escape(name)}</text>')
    for text, x, y, anchor in (
        (f"{high:.4g}", width + 6, 10, "start"),
        (f"{low:.4g}", width + 6, height, "start"),
        (f"{left:g}", 0, height + 16, "start"),
        (f"{right:g}", width, height + 16, "end"),
    ):
        parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>')
    box = f"0 0 {width + 70} {height + 44}"
    return f'<svg viewBox="{box}" width="{width + 70}" role="img">{"".join(parts)}</svg>'


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


__all__ = ["Report", "embed"]
