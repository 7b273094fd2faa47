"""One matrix of numbers out of a MAT-file, level 5 (MathWorks' "MAT-File Format"), as PASCAL-Context publishes labels.

Our own, because scipy's reader ends the process over damaged files, and annotations come from anywhere.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice

import numpy as np

HEADER = 128  # bytes; the last two tell the order of bytes
ORDERS = {b"IM": "<", b"MI": ">"}
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
IS_COMPLEX, NUMERIC_CLASSES = 0x0800, range(6, 16)
LARGEST = 1 << 28  # bytes of an unpacked element


def read_matrix(content: bytes, name: str) -> np.ndarray:
    """
    The matrix called `name`, (rows, columns) int64.

    Raises:
        ValueError: if there is none, it holds no whole numbers, or the file is damaged or none of level 5.
    """
    order = ORDERS.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("not of level 5")
    for kind, data in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            kind, data = next(_elements(_unpacked(data), order), (0, b""))
        parts = list(islice(_elements(data, order), 4)) if kind == MATRIX else []
        if len(parts) == 4 and parts[2][1] == name.encode():
            return _numbers(parts, order)
    raise ValueError(f"it holds no {name}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of one element after the other; up to four bytes may lie in the place of the size."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start = position + 8
        position = start + size + (0 if kind == COMPRESSED else -size % 8)
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, start - 4
            position = start + 4
        if start + size > len(data):
            raise ValueError("cut short")
        yield kind, data[start : start + size]


def _unpacked(data: bytes) -> bytes:
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(data, LARGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if unpacking.unconsumed_tail:
        raise ValueError(f"more than {LARGEST} bytes")
    return content


def _numbers(parts: list[tuple[int, bytes]], order: str) -> np.ndarray:
    """Flags, shape, name and values of a matrix, columns first -> (rows, columns)."""
    (_, flags), (_, shape), _, (kind, values) = parts
    if len(flags) != 8 or len(shape) != 8 or kind not in NUMBERS or len(values) % np.dtype(NUMBERS[kind]).itemsize:
        raise ValueError("no matrix of numbers")
    bits = struct.unpack(f"{order}II", flags)[0]
    rows, columns = struct.unpack(f"{order}ii", shape)
    matrix = np.frombuffer(values, f"{order}{NUMBERS[kind]}")
    if (
        bits & 0xFF not in NUMERIC_CLASSES
        or bits & IS_COMPLEX
        or min(rows, columns) < 0
        or rows * columns != matrix.size
    ):
        raise ValueError("no matrix of numbers")
    if matrix.dtype.kind == "f" and not (np.isfinite(matrix) & (np.abs(matrix) < 1 << 53) & (matrix % 1 == 0)).all():
        raise ValueError("numbers that are not whole")
    return matrix.astype(np.int64).reshape(columns, rows).T
