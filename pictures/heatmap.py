"""Heat maps: how much a word is believed in at every pixel, as colours over the greyed picture, with their scale."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE, LARGEST_SIDE = 480, 2048  # of the drawing, in pixels
GREY_SHARE = 0.35  # of the picture below its colours
BACKGROUND, INK = (255, 255, 255), (28, 30, 34)
# From dark to bright, so that the order is seen without colour vision and in print.
COLOURS = np.array([(12, 7, 52), (87, 15, 109), (187, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def heatmap_image(picture: Image.Image, scores: np.ndarray, title: str) -> Image.Image:
    """
    Scores as colours over the picture, the title above, and beside it a bar that says which colour is which score.

    Args:
        scores: (height, width) in [0, 1], of the picture's size. Every picture has the same scale, 0 to 1, so that
            those of several words can be compared.

    Raises:
        ValueError: for scores of another size than the picture's.
    """
    if scores.shape != (picture.height, picture.width):
        raise ValueError(f"`scores` {scores.shape} must have the picture's size {(picture.height, picture.width)}.")
    size = _canvas_size(picture.size)
    grey = picture.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    heat = Image.fromarray(colourise(scores)).resize(size, Image.Resampling.BILINEAR)
    return _with_scale(Image.blend(heat, grey, GREY_SHARE), title)


def colourise(scores: np.ndarray) -> np.ndarray:
    """Scores in [0, 1], any shape (...) -> colours (..., 3) uint8."""
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(scores, places, channel) for channel in COLOURS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _canvas_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(max(1.0, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))
    return tuple(max(1, round(edge * scale)) for edge in size)


def _with_scale(canvas: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(size=max(14, round(min(canvas.size) / 30)))
    line = round(font.size * 1.75)
    bar, margin = line, line // 2
    tick_width = round(font.getlength("0.00")) + margin
    width = max(canvas.width + bar + tick_width + 2 * margin, round(font.getlength(title)) + 2 * margin)
    sheet = Image.new("RGB", (width, canvas.height + line + margin), BACKGROUND)
    sheet.paste(canvas, (0, line))
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, line // 2), title, font=font, anchor="lm", fill=INK)
    left, top, height = canvas.width + margin, line, canvas.height
    column = colourise(np.linspace(1, 0, height))[:, None]
    faded = Image.blend(Image.fromarray(column), Image.new("RGB", (1, height), (128,) * 3), GREY_SHARE)
    sheet.paste(faded.resize((bar, height)), (left, top))
    for tick in TICKS:
        y = min(max(top + (1 - tick) * (height - 1), top + font.size / 2), top + height - font.size / 2)
        draw.text((left + bar + margin // 2, y), f"{tick:.2f}", font=font, anchor="lm", fill=INK)
    return sheet


__all__ = ["colourise", "heatmap_image"]
