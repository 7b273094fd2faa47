"""Reading checkpoints without executing anything, and writing folders so that a crash leaves nothing half-made.

A checkpoint is `torch.save`'s file or safetensors, or a folder that holds one. Pickle is only read with
`weights_only=True`. Tensors stay on disk (memory-mapped) until they are written, one at a time.
"""

import json
import os
import pickle
import re
import shutil
import socket
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

logger = logging.get_logger(__name__)

SMALL_FILES = 10_000_000  # tokenizer, code and card, generously
WRAPPERS = ("model", "state_dict", "model_state_dict")
MAX_WRAPPERS = 4  # one in the other; a dictionary may contain itself
MAX_TENSORS, LONGEST_NAME = 50_000, 500  # far beyond any released checkpoint
STAGING_ENDING = ".maftplus-unfinished"
PREFIXES = ("module.", "_orig_mod.")
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message is for the user and names the file."""


def find_weights(source: Path) -> Path:
    """The weight file: `source` itself, or the known one in a folder. Raises CheckpointError."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise CheckpointError(f"{source}: there is no such file or folder.")
    for name in WEIGHT_FILES:
        if (source / name).is_file():
            return source / name
    raise CheckpointError(f"{source}: the folder holds none of {', '.join(WEIGHT_FILES)}.")


def read_state(source: Path) -> dict[str, Tensor]:
    """
    The state dict of a checkpoint, wrappers (`model`, `state_dict`, `module.`) seen through, on the CPU.

    Raises:
        CheckpointError: if there is no file, it is cut short, or it holds anything but tensors and plain containers.
    """
    path = find_weights(Path(source))
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    state = unwrap(content, path)
    _check_tensors(state, path)
    return state


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors inside `content`; see `read_state`."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, Mapping) or any(isinstance(value, Tensor) for value in content.values()):
            break
        content = next((content[key] for key in WRAPPERS if key in content), None)
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path}: found no dictionary of tensors, neither at the top nor under {', '.join(WRAPPERS)}."
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: these entries of the state dict are no tensors: {', '.join(others[:8])}.")
    return _without_prefixes({str(name): tensor for name, tensor in content.items()})


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # either may be outermost
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless every tensor is an ordinary one whose values are all in the file."""
    if len(state) > MAX_TENSORS or max(map(len, state)) > LONGEST_NAME:
        raise CheckpointError(
            f"{path}: {len(state)} tensors, the longest name has {max(map(len, state))} characters; "
            f"at most {MAX_TENSORS} and {LONGEST_NAME} are read."
        )
    for name, tensor in state.items():
        if reason := _why_unusable(tensor):
            raise CheckpointError(f"{path}: `{name}` {reason}; save plain tensors of floating-point numbers.")


def _why_unusable(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout})"
    if tensor.is_quantized or tensor.is_complex():
        return f"is of type {tensor.dtype}"
    if tensor.is_meta:
        return "has no values (it was saved on the meta device)"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "repeats its values (an expanded view), so the file does not hold all of them"
    return None


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)  # memory-mapped
    except Exception as error:  # SafetensorError and OSError; KeyError for types that torch does not have
        raise CheckpointError(f"{path}: cut short or no safetensors file ({_first_line(error)}).") from error


def _load_pickle(path: Path) -> Any:
    """`torch.load` that cannot run code; memory-mapped unless the file has the old format, which torch cannot map."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; what matters raises
            return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_explain_refusal(path, error)) from error
    except Exception as error:  # of a damaged file: RuntimeError, EOFError, struct.error, IndexError, ...
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: a TorchScript archive holds code, which is not run. Save its `state_dict()` instead."
            ) from error
        raise CheckpointError(f"{path}: cut short or no checkpoint ({_first_line(error)}).") from error


def _explain_refusal(path: Path, error: Exception) -> str:
    if "truncated" in str(error):
        return f"{path}: cut short ({_first_line(error)})."
    return (
        f"{path}: holds more than tensors and plain containers, or is no checkpoint ({_first_line(error)}). Reading "
        "anything else could run code, so it is refused; save the state dict alone (`model.state_dict()`)."
    )


def _first_line(error: Exception) -> str:
    """What torch says about a file, without its advice to load unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return f"{type(error).__name__}: {(details or lines or ['no more is known'])[0][:200]}".rstrip(".")


def check_new_folders(outs: Sequence[Path]) -> None:
    """Raise CheckpointError if one exists and is not an empty folder, or if two are the same or one in the other."""
    for index, out in enumerate(outs):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out}: exists already; give another output folder or remove it.")
        for other in outs[:index]:
            one, two = out.resolve(), other.resolve()
            if one.is_relative_to(two) or two.is_relative_to(one):
                raise CheckpointError(f"{out}: must lie apart from {other}; give two folders, none inside the other.")


@contextmanager
def new_folders(outs: Sequence[Path]) -> Iterator[list[Path]]:
    """
    Folders to fill that become `outs` when all went well, and vanish, all of them, when anything went wrong.

    Raises:
        CheckpointError: as `check_new_folders`, or if one cannot be written.
    """
    outs = [out.absolute() for out in outs]
    check_new_folders(outs)
    stagings: list[Path] = []
    try:
        for out in outs:
            stagings.append(_staging_folder(out))
        yield stagings
        _rename_all(stagings, outs)
    except OSError as error:
        names = " and ".join(map(str, outs))
        raise CheckpointError(
            f"{names}: could not be written ({error.strerror or error}). Nothing was kept."
        ) from error
    finally:
        for staging in stagings:
            shutil.rmtree(staging, ignore_errors=True)


def _staging_folder(out: Path) -> Path:
    """A new folder beside `out`, whose name says which process of which machine fills it."""
    prefix = f".{out.name}.{_host_name()}.{os.getpid()}."
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.parent)
        return Path(tempfile.mkdtemp(prefix=prefix, suffix=STAGING_ENDING, dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be made ({error.strerror or error}).") from error


def _host_name() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _remove_abandoned(folder: Path) -> None:
    """Remove what conversions left in `folder` that were killed on this machine; name what another one may fill."""
    for staging in folder.glob(f".*{STAGING_ENDING}"):
        parts = staging.name.removesuffix(STAGING_ENDING).split(".")
        if not staging.is_dir() or len(parts) < 5 or not parts[-2].isdecimal():
            continue
        if parts[-3] != _host_name():
            logger.warning(f"{staging}: an unfinished conversion of another machine; remove it if none is running.")
        elif not _is_running(int(parts[-2])):
            shutil.rmtree(staging, ignore_errors=True)
            logger.warning(f"{staging}: removed, a conversion that was killed had left it.")


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)  # asks, kills nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _rename_all(stagings: Sequence[Path], outs: Sequence[Path]) -> None:
    """All or none: a rename that fails takes back those before it."""
    with ExitStack() as taken_back:
        for staging, out in zip(stagings, outs):
            staging.chmod(0o755)  # mkdtemp's folders are private
            staging.replace(out)
            taken_back.callback(out.replace, staging)
        taken_back.pop_all()


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise CheckpointError before a long write that cannot end well; `num_bytes` without tokenizer, code and card."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SMALL_FILES:
        raise CheckpointError(
            f"{folder.parent}: {(num_bytes + SMALL_FILES) / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free."
        )


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, show_progress: bool = False) -> None:
    """
    Write `tensors` to `path`, one at a time: memory-mapped checkpoints never lie in memory as a whole.

    `safetensors.torch.save_file` copies everything first in older releases. Floats become float32, whatever they were.

    Raises:
        CheckpointError: if a value is not finite as float32.
    """
    names = sorted(tensors)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape, dtype = list(tensors[name].shape), _saved_dtype(tensors[name])
        size = tensors[name].numel() * dtype.itemsize
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file, tqdm(total=offset, unit="B", unit_scale=True, disable=not show_progress) as bar:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            bar.update(file.write(_as_bytes(tensors[name], name)))


def _saved_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _as_bytes(tensor: Tensor, name: str) -> memoryview:
    flat = tensor.detach().to("cpu", _saved_dtype(tensor)).contiguous().reshape(-1)
    if flat.is_floating_point() and not flat.isfinite().all():
        bad = flat.numel() - int(flat.isfinite().sum())
        raise CheckpointError(f"`{name}` holds {bad} values of {flat.numel()} that are NaN or infinite in float32.")
    return memoryview(flat.view(torch.uint8).numpy())


__all__ = [
    "CheckpointError",
    "check_new_folders",
    "find_weights",
    "new_folders",
    "read_state",
    "require_space",
    "unwrap",
    "write_safetensors",
]
