"""The legend beside or below an overlay: number, name, score and share of area of every segment."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from maftplus.pictures.colours import Colour
from maftplus.pictures.fonts import Lettering, is_drawable, spell
from maftplus.pictures.segments import Segment

MOST_ROWS, MOST_CHARACTERS = 60, 32
BACKGROUND, INK, FAINT_INK = (255, 255, 255), (28, 30, 34), (110, 116, 124)
SPELLED = "[...]: no font for it here; the word stands in the JSON"


class Row(NamedTuple):
    """A line of a legend; without `colour` there is no swatch."""

    colour: Colour | None
    name: str
    details: str = ""


def shown_name(label: str) -> str:
    """A label as a picture shows it: what no font draws spelled out, and cut after 32 characters."""
    label = spell(label)
    return label if len(label) <= MOST_CHARACTERS else f"{label[: MOST_CHARACTERS - 1]}…"


def legend_rows(segments: Sequence[Segment], colours: Sequence[Colour]) -> list[Row]:
    """A head line, a line for each of the first 60 segments, and what else there is to say."""
    if not segments:
        return [Row(None, "no segment found")]
    rows = [_segment_row(segment, colour) for segment, colour in zip(segments, colours)][:MOST_ROWS]
    notes = [f"and {len(segments) - len(rows)} more"] if len(segments) > len(rows) else []
    if not all(is_drawable(segment.label) for segment in segments[:MOST_ROWS]):
        notes.append(SPELLED)
    return [Row(None, "segment", "score  area"), *rows, *(Row(None, note) for note in notes)]


def _segment_row(segment: Segment, colour: Colour) -> Row:
    score = "" if segment.score is None else f"{segment.score:.2f}  "
    share = segment.area / max(1, segment.mask.size)
    return Row(colour, f"{segment.id}  {shown_name(segment.label)}", f"{score}{share:.1%}")


def with_legend(canvas: Image.Image, rows: Sequence[Row], text_size: int) -> Image.Image:
    """The legend beside a tall picture, below a wide one; letters are `text_size` pixels high."""
    lettering, line_height = Lettering(text_size), round(text_size * 1.75)
    width = math.ceil(max(lettering.width(f"{row.name}   {row.details}") for row in rows)) + 2 * line_height
    if canvas.height > canvas.width:
        num_lines = max(1, (canvas.height - line_height) // line_height)
        size = (canvas.width + width * math.ceil(len(rows) / num_lines), canvas.height)
        corner = (canvas.width, line_height // 2)
    else:
        num_lines = math.ceil(len(rows) / max(1, canvas.width // width))
        size = (max(canvas.width, width), canvas.height + (num_lines + 1) * line_height)
        corner = (0, canvas.height + line_height // 2)
    sheet = Image.new("RGB", size, BACKGROUND)
    sheet.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        column, line = divmod(index, num_lines)
        _draw_row(draw, row, (corner[0] + column * width, corner[1] + line * line_height), line_height, lettering)
    return sheet


def _draw_row(
    draw: ImageDraw.ImageDraw, row: Row, corner: tuple[int, int], line_height: int, lettering: Lettering
) -> None:
    x, middle = corner[0] + line_height // 2, corner[1] + line_height // 2
    half = round(line_height * 0.3)
    if row.colour is not None:
        draw.rounded_rectangle((x, middle - half, x + 2 * half, middle + half), radius=4, fill=row.colour)
    x += 2 * half + line_height // 3
    lettering.write(draw, (x, middle), row.name, INK)
    lettering.write(draw, (x + lettering.width(f"{row.name}   "), middle), row.details, FAINT_INK)


__all__ = ["BACKGROUND", "INK", "Row", "legend_rows", "shown_name", "with_legend"]
