"""The processes of a distributed run, also without an accelerator."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """
    This process among all (`process_index`, `num_processes`, `is_main_process`).

    accelerate leaves processes without an accelerator apart unless it is told that CPUs are meant; whoever set the
    state first, as the Trainer does, decides.
    """
    if PartialState._shared_state:
        return PartialState()
    return PartialState(cpu=not torch.accelerator.is_available())
