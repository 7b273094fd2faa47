"""Does a converted model work? `maftplus check MODEL`, and the end of every `maftplus get`.

Four questions: is every weight there and finite; are sentences as near to each other as in a trained CLIP; do masks
come out of a picture; is the configuration the published one. Nothing here measures quality.

The order of the sentences was seen in vectors of OpenAI's CLIP (ViT-B/32): an untrained text tower gets a triple right
by chance, half of the time, so all of them in 1 of 256 cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.conversion.registry import Release
from maftplus.conversion.released import main_settings
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation
from maftplus.processing_maftplus import MaftPlusProcessor
from maftplus.reading_maftplus import read_picture

OK, ODD, WRONG = "ok", "odd", "wrong"
TRIPLES = (  # the first is nearer to the second than to the third
    ("dog", "puppy", "bus"),
    ("sofa", "armchair", "banana"),
    ("car", "truck", "fork"),
    ("horse", "pony", "television set"),
    ("duck", "goose", "bed"),
    ("guitar", "violin", "trousers"),
    ("bicycle", "motorcycle", "cake"),
    ("cup", "mug", "giraffe"),
)
TEMPLATE = "a {}"
PICTURE = Path(__file__).parents[1] / "models" / "shapes" / "overlay.png"
PICTURE_SIZE = {"shortest_edge": 320, "longest_edge": 640}  # enough to see masks, and quick
LABELS = ("water, sea", "planks, wooden floor", "gravel, pebbles", "yellow cross")


@dataclass(frozen=True)
class Finding:
    """What one look found: "ok"; "odd", which is told; or "wrong", with which a model is of no use."""

    subject: str
    state: str
    message: str


def check_model(folder: str | Path, release: Release | None = None) -> list[Finding]:
    """
    What the self-check finds in a model's folder, one entry a question. What cannot be loaded is asked no more.

    Args:
        folder: As `maftplus convert` writes it.
        release: The released model that it should be; without one its configuration is not compared.

    Raises:
        OSError, ValueError: if the folder holds no configuration of ours.
    """
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    findings = [_check_tensors(folder)]
    if release is not None:
        findings.append(_check_settings(config, release.settings))
    if any(one.state == WRONG for one in findings):
        return findings
    try:
        model = _load(folder, config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        return [*findings, Finding("weights", WRONG, _first_line(error))]
    processor = _load_processor(folder)
    return [*findings, _check_sentences(model, processor), _check_masks(model, processor)]


def _check_tensors(folder: Path) -> Finding:
    """Every number in the folder's weight files; one tensor at a time in memory."""
    count, bad = 0, []
    try:
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                bad += [name for name in names if not file.get_tensor(name).isfinite().all()]
            count += len(names)
    except SafetensorError as error:
        return Finding("tensors", WRONG, f"{path.name} cannot be read ({_first_line(error)})")
    if bad or not count:
        reason = f"{len(bad)} of {count} hold NaN or infinity, such as {bad[0]}" if bad else "there are none"
        return Finding("tensors", WRONG, reason)
    return Finding("tensors", OK, f"{count}, every number finite")


def _check_settings(config: PreTrainedConfig, published: Mapping[str, Any]) -> Finding:
    found = main_settings(config)
    others = [f"{name} is {found.get(name)!r}, not {value!r}" for name, value in published.items()]
    others = [text for text, (name, value) in zip(others, published.items()) if found.get(name) != value]
    if others:
        return Finding("configuration", WRONG, "not as published: " + "; ".join(others))
    return Finding("configuration", OK, f"as published ({len(published)} settings compared)")


def _load(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model, whole. Raises ValueError if weights are missing."""
    is_full = hasattr(config, "clip_config")
    model_class = MaftPlusForUniversalSegmentation if is_full else MaftPlusCLIPModel
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model.eval()


def _load_processor(folder: Path) -> Any:
    """The processor; the image processor alone where there is no tokenizer."""
    try:
        return MaftPlusProcessor.from_pretrained(folder)
    except Exception:  # the library of tokenizers raises bare Exceptions
        return AutoImageProcessor.from_pretrained(folder)


@torch.inference_mode()
def _check_sentences(model: PreTrainedModel, processor: Any) -> Finding:
    """Whether the text tower knows what resembles what."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return Finding("sentences", ODD, "not looked at, there is no tokenizer")
    clip = model.model.clip if hasattr(model, "model") else model
    texts = [TEMPLATE.format(word) for triple in TRIPLES for word in triple]
    length = clip.config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    embeds = clip.encode_prompts(tokens["input_ids"], tokens["attention_mask"])  # (3 T, D), normalised
    one, near, far = embeds.unflatten(0, (-1, 3)).unbind(1)
    right = int(((one * near).sum(-1) > (one * far).sum(-1)).sum())
    message = f'{right} of {len(TRIPLES)} ordered as by a trained CLIP ("a dog" nearer "a puppy" than "a bus")'
    if right == len(TRIPLES):
        return Finding("sentences", OK, message)
    return Finding("sentences", ODD, f"{message}: the text tower or the tokenizer is another one, or untrained")


@torch.inference_mode()
def _check_masks(model: PreTrainedModel, processor: Any) -> Finding:
    """Whether masks come out of the test picture, and numbers out of masks."""
    picture = read_picture(PICTURE)
    if isinstance(model, MaftPlusCLIPModel):
        return _check_given_masks(model, getattr(processor, "image_processor", processor), picture)
    if not hasattr(processor, "tokenizer"):
        return Finding("masks", ODD, "not looked at, there is no tokenizer")
    outputs = model(**processor(images=picture, text=list(LABELS), size=PICTURE_SIZE, return_tensors="pt"))
    masks = outputs.masks_queries_logits[0]  # (Q, h, w)
    if masks.isnan().any() or outputs.class_queries_logits.isnan().any():
        return Finding("masks", WRONG, "the test picture gives NaN")
    filled = int((masks > 0).flatten(1).any(-1).sum())
    message = f"{filled} of {len(masks)} are not empty on the test picture"
    result = processor.post_process_semantic_segmentation(outputs, target_sizes=[(picture.height, picture.width)])[0]
    shares = torch.bincount(result.flatten().clamp(min=0), minlength=len(LABELS)) / result.numel()
    best = int(shares.argmax())
    return Finding("masks", OK if filled else ODD, f"{message}; {shares[best]:.0%} of it is called {LABELS[best]!r}")


def _check_given_masks(clip: MaftPlusCLIPModel, image_processor: Any, picture: Any) -> Finding:
    """A bare CLIP: embeddings of the picture's left and right half."""
    pixel_values = image_processor(images=picture, size=PICTURE_SIZE, return_tensors="pt")["pixel_values"]
    masks = torch.zeros(1, 2, *pixel_values.shape[-2:], dtype=torch.bool)
    masks[:, 0, :, : masks.shape[-1] // 2], masks[:, 1, :, masks.shape[-1] // 2 :] = True, True
    embeds = clip.get_mask_features(pixel_values, masks)[0]  # (2, D)
    if not embeds.isfinite().all():
        return Finding("masks", WRONG, "the embeddings of masks are not finite")
    is_blind = torch.equal(embeds[0], embeds[1])
    message = "the two halves of the test picture have {} embedding" + ("" if is_blind else "s of their own")
    return Finding("masks", ODD if is_blind else OK, message.format("one" if is_blind else "finite"))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


__all__ = ["ODD", "OK", "WRONG", "Finding", "check_model"]
