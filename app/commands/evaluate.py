"""`maftplus evaluate`: how well does a model segment a folder of labelled pictures?"""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maftplus.app import options as given
from maftplus.app.command import command

if TYPE_CHECKING:
    from maftplus.train.evaluation.evaluate import Evaluation
    from maftplus.train.finetuning.forms import Form
    from maftplus.train.finetuning.survey import Survey

WORST = 3  # pictures of the report, and as many of the best


class Split(str, Enum):
    validation = "validation"
    train = "train"
    test = "test"
    all = "all"


MEASURED = {
    Split.validation: "validation pictures ({split}); held out only if the model was trained with that {what}",
    Split.test: "test pictures: held out only if the model was not trained on them",
    Split.train: "training pictures: a model that was trained on them looks better than it is",
    Split.all: "all pictures: a model that was trained on some of them looks better than it is",
}


DataFolder = Annotated[str, typer.Option(help="Folder of labelled pictures in any usual form (docs), or hub:NAME.")]
NamesFile = Annotated[
    str | None, typer.Option(help="Names of the classes: a file or a vocabulary. Default: the data's.")
]
TaskChoice = Annotated[
    given.Task | None, typer.Option(help="What to measure; instance: as panoptic. Default: all that the data know.")
]
SplitChoice = Annotated[
    Split, typer.Option(help="Which pictures; validation: those that `maftplus finetune` holds out.")
]
Seed = Annotated[int, typer.Option(help="Decides which pictures are held out where the data have no split.")]
IgnoreValue = Annotated[
    int | None, typer.Option(min=0, max=65535, help="A value of label maps that means unlabelled.")
]
ImageColumn = Annotated[str | None, typer.Option(help="Rows of `datasets`: the column of pictures.")]
LabelColumn = Annotated[str | None, typer.Option(help="Rows of `datasets`: the column of annotations.")]
MaxPictures = Annotated[int | None, typer.Option(min=1, help="Measure the first so many only.")]
ReportFolder = Annotated[Path | None, typer.Option(help="Folder for report.html, results.json and a CSV by class.")]


@command()
def evaluate(
    data: DataFolder,
    model: given.Model = None,
    labels_file: NamesFile = None,
    task: TaskChoice = None,
    split: SplitChoice = Split.validation,
    seed: Seed = 0,
    ignore_value: IgnoreValue = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_pictures: MaxPictures = None,
    out: ReportFolder = None,
    quiet: given.Quiet = False,
    device: given.Device = None,
    dtype: given.Dtype = given.Precision.auto,
    batch_size: given.BatchSize = 1,
) -> None:
    """
    Measure a model on labelled pictures: mIoU, and PQ where the data know single objects, class by class.

    The words are the data's names (or those of --labels-file); nothing is trained.
    """
    from maftplus.app.models import resolve_model
    from maftplus.train.finetuning.forms import read_form
    from maftplus.train.finetuning.survey import survey

    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out is a folder for the report.")
    folder = resolve_model(model)
    options = {"image_column": image_column, "label_column": label_column, "ignore_value": ignore_value}
    form = read_form(data, labels_file=labels_file, task=task and task.value, seed=seed, **options)
    form, parts = _choose_parts(form, split)
    found = survey(form, progress=not quiet, parts=parts)
    if not quiet:
        for line in found.lines:
            typer.echo(line, err=True)
    measured = _join_parts(form, parts)
    tasks = ("panoptic", "semantic") if form.task == "panoptic" and task is None else (form.task,)
    network = {"device": device, "dtype": dtype.value, "batch_size": batch_size, "max_pictures": max_pictures}
    evaluations = _measure(folder, measured, tasks, network, WORST if out else 0)
    measured_on = _describe(form, split)
    _print(evaluations, measured_on)
    if out is not None:
        facts = {"model": model, "data": data, "seed": seed, **network, "measured on": measured_on}
        _write(evaluations, found, split, facts, out)


def _choose_parts(form: "Form", split: Split) -> "tuple[Form, tuple[str, ...]]":
    """The form with what is to be measured as its training or validation part, and the names of these parts."""
    if split is Split.test or (split is Split.all and form.test is not None):
        form = form.measuring_test(and_validation=split is Split.all)
    return form, {Split.all: ("train", "validation"), Split.train: ("train",)}.get(split, ("validation",))


def _join_parts(form: "Form", parts: tuple[str, ...]) -> Any:
    """These parts as one data set, of the form's task."""
    from maftplus.train.finetuning.forms import as_semantic

    data = form.whole if len(parts) == 2 else getattr(form, parts[0])
    return data if form.task == data.task else as_semantic(data)


def _describe(form: "Form", split: Split) -> str:
    """Which pictures the figures are of, and what that says of them."""
    return MEASURED[split].format(split=form.split, what="split" if form.is_own_split else "seed")


def _measure(
    model: str, data: Any, tasks: tuple[str, ...], network: dict[str, Any], num_examples: int
) -> "list[Evaluation]":
    from maftplus.app.models import check_device, check_model_folder, load_model, load_processor
    from maftplus.deploy.precision import default_device
    from maftplus.train.evaluation.evaluate import ModelPredictor, evaluate_data_sets

    check_model_folder(model)
    check_device(network["device"])
    loaded = load_model(model, network["dtype"], network["device"])
    loaded = loaded.to(network["device"] or default_device())
    return evaluate_data_sets(
        ModelPredictor(loaded, load_processor(model)),
        [data],
        tasks,
        network["batch_size"],
        num_examples=num_examples,
        max_samples=network["max_pictures"],
    )


def _print(evaluations: "list[Evaluation]", measured_on: str) -> None:
    from maftplus.app.tables import print_figures
    from maftplus.train.evaluation.pages import class_columns, class_rows
    from maftplus.train.evaluation.reports import format_table

    for one in evaluations:
        print_figures(f"{one.data_set}, {one.task}, in percent", class_columns(one), class_rows(one))
    typer.echo(f"{format_table(evaluations)}\nmeasured on {measured_on}")


def _write(evaluations: "list[Evaluation]", found: "Survey", split: Split, facts: dict[str, Any], out: Path) -> None:
    """The files of every evaluation, and a page for eyes."""
    from maftplus.pictures.report import Report
    from maftplus.train.evaluation.pages import add_evaluation
    from maftplus.train.evaluation.reports import write_report
    from maftplus.train.finetuning.survey import COLUMNS

    written = write_report(evaluations, out, **facts)
    page = Report(f"{facts['model']} on {found.form.path}", f"Measured on {facts['measured on']}.")
    page.add_facts("Data", found.facts)
    page.add_facts("Measurement", {name: value for name, value in facts.items() if value is not None})
    for evaluation in evaluations:
        add_evaluation(page, evaluation, f"{evaluation.task}, {split.value}")
    page.add_text("Notes", *found.form.notes)
    page.add_text("Suspicious", *found.warnings)
    page.add_table("Classes of the data", COLUMNS, found.rows)
    page.write(out / "report.html")
    for path in (out / "report.html", *written):
        typer.echo(f"wrote {path}")
