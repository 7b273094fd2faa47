"""Training step of whole tiny models: losses at the recorded points, and the gradient norm of every trained tensor.

Sources of the numbers: `tiny/*_train.npz` with `*_train_gradnorms.json` (MAFT+); `maft_v1/*masked_forward.npz` (MAFT).
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import reference_maft_forward as maft
import torch
import torch.nn.functional as F
from reference_tiny import build_model, load_settings
from reference_tools import Comparison, compare, compare_equal, load_arrays, original_state, sibling
from text_tools import load_tokenizer

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.conversion.rename import renamed, teacher_state
from maftplus.loss_maftplus import GivenPoints, mask_aware_loss, match, prepare_targets, segmentation_losses
from maftplus.train.losses import compensation_loss, distillation_loss
from maftplus.train.trainer import classify_images, freeze_all_but_trainable, trainable_parameters
from maftplus.words_maftplus import build_prompts, parse_classes

LOSS, GRADIENT, REACHED, CLASS_LOGITS = 1e-5, 1e-3, 1e-6, 1e-4
RECORDED_NAMES = {"loss_mask_aware": "ranking_loss", "loss_compensation": "rc_loss"}


def check_training(path: Path) -> list[Comparison]:
    """MAFT+: assignments, every named loss, and the gradients of the three kinds of loss."""
    arrays, settings, model = load_arrays(path), load_settings(path), build_model(path)
    freeze_all_but_trainable(model)
    pixel_values, masks, labels = labelled_batch(arrays, settings["pixel_mean"], settings["pixel_std"])
    outputs = model(pixel_values, **_vocabulary(model, settings["classes"]), output_auxiliary_logits=True)
    predictions = _predictions(outputs)
    points = [_recorded_points(arrays, level, len(labels)) for level, *_ in predictions]
    matches = [_check_matches(arrays, model.config, *p, masks, labels, given) for p, given in zip(predictions, points)]
    teacher = teacher_of(sibling(path, "_keys.json", "_train.npz"), model)
    losses = _losses(model, outputs, predictions, masks, labels, points)
    losses["rc_loss"] = _compensation(model, outputs, teacher, pixel_values)
    compared = [compare(name, value, arrays[f"loss/{name}"], LOSS, relative=True) for name, value in losses.items()]
    recorded = json.loads(sibling(path, "_gradnorms.json", ".npz").read_text())["grad_norm"]
    return [c for level in matches for c in level] + compared + check_gradients(model, _kinds(losses), recorded)


def check_maft(path: Path) -> list[Comparison]:
    """MAFT: the recorded inference, then mask-aware loss and self-distillation with their gradients."""
    arrays, settings = load_arrays(path), maft.load_settings(path)
    model, vocabulary = maft.build_model(settings), maft.recorded_vocabulary(arrays)
    freeze_all_but_trainable(model)
    pixel_values, masks, labels = labelled_batch(arrays, settings["clip_pixel_mean"], settings["clip_pixel_std"])
    outputs = model(pixel_values, **vocabulary, proposal_logits=torch.from_numpy(arrays["in/pred_mask_logits"]))
    logits = _image_logits(model, pixel_values, outputs.text_embeds, vocabulary, settings)
    logits["train_mask_class_logits"] = outputs.out_vocab_logits
    mask_aware = mask_aware_loss(
        logits["train_mask_class_logits"], outputs.masks_queries_logits.sigmoid(), masks, labels
    )
    distillation = distillation_loss(logits["student_image_class_logits"], logits["teacher_image_class_logits"])
    losses = {"ma_loss": mask_aware, "dis_loss": settings["dis_weight"] * distillation}
    return [
        *maft.check_forward(path),
        *(compare(name, value, arrays[f"mid/{name}"], CLASS_LOGITS) for name, value in logits.items()),
        *(compare(name, value, arrays[f"loss/{name}"], LOSS, relative=True) for name, value in losses.items()),
        *check_gradients(model, losses, settings["grad_norm"], table="maft"),
    ]


def labelled_batch(arrays: dict, mean: list, deviation: list):
    """The recorded images normalised (0 to 255) and zero-padded to a multiple of 32, with padded masks and labels."""
    count = sum(name.startswith("in/image_") for name in arrays)
    images = [torch.from_numpy(arrays[f"in/image_{index}"]).permute(2, 0, 1).float() for index in range(count)]
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))
    size = [32 * -(-max(image.shape[axis] for image in images) // 32) for axis in (1, 2)]
    pixel_values = torch.stack([_pad((image - mean) / deviation, size) for image in images])
    return pixel_values, *_labels(arrays, size)


def teacher_of(keys: Path, model) -> MaftPlusCLIPModel:
    """The recorded frozen CLIP: weights of its own."""
    shapes = {name: spec[0] for name, spec in json.loads(keys.read_text()).items()}
    return _load_teacher(model, teacher_state(original_state(shapes)))


def check_gradients(model, losses: dict, recorded: dict, table: str = "maftplus") -> list[Comparison]:
    """Worst gradient norm of each kind of loss over its tensors, and the set of tensors that it reaches."""
    parameters = trainable_parameters(model)
    comparisons = []
    for kind, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        norms = {n: 0.0 if g is None else float(g.double().norm()) for n, g in zip(parameters, gradients)}
        ours = {name: _joint_norm(norms, name, table) for name in recorded[kind]}
        theirs = {name: value or 0.0 for name, value in recorded[kind].items()}
        reached = [{name for name, value in side.items() if value > REACHED} for side in (ours, theirs)]
        worst = max((_norm_comparison(kind, name, ours[name], theirs[name]) for name in ours), key=lambda c: c.ratio)
        comparisons += [worst, compare_equal(f"{kind} reaches {len(reached[1])} tensors", *reached)]
        names = {part for name in recorded[kind] for part in renamed(name, table)}
        comparisons.append(
            compare_equal(f"{kind} names", {f"model.{name}" for name in names} & norms.keys(), norms.keys())
        )
    return comparisons


def _norm_comparison(kind: str, name: str, ours: float, theirs: float) -> Comparison:
    return Comparison(f"{kind} gradient of {name}", abs(ours - theirs), max(GRADIENT * theirs, REACHED))


def _joint_norm(norms: dict[str, float], original: str, table: str) -> float:
    """Norm of an original tensor's gradient: the parts of a fused weight add up in squares; frozen parts are zero."""
    parts = [norms.get(f"model.{name}", 0.0) for name in renamed(original, table)]
    return float(np.sqrt(sum(part**2 for part in parts)))


def _predictions(outputs) -> list[tuple]:
    """(level, class logits, mask logits), the final prediction last."""
    auxiliary = zip(outputs.auxiliary_in_vocab_logits, outputs.auxiliary_masks_queries_logits)
    levels = [(f"aux{index}", *logits) for index, logits in enumerate(auxiliary)]
    return [*levels, ("final", outputs.in_vocab_logits, outputs.masks_queries_logits)]


def _recorded_points(arrays: dict, level: str, num_images: int) -> GivenPoints:
    matcher = [torch.from_numpy(arrays[f"points/{level}_matcher_img{index}"]) for index in range(num_images)]
    return GivenPoints(matcher, torch.from_numpy(arrays[f"points/{level}_loss"]))


def _check_matches(arrays, config, level, class_logits, mask_logits, masks, labels, points) -> list[Comparison]:
    matches = match(config, class_logits, mask_logits, prepare_targets(config, masks, labels), points.matcher)
    comparisons = []
    for index, (source, chosen) in enumerate(matches):
        name = f"match/{level}_img{index}"
        recorded = (arrays[f"{name}_src"].tolist(), arrays[f"{name}_tgt"].tolist())
        comparisons.append(compare_equal(name, (source.tolist(), chosen.tolist()), recorded))
    return comparisons


def _losses(model, outputs, predictions, masks, labels, points) -> dict[str, torch.Tensor]:
    _, class_logits, mask_logits = zip(*predictions)
    found = segmentation_losses(
        model.config, class_logits, mask_logits, outputs.out_vocab_logits, masks, labels, points=points
    )
    return {RECORDED_NAMES.get(name, name): value for name, value in found.items()}


def _compensation(model, outputs, teacher, pixel_values) -> torch.Tensor:
    with torch.no_grad():
        original = teacher.encode_image(pixel_values).dense_features
    return model.config.compensation_weight * compensation_loss(outputs.dense_features, original)


def _kinds(losses: dict) -> dict[str, torch.Tensor]:
    """The three sums whose gradients were recorded."""
    kinds = defaultdict(float)
    for name, value in losses.items():
        kinds[name if name in RECORDED_NAMES.values() else "criterion_sum"] += value
    return dict(kinds)


def _vocabulary(model, names: list[str]) -> dict[str, torch.Tensor]:
    """Class embeddings of the training classes by the recorded text tower."""
    prompts = build_prompts(parse_classes(names))
    rows = load_tokenizer(words=prompts.texts)(prompts.texts, padding=True, return_tensors="pt")
    vocabulary = model.encode_vocabulary(
        **rows,
        prompt_class_ids=torch.tensor(prompts.class_ids),
        prompt_synonym_ids=torch.tensor(prompts.synonym_ids),
    )
    return {name: vocabulary[name] for name in ("text_embeds", "text_class_ids")}


def _image_logits(model, pixel_values, text_embeds, vocabulary, settings) -> dict[str, torch.Tensor]:
    """Whole-image class logits of the trained and of the recorded frozen CLIP."""
    state = teacher_state(original_state({name: spec[0] for name, spec in settings["keys"].items()}))
    pixels = F.interpolate(pixel_values, size=(model.config.clip_image_size,) * 2, mode="bilinear")
    ids, scale = vocabulary["text_class_ids"], model.model.clip.logit_scale
    embeds = {
        name: clip.embed_image(clip.encode_image(pixels))
        for name, clip in {"student": model.model.clip, "teacher": _load_teacher(model, state)}.items()
    }
    return {
        f"{name}_image_class_logits": classify_images(image, text_embeds, scale, ids, int(ids.max()) + 1)
        for name, image in embeds.items()
    }


def _load_teacher(model, state: dict) -> MaftPlusCLIPModel:
    teacher = MaftPlusCLIPModel(model.config.clip_config)
    teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False)


def _labels(arrays: dict, size) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    count = sum(name.startswith("in/gt_labels_") for name in arrays)
    masks = [_pad(torch.from_numpy(arrays[f"in/gt_masks_{index}"]), size) for index in range(count)]
    return masks, [torch.from_numpy(arrays[f"in/gt_labels_{index}"]) for index in range(count)]


def _pad(image: torch.Tensor, size) -> torch.Tensor:
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]))
