"""Do words carry over to classes without pictures? Training from scratch on MSRC-21 with five classes held out.

    python shapes/unseen_words.py --msrc MSRC_v2 --embeddings zegclip_vitb16/coco_multi.npy --output_dir runs/msrc
    python shapes/unseen_words.py ... --shuffle          # the control: the same vectors, dealt out at random
    python shapes/unseen_words.py ... --evaluate_only    # again the figures of the model in --output_dir

What follows these options overrides the recipe (`--max_steps 2000 --learning_rate 5e-4`).
Class embeddings are real CLIP vectors of COCO-Stuff's 171 names (arXiv 2212.03588 distributes them); the vision side
starts from random weights, so little transfer is to be expected. Every picture with a held-out class is a test picture
and so are three in ten of the others. Horse and mountain are left out, as usual with this data set; face and body are
both "person". Road is never held out: it stands in 161 of 591 pictures, nearly all of those with cars.
"""

import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from scipy.io import loadmat
from transformers import set_seed

from maftplus.classifier_maftplus import class_log_probabilities
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.shapes.stages import run_stage, train_to_the_end
from maftplus.train.evaluation.counting import confusion_matrix, semantic_figures
from maftplus.train.run import build_trainer, parse_arguments
from maftplus.vocabularies.files import load_vocabulary_file

IGNORED = 255
# MSRC's 23 classes, in order, as COCO-Stuff calls them; None is left out.
NAMES = [
    *("building-other", "grass", "tree", "cow", None, "sheep", "sky-other", None, "airplane", "water-other", "person"),
    *("car", "bicycle", "flower", "stop-sign", "bird", "book", "chair", "road", "cat", "dog", "person", "boat"),
]
UNSEEN = ("sheep", "cat", "chair", "bicycle", "boat")
TEST_SHARE = 0.3
ALPHA, BETA = 0.4, 0.8  # FC-CLIP's weights of CLIP's score for seen and unseen classes
# Taken off the log-probability of seen classes (arXiv 1605.04253, "calibrated stacking"); the last leaves only unseen.
PENALTIES = (0.0, 1.0, 2.0, 4.0, 8.0, 1e4)
Labelled = list[tuple[Path, np.ndarray]]  # pictures and the class of every pixel, (h, w) uint8


def main(given: list[str] | None = None) -> None:
    """Command line: trains, measures and prints; there is no limit to exceed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--msrc", type=Path, required=True, help="folder with Images and newsegmentations_mats")
    parser.add_argument("--embeddings", type=Path, required=True, help="(171, 512), in COCO-Stuff's order")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes" / "msrc.yaml")
    parser.add_argument("--unseen", nargs="+", default=UNSEEN, help="the classes held out")
    parser.add_argument("--shuffle", action="store_true", help="deal the class vectors out at random")
    parser.add_argument("--evaluate_only", action="store_true", help="do not train")
    parser.add_argument("--seed", type=int, default=0)
    arguments, overrides = parser.parse_known_args(given)
    classes = sorted({name for name in NAMES if name})
    unknown = sorted(set(arguments.unseen) - set(classes))
    if unknown:
        parser.error(f"--unseen: {', '.join(unknown)} not among {', '.join(classes)}")
    seen = [index for index, name in enumerate(classes) if name not in arguments.unseen]
    vectors = class_vectors(arguments.embeddings, classes, arguments.shuffle, arguments.seed)
    training, test = split(arguments.msrc, classes, seen, arguments.seed)
    if not arguments.evaluate_only:
        data = arguments.output_dir / "data"
        source = {"msrc": arguments.msrc.resolve(), "vectors": hashlib.sha256(vectors.tobytes()).hexdigest()}
        settings = {**source, "classes": classes, "seen": seen, "seed": arguments.seed}
        run_stage(data, settings, lambda: write_training_data(data, training, vectors, classes, seen))
        train(arguments, overrides)
    figures = evaluate(arguments.output_dir, test, vectors, classes, seen)
    figures.update(shuffled=arguments.shuffle, unseen=sorted(arguments.unseen), num_test=len(test))
    (arguments.output_dir / "figures.json").write_text(json.dumps(figures, indent=2))
    typer.echo(json.dumps(figures, indent=2))


def class_vectors(path: Path, classes: list[str], do_shuffle: bool, seed: int) -> np.ndarray:
    """(K, 512) float32, one row a class; shuffled they belong to other classes."""
    names = load_vocabulary_file("coco_stuff_171").names
    rows = np.load(path).astype(np.float32)[[_row(names, name) for name in classes]]
    return np.random.default_rng(seed + 1).permutation(rows) if do_shuffle else rows


def split(source: Path, classes: list[str], seen: list[int], seed: int) -> tuple[Labelled, Labelled]:
    """What to train on, without a pixel of the other classes, and what to test on."""
    table = np.full(256, IGNORED, np.uint8)
    for index, name in enumerate(NAMES, start=1):
        if name in classes:
            table[index] = classes.index(name)
    pictures = sorted((source / "Images").glob("*.jpg"))
    if not pictures:
        raise ValueError(f"{source / 'Images'} holds no .jpg; give the folder of MSRC v2.")
    training, test = [], []
    for picture, is_test in zip(pictures, np.random.default_rng(seed).random(len(pictures)) < TEST_SHARE):
        labels = table[read_classes(source / "newsegmentations_mats" / f"{picture.stem}_GT.mat")]
        present = set(np.unique(labels).tolist()) - {IGNORED}
        if is_test or present - set(seen):
            test.append((picture, labels))
        elif present:
            training.append((picture, labels))
    return training, test


def write_training_data(
    target: Path, training: Labelled, vectors: np.ndarray, classes: list[str], seen: list[int]
) -> None:
    """Pictures, label maps numbered as in `seen.txt`, and `seen.npy`, the vectors of these classes, into `target`."""
    to_seen = np.full(256, IGNORED, np.uint8)
    to_seen[seen] = np.arange(len(seen))
    for folder in ("images", "labels"):
        (target / folder).mkdir()
    (target / "seen.txt").write_text("\n".join(classes[index] for index in seen))
    np.save(target / "seen.npy", vectors[seen])
    for picture, labels in training:
        Image.fromarray(to_seen[labels]).save(target / "labels" / f"{picture.stem}.png")
        shutil.copyfile(picture, target / "images" / picture.name)


def read_classes(path: Path) -> np.ndarray:
    """MSRC class of every pixel, (h, w), 1 to 23; 0 is unlabelled."""
    content = loadmat(path)
    table = np.zeros(256, np.uint8)
    table[1 : 1 + content["newlabels"].size] = content["newlabels"].ravel()
    return table[content["newseg"]]


def train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """The recipe's small model on the seen classes, whose names are the given vectors; saved in the output folder."""
    folder = arguments.output_dir / "data"
    options = {
        "image_folder": folder / "images",
        "label_folder": folder / "labels",
        "vocabulary": folder / "seen.txt",
        "class_embeddings": folder / "seen.npy",
        "output_dir": arguments.output_dir,
        "seed": arguments.seed,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    model_args, data_args, args = parse_arguments([str(arguments.recipe), "--do_train", *given, *overrides])
    set_seed(args.seed)
    train_to_the_end(build_trainer(model_args, data_args, args))


@torch.no_grad()
def evaluate(folder: Path, test: Labelled, vectors: np.ndarray, classes: list[str], seen: list[int]) -> dict[str, Any]:
    """Figures of the model in `folder` with every class as a candidate, by each way to score a mask (`figures_of`)."""
    model = MaftPlusForUniversalSegmentation.from_pretrained(folder).eval()
    image_processor = MaftPlusProcessor.from_pretrained(folder).image_processor
    is_seen = torch.zeros(len(classes), dtype=torch.bool)
    is_seen[seen] = True
    vocabulary = {
        "text_embeds": F.normalize(torch.from_numpy(vectors), dim=-1),
        "text_class_ids": torch.arange(len(classes)),
    }
    matrices = defaultdict(int)
    for picture, labels in test:
        outputs = model(**image_processor(images=Image.open(picture), return_tensors="pt"), **vocabulary)
        for kind, logits in class_scores(outputs, is_seen).items():
            for penalty in PENALTIES:
                lowered = logits - penalty * F.pad(is_seen, (0, 1)).float()  # void stays
                outputs["class_queries_logits"] = lowered.log_softmax(-1)
                (predicted,) = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[labels.shape])
                counts = confusion_matrix(predicted, labels, len(classes), IGNORED, picture.name)
                matrices[kind, penalty] = matrices[kind, penalty] + counts
    kinds = sorted({kind for kind, _ in matrices})
    return {kind: figures_of([matrices[kind, penalty] for penalty in PENALTIES], classes, seen) for kind in kinds}


def class_scores(outputs, is_seen: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log-probabilities (1, Q, K+1), void last, by each way to score a mask."""
    weights = torch.where(is_seen, ALPHA, BETA)
    scores = outputs.out_vocab_logits, outputs.void_probabilities, outputs.in_vocab_logits
    return {
        "clip": class_log_probabilities(*scores[:2]),
        "in_vocabulary": outputs.in_vocab_logits.log_softmax(-1),
        "ensemble": class_log_probabilities(*scores, weights),
    }


def figures_of(matrices: list[np.ndarray], classes: list[str], seen: list[int]) -> dict[str, Any]:
    """
    Seen and unseen mIoU without a penalty, at the penalty with the best harmonic mean (chosen on these very pictures,
    so only for comparing runs), every class's IoU, and `accuracy_among_unseen`: share of an unseen class's pixels that
    get it when only unseen classes are candidates, averaged over these; chance is one over their number.
    """
    curve = []
    for penalty, matrix in zip(PENALTIES[:-1], matrices):
        figures = semantic_figures(matrix, seen)
        keys = "seen_mean_iou", "unseen_mean_iou", "harmonic_mean_iou"
        curve.append({"penalty": penalty, **{key: float(figures[key]) for key in keys}})
    alone = semantic_figures(matrices[-1])["per_category_accuracy"]
    unseen = [index for index in range(len(classes)) if index not in seen]
    per_class = semantic_figures(matrices[0])["per_category_iou"]
    return {
        **{key: value for key, value in curve[0].items() if key != "penalty"},
        "best_penalty": max(curve, key=lambda point: point["harmonic_mean_iou"]),
        "accuracy_among_unseen": float(np.nanmean(alone[unseen])),
        "accuracies_among_unseen": {classes[index]: float(alone[index]) for index in unseen},
        "iou": {name: float(value) for name, value in zip(classes, per_class)},
    }


def _row(names: tuple[str, ...], name: str) -> int:
    """Index of a class in COCO-Stuff's order, whichever way its name is spelled."""
    plain = [other.replace("-", " ") for other in names]
    wanted = name.replace("-", " ")
    candidates = [wanted, wanted.removesuffix(" other")]
    for candidate in candidates:
        if candidate in plain:
            return plain.index(candidate)
    raise ValueError(f"COCO-Stuff has no class {name!r}.")


if __name__ == "__main__":
    main()
