"""The files of one segmented picture: `<name>_overlay.png`, `<name>_labels.png` and `<name>.json`; and, where asked
for, `<name>_heatmap_<word>.png` of every word and `<name>_confidence.png`.

Each bears a mark that says who wrote it (`Software` in a PNG's text, `written_by` in the JSON). Files without the mark
belong to somebody else and are not replaced unasked.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maftplus.pictures.files import write_atomically
from maftplus.pictures.overlay import Style, overlay_image
from maftplus.pictures.segments import Segment, label_image

MARK = "maftplus"
PNG_KEY, JSON_KEY = "Software", "written_by"
LONGEST_WORD = 60  # characters of a word in a file's name


def result_paths(stem: Path) -> dict[str, Path]:
    """Where the results of a picture go, by `"overlay"`, `"labels"` and `"json"`."""
    return {
        "overlay": stem.with_name(f"{stem.name}_overlay.png"),
        "labels": stem.with_name(f"{stem.name}_labels.png"),
        "json": stem.with_name(f"{stem.name}.json"),
    }


def heatmap_paths(stem: Path, words: Sequence[str]) -> list[Path]:
    """Where the heat map of every word goes, no two in one place even if their letters are not for file names."""
    paths: list[Path] = []
    taken: set[str] = set()
    for word in words:
        name = re.sub(r"[^\w-]+", "-", word)[:LONGEST_WORD].strip("-") or "word"
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.casefold())
        paths.append(stem.with_name(f"{stem.name}_heatmap_{unique}.png"))
    return paths


def confidence_path(stem: Path) -> Path:
    """Where the map of the best word's scores goes."""
    return stem.with_name(f"{stem.name}_confidence.png")


def write_results(
    stem: Path,
    picture: Image.Image,
    segments: Sequence[Segment],
    about: dict[str, Any],
    overwrite: bool = False,
    drawings: Mapping[Path, Callable[[], Image.Image]] | None = None,
    style: Style = "fill",
) -> dict[str, Path]:
    """
    Write `<stem>_overlay.png`, `<stem>_labels.png` and `<stem>.json`; each appears whole or not at all, the JSON last.

    Args:
        stem: Folder and name without ending; the folder is made.
        about: What the JSON says beside width, height and segments. Where it holds the synonyms of all classes as
            `"labels"`, their colours are those of every other picture of the run.
        overwrite: Replace also files that we did not write.
        drawings: Further pictures, such as heat maps, and where they go; each is drawn when it is its turn, so that
            no more than one is held.
        style: Of the overlay; see `overlay_image`.

    Returns:
        The paths, by `"overlay"`, `"labels"` and `"json"`.

    Raises:
        ValueError: if a file stands in the way that we did not write; nothing is written then.
    """
    paths, drawings = result_paths(stem), drawings or {}
    if not overwrite:
        for path in (*paths.values(), *drawings):
            check_replaceable(path)
    document = {JSON_KEY: MARK, **about, "width": picture.width, "height": picture.height}
    document |= {"label_image": paths["labels"].name, "segments": [segment.to_dict() for segment in segments]}
    names = [synonyms[0] for synonyms in about.get("labels", ())]
    contents = {
        "overlay": encode_png(overlay_image(picture, segments, style, names)),
        "labels": encode_png(label_image(segments, picture.size)),
        "json": json.dumps(document, indent=2, ensure_ascii=False),
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path, draw in drawings.items():
        write_atomically(path, encode_png(draw()))
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


__all__ = [
    "check_replaceable",
    "confidence_path",
    "encode_png",
    "heatmap_paths",
    "is_result",
    "result_paths",
    "write_results",
]
