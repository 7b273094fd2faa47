"""Files: those that appear whole or not at all (results, reports, annotations), and the pictures of a folder."""

import os
from pathlib import Path

from PIL import Image


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


def list_pictures(folder: str | Path) -> list[Path]:
    """Files below `folder` with the ending of a picture, sorted; none that is hidden or lies in a hidden folder."""
    folder = Path(folder)
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = (path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    return sorted(path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts))


__all__ = ["list_pictures", "write_atomically"]
