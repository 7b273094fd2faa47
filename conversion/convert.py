"""Released checkpoints and CLIP weights -> folders that `from_pretrained` loads: `maftplus convert SOURCE OUT`.

Sources: released MAFT+ (arXiv 2408.00744), FC-CLIP (arXiv 2308.02487), MAFT (arXiv 2310.00240) and the FreeSeg that it
starts from (arXiv 2303.17225), OpenCLIP, OpenAI CLIP.
Names live in `conversion/rename.py`, sizes in `conversion/released.py`, files in `conversion/checkpoint.py`.
Every tensor is renamed, cut or transposed, none is computed: the converted model gives the original's numbers.
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from torch import Tensor
from transformers import (
    AutoModelForUniversalSegmentation,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's top level wants torchvision
from transformers.utils import cached_file, logging

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.conversion.checkpoint import (
    CheckpointError,
    check_new_folders,
    find_weights,
    new_folders,
    read_state,
    require_space,
    write_safetensors,
)
from maftplus.conversion.model_card import model_card
from maftplus.conversion.released import (
    MAFT_KINDS,
    TABLE_OF,
    count_parts,
    describe,
    detect_kind,
    infer_config,
    infer_task,
    main_settings,
    variant_name,
)
from maftplus.conversion.rename import (
    convert_maft_state,
    convert_state,
    dropped,
    original_name,
)
from maftplus.conversion.tokenizer import clip_tokenizer_from_bpe
from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor, check_tokenizer

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
NON_OBJECT_FILE = "non_object_embedding.safetensors"
NON_OBJECT_NAME = "clip_adapter.non_object_embedding"
DEFAULT_TOKENIZER = "openai/clip-vit-base-patch16"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
MAFT_IMAGE_SIZES = {"size": {"shortest_edge": 640, "longest_edge": 2560}}
TEACHER_PREFIXES = {
    "maftplus": "backbone_t.clip_model.",
    "maft": "clip_adapter.clip_model.",
    "freeseg": "clip_adapter.clip_model.",
}
PROPOSER_ADVICE = (
    "This file holds MAFT's CLIP without its mask proposer: masks come from outside. For the full model give "
    "`proposer` (`--proposer`), a Mask2Former or MaskFormer of transformers "
    "(facebook/mask2former-swin-base-coco-panoptic)."
)


@dataclass
class Conversion:
    """What a checkpoint becomes, before anything is written. `tensors` are the checkpoint's, under our names."""

    path: Path
    kind: str
    task: str | None
    config: PreTrainedConfig
    model: PreTrainedModel  # without weights, on the meta device
    tensors: dict[str, Tensor]
    extra_files: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What people call it: "MAFT+ base"."""
        return variant_name(self.config, self.kind)


def convert(
    source: str | Path,
    out: str | Path,
    task: str | None = None,
    config_file: str | Path | None = None,
    tokenizer: str | Path | None = None,
    proposer: str | Path | None = None,
    teacher_out: str | Path | None = None,
    training_classes: list[str | list[str]] | None = None,
    show_progress: bool = False,
    first_masked_layer: int | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """
    Convert a checkpoint to the folder `out`, ready for `from_pretrained` and for the Hub. Nothing is left if it fails.

    Args:
        source: A `.pth`, `.pt`, `.bin` or `.safetensors` file, or a folder that holds one (an OpenCLIP Hub folder).
        out: The new folder.
        task: "semantic" or "panoptic"; default: by the length of the loss's class weights.
        config_file: JSON with fields of the configuration (nested) that replace the released rule.
        tokenizer: A folder, a Hub name, or OpenAI's BPE file; "none" leaves it out. Default: the source's own, an
            installed OpenCLIP's file, else `openai/clip-vit-base-patch16` from the Hub.
        proposer: MAFT: a folder (or Hub name) with a transformers model that proposes masks in place of its own.
        teacher_out: Another new folder, apart from `out`, for the frozen CLIP of training; both appear, or neither.
        training_classes: Classes seen in training, kept by the processor (FC-CLIP's ensemble reads them).
        show_progress: Draw a progress bar on the terminal.
        first_masked_layer: MAFT: the first layer of the ViT that reads masks. Default: 8, which the released code has
            for every tower; for `MAFT_Vitl.pt` its author names 16.
        notes: Sentences to add to the card's own.

    Returns:
        `out`.
    Raises:
        CheckpointError: if the checkpoint cannot be read or does not fit, or the folder cannot be written.
    """
    source, out = Path(source), Path(out)
    outs = [out] if teacher_out is None else [out, Path(teacher_out)]
    check_new_folders(outs)  # before the long part
    state, path = read_state(source), find_weights(source)
    overrides = read_overrides(config_file)
    if first_masked_layer is not None:
        overrides["clip_config"] = {**overrides.get("clip_config", {}), "first_masked_layer": first_masked_layer}
    conversion = plan_conversion(state, path, task, overrides, proposer)
    conversion.notes += notes
    conversions = [conversion] if teacher_out is None else [conversion, plan_teacher(state, conversion)]
    processor = build_processor(conversion, load_tokenizer(tokenizer, source), training_classes)
    with new_folders(outs) as folders:
        for part, folder in zip(conversions, folders):
            _write(part, processor, folder, show_progress)
    return out


def inspect_checkpoint(
    source: str | Path, task: str | None = None, config_file: str | Path | None = None
) -> dict[str, Any]:
    """
    What a checkpoint is and what `convert` would make of it; reads no tensor data. Raises CheckpointError.

    Returns:
        `dict` with `file`, `kind`, `variant`, `contents` (a sentence), `task` (None where only a flag can tell),
        `num_tensors`, `num_parameters`, `num_bytes`, `becomes`, `num_converted_parameters`, `parts` ({part: number of
        parameters}), `dropped` ({reason: number of tensors}) and `settings`.
    """
    path = find_weights(Path(source))
    state = read_state(path)
    with _naming(path):
        kind = detect_kind(state)
        found, is_known = _task_or_guess(state, kind, task)
    conversion = plan_conversion(state, path, found, read_overrides(config_file))
    settings = main_settings(conversion.config) | ({} if is_known else {"cdt_form": "semantic or panoptic: `--task`"})
    return {
        "file": str(path),
        "kind": kind,
        "variant": conversion.name,
        "contents": describe(state, kind),
        "task": found if is_known else None,
        "num_tensors": len(state),
        "num_parameters": sum(tensor.numel() for tensor in state.values()),
        "num_bytes": path.stat().st_size,
        "becomes": type(conversion.model).__name__,
        "num_converted_parameters": sum(tensor.numel() for tensor in conversion.tensors.values()),
        "parts": count_parts(conversion.tensors),
        "dropped": dropped(state, TABLE_OF[kind]),
        "settings": settings,
    }


def plan_conversion(
    state: dict[str, Tensor],
    path: Path,
    task: str | None = None,
    overrides: dict[str, Any] | None = None,
    proposer: str | Path | None = None,
) -> Conversion:
    """
    Everything about a conversion but the writing; the meta device will do. For the arguments see `convert`.

    Raises:
        CheckpointError: if names, shapes and configuration do not fit each other; the message lists what does not.
    """
    with _naming(path):
        kind = detect_kind(state)
        if proposer is not None and kind not in MAFT_KINDS:
            raise CheckpointError(
                f"`proposer` goes with MAFT checkpoints; this one is {kind!r}, with masks of its own."
            )
        task = infer_task(state, kind, task)
        proposer_model = None if proposer is None else load_proposer(proposer)
        config = infer_config(state, kind, task, overrides, proposer_model and proposer_model.config)
        if proposer is not None:
            _adopt_statistics(config, proposer)
        tensors = _convert(state, kind, config)
        if proposer_model is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.proposer.")}
            tensors.update({f"model.proposer.{name}": tensor for name, tensor in proposer_model.state_dict().items()})
        model = _without_weights(config)
        check_shapes(tensors, model, TABLE_OF[kind])
    conversion = Conversion(path, kind, task, config, model, tensors)
    conversion.notes = _notes(state, conversion)
    if kind in MAFT_KINDS and not hasattr(config, "clip_config"):
        logger.warning(PROPOSER_ADVICE)
        conversion.extra_files[NON_OBJECT_FILE] = {"non_object_embedding": state[NON_OBJECT_NAME]}
    return conversion


def plan_teacher(state: dict[str, Tensor], conversion: Conversion) -> Conversion:
    """The frozen CLIP of training in a MAFT+ or MAFT checkpoint. Raises CheckpointError if it carries none."""
    prefix = TEACHER_PREFIXES.get(conversion.kind, "")
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if prefix and name.startswith(prefix)}
    if not part:
        raise CheckpointError(f"{conversion.path}: carries no teacher; only MAFT+ and MAFT checkpoints do.")
    clip_config = getattr(conversion.config, "clip_config", conversion.config)
    towers = ("text_config", "vision_config") if conversion.kind in MAFT_KINDS else ("text_config",)
    heads = {tower: {"num_attention_heads": getattr(clip_config, tower).num_attention_heads} for tower in towers}
    return plan_conversion(part, conversion.path, overrides=heads)


def check_shapes(tensors: dict[str, Tensor], model: PreTrainedModel, table: str) -> None:
    """Raise CheckpointError unless `tensors` fill every parameter of `model` in its shape, and hold nothing else."""
    expected = model.state_dict()
    problems = [f"{_both_names(name, table)} is missing" for name in expected if name not in tensors]
    problems += [f"{_both_names(name, table)} has no place in the model" for name in tensors if name not in expected]
    problems += [
        f"{_both_names(name, table)} is of type {tensors[name].dtype}, the model wants floating-point numbers"
        for name, wanted in expected.items()
        if name in tensors and wanted.is_floating_point() and not tensors[name].is_floating_point()
    ]
    problems += [
        f"{_both_names(name, table)} has shape {tuple(tensors[name].shape)}, the model wants {tuple(wanted.shape)}"
        for name, wanted in expected.items()
        if name in tensors and tensors[name].shape != wanted.shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(
            f"{len(problems)} tensors do not fit the model read off the shapes. Where the released rule does not hold "
            "(numbers of heads and points), give a configuration file (`--config`):\n  "
            + "\n  ".join(problems[:8])
            + more
        )


def read_overrides(config_file: str | Path | None) -> dict[str, Any]:
    """The JSON object in `config_file`; empty without one. Raises CheckpointError."""
    if config_file is None:
        return {}
    try:
        fields = json.loads(Path(config_file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config_file}: no readable JSON configuration ({error}).") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{config_file}: expected a JSON object with fields of the configuration.")
    return fields


def load_proposer(proposer: str | Path) -> PreTrainedModel:
    """A universal-segmentation model of transformers. Raises CheckpointError."""
    try:
        return AutoModelForUniversalSegmentation.from_pretrained(proposer, dtype=torch.float32)
    except (OSError, ValueError, HFValidationError) as error:
        raise CheckpointError(f"{proposer}: no universal-segmentation model of transformers ({error}).") from error


def _adopt_statistics(config: PreTrainedConfig, proposer: str | Path) -> None:
    """The proposer's own normalisation, unless the configuration file gave one or the proposer has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(proposer)
    except (OSError, ValueError):
        logger.warning(
            f"{proposer}: found no image processor; its pictures are normalised with ImageNet's statistics."
        )
        return
    config.proposer_image_mean = config.proposer_image_mean or list(processor.image_mean)
    config.proposer_image_std = config.proposer_image_std or list(processor.image_std)


def load_tokenizer(tokenizer: str | Path | None, source: Path) -> CLIPTokenizer | None:
    """CLIP's tokenizer from a folder, a Hub name or OpenAI's BPE file; see `convert`. Raises CheckpointError."""
    if tokenizer is None:
        tokenizer = _default_tokenizer(source)
    if str(tokenizer) == "none":
        logger.warning("No tokenizer was written: the model takes no words until one is added.")
        return None
    try:
        if Path(tokenizer).is_file():
            return clip_tokenizer_from_bpe(tokenizer)
        _require_tokenizer(tokenizer)
        return CLIPTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library of tokenizers raises bare Exceptions over damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{tokenizer}: found no CLIP tokenizer there ({reason}). "
            f"Give `tokenizer` (`--tokenizer`): a folder, a Hub name, or OpenAI's {BPE_FILE}."
        ) from error


def build_processor(
    conversion: Conversion, tokenizer: CLIPTokenizer | None, training_classes: list[str | list[str]] | None
) -> MaftPlusProcessor | MaftPlusImageProcessorPil:
    """The processor with the released sizes; the image processor alone without a tokenizer. Raises CheckpointError."""
    settings = dict(MAFT_IMAGE_SIZES) if conversion.kind in MAFT_KINDS else {}
    if conversion.task == "panoptic":
        settings["semantic_resize"] = "mask_logits"  # what the released panoptic models do with semantic output
    image_processor = MaftPlusImageProcessorPil(**settings)
    if tokenizer is None:
        return image_processor
    try:
        check_tokenizer(tokenizer, getattr(conversion.config, "clip_config", conversion.config).text_config)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if conversion.kind == "fcclip" and training_classes is None:
        logger.warning("Without `training_classes` FC-CLIP's ensemble takes every class for unseen (weight 0.8).")
    splits = conversion.kind not in MAFT_KINDS
    return MaftPlusProcessor(image_processor, tokenizer, training_classes=training_classes, do_split_synonyms=splits)


def _convert(state: dict[str, Tensor], kind: str, config: PreTrainedConfig) -> dict[str, Tensor]:
    if kind == "maft" and not hasattr(config, "clip_config"):
        return convert_maft_state(state)
    prefix = "model." if hasattr(config, "clip_config") else ""
    return {prefix + name: tensor for name, tensor in convert_state(state, TABLE_OF[kind]).items()}


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    model_class = MaftPlusForUniversalSegmentation if hasattr(config, "clip_config") else MaftPlusCLIPModel
    with torch.device("meta"):
        return model_class(config)


def _write(conversion: Conversion, processor, folder: Path, show_progress: bool) -> None:
    """Weights, configuration, processor, code and card, as `save_pretrained` lays them."""
    require_space(folder, sum(tensor.numel() * 4 for tensor in conversion.tensors.values()))
    with _naming(conversion.path):
        write_safetensors(conversion.tensors, folder / WEIGHTS_FILE, show_progress)
        for name, tensors in conversion.extra_files.items():
            write_safetensors(tensors, folder / name)
    config, model = conversion.config, conversion.model
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    processor.save_pretrained(folder)
    custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    card = model_card(
        conversion.kind, conversion.name, conversion.task, config, conversion.path.name, conversion.notes
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _require_tokenizer(tokenizer: str | Path) -> None:
    """Raise OSError where there are no files: `from_pretrained` would try each for minutes and return an empty one."""
    if not Path(tokenizer).is_dir():
        cached_file(str(tokenizer), "tokenizer_config.json")
    elif not any((Path(tokenizer) / name).is_file() for name in TOKENIZER_FILES):
        raise OSError(f"the folder holds none of {', '.join(TOKENIZER_FILES)}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before whatever is wrong with its content."""
    try:
        yield
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: its shapes, with the configuration file if one was given, make no model that is known here "
            f"({type(error).__name__}: {error})."
        ) from error


def _both_names(name: str, table: str) -> str:
    """Our name and, where there is one, the original's."""
    bare = name.removeprefix("model.")
    original = original_name(bare, table) or original_name(f"clip.{bare}", table)
    return f"`{name}`" + (f" (original `{original}`)" if original else "")


def _task_or_guess(state: dict[str, Tensor], kind: str, task: str | None) -> tuple[str | None, bool]:
    """The task, and whether it is known; an inspection goes on where a conversion asks for a flag."""
    try:
        return infer_task(state, kind, task), True
    except CheckpointError:
        if task is not None:
            raise
        return "semantic", False


def _default_tokenizer(source: Path) -> str | Path:
    if source.is_dir() and any((source / name).is_file() for name in TOKENIZER_FILES):
        return source
    spec = importlib.util.find_spec("open_clip")  # found, not imported
    if spec is not None and spec.origin is not None and (Path(spec.origin).parent / BPE_FILE).is_file():
        return Path(spec.origin).parent / BPE_FILE
    return DEFAULT_TOKENIZER


def _notes(state: dict[str, Tensor], conversion: Conversion) -> list[str]:
    """Sentences for the card: what was left out, and what the released rules decided."""
    left_out = dropped(state, TABLE_OF[conversion.kind])
    notes = [f"{count} tensors were left out: {reason}." for reason, count in left_out.items()]
    config = conversion.config
    if not hasattr(config, "clip_config"):
        if conversion.kind in ("open_clip", "openai_clip"):
            notes.append("The base model in the metadata is the released CLIP of these sizes; others share them.")
        return [*notes, "Without masks this is exactly CLIP, parameter names included."]
    if config.cdt_form != "off":
        notes.append(f"Content-Dependent Transfer: {config.cdt_form} form, the released token order.")
    if (config.ensemble_alpha, config.ensemble_beta) != (1.0, 1.0):
        notes.append(
            f"Geometric ensemble: {config.ensemble_alpha} for seen, {config.ensemble_beta} for unseen classes."
        )
    return notes + (_maft_notes(config) if conversion.kind in MAFT_KINDS else [])


def _maft_notes(config: PreTrainedConfig) -> list[str]:
    """What the released MAFT does, and where this folder gives more."""
    layer = config.clip_config.first_masked_layer
    notes = [
        "As released, class names are not split at commas.",
        f"Masks act from layer {layer} of the ViT on. The released code has 8 for every tower; for `MAFT_Vitl.pt` its "
        "author names 16 (`--first-masked-layer 16`).",
        "The released code gives semantic results; instance and panoptic ones are those of our post-processing.",
    ]
    if config.has_own_proposer:
        return [*notes, "Masks are proposed by MAFT's own network. They depend on all the words that are asked for."]
    return [*notes, f"Masks are proposed by a {config.proposer_config.model_type} in place of MAFT's own network."]


__all__ = [
    "CheckpointError",
    "Conversion",
    "build_processor",
    "check_shapes",
    "convert",
    "inspect_checkpoint",
    "load_tokenizer",
    "plan_conversion",
]
