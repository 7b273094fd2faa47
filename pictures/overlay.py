"""Overlays: a picture under its segments, coloured, outlined and numbered, with a legend."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import distance_transform_edt

from maftplus.pictures.segments import Segment

OPACITY = 0.3  # what the picture shows stays recognisable under its segment
SMALLEST_SIDE, LARGEST_SIDE = 480, 2048  # of the overlay's picture, in pixels
LARGEST_LEGEND = 60
BACKGROUND, INK, FAINT_INK = (255, 255, 255), (28, 30, 34), (110, 116, 124)


def overlay_image(picture: Image.Image, segments: Sequence[Segment]) -> Image.Image:
    """The picture under coloured, outlined, numbered segments, and a legend: number, label, score, share of area."""
    colours = [segment_colour(index) for index in range(len(segments))]
    return _with_legend(paint_segments(picture, segments, colours), segments, colours)


def paint_segments(
    picture: Image.Image, segments: Sequence[Segment], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The picture, in a size at which lines can be seen, under its segments, each in its colour and with its id."""
    canvas = picture.convert("RGB").resize(_canvas_size(picture.size), Image.Resampling.BICUBIC)
    masks = [_enlarge(segment.mask, canvas.size) for segment in segments]
    order = sorted(range(len(segments)), key=lambda index: -segments[index].area)  # small ones stay visible
    for index in order:
        _paint(canvas, masks[index], colours[index])
    for index in order:
        _write_number(canvas, masks[index], segments[index].id, colours[index])
    return canvas


def _canvas_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) on which lines and numbers are readable: small pictures grow, very large ones shrink."""
    scale = min(max(1.0, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))
    return tuple(max(1, round(edge * scale)) for edge in size)


def segment_colour(index: int) -> tuple[int, int, int]:
    """RGB of the segment at `index`: hues a golden angle apart, so neighbours in the list differ most."""
    hue = (0.58 + index * 0.61803398875) % 1.0
    saturation, value = ((0.85, 0.95), (0.60, 0.80), (0.95, 0.65))[index % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def _enlarge(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)


def _paint(canvas: Image.Image, mask: Image.Image, colour: tuple[int, int, int]) -> None:
    """Colour inside the mask, a full-strength line with a light rim along its border. Works on the mask's box only."""
    box = mask.getbbox()
    if box is None:
        return
    thickness = max(1, round(min(canvas.size) / 350))
    below, mask = canvas.crop(box), mask.crop(box)
    inner = mask.filter(ImageFilter.MinFilter(2 * thickness + 1))
    rim = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
    line, light = (Image.new("RGB", below.size, fill) for fill in (colour, BACKGROUND))
    painted = Image.composite(line, below, mask)
    painted = Image.composite(Image.blend(below, line, OPACITY), painted, inner)
    canvas.paste(Image.composite(light, painted, rim), box)


def _write_number(canvas: Image.Image, mask: Image.Image, number: int, colour: tuple[int, int, int]) -> None:
    """The segment's number on a badge, where the segment is thickest."""
    box = mask.getbbox()
    if box is None:
        return
    x, y = _thickest_point(mask.crop(box))
    centre = (box[0] + x, box[1] + y)
    font = ImageFont.load_default(size=max(13, round(min(canvas.size) / 32)))
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox(centre, str(number), font=font, anchor="mm")
    badge = (left - 5, top - 4, right + 5, bottom + 4)
    draw.rounded_rectangle(badge, radius=6, fill=BACKGROUND, outline=colour, width=2)
    draw.text(centre, str(number), font=font, anchor="mm", fill=INK)


def _thickest_point(mask: Image.Image) -> tuple[float, float]:
    """(x, y) of the point of a mask that lies farthest from its border."""
    shrink = max(1, max(mask.size) // 128)
    inside = np.pad(np.asarray(mask.reduce(shrink)) > 127, 1)
    row, column = np.unravel_index(np.argmax(distance_transform_edt(inside)), inside.shape)
    return (column - 0.5) * shrink, (row - 0.5) * shrink


def _with_legend(
    canvas: Image.Image, segments: Sequence[Segment], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The legend beside a tall picture, below a wide one."""
    font = ImageFont.load_default(size=max(14, round(min(canvas.size) / 30)))
    rows = _legend_rows(segments, colours)
    line_height = round(font.size * 1.75)
    width = max(round(font.getlength(f"{name}   {details}")) for _, name, details in rows) + 2 * line_height
    if canvas.height > canvas.width:
        num_lines = max(1, (canvas.height - line_height) // line_height)
        size = (canvas.width + width * math.ceil(len(rows) / num_lines), canvas.height)
        origin = (canvas.width, line_height // 2)
    else:
        num_columns = max(1, canvas.width // width)
        num_lines = math.ceil(len(rows) / num_columns)
        size = (max(canvas.width, width), canvas.height + (num_lines + 1) * line_height)
        origin = (0, canvas.height + line_height // 2)
    sheet = Image.new("RGB", size, BACKGROUND)
    sheet.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        column, line = divmod(index, num_lines)
        _draw_row(draw, row, (origin[0] + column * width, origin[1] + line * line_height), line_height, font)
    return sheet


def _legend_rows(segments: Sequence[Segment], colours: Sequence[tuple[int, int, int]]) -> list[tuple]:
    """(colour or None, name, details) of every line."""
    if not segments:
        return [(None, "no segment found", "")]
    rows = [_legend_row(segment, colour) for segment, colour in zip(segments, colours)][:LARGEST_LEGEND]
    more = len(segments) - len(rows)
    return [(None, "segment", "score  area"), *rows, *([(None, f"and {more} more", "")] if more else [])]


def _legend_row(segment: Segment, colour: tuple[int, int, int]) -> tuple[tuple[int, int, int], str, str]:
    score = "" if segment.score is None else f"{segment.score:.2f}  "
    name = segment.label if len(segment.label) <= 32 else f"{segment.label[:31]}…"
    return colour, f"{segment.id}  {name}", f"{score}{segment.area / max(1, segment.mask.size):.1%}"


def _draw_row(draw: ImageDraw.ImageDraw, row: tuple, corner: tuple[int, int], line_height: int, font) -> None:
    colour, name, details = row
    x, middle = corner[0] + line_height // 2, corner[1] + line_height // 2
    half = round(line_height * 0.3)
    if colour is not None:
        draw.rounded_rectangle((x, middle - half, x + 2 * half, middle + half), radius=4, fill=colour)
    x += 2 * half + line_height // 3
    draw.text((x, middle), name, font=font, anchor="lm", fill=INK)
    draw.text((x + font.getlength(f"{name}   "), middle), details, font=font, anchor="lm", fill=FAINT_INK)


__all__ = ["overlay_image", "paint_segments", "segment_colour"]
