"""How often words that are not in a picture are found all the same, and what keeping them out costs.

    python shapes/none_of_these.py models/shapes --split validation --num_scenes 200     # to choose `min_margin`
    python shapes/none_of_these.py models/shapes --split test --num_scenes 500 --min_margin 0 0.6     # to report

A scene is asked three things, each with and without distractors, for every `min_margin`:

- for four absent things, in colours that it lacks or has (`absent_other`, `absent_same`): how often it stays empty;
- for what it holds and four absent things (`harmonic`, `pq`): what a user asks for;
- for all names of the world (`pq_all`), where no distractor is left.

The distractors are the names of the world that were not asked for and are not in the scene. `min_margin` has no part
in semantic results, so the harmonic mIoU changes with distractors alone. A scene's picture is read once for all of it.
Shapes: K classes (42), L labels and R distractors of a question, Q queries.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import typer
from torch import Tensor
from transformers.utils import logging

from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.outputs_maftplus import MaftPlusPicture
from maftplus.postprocessing_maftplus import VOID
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import ABSENT_SEED, NUM_ABSENT, absent_things, all_names, figures_of
from maftplus.shapes.scenes import CLASS_NAMES, CLASSES, SPLIT_SEEDS, STUFF_IDS, Scene, scenes
from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts

MARGINS = (0.0, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7)
IGNORED = 255  # no class, in a confusion matrix
COLUMNS = ("absent_other", "absent_same", "harmonic", "pq", "pq_all")


@dataclass
class Tally:
    """What is counted for one `min_margin`, with or without distractors."""

    empty: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, np.ndarray] = field(default_factory=lambda: defaultdict(lambda: np.zeros((len(CLASSES), 4))))
    matrix: np.ndarray = field(default_factory=lambda: np.zeros((len(CLASSES) + 1,) * 2, np.int64))

    def figures(self) -> dict[str, float]:
        """Fractions of 1, by `COLUMNS`."""
        asked, everything = (figures_of(self.matrix, self.counts[name]) for name in ("asked", "all"))
        empty = {name: float(np.mean(found)) for name, found in self.empty.items()}
        return {**empty, "harmonic": asked["harmonic"], "pq": asked["pq"], "pq_all": everything["pq"]}


class Questioner:
    """A model that answers questions about scenes whose pictures it has read, and the tallies of its answers."""

    def __init__(
        self, model: MaftPlusForUniversalSegmentation, processor: MaftPlusProcessor, margins: Sequence[float]
    ):
        self.model, self.processor, self.margins = model.eval(), processor, margins
        self.vocabulary = model.encode_vocabulary(**processor(text=all_names(), return_tensors="pt"))
        self.first_names = model.encode_vocabulary(**processor(text=list(CLASS_NAMES), return_tensors="pt"))
        self.tallies = {(margin, flag): Tally() for margin in margins for flag in (False, True)}

    def ask(self, scene: Scene) -> None:
        """Every question about one scene."""
        inputs = self.processor(images=scene.image, return_tensors="pt")
        picture = self.model.encode_picture(**inputs)
        present = sorted({segment["category_id"] for segment in scene.segments_info})
        absent = {name: absent_ids(scene, shares) for name, shares in (("other", False), ("same", True))}
        mixed = sorted({*present, *absent["other"][: NUM_ABSENT // 2], *absent["same"][: NUM_ABSENT // 2]})
        for with_distractors in (False, True):
            for name, labels in absent.items():
                if not labels:  # a scene of all colours
                    continue
                self._ask_for_absent(picture, scene, labels, present, with_distractors, f"absent_{name}")
            self._ask_for_present(picture, scene, mixed, with_distractors, "asked")
            self._ask_for_present(picture, scene, range(len(CLASSES)), with_distractors, "all")

    def _ask_for_absent(self, picture, scene, labels, present, with_distractors, name) -> None:
        others = [index for index in range(len(CLASSES)) if index not in {*labels, *present}]
        outputs = self._answer(picture, labels, others if with_distractors else [], self.first_names)
        options = self._options(scene, labels, others if with_distractors else [])
        for margin in self.margins:
            found = self.processor.post_process_panoptic_segmentation(outputs, min_margin=margin, **options)[0]
            self.tallies[margin, with_distractors].empty[name].append(not found["segments_info"])

    def _ask_for_present(self, picture, scene, labels, with_distractors, name) -> None:
        others = [index for index in range(len(CLASSES)) if index not in labels] if with_distractors else []
        outputs = self._answer(picture, labels, others, self.vocabulary)
        options = self._options(scene, labels, others)
        stuff = [index for index, label in enumerate(labels) if label in STUFF_IDS]
        semantic = self.processor.post_process_semantic_segmentation(outputs, **options)[0]
        semantic = torch.tensor([*labels, IGNORED])[semantic.where(semantic != VOID, len(labels))]
        for margin in self.margins:
            found = self.processor.post_process_panoptic_segmentation(
                outputs, min_margin=margin, label_ids_to_fuse=stuff, **options
            )[0]
            infos = [{**info, "label_id": labels[info["label_id"]]} for info in found["segments_info"]]
            tally = self.tallies[margin, with_distractors]
            truth = scene.segmentation, scene.segments_info, len(CLASSES)
            tally.counts[name] += panoptic_counts(found["segmentation"], infos, *truth)
            if name == "asked":
                confusion_matrix(semantic, scene.semantic, len(CLASSES), IGNORED, out=tally.matrix)

    def _answer(self, picture: MaftPlusPicture, labels: Sequence[int], others: Sequence[int], vocabulary: dict):
        return self.model.classify(picture, **choose_classes(vocabulary, [*labels, *others]))

    def _options(self, scene: Scene, labels: Sequence[int], others: Sequence[int]) -> dict:
        distractor_ids = range(len(labels), len(labels) + len(others))
        return {"target_sizes": [scene.segmentation.shape], "distractor_ids": distractor_ids}


def choose_classes(vocabulary: dict[str, Tensor], class_ids: Sequence[int]) -> dict[str, Tensor]:
    """These classes of an encoded vocabulary, in this order, as `classify` takes them."""
    rows = [(vocabulary["text_class_ids"] == index).nonzero()[:, 0] for index in class_ids]
    new_ids = [torch.full_like(row, index) for index, row in enumerate(rows)]
    return {
        "text_embeds": vocabulary["text_embeds"][torch.cat(rows)],
        "text_class_ids": torch.cat(new_ids),
        "seen_classes": vocabulary["seen_classes"][list(class_ids)],
    }


def absent_ids(scene: Scene, shares_a_colour: bool) -> list[int]:
    """Up to four of `absent_things`, as ids."""
    return [CLASS_NAMES.index(name) for name in absent_things(scene, shares_a_colour)[:NUM_ABSENT]]


def main(arguments: list[str] | None = None) -> None:
    """Prints percentages, a line for every `min_margin`, without and with distractors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("--split", default="validation", choices=sorted(SPLIT_SEEDS))
    parser.add_argument("--num_scenes", type=int, default=200)
    parser.add_argument("--min_margin", type=float, nargs="+", default=MARGINS)
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.num_threads)
    logging.disable_progress_bar()
    model = MaftPlusForUniversalSegmentation.from_pretrained(options.model)
    questioner = Questioner(model, MaftPlusProcessor.from_pretrained(options.model), options.min_margin)
    with torch.inference_mode():
        for scene in scenes(options.split, options.num_scenes, seed=ABSENT_SEED):
            questioner.ask(scene)
    typer.echo(f"{options.num_scenes} scenes of the {options.split} split")
    typer.echo(f"{'distractors':>12}{'min_margin':>12}" + "".join(f"{name:>14}" for name in COLUMNS))
    for (margin, flag), tally in sorted(questioner.tallies.items(), key=lambda one: (one[0][1], one[0][0])):
        figures = tally.figures()
        row = "".join(f"{100 * figures[name]:>14.1f}" for name in COLUMNS)
        typer.echo(f"{'yes' if flag else 'no':>12}{margin:>12}{row}")


if __name__ == "__main__":
    main()
