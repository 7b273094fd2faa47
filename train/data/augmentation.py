"""Joint transforms of a picture and its label map, seeded by (seed, epoch, index of the sample).

A sample always looks the same in the same epoch, whichever process or worker draws it, so a resumed run sees the very
pictures that the uninterrupted one would have seen.
With `copy_paste` things of another picture stand in front.
Sources of the settings: large-scale jitter, arXiv 2012.07177; colour, arXiv 1512.02325 (SSD).
Shapes: a picture (H, W, 3) uint8 RGB, a label map (H, W) int32 of class or segment ids.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

GREY = 128
PASTING, OTHERS = 1, 2  # keep the chance of what is pasted, and of how its picture is changed, apart from the rest
VOID_ID = -1  # no segment and no class has it, while 0 may be a class and 255 a segment
Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclass
class ResizeShortestEdge:
    """The shortest edge becomes `shortest` pixels (one of them, if it is a list), the longest at most `longest`."""

    shortest: int | list[int]
    longest: int = 1333

    def __call__(self, image, labels, rng):
        shortest = self.shortest if isinstance(self.shortest, int) else int(rng.choice(self.shortest))
        height, width = labels.shape
        scale = min(shortest / min(height, width), self.longest / max(height, width))
        return resize(image, labels, (int(height * scale + 0.5), int(width * scale + 0.5)))


@dataclass
class LargeScaleJitter:
    """Resized to fit a square of `size` times a factor between `min_scale` and `max_scale`, then cropped or padded."""

    size: int = 1024
    min_scale: float = 0.1
    max_scale: float = 2.0
    ignore_index: int = 255

    def __call__(self, image, labels, rng):
        height, width = labels.shape
        scale = rng.uniform(self.min_scale, self.max_scale) * self.size / max(height, width)
        size = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        image, labels = resize(image, labels, size)
        return RandomCrop(self.size, self.ignore_index)(image, labels, rng)


@dataclass
class RandomCrop:
    """A square of `size`; where the picture is smaller it is padded right and below, grey and `ignore_index`."""

    size: int
    ignore_index: int = 255

    def __call__(self, image, labels, rng):
        top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in labels.shape)
        window = slice(top, top + self.size), slice(left, left + self.size)
        return pad(image[window], labels[window], self.size, self.ignore_index)


@dataclass
class RandomFlip:
    """Left and right change places in one picture of two."""

    probability: float = 0.5

    def __call__(self, image, labels, rng):
        if rng.random() < self.probability:
            return image[:, ::-1], labels[:, ::-1]
        return image, labels


@dataclass
class RandomColour:
    """Brightness, contrast, saturation and hue, each changed in one picture of two; contrast first or last."""

    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0  # degrees of half a circle, as in OpenCV's 8-bit HSV

    def __call__(self, image, labels, rng):
        pixels = image.astype(np.float32)
        if rng.random() < 0.5:
            pixels = pixels + rng.uniform(-self.brightness, self.brightness)
        contrast = rng.uniform(1 - self.contrast, 1 + self.contrast) if rng.random() < 0.5 else 1.0
        comes_first = rng.random() < 0.5
        pixels = self._shift_hue(_to_bytes(pixels * (contrast if comes_first else 1.0)), rng)
        return _to_bytes(pixels.astype(np.float32) * (1.0 if comes_first else contrast)), labels

    def _shift_hue(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        saturation = rng.uniform(1 - self.saturation, 1 + self.saturation) if rng.random() < 0.5 else 1.0
        hue = rng.uniform(-self.hue, self.hue) if rng.random() < 0.5 else 0.0
        if saturation == 1.0 and hue == 0.0:
            return image
        channels = np.asarray(Image.fromarray(image).convert("HSV")).astype(np.float32)
        channels[..., 0] = (channels[..., 0] + hue * 256 / 180) % 256
        channels[..., 1] = (channels[..., 1] * saturation).clip(0, 255)
        return np.asarray(Image.fromarray(channels.astype(np.uint8), mode="HSV").convert("RGB"))


TRANSFORMS = {
    "resize_shortest_edge": ResizeShortestEdge,
    "large_scale_jitter": LargeScaleJitter,
    "random_crop": RandomCrop,
    "random_flip": RandomFlip,
    "random_colour": RandomColour,
}


def build_transforms(settings: Sequence[dict[str, Any]], ignore_index: int = 255) -> list[Transform]:
    """
    Transforms from a recipe: a list of `{"name": ..., argument: value}`, applied in this order.

    Raises:
        ValueError: if a name is unknown or an argument does not fit; the message names it.
    """
    transforms = []
    for entry in settings:
        arguments = dict(entry)
        name = arguments.pop("name", None)
        if name not in TRANSFORMS:
            raise ValueError(f"`augmentation` must be among {', '.join(TRANSFORMS)}, got {name!r}.")
        kind = TRANSFORMS[name]
        if "ignore_index" in kind.__dataclass_fields__:
            arguments.setdefault("ignore_index", ignore_index)
        try:
            transforms.append(kind(**arguments))
        except TypeError as error:
            raise ValueError(f"`augmentation` entry {name!r}: {error}.") from error
    return transforms


class AugmentedDataset(Dataset):
    """
    A data set whose pictures pass `transforms` before they are used.

    Args:
        dataset: Samples as `maftplus.train.data.registry` has them: `name`, `image` (PIL or array),
            `segmentation_map` (H, W) and, for panoptic tasks, `segments_info`. Crowd segments become void.
        transforms: As `build_transforms` returns them.
        seed: With the epoch (`set_epoch`) and the sample's index it decides everything random, including `point_seed`,
            which every sample carries for the random points of its mask losses.
        copy_paste: Probability that things of another picture are laid over one; for samples with `segments_info`.
    """

    def __init__(self, dataset: Any, transforms: Sequence[Transform] = (), seed: int = 0, copy_paste: float = 0.0):
        self.dataset, self.transforms, self.seed, self.epoch = dataset, list(transforms), seed, 0
        self.copy_paste = copy_paste

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = augmented(self.dataset[index], self.transforms, [self.seed, self.epoch, index])
        if not self.copy_paste:
            return sample
        pasting, others = ([self.seed, self.epoch, index, purpose] for purpose in (PASTING, OTHERS))
        rng = np.random.default_rng(pasting)
        if rng.random() >= self.copy_paste:
            return sample
        other = augmented(self.dataset[int(rng.integers(len(self)))], self.transforms, others)
        return paste_things(sample, other, self.dataset.vocabulary.stuff or (), rng)


class AugmentedStream(IterableDataset):
    """
    As `AugmentedDataset`, for samples that only come in a row (`HubDataset`), again and again without an end.

    Every process reads the whole stream and keeps its own batches of it, so a run on several processes, or one that is
    resumed, sees the very pictures of an uninterrupted one. Train with `max_steps`.

    Args:
        dataset: Iterates over samples. Where its `rows` have `set_epoch(n)`, it is called before each reading: a
            shuffled stream of `datasets` then comes in a new order.
    """

    def __init__(self, dataset: Any, transforms: Sequence[Transform] = (), seed: int = 0):
        self.dataset, self.transforms, self.seed = dataset, list(transforms), seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        Raises:
            ValueError: if several workers would each bring every sample, or the stream is empty.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError("A stream is read by one worker: set `dataloader_num_workers` to 0 or 1.")
        for reading in itertools.count():
            if hasattr(self.dataset.rows, "set_epoch"):
                self.dataset.rows.set_epoch(reading)
            index = -1
            for index, sample in enumerate(self.dataset):
                yield augmented(sample, self.transforms, [self.seed, reading, index])
            if index < 0:
                raise ValueError(f"{self.dataset.name} holds no sample.")


def augmented(sample: dict[str, Any], transforms: Sequence[Transform], seed: list[int]) -> dict[str, Any]:
    """The sample after the transforms, with its `point_seed`; `seed` decides everything random."""
    sample = _without_void_and_crowds(sample)
    rng = np.random.default_rng(seed)
    point_seed = int(rng.integers(2**62))
    image = np.asarray(sample["image"].convert("RGB") if hasattr(sample["image"], "convert") else sample["image"])
    labels = np.asarray(sample["segmentation_map"]).astype(np.int32)
    _check_same_size(sample["name"], image, labels)
    for transform in transforms:
        image, labels = transform(image, labels, rng)
    sample.update(image=np.ascontiguousarray(image), segmentation_map=np.ascontiguousarray(labels))
    return {**sample, "point_seed": point_seed}


def paste_things(
    sample: dict[str, Any], other: dict[str, Any], stuff: Sequence[int], rng: np.random.Generator
) -> dict[str, Any]:
    """
    `sample` with some of the things of `other` in front, where they stand there; both after their transforms.

    Source: arXiv 2012.07177 (Simple Copy-Paste), without its blending.
    """
    visible = set(np.unique(other["segmentation_map"]).tolist())
    things = [s for s in other["segments_info"] if s["label_id"] not in stuff and s["id"] in visible]
    if not things:
        return sample
    image, ids = sample["image"].copy(), sample["segmentation_map"].copy()
    segments = list(sample["segments_info"])
    height, width = np.minimum(ids.shape, other["segmentation_map"].shape)
    window = slice(height), slice(width)
    for place in rng.permutation(len(things))[: int(rng.integers(1, len(things) + 1))]:
        is_thing = other["segmentation_map"][window] == things[place]["id"]
        new_id = max((segment["id"] for segment in segments), default=0) + 1
        image[window][is_thing] = other["image"][window][is_thing]
        ids[window][is_thing] = new_id
        segments.append({**things[place], "id": new_id})
    return {**sample, "image": image, "segmentation_map": ids, "segments_info": segments}


@dataclass
class TrainingCollator:
    """
    Samples of an `AugmentedDataset` as a batch for the trainer: normalised, padded, masks and classes of every object.

    Args:
        image_processor: `MaftPlusImageProcessor`; it does not resize here.
        num_classes: K; labels must lie below.
        ignore_index: What unlabelled pixels hold (`void_value`).
    """

    image_processor: Any
    num_classes: int
    ignore_index: int = 255

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Raises:
            ValueError: if an annotation holds a class outside the vocabulary; the message names the picture.
        """
        names = [str(sample["name"]) for sample in samples]
        id_maps = [{s["id"]: s["label_id"] for s in sample.get("segments_info", ())} for sample in samples]
        batch = self.image_processor(
            images=[sample["image"] for sample in samples],
            segmentation_maps=[sample["segmentation_map"] for sample in samples],
            instance_id_to_semantic_id=id_maps if "segments_info" in samples[0] else None,
            ignore_index=self.ignore_index,
            do_reduce_labels=False,  # the data set has done so, whatever the saved processor does
            do_resize=False,
            return_tensors="pt",
        )
        for name, labels in zip(names, batch["class_labels"]):
            self._check_classes(name, labels)
        seeds = torch.tensor([sample["point_seed"] for sample in samples])
        return {**batch, "point_seeds": seeds, "image_names": names}

    def _check_classes(self, name: str, labels: torch.Tensor) -> None:
        outside = sorted({label for label in labels.tolist() if not 0 <= label < self.num_classes})
        if outside:
            raise ValueError(
                f"{name}: the annotation holds the classes {outside}, the vocabulary ends at {self.num_classes - 1}. "
                "Check `ignore_index`, `do_reduce_labels` and the vocabulary."
            )


def _without_void_and_crowds(sample: dict[str, Any]) -> dict[str, Any]:
    """Panoptic samples: segments that stand for many objects at once are unlisted, and void like unlabelled pixels."""
    if "segments_info" not in sample:
        return dict(sample)
    crowds = [segment["id"] for segment in sample["segments_info"] if segment.get("iscrowd")]
    segments = [segment for segment in sample["segments_info"] if not segment.get("iscrowd")]
    ids = np.asarray(sample["segmentation_map"]).astype(np.int32)
    ids = np.where(np.isin(ids, [0, *crowds]), VOID_ID, ids)
    return {**sample, "segments_info": segments, "segmentation_map": ids}


def void_value(dataset: Any) -> int:
    """What unlabelled pixels hold in augmented maps: `VOID_ID` among segment ids, `ignore_index` among classes."""
    return VOID_ID if dataset.task == "panoptic" else dataset.ignore_index


def _check_same_size(name: str, image: np.ndarray, labels: np.ndarray) -> None:
    if image.shape[:2] != labels.shape:
        raise ValueError(f"{name}: the picture is {image.shape[:2]} (height, width), its annotation {labels.shape}.")


def resize(image: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both to `size` (height, width): the picture bilinear with antialiasing, the labels by their nearest pixel."""
    width_first = size[::-1]
    picture = Image.fromarray(image).resize(width_first, Image.Resampling.BILINEAR)
    ids = Image.fromarray(np.ascontiguousarray(labels, dtype=np.int32)).resize(width_first, Image.Resampling.NEAREST)
    return np.asarray(picture), np.asarray(ids)


def pad(image: np.ndarray, labels: np.ndarray, size: int, ignore_index: int) -> tuple[np.ndarray, np.ndarray]:
    """Both to at least `size` x `size`, grey and ignored pixels right and below."""
    extra = [(0, max(size - side, 0)) for side in labels.shape]
    if not any(after for _, after in extra):
        return image, labels
    image = np.pad(image, [*extra, (0, 0)], constant_values=GREY)
    return image, np.pad(labels, extra, constant_values=ignore_index)


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).astype(np.uint8)
