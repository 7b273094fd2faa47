"""How well a model segments fresh scenes of the shapes world when all names of the world are its vocabulary.

    python shapes/evaluate.py models/shapes --split test --num_scenes 500 --absent_words 500

Choices are made on the validation split; figures are reported on the test split, which no choice has seen.
Columns: mIoU over the pairs of each kind (seen counts the stuff too, as the classes of segmentation training),
the harmonic mean of seen and unseen, and panoptic quality over all classes.
Shapes: K classes (42), Q queries, N segments of a scene, S side of a scene in pixels.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from transformers.utils import logging

from maftplus.loss_maftplus import soft_iou
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor, MaftPlusSegmentationPipeline
from maftplus.shapes.scenes import CLASSES, KINDS, SPLIT_SEEDS, STUFF_IDS, Scene, class_ids, scenes
from maftplus.train.evaluation.counting import confusion_matrix, panoptic_counts, panoptic_figures, semantic_figures

ABSENT_SEED = 8  # of the scenes that are asked for what is not there
NUM_ABSENT = 4  # words a scene
COLUMNS = ("seen", "unseen", "novel", "harmonic", "pq", "pq_things", "pq_stuff")


def all_names() -> list[list[str]]:
    """Every class with all its synonyms, in the order of `CLASSES`: what `set_vocabulary` and `text=` take."""
    return [list(entry.names) for entry in CLASSES]


@torch.no_grad()
def evaluate(
    model: MaftPlusForUniversalSegmentation,
    processor: MaftPlusProcessor,
    num_scenes: int,
    split: str = "validation",
    seed: int = 0,
    batch_size: int = 10,
    measure_sensitivity: bool = False,
    layout: dict | None = None,
    propose: Callable[[list[Scene]], dict[str, Tensor]] | None = None,
) -> dict[str, float]:
    """
    Figures on fresh scenes, fractions of 1.

    Args:
        split, seed, layout: Which scenes (`shapes.scenes`); "test" for figures that are reported.
        measure_sensitivity: Also `mask_sensitivity`, see there.
        propose: Gives the model further arguments for a batch of scenes (`proposal_logits`).
    """
    model.eval()
    vocabulary = model.encode_vocabulary(**processor(text=all_names(), return_tensors="pt"))
    num_classes = len(CLASSES)
    matrix, counts = np.zeros((num_classes + 1, num_classes + 1), np.int64), np.zeros((num_classes, 4))
    sensitivities: list[float] = []
    for batch in _batches(scenes(split, num_scenes, seed=seed, **(layout or {})), batch_size):
        inputs = processor(images=[s.image for s in batch], return_tensors="pt")
        outputs = model(**inputs, **vocabulary, **(propose(batch) if propose else {}))
        sizes = [scene.segmentation.shape for scene in batch]
        semantic = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        panoptic = processor.post_process_panoptic_segmentation(
            outputs, target_sizes=sizes, label_ids_to_fuse=set(STUFF_IDS)
        )
        for scene, classes, segments in zip(batch, semantic, panoptic):
            confusion_matrix(classes, scene.semantic, num_classes, out=matrix)
            predicted = segments["segmentation"], segments["segments_info"]
            counts += panoptic_counts(*predicted, scene.segmentation, scene.segments_info, num_classes)
        if measure_sensitivity:
            sensitivities += mask_sensitivity(outputs, batch)
    figures = figures_of(matrix, counts)
    return {**figures, "mask_sensitivity": float(np.mean(sensitivities))} if measure_sensitivity else figures


def mask_sensitivity(outputs, batch: list[Scene]) -> list[float]:
    """
    For every segment the rank correlation, over the queries of its image, between CLIP's probability of the segment's
    class and the soft IoU of the query's mask with the segment: what arXiv 2310.00240 says CLIP lacks.

    Args:
        outputs: The model's, with `out_vocab_logits` (B, Q, K+1) and `masks_queries_logits` (B, Q, h, w).

    Returns: one number in [-1, 1] a segment; segments for which all scores or all overlaps are equal are left out.
    """
    probabilities = outputs.out_vocab_logits[..., :-1].softmax(-1)
    correlations = []
    for scores, masks, scene in zip(probabilities, outputs.masks_queries_logits, batch):
        overlaps = _soft_iou(masks, scene)  # (N, Q)
        for segment, overlap in zip(scene.segments_info, overlaps):
            score = scores[:, segment["category_id"]]
            if score.std() > 0 and overlap.std() > 0:
                correlations.append(float(spearmanr(score.numpy(), overlap.numpy()).statistic))
    return correlations


def _soft_iou(mask_logits: Tensor, scene: Scene) -> Tensor:
    size = scene.segmentation.shape
    masks = F.interpolate(mask_logits[None], size=size, mode="bilinear", align_corners=False)[0].sigmoid()
    ids = torch.tensor([segment["id"] for segment in scene.segments_info])
    return soft_iou(masks, torch.from_numpy(scene.segmentation)[None] == ids[:, None, None])


def _batches(stream: Iterator[Scene], size: int) -> Iterator[list[Scene]]:
    batch: list[Scene] = []
    for scene in stream:
        batch.append(scene)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def absent_things(scene: Scene, shares_a_colour: bool) -> list[str]:
    """First names of every other thing that a scene lacks, in a colour that it shows or in none of its colours."""
    present = {segment["category_id"] for segment in scene.segments_info}
    colours = {CLASSES[index].colour for index in present}
    absent = [entry for index, entry in enumerate(CLASSES) if entry.isthing and index not in present]
    return [entry.names[0] for entry in absent if (entry.colour in colours) == shares_a_colour][::2]


def other_names(scene: Scene, words: list[str]) -> list[str]:
    """First names of the classes that a scene lacks and that are not among `words`."""
    taken = {*words, *(CLASSES[segment["category_id"]].names[0] for segment in scene.segments_info)}
    return [entry.names[0] for entry in CLASSES if entry.names[0] not in taken]


def share_left_empty(
    segmenter: MaftPlusSegmentationPipeline,
    num_scenes: int,
    shares_a_colour: bool,
    split: str = "validation",
    with_distractors: bool = False,
    **options,
) -> float:
    """
    Share of scenes in which no segment is found for up to four `absent_things`.

    Args:
        with_distractors: Give the world's other names that the scene lacks as distractors.
        options: What the pipeline takes besides the words (`threshold`, ...).
    """
    is_empty = []
    for scene in scenes(split, num_scenes, seed=ABSENT_SEED):
        words = absent_things(scene, shares_a_colour)[:NUM_ABSENT]
        if not words:  # a scene of all colours
            continue
        if with_distractors:
            options["distractor_labels"] = other_names(scene, words)
        is_empty.append(not segmenter(Image.fromarray(scene.image), candidate_labels=words, **options))
    return float(np.mean(is_empty))


def absent_figures(
    segmenter: MaftPlusSegmentationPipeline, num_scenes: int, split: str, **options
) -> dict[str, float]:
    """`share_left_empty` where no colour of the words is in the scene and where the colours are, in other shapes."""
    kinds = {"absent_other_colours": False, "absent_same_colours": True}
    return {name: share_left_empty(segmenter, num_scenes, shares, split, **options) for name, shares in kinds.items()}


def figures_of(matrix: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """The figures of a confusion matrix and of panoptic counts of the world's classes, fractions of 1."""
    iou = semantic_figures(matrix)["per_category_iou"]
    figures = {kind: float(np.nanmean(iou[class_ids(kind)])) for kind in KINDS}
    seen, unseen = figures["seen"], figures["unseen"]
    figures["harmonic"] = 2 * seen * unseen / max(seen + unseen, 1e-9)
    panoptic = panoptic_figures(counts, STUFF_IDS)
    return {**figures, **{key: panoptic[key] for key in ("pq", "sq", "rq", "pq_things", "pq_stuff")}}


def format_table(figures: dict[str, float]) -> str:
    """One row of percentages under the names of the columns."""
    names = "".join(f"{name:>11}" for name in COLUMNS)
    return f"{names}\n" + "".join(f"{100 * figures[name]:>11.1f}" for name in COLUMNS)


def format_absent(figures: dict[str, float]) -> str:
    """Both of `absent_figures` in words."""
    other, same = figures["absent_other_colours"], figures["absent_same_colours"]
    return (
        f"empty are {other:.1%} where no colour of theirs is there, {same:.1%} where the colours are, in other shapes"
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures of a model on fresh scenes; the last line is JSON, fractions of 1."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("--split", default="test", choices=sorted(SPLIT_SEEDS))
    parser.add_argument("--num_scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--absent_words", type=int, default=0, help="Scenes to ask for what is not there.")
    parser.add_argument("--distractors", action="store_true", help="With them; see shapes/none_of_these.py.")
    parser.add_argument("--min_margin", type=float, help="How clearly the words of absent things must lead.")
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.num_threads)
    logging.disable_progress_bar()
    model = MaftPlusForUniversalSegmentation.from_pretrained(options.model)
    processor = MaftPlusProcessor.from_pretrained(options.model)
    start = time.time()
    figures = evaluate(model, processor, options.num_scenes, options.split, options.seed, measure_sensitivity=True)
    typer.echo(f"{options.num_scenes} scenes of the {options.split} split, {time.time() - start:.0f} s")
    typer.echo(format_table(figures))
    figures.update(dict.fromkeys(("absent_other_colours", "absent_same_colours")))
    if options.absent_words:
        segmenter = MaftPlusSegmentationPipeline(model=model, processor=processor)
        given = {"with_distractors": options.distractors, "min_margin": options.min_margin}
        figures.update(absent_figures(segmenter, options.absent_words, options.split, **given))
        typer.echo(
            f"{options.absent_words} scenes asked for {NUM_ABSENT} absent words; empty: {format_absent(figures)}"
        )
    rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
    about = {"split": options.split, "num_scenes": options.num_scenes, "absent_words": options.absent_words}
    typer.echo(json.dumps({**rounded, **about, "seed": options.seed}))


if __name__ == "__main__":
    main()
