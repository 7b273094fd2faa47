"""The pipeline: pictures and words in, segments out.

It travels with the processor, whose module offers it under the name that saved configurations hold.
Shapes: B pictures of one step, K classes, Q queries, h x w a picture.
"""

import os
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline
from transformers.utils import ModelOutput

from .postprocessing_maftplus import check_shares
from .reading_maftplus import read_picture
from .words_maftplus import ClassName, as_list, find_label_ids

THRESHOLDS = {  # that a subtask reads
    "panoptic": ("threshold", "mask_threshold", "overlap_mask_area_threshold"),
    "instance": ("threshold", "mask_threshold"),
    "semantic": (),
}
SUBTASKS = tuple(THRESHOLDS)
CACHED_VOCABULARIES = 8  # per pipeline; a vocabulary is a few hundred kilobytes
KEPT_OUTPUTS = ("class_queries_logits", "masks_queries_logits", "unpadded_sizes", "padded_sizes")


class MaftPlusSegmentationPipeline(Pipeline):
    """
    Pictures and words in, segments out: `pipeline("image-segmentation", model=folder, trust_remote_code=True)`.

    Class embeddings are computed once for a vocabulary and kept for the next calls of this object. The pictures of a
    batch may differ in size: the network sees those of one padded size together, so that no result depends on the
    others of its batch.

    Raises:
        ValueError: without a processor, or with one whose tokenizer is not that of the model's text tower.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        self._vocabularies: OrderedDict[tuple, dict[str, Tensor]] = OrderedDict()
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("`processor` is missing: pass a MaftPlusProcessor or a model folder that holds one.")
        self.processor.check_text_tower(self.model.config.clip_config.text_config)

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[ClassName] | None = None,
        stuff_labels: Sequence[ClassName] | None = None,
        timeout: float | None = None,
        max_bytes: int | None = None,
        **postprocess: Any,
    ) -> tuple[dict, dict, dict]:
        postprocess = {name: value for name, value in postprocess.items() if value is not None}
        _check_postprocess_names(postprocess)
        limits = {"timeout": timeout, "max_bytes": max_bytes}
        preprocess = {name: value for name, value in limits.items() if value is not None}
        forward = {}
        if candidate_labels is not None:
            forward["classes"] = postprocess["classes"] = self.processor.split_labels(candidate_labels)
        if stuff_labels is not None:
            stuff_labels = as_list(stuff_labels)
            postprocess["stuff_labels"] = self.processor.split_labels(stuff_labels) if stuff_labels else []
        return preprocess, forward, postprocess

    def __call__(
        self, inputs: Any = None, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Args:
            inputs: A picture or a list of pictures, each a path, a URL or a PIL image (`images=` works too).
            candidate_labels (`list`, *optional*): Class names: strings with synonyms separated by commas, or lists of
                synonyms. Default: the vocabulary stored in the model.
            stuff_labels (`list`, *optional*): Those of them that are stuff: merged in panoptic results, left out of
                instances. Default: the stored vocabulary's, or none.
            subtask (`str`, *optional*, defaults to `"panoptic"`): Or `"instance"` or `"semantic"`.
            threshold, mask_threshold, overlap_mask_area_threshold (`float`, *optional*): See the image processor.
            num_workers, batch_size (`int`, *optional*): Processes that read pictures; pictures a step.
            timeout (`float`, *optional*, defaults to 60): Seconds that fetching a URL may take in all.
            max_bytes (`int`, *optional*, defaults to 256 MiB): Most bytes that a URL may hold.

        Returns:
            For each picture a list of `{"label", "label_id", "score", "mask"}`: the class's first synonym, its index,
            a score in [0, 1] (`None` for semantic results) and a black and white PIL image of the picture's size.

        Raises:
            ValueError: without labels, on labels, stuff labels, a subtask or a picture that cannot be used, on
                thresholds outside of [0, 1], and on those that the subtask does not read.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("Give at least one picture: a path, a URL or a PIL image.")
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs
        for name in kwargs.keys() & {"candidate_labels", "stuff_labels"}:  # read twice: here and by the base class
            kwargs[name] = None if kwargs[name] is None else as_list(kwargs[name])
        given = self._sanitize_parameters(**kwargs)[2]
        post = {**self._postprocess_params, **given}
        check_thresholds(post.get("subtask"), given)
        self._classes_and_stuff(post.get("classes"), post.get("stuff_labels"))  # refuses bad words before any picture
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, num_workers=num_workers, batch_size=batch_size, **kwargs)

    def preprocess(self, image: Any, timeout: float | None = None, max_bytes: int | None = None) -> dict[str, Any]:
        """A picture -> `inputs` (`pixel_values` (1, 3, H, W), `pixel_mask` (1, H, W)) and `target_size`."""
        picture = read_picture(image, timeout=timeout, max_bytes=max_bytes)
        inputs = self.processor(images=picture, return_tensors="pt")
        return {"inputs": dict(inputs), "target_size": (picture.height, picture.width)}

    def _forward(self, model_inputs: dict[str, Any], classes: list[list[str]] | None = None) -> ModelOutput:
        """One picture's outputs with a batch of one, or lists of those of each, in the batch's order."""
        inputs, target_sizes = model_inputs["inputs"], model_inputs["target_size"]
        if not isinstance(inputs, list):
            (outputs,) = self._segment([inputs], [target_sizes], classes)
            return ModelOutput({name: value[None] for name, value in outputs.items()})
        groups = defaultdict(list)
        for index, one in enumerate(inputs):
            groups[one["pixel_values"].shape].append(index)
        results = [None] * len(inputs)
        for indices in groups.values():
            outputs = self._segment([inputs[i] for i in indices], [target_sizes[i] for i in indices], classes)
            for index, one in zip(indices, outputs):
                results[index] = one
        return ModelOutput({name: [one[name] for one in results] for name in results[0]})

    def _segment(
        self, inputs: list[dict[str, Tensor]], target_sizes: list[tuple[int, int]], classes: list[list[str]] | None
    ) -> list[dict[str, Tensor]]:
        """Pictures of one padded size through the network; the outputs of each, without a batch axis."""
        batch = {name: torch.cat([one[name] for one in inputs]) for name in ("pixel_values", "pixel_mask")}
        batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
        outputs = self.model(**batch, **self._vocabulary(classes))
        kept = {name: outputs[name] for name in KEPT_OUTPUTS} | {"target_sizes": torch.tensor(target_sizes)}
        return [{name: value[index] for name, value in kept.items()} for index in range(len(inputs))]

    def _vocabulary(self, classes: list[list[str]] | None) -> dict[str, Tensor]:
        """Class embeddings of the words, computed unless they are among the last few; none for the stored ones."""
        if classes is None:
            return {}
        key = (_frozen(classes), _frozen(self.processor.templates), _frozen(self.processor.training_classes))
        if key not in self._vocabularies:
            prompts = self.processor(text=classes, return_tensors="pt")
            self._vocabularies[key] = self.model.encode_vocabulary(**prompts)
            if len(self._vocabularies) > CACHED_VOCABULARIES:
                self._vocabularies.popitem(last=False)
        self._vocabularies.move_to_end(key)
        return self._ensure_tensor_on_device(self._vocabularies[key], self.device)

    def postprocess(
        self,
        model_outputs: ModelOutput,
        classes: list[list[str]] | None = None,
        stuff_labels: list[list[str]] | None = None,
        subtask: str | None = None,
        **thresholds: float,
    ) -> list[dict[str, Any]]:
        """One picture's outputs -> its segments; see `__call__`."""
        classes, stuff_ids = self._classes_and_stuff(classes, stuff_labels)
        stuff = torch.zeros(1, len(classes), dtype=torch.bool)
        stuff[0, stuff_ids] = True
        outputs = ModelOutput({**model_outputs, "stuff_classes": stuff})
        segments = find_segments(self.processor, outputs, subtask or "panoptic", stuff_ids, **thresholds)
        return [
            {"score": score, "label": classes[label_id][0], "label_id": label_id, "mask": mask_image(mask)}
            for label_id, score, mask in segments
        ]

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

    def _classes_and_stuff(self, classes, stuff_labels) -> tuple[list[list[str]], list[int]]:
        """The words in force and which of them are stuff: those of the call, else those stored in the model."""
        stored = classes is None
        classes = self.model.config.vocabulary if stored else classes
        if classes is None:
            raise ValueError("The model stores no vocabulary: pass `candidate_labels`, or use `model.set_vocabulary`.")
        if stored and stuff_labels is None:
            return classes, list(self.model.config.stuff_ids or [])
        return classes, find_label_ids(classes, stuff_labels)


def _check_postprocess_names(parameters: dict[str, Any]) -> None:
    known = ("subtask", *THRESHOLDS["panoptic"])
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"Unknown argument {', '.join(unknown)}; this pipeline takes {', '.join(known)} and the labels."
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
    if names is None:
        return None
    return tuple(name if isinstance(name, str) else tuple(name) for name in names)


def find_segments(
    processor: Any, outputs: ModelOutput, subtask: str, stuff_ids: Sequence[int], **thresholds: float
) -> list[tuple[int, float | None, Tensor]]:
    """Class, score and mask (h, w) bool of every segment of one picture, in the order of the post-processing."""
    sizes = [tuple(size) for size in outputs["target_sizes"].tolist()]
    if subtask == "semantic":
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0]
        return [(int(label), None, labels == label) for label in labels.unique()]
    if subtask == "instance":
        result = processor.post_process_instance_segmentation(
            outputs, target_sizes=sizes, return_binary_maps=True, **thresholds
        )[0]
        pairs = zip(result["segments_info"], result["segmentation"])
        return [(info["label_id"], info["score"], mask > 0) for info, mask in pairs]
    result = processor.post_process_panoptic_segmentation(
        outputs, target_sizes=sizes, label_ids_to_fuse=set(stuff_ids), **thresholds
    )[0]
    infos, ids = result["segments_info"], result["segmentation"]
    return [(info["label_id"], info["score"], ids == info["id"]) for info in infos]


def mask_image(mask: Tensor) -> Image.Image:
    """(h, w) bool -> black and white picture (0 and 255)."""
    return Image.fromarray(mask.numpy().astype(np.uint8) * 255)


__all__ = ["MaftPlusSegmentationPipeline", "check_thresholds"]
