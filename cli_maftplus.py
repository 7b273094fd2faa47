"""The `maftplus` command: `maftplus segment PICTURE --labels "cat, kitten" --labels grass --stuff grass --model DIR`.

Every sub-command is a thin layer over the library. Mistakes of a user end in one line on stderr and exit code 2;
`segment` goes on after a picture that cannot be read, names it, and then exits with 1.
"""

import contextlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = Path(__file__).parent / "models" / "shapes"
USER_ERROR, SOME_PICTURES_FAILED = 2, 1

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
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(USER_ERROR) from error


@app.command()
def segment(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
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
        check_labels(labels, stuff)
        jobs = plan_jobs(pictures, out)
        pipe = load_pipeline(model, device)
        options = {"candidate_labels": labels or None, "stuff_labels": stuff or None, "subtask": task.value}
        if threshold is not None:
            options["threshold"] = threshold
        words = pipe.classes_and_stuff(options["candidate_labels"], options["stuff_labels"])
    failed = [path for path, stem in _with_progress(jobs) if not segment_picture(pipe, path, stem, options, *words)]
    if failed:
        typer.secho(f"{len(failed)} of {len(jobs)} pictures failed: {', '.join(map(str, failed))}", err=True, fg="red")
        raise typer.Exit(SOME_PICTURES_FAILED)


def check_labels(labels: list[str] | None, stuff: list[str] | None) -> None:
    """Refuse bad words before the model is loaded. Raises ValueError, see `parse_classes` and `find_label_ids`."""
    from .processing_maftplus import find_label_ids, parse_classes

    if labels:
        find_label_ids(parse_classes(labels), stuff)


def plan_jobs(pictures: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Every picture with the stem of its results: its name, and inside a given folder its path there.

    Raises:
        ValueError: if a folder holds no picture.
    """
    jobs, taken = [], set()
    for given in pictures:
        found = list_pictures(given, out) if given.is_dir() else [given]
        if not found:
            raise ValueError(f"{given}: this folder holds no picture that can be read.")
        for path in found:
            name = path.relative_to(given).with_suffix("") if given.is_dir() else Path(path.stem)
            stem, number = out / name, 2
            while stem in taken:
                stem, number = (out / name).with_name(f"{name.name}_{number}"), number + 1
            taken.add(stem)
            jobs.append((path, stem))
    return jobs


def list_pictures(folder: Path, out: Path) -> list[Path]:
    """Files below `folder` with the ending of a picture, sorted; hidden files and results in `out` are left out."""
    from PIL import Image

    endings = Image.registered_extensions()
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in endings)
    results = out.resolve()
    return sorted(path for path in files if path.name[0] != "." and results not in path.resolve().parents)


def load_pipeline(model: str, device: str | None = None) -> Any:
    """The pipeline on a model folder. Raises ValueError, naming the folder and what it lacks, if it is no model."""
    check_model_folder(model)
    from transformers.utils import logging

    from .modeling_maftplus import MaftPlusForUniversalSegmentation
    from .processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline

    logging.disable_progress_bar()
    return MaftPlusSegmentationPipeline(
        model=MaftPlusForUniversalSegmentation.from_pretrained(model),
        processor=MaftPlusProcessor.from_pretrained(model),
        task="image-segmentation",
        device=device,
    )


def check_model_folder(model: str) -> None:
    """A folder must hold a configuration and weights; a name without folder is left to the Hub."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
            raise ValueError(f"{model}: there is no such model folder; give one with --model.")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model}: this folder holds no model, config.json is missing.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{model}: this model folder holds no weights (model.safetensors).")


def segment_picture(
    pipe: Any, path: Path, stem: Path, options: dict[str, Any], classes: list[list[str]], stuff_ids: list[int]
) -> bool:
    """Segment one picture, write its results and print its table; False, and a message, if it cannot be read."""
    from .processing_maftplus import open_picture
    from .visualization_maftplus import segments_from_pipeline, write_results

    try:
        picture = open_picture(path)
        segments = segments_from_pipeline(pipe(picture, **options), stuff_ids)
        about = {"image": str(path), "task": options["subtask"], "labels": classes}
        written = write_results(stem, picture, segments, about)
    except (ValueError, OSError) as error:
        message = str(error)
        typer.secho(f"error: {message if str(path) in message else f'{path}: {message}'}", err=True, fg="red")
        return False
    print_table(path, segments, written["overlay"])
    return True


def print_table(path: Path, segments: list[Any], overlay: Path) -> None:
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
        from .convert_maftplus_checkpoint import convert as convert_checkpoint

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
        from .convert_maftplus_checkpoint import inspect_checkpoint

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
        from .train.prepare import prepare as prepare_benchmark

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
        from .train.prepare import verify as verify_benchmark

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
