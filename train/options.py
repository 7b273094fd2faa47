"""Options of `train/run.py`: a recipe, the command line, what may be recorded of both.

A recipe is a flat YAML file: every key is an option, and the command line wins over it. `--help` shows our options in
groups of their own, apart from the Trainer's. What is written down of a command holds no secrets.
"""

import difflib
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from maftplus.conversion.registry import find_model
from maftplus.train.data.registry import DATA_SETS
from maftplus.train.finetuning.lora import fetch_adapter
from maftplus.train.trainer import MaftPlusTrainingArguments

RECIPE_ENDINGS = (".yaml", ".yml")
LARGEST_RECIPE = 1 << 18  # bytes; the published ones have a thousand
LARGEST_CONTENT = 1 << 20
SECRET_WORDS = {"key", "pwd", "credential", "credentials"}
SECRET_ENDINGS = ("token", "password", "passwd", "passphrase", "secret", "secrets", "apikey")
HIDDEN = "***"
TRAINERS_OWN = "Trainer (transformers)"


def _help(text: str, **more: Any) -> dict[str, Any]:
    return {"help": text, **more}


@dataclass
class LoraArguments:
    """Whether an adapter trains in place of the model."""

    lora: str | None = field(
        default=None,
        metadata=_help(
            "Train an adapter alone, beside these layers: all, or trunk, segmenter, segmenter-mlp, cdt, text, joined "
            "by '+'."
        ),
    )
    lora_rank: int = field(default=8, metadata=_help("Width of the adapter's matrices."))
    lora_alpha: float | None = field(
        default=None, metadata=_help("The adapter is scaled by this over its rank. Default: twice the rank.")
    )
    lora_dropout: float = field(default=0.0, metadata=_help("Dropout of the adapter's input."))


@dataclass
class ModelArguments(LoraArguments):
    """Where the model comes from: folders, names on the Hub or of `maftplus get`. Without any it starts from random
    weights, as `model_config` says."""

    model_name_or_path: str | None = field(default=None, metadata=_help("A MAFT+ model with its processor."))
    clip_name_or_path: str | None = field(default=None, metadata=_help("CLIP's weights (converted, or of the Hub)."))
    tokenizer_name_or_path: str | None = field(
        default=None, metadata=_help("Default: CLIP's. 'bytes': one token a byte, for models from scratch.")
    )
    proposer_name_or_path: str | None = field(
        default=None, metadata=_help("Frozen Mask2Former or MaskFormer that proposes masks (MAFT).")
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata=_help("The original CLIP. Default: the CLIP that the model starts with.")
    )
    model_config: dict | str | None = field(default=None, metadata=_help("JSON; fields of MaftPlusConfig."))
    use_synonyms: bool = field(default=True, metadata=_help("False: a class goes by its official name alone."))
    class_embeddings: str | None = field(
        default=None, metadata=_help("A .npy file (K, D) in place of what the text tower makes of the class names.")
    )

    def __post_init__(self):
        self.model_config = _parse_json("model_config", self.model_config, dict) or {}
        for name in ("model_name_or_path", "clip_name_or_path", "tokenizer_name_or_path", "teacher_name_or_path"):
            value = getattr(self, name)
            setattr(self, name, value and find_model(value))
        self.model_name_or_path = self.model_name_or_path and fetch_adapter(self.model_name_or_path)


@dataclass
class EvaluationArguments:
    """What `--do_eval` does, on the trainer's own data and on `data_sets`."""

    do_compare_scores: bool = field(
        default=False, metadata=_help("Evaluate by CLIP's and by the segmenter's class scores apart, too.")
    )
    data_sets: list[str] | None = field(
        default=None,
        metadata=_help(
            "Names of the registry, folder, hub:NAME; each may end in =FILE, its vocabulary.", aliases=["--benchmarks"]
        ),
    )
    eval_tasks: list[str] | None = field(
        default=None, metadata=_help("semantic, panoptic. Default: each data set's own task.")
    )
    data_set_batch_size: int = field(
        default=1,
        metadata=_help(
            "Pictures a step; padding to a common size changes results, papers measure with 1.",
            aliases=["--benchmark_batch_size"],
        ),
    )
    save_predictions: bool = field(default=False, metadata=_help("Write all predictions in COCO's formats."))
    num_examples: int = field(default=3, metadata=_help("How many of the best and worst pictures to draw."))


@dataclass
class DataArguments(EvaluationArguments):
    """What to train and to evaluate on."""

    dataset: str | None = field(
        default=None,
        metadata=_help(f"'folder', 'coco_panoptic_json', 'hub:NAME' or one of {', '.join(DATA_SETS)}."),
    )
    data_root: str | None = field(default=None, metadata=_help("Folder of the data set's official layout."))
    train_split: str = field(default="train", metadata=_help("Split to train on."))
    eval_split: str = field(
        default="val", metadata=_help("Split to evaluate on; of the Hub's data also called validation, dev or test.")
    )
    eval_dataset: str | None = field(default=None, metadata=_help("Default: the training data set."))
    image_folder: str | None = field(default=None, metadata=_help("'folder', 'coco_panoptic_json': pictures."))
    label_folder: str | None = field(default=None, metadata=_help("The same: label maps or panoptic PNGs."))
    panoptic_json: str | None = field(default=None, metadata=_help("'coco_panoptic_json': the JSON file."))
    eval_image_folder: str | None = field(default=None, metadata=_help("The same three for evaluation: pictures."))
    eval_label_folder: str | None = field(default=None, metadata=_help("Label maps or panoptic PNGs of these."))
    eval_panoptic_json: str | None = field(default=None, metadata=_help("The JSON file of these."))
    vocabulary: str | None = field(default=None, metadata=_help("Vocabulary of these two: a name or a file."))
    image_column: str = field(default="image", metadata=_help("hub: column of the pictures."))
    label_column: str = field(default="label", metadata=_help("hub: column of the label maps."))
    streaming: bool = field(default=False, metadata=_help("hub: read on the way, without a download first."))
    shuffle_buffer_size: int = field(
        default=1000, metadata=_help("'hub:NAME' with --streaming: pictures kept at hand to draw from; 0: in order.")
    )
    ignore_index: int | None = field(default=None, metadata=_help("'folder': value of unlabelled pixels."))
    do_reduce_labels: bool = field(default=False, metadata=_help("'folder': 0 is unlabelled, others count from 1."))
    max_train_samples: int | None = field(default=None, metadata=_help("Train on the first so many samples."))
    max_eval_samples: int | None = field(default=None, metadata=_help("Evaluate on the first so many samples."))
    augmentation: list | str | None = field(
        default=None, metadata=_help("JSON; a list of transforms, see train/data/augmentation.py.")
    )
    copy_paste: float = field(
        default=0.0,
        metadata=_help("Probability that things of another picture are laid over one (data with single objects)."),
    )
    eval_size: dict | str | None = field(
        default=None, metadata=_help('JSON; {"shortest_edge": 800, "longest_edge": 1333} of evaluation and use.')
    )

    def __post_init__(self):
        self.augmentation = _parse_json("augmentation", self.augmentation, list) or []
        self.eval_size = _parse_json("eval_size", self.eval_size, dict)
        for name in ("max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.copy_paste <= 1:
            raise ValueError(f"`copy_paste` is a probability between 0 and 1, got {self.copy_paste}.")


class OptionParser(HfArgumentParser):
    """The Trainer's parser, with our options in groups of their own and errors as exceptions of one line."""

    def __init__(self):
        kinds = (ModelArguments, DataArguments, MaftPlusTrainingArguments)
        super().__init__(kinds, allow_abbrev=False, usage="%(prog)s [RECIPE.yaml] [--OPTION VALUE ...]")
        self._group()

    def _group(self) -> None:
        """Ours come first, by the class that defines them; argparse itself only groups options as they are added."""
        groups = {
            "model": ModelArguments,
            "adapter (LoRA)": LoraArguments,
            "data": DataArguments,
            "evaluation": EvaluationArguments,
            "training and losses": MaftPlusTrainingArguments,
        }
        titles = {name: title for title, kind in groups.items() for name in kind.__dict__["__annotations__"]}
        sections = {title: self.add_argument_group(title) for title in (*groups, TRAINERS_OWN)}
        for action in [action for action in self._optionals._group_actions if action.dest != "help"]:
            self._optionals._group_actions.remove(action)
            sections[titles.get(action.dest, TRAINERS_OWN)]._group_actions.append(action)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, MaftPlusTrainingArguments]:
    """
    Options of an optional recipe (first argument, `*.yaml`) and of the command line, which wins.

    Raises:
        ValueError, OSError: if the recipe cannot be read, or an option is unknown or has a bad value; one line each.
    """
    if is_recipe(arguments):
        arguments = [*read_recipe(Path(arguments[0])), *arguments[1:]]
    parser = OptionParser()
    *groups, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(_unknown_option(unknown[0], parser))
    return tuple(groups)


def is_recipe(arguments: list[str]) -> bool:
    return bool(arguments) and arguments[0].endswith(RECIPE_ENDINGS)


def read_recipe(path: Path) -> list[str]:
    """
    A recipe as command-line options; lists and mappings become JSON.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no flat mapping, too large or no YAML; the message names the file and the line.
    """
    options = []
    for name, value in load_recipe(path).items():
        if value is not None:
            options += [f"--{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
    return options


def load_recipe(path: Path) -> dict[str, Any]:
    """A recipe as it stands in its file. Raises as `read_recipe`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such recipe.")
    if path.stat().st_size > LARGEST_RECIPE:
        raise ValueError(f"{path}: a recipe has at most {LARGEST_RECIPE} bytes, this has {path.stat().st_size}.")
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a recipe is UTF-8, this is not ({error}).") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_yaml_error(path, error)) from error
    if not isinstance(recipe, dict) or not all(isinstance(name, str) for name in recipe):
        raise ValueError(f"{path}: a recipe is a mapping of options, got {type(recipe).__name__}.")
    _check_size(path, recipe)
    return recipe


def _check_size(path: Path, recipe: Any) -> None:
    """Ten lines of aliases may stand for more lists than there is memory, or for a list in itself."""
    size, left = 0, [recipe]
    while left:
        value = left.pop()
        size += len(value) if isinstance(value, str) else 1
        if size > LARGEST_CONTENT:
            raise ValueError(
                f"{path}: a recipe holds at most {LARGEST_CONTENT} values and letters, aliases written out."
            )
        left += (
            [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        )


def _yaml_error(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{path}{line}: not a recipe in YAML ({reason})."


def _unknown_option(option: str, parser: OptionParser) -> str:
    if not option.startswith("-"):
        return f"{option!r} belongs to no option; a recipe comes first and ends in .yaml."
    name = option.split("=")[0]
    nearest = difflib.get_close_matches(name, parser._option_string_actions, n=1, cutoff=0.5)
    return f"unknown option {name}" + (f"; did you mean {nearest[0]}?" if nearest else "; see --help.")


def _parse_json(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{name}` must be JSON, got {value[:80]!r} ({error}).") from error
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"`{name}` must be a JSON {'list' if kind is list else 'object'}, got {value!r:.80}.")
    return value


# --- What may be recorded ---


def is_secret(name: str) -> bool:
    """Whether an option's name says that its value is nobody's business: `hub_token`, `api-key`, `DB_PASSWORD`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    return any(word in SECRET_WORDS or word.endswith(SECRET_ENDINGS) for word in words)


def recorded_command(arguments: list[str]) -> str:
    """The command line for a card or report, its secrets replaced by `***`."""
    recorded, is_hidden = [], False
    for part in arguments:
        name, equals, value = part.partition("=") if part.startswith("--") else ("", "", part)
        is_hidden = is_secret(name) if name else is_hidden
        value = HIDDEN if value and is_hidden else _without_secrets_in_json(value)
        recorded.append(f"{name}{equals}{value}")
    return shlex.join(["python", "train/run.py", *recorded])


def recorded_recipe(path: Path) -> str:
    """The text of a recipe; one with secrets comes as what was read, comments left out, and `***` in their place."""
    recipe = load_recipe(path)
    text = path.read_text(encoding="utf-8")
    if not any(map(is_secret, re.findall(r"[\w-]+(?=\W*[:=])", text))):  # comments may hold them, too
        return text
    return yaml.safe_dump(without_secrets(recipe), sort_keys=False, allow_unicode=True)


def without_secrets(value: Any) -> Any:
    """Mappings and lists with `***` for every value whose name is that of a secret."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if is_secret(str(name)) and entry is not None else without_secrets(entry)
            for name, entry in value.items()
        }
    return [without_secrets(entry) for entry in value] if isinstance(value, list) else value


def _without_secrets_in_json(text: str) -> str:
    if not text.startswith(("{", "[")):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    hidden = without_secrets(value)
    return text if hidden == value else json.dumps(hidden)
