"""Servers that drip, never end, announce too much or lead in circles: the reader gives up in time, with one line."""

import io
import time
from pathlib import Path

import numpy as np
from chaos.tools import Outcome, require
from PIL import Image
from url_tools import serve

from maftplus.reading_maftplus import read_picture

TIMEOUT, SLACK = 1.0, 2.0  # seconds; the second for a busy machine
MAX_BYTES = 1 << 20
# Path of a server's answer -> what the error says.
HOSTILE = {
    "drip": "took more than `timeout`",
    "drip_headers": "took more than `timeout`",
    "endless": "more than `max_bytes`",
    "huge": "more than `max_bytes`",
    "loop": "",
    "file": "",
    "missing": "404",
}


def servers_that_drip_and_flood(folder: Path) -> Outcome:
    """Every hostile answer three times: a ValueError that names the address, in time, and not much was sent."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    with serve(buffer.getvalue()) as (address, server):
        for name, reason in 3 * list(HOSTILE.items()):
            sent, started = server.bytes_sent, time.monotonic()
            try:
                read_picture(f"{address}/{name}", timeout=TIMEOUT, max_bytes=MAX_BYTES)
            except ValueError as error:
                require(address in str(error) and reason in str(error), f"{name}: the error says {error}")
            else:
                raise AssertionError(f"{name} was read as a picture")
            require(time.monotonic() - started < TIMEOUT + SLACK, f"{name} took {time.monotonic() - started:.1f} s")
            require(server.bytes_sent - sent < 16 * MAX_BYTES, f"{name}: {server.bytes_sent - sent} bytes were sent")
        for name in ("picture", "moved"):
            require(read_picture(f"HTTP{address[4:]}/{name}").size == (8, 8), f"{name} cannot be read")
    return Outcome(cases=3 * len(HOSTILE) + 2, hits=3 * len(HOSTILE))
