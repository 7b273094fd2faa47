"""Bytes of a good file, damaged: some changed, some lost, some twice, some foreign."""

from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

HOSTILE_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xfe\xff", b"<", b"{")


class Damage(NamedTuple):
    """What happens at a place between 0 (the start) and 1 (the end) of a file."""

    kind: str
    place: float
    bytes: bytes


def damages(least: int = 0, most: int = 8) -> SearchStrategy[list[Damage]]:
    """Lists of damages; places near the start, where headers are, come often."""
    place = st.one_of(st.floats(0, 1), st.floats(0, 0.1))
    content = st.one_of(st.sampled_from(HOSTILE_BYTES), st.binary(min_size=1, max_size=4))
    kind = st.sampled_from(["change", "change", "change", "cut", "lose", "insert", "repeat"])
    return st.lists(st.builds(Damage, kind, place, content), min_size=least, max_size=most)


def damaged(content: bytes, what: list[Damage]) -> bytes:
    """`content` after all of it."""
    data = bytearray(content)
    for kind, place, piece in what:
        at = int(place * len(data))
        if kind == "change":
            data[at : at + len(piece)] = piece
        elif kind == "cut":
            del data[at:]
        elif kind == "lose":
            del data[at : at + len(piece)]
        elif kind == "insert":
            data[at:at] = piece
        else:
            data[at:at] = data[at : at + 64 * len(piece)]
    return bytes(data)
