"""From a folder of labelled pictures to a model that knows their classes: what `maftplus finetune` does.

    folder = finetune(FinetuneOptions(data="my_pets", out=Path("runs/pets"), model="shapes", preset="lora"))

The data are recognised and looked at, time and memory estimated from three real steps, the model measured before and
after on pictures that it does not train on; the best of its states on the way is kept. `out` then holds `model/`,
`adapter/` (LoRA), `report.html` and `metrics.json`. Training itself is `train/run.py`'s.
"""

import contextlib
import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from maftplus.pictures.files import write_atomically
from maftplus.train.checkpoints import checkpoints_of
from maftplus.train.evaluation.evaluate import Evaluation, ModelPredictor, scalar_figures
from maftplus.train.evaluation.pages import FIGURE, figure_of
from maftplus.train.evaluation.reports import COLUMNS
from maftplus.train.finetuning.forms import Form, read_form
from maftplus.train.finetuning.kept import Kept, find_others, find_vocabulary, measure, opinions, truth
from maftplus.train.finetuning.lora import count_trained, describe_adapter, has_adapter, merge_adapter, save_adapter
from maftplus.train.finetuning.objects import Objects
from maftplus.train.finetuning.page import write_page
from maftplus.train.finetuning.parts import subset
from maftplus.train.finetuning.plan import Plan, make_plan, measure_steps, peak_memory
from maftplus.train.finetuning.presets import (
    MINUTES,
    MIXTURES,
    PATHS,
    PATIENCE,
    SCRATCH,
    Arguments,
    FinetuneOptions,
    let_segmenter_speak,
    make_arguments,
    training_transforms,
)
from maftplus.train.finetuning.survey import Survey, survey
from maftplus.train.processes import process_state
from maftplus.train.publish import write_card
from maftplus.train.run import assemble_trainer, build_model, build_processor, find_checkpoint
from maftplus.train.trainer import MaftPlusTrainer

logger = logging.getLogger("maftplus.train")

PLAN, REPORT, METRICS = "finetune.json", "report.html", "metrics.json"  # the first tells whose folder it is
OPTIONS, FOLDER = "options", "working_folder"  # beside the plan's own fields
NUM_EXAMPLES = 6
MOST_WATCHED = 50  # held-out pictures that are measured on the way
FEW_STEPS = 30  # fewer are warned of
Tell = Callable[[str], Any]


@dataclass
class Story:
    """
    All that happened, for the report.

    Args:
        mixture: Weight of CLIP's scores for trained classes.
        before: None from random weights, which know nothing.
        num_watched: Held-out pictures that were measured on the way.
        num_trained, num_parameters: Numbers that train, and all of the model.
    """

    options: FinetuneOptions
    form: Form
    survey: Survey
    plan: Plan
    after: Evaluation
    before: Evaluation | None = None
    kept: list[Kept] = field(default_factory=list)
    num_watched: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    mixture: float = 1.0
    num_steps: int = 0
    best_step: int = 0
    num_trained: int = 0
    num_parameters: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def worse(self) -> str | None:
        """Says so where the base model did better."""
        if self.before is None or figure_of(self.after) >= figure_of(self.before):
            return None
        was, now = _describe(self.before), _describe(self.after)
        return f"Worse than the base model: {was} before, {now} after; try --minutes, --learning-rate or --preset."

    @property
    def caveats(self) -> list[str]:
        """What to know of the figures, a sentence each."""
        which = "these pictures" if self.num_watched >= self.after.num_images else f"{self.num_watched} of these"
        chosen = f"The best step and CLIP's weight were chosen on {which}, so the figures flatter a little."
        return [chosen, *([self.worse] if self.worse else [])]

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds: fractions of 1, seconds, bytes."""
        figures = {"after": self.after} if self.before is None else {"before": self.before, "after": self.after}
        names = ("mixture", "num_steps", "best_step", "num_trained", "num_parameters", "seconds", "peak_bytes")
        measured = {name: scalar_figures(one.figures) for name, one in figures.items()}
        kept = [one.metrics for one in self.kept]
        return {**measured, "kept": kept, **{name: getattr(self, name) for name in names}, "plan": asdict(self.plan)}


def finetune(options: FinetuneOptions, tell: Tell = logger.info) -> Story:
    """
    Fine-tune a model, or train one from random weights, and write all that comes of it.

    Args:
        tell: Is given a line for every step of the way.

    Raises:
        ValueError, OSError: for what a user can cause, as `read_form`, `survey` and `make_arguments`; if `out` holds
            results already.
        SystemExit: with 143 after SIGTERM, 130 after Ctrl-C; `resume` goes on from the last checkpoint.
    """
    options.check()
    tell = tell if process_state().is_main_process else _tell_nobody
    _check_out(options)
    form, found = _look_at(options, tell)
    arguments = make_arguments(options, f"eval_{FIGURE[form.task]}", len(form.train))
    if arguments[2].per_device_train_batch_size == len(form.train):
        tell(f"a batch holds all {len(form.train)} training pictures")
    watched = pick_watched(form.validation)
    trainer, kept = _build(options, form, watched, arguments, tell)
    look = partial(_measure_task, trainer, watched)
    before = None if options.recipe == SCRATCH else _measure_task(trainer, form.validation)
    let_segmenter_speak(trainer.model.config, options.recipe)
    passes = _time_passes(form, watched, before or look(), kept, trainer.model.config)
    plan = _plan(options, trainer, *passes, tell)
    if before is not None:
        tell(f"before: {_describe(before)} on the held-out pictures")
    if watched is not form.validation:
        tell(f"measured on the way: {len(watched)} of the {len(form.validation)} held-out pictures")
    _train(trainer)
    after = choose_mixture(trainer.model.config, look)
    if _measures_again(form, watched):
        after = _measure_task(trainer, form.validation, with_pixels=form.task == "panoptic")
    for one in kept:
        (one.after,) = measure(_predictor(trainer), one.data).values()
    story = Story(options, form, found, plan, after, before, kept, len(watched), **_facts(trainer))
    if trainer.is_world_process_zero():
        _write(story, trainer, arguments)
        _tell_the_end(story, tell)
    return story


def pick_watched(data: Any) -> Any:
    """The held-out pictures that are measured on the way: all, or `MOST_WATCHED` that lie evenly among them."""
    number = len(data)
    return data if number <= MOST_WATCHED else subset(data, [i * number // MOST_WATCHED for i in range(MOST_WATCHED)])


def _measures_again(form: Form, watched: Any) -> bool:
    """Whether the end asks more than was measured on the way: other pictures, or single pixels of panoptic results."""
    return watched is not form.validation or form.task == "panoptic"


def _time_passes(form: Form, watched: Any, measured: Evaluation, kept: list[Kept], config: Any) -> tuple[float, float]:
    """Seconds of a measurement on the way, and of all those before the first step and after the last."""
    picture = measured.seconds / max(measured.num_images, 1)
    on_the_way, whole = picture * len(watched), picture * len(form.validation)
    mixtures = len(MIXTURES) if config.has_segmenter else 1
    final = whole if _measures_again(form, watched) else 0.0
    return on_the_way, measured.seconds + mixtures * on_the_way + final + 2 * sum(one.seconds for one in kept)


def choose_mixture(config: Any, look: Callable[[], Evaluation]) -> Evaluation:
    """
    Sets the weight of CLIP's scores for trained classes, `ensemble_alpha`, that does best on the held-out pictures.

    Returns:
        What `look` measured with it.
    """
    measured = {}
    for alpha in MIXTURES if config.has_segmenter else (config.ensemble_alpha,):
        config.ensemble_alpha = alpha
        measured[alpha] = look()
    config.ensemble_alpha = max(measured, key=lambda alpha: figure_of(measured[alpha]))
    return measured[config.ensemble_alpha]


def _check_out(options: FinetuneOptions) -> None:
    """Raises ValueError if `out` holds something and nothing says what to do with it, or what the run itself needs."""
    out, is_ours = options.out, (options.out / PLAN).is_file()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name another --out.")
    if options.resume:
        _check_options(options)
    elif out.exists() and any(out.iterdir()) and not (options.overwrite and is_ours):
        resume = "go on with --resume, " if checkpoints_of(out) else ""
        way = f"{resume}start anew with --overwrite, or " if is_ours else ""
        raise ValueError(f"{out} holds {'an earlier run' if is_ours else 'files'}: {way}name another --out.")
    elif options.overwrite:
        _check_needed(options)


def _check_needed(options: FinetuneOptions) -> None:
    """Raises ValueError if what the run reads lies in the folder that it empties."""
    out = options.out.resolve()
    for name in PATHS:
        path = Path(getattr(options, name) or "").resolve()
        if getattr(options, name) and out in (path, *path.parents) and path.exists():
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {path} lies in {options.out}, which --overwrite empties; name another --out.")


def _check_options(options: FinetuneOptions) -> None:
    """Raises ValueError if there is no run to go on with, or one of other options."""
    path = options.out / PLAN
    if not path.is_file():
        raise ValueError(f"{options.out} holds no run to go on with ({PLAN} is missing); leave out --resume.")
    plan, now = json.loads(path.read_text(encoding="utf-8")), options.recorded()
    was, folder = plan.get(OPTIONS, {}), Path(plan.get(FOLDER, "."))
    other = [name for name in now if name in was and not _is_same(name, was[name], now[name], folder)]
    if other:
        changes = "; ".join(f"--{name.replace('_', '-')} was {was[name]}, is {now[name]}" for name in other)
        raise ValueError(f"{options.out}: --resume goes on with the options of its run ({changes}).")
    if not checkpoints_of(options.out):
        raise ValueError(f"{options.out} holds no checkpoint to go on from; start anew with --overwrite.")


def _is_same(name: str, was: str, now: str, folder: Path) -> bool:
    """Whether an option is what it was, paths as seen from the folder in which the run began."""
    return was == now or (name in PATHS and (folder / was).resolve() == Path(now).resolve())


def _clear_out(out: Path) -> None:
    """Deletes what an earlier run wrote into `out`, and nothing else."""
    for path in [*checkpoints_of(out), *(out / name for name in (PLAN, METRICS, REPORT, "model", "adapter"))]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _tell_nobody(line: str) -> None:
    """On all processes but the first."""


def _look_at(options: FinetuneOptions, tell: Tell) -> tuple[Form, Survey]:
    columns = {"image_column": options.image_column, "label_column": options.label_column}
    form = read_form(
        options.data,
        labels_file=options.labels_file,
        task=options.task,
        seed=options.seed,
        ignore_value=options.ignore_value,
        **columns,
    )
    found = survey(form)
    for line in found.lines:
        tell(line)
    return form, found


def _build(
    options: FinetuneOptions, form: Form, watched: Any, arguments: Arguments, tell: Tell
) -> tuple[MaftPlusTrainer, list[Kept]]:
    """The trainer, and what the model says to other words before anything is changed."""
    model_args, data_args, args = arguments
    torch.manual_seed(options.seed)
    model, processor = build_model(model_args), build_processor(model_args, data_args)
    if model.config.ensemble_alpha == 1.0:
        processor.training_classes = None  # words of before, which CLIP named alone, it goes on naming
    kept = []
    if options.recipe != SCRATCH:
        kept = _keep(options, ModelPredictor(model.to(args.device), processor), form, tell)
    data_args.augmentation = data_args.augmentation or training_transforms(dict(processor.image_processor.size))
    data = _training_data(form, tell)
    if data.task != "panoptic":
        if options.copy_paste:
            raise ValueError("--copy-paste needs single objects, or names that say what is stuff (`stuff: grass`).")
        data_args.copy_paste = 0.0
    with _words_unwarned() if options.recipe == SCRATCH else contextlib.nullcontext():
        trainer = assemble_trainer(model, processor, data, watched, *arguments)
    for other in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(other)
    trainer.add_callback(Progress(tell, form.task))
    patience = PATIENCE[options.recipe] if options.patience is None else options.patience
    if patience:
        trainer.add_callback(EarlyStoppingCallback(patience))
    trained, total = count_trained(model)
    tell(f"model: {options.model}, {options.recipe}: {trained:,} of {total:,} parameters train")
    if has_adapter(model):
        tell(describe_adapter(model))
    return trainer, kept


@contextlib.contextmanager
def _words_unwarned() -> Iterator[None]:
    """From random weights every word is new and is spelt out: no warning says so."""
    words = logging.getLogger("maftplus.processing_maftplus")
    words.addFilter(_is_news)
    try:
        yield
    finally:
        words.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "hardly met" not in record.getMessage()


def _training_data(form: Form, tell: Tell) -> Any:
    """The training part; of label maps whose names say what is stuff, things as single objects."""
    if form.train.task == "panoptic" or form.vocabulary.stuff is None:
        return form.train
    tell("things that do not touch are trained as single objects, as the names say what is stuff")
    return Objects(form.train)


def _keep(options: FinetuneOptions, predict: ModelPredictor, form: Form, tell: Tell) -> list[Kept]:
    """The base model on words that are not trained, if there are any."""
    if options.keep_data is not None:
        data = read_form(options.keep_data, labels_file=options.keep_labels, seed=options.seed).whole
        words, look = data.vocabulary, partial(truth, predict, data)
    else:
        words = find_vocabulary(predict.model.config, options.keep_labels)
        look = partial(opinions, predict, form.validation, words)
    if words is None:
        tell("the model has stored no words: name others with --keep-labels to see what it forgets")
        return []
    others = find_others(words, form.vocabulary)
    if not others:
        tell(f"all of {words.name} are trained: name others with --keep-labels to see what it forgets")
        return []
    return [look(others=others)]


def _predictor(trainer: MaftPlusTrainer, stored: bool = False) -> ModelPredictor:
    """The trainer's model as a predictor, of the data's words or (`stored`) of its own."""
    args = trainer.args
    context = partial(torch.autocast, args.device.type, torch.bfloat16, enabled=args.bf16)
    return ModelPredictor(trainer.model, trainer.processing_class, {} if stored else None, context)


def _measure_task(trainer: MaftPlusTrainer, data: Any, with_pixels: bool = False) -> Evaluation:
    """By the data's own task; `with_pixels` also tells which classes a panoptic result takes for which."""
    trainer.model.to(trainer.args.device)
    kinds = {data.task: data.task, **({"semantic": "semantic"} if with_pixels else {})}
    measured = measure(_predictor(trainer, stored=True), data, kinds, NUM_EXAMPLES)
    return replace(measured[data.task], pixels=measured["semantic"] if with_pixels else None)


def _plan(
    options: FinetuneOptions, trainer: MaftPlusTrainer, eval_seconds: float, other_seconds: float, tell: Tell
) -> Plan:
    """As long as an interrupted run had planned, or as three steps say."""
    path = options.out / PLAN
    if options.resume:
        plan = json.loads(path.read_text(encoding="utf-8"))
        plan = Plan(**{name: value for name, value in plan.items() if name not in (OPTIONS, FOLDER)})
    else:
        minutes = MINUTES[options.recipe] if options.minutes is None else options.minutes
        plan = make_plan(measure_steps(trainer), eval_seconds, minutes, options.max_steps, other_seconds)
        (plan,) = broadcast_object_list([plan])  # all processes train as long as the first
        if trainer.is_world_process_zero():
            options.out.mkdir(parents=True, exist_ok=True)
            _clear_out(options.out)  # only now: all that could be wrong was looked at
            facts = {**asdict(plan), OPTIONS: options.recorded(), FOLDER: str(Path.cwd())}
            write_atomically(path, json.dumps(facts, indent=2))
    tell(f"plan: {plan}")
    if plan.max_steps < FEW_STEPS and options.max_steps is None:
        enough = plan.minutes_for(FEW_STEPS)
        tell(f"warning: {plan.max_steps} steps hardly teach anything; {FEW_STEPS} take about --minutes {enough}.")
    args = trainer.args
    args.max_steps, args.eval_steps, args.save_steps = plan.max_steps, plan.eval_steps, plan.eval_steps
    args.logging_steps, args.warmup_steps = max(1, plan.max_steps // 50), plan.max_steps // 30
    return plan


class Progress(ProgressCallback):
    """A bar, and a line for every measurement in place of all that is logged."""

    def __init__(self, tell: Tell, task: str):
        super().__init__()
        self.tell, self.key, self.name = tell, f"eval_{FIGURE[task]}", COLUMNS[task][FIGURE[task]]

    def on_log(self, args, state, control, logs=None, **kwargs):
        """The page draws the curves."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), float("nan"))
            value = 100 * metrics[self.key]
            self.tell(f"step {state.global_step} of {state.max_steps}: loss {loss:.3f}, {self.name} {value:.1f}")


def _train(trainer: MaftPlusTrainer) -> None:
    try:
        trainer.train(resume_from_checkpoint=find_checkpoint(trainer.args))
    except KeyboardInterrupt as error:
        way = "go on with --resume" if checkpoints_of(Path(trainer.args.output_dir)) else "nothing is saved yet"
        logger.warning("Stopped; %s.", way)
        raise SystemExit(128 + signal.SIGINT) from error
    if trainer.sigterm.received:
        logger.warning("Stopped by SIGTERM; go on with --resume.")
        raise SystemExit(128 + signal.SIGTERM)


def _facts(trainer: MaftPlusTrainer) -> dict[str, Any]:
    """What the report says of the training itself."""
    state = trainer.state
    trained, total = count_trained(trainer.model)
    best = (state.best_model_checkpoint or "").rpartition("-")[2]
    seconds = next((row["train_runtime"] for row in reversed(state.log_history) if "train_runtime" in row), 0.0)
    return {
        "history": state.log_history,
        "mixture": trainer.model.config.ensemble_alpha,
        "num_steps": state.global_step,
        "best_step": int(best) if best.isdigit() else state.global_step,
        "num_trained": trained,
        "num_parameters": total,
        "seconds": seconds,
        "peak_bytes": peak_memory(),
    }


def _write(story: Story, trainer: MaftPlusTrainer, arguments: Arguments) -> None:
    """The adapter, the model folder with its card, the report and the figures; checkpoints have done their work."""
    out, model = story.options.out, trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if has_adapter(model):
        save_adapter(model, out / "adapter")
        trainer.processing_class.save_pretrained(out / "adapter")
        _write_card(story, trainer, arguments, out / "adapter")
        merge_adapter(model)
    model.save_pretrained(out / "model")
    trainer.processing_class.save_pretrained(out / "model")
    write_page(story, out / REPORT)
    write_atomically(out / METRICS, json.dumps(story.metrics, indent=2))
    _write_card(story, trainer, arguments, out / "model")
    for path in checkpoints_of(out):
        shutil.rmtree(path)


def _write_card(story: Story, trainer: MaftPlusTrainer, arguments: Arguments, folder: Path) -> None:
    """The card of the model, or of the adapter while the model has one, in its folder."""
    data_args, config = replace(arguments[1]), trainer.model.config
    data_args.dataset = f"{story.form.name} ({story.form.split})"
    data_args.train_split, data_args.eval_split = "train", "held out"
    classes = [config.id2label[index] for index in range(len(config.id2label))]
    data_args.eval_split += f" ({' '.join(story.caveats)})"
    metrics = {f"eval_{name}": value for name, value in scalar_figures(story.after.figures).items()}
    stuff = [classes[index] for index in config.stuff_ids or ()]
    out, base = story.options.out, story.options.model
    named = {"title": out.resolve().name, "base": "none, from random weights" if base == SCRATCH else base}
    command = story.options.command()
    write_card(folder, trainer, metrics, data_args, command, "", classes, stuff, **named)


def _describe(evaluation: Evaluation) -> str:
    return f"{COLUMNS[evaluation.task][FIGURE[evaluation.task]]} {100 * figure_of(evaluation):.1f}"


def _tell_the_end(story: Story, tell: Tell) -> None:
    out = story.options.out
    tell(f"after: {_describe(story.after)} on {story.after.num_images} held-out pictures (step {story.best_step})")
    tell(story.caveats[0])
    if story.worse:
        tell(f"warning: {story.worse}")
    tell(f"CLIP's weight for trained classes: {story.mixture} (ensemble_alpha), the best of {MIXTURES} there")
    for one in story.kept:
        tell(one.line)
    tell(f"report: {out / REPORT}")
    tell(f"use it: maftplus segment PICTURE --model {out / 'model'}")
    tell(f'or: pipeline("image-segmentation", model="{out / "model"}", trust_remote_code=True)("picture.jpg")')
