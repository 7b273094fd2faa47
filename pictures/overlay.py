"""Overlays: a picture under its segments, filled or outlined, numbered and named, with a legend."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt

from maftplus.pictures.colours import Colour, class_colours, segment_colour
from maftplus.pictures.fonts import Lettering
from maftplus.pictures.legend import BACKGROUND, INK, legend_rows, shown_name, with_legend
from maftplus.pictures.segments import Segment

Style = Literal["fill", "outline", "side-by-side"]
STYLES = get_args(Style)
OPACITY = 0.5  # of a region: its colour is plain, what the picture shows stays recognisable
SMALLEST_SIDE, LARGEST_SIDE = 480, 2048  # of the overlay's picture, in pixels
NAME_TO_RADIUS = 3.2  # a name is written where it takes less than this times the radius of what fits inside


def overlay_image(
    picture: Image.Image, segments: Sequence[Segment], style: Style = "fill", names: Sequence[str] | None = None
) -> Image.Image:
    """
    The picture under its segments, each numbered (and named, where there is room), and a legend with number, label,
    score and share of area. Small pictures grow, very large ones shrink, so that all of it can be read.

    Args:
        picture: The picture, as large as the masks.
        segments: What was found in it.
        style: `"fill"`: regions; `"outline"`: their borders only; `"side-by-side"`: the bare picture, then regions.
        names: All classes that were asked for: with them colours are the same in every picture of a run, whatever was
            found in it. Default: those of the segments.

    Raises:
        ValueError: for an unknown `style`.
    """
    if style not in STYLES:
        raise ValueError(f"`style` must be one of {', '.join(STYLES)}, got {style!r}.")
    colours = _segment_colours(segments, names)
    canvas = paint_segments(picture, segments, colours, style != "outline")
    unit = min(canvas.size)
    if style == "side-by-side":
        canvas = _beside(_resize(picture), canvas, gap=max(4, unit // 100))
    return with_legend(canvas, legend_rows(segments, colours), text_size=max(14, round(unit / 30)))


def paint_segments(
    picture: Image.Image, segments: Sequence[Segment], colours: Sequence[Colour], is_filled: bool = True
) -> Image.Image:
    """
    The picture, in a size at which lines can be seen, under its segments, each in its colour, with its number, and
    with its name where there is room.
    """
    canvas = _resize(picture)
    order = sorted(range(len(segments)), key=lambda index: -segments[index].area)  # small ones stay visible
    for index in order:
        _paint(canvas, _fit(segments[index].mask, canvas.size), colours[index], is_filled)
    badges = _Badges(canvas)
    for index in order:
        badges.add(segments[index], colours[index])
    return canvas


def _resize(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize(_canvas_size(picture.size), Image.Resampling.BICUBIC)


def _segment_colours(segments: Sequence[Segment], names: Sequence[str] | None) -> list[Colour]:
    by_class = sorted(segments, key=lambda segment: segment.label_id)
    known = class_colours([*(names or ()), *(segment.label for segment in by_class)])
    return [known[segment.label] for segment in segments]


def _canvas_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) on which lines and numbers are readable: small pictures grow, very large ones shrink."""
    scale = min(max(1.0, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))
    return tuple(max(1, round(edge * scale)) for edge in size)


def _fit(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A mask (h, w) bool as a black and white picture of `size` (width, height)."""
    return Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST).point([0] + [255] * 255)


def _beside(left: Image.Image, right: Image.Image, gap: int) -> Image.Image:
    sheet = Image.new("RGB", (left.width + gap + right.width, left.height), BACKGROUND)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + gap, 0))
    return sheet


def _paint(canvas: Image.Image, mask: Image.Image, colour: Colour, is_filled: bool) -> None:
    """
    A full-strength line with a light rim along the mask's border, and colour inside it or else a broader line. Works
    on the mask's box only.
    """
    box = mask.getbbox()
    if box is None:
        return
    thickness = max(2, round(min(canvas.size) / 300)) * (1 if is_filled else 2)  # rim included
    box = _widen(box, thickness + 1, canvas.size)  # filters see no border at the edge of what they are given
    below, mask = canvas.crop(box), mask.crop(box)
    inner = mask.filter(ImageFilter.MinFilter(2 * thickness + 1))
    rim = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
    line, light = (Image.new("RGB", below.size, fill) for fill in (colour, BACKGROUND))
    painted = Image.composite(line, below, mask)
    painted = Image.composite(Image.blend(below, line, OPACITY if is_filled else 0), painted, inner)
    canvas.paste(Image.composite(light, painted, rim), box)


def _widen(box: tuple[int, int, int, int], margin: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return max(0, left - margin), max(0, top - margin), min(size[0], right + margin), min(size[1], bottom + margin)


class _Badges:
    """Numbers and names on the segments of a canvas; a name gives way to badges that are there already."""

    def __init__(self, canvas: Image.Image):
        self.canvas, self.draw = canvas, ImageDraw.Draw(canvas)
        self.lettering = Lettering(max(13, round(min(canvas.size) / 36)))
        self.taken: list[tuple[float, float, float, float]] = []

    def add(self, segment: Segment, colour: Colour) -> None:
        """A badge where the segment is thickest: with the name where the segment has room, else its number alone."""
        mask = _fit(segment.mask, self.canvas.size)
        box = mask.getbbox()
        if box is None:
            return
        x, y, radius = _thickest_point(mask.crop(box))
        centre = (box[0] + x, box[1] + y)
        text = f"{segment.id} {shown_name(segment.label)}"
        place = self._place(centre, text)
        if self.lettering.width(text) > NAME_TO_RADIUS * radius or self._is_taken(place):
            text = str(segment.id)
            place = self._place(centre, text)
        self.taken.append(place)
        line, radius = max(2, round(self.lettering.size / 10)), self.lettering.size * 0.45
        self.draw.rounded_rectangle(place, radius=radius, fill=BACKGROUND, outline=colour, width=line)
        self.lettering.write(self.draw, (place[0] + self._margin, (place[1] + place[3]) / 2), text, INK)

    @property
    def _margin(self) -> float:
        return self.lettering.size * 0.4

    def _place(self, centre: tuple[float, float], text: str) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a badge around `centre`, moved inside the canvas."""
        size = (self.lettering.width(text) + 2 * self._margin, self.lettering.size * 1.5)
        left, top = (
            max(0.0, min(middle - extent / 2, edge - 1 - extent))
            for middle, extent, edge in zip(centre, size, self.canvas.size)
        )
        return left, top, left + size[0], top + size[1]

    def _is_taken(self, place: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = place
        return any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in self.taken)


def _thickest_point(mask: Image.Image) -> tuple[float, float, float]:
    """(x, y) of the point of a mask that lies farthest from its border, and how far."""
    shrink = max(1, max(mask.size) // 128)
    inside = np.pad(np.asarray(mask.reduce(shrink)) > 127, 1)
    depth = distance_transform_edt(inside)
    row, column = np.unravel_index(np.argmax(depth), inside.shape)
    return (column - 0.5) * shrink, (row - 0.5) * shrink, depth[row, column] * shrink


__all__ = ["STYLES", "Style", "overlay_image", "paint_segments", "segment_colour"]
