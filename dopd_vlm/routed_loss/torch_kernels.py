"""Value and gradient of the built-in divergences on rows, in place.

A kernel takes a Pair and the mixture weight beta, and returns the value [L, 1] in nats and a factor [L, 1];
`pair.out` then holds d value / d student logits but for that factor. The formulas are those of
divergences.py, differentiated; tests hold the two together.

Shapes: L rows, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dopd_vlm.divergences import Divergence

LOG2_E = math.log2(math.e)
MAX_LOG_RATIO = 80.0
"""exp of it fits float32; the smaller of two probabilities so far apart adds nothing to a JSD."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Student p and target q on L rows; a kernel may use the buffers up."""

    student: Tensor
    """[L, V] p times its total"""
    total: Tensor
    """[L, 1]"""
    target: Tensor
    """[L, V] q times its total"""
    target_total: Tensor
    """[L, 1]"""
    log_ratio: Tensor
    """[L, V] log q - log p"""
    out: Tensor
    """[L, V] where the gradient goes"""


def exp_(values: Tensor, out: Tensor) -> Tensor:
    """exp(values) in out, which may be values."""
    if values.device.type != "cpu":
        return torch.exp(values, out=out)
    # A third of the time of MKL's exp; the product rounds as much as a logit itself is rounded.
    return torch.mul(values, LOG2_E, out=out).exp2_()


def dot(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """sum_v a b.  [L, V], [L, V] -> [L, 1]"""
    # On CPU a batched matrix product of such shapes is thirty times slower.
    return torch.mul(a, b, out=scratch).sum(-1, keepdim=True)


def forward_kl_(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """sum q (log q - log p); gradient p - q."""
    value = dot(pair.target, pair.log_ratio, pair.out) / pair.target_total
    torch.div(pair.student, pair.total, out=pair.out)
    pair.out.sub_(pair.target.div_(pair.target_total))
    return value, torch.ones_like(pair.total)


def reverse_kl_(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """sum p (log p - log q); gradient p (log p - log q - value)."""
    value = -dot(pair.student, pair.log_ratio, pair.out) / pair.total
    torch.add(pair.log_ratio, value, out=pair.out).mul_(pair.student)
    return value, -1.0 / pair.total


def jsd_(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(q || M) + (1 - beta) KL(p || M); gradient (1 - beta) p (log p - log M - KL(p || M)).

    log M - log p = log(1 - beta + beta q / p) needs no logarithm of a probability that underflows.
    """
    log_ratio = pair.log_ratio.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    cost = exp_(log_ratio, pair.out).mul_(beta).add_(1.0 - beta).log_()
    target_kl = log_ratio.sub_(cost).mul_(pair.target).sum(-1, keepdim=True) / pair.target_total
    student_kl = -dot(pair.student, cost, pair.target) / pair.total
    cost.add_(student_kl).mul_(pair.student)
    return beta * target_kl + (1.0 - beta) * student_kl, (beta - 1.0) / pair.total


Kernel = Callable[[Pair, float], tuple[Tensor, Tensor]]

KERNELS: dict[str, Kernel] = {"forward_kl": forward_kl_, "reverse_kl": reverse_kl_, "jsd": jsd_}
"""Those of the built-in divergences, by name."""


def kernel_of(divergence: Divergence) -> Kernel | None:
    """The divergence's kernel for torch; None where autograd has to do."""
    return divergence.kernels.get("torch", KERNELS.get(divergence.name))
