"""The pipeline: pictures and words in, segments out.

It travels with the processor, whose module offers it under the name that saved configurations hold.
Shapes: B pictures of one step, K labels (and R distractors after them), Q queries, h x w a picture.
"""

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Pipeline
from transformers.utils import ModelOutput

from .masks_maftplus import (
    MaskedPicture,
    check_options_with_masks,
    mask_image,
    name_masks,
    proposal_logits,
    put_masks,
    read_masks,
)
from .postprocessing_maftplus import join_mirrored
from .predictions_maftplus import check_shares, read_predictions
from .reading_maftplus import read_picture
from .tiles_maftplus import check_options_with_tiles, check_tiling, make_seams, plan_tiles
from .words_maftplus import (
    ClassName,
    as_list,
    build_prompts,
    find_label_ids,
    parse_distractors,
    split_distractors,
)

THRESHOLDS = {  # that a subtask reads
    "panoptic": ("threshold", "mask_threshold", "overlap_mask_area_threshold", "min_margin"),
    "instance": ("threshold", "mask_threshold", "min_margin"),
    "semantic": (),
}
SUBTASKS = tuple(THRESHOLDS)
MARGIN_AMONG_DISTRACTORS = 0.6  # default of `min_margin` with distractors; measured by shapes/none_of_these.py
CACHED_VOCABULARIES = 8  # per pipeline; a vocabulary is a few hundred kilobytes
KEPT_OUTPUTS = ("class_queries_logits", "masks_queries_logits", "unpadded_sizes", "padded_sizes")
WORD_LISTS = ("candidate_labels", "stuff_labels", "distractor_labels")  # arguments that may be generators


@dataclass(frozen=True)
class EncodedPicture:
    """
    A picture that a pipeline has read (`segmenter.encode(picture)`) and takes in a picture's place.

    Args:
        outputs: The model's `MaftPlusPicture` of one picture, on the model's device.
        target_size: The picture's (height, width).
        model: The model that read it; no other can answer for it.
    """

    outputs: ModelOutput
    target_size: tuple[int, int]
    model: Any


class MaftPlusSegmentationPipeline(Pipeline):
    """
    Pictures and words in, segments out: `pipeline("image-segmentation", model=folder, trust_remote_code=True)`, or,
    for a model that is there already (merged, quantised, patched), `MaftPlusSegmentationPipeline(model=model,
    processor=processor)`: `pipeline(...)` puts such a model into transformers' own class, which knows no words.

    Class embeddings are computed once for a vocabulary and kept for the next calls of this object. The pictures of a
    batch may differ in size: the network sees those of one padded size together, so that no result depends on the
    others of its batch. Several threads may call one object.

    Raises:
        ValueError: without a processor, or with one whose tokenizer is not that of the model's text tower.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        self._vocabularies = _RecentVocabularies(CACHED_VOCABULARIES)
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("`processor` is missing: pass a MaftPlusProcessor or a model folder that holds one.")
        self.processor.check_text_tower(self.model.config.clip_config.text_config)

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[ClassName] | None = None,
        stuff_labels: Sequence[ClassName] | None = None,
        distractor_labels: Sequence[ClassName] | None = None,
        templates: str | Sequence[str] | None = None,
        training_classes: Sequence[ClassName] | None = None,
        flip_average: bool | None = None,
        return_score_maps: bool | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        timeout: float | None = None,
        max_bytes: int | None = None,
        **postprocess: Any,
    ) -> tuple[dict, dict, dict]:
        postprocess = _given(**postprocess)
        _check_postprocess_names(postprocess)
        words = {}
        if candidate_labels is not None:
            words["classes"] = self.processor.split_labels(candidate_labels)
        if distractor_labels is not None:
            words["distractors"] = parse_distractors(distractor_labels, self.processor.do_split_synonyms)
        forward = _given(flip_average=flip_average)
        if templates is not None:
            forward["templates"] = tuple(as_list(templates))
            build_prompts([["a name"]], forward["templates"])  # refuses bad ones before any picture
        if training_classes is not None:
            forward["training_classes"] = self.processor.split_labels(training_classes)
        if stuff_labels is not None:
            stuff_labels = as_list(stuff_labels)
            postprocess["stuff_labels"] = self.processor.split_labels(stuff_labels) if stuff_labels else []
        postprocess.update(words, **_given(return_score_maps=return_score_maps))
        postprocess.update(_given(tile_size=tile_size, tile_overlap=tile_overlap))
        return _given(timeout=timeout, max_bytes=max_bytes), {**words, **forward}, postprocess

    def __call__(
        self, inputs: Any = None, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Args:
            inputs: A picture or a list of pictures, each a path, a URL, a PIL image or what `encode` returned
                (`images=` works too).
            candidate_labels (`list`, *optional*): Class names: strings with synonyms separated by commas, or lists of
                synonyms. Default: the vocabulary stored in the model.
            stuff_labels (`list`, *optional*): Those of them that are stuff: merged in panoptic results, left out of
                instances. Default: the stored vocabulary's, or none.
            distractor_labels (`list`, *optional*): Classes that compete with them and are never reported; those that
                share a name with a label are left out. A segment that one wins is dropped, a pixel that one wins in a
                semantic result belongs to no segment.
            subtask (`str`, *optional*, defaults to `"panoptic"`): Or `"instance"` or `"semantic"`.
            threshold, mask_threshold, overlap_mask_area_threshold (`float`, *optional*): See the image processor.
            min_margin (`float`, *optional*): How clearly a segment's word must lead, see the image processor. Default:
                0.6 with distractors, 0 without.
            templates, training_classes (*optional*): In place of the processor's, for the words of this call.
            flip_average (`bool`, *optional*): Semantic results: class maps averaged with the mirror image's.
            return_score_maps (`bool`, *optional*): Also give maps of how much every label is believed in.
            masks (*optional*): Masks of the picture that are there already, in any form that `read_masks` takes (for a
                list of pictures a list of such, one a picture): each gets a word, none is proposed. `threshold` and
                `min_margin`, 0 by default, drop some then, and so does a distractor that wins.
            tile_size, tile_overlap (`int`, *optional*): Edge of square parts, in pixels, in which a large picture is
                read, each as a picture of its own, and how far they overlap (default: a quarter of it).
            num_workers, batch_size (`int`, *optional*): Processes that read pictures; pictures a step.
            timeout (`float`, *optional*, defaults to 60): Seconds that fetching a URL may take in all.
            max_bytes (`int`, *optional*, defaults to 256 MiB): Most bytes that a URL may hold.

        Returns:
            For each picture a list of `{"label", "label_id", "score", "second_label", "second_score", "mask"}`: the
            class's first synonym, its index, a score in [0, 1], the next best label and its score (`None` without one;
            all three scores and names are `None` in semantic results) and a black and white PIL image of the
            picture's size. With `masks` an entry a mask, in their order, with its place among them as `mask_index`;
            empty masks are left out. With `return_score_maps` a dictionary: that list as `segments`, the `labels`, and
            `score_maps` (K, h, w) and `confidence` (h, w), see `post_process_score_maps` of the processor.

        Raises:
            ValueError: without labels, on words, templates, a subtask or a picture that cannot be used, on thresholds
                outside of [0, 1], and on arguments that would have no effect.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("Give at least one picture: a path, a URL or a PIL image.")
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs
        masks = kwargs.pop("masks", None)
        for name in kwargs.keys() & set(WORD_LISTS):  # read twice: here and by the base class
            kwargs[name] = None if kwargs[name] is None else as_list(kwargs[name])
        _, forward, given = self._sanitize_parameters(**kwargs)
        post = {**self._postprocess_params, **given}
        check_thresholds(post.get("subtask"), given)
        self._classes_and_stuff(post.get("classes"), post.get("stuff_labels"))  # refuses bad words before any picture
        forward = {**self._forward_params, **forward}
        _check_prompt_options(post.get("classes"), forward)
        if forward.get("flip_average") and post.get("subtask") != "semantic":
            raise ValueError('`flip_average` averages class maps: it takes `subtask="semantic"`.')
        check_options_with_tiles(post)
        if masks is not None:
            check_options_with_masks(post)
            inputs = put_masks(inputs, masks)
        if isinstance(inputs, list) and not inputs:
            return []
        if post.get("tile_size") is not None:
            options = forward, post, batch_size or self._batch_size or 1
            is_one = not isinstance(inputs, list)
            results = [self._segment_in_tiles(one, *options) for one in ([inputs] if is_one else inputs)]
            return results[0] if is_one else results
        return super().__call__(inputs, num_workers=num_workers, batch_size=batch_size, **kwargs)

    def encode(self, picture: Any, timeout: float | None = None, max_bytes: int | None = None) -> EncodedPicture:
        """
        Read a picture once, for calls with any words: `segmenter(segmenter.encode(picture), candidate_labels=...)`.

        Args:
            picture: A path, a URL or a PIL image.
            timeout, max_bytes: As in a call.

        Returns:
            What a call takes in the picture's place: trunk and pixel decoder, nearly all of the work, do not run again
            then. It holds masks and embeddings, a few megabytes, on the model's device.

        Raises:
            ValueError: for what cannot be read as a picture.
        """
        read = self.preprocess(picture, **_given(timeout=timeout, max_bytes=max_bytes))
        with self.device_placement(), torch.no_grad():
            outputs = self.model.encode_picture(**_stack_inputs([read["inputs"]], self.model.dtype, self.device))
        outputs.dense_features = None  # training alone reads them
        return EncodedPicture(outputs, read["target_size"], self.model)

    def preprocess(self, image: Any, timeout: float | None = None, max_bytes: int | None = None) -> dict[str, Any]:
        """
        A picture -> `target_size`, and `inputs` (`pixel_values` (1, 3, H, W), `pixel_mask` (1, H, W)), or `picture` if
        it has been encoded; the other one is `None`. `masks` (N, height, width) bool where some came with it.
        """
        if isinstance(image, EncodedPicture):
            if image.model is not self.model:
                raise ValueError("This picture was encoded by another model; encode it with this pipeline.")
            return {"inputs": None, "picture": image, "target_size": image.target_size, "masks": None}
        is_masked = isinstance(image, MaskedPicture)
        if is_masked and isinstance(image.picture, EncodedPicture):
            raise ValueError("`masks` need the picture itself: what `encode` returns holds none of its pixels.")
        picture = read_picture(image.picture if is_masked else image, timeout=timeout, max_bytes=max_bytes)
        size = (picture.height, picture.width)
        masks = read_masks(image.masks, size) if is_masked else None
        inputs = self.processor(images=picture, return_tensors="pt")
        return {"inputs": dict(inputs), "picture": None, "target_size": size, "masks": masks}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        classes: list[list[str]] | None = None,
        distractors: list[list[str]] | None = None,
        flip_average: bool = False,
        **prompts: Any,
    ) -> ModelOutput:
        """One picture's outputs with a batch of one, or lists of those of each, in the batch's order."""
        words = self._vocabulary(classes, distractors or [], **prompts)
        if not isinstance(model_inputs["target_size"], list):
            (outputs,) = self.segment([model_inputs], words, flip_average)
            return ModelOutput({name: value[None] for name, value in outputs.items()})
        items = [dict(zip(model_inputs, values)) for values in zip(*model_inputs.values())]
        groups = defaultdict(list)
        for index, item in enumerate(items):
            is_alone = item["inputs"] is None or item["masks"] is not None
            groups[index if is_alone else item["inputs"]["pixel_values"].shape].append(index)
        results = [None] * len(items)
        for indices in groups.values():
            for index, outputs in zip(indices, self.segment([items[i] for i in indices], words, flip_average)):
                results[index] = outputs
        return ModelOutput({name: [one[name] for one in results] for name in results[0]})

    def segment(self, items: list[dict[str, Any]], words: dict[str, Tensor], flip_average: bool = False) -> list[dict]:
        """
        Pictures from `preprocess`, of one padded size or one that is encoded or has masks, and words from
        `encode_vocabulary` -> the outputs of each picture, without a batch axis.
        """
        picture, masks = items[0]["picture"], items[0]["masks"]
        if picture is not None:
            if flip_average:
                raise ValueError("`flip_average` needs the picture itself: `encode` keeps none of its pixels.")
            outputs = self.model.classify(picture.outputs, **words)
        else:
            batch = _stack_inputs([one["inputs"] for one in items], self.model.dtype, self.device)
            outputs = self.model(**batch, **words, **({} if masks is None else self._proposals(masks, **batch)))
            if flip_average:
                batch = {name: value.flip(-1) for name, value in batch.items()}  # the padding lies on the other side
                outputs = join_mirrored(outputs, self.model(**batch, **words))
        kept = {name: outputs[name] for name in KEPT_OUTPUTS}
        if masks is not None:
            kept["masks"] = torch.from_numpy(masks)[None]
        kept["target_sizes"] = torch.tensor([one["target_size"] for one in items])
        return [{name: value[index] for name, value in kept.items()} for index in range(len(items))]

    def _proposals(self, masks: np.ndarray, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
        """Masks (N, h, w) of one picture as the model takes them."""
        network = self.model.model
        grid_size = network.clip.vision_model.grid_size(network.clip_pixel_values(pixel_values))
        return {"proposal_logits": proposal_logits(masks, pixel_mask, grid_size).to(pixel_values.dtype)}

    def _vocabulary(
        self, classes: list[list[str]] | None, distractors: list[list[str]], **prompts: Any
    ) -> dict[str, Tensor]:
        """Embeddings of labels and distractors, each computed unless among the last few; none for the stored words."""
        distractors = split_distractors(self._labels(classes), distractors)[0]
        if not distractors:
            return {} if classes is None else self._encode_words(classes, **prompts)
        labels = self._stored_words() if classes is None else self._encode_words(classes, **prompts)
        return _join_vocabularies(labels, self._encode_words(distractors, **prompts))

    def _encode_words(self, classes: list[list[str]], **prompts: Any) -> dict[str, Tensor]:
        options = {"templates": self.processor.templates, "training_classes": self.processor.training_classes}
        options |= prompts
        key = tuple(map(_frozen, (classes, *options.values())))
        vocabulary = self._vocabularies.get(
            key,
            lambda: self.processor(text=classes, return_tensors="pt", **options),
            lambda inputs: self.model.encode_vocabulary(**inputs),
        )
        return self._ensure_tensor_on_device(vocabulary, self.device)

    def _stored_words(self) -> dict[str, Tensor]:
        """The model's own vocabulary, as `encode_vocabulary` gives others."""
        config, device = self.model.config, self.device
        seen = [index in (config.seen_ids or ()) for index in range(len(config.vocabulary))]
        return {
            "text_embeds": self.model.vocabulary_embeds,
            "text_class_ids": torch.tensor(config.prompt_class_ids, device=device),
            "seen_classes": torch.tensor(seen, device=device),
        }

    def postprocess(
        self,
        model_outputs: ModelOutput,
        classes: list[list[str]] | None = None,
        stuff_labels: list[list[str]] | None = None,
        distractors: list[list[str]] | None = None,
        subtask: str | None = None,
        return_score_maps: bool = False,
        **thresholds: float,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """One picture's outputs -> its segments; see `__call__`."""
        classes, stuff_ids = self._classes_and_stuff(classes, stuff_labels)
        if "masks" in model_outputs:
            named = name_masks(model_outputs, [synonyms[0] for synonyms in classes], **thresholds)
            return [{**info, "mask": mask_image(mask)} for info, mask in named]
        outputs, distractor_ids = _mark_classes(model_outputs, len(classes), stuff_ids)
        segments = find_segments(
            self.processor, outputs, subtask or "panoptic", stuff_ids, distractor_ids, **thresholds
        )
        segments = [_as_result(info, mask, classes) for info, mask in segments]
        if not return_score_maps:
            return segments
        sizes = [tuple(size) for size in outputs["target_sizes"].tolist()]
        maps = self.processor.post_process_score_maps(outputs, target_sizes=sizes, distractor_ids=distractor_ids)[0]
        return {"segments": segments, "labels": [synonyms[0] for synonyms in classes], **maps}

    def _segment_in_tiles(
        self, picture: Any, forward: dict[str, Any], post: dict[str, Any], batch_size: int
    ) -> list[dict[str, Any]]:
        """A picture read part by part; `forward` and `post` as `_forward` and `postprocess` take them."""
        post = dict(post)
        tile_size, overlap = post.pop("tile_size"), post.pop("tile_overlap", None)
        overlap = check_tiling(tile_size, overlap, self.processor.image_processor.size_divisor)
        if isinstance(picture, EncodedPicture):
            raise ValueError("`tile_size` takes a picture itself: one that is encoded is no longer in parts.")
        post.pop("return_score_maps", None)
        classes, stuff_ids = self._classes_and_stuff(post.pop("classes", None), post.pop("stuff_labels", None))
        post.pop("distractors", None)
        subtask = post.pop("subtask", None) or "panoptic"
        picture = read_picture(picture, **self._preprocess_params)
        size = (picture.height, picture.width)
        tiles = plan_tiles(size, tile_size, overlap)
        seams = make_seams(subtask, size, tiles, stuff_ids, self.processor.image_processor.semantic_resize)
        for start in range(0, len(tiles), batch_size):
            batch = tiles[start : start + batch_size]
            inputs = [self.preprocess(picture.crop(tile.box)) for tile in batch]
            outputs = self.forward({name: [one[name] for one in inputs] for name in inputs[0]}, **forward)
            for index, tile in enumerate(batch):
                its = ModelOutput({name: values[index][None] for name, values in outputs.items()})
                its, distractor_ids = _mark_classes(its, len(classes), stuff_ids)
                seams.add(tile, _find_in_tile(self.processor, its, subtask, stuff_ids, distractor_ids, **post))
        return [_as_result(info, mask, classes) for info, mask in seams.result()]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor in one folder, from which `pipeline` makes this again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def classes_and_stuff(
        self,
        candidate_labels: Sequence[ClassName] | None = None,
        stuff_labels: Sequence[ClassName] | None = None,
    ) -> tuple[list[list[str]], list[int]]:
        """Synonyms of every class and the indices of stuff in a call with these words; raises as the call does."""
        _, _, parameters = self._sanitize_parameters(candidate_labels, stuff_labels)
        return self._classes_and_stuff(parameters.get("classes"), parameters.get("stuff_labels"))

    def _labels(self, classes: list[list[str]] | None) -> list[list[str]]:
        """The words in force: those of the call, else those stored in the model."""
        classes = self.model.config.vocabulary if classes is None else classes
        if classes is None:
            raise ValueError("The model stores no vocabulary: pass `candidate_labels`, or use `model.set_vocabulary`.")
        return classes

    def _classes_and_stuff(self, classes, stuff_labels) -> tuple[list[list[str]], list[int]]:
        """The words in force and which of them are stuff."""
        labels = self._labels(classes)
        if classes is None and stuff_labels is None:
            return labels, list(self.model.config.stuff_ids or [])
        return labels, find_label_ids(labels, stuff_labels)


class _RecentVocabularies:
    """The last few encoded vocabularies, for several threads; a copy in another process starts empty."""

    def __init__(self, size: int):
        self._size = size
        self._kept: OrderedDict[tuple, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return type(self), (self._size,)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple, tokenize: Callable[[], Any], encode: Callable[[Any], dict]) -> dict[str, Tensor]:
        """What is kept under `key`, else what `encode` makes of what `tokenize` returns."""
        with self._lock:  # tokenizers are no better than a dictionary at serving two threads at once
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            prompts = tokenize()
        vocabulary = encode(prompts)
        with self._lock:
            self._kept[key] = vocabulary
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return vocabulary


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _stack_inputs(inputs: list[dict[str, Tensor]], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The inputs of pictures of one padded size as those of one batch, in the network's place and precision."""
    batch = {name: torch.cat([one[name] for one in inputs]).to(device) for name in ("pixel_values", "pixel_mask")}
    return {**batch, "pixel_values": batch["pixel_values"].to(dtype)}


def _join_vocabularies(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """One vocabulary: the classes of `second` after those of `first`."""
    second = {**second, "text_class_ids": second["text_class_ids"] + len(first["seen_classes"])}
    return {name: torch.cat([first[name], second[name].to(first[name])]) for name in first}


def _as_result(info: dict[str, Any], mask: Tensor, classes: list[list[str]]) -> dict[str, Any]:
    """A segment as the pipeline returns it."""
    second = info["second_label_id"]
    return {
        "score": info["score"],
        "label": classes[info["label_id"]][0],
        "label_id": info["label_id"],
        "second_label": None if second is None else classes[second][0],
        "second_score": info["second_score"],
        "mask": mask_image(mask),
    }


def _mark_classes(
    model_outputs: ModelOutput, num_labels: int, stuff_ids: Sequence[int]
) -> tuple[ModelOutput, Sequence[int]]:
    """The outputs with what post-processing reads of classes, and the distractors, which stand after the labels."""
    num_classes = model_outputs["class_queries_logits"].shape[-1] - 1
    stuff = torch.zeros(1, num_classes, dtype=torch.bool)
    stuff[0, stuff_ids] = True
    return ModelOutput({**model_outputs, "stuff_classes": stuff}), range(num_labels, num_classes)


def _find_in_tile(processor: Any, outputs: ModelOutput, subtask: str, *ids: Sequence[int], **thresholds: float):
    """What the seams of a subtask take: segments, or for a semantic result what they are made of."""
    if subtask != "semantic":
        return find_segments(processor, outputs, subtask, *ids, **thresholds)
    sizes = [tuple(size) for size in outputs["target_sizes"].tolist()]
    return next(read_predictions(outputs, sizes, distractor_ids=ids[1]))


def _check_prompt_options(classes: list[list[str]] | None, forward: dict[str, Any]) -> None:
    """The stored words are encoded already: how words become prompts has no effect on them."""
    for name in ("templates", "training_classes"):
        if classes is None and name in forward:
            raise ValueError(f"`{name}` has no effect on the words stored in the model; pass `candidate_labels`.")


def _check_postprocess_names(parameters: dict[str, Any]) -> None:
    known = ("subtask", *THRESHOLDS["panoptic"])
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"Unknown argument {', '.join(unknown)}; this pipeline takes {', '.join(known)}, return_score_maps, "
            "templates, training_classes, flip_average, masks, tile_size, tile_overlap and the labels."
        )
    subtask = parameters.get("subtask")
    if subtask not in (None, *SUBTASKS):
        raise ValueError(f"`subtask` must be one of {', '.join(SUBTASKS)}, got {subtask!r}.")
    check_thresholds(subtask, parameters)


def check_thresholds(subtask: str | None, parameters: dict[str, Any]) -> None:
    """
    Args:
        subtask: One of `SUBTASKS`; `None`: whichever, only the range is looked at.
        parameters: Thresholds by name, among others.

    Raises:
        ValueError: on a threshold that the subtask does not read, which would be ignored, or one outside of [0, 1].
    """
    given = {name: parameters[name] for name in THRESHOLDS["panoptic"] if name in parameters}
    for name in given:
        if subtask is not None and name not in THRESHOLDS[subtask]:
            raise ValueError(f"`{name}` has no effect on {subtask} results; leave it out.")
    check_shares(**given)


def _frozen(names: Sequence | None) -> tuple | None:
    return None if names is None else tuple(name if isinstance(name, str) else tuple(name) for name in names)


def find_segments(
    processor: Any,
    outputs: ModelOutput,
    subtask: str,
    stuff_ids: Sequence[int],
    distractor_ids: Sequence[int] = (),
    **thresholds: float,
) -> list[tuple[dict[str, Any], Tensor]]:
    """What is said of every segment of one picture, and its mask (h, w) bool, in the order of the post-processing."""
    options = {"target_sizes": [tuple(size) for size in outputs["target_sizes"].tolist()]}
    options["distractor_ids"] = distractor_ids
    if distractor_ids and subtask != "semantic":
        thresholds = {"min_margin": MARGIN_AMONG_DISTRACTORS, **thresholds}
    if subtask == "semantic":
        labels = processor.post_process_semantic_segmentation(outputs, **options)[0]
        nothing = {"score": None, "second_label_id": None, "second_score": None}
        return [({"label_id": int(label), **nothing}, labels == label) for label in labels.unique() if label >= 0]
    if subtask == "instance":
        result = processor.post_process_instance_segmentation(
            outputs, return_binary_maps=True, **options, **thresholds
        )[0]
        return [(info, mask > 0) for info, mask in zip(result["segments_info"], result["segmentation"])]
    result = processor.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=set(stuff_ids), **options, **thresholds
    )[0]
    return [(info, result["segmentation"] == info["id"]) for info in result["segments_info"]]


__all__ = ["EncodedPicture", "MaftPlusSegmentationPipeline", "check_thresholds"]
