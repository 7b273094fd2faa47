"""Files that appear whole or not at all: the one way in which results, reports and annotations are written."""

import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """
    Write a file beside its place and move it there: a reader finds the old or the new one, never half of one.

    Args:
        path: The file; its folder must be there.
        content: Bytes, or text that becomes UTF-8.

    Raises:
        OSError: if it cannot be written; then the old file is unharmed and nothing else is left.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


__all__ = ["write_atomically"]
