"""Do words carry over to classes without pictures? Training from scratch on MSRC-21 with five classes held out.

    python benchmarks/unseen_words.py --msrc MSRC_v2 --embeddings zegclip_vitb16/coco_multi.npy --output_dir runs/msrc
    python benchmarks/unseen_words.py ... --shuffle          # the control: the same vectors, dealt out at random

Class embeddings are real CLIP vectors of COCO-Stuff's 171 names (arXiv 2212.03588 distributes them); the vision side
starts from random weights, so little transfer is to be expected. Pictures that show a held-out class are not trained
on. Horse and mountain are left out, as usual with this data set; face and body are both "person".
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from torch.nn import functional as F

from maftplus.train.counting import confusion_matrix, semantic_figures
from maftplus.train.run import build_trainer, parse_arguments
from maftplus.train.vocabulary import load_vocabulary

IGNORED = 255
# MSRC's 23 classes, in order, as COCO-Stuff calls them; None is left out.
NAMES = [
    *("building-other", "grass", "tree", "cow", None, "sheep", "sky-other", None, "airplane", "water-other", "person"),
    *("car", "bicycle", "flower", "stop-sign", "bird", "book", "chair", "road", "cat", "dog", "person", "boat"),
]
UNSEEN = ("sheep", "cat", "chair", "road", "boat")


def main() -> None:
    """Measure and print; there is no limit to exceed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--msrc", type=Path, required=True, help="folder with Images and newsegmentations_mats")
    parser.add_argument("--embeddings", type=Path, required=True, help="(171, 512), in COCO-Stuff's order")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--recipe", default="train/recipes/overfit.yaml")
    parser.add_argument("--max_steps", type=int, default=600)
    parser.add_argument("--shuffle", action="store_true", help="deal the class vectors out at random")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    classes = sorted({name for name in NAMES if name})
    vectors = class_vectors(arguments.embeddings, classes, arguments.shuffle, arguments.seed)
    test = prepare(arguments.msrc, arguments.output_dir / "data", classes, arguments.seed)
    model, image_processor = train(arguments, classes, vectors)
    figures = evaluate(model, image_processor, test, vectors, classes)
    figures.update(shuffled=arguments.shuffle, steps=arguments.max_steps, num_test=len(test))
    (arguments.output_dir / "figures.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures, indent=2))


def class_vectors(path: Path, classes: list[str], do_shuffle: bool, seed: int) -> np.ndarray:
    """(K, 512) float32, one row a class; shuffled they belong to other classes."""
    names = load_vocabulary("coco_stuff_171").names
    rows = np.load(path).astype(np.float32)[[_row(names, name) for name in classes]]
    return np.random.default_rng(seed + 1).permutation(rows) if do_shuffle else rows


def prepare(source: Path, target: Path, classes: list[str], seed: int) -> list[tuple[Path, np.ndarray]]:
    """Writes pictures and label maps of the training half; returns the test half as (picture, label map)."""
    seen = [name for name in classes if name not in UNSEEN]
    table = np.full(256, IGNORED, np.uint8)
    for index, name in enumerate(NAMES, start=1):
        if name in classes:
            table[index] = classes.index(name)
    for folder in ("images", "labels"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    (target / "seen.txt").write_text("\n".join(seen))
    pictures = sorted((source / "Images").glob("*.jpg"))
    test = []
    for picture, is_test in zip(pictures, np.random.default_rng(seed).random(len(pictures)) < 0.4):
        labels = table[read_classes(source / "newsegmentations_mats" / f"{picture.stem}_GT.mat")]
        found = {classes[value] for value in np.unique(labels) if value != IGNORED}
        if is_test:
            test.append((picture, labels))
        elif found and not found & set(UNSEEN):
            to_seen = np.array([seen.index(n) if n in seen else IGNORED for n in classes] + [IGNORED] * 256, np.uint8)
            Image.fromarray(to_seen[labels]).save(target / "labels" / f"{picture.stem}.png")
            Image.open(picture).convert("RGB").save(target / "images" / picture.name, quality=95)
    return test


def read_classes(path: Path) -> np.ndarray:
    """MSRC class of every pixel, (h, w), 1 to 23; 0 is unlabelled."""
    content = loadmat(path)
    table = np.zeros(256, np.uint8)
    table[1 : 1 + content["newlabels"].size] = content["newlabels"].ravel()
    return table[content["newseg"]]


def train(arguments: argparse.Namespace, classes: list[str], vectors: np.ndarray):
    """The recipe's small model on the seen classes, whose names are the given vectors."""
    folder = arguments.output_dir / "data"
    seen_rows = folder / "seen.npy"
    np.save(seen_rows, vectors[[index for index, name in enumerate(classes) if name not in UNSEEN]])
    options = {
        "image_folder": folder / "images",
        "label_folder": folder / "labels",
        "vocabulary": folder / "seen.txt",
        "class_embeddings": seen_rows,
        "output_dir": arguments.output_dir,
        "max_steps": arguments.max_steps,
        "max_train_samples": 10**6,
        "seed": arguments.seed,
        "augmentation": json.dumps(
            [{"name": "resize_shortest_edge", "shortest": 96, "longest": 160}, {"name": "random_flip"}]
        ),
        "eval_size": json.dumps({"shortest_edge": 96, "longest_edge": 160}),
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    model_args, data_args, args = parse_arguments([arguments.recipe, "--do_train", *given])
    width = vectors.shape[1]
    scale = math.log(16 / width**0.5)  # refined class rows are sqrt(width) long; a larger scale saturates the softmax
    model_args.model_config["clip_config"].update(projection_dim=width, logit_scale_init_value=scale)
    trainer = build_trainer(model_args, data_args, args)
    trainer.train()
    return trainer.model.eval(), trainer.processing_class.image_processor


@torch.no_grad()
def evaluate(model, image_processor, test, vectors: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Seen and unseen mIoU with every class as a candidate, by CLIP's score and by the segmenter's own."""
    vocabulary = {
        "text_embeds": F.normalize(torch.from_numpy(vectors), dim=-1),
        "text_class_ids": torch.arange(len(classes)),
    }
    matrices = {"clip": 0, "in_vocabulary": 0}
    for picture, labels in test:
        outputs = model(**image_processor(images=Image.open(picture), return_tensors="pt"), **vocabulary)
        scores = {"clip": outputs.class_queries_logits, "in_vocabulary": outputs.in_vocab_logits.log_softmax(-1)}
        for kind, logits in scores.items():
            outputs["class_queries_logits"] = logits
            (found,) = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[labels.shape])
            matrices[kind] = matrices[kind] + confusion_matrix(found, labels, len(classes), IGNORED, picture.name)
    seen = [index for index, name in enumerate(classes) if name not in UNSEEN]
    found = {kind: semantic_figures(matrix, seen) for kind, matrix in matrices.items()}
    keys = ("seen_mean_iou", "unseen_mean_iou", "harmonic_mean_iou")
    return {f"{kind}_{key}": float(figures[key]) for kind, figures in found.items() for key in keys}


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
