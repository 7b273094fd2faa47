"""What is in the data before a step is trained: pictures, sizes, pixels by class, what is suspicious, what is wrong.

    found = survey(read_form("my_pets"))     # ValueError: what is wrong, with the files' names
    found.lines                              # for the terminal
    report.add_facts("Data", found.facts); report.add_table("Classes", COLUMNS, found.rows)

Every picture and annotation is read, as training would read them; of more than `MOST_READ` of a part so many, chosen
by their names, while of the others only the files must be there. What is suspicious is a warning: pictures without an
annotated pixel (they are trained as void), classes without pixels, pictures that come twice.
Shapes: K classes.
"""

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from maftplus.train.data import annotations
from maftplus.train.data.registry import Sample, SegmentationDataset, semantic_labels
from maftplus.train.finetuning.forms import Form
from maftplus.train.finetuning.label_maps import MAP_ENDINGS
from maftplus.train.finetuning.parts import Data, list_some, names_of
from maftplus.vocabularies.files import VocabularyFile

MOST_READ = 2000  # pictures of a part
MOST_ERRORS = 10  # that one message lists
COLUMNS = ("class", "training pixels", "pictures", "held-out pixels", "pictures")
REPLACE = "Replace the file, or remove picture and annotation."
RESIZE = "An annotation has the size of its picture: export it again, or remove both."


@dataclass
class PartSurvey:
    """
    One part of the data.

    Args:
        num_pictures, num_read: All pictures, and those that were read.
        pixels, pictures: Annotated pixels of every class and pictures that show it, (K,), of those that were read.
        ignored: Pixels without a class.
        sizes: (height, width) of those that were read.
        empty: Names of pictures without an annotated pixel.
        hashes: Names by the content of their picture.
        errors: What is wrong, a sentence each.
    """

    num_pictures: int
    pixels: np.ndarray
    pictures: np.ndarray
    num_read: int = 0
    ignored: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    hashes: dict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What was found in a form's two parts; `warnings` is what is suspicious, a sentence each."""

    form: Form
    train: PartSurvey
    validation: PartSurvey
    warnings: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str]:
        """Names and values for a report."""
        form, parts = self.form, (self.train, self.validation)
        pixels = sum(int(part.pixels.sum()) for part in parts)
        ignored = sum(part.ignored for part in parts)
        read = sum(part.num_read for part in parts)
        total = sum(part.num_pictures for part in parts)
        sizes = sorted((size for part in parts for size in part.sizes), key=lambda size: size[0] * size[1])
        return {
            "data": f"{form.path}: {form.kind}",
            "task": form.task,
            "pictures": f"{self.train.num_pictures} for training, {self.validation.num_pictures} held out",
            "split": form.split,
            "classes": f"{form.vocabulary.num_labels}: {_describe_ids(form.vocabulary)}",
            "sizes (width x height)": _describe_sizes(sizes),
            "unlabelled pixels": f"{100 * ignored / max(pixels + ignored, 1):.1f} %",
            **({} if read == total else {"read": f"{read} of {total} pictures; figures are of these"}),
        }

    @property
    def rows(self) -> list[list[str]]:
        """A row a class under `COLUMNS`: its share of the annotated pixels and the pictures that show it."""
        parts = (self.train, self.validation)
        return [
            [name, *(cell for part in parts for cell in (_share(part, index), _count(part, index)))]
            for index, name in enumerate(self.form.vocabulary.names)
        ]

    @property
    def lines(self) -> list[str]:
        """Facts, notes and warnings for the terminal."""
        facts = [f"{name}: {value}" for name, value in self.facts.items()]
        return [*facts, *self.form.notes, *(f"warning: {text}" for text in self.warnings)]


def survey(form: Form, progress: bool = True, parts: Sequence[str] = ("train", "validation")) -> Survey:
    """
    Read the data of a form and say what is in them.

    Args:
        progress: Show a bar, if it takes longer than two seconds.
        parts: Which parts are read, `"train"`, `"validation"`; of a part that nobody will use nothing can be wrong.

    Raises:
        ValueError: if something is wrong: a missing or unreadable file, an annotation of another size, an id outside
            the vocabulary, a part without a picture or without an annotated pixel. The message names the files, up to
            `MOST_ERRORS`, and the way out.
    """
    done = {name: _survey_part(getattr(form, name), name, name in parts, progress) for name in ("train", "validation")}
    errors = [error for part in done.values() for error in part.errors]
    errors += [_without_pixels(done[name], name, form) for name in parts if not errors and _is_empty(done[name])]
    if errors:
        more = [f"... and {len(errors) - MOST_ERRORS} more."] if len(errors) > MOST_ERRORS else []
        raise ValueError("\n".join([*errors[:MOST_ERRORS], *more]))
    return Survey(form, done["train"], done["validation"], tuple(_warnings(form, done, parts)))


def _survey_part(data: Data, name: str, is_read: bool, progress: bool) -> PartSurvey:
    zeros = np.zeros(data.vocabulary.num_labels, dtype=np.int64)
    part, names = PartSurvey(len(data), zeros, zeros.copy()), names_of(data)
    if not is_read:
        return part
    chosen = range(len(data))
    if len(data) > MOST_READ:
        ordered = sorted(chosen, key=lambda index: hashlib.sha256(names[index].encode()).digest())
        chosen = sorted(ordered[:MOST_READ])
        part.errors += _missing_files(data)
    bar = tqdm(chosen, desc=f"looking at the {name} pictures", unit="image", delay=2, disable=not progress)
    for index in bar:
        try:
            _add(part, names[index], data, index)
        except (OSError, ValueError) as error:
            part.errors.append(str(error))
    return part


def _add(part: PartSurvey, name: str, data: Data, index: int) -> None:
    """Read one picture and count it. Raises what is wrong with it."""
    sample = _read(data, index)
    labels = semantic_labels(sample, data.ignore_index)
    counts = np.bincount(labels.ravel(), minlength=data.vocabulary.num_labels)[: data.vocabulary.num_labels]
    part.num_read += 1
    part.pixels += counts
    part.pictures += counts > 0
    part.ignored += labels.size - int(counts.sum())
    part.sizes.append(labels.shape)
    part.hashes[_content(data, index, sample)].append(name)
    if not counts.any():
        part.empty.append(name)


def _read(data: Data, index: int) -> Sample:
    if not isinstance(data, SegmentationDataset):
        return data[index]
    item = data.items[index]
    with _way_out(REPLACE):
        image = annotations.open_image(item.image)
    if not item.annotation.is_file():
        raise ValueError(f"{item.annotation} does not exist. {REPLACE}")
    labels = _read_labels(data, index)
    if labels["segmentation_map"].shape != (image.height, image.width):
        with _way_out(RESIZE):
            return data[index]  # says so
    return {**labels, "image": image}


def _read_labels(data: SegmentationDataset, index: int) -> Sample:
    """Raises ValueError with a way out also where the map cannot be opened at all."""
    try:
        return data.read_labels(index)
    except (OSError, ValueError):
        path = data.items[index].annotation
        if path.suffix.lower() in MAP_ENDINGS:
            with _way_out(REPLACE):
                annotations.open_map(path)
        raise


@contextlib.contextmanager
def _way_out(hint: str) -> Iterator[None]:
    """Adds to an error what is to be done."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} {hint}") from error


def _content(data: Data, index: int, sample: Sample) -> bytes:
    """A hash of the picture's file, or of its pixels where there is none."""
    is_file = isinstance(data, SegmentationDataset)
    content = data.items[index].image.read_bytes() if is_file else np.asarray(sample["image"]).tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _missing_files(data: Data) -> list[str]:
    paths = [path for item in getattr(data, "items", ()) for path in (item.image, item.annotation)]
    return [f"{path} does not exist. {REPLACE}" for path in dict.fromkeys(paths) if not path.is_file()]


def _is_empty(part: PartSurvey) -> bool:
    return not part.pixels.any()


def _without_pixels(part: PartSurvey, name: str, form: Form) -> str:
    kind = "training" if name == "train" else "validation"
    if not part.num_pictures:
        return f"{form.path}: no picture is left for {kind} ({form.split}); it takes two at least."
    other = "" if form.is_own_split else ", or choose other pictures (`--seed`)"
    return (
        f"{form.path}: none of the {part.num_pictures} {kind} pictures has a pixel of a class ({form.split}); look at "
        f"the ids and the value for unlabelled (`--ignore-value`){other}."
    )


def _warnings(form: Form, done: dict[str, PartSurvey], parts: Sequence[str]) -> list[str]:
    names, warnings = form.vocabulary.names, list(form.warnings)
    for name in parts:
        kind, part = "training" if name == "train" else "held-out", done[name]
        if part.empty:
            warnings.append(
                f"{len(part.empty)} {kind} pictures have no pixel of a class ({list_some(part.empty)}); they are "
                f"{'trained as void' if name == 'train' else 'not counted'}."
            )
        twice = [" = ".join(same) for same in part.hashes.values() if len(same) > 1]
        if twice:
            warnings.append(f"{kind} pictures that come more than once ({len(twice)}): {list_some(twice)}.")
        lacking = [names[index] for index in np.flatnonzero(part.pixels == 0)]
        if lacking:
            effect = "nothing teaches them" if name == "train" else "nothing measures them"
            warnings.append(f"{len(lacking)} classes have no {kind} pixel, {effect}: {list_some(lacking)}.")
    return warnings + _warn_across(done)


def _warn_across(done: dict[str, PartSurvey]) -> list[str]:
    train, validation = done["train"].hashes, done["validation"].hashes
    both = [f"{train[key][0]} = {validation[key][0]}" for key in train if key in validation]
    if not both:
        return []
    return [f"pictures both in training and held out ({len(both)}), which flatters the figures: {list_some(both)}."]


def _describe_ids(vocabulary: VocabularyFile) -> str:
    """Which value or category of the data is which class."""
    return list_some([f"{raw} = {name}" for raw, name in zip(vocabulary.raw_ids, vocabulary.names)])


def _describe_sizes(sizes: list[tuple[int, int]]) -> str:
    """Smallest, median and largest by area."""
    if not sizes:
        return "-"
    smallest, median, largest = (f"{w} x {h}" for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    return f"all {median}" if sizes[0] == sizes[-1] else f"{smallest} to {largest}, median {median}"


def _share(part: PartSurvey, index: int) -> str:
    total = int(part.pixels.sum())
    return f"{100 * int(part.pixels[index]) / total:.2f} %" if total else "-"


def _count(part: PartSurvey, index: int) -> str:
    return str(int(part.pictures[index])) if part.num_read else "-"


__all__ = ["COLUMNS", "PartSurvey", "Survey", "survey"]
