"""What a run carries from step to step."""

from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from dopd_vlm.config import RunConfig
from dopd_vlm.methods import Method
from dopd_vlm.models.policy import Policy, output_head
from dopd_vlm.rollout.engine import RolloutEngine
from dopd_vlm.routed_loss.head import Head, HeadPrecision


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
    engine: RolloutEngine
    """Samples the student's completions."""
    vocab_size: int
    """Softmax width: the smaller of the two heads, which may be padded differently."""
    base: Policy | None = None
    """The student as it was before the run; None where the method does not use it."""
    step: int = 0
    num_skipped: int = 0
    head_copies: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    """Of each float32 head its bfloat16 copy, and the step that it was made in."""

    def head(self, policy: Policy) -> Head:
        """The policy's head for the loss: its precision, and one bfloat16 copy a step where it needs one."""
        head = replace(output_head(policy), precision=self.head_precision)
        if head.precision != "bfloat16" or head.weight.dtype != torch.float32:
            return head
        key = id(policy.model)
        step, copy = self.head_copies.get(key, (-1, None))
        if copy is None or step != self.step:
            copy = head.weight.detach().bfloat16()
            self.head_copies[key] = self.step, copy
        return replace(head, operand=copy)

    @property
    def head_precision(self) -> HeadPrecision:
        """The recipe's, with `auto` decided where training is in bfloat16 on a GPU."""
        precision = self.config.method.head_precision
        on_cores = (
            self.accelerator.device.type == "cuda" and self.accelerator.mixed_precision == "bf16"
        )
        return "bfloat16" if precision == "auto" and on_cores else precision
