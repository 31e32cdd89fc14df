"""What all processes must hold alike before the first step."""

import hashlib

import torch
from torch import Tensor, nn

from dopd_vlm.distributed import differing_ranks
from dopd_vlm.training.state import TrainState

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element."""


def check_same_weights(state: TrainState) -> None:
    """Raises ValueError on every rank where student, teacher or self-target differ between ranks.

    Ranks reduce gradients and never compare weights again, so ranks that begin apart stay apart: another
    checkpoint on a node's own disk, or weights that a loader left at zero on all ranks but one.
    """
    if state.accelerator.num_processes == 1:
        return
    policies = {
        "student": state.student,
        "teacher": state.teacher,
        "self-target": state.self_target,
    }
    for name, policy in policies.items():
        if policy is None or (name == "self-target" and policy is state.student):
            continue
        ranks = differing_ranks(state.accelerator, weight_fingerprint(policy.model))
        if ranks:
            raise ValueError(
                f"the {name}'s weights on rank {', '.join(map(str, ranks))} are not those of rank 0 "
                f"({policy.path}); give every machine the same folder, and the same checkpoint when resuming"
            )


def weight_fingerprint(model: nn.Module) -> str:
    """Hash of all parameters, equal where they are bit for bit; the same on every device."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {_sum_of_bits(parameter)}\n".encode())
    return digest.hexdigest()


def _sum_of_bits(tensor: Tensor) -> int:
    """Elements as integers, added up: unlike a sum of floats it does not depend on the order."""
    bits = tensor.detach().contiguous().view(INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))
