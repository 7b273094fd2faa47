"""The `maftplus` command: `maftplus segment PICTURE --labels "cat, kitten" --labels grass --stuff grass --model DIR`.

Every sub-command is a thin layer over the library. Mistakes of a user end in one line on stderr and exit code 2;
`segment` goes on after a picture that cannot be read, names it, and then exits with 1.
"""

import contextlib
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from safetensors import SafetensorError

DEFAULT_MODEL = Path(__file__).parent.parent / "models" / "shapes"
USER_ERROR, SOME_PICTURES_FAILED = 2, 1
MODEL_TYPE = "maftplus"  # of config.json
URL_TIMEOUT = 60  # seconds

app = typer.Typer(
    help="Open-vocabulary segmentation with your own words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Task(str, Enum):
    panoptic = "panoptic"
    instance = "instance"
    semantic = "semantic"


@app.callback()
def maftplus() -> None:
    """Keeps `segment` a sub-command, however many there are."""


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """What a user can cause ends in a message and exit code 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(USER_ERROR) from error


@app.command()
def segment(
    pictures: Annotated[list[str], typer.Argument(help="Pictures, URLs of pictures, or folders of pictures.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", "-l", help='A class, with synonyms: "cat, kitten". Repeat. Default: the stored words.'
        ),
    ] = None,
    stuff: Annotated[
        list[str] | None, typer.Option(help="Which of the labels are stuff (grass, sky). Repeat.")
    ] = None,
    task: Annotated[Task, typer.Option(help="What to find.")] = Task.panoptic,
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")] = str(DEFAULT_MODEL),
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Smallest score of a segment.")] = None,
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda", ... Default: the fastest there is.')] = None,
) -> None:
    """Segment pictures: for each an overlay with a legend, a label PNG (COCO panoptic) and a JSON document."""
    with clear_errors():
        options = {"candidate_labels": labels or None, "stuff_labels": stuff or None, "subtask": task.value}
        if threshold is not None:
            options["threshold"] = threshold
        check_options(options)
        jobs = plan_jobs(pictures, out)
        pipe = load_pipeline(model, device)
        words = pipe.classes_and_stuff(options["candidate_labels"], options["stuff_labels"])
    failed = [path for path, stem in _with_progress(jobs) if not segment_picture(pipe, path, stem, options, *words)]
    if failed:
        typer.secho(f"{len(failed)} of {len(jobs)} pictures failed: {', '.join(failed)}", err=True, fg="red")
        raise typer.Exit(SOME_PICTURES_FAILED)


def check_options(options: dict[str, Any]) -> None:
    """Refuse bad words, and thresholds that the task does not read, before the model is loaded. Raises ValueError."""
    from maftplus.pipeline_maftplus import check_thresholds
    from maftplus.words_maftplus import find_label_ids, parse_classes

    if options["candidate_labels"]:
        find_label_ids(parse_classes(options["candidate_labels"]), options["stuff_labels"])
    check_thresholds(options["subtask"], options)


def plan_jobs(pictures: list[str], out: Path) -> list[tuple[str, Path]]:
    """Every picture with the stem of its results: its name, and inside a given folder its path there.

    Raises:
        ValueError: if a folder holds no picture.
    """
    jobs, taken = [], set()
    for given in pictures:
        for path, name in name_pictures(given, out):
            stem, number = out / name, 2
            while stem in taken:
                stem, number = (out / name).with_name(f"{name.name}_{number}"), number + 1
            taken.add(stem)
            jobs.append((path, stem))
    return jobs


def name_pictures(given: str, out: Path) -> list[tuple[str, Path]]:
    """The pictures that an argument stands for, each with the name of its results. Raises as `plan_jobs`."""
    from maftplus.reading_maftplus import is_url

    if is_url(given):
        return [(given, Path(Path(urlsplit(given).path).stem or "picture"))]
    if not Path(given).is_dir():
        return [(given, Path(Path(given).stem))]
    found = list_pictures(Path(given), out)
    if not found:
        raise ValueError(f"{given}: this folder holds no picture that can be read.")
    return [(str(path), path.relative_to(given).with_suffix("")) for path in found]


def list_pictures(folder: Path, out: Path) -> list[Path]:
    """
    Files below `folder` with the ending of a picture, sorted.

    Left out: what is hidden or lies in a hidden folder, results of earlier runs, and all of `out` if it lies inside.
    """
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = (path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    shown = (path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts))
    results = out.resolve()
    if folder.resolve() in results.parents:
        shown = (path for path in shown if results not in path.resolve().parents)
    return sorted(path for path in shown if not is_result(path))


def is_result(path: Path) -> bool:
    """Whether a picture is one of ours: named like an overlay or a label PNG, its JSON beside it."""
    return any(
        path.name.endswith(ending) and path.with_name(f"{path.name.removesuffix(ending)}.json").is_file()
        for ending in ("_overlay.png", "_labels.png")
    )


def load_pipeline(model: str, device: str | None = None) -> Any:
    """The pipeline on a model. Raises ValueError if it is none, saying what it lacks, or if the device is none."""
    check_model_folder(model)
    check_device(device)
    from transformers.utils import logging

    from maftplus.processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline

    logging.disable_progress_bar()
    return MaftPlusSegmentationPipeline(
        model=load_model(model),
        processor=MaftPlusProcessor.from_pretrained(model),
        task="image-segmentation",
        device=device,
    )


def load_model(model: str) -> Any:
    """The network with all of its weights. Raises ValueError if some are missing or cannot be read."""
    from transformers import AutoConfig, AutoModelForUniversalSegmentation

    try:
        config = AutoConfig.from_pretrained(model)
    except OSError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{model}: no model folder here, and no model from the Hub ({reason})") from error
    check_model_type(model, config.model_type)
    try:
        network, info = AutoModelForUniversalSegmentation.from_pretrained(
            model, config=config, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"{model}: the weights cannot be read, the file may be cut off ({error}).") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{model}: {len(missing)} weights are missing, such as {missing[0]}.")
    return network


def check_model_folder(model: str) -> None:
    """A folder must hold a segmentation model and weights; a name like `user/name` without folder is left to the Hub.

    Raises:
        ValueError: if the folder is missing (also `user/name` if there is a folder `user` here) or lacks something.
    """
    folder = Path(model)
    if not folder.is_dir():
        is_path = folder.is_absolute() or model[:1] in (".", "~") or model.count("/") != 1 or folder.parent.is_dir()
        if is_path:
            raise ValueError(f"{model}: there is no such model folder; give one with --model.")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model}: this folder holds no model, config.json is missing.")
    check_model_type(model, read_model_type(folder / "config.json"))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{model}: this model folder holds no weights (model.safetensors).")


def read_model_type(path: Path) -> Any:
    """`model_type` of a configuration, `None` if it has none. Raises ValueError, naming the file, if it is no JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from error
    return content.get("model_type") if isinstance(content, dict) else None


def check_model_type(model: str, model_type: Any) -> None:
    if model_type != MODEL_TYPE:
        raise ValueError(f"{model}: no segmentation model; `model_type` must be {MODEL_TYPE!r}, it is {model_type!r}.")


def check_device(device: str | None) -> None:
    """Raises ValueError if nothing can be computed on a device, before a model is loaded for it."""
    if device is None:
        return
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {device}: this device cannot be used here ({reason}).") from error


def segment_picture(
    pipe: Any, path: str, stem: Path, options: dict[str, Any], classes: list[list[str]], stuff_ids: list[int]
) -> bool:
    """Segment one picture, write its results and print its table; False, and a message, if it cannot be read."""
    from maftplus.pictures.overlay import segments_from_pipeline, write_results
    from maftplus.reading_maftplus import read_picture

    try:
        picture = read_picture(path, timeout=URL_TIMEOUT)
        segments = segments_from_pipeline(pipe(picture, **options), stuff_ids)
        about = {"image": path, "task": options["subtask"], "labels": classes}
        written = write_results(stem, picture, segments, about)
    except (ValueError, OSError) as error:
        message = str(error)
        typer.secho(f"error: {message if path in message else f'{path}: {message}'}", err=True, fg="red")
        return False
    print_table(path, segments, written["overlay"])
    return True


def print_table(path: str | Path, segments: list[Any], overlay: Path) -> None:
    """One line a segment."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(f"{path} -> {overlay}"), soft_wrap=True)
    table = Table()
    for name, justify in (("id", "right"), ("label", "left"), ("kind", "left"), ("score", "right"), ("area", "right")):
        table.add_column(name, justify=justify, overflow="fold")
    for one in segments:
        score = "" if one.score is None else f"{one.score:.3f}"
        share = f"{one.area / max(1, one.mask.size):.1%}"
        table.add_row(str(one.id), Text(one.label), "thing" if one.isthing else "stuff", score, share)
    console.print(table if segments else "no segment found")


def _with_progress(jobs: list) -> Iterator:
    """The jobs, behind a progress bar on stderr if there are several."""
    if len(jobs) == 1:
        return iter(jobs)
    from rich.console import Console
    from rich.progress import track

    return iter(track(jobs, description="Segmenting", console=Console(stderr=True)))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pth, .pt, .bin or .safetensors file, or an OpenCLIP Hub folder.")],
    out: Annotated[Path, typer.Argument(help="The new model folder.")],
    task: Annotated[str | None, typer.Option(help='"semantic" or "panoptic". Default: by the class weights.')] = None,
    config: Annotated[Path | None, typer.Option(help="JSON with fields that replace the released rule.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help='A folder, a Hub name, or bpe_simple_vocab_16e6.txt.gz; "none" leaves it out.')
    ] = None,
    proposer: Annotated[str | None, typer.Option(help="MAFT: the transformers model that proposes masks.")] = None,
    teacher_out: Annotated[Path | None, typer.Option(help="New folder for the frozen CLIP of training.")] = None,
    training_classes: Annotated[
        Path | None, typer.Option(help="FC-CLIP: the classes seen in training, a line each, synonyms with commas.")
    ] = None,
) -> None:
    """Turn a released checkpoint (MAFT+, MAFT, FC-CLIP, OpenCLIP) into a folder that `from_pretrained` loads."""
    with clear_errors():
        from maftplus.conversion.convert import convert as convert_checkpoint

        seen = training_classes and [line for line in training_classes.read_text().splitlines() if line.strip()]
        convert_checkpoint(
            source, out, task, config, tokenizer, proposer, teacher_out, training_classes=seen, show_progress=True
        )
        typer.echo(f"{out}: ready for from_pretrained and the Hub")


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a folder that holds one.")],
    config: Annotated[Path | None, typer.Option(help="JSON with fields that replace the released rule.")] = None,
) -> None:
    """Say what a checkpoint is, its sizes, and what `convert` would make of it. Nothing in it is executed."""
    with clear_errors():
        from maftplus.conversion.convert import inspect_checkpoint

        for name, value in inspect_checkpoint(checkpoint, config_file=config).items():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            for entry, content in entries:
                typer.echo(f"{name}{'.' if entry else ''}{entry}: {content}")


@app.command()
def prepare(
    benchmark: Annotated[str, typer.Argument(help="Name in the registry, as ade20k_panoptic.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder, or the one that holds it.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")] = None,
) -> None:
    """Convert a benchmark's annotations where they cannot be read as published; what is done is not done again."""
    with clear_errors():
        from maftplus.train.data.prepare import prepare as prepare_benchmark

        for line in prepare_benchmark(benchmark, root, workers):
            typer.echo(line)


@app.command()
def verify(
    benchmark: Annotated[str, typer.Argument(help="Name in the registry, as ade20k_150.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder, or the one that holds it.")],
    split: Annotated[list[str], typer.Option(help='"val" or "train". Repeat.')] = ("val",),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")] = None,
) -> None:
    """Say what is missing or wrong on disk: counts, sizes, ids outside the vocabulary, with the file's path."""
    with clear_errors():
        from maftplus.train.data.prepare import verify as verify_benchmark

        findings = verify_benchmark(benchmark, root, split, workers)
        for line in findings:
            typer.echo(line)
        typer.echo(f"{benchmark}: {len(findings)} findings" if findings else f"{benchmark}: all is well")
    if findings:
        raise typer.Exit(SOME_PICTURES_FAILED)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
