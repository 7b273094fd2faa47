"""A folder of labelled pictures in any of the usual forms -> data for training and for measuring.

    form = read_form("my_pets")              # a folder, or hub:NAME; what it is, is recognised and named
    form.kind, form.split, form.notes        # "pictures in images and label maps in labels", "40 of 200 ..."
    form.train[0]; form.validation[0]        # samples as `data/registry.py` has them

Forms, in the order in which they are asked; the first that fits is taken, because each says more than those after it:
a folder of `datasets` or a name of the Hub (`rows.py`), COCO panoptic and COCO instances JSON (`coco.py`), Pascal VOC
(`label_maps.py`), pictures and label maps, pictures and YOLO text (`yolo.py`). Instances are panoptic data whose
classes are all things and whose unlabelled pixels are void.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maftplus.train.data.hub import HubDataset
from maftplus.train.data.registry import IMAGE_ENDINGS
from maftplus.train.finetuning.coco import INSTANCES, PANOPTIC, find_files, read_coco
from maftplus.train.finetuning.folders import TRAIN, find_places, holds
from maftplus.train.finetuning.label_maps import read_label_folders, read_voc
from maftplus.train.finetuning.names import Names, read_names
from maftplus.train.finetuning.parts import Data, Found, divide, join, list_some
from maftplus.train.finetuning.rows import HUB, is_rows, read_rows
from maftplus.train.finetuning.yolo import read_yolo
from maftplus.vocabularies.files import VocabularyFile, map_ids

TASKS = ("semantic", "panoptic", "instance")
READERS = (
    partial(read_coco, kind=PANOPTIC),
    partial(read_coco, kind=INSTANCES),
    read_voc,
    read_label_folders,
    read_yolo,
)
MAP_READERS = (read_voc, read_label_folders)  # those that know values of label maps
LOOKED_FOR = (
    "a folder of `datasets` (dataset_dict.json or state.json)",
    "COCO JSON with `annotations` (panoptic or instances)",
    "Pascal VOC (JPEGImages and SegmentationClass)",
    "folders of pictures and of label maps (images and labels, masks or annotations, perhaps in train and val)",
    "folders of pictures and of YOLO text",
)


@dataclass(frozen=True)
class Form:
    """
    Data that a folder holds.

    Args:
        path: What was read.
        kind: The form in a few words.
        test: A part that the data call so, None without one; nothing is trained or chosen on it unless it stands for
            validation (`split` says so).
        train, validation: As `load_data` makes them; what the Trainer and `evaluate_data_sets` take.
        vocabulary: The classes, with stuff where known.
        task: `"semantic"` or `"panoptic"`.
        split: Where the validation pictures come from, a sentence.
        is_own_split: The data are divided so by themselves.
        notes: What was assumed or left out, a sentence each.
        warnings: What was assumed and may as well be otherwise, a sentence each.
    """

    path: str
    kind: str
    train: Data
    validation: Data
    vocabulary: VocabularyFile
    task: str
    split: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    test: Data | None = None
    is_own_split: bool = False

    @property
    def name(self) -> str:
        """What the data are called, whatever the part."""
        return self.train.name.removesuffix(f"_{TRAIN}")

    @property
    def whole(self) -> Data:
        """Training and validation as one."""
        return join(self.train, self.validation, self.name)

    def measuring_test(self, and_validation: bool = False) -> "Form":
        """
        The form with the test part as what is measured, alone or with the validation part.

        Raises:
            ValueError: if the data have no test part.
        """
        if self.test is None:
            raise ValueError(f"{self.path}: {self.kind} have no part called `test`; measure another.")
        if self.test is self.validation:
            return self
        measured = join(self.validation, self.test, self.validation.name) if and_validation else self.test
        split = f"{self.split}; {len(self.test)} pictures of the part `test`, which count as held out here"
        return replace(self, validation=measured, split=split)

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        names = list_some(self.vocabulary.names)
        head = f"{self.path}: {self.kind}, {self.task}, {self.vocabulary.num_labels} classes ({names})"
        return [head, self.split, *self.notes, *(f"warning: {text}" for text in self.warnings)]


def read_form(
    path_or_name: str | Path,
    *,
    labels_file: str | Path | None = None,
    task: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    ignore_value: int | None = None,
) -> Form:
    """
    Recognise the form of a folder and read it.

    Args:
        path_or_name: A folder, or `hub:NAME`.
        labels_file: Names of the classes (`names.py`), or a vocabulary's name; default: those that the folder has.
        task: `"semantic"`, `"panoptic"` or `"instance"`, which is measured as panoptic; default: what the form holds.
            Panoptic data serve all.
        image_column, label_column: Of rows of `datasets`; default: recognised by their features.
        seed: Which pictures are set aside where the form has no split of its own.
        ignore_value: A value of label maps that is unlabelled.

    Raises:
        FileNotFoundError, ValueError: if there is no such folder, it fits no form (the message lists what was looked
            for and what was found), or it is broken; the message names the file and the way out.
    """
    if task not in (None, *TASKS):
        raise ValueError(f"`task` must be {' or '.join(map(repr, TASKS))}, got {task!r}.")
    names = None if labels_file is None else read_names(labels_file)
    found = _find(str(path_or_name), names, image_column, label_column, ignore_value)
    train, validation, test, split, is_own = divide(found, seed)
    if task not in (None, "semantic") and train.task == "semantic":
        raise ValueError(f"{path_or_name}: {found.kind} know no single objects; `task` must be 'semantic'.")
    measured = train.task if task is None else "panoptic" if task == "instance" else task
    notes = list(found.notes)
    if task == "instance":
        notes.append("Instances are measured as panoptic: PQ, not AP.")
    if test is not None and test is not validation:
        notes.append(
            f"The part `test` ({len(test)} pictures) is neither trained nor chosen on: `--split test` measures it."
        )
    if measured != train.task:
        validation, test = _as_semantic_parts(validation, test)
    fields = {"vocabulary": train.vocabulary, "task": measured, "split": split, "is_own_split": is_own, "test": test}
    told = {"notes": tuple(notes), "warnings": tuple(found.warnings)}
    return Form(str(path_or_name), found.kind, train, validation, **fields, **told)


def _as_semantic_parts(validation: Data, test: Data | None) -> tuple[Data, Data | None]:
    """What is measured as label maps; training keeps the objects that are there. One part stays one."""
    first = as_semantic(validation)
    return first, first if test is validation else None if test is None else as_semantic(test)


def as_semantic(data: Data) -> Data:
    """Panoptic data as label maps: the objects of a class together."""
    if isinstance(data, HubDataset):  # `ObjectRows`, which does it by itself
        return replace(data, task="semantic")
    void = max(data.vocabulary.raw_ids) + 1
    read = partial(_read_semantic, read=data.read, void=void)
    return replace(data, task="semantic", read=read, unlabelled=frozenset({void, *(data.unlabelled or ())}))


def _read_semantic(item: Any, read: Callable, void: int) -> np.ndarray:
    """Category ids (H, W) of an annotation with segments; `void` where there is none, or a crowd."""
    ids, segments = read(item)
    return map_ids(ids, {one["id"]: one["category_id"] for one in segments if not one.get("iscrowd")}, void)


def _find(
    path: str, names: Names | None, image_column: str | None, label_column: str | None, ignore_value: int | None
) -> Found:
    if is_rows(path):
        return _checked(read_rows(path, names, image_column, label_column, ignore_value), path, ignore_value)
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{path} is no folder; `--data` is a folder of labelled pictures, or {HUB}NAME.")
    for read in READERS:
        found = read(root, names=names, **({"ignore_value": ignore_value} if read in MAP_READERS else {}))
        if found is not None:
            return _checked(found, path, ignore_value)
    raise ValueError(_describe_nothing(root))


def _checked(found: Found, path: str, ignore_value: int | None) -> Found:
    if ignore_value is not None and not found.has_maps:
        raise ValueError(f"{path}: {found.kind} have no label maps; leave out `--ignore-value {ignore_value}`.")
    if not any(len(part) for part in found.parts.values()):
        raise ValueError(f"{path}: {found.kind}, but no picture with an annotation. {' '.join(found.notes)}".strip())
    return found


def _describe_nothing(root: Path) -> str:
    """What was looked for in a folder that fits no form, and what is there."""
    folders = [
        (
            place.folder.relative_to(root).as_posix(),
            "pictures" if holds(place.folder, IMAGE_ENDINGS) else "no pictures",
        )
        for place in find_places(root)
    ]
    seen = list_some([f"{name} ({what})" for name, what in folders])
    files = list_some([path.relative_to(root).as_posix() for path in find_files(root)])
    return (
        f"{root} has none of the forms that are known. Looked for: {'; '.join(LOOKED_FOR)}. Found: the folders "
        f"{seen}; JSON files: {files or 'none'}."
    )


__all__ = ["Form", "as_semantic", "read_form"]
