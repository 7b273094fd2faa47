"""The processes of a distributed run, also without an accelerator."""

import os

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """
    This process among all (`process_index`, `num_processes`, `is_main_process`).

    accelerate leaves processes without an accelerator apart unless it is told that CPUs are meant; whoever set the
    state first, as the Trainer does, decides.

    Raises:
        RuntimeError: if several processes were started but know nothing of each other: each would count everything.
    """
    state = PartialState() if PartialState._shared_state else PartialState(cpu=not torch.accelerator.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes == 1 and started > 1:
        raise RuntimeError(
            f"{started} processes were started, but each runs alone: pass `--use_cpu` where there are no GPUs; unset "
            "WORLD_SIZE where there is only this one."
        )
    return state
