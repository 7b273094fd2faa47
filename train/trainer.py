"""Trainer of MAFT and MAFT+: what trains, at which rate, against which frozen teacher, and what the logs say.

Sources: arXiv 2408.00744, "Implementation Details" (MAFT+: segmenter, CDT, void and the vision trunk at a tenth of the
rate); arXiv 2310.00240, section 4 (MAFT: attention and norms of the ViT behind a frozen proposer).
Which tensors train is decided by modules, and a test compares the list with that of the released code.
"""

import copy
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, speed_metrics
from transformers.utils import logging

from maftplus.classifier_maftplus import classification_logits
from maftplus.loss_maftplus import NUM_IMAGES, count_targets
from maftplus.train.checkpoints import disk_errors, mark_as_whole, remove_oldest
from maftplus.train.evaluation.counting import panoptic_figures, semantic_figures
from maftplus.train.evaluation.evaluate import CLIP, IN_VOCABULARY, Evaluation, ModelPredictor, count_predictions
from maftplus.train.finetuning.lora import (
    TEXT,
    adapter_modules,
    adapts_text,
    embed_words,
    has_adapter,
    load_adapter_weights,
    remove_adapter,
    save_adapter,
)
from maftplus.train.losses import compensation_loss, distillation_loss
from maftplus.train.processes import process_state

logger = logging.get_logger(__name__)

SEMANTIC_KEYS = ("mean_iou", "mean_iou_present", "frequency_weighted_iou", "mean_accuracy", "overall_accuracy")
SEEN_KEYS = ("seen_mean_iou", "unseen_mean_iou", "harmonic_mean_iou")
PANOPTIC_KEYS = tuple(f"{key}{ending}" for ending in ("", "_things", "_stuff") for key in ("pq", "sq", "rq"))
TEXT_PREFIX = f"{TEXT}."
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN; the message names the images of the batch."""


@dataclass
class MaftPlusTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the published settings of MAFT+ as defaults, and what only MAFT+ needs."""

    trunk_lr_multiplier: float = field(
        default=0.1, metadata={"help": "Learning rate of CLIP's vision trunk relative to `learning_rate`."}
    )
    total_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "Pictures a step over all processes; sets `gradient_accumulation_steps`."},
    )
    freeze_trunk: bool = field(
        default=False, metadata={"help": "Leave CLIP's vision trunk as it is: less memory, a faster step."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=2e-5, metadata={"help": "Decay of all but norms and embedding layers."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Train into a folder that holds a model; its old checkpoints are deleted."}
    )
    max_grad_norm: float = field(default=0.01, metadata={"help": "Largest norm of the whole gradient."})
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "Name of the schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"power": 0.9, "lr_end": 0.0}, metadata={"help": "JSON; arguments of the schedule."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Samples are pictures, not columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave an incomplete last batch out."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trained tensor takes part in every step, so no search is needed."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # accelerate would have process 0 read streams and send the others pieces of tensors; masks come in lists
            self.accelerator_config.dispatch_batches = False
        if self.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers` must be off: workers learn the epoch, which seeds the augmentation, "
                "when they start."
            )
        if self.total_train_batch_size is not None:
            at_once = self.per_device_train_batch_size * self.world_size
            if self.total_train_batch_size % at_once:
                raise ValueError(
                    f"`total_train_batch_size` ({self.total_train_batch_size}) must be a multiple of the {at_once} "
                    "pictures that all processes take at once; change `per_device_train_batch_size`."
                )
            self.gradient_accumulation_steps = self.total_train_batch_size // at_once


def reached_modules(model: nn.Module, freeze_trunk: bool = False) -> dict[str, nn.Module]:
    """
    The modules of a `MaftPlusForUniversalSegmentation` that its losses reach and that may train, by name in `model`.

    MAFT+ and FC-CLIP: segmenter and void embedding; CDT where there is one and the mask-aware loss reads it; the
    vision trunk (unless `freeze_trunk`) as long as a loss reaches it. MAFT: attention and LayerNorms of every ViT
    layer and the final norm. The text tower, the projections and CLIP's logit scale never train.
    """
    network, config = model.model, model.config
    modules = {}
    if hasattr(network, "segmenter"):
        modules = {"model.segmenter": network.segmenter, "model.void_embedding": network.void_embedding}
    if config.cdt_form != "off" and (config.mask_aware_weight > 0 or _distils(model)):
        modules["model.cdt"] = network.cdt
    if not freeze_trunk and (config.mask_aware_weight > 0 or _compensates(model) or _distils(model)):
        modules.update(_trainable_trunk(network.clip.vision_model, "model.clip.vision_model"))
    return modules


def trainable_modules(model: nn.Module, freeze_trunk: bool = False) -> dict[str, nn.Module]:
    """What trains, by name in `model`: the adapter of a model that has one, else what `reached_modules` says."""
    return adapter_modules(model) if has_adapter(model) else reached_modules(model, freeze_trunk)


def trainable_parameters(model: nn.Module, freeze_trunk: bool = False) -> dict[str, nn.Parameter]:
    """Every parameter of `trainable_modules`, by its full name in `model`."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in trainable_modules(model, freeze_trunk).items()
        for name, parameter in module.named_parameters()
    }


def freeze_all_but_trainable(model: nn.Module, freeze_trunk: bool = False) -> None:
    """Let gradients reach `trainable_parameters` and nothing else."""
    model.requires_grad_(False)
    for parameter in trainable_parameters(model, freeze_trunk).values():
        parameter.requires_grad_(True)


def check_trainable(model: nn.Module, freeze_trunk: bool = False) -> None:
    """Raises ValueError, with the settings at fault, if nothing trains or no loss reaches what should."""
    reached = tuple(f"{name}." for name in reached_modules(model, freeze_trunk))
    reached += (TEXT_PREFIX,) if reached else ()  # there is a loss, and every loss reads words
    names = list(trainable_modules(model, freeze_trunk))
    unreached = [name for name in names if not f"{name}.".startswith(reached)]
    if names and not unreached:
        return
    what = f"{len(unreached)} parts of the adapter, such as {unreached[0]}," if unreached else "No parameter"
    raise ValueError(
        f"{what} {'are' if unreached else 'is'} reached by {'no' if unreached else 'a'} loss, so training would do "
        f"nothing there: see `mask_aware_weight` ({model.config.mask_aware_weight}) and `compensation_weight` "
        f"({model.config.compensation_weight}) of `model_config`, `freeze_trunk` ({freeze_trunk}) and `lora`."
    )


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    trunk_lr_multiplier: float = 0.1,
    freeze_trunk: bool = False,
) -> list[dict[str, Any]]:
    """
    Groups for AdamW: at most one for each pair of learning rate and decay, with the parameters' `names`.

    CLIP's vision trunk gets `trunk_lr_multiplier`; norms and embedding layers get no decay. Bare parameters (level
    embedding, layer scales, logit scale) decay, as in the released code.
    """
    no_decay = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (*NORMS, nn.Embedding))
        for parameter in module.parameters(recurse=False)
    }
    trunk = {id(parameter) for parameter in model.model.clip.parameters()}
    groups = {}
    for name, parameter in trainable_parameters(model, freeze_trunk).items():
        rate = learning_rate * (trunk_lr_multiplier if id(parameter) in trunk else 1.0)
        decay = 0.0 if id(parameter) in no_decay else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def frozen_copy(clip: nn.Module) -> nn.Module:
    """
    A teacher: CLIP as it is now, without text tower and adapters, in evaluation mode, out of reach of gradients.

    What is frozen in `clip` is not copied but shared, beside an adapter the whole trunk.
    """
    shared = {id(parameter): parameter for parameter in clip.parameters() if not parameter.requires_grad}
    teacher = copy.deepcopy(clip, {id(clip.text_model): None, **shared})
    remove_adapter(teacher)
    return teacher.eval().requires_grad_(False)


def classify_images(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, text_class_ids: Tensor, num_classes: int
) -> Tensor:
    """Class logits of whole images, (B, K+1), from their embeddings (B, D) and class rows (B, P+1, D)."""
    return classification_logits(image_embeds[:, None], text_embeds, logit_scale, text_class_ids, num_classes)[:, 0]


class MaftPlusTrainer(Trainer):
    """
    `Trainer` for `MaftPlusForUniversalSegmentation`.

    Batches hold the model's inputs with `mask_labels` and `class_labels`, and may hold `point_seeds` (B,) and
    `image_names` (a list, for error messages). Losses are divided by counts summed over all processes and accumulation
    steps, so any split of a batch trains alike.

    Args:
        teacher (`MaftPlusCLIPModel`, *optional*):
            The original CLIP. By default a copy of `model`'s CLIP when the trainer is built; so build the model from
            the *original* weights also when a run is resumed: `train(resume_from_checkpoint=...)` loads the trained
            ones afterwards. It is no part of the model and is never saved.
        do_compare_scores: Evaluation also counts by CLIP's class scores alone (`clip_...`) and by the segmenter's
            alone (`in_vocabulary_...`).
        *args, **kwargs: As for `Trainer`.
    """

    def __init__(self, *args, teacher: nn.Module | None = None, do_compare_scores: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        process_state()  # refuses processes that would train apart, into one folder
        if self.args.n_gpu > 1:
            raise RuntimeError(
                f"One process sees {self.args.n_gpu} GPUs, and masks cannot be split among them: start with "
                "`accelerate launch`, which gives each GPU a process, or set CUDA_VISIBLE_DEVICES to one."
            )
        self.do_compare_scores = do_compare_scores
        self.save_total_limit, self.args.save_total_limit = (
            self.args.save_total_limit,
            None,
        )  # `_save_checkpoint` does it
        self.model_accepts_loss_kwargs = False  # every loss is a mean over the batch already (`loss_counts`)
        freeze_all_but_trainable(self.model, self.args.freeze_trunk)
        self._frozen = frozen_modules(self.model)
        trunk_trains = any(p.requires_grad for p in self.model.model.clip.vision_model.parameters())
        self._compensates, self._distils = trunk_trains and _compensates(self.model), _distils(self.model)
        self.teacher = None
        if self._compensates or self._distils:
            teacher = frozen_copy(self.model.model.clip) if teacher is None else teacher.eval().requires_grad_(False)
            self.teacher = teacher.to(self.args.device)
        self._prompts = self._words_to_encode() if adapts_text(self.model) else None
        self._loss_sums: dict[str, Tensor] = {}
        self._num_summed = 0
        self.add_callback(EpochCallback())
        self.sigterm = SigtermCallback()
        self.add_callback(self.sigterm)

    def train(self, *args, **kwargs):
        """
        As the Trainer's.

        Raises:
            ValueError: before the first step, for parameters that no loss reaches.
        """
        check_trainable(self.model, self.args.freeze_trunk)
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or `args.optim`) over `parameter_groups`."""
        if self.optimizer is None:
            args = self.args
            rates = args.learning_rate, args.weight_decay, args.trunk_lr_multiplier
            groups = parameter_groups(self.model, *rates, args.freeze_trunk)
            groups = [{name: value for name, value in group.items() if name != "names"} for group in groups]
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(args, self.model)
            self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The batches of one optimiser step and, as "items", the mean of their counts over steps and processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or "class_labels" not in batches[0]:
            return batches, None
        num_queries = self.model.config.num_queries
        counts = [count_targets(self.model.config, batch["class_labels"], num_queries) for batch in batches]
        return batches, self.accelerator.reduce(torch.stack(counts).mean(0).to(device), reduction="mean")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ):
        """Losses of the model, then those against the teacher; sums them up for the logs."""
        inputs = dict(inputs)
        names = inputs.pop("image_names", None)
        if model.training:
            self._keep_frozen_parts_in_eval_mode()
            if self._prompts is not None:
                inputs.update(embed_words(self.model, self._prompts))
        outputs = model(**inputs, loss_counts=num_items_in_batch)
        losses = {**outputs.loss_dict, **self._teacher_losses(inputs, outputs, num_items_in_batch)}
        loss = sum(losses.values())
        _stop_unless_finite(loss, losses, names, self.state.global_step)
        if model.training:
            self._add_to_logs(losses)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds every sub-loss, averaged over the steps since the last log and over processes."""
        if self._num_summed and "loss" in logs:
            names = sorted(self._loss_sums)
            means = torch.stack([self._loss_sums[name] for name in names]) / self._num_summed
            means = self.accelerator.reduce(means, reduction="mean")
            logs.update(zip(names, means.tolist()))
            self._loss_sums, self._num_summed = {}, 0
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Figures of a data set (default: the trainer's own) by the one evaluation loop, `evaluation/evaluate.py`.

        The model scores with the words that it has stored. `ignore_keys` is the Trainer's and has no meaning here.
        """
        dataset, start = self.eval_dataset if eval_dataset is None else eval_dataset, time.time()
        self._store_words()
        predict = ModelPredictor(self.model, self.processing_class, {}, self.compute_loss_context_manager)
        counted = count_predictions(
            predict,
            dataset,
            evaluation_kinds(dataset.task, self.do_compare_scores),
            self.args.per_device_eval_batch_size,
            self.args.dataloader_num_workers,
        )
        num_images = next(iter(counted.values())).num_images
        figures = {"num_images": num_images, **evaluation_figures(counted, self.model.config.seen_ids)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics.update(speed_metrics(metric_key_prefix, start, num_samples=num_images))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial):
        """As the Trainer's; then the marker that makes the checkpoint count, and only then older ones are deleted."""
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with disk_errors(folder):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_as_whole(folder)
            remove_oldest(folder.parent, self.save_total_limit, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As the Trainer's; of a model with an adapter the adapter alone."""
        if not has_adapter(self.model):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self._store_words()
            save_adapter(self.model, folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(folder))
            torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if has_adapter(self.model):
            load_adapter_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if has_adapter(self.model):
            load_adapter_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _words_to_encode(self) -> dict[str, Tensor]:
        """The prompts of the stored words. Raises ValueError without a processor that writes them."""
        if self.processing_class is None:
            raise ValueError("`lora`: to train the text tower, pass the processor as `processing_class`.")
        return dict(self.processing_class(text=self.model.config.vocabulary, return_tensors="pt"))

    @torch.no_grad()
    def _store_words(self) -> None:
        """The stored words follow a text tower that trains."""
        if self._prompts is not None:
            self.model.vocabulary_embeds = embed_words(self.model.eval(), self._prompts)["text_embeds"]

    def _teacher_losses(self, inputs: dict[str, Any], outputs, counts: Tensor | None) -> dict[str, Tensor]:
        if self.teacher is None:
            return {}
        config, num_images = self.model.config, None if counts is None else counts[NUM_IMAGES]
        with torch.no_grad():
            vision = self.teacher.encode_image(self.model.model.clip_pixel_values(inputs["pixel_values"]))
        losses = {}
        if self._compensates:
            valid = inputs.get("pixel_mask") if config.loss_padding == "ignored" else None
            loss = compensation_loss(outputs.dense_features, vision.dense_features, num_images, valid)
            losses["loss_compensation"] = config.compensation_weight * loss
        if self._distils:
            with torch.no_grad():
                original = self._image_logits(self.teacher.embed_image(vision), outputs)
            loss = distillation_loss(self._image_logits(outputs.image_embeds, outputs), original, num_images)
            losses["loss_distillation"] = config.distillation_weight * loss
        return losses

    def _image_logits(self, image_embeds: Tensor, outputs) -> Tensor:
        scale, class_ids = self.model.model.clip.logit_scale, outputs.text_class_ids[0]
        num_classes = outputs.out_vocab_logits.shape[-1] - 1
        return classify_images(image_embeds, outputs.text_embeds, scale, class_ids, num_classes)

    def _keep_frozen_parts_in_eval_mode(self) -> None:
        for module in self._frozen:
            module.eval()

    def _add_to_logs(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            value = value.detach().float()
            self._loss_sums[name] = self._loss_sums[name] + value if name in self._loss_sums else value
        self._num_summed += 1


def evaluation_kinds(task: str, do_compare_scores: bool = False) -> dict[str, str]:
    """What the Trainer counts, as `count_predictions` takes it: panoptic data also give semantic figures."""
    tasks = ("semantic", "panoptic") if task == "panoptic" else ("semantic",)
    prefixes = ("", CLIP, IN_VOCABULARY) if do_compare_scores else ("",)
    return {prefix + task: task for task in tasks for prefix in prefixes}


def evaluation_figures(counted: Mapping[str, Evaluation], seen_ids: Sequence[int] | None) -> dict[str, float]:
    """
    The figures that a Trainer logs, each behind the prefix of its kind.

    Args:
        counted: As `count_predictions` returns it.
        seen_ids: Classes of training, for seen and unseen figures; without any the vocabulary's own split counts.
    """
    figures = {}
    for kind, evaluation in counted.items():
        vocabulary, prefix = evaluation.vocabulary, kind.removesuffix(evaluation.task)
        seen = seen_ids or vocabulary.seen
        seen = None if seen is None or len(seen) == vocabulary.num_labels else seen
        if evaluation.task == "semantic":
            values, keys = semantic_figures(evaluation.counts, seen), SEMANTIC_KEYS + (SEEN_KEYS if seen else ())
        else:
            values, keys = panoptic_figures(evaluation.counts, vocabulary.stuff or ()), PANOPTIC_KEYS
        figures.update({prefix + key: float(values[key]) for key in keys})
    return figures


class EpochCallback(TrainerCallback):
    """Tells the data set its epoch, which seeds the augmentation; accelerate does so on one process only."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


class SigtermCallback(TrainerCallback):
    """On SIGTERM: finish the step, save a checkpoint, stop. `received` tells whether that happened."""

    def __init__(self):
        self.received = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = signal.signal(signal.SIGTERM, self._receive)

    def on_step_end(self, args, state, control, **kwargs):
        self.received = _on_any_process(self.received, args.device)
        if self.received:
            logger.warning("SIGTERM: saving a checkpoint at step %d and stopping.", state.global_step)
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def _receive(self, signum, frame):
        self.received = True


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules none of whose parameters train (proposer, text tower): they stay in evaluation mode."""
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        return [model] if parameters else []  # a bare dropout belongs to whoever trains around it
    return [frozen for child in model.children() for frozen in frozen_modules(child)]


def _compensates(model: nn.Module) -> bool:
    """Whether the trunk is held to the teacher's feature map, which a ViT does not have."""
    return model.config.compensation_weight > 0 and model.config.clip_config.takes_masks_by_pooling


def _distils(model: nn.Module) -> bool:
    """Whether whole pictures are held to the teacher's classes, as MAFT does."""
    return model.config.distillation_weight > 0 and not hasattr(model.model, "segmenter")


def _trainable_trunk(vision_model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    if hasattr(vision_model, "post_layernorm"):  # ViT
        modules = {f"{prefix}.post_layernorm": vision_model.post_layernorm}
        for index, layer in enumerate(vision_model.encoder.layers):
            for name in ("self_attn", "layer_norm1", "layer_norm2"):
                modules[f"{prefix}.encoder.layers.{index}.{name}"] = getattr(layer, name)
        return modules
    return {f"{prefix}.embeddings": vision_model.embeddings, f"{prefix}.encoder": vision_model.encoder}


def _stop_unless_finite(loss: Tensor, losses: dict[str, Tensor], names: Sequence[str] | None, step: int) -> None:
    if not torch.isfinite(loss):
        bad = [name for name, value in losses.items() if not torch.isfinite(value)]
        raise NonFiniteLossError(
            f"Step {step}: {', '.join(bad) or 'the sum of the losses'} is not finite. Images of the batch: "
            f"{', '.join(map(str, names or ['unknown']))}. Lower the learning rate, or look at these images."
        )


def _on_any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set anywhere, so that all processes save at the same step."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)
