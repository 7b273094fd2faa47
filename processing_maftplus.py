"""Words to prompts to tokens, pictures to pixels, and both in one call: the processor.

Sources: arXiv 2408.00744, section 4.1 (prompts and synonyms); the 14 templates are ViLD's, arXiv 2104.13921.
A class is a string with synonyms separated by commas ("person, man, woman"), or a list of synonyms, in which nothing
is split. Every synonym is put into every template; `&amp;` and its like are read as in CLIP, twice.
Shapes: B images, K classes, P synonyms, N prompts (P times the number of templates), T tokens of the longest prompt.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack
from transformers.utils import logging

from .image_processing_maftplus import MaftPlusImageProcessorKwargs, MaftPlusImageProcessorMixin
from .pipeline_maftplus import MaftPlusSegmentationPipeline  # saved configurations name it as this module's
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

MAX_SHOWN = 5  # words that a warning names
MAX_TOKENS = 77  # CLIP's context: the longest prompt any released text tower reads

Method = TypeVar("Method", bound=Callable)


def cut_tokens(row: list[int], limit: int) -> list[int]:
    """A prompt's ids cut to `limit` as CLIP cuts them: the end token stays last."""
    return row if len(row) <= limit else row[: limit - 1] + row[-1:]


def by_image_processor(method: Method) -> Method:
    """The processor's own method of the same name, arguments and docstring: its image processor does the work."""

    @wraps(method)
    def call(self, *args, **kwargs):
        return getattr(self.image_processor, method.__name__)(*args, **kwargs)

    return call


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
        do_split_synonyms (`bool`, defaults to `True`):
            Whether commas in a string separate synonyms; MAFT takes a string as one name.
    """

    valid_processor_kwargs = MaftPlusProcessorKwargs

    def __init__(
        self,
        image_processor,
        tokenizer,
        templates: str | Sequence[str] | None = VILD_TEMPLATES,
        training_classes: Sequence[ClassName] | None = None,
        do_split_synonyms: bool = True,
    ):
        self.do_split_synonyms = do_split_synonyms
        self.templates = None if templates is None else as_list(templates)
        self.training_classes = None if training_classes is None else self.split_labels(training_classes)
        super().__init__(image_processor, tokenizer)
        check_tokenizer(tokenizer)

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
            ValueError: if both `images` and `text` are missing, on labels that `parse_classes` refuses, and as the
                image processor.
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
        classes = self.split_labels(labels)
        self._tell_strange_words(classes)
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
        options = {"padding": False, "truncation": False, "verbose": False}
        options["split_special_tokens"] = True  # "<|endoftext|>" in a name is text, it ends nothing
        rows = self.tokenizer(texts, **options)["input_ids"]
        cut = {class_id for row, class_id in zip(rows, prompts.class_ids) if len(row) > limit}
        for class_id in sorted(cut):
            name = ", ".join(classes[class_id])
            logger.warning(f"Label {name!r} makes prompts over {limit} tokens; they are cut there.")
        return [cut_tokens(row, limit) for row in rows]

    def _tell_strange_words(self, classes: list[list[str]]) -> None:
        """One line for all words that the text tower cannot know."""
        names = dict.fromkeys(word for synonyms in classes for name in synonyms for word in unescape(name).split())
        strange = [word for word in names if self._is_strange(word)]
        if strange:
            shown = ", ".join(map(repr, strange[:MAX_SHOWN])) + (" and others" if len(strange) > MAX_SHOWN else "")
            logger.warning_once(
                f"The text tower has hardly met {shown} in training (the tokenizer spells that out letter by letter); "
                "results for it mean little."
            )

    def _is_strange(self, word: str) -> bool:
        """Whether tokens are hardly longer than letters: byte pairs of frequent words are merged to one or two."""
        num_tokens = len(self.tokenizer.tokenize(word))
        return num_tokens >= 3 and 2 * num_tokens >= len(word.encode("utf-8"))

    def split_labels(self, labels: ClassName | Sequence[ClassName]) -> list[list[str]]:
        """Synonyms of every class; see `parse_classes`."""
        return parse_classes(labels, self.do_split_synonyms)

    def label_ids(self, classes: list[list[str]], labels: Sequence[ClassName] | None) -> list[int]:
        """Where `labels` (such as the stuff) stand among `classes`; see `find_label_ids`."""
        return find_label_ids(classes, self.split_labels(labels) if labels else labels)

    @property
    def model_input_names(self) -> list[str]:
        text = ["input_ids", "attention_mask", "prompt_class_ids", "prompt_synonym_ids"]
        return list(dict.fromkeys([*self.image_processor.model_input_names, *text]))

    post_process_semantic_segmentation = by_image_processor(
        MaftPlusImageProcessorMixin.post_process_semantic_segmentation
    )
    post_process_score_maps = by_image_processor(MaftPlusImageProcessorMixin.post_process_score_maps)
    post_process_instance_segmentation = by_image_processor(
        MaftPlusImageProcessorMixin.post_process_instance_segmentation
    )
    post_process_panoptic_segmentation = by_image_processor(
        MaftPlusImageProcessorMixin.post_process_panoptic_segmentation
    )

    def check_text_tower(self, text_config: Any) -> None:
        """Raises ValueError unless the tokenizer is that of a model's text tower; see `check_tokenizer`."""
        check_tokenizer(self.tokenizer, text_config)


def check_tokenizer(tokenizer: Any, text_config: Any = None) -> None:
    """
    Whether words get ids that a text tower knows; it reads its feature at the end token, so both must mean the same.

    Args:
        tokenizer: CLIP's.
        text_config: The text tower's configuration; `None`: only whether the tokenizer knows any letter.

    Raises:
        ValueError: if it knows none, as one whose files are missing, or is another model's.
    """
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    if set(tokenizer("a")["input_ids"]) <= special:
        raise ValueError(
            "The tokenizer knows no letter, so all words would look alike: `tokenizer.json` is missing from the model "
            "folder. Save the processor into it, or convert the checkpoint with `--tokenizer`."
        )
    if text_config is None:
        return
    largest, end = max(tokenizer.get_vocab().values()), tokenizer.eos_token_id
    wanted = largest if text_config.eos_token_id == 2 else text_config.eos_token_id  # 2 in CLIP's old files: the last
    if largest >= text_config.vocab_size or end != wanted:
        raise ValueError(
            f"The tokenizer is another model's: ids up to {largest}, end token {end}; the text tower has "
            f"{text_config.vocab_size} tokens, end token {text_config.eos_token_id}. Give the one that it was trained "
            "with (`tokenizer`, `--tokenizer`)."
        )


MaftPlusProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VILD_TEMPLATES", "MaftPlusProcessor", "MaftPlusSegmentationPipeline", "check_tokenizer"]
