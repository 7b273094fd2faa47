"""Text in any script with the fonts that are there; characters that none of them draws are spelled out.

Pillow brings one font, for plain Latin letters. Others are looked for in the folders where systems keep theirs;
nothing is downloaded. What a font draws is seen by drawing: a character that it lacks looks like one that no font has.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

OWN_FONT = ""  # stands for Pillow's own among the paths
FAMILIES = ("dejavusans", "notosans", "arial", "segoeui", "helvetica", "liberationsans")  # looked at first
STYLES = ("bold", "italic", "oblique", "mono", "serif", "condensed", "narrow", "light", "thin", "black", "math")
MOST_FONTS = 400  # that are opened in search of a character
ENDINGS = (".ttf", ".otf", ".ttc")
NO_CHARACTER = "\U0010fffe"
TRIAL_SIZE = 16
VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
BLANK = ("Cf", "Cc", "Zs", "Zl", "Zp")  # categories that need no glyph
READINGS = ("SYLLABLE ", "LETTER ", "VOWEL SIGN ")  # after which Unicode's name of a character says how it is read


@dataclass(frozen=True)
class Lettering:
    """Fonts of one size, in pixels, that together write whatever they can."""

    size: int

    def width(self, text: str) -> float:
        """Pixels that `text` takes."""
        return sum(font.getlength(part) for part, font in self._parts(text))

    def write(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: Sequence[int]) -> None:
        """`text` from `place` on: its left end, and the middle of its height."""
        x, y = place
        for part, font in self._parts(text):
            draw.text((x, y), part, font=font, anchor="lm", fill=tuple(fill))
            x += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        """Stretches of text with their fonts: one font for all of it where one has all of it."""
        paths = dict.fromkeys([OWN_FONT, *(find_font(character) or OWN_FONT for character in text)])
        for path in paths:
            if all(_has(path, character) for character in text):
                return iter([(text, _open(path, self.size))])
        runs = groupby(text, key=lambda character: find_font(character) or OWN_FONT)
        return iter([("".join(run), _open(path, self.size)) for path, run in runs])


def is_drawable(text: str) -> bool:
    """Whether a font is here for every character of a text."""
    return all(find_font(character) is not None for character in text)


def spell(text: str) -> str:
    """
    A text with other characters for those that no font here draws: a symbol's Unicode name, how a syllable is read
    (`go-yang-i`), else its number (`U+732B`), all of it in square brackets. A text that can be drawn stays as it is.
    """
    runs = groupby(text, key=lambda character: find_font(character) is not None)
    return "".join("".join(run) if can_draw else _spell_run(run) for can_draw, run in runs)


def _spell_run(characters: Iterable[str]) -> str:
    readings = filter(None, map(_reading, characters))
    spelled = "-".join(readings)
    return f"[{spelled}]" if spelled else ""


def _reading(character: str) -> str:
    """Nothing for a sign without a sound of its own."""
    name, category = unicodedata.name(character, ""), unicodedata.category(character)
    if category[0] == "S" and name:
        return name.lower()
    for mark in READINGS:
        if mark in name:
            return name.partition(mark)[2].lower()
    return "" if category[0] == "M" else f"U+{ord(character):04X}"


@lru_cache(maxsize=4096)
def find_font(character: str) -> str | None:
    """Path of the first font that draws a character (`OWN_FONT`: Pillow's), `None` without one."""
    is_right_to_left = unicodedata.bidirectional(character) in ("R", "AL")
    if is_right_to_left and not features.check("raqm"):  # letters would stand apart and in the wrong order
        return None
    return next((path for path in (OWN_FONT, *font_paths()) if _has(path, character)), None)


@lru_cache(maxsize=1 << 16)
def _has(path: str, character: str) -> bool:
    if unicodedata.category(character) in BLANK or character in VARIATION_SELECTORS:
        return True
    if path == OWN_FONT and unicodedata.category(character)[0] == "M":
        return False
    font = _open(path, TRIAL_SIZE, is_trial=True)
    return font is not None and _picture(font, character) != _picture(font, NO_CHARACTER)


def _picture(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=1024)
def _open(path: str, size: int, is_trial: bool = False) -> ImageFont.FreeTypeFont | None:
    """
    `None` for a file that is no outline font, as those of coloured pictures only. A trial is drawn letter by letter:
    the full layout puts a circle under an accent that stands alone, and so hides that the accent is missing.
    """
    if path == OWN_FONT:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC if is_trial else None)
    except OSError:
        return None


@lru_cache(maxsize=1)
def font_paths() -> tuple[str, ...]:
    """The system's and the user's font files, upright sans-serif ones first."""
    files = (path for folder in _font_folders() for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    return tuple(map(str, sorted(files, key=_rank)[:MOST_FONTS]))


def _rank(path: Path) -> tuple[int, int, str]:
    name = path.stem.lower()
    family = next((index for index, prefix in enumerate(FAMILIES) if name.startswith(prefix)), len(FAMILIES))
    return sum(style in name for style in STYLES), family, str(path)


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        roots = (os.environ.get("WINDIR", r"C:\Windows"), os.environ.get("LOCALAPPDATA", str(home)))
        return [Path(roots[0]) / "Fonts", Path(roots[1]) / "Microsoft" / "Windows" / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local" / "share")
    return [*(Path(folder) / "fonts" for folder in [*shared.split(":"), own] if folder), home / ".fonts"]


__all__ = ["Lettering", "find_font", "font_paths", "is_drawable", "spell"]
