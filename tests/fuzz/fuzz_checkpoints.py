"""Damaged and hostile checkpoints: inspected and converted, or refused by name. No pickle runs, nothing is left."""

import io
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from conversion_tools import open_clip_state, tiny_overrides, tiny_state
from fuzz.mutations import Damage, damaged, damages
from fuzz.targets import Target, refused
from hypothesis import strategies as st
from safetensors.torch import save

from maftplus.conversion.convert import convert, inspect_checkpoint

OVERRIDES = {"open_clip": {"text_config": {"num_attention_heads": 2}}, "maftplus": tiny_overrides()}
CANARY, WORDS = "pickle_ran", "token_embedding.weight"


class Runs:
    """Unpickling it would make a file beside the checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@cache
def states() -> dict[str, dict[str, torch.Tensor]]:
    """With 512 words in place of 49,408, so that a case takes milliseconds."""
    whole = {"open_clip": open_clip_state(), "maftplus": tiny_state()}
    return {
        kind: {name: value[:512].clone() if name.endswith(WORDS) else value for name, value in state.items()}
        for kind, state in whole.items()
    }


@cache
def originals() -> list[tuple[str, str, bytes]]:
    """Kind, ending and bytes of good files: safetensors, torch's zip and its old format, whole and a part."""
    files = []
    for kind, state in states().items():
        few = {"model": {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(4)}}
        files.append((kind, ".safetensors", save({name: value.contiguous() for name, value in state.items()})))
        for content in ({"state_dict": state}, few):
            for is_zip in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
                files.append((kind, ".pth", buffer.getvalue()))
    return files


ODD_TENSORS = {
    "nan": lambda tensor: torch.full_like(tensor, float("nan")),
    "integer": lambda tensor: tensor.long(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "uint32": lambda tensor: tensor.to(torch.uint32),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "expanded": lambda tensor: torch.zeros(1).expand(tensor.shape),
    "huge": lambda tensor: torch.zeros(1).expand(10**6, 10**6),
    "scalar": lambda tensor: torch.tensor(1.0),
    "empty": lambda tensor: torch.zeros(0),
    "empty_axis": lambda tensor: torch.zeros(0, *tensor.shape[1:]),
    "transposed": lambda tensor: tensor.mT if tensor.ndim > 1 else tensor,
    "more_axes": lambda tensor: tensor[None],
    "strings": lambda tensor: "no tensor",
    "none": lambda tensor: None,
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
}
NAMES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["module.", "model", "state_dict", "backbone.clip_model.", "\ud800", "x" * 600, "a.\x00.b"]),
    st.integers(-1, 10**13).map(lambda number: f"transformer.resblocks.{number}.ln_1.weight"),
    st.integers(-1, 10**13).map(lambda number: f"visual.trunk.stages.{number}.blocks.0.gamma"),
    st.integers(),
)
CHANGE = st.tuples(
    st.sampled_from(["odd", "odd", "drop", "rename", "add", "wrap", "cycle", "prefix", "pickle"]),
    st.integers(0, 10_000),
    st.sampled_from(sorted(ODD_TENSORS)),
    NAMES,
)


def changed(state: dict[str, Any], changes: list[tuple], canary: Path) -> Any:
    """A state dict after all of the changes, wrapped or not."""
    state = dict(state)
    for what, index, odd, name in changes:
        key = list(state)[index % len(state)] if state else "a"
        value = state.get(key)
        if what == "odd" and isinstance(value, torch.Tensor) and value.layout == torch.strided:
            state[key] = make_odd(odd, value)
        elif what == "drop":
            state.pop(key, None)
        elif what == "rename" and state:
            state[name] = state.pop(key)
        elif what == "add":
            state[name] = torch.ones(2, 2)
        elif what == "wrap":
            state = {("model", "state_dict", "else")[index % 3]: state}
        elif what == "cycle":
            state[("model", "state_dict")[index % 2]] = state
        elif what == "prefix":
            state = {f"module.{key}": value for key, value in state.items()}
        elif what == "pickle":
            state[str(name)] = Runs(canary)
    return state


def make_odd(odd: str, value: torch.Tensor) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about quantized tensors
            return ODD_TENSORS[odd](value)
    except (RuntimeError, NotImplementedError):  # of a tensor that is odd already
        return None


def check_bytes(case: tuple[int, list[Damage]], folder: Path) -> str:
    number, what = case
    kind, ending, content = originals()[number % len(originals())]
    path = folder / f"weights{ending}"
    path.write_bytes(damaged(content, what))
    return _convert(path, kind)


def check_dictionaries(case: tuple[str, list[tuple], bool], folder: Path) -> str:
    kind, changes, is_zip = case
    path = folder / "weights.pth"
    content = changed(states()[kind], changes, folder / CANARY)
    try:
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    except (RuntimeError, NotImplementedError, UnicodeEncodeError, RecursionError):  # torch itself cannot write it
        return "not written"
    return _convert(path, kind)


def _convert(path: Path, kind: str) -> str:
    """Inspect and convert; whatever the outcome, the folder holds nothing else."""
    out, config = path.parent / "out", path.parent / "config.json"
    config.write_text(json.dumps(OVERRIDES[kind]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [_attempt(inspect_checkpoint, path, config_file=config)]
        outcomes.append(_attempt(convert, path, out, task="semantic", config_file=config, tokenizer="none"))
    files = {file.name for file in path.parent.iterdir()}
    wanted = {path.name, config.name} | ({"out"} if outcomes[1] == "taken" else set())
    assert files == wanted, f"left behind: {files - wanted}"
    return outcomes[1]


def _attempt(function, path: Path, *args: Any, **kwargs: Any) -> str:
    try:
        function(path, *args, **kwargs)
    except (ValueError, OSError) as error:
        return refused(error, path)
    return "taken"


KINDS = st.sampled_from(["open_clip", "open_clip", "maftplus"])
FILES = st.tuples(st.integers(0, 10_000), damages(least=1, most=3))
CHANGES = st.tuples(KINDS, st.lists(CHANGE, min_size=1, max_size=4), st.booleans())
CHECKPOINTS = Target("checkpoints", FILES, check_bytes, originals)
DICTIONARIES = Target("dictionaries", CHANGES, check_dictionaries, states)
