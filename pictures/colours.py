"""Colours of classes: the same in every picture, told by the name alone; and of segments, by their place in a list."""

import colorsys
from collections.abc import Sequence
from zlib import crc32

from maftplus.words_maftplus import canonical_name

Colour = tuple[int, int, int]  # RGB, 0 to 255

NUM_HUES = 18
TIERS = ((0.90, 0.95), (0.55, 0.85), (0.95, 0.62))  # saturation and value: strong, pale, dark
SEARCH_STEP = 7  # slots from a taken one to the next that is tried; it meets all 54, being prime to them


def class_colours(names: Sequence[str]) -> dict[str, Colour]:
    """
    A colour for every class of a vocabulary, by name.

    It is told by the name (in canonical form, so `"Dog"` is `"dog"`), whatever the other names are, unless an earlier
    name took it: then the next free one of the palette. Past its 54 colours names share them.
    """
    palette = [_slot_colour(slot) for slot in range(NUM_HUES * len(TIERS))]
    slots: dict[str, int] = {}
    for name in dict.fromkeys(map(canonical_name, names)):
        slot, taken = crc32(name.encode("utf-8")) % len(palette), set(slots.values())
        while slot in taken and len(taken) < len(palette):
            slot = (slot + SEARCH_STEP) % len(palette)
        slots[name] = slot
    return {name: palette[slots[canonical_name(name)]] for name in names}


def _slot_colour(slot: int) -> Colour:
    tier, hue = divmod(slot, NUM_HUES)
    return _rgb((hue + tier / len(TIERS)) / NUM_HUES, *TIERS[tier])


def segment_colour(index: int) -> Colour:
    """RGB of the segment at `index`: hues a golden angle apart, so neighbours in the list differ most."""
    saturation, value = ((0.85, 0.95), (0.60, 0.80), (0.95, 0.65))[index % 3]
    return _rgb((0.58 + index * 0.61803398875) % 1.0, saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


__all__ = ["Colour", "class_colours", "segment_colour"]
