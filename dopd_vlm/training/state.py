"""What a run carries from step to step."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler

from dopd_vlm.config import RunConfig
from dopd_vlm.methods import Method
from dopd_vlm.models.policy import Policy


@dataclass(kw_only=True)
class TrainState:
    """What training changes (`step`, weights, moments) and what it needs at hand."""

    config: RunConfig
    accelerator: Accelerator
    student: Policy
    teacher: Policy | None
    self_target: Policy | None
    """The student itself when live; a second model when ema or frozen; None where the method has none."""
    method: Method
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    vocab_size: int
    """Softmax width: the smaller of the two heads, which may be padded differently."""
    step: int = 0
    num_skipped: int = 0
