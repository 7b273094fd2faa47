"""How long a training will take and how much memory: three real steps, after which the model is as it was."""

import math
import resource
import sys
import time
from dataclasses import dataclass

import torch

from maftplus.train.trainer import MaftPlusTrainer

NUM_STEPS = 3
MOST_EVALUATIONS = 10
EVALUATION_SHARE = 0.2  # of the time that evaluations may take


@dataclass
class Plan:
    """
    How long to train and how often to measure.

    Args:
        max_steps, eval_steps: Steps in all, and between two measurements.
        step_seconds, eval_seconds: Of one step, of one measurement.
        peak_bytes: Largest memory so far, the three steps included.
        other_seconds: Of what is measured before the first step and after the last.
    """

    max_steps: int
    eval_steps: int
    step_seconds: float
    eval_seconds: float
    peak_bytes: int
    other_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all of it."""
        measured = math.ceil(self.max_steps / self.eval_steps) * self.eval_seconds
        return self.max_steps * self.step_seconds + measured + self.other_seconds

    def minutes_for(self, num_steps: int) -> int:
        """About how many minutes so many steps take."""
        training = num_steps * self.step_seconds
        on_the_way = max(self.eval_seconds, training * EVALUATION_SHARE / (1 - EVALUATION_SHARE))
        return math.ceil((training + on_the_way + self.other_seconds) / 60)

    def __str__(self) -> str:
        return (
            f"{self.max_steps} steps of {self.step_seconds:.2f} s, measured every {self.eval_steps} steps "
            f"({self.eval_seconds:.0f} s each): about {self.seconds / 60:.0f} minutes, {self.peak_bytes / 1e9:.1f} GB"
        )


def make_plan(
    step_seconds: float, eval_seconds: float, minutes: float, max_steps: int | None = None, other_seconds: float = 0.0
) -> Plan:
    """Steps that fill `minutes`, all that is measured included, unless `max_steps` says how many."""
    if max_steps is None:
        budget = max(0.0, 60 * minutes - other_seconds)
        count = max(1, min(MOST_EVALUATIONS, int(EVALUATION_SHARE * budget / max(eval_seconds, 1e-9))))
        eval_steps = max(1, int((budget - count * eval_seconds) / step_seconds / count))
        max_steps = eval_steps * count
    else:
        count = min(MOST_EVALUATIONS, max_steps)
        eval_steps = math.ceil(max_steps / count)
    return Plan(max_steps, eval_steps, step_seconds, eval_seconds, peak_memory(), other_seconds)


def measure_steps(trainer: MaftPlusTrainer) -> float:
    """
    Seconds of a training step, the median of three; the model's weights and all chance are as before.

    Raises:
        ValueError: if no loss reaches a parameter that trains.
    """
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    if trainer.args.gradient_checkpointing:  # the Trainer does so later, in `train`
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    optimizer, seconds = trainer.create_optimizer(), []
    try:
        with torch.random.fork_rng():
            for samples in _batches(trainer):
                start = time.perf_counter()
                _step(trainer, optimizer, samples())
                seconds.append(time.perf_counter() - start)
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before):
                parameter.copy_(value)
        trainer.optimizer = None
        trainer.model.zero_grad(set_to_none=True)
        trainer.forget_losses()
    return sorted(seconds)[len(seconds) // 2]


def peak_memory() -> int:
    """Bytes: of the accelerator where there is one, else of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _batches(trainer: MaftPlusTrainer):
    """A function for each of the first batches, so that reading counts as part of the step."""
    data, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    for step in range(NUM_STEPS):
        rows = [(step * size + index) % len(data) for index in range(size)]
        yield lambda rows=rows: [data[row] for row in rows]


def _step(trainer: MaftPlusTrainer, optimizer: torch.optim.Optimizer, samples: list) -> None:
    model = trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(samples))
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(model, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
