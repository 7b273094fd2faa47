"""What is gained without training: objectness fusion, the ensemble with in-vocabulary scores, flip averaging.

    python shapes/gains.py                   # what is missing of a validation and three test pieces, then the table
    python shapes/gains.py --only_finished   # the table of what is there

Strengths are chosen on validation scenes by harmonic mIoU plus PQ; the table is of test scenes, a piece a scene seed,
all on one model: its deviation is that of scenes, not of trainings. A piece takes 80 seconds of one core to itself. A
scene's picture is read once, and its mirror image once; the ways to score differ after that.

- Objectness fusion (OVRCOAT): void' = void * (1 - strength * max p_out), p_out CLIP's probabilities without void.
- Ensemble (FC-CLIP, arXiv 2308.02487): p_in^(1 - a) * p_out^a, a = `ensemble_alpha` for seen classes, `ensemble_beta`
  for others.
- Flip, embeddings: the picture's own masks, mirrored, pool the mirror image's features too; both embeddings of a mask
  are averaged. Works for every kind of result, and only the trunk runs again.
- Flip, maps (`flip_average` of the pipeline): the mirror image's own masks and classes; the class maps of both are
  averaged. Semantic results only, as the queries of two pictures do not correspond.

Shapes: B pictures (1), K classes (42), Q queries.
"""

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from transformers.utils import ModelOutput, logging

from maftplus.classifier_maftplus import class_log_probabilities
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.outputs_maftplus import MaftPlusModelOutput, MaftPlusPicture
from maftplus.pictures.files import write_atomically
from maftplus.pipeline_maftplus import MARGIN_AMONG_DISTRACTORS
from maftplus.postprocessing_maftplus import join_mirrored
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.evaluate import all_names, figures_of
from maftplus.shapes.none_of_these import absent_ids, choose_classes
from maftplus.shapes.scenes import CLASS_NAMES, CLASSES, STUFF_IDS, Scene, scenes
from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts

MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes"
RESULTS = Path(__file__).resolve().parent / "results" / "gains.json"
TIMED_SCENES = 60
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
COLUMNS = ("harmonic", "pq", "absent_other", "absent_same", "rejected_other", "rejected_same")


@dataclass(frozen=True)
class Way:
    """How masks are scored; the defaults are as published for MAFT+. `flip`: "", "embeddings" or "maps"."""

    objectness: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    flip: str = ""


PUBLISHED = Way()


@dataclass
class Tally:
    """What is counted for one way: class pixels, panoptic matches, which questions for absent words stayed empty."""

    matrix: np.ndarray = field(default_factory=lambda: np.zeros((len(CLASSES) + 1,) * 2, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((len(CLASSES), 4)))
    empty: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def figures(self) -> dict[str, float]:
        """Fractions of 1, by `COLUMNS`, as far as they were asked for."""
        figures = figures_of(self.matrix, self.counts)
        empty = {name: float(np.mean(found)) for name, found in self.empty.items()}
        return {"harmonic": figures["harmonic"], "pq": figures["pq"], **empty}


class Scorer:
    """A model and its processor, the world's words encoded, and every way to answer with them."""

    def __init__(self, model: MaftPlusForUniversalSegmentation, processor: MaftPlusProcessor):
        self.model, self.processor = model.eval(), processor
        self.words = model.encode_vocabulary(**processor(text=all_names(), return_tensors="pt"))
        self.first_names = model.encode_vocabulary(**processor(text=list(CLASS_NAMES), return_tensors="pt"))

    def read(self, scene: Scene, flips: Sequence[str]) -> dict[str, MaftPlusPicture]:
        """The picture of a scene under "", and what each of the `flips` needs."""
        inputs = self.processor(images=scene.image, return_tensors="pt")
        pictures = {"": self.model.encode_picture(**inputs)}
        if "embeddings" in flips:
            pictures["embeddings"] = self._average_embeddings(pictures[""], inputs["pixel_values"])
        if "maps" in flips:
            pictures["maps"] = self.model.encode_picture(inputs["pixel_values"].flip(-1))
        return pictures

    def _average_embeddings(self, picture: MaftPlusPicture, pixel_values: Tensor) -> MaftPlusPicture:
        masks = picture.masks_queries_logits.flip(-1)
        other = self.model.encode_picture(pixel_values.flip(-1), proposal_logits=masks)
        embeds = F.normalize(picture.mask_embeds, dim=-1) + F.normalize(other.mask_embeds, dim=-1)
        return replace(picture, mask_embeds=embeds)

    def answer(self, picture: MaftPlusPicture, words: dict[str, Tensor]) -> MaftPlusModelOutput:
        """Logits without a way yet."""
        return self.model.model.classify(picture, **words)

    def semantic(self, answers: dict, way: Way, scene: Scene) -> Tensor:
        """The class of every pixel."""
        seen = self.words["seen_classes"]
        scored = score(answers["" if way.flip == "maps" else way.flip], seen, way)
        if way.flip == "maps":
            scored = ModelOutput(join_mirrored(scored, score(answers["maps"], seen, way)))
        return self.processor.post_process_semantic_segmentation(scored, target_sizes=[scene.segmentation.shape])[0]

    def panoptic(
        self, answers: dict[str, MaftPlusModelOutput], seen: Tensor, way: Way, scene: Scene, **options
    ) -> dict:
        """Segments; "maps" has no part in them."""
        scored = score(answers["" if way.flip == "maps" else way.flip], seen, way)
        options["target_sizes"] = [scene.segmentation.shape]
        return self.processor.post_process_panoptic_segmentation(scored, **options)[0]


def score(answer: MaftPlusModelOutput, seen: Tensor, way: Way) -> ModelOutput:
    """The outputs with final class scores (B, Q, K+1) by a way."""
    confidence = answer.out_vocab_logits[..., :-1].softmax(-1).amax(-1, keepdim=True)  # (B, Q, 1)
    void = answer.void_probabilities * (1 - way.objectness * confidence)
    weights = None if (way.alpha, way.beta) == (1.0, 1.0) else torch.where(seen, way.alpha, way.beta)
    scores = class_log_probabilities(answer.out_vocab_logits, void, answer.in_vocab_logits, weights)
    return ModelOutput({**answer, "class_queries_logits": scores})


def measure(scorer: Scorer, ways: Sequence[Way], stream: Iterator[Scene], with_absent: bool) -> list[dict[str, float]]:
    """The figures of every way on the same scenes; `with_absent`: also how often absent words stay out."""
    tallies = [Tally() for _ in ways]
    flips = {way.flip for way in ways}
    for scene in stream:
        pictures = scorer.read(scene, flips)
        _ask_for_all(scorer, ways, tallies, scene, pictures)
        if with_absent:
            pictures.pop("maps", None)
            for name, shares_a_colour in (("other", False), ("same", True)):
                _ask_for_absent(scorer, ways, tallies, scene, pictures, name, absent_ids(scene, shares_a_colour))
    return [tally.figures() for tally in tallies]


def _ask_for_all(scorer: Scorer, ways, tallies, scene: Scene, pictures: dict[str, MaftPlusPicture]) -> None:
    """All names of the world."""
    answers = {name: scorer.answer(picture, scorer.words) for name, picture in pictures.items()}
    truth = scene.segmentation, scene.segments_info, len(CLASSES)
    for way, tally in zip(ways, tallies):
        confusion_matrix(scorer.semantic(answers, way, scene), scene.semantic, len(CLASSES), out=tally.matrix)
        found = scorer.panoptic(answers, scorer.words["seen_classes"], way, scene, label_ids_to_fuse=STUFF_IDS)
        tally.counts += panoptic_counts(found["segmentation"], found["segments_info"], *truth)


def _ask_for_absent(scorer: Scorer, ways, tallies, scene: Scene, pictures, name: str, labels: list[int]) -> None:
    """Up to four words that the scene lacks: alone, and among the world's other names as distractors."""
    if not labels:  # a scene of all colours
        return
    present = {segment["category_id"] for segment in scene.segments_info}
    others = [index for index in range(len(CLASSES)) if index not in {*labels, *present}]
    for kind, distractors, margin in (("absent", [], 0.0), ("rejected", others, MARGIN_AMONG_DISTRACTORS)):
        words = choose_classes(scorer.first_names, [*labels, *distractors])
        answers = {flip: scorer.answer(picture, words) for flip, picture in pictures.items()}
        options = {"distractor_ids": range(len(labels), len(labels) + len(distractors)), "min_margin": margin}
        for way, tally in zip(ways, tallies):
            found = scorer.panoptic(answers, words["seen_classes"], way, scene, **options)
            tally.empty[f"{kind}_{name}"].append(not found["segments_info"])


def choose(scorer: Scorer, num_scenes: int) -> dict:
    """The best strength of objectness fusion and the best pair of ensemble weights on validation scenes."""
    fusion = [Way(objectness=strength) for strength in STRENGTHS]
    ensembles = [Way(alpha=alpha, beta=beta) for alpha, beta in product(WEIGHTS, WEIGHTS)]  # 1 and 1: as published
    ways = [*fusion, *ensembles]
    figures = measure(scorer, ways, scenes("validation", num_scenes), with_absent=False)
    merit = {way: row["harmonic"] + row["pq"] for way, row in zip(ways, figures)}
    objectness = max(fusion, key=merit.get).objectness
    ensemble = max((way for way in ensembles if way != PUBLISHED), key=merit.get)
    tried = [[way.objectness, way.alpha, way.beta, *_rounded(row).values()] for way, row in zip(ways, figures)]
    return {"objectness": objectness, "alpha": ensemble.alpha, "beta": ensemble.beta, "tried": tried}


def table_ways(chosen: dict) -> dict[str, Way]:
    """The rows of the table: each switch as published and as chosen, alone and together."""
    ensemble = {"alpha": chosen["alpha"], "beta": chosen["beta"]}
    return {
        "as published": PUBLISHED,
        "objectness 0.5": Way(objectness=0.5),
        f"objectness {chosen['objectness']}": Way(objectness=chosen["objectness"]),
        "ensemble 0.4, 0.8": Way(alpha=0.4, beta=0.8),
        f"ensemble {chosen['alpha']}, {chosen['beta']}": Way(**ensemble),
        "flip, embeddings": Way(flip="embeddings"),
        "flip, maps": Way(flip="maps"),
        "ensemble + flip, embeddings": Way(**ensemble, flip="embeddings"),
        "all three": Way(chosen["objectness"], **ensemble, flip="embeddings"),
    }


def measure_time(scorer: Scorer, ways: Sequence[Way], num_scenes: int) -> list[float]:
    """Processor time of every way over the published one's, median over scenes, from the picture to segments."""
    seconds: dict[tuple[Way, bool], list[float]] = defaultdict(list)
    questions = [(way, way.flip == "maps") for way in ways] + [(PUBLISHED, True)]
    for scene in scenes("validation", num_scenes):
        for way, is_semantic in questions:
            start = time.process_time()
            _answer_once(scorer, way, scene, is_semantic)
            seconds[way, is_semantic].append(time.process_time() - start)
    medians = {question: float(np.median(values)) for question, values in seconds.items()}
    return [medians[question] / medians[PUBLISHED, question[1]] for question in questions[: len(ways)]]


def _answer_once(scorer: Scorer, way: Way, scene: Scene, is_semantic: bool) -> None:
    pictures = scorer.read(scene, [way.flip])
    needed = pictures if way.flip != "embeddings" else {way.flip: pictures[way.flip]}
    answers = {name: scorer.answer(picture, scorer.words) for name, picture in needed.items()}
    if is_semantic:
        scorer.semantic(answers, way, scene)
    else:
        scorer.panoptic(answers, scorer.words["seen_classes"], way, scene, label_ids_to_fuse=STUFF_IDS)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def run_missing(model: Path, path: Path, num_chosen: int, num_scenes: int, seeds: Sequence[int]) -> dict:
    """What `path` holds, with every piece of this model that it lacked; written after each piece."""
    about = {"model": fingerprint(model), "validation_scenes": num_chosen, "test_scenes": num_scenes}
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if content.get("about") != about:
        content = {"about": about, "test": {}}
    scorer = Scorer(MaftPlusForUniversalSegmentation.from_pretrained(model), MaftPlusProcessor.from_pretrained(model))
    if "chosen" not in content:
        content["chosen"] = choose(scorer, num_chosen)
        _write(path, content)
    rows = table_ways(content["chosen"])
    for seed in map(str, seeds):
        if seed not in content["test"]:
            stream = scenes("test", num_scenes, seed=int(seed))
            figures = measure(scorer, list(rows.values()), stream, with_absent=True)
            content["test"][seed] = {name: _rounded(row) for name, row in zip(rows, figures)}
            _write(path, content)
    if "time" not in content:
        ratios = measure_time(scorer, list(rows.values()), num_scenes=TIMED_SCENES)
        content["time"] = {name: round(ratio, 2) for name, ratio in zip(rows, ratios)}
        _write(path, content)
    return content


def fingerprint(model: Path) -> str:
    """Tells weights apart: figures of other ones are measured anew."""
    with open(model / "model.safetensors", "rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:16]


def _write(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def format_table(content: dict) -> str:
    """
    Percent as Markdown, mean and deviation over the scene seeds: the first row as it is, of the others the difference
    from the first on the same scenes.
    """
    lines = ["| | " + " | ".join([*COLUMNS, "time"]) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    first, sign = 0.0, ""
    for name in table_ways(content["chosen"]):
        values = 100 * np.array([[piece[name][column] for column in COLUMNS] for piece in content["test"].values()])
        cells = [_cell(column, sign) for column in (values - first).T]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{content['time'][name]:.2f}"]) + " |")
        if not sign:
            first, sign = values, "+"
    return "\n".join(lines)


def _cell(values: np.ndarray, sign: str) -> str:
    return f"{values.mean():{sign}.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def main(arguments: list[str] | None = None) -> None:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--validation_scenes", type=int, default=200)
    parser.add_argument("--test_scenes", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only_finished", action="store_true", help="Measure nothing, show what is there.")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if options.only_finished:
        content = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        with torch.inference_mode():
            numbers = options.validation_scenes, options.test_scenes, options.seeds
            content = run_missing(options.model, options.out, *numbers)
    typer.echo(format_table(content))


if __name__ == "__main__":
    main()
