"""Handler of an inference endpoint: a picture and words in, segments out.

A request:
    {"inputs": picture (as the service decodes it), or text in base64,
     "parameters": {"candidate_labels": ["cat, kitten", "grass"], "stuff_labels": ["grass"], "subtask": "panoptic",
                    "threshold": 0.2, "mask_format": "png"}}
Parameters of a query string come as text. A list is then JSON (`["cat, kitten", "grass"]`), or its entries with
semicolons between them (`cat, kitten; grass`); commas separate synonyms, as always.

The answer is a list of {"label", "label_id", "score", "mask"}; the mask is a black and white PNG in base64, or with
`"mask_format": "rle"` COCO's run lengths, {"size": [height, width], "counts": text}. A request that cannot be answered
raises ValueError, which the service answers with 400 and the message.
"""

import base64
import binascii
import io
import json
import threading
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import pipeline

from maftplus.deploy.precision import choose_dtype

LISTS = ("candidate_labels", "stuff_labels")
NUMBERS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
MASK_FORMATS = ("png", "rle")
MOST_PIXELS = 50_000_000


class EndpointHandler:
    """What the service builds once and calls with every request; calls of several threads wait for each other."""

    def __init__(self, path: str = ""):
        self.pipe = pipeline("image-segmentation", model=path, trust_remote_code=True, dtype=choose_dtype())
        self.lock = threading.Lock()  # the words that the pipeline keeps are one dictionary

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Raises:
            ValueError: for a request that cannot be answered, with the reason.
        """
        picture = read_input(data.get("inputs"))
        options = read_parameters(data.get("parameters") or {})
        encode = {"png": png_text, "rle": run_lengths}[options.pop("mask_format")]
        with self.lock:
            segments = self.pipe(picture, **options)
        return [{**segment, "mask": encode(segment["mask"])} for segment in segments]


def read_input(inputs: Any) -> Image.Image:
    """The picture, decoded by the service or here. Raises ValueError if there is none."""
    if not isinstance(inputs, Image.Image):
        inputs = _decode(inputs)
    if inputs.width * inputs.height > MOST_PIXELS:
        raise ValueError(f"`inputs` has {inputs.width} x {inputs.height} pixels; at most {MOST_PIXELS:,} are taken.")
    try:
        return inputs.convert("RGB")
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise ValueError(f"`inputs` cannot be decoded ({error}).") from error


def _decode(text: Any) -> Image.Image:
    """A picture in base64, with or without the head of a data URL; never a path or an address, the server's own."""
    if not isinstance(text, str) or not text:
        raise ValueError("`inputs` must be a picture: the body of the request, or text in base64.")
    try:
        content = base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:") else text, validate=True)
        return Image.open(io.BytesIO(content))
    except (binascii.Error, ValueError, OSError) as error:
        raise ValueError("`inputs` is text, but no picture in base64.") from error


def read_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments and `mask_format`. Raises ValueError for one that does not exist or cannot be read."""
    if not isinstance(parameters, dict):
        raise ValueError(f"`parameters` must be an object, got {type(parameters).__name__}.")
    known = (*LISTS, *NUMBERS, "subtask", "mask_format")
    unknown = sorted(set(map(str, parameters)) - set(known))
    if unknown:
        raise ValueError(f"Unknown parameter {', '.join(unknown)}; known are {', '.join(known)}.")
    options = {name: value for name, value in parameters.items() if value is not None}
    options |= {name: read_labels(name, options[name]) for name in LISTS if name in options}
    options |= {name: _read_number(name, options[name]) for name in NUMBERS if name in options}
    options.setdefault("mask_format", "png")
    if options["mask_format"] not in MASK_FORMATS:
        raise ValueError(f"`mask_format` must be 'png' or 'rle', got {options['mask_format']!r}.")
    return options


def read_labels(name: str, value: Any) -> list:
    """A list of labels, from a list, JSON, or text with semicolons. Raises ValueError for anything else."""
    if isinstance(value, str):
        value = _parse_labels(name, value)
    elif isinstance(value, (int, float)):  # a service turns the text "7" into a number
        value = [str(value)]
    if not isinstance(value, list):
        raise ValueError(f"`{name}` must be a list of labels, got {type(value).__name__}.")
    return value


def _parse_labels(name: str, text: str) -> list:
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(";") if part.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"`{name}` begins like JSON but is none ({error}).") from error


def _read_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a number, got {value!r}.") from error


def png_text(mask: Image.Image) -> str:
    """A PNG in base64."""
    content = io.BytesIO()
    mask.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode("ascii")


def run_lengths(mask: Image.Image) -> dict[str, Any]:
    """COCO's run lengths, down the columns."""
    encoded = coco_mask.encode(np.asfortranarray(np.asarray(mask) > 0))
    return {"size": [int(edge) for edge in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
