"""Words to prompts to tokens, pictures to pixels, and both in one call: the processor and the pipeline.

Sources: arXiv 2408.00744, section 4.1 (prompts and synonyms); the 14 templates are ViLD's, arXiv 2104.13921.
A class is a string with synonyms separated by commas ("person, man, woman"), or a list of synonyms, in which nothing
is split. Every synonym is put into every template; `&amp;` and its like are read as in CLIP, twice.
Shapes: B images, K classes, P synonyms, N prompts (P times the number of templates), T tokens of the longest prompt.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, Pipeline, ProcessorMixin
from transformers.image_utils import ImageInput, load_image
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack
from transformers.utils import ModelOutput, logging

from .image_processing_maftplus import MaftPlusImageProcessorKwargs, check_shares, read_picture
from .words_maftplus import (
    VILD_TEMPLATES,
    ClassName,
    Prompts,
    as_list,
    build_prompts,
    find_label_ids,
    find_seen_classes,
    parse_classes,
    unescape,
)

logger = logging.get_logger(__name__)

MAX_TOKENS = 77  # CLIP's context: the longest prompt any released text tower reads
THRESHOLDS = {  # that a subtask reads
    "panoptic": ("threshold", "mask_threshold", "overlap_mask_area_threshold"),
    "instance": ("threshold", "mask_threshold"),
    "semantic": (),
}
SUBTASKS = tuple(THRESHOLDS)
INSTANCE_THRESHOLD = 0.2  # what people see; post-processing itself keeps every instance, as metrics need
CACHED_VOCABULARIES = 8  # per pipeline; a vocabulary is a few hundred kilobytes


def cut_tokens(row: list[int], limit: int) -> list[int]:
    """A prompt's ids cut to `limit` as CLIP cuts them: the end token stays last."""
    return row if len(row) <= limit else row[: limit - 1] + row[-1:]


class MaftPlusTextKwargs(TextKwargs, total=False):
    """
    templates (`list[str]`, *optional*): Sentences with `{}` for the name, for this call.
    training_classes (`list`, *optional*): Classes seen in training, for this call.
    """

    templates: str | list | tuple | None
    training_classes: list | tuple | None


class MaftPlusProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: MaftPlusTextKwargs
    images_kwargs: MaftPlusImageProcessorKwargs
    _defaults = {}  # transformers 5.17 reads it


class MaftPlusProcessor(ProcessorMixin):
    r"""
    Pictures and words for the model, the model's outputs for people.

    Args:
        image_processor (`MaftPlusImageProcessor`): Sizes, normalisation, padding, label maps, post-processing.
        tokenizer (`CLIPTokenizer`): The text tower's tokenizer.
        templates (`list[str]`, *optional*, defaults to ViLD's 14):
            Sentences with `{}` for the name; `None`: the name alone.
        training_classes (`list`, *optional*):
            Classes seen in training (strings or lists of synonyms); with them `seen_classes` is returned, which
            FC-CLIP's ensemble reads.
    """

    valid_processor_kwargs = MaftPlusProcessorKwargs

    def __init__(
        self,
        image_processor,
        tokenizer,
        templates: str | Sequence[str] | None = VILD_TEMPLATES,
        training_classes: Sequence[ClassName] | None = None,
    ):
        self.templates = None if templates is None else as_list(templates)
        self.training_classes = None if training_classes is None else parse_classes(training_classes)
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: ClassName | Sequence[ClassName] | None = None,
        segmentation_maps: ImageInput | None = None,
        instance_id_to_semantic_id: list[dict[int, int]] | dict[int, int] | None = None,
        **kwargs: Unpack[MaftPlusProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: Whatever the image processor takes.
            text: Class names: strings with synonyms separated by commas, or lists of synonyms. A string alone is one
                class.
            segmentation_maps, instance_id_to_semantic_id: Label maps of the images; see the image processor.
            kwargs: For the image processor and the words; `templates` and `training_classes` replace the stored ones.

        Returns:
            With images `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W); with maps also `mask_labels` and
            `class_labels`; with text `input_ids` and `attention_mask` (N, T), `prompt_class_ids` and
            `prompt_synonym_ids` (N,), and `seen_classes` (K,) where training classes are known.

        Raises:
            ValueError: if both `images` and `text` are missing, or on labels that `parse_classes` refuses.
        """
        if images is None and text is None:
            raise ValueError("Give `images`, `text` (class names) or both.")
        if images is None and segmentation_maps is not None:
            raise ValueError("`segmentation_maps` needs the `images` they belong to.")
        init_kwargs = self.tokenizer.init_kwargs
        merged = self._merge_kwargs(MaftPlusProcessorKwargs, tokenizer_init_kwargs=init_kwargs, **kwargs)
        data = BatchFeature()
        if images is not None:
            maps = (segmentation_maps, instance_id_to_semantic_id)
            data.update(self.image_processor(images, *maps, **merged["images_kwargs"]))
        if text is not None:
            data.update(self.encode_labels(text, **merged["text_kwargs"]))
        return data

    def encode_labels(
        self,
        labels: ClassName | Sequence[ClassName],
        return_tensors: str | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """The text part of a call; see there. Prompts are padded to the longest unless `padding="max_length"`."""
        classes = parse_classes(labels)
        prompts = build_prompts(classes, kwargs.get("templates", self.templates))
        limit = min(max_length or MAX_TOKENS, self.tokenizer.model_max_length)
        rows = self._tokenize(prompts, classes, limit)
        width = limit if padding == "max_length" else max(map(len, rows))
        data = {
            "input_ids": [row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (width - len(row)) for row in rows],
            "prompt_class_ids": prompts.class_ids,
            "prompt_synonym_ids": prompts.synonym_ids,
        }
        training_classes = kwargs.get("training_classes", self.training_classes)
        if training_classes is not None:
            data["seen_classes"] = find_seen_classes(classes, training_classes)
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize(self, prompts: Prompts, classes: list[list[str]], limit: int) -> list[list[int]]:
        """Token ids of every prompt, cut to `limit` with a warning that names the class."""
        texts = [unescape(text) for text in prompts.texts]
        rows = self.tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        cut = {class_id for row, class_id in zip(rows, prompts.class_ids) if len(row) > limit}
        for class_id in sorted(cut):
            name = ", ".join(classes[class_id])
            logger.warning(f"Label {name!r} makes prompts over {limit} tokens; they are cut there.")
        return [cut_tokens(row, limit) for row in rows]

    def split_labels(self, labels: ClassName | Sequence[ClassName]) -> list[list[str]]:
        """Synonyms of every class; see `parse_classes`."""
        return parse_classes(labels)

    def label_ids(self, classes: list[list[str]], labels: Sequence[ClassName] | None) -> list[int]:
        """Where `labels` (such as the stuff) stand among `classes`; see `find_label_ids`."""
        return find_label_ids(classes, labels)

    @property
    def model_input_names(self) -> list[str]:
        text = ["input_ids", "attention_mask", "prompt_class_ids", "prompt_synonym_ids"]
        return list(dict.fromkeys([*self.image_processor.model_input_names, *text]))

    def post_process_semantic_segmentation(self, outputs, *args, **kwargs):
        """See the image processor."""
        return self.image_processor.post_process_semantic_segmentation(outputs, *args, **kwargs)

    def post_process_instance_segmentation(self, outputs, *args, **kwargs):
        """See the image processor."""
        return self.image_processor.post_process_instance_segmentation(outputs, *args, **kwargs)

    def post_process_panoptic_segmentation(self, outputs, *args, **kwargs):
        """See the image processor."""
        return self.image_processor.post_process_panoptic_segmentation(outputs, *args, **kwargs)


class MaftPlusSegmentationPipeline(Pipeline):
    """
    Pictures and words in, segments out: `pipeline("image-segmentation", model=folder, trust_remote_code=True)`.

    Class embeddings are computed once for a vocabulary and kept for the next calls of this object. The pictures of a
    batch may differ in size: they are padded to the largest, as in training, so a result depends a little on its
    batch.
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

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[ClassName] | None = None,
        stuff_labels: Sequence[ClassName] | None = None,
        timeout: float | None = None,
        **postprocess: Any,
    ) -> tuple[dict, dict, dict]:
        postprocess = {name: value for name, value in postprocess.items() if value is not None}
        _check_postprocess_names(postprocess)
        preprocess = {} if timeout is None else {"timeout": timeout}
        forward = {}
        if candidate_labels is not None:
            forward["classes"] = postprocess["classes"] = parse_classes(candidate_labels)
        if stuff_labels is not None:
            stuff_labels = as_list(stuff_labels)
            postprocess["stuff_labels"] = parse_classes(stuff_labels) if stuff_labels else []
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
            threshold, mask_threshold, overlap_mask_area_threshold (`float`, *optional*): See the image processor; the
                least score of an instance is 0.2 here unless `threshold` says otherwise.
            num_workers, batch_size (`int`, *optional*): Processes that read pictures; pictures a step.
            timeout (`float`, *optional*): Seconds to wait for a URL.

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

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        """A picture -> `inputs` (`pixel_values` (1, 3, H, W), `pixel_mask` (1, H, W)) and `target_size`."""
        picture = open_picture(image, timeout=timeout)
        inputs = self.processor(images=picture, return_tensors="pt")
        return {"inputs": dict(inputs), "target_size": (picture.height, picture.width)}

    def _forward(self, model_inputs: dict[str, Any], classes: list[list[str]] | None = None) -> ModelOutput:
        inputs, target_sizes = model_inputs["inputs"], model_inputs["target_size"]
        if not isinstance(inputs, list):
            inputs, target_sizes = [inputs], [target_sizes]
        batch = pad_to_largest(inputs)
        batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
        outputs = self.model(**batch, **self._vocabulary(classes))
        kept = ("class_queries_logits", "masks_queries_logits", "unpadded_sizes", "padded_sizes")
        return ModelOutput({name: outputs[name] for name in kept} | {"target_sizes": torch.tensor(target_sizes)})

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


def open_picture(image: Any, timeout: float | None = None) -> Image.Image:
    """
    A picture (path, URL, PIL image, array) as PIL image: RGB, 8 bits, upright. `timeout`: seconds to wait for a URL.

    Raises:
        ValueError: if it cannot be read (broken, no picture, far too large, no such file); the message names it.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        try:
            image = load_image(image, timeout=timeout)
        except Exception as error:  # what fetching raises depends on the version of the library that fetches
            raise ValueError(f"{image}: cannot be fetched as a picture ({error}).") from error
    return read_picture(image)


def pad_to_largest(inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pictures of several sizes in one batch: zeros at the bottom and right, as the image processor pads."""
    height, width = (max(one["pixel_values"].shape[axis] for one in inputs) for axis in (-2, -1))

    def grow(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))

    return {name: torch.cat([grow(one[name]) for one in inputs]) for name in ("pixel_values", "pixel_mask")}


def find_segments(
    processor: Any, outputs: ModelOutput, subtask: str, stuff_ids: Sequence[int], **thresholds: float
) -> list[tuple[int, float | None, Tensor]]:
    """Class, score and mask (h, w) bool of every segment of one picture, in the order of the post-processing."""
    sizes = [tuple(size) for size in outputs["target_sizes"].tolist()]
    if subtask == "semantic":
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0]
        return [(int(label), None, labels == label) for label in labels.unique()]
    if subtask == "instance":
        thresholds = {"threshold": INSTANCE_THRESHOLD, **thresholds}
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


MaftPlusProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VILD_TEMPLATES", "MaftPlusProcessor", "MaftPlusSegmentationPipeline"]
