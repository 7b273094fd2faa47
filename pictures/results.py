"""The files of one segmented picture: `<name>_overlay.png`, `<name>_labels.png` and `<name>.json`.

Each bears a mark that says who wrote it (`Software` in a PNG's text, `written_by` in the JSON). Files without the mark
belong to somebody else and are not replaced unasked.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maftplus.pictures.files import write_atomically
from maftplus.pictures.overlay import overlay_image
from maftplus.pictures.segments import Segment, label_image

MARK = "maftplus"
PNG_KEY, JSON_KEY = "Software", "written_by"


def result_paths(stem: Path) -> dict[str, Path]:
    """Where the results of a picture go, by `"overlay"`, `"labels"` and `"json"`."""
    return {
        "overlay": stem.with_name(f"{stem.name}_overlay.png"),
        "labels": stem.with_name(f"{stem.name}_labels.png"),
        "json": stem.with_name(f"{stem.name}.json"),
    }


def write_results(
    stem: Path, picture: Image.Image, segments: Sequence[Segment], about: dict[str, Any], overwrite: bool = False
) -> dict[str, Path]:
    """
    Write `<stem>_overlay.png`, `<stem>_labels.png` and `<stem>.json`; each appears whole or not at all, the JSON last.

    Args:
        stem: Folder and name without ending; the folder is made.
        about: What the JSON says beside width, height and segments.
        overwrite: Replace also files that we did not write.

    Returns:
        The paths, by `"overlay"`, `"labels"` and `"json"`.

    Raises:
        ValueError: if a file stands in the way that we did not write; nothing is written then.
    """
    paths = result_paths(stem)
    if not overwrite:
        for path in paths.values():
            check_replaceable(path)
    document = {JSON_KEY: MARK, **about, "width": picture.width, "height": picture.height}
    document |= {"label_image": paths["labels"].name, "segments": [segment.to_dict() for segment in segments]}
    contents = {
        "overlay": encode_png(overlay_image(picture, segments)),
        "labels": encode_png(label_image(segments, picture.size)),
        "json": json.dumps(document, indent=2, ensure_ascii=False),
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(paths[name], content)
    return paths


def encode_png(image: Image.Image) -> bytes:
    """A PNG that bears our mark."""
    buffer, text = io.BytesIO(), PngInfo()
    text.add_text(PNG_KEY, MARK)
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def check_replaceable(path: Path) -> None:
    """Raise ValueError if something stands at `path` that we did not write."""
    if (path.exists() or path.is_symlink()) and not is_result(path):
        raise ValueError(
            f"{path}: this file is there already and not a result of ours; "
            "give another folder with --out, or replace it with --overwrite."
        )


def is_result(path: Path) -> bool:
    """Whether we wrote a PNG or JSON file, by its mark. Whatever cannot be read is not ours."""
    if path.suffix not in (".png", ".json") or not path.is_file():
        return False
    try:
        return _read_mark(path) == MARK
    except Exception:  # a stranger's file may be anything, and decoders raise whatever they like
        return False


def _read_mark(path: Path) -> Any:
    if path.suffix == ".json":
        document = json.loads(path.read_text(encoding="utf-8"))
        return document.get(JSON_KEY) if isinstance(document, dict) else None
    with Image.open(path, formats=["PNG"]) as image:
        return image.info.get(PNG_KEY)


__all__ = ["check_replaceable", "encode_png", "is_result", "result_paths", "write_results"]
