"""What every sub-command shares: errors in one line, exit codes, and when the heavy libraries are imported.

@command()                                   # or command(needs_model=False): nothing of transformers is imported
def words(name: Annotated[str, typer.Argument(help="...")]) -> None:
    from maftplus.vocabularies.files import load_vocabulary_file   # late: the help must be instant
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import typer
from safetensors import SafetensorError

import maftplus

USER_ERROR, SOME_FAILED = 2, 1  # exit codes
EXTRA_OF = {  # module that the core does not need -> the extra that brings it
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "train",
    "gdown": "get",
    "gradio": "page",
    "matplotlib": "train",
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "peft": "lora",
    "pyarrow": "scale",
    "ray": "scale",
    "yaml": "train",
}


def command(needs_model: bool = True) -> Callable[[Callable], Callable]:
    """
    Make a function a sub-command: what a user can cause ends in a message, without a traceback.

    Args:
        needs_model: Register our classes with the Auto classes first, which imports torch and transformers.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with clear_errors():
                if needs_model:
                    maftplus.register_auto_classes()
                return function(*args, **kwargs)

        return run

    return decorate


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """What a user can cause ends in a message and exit code 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        echo_error(str(error))
        raise typer.Exit(USER_ERROR) from error
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        echo_error(f'`{error.name}` is not installed: pip install "maftplus[{extra}]"')
        raise typer.Exit(USER_ERROR) from error


def echo_error(message: str) -> None:
    """One line on stderr."""
    typer.secho(f"error: {message}", err=True, fg=typer.colors.RED)
