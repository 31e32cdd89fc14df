"""The softmax of rows of logits, taken apart into the tokens of a support and the rest.

Shapes: C rows, L rows that fit the cache, V vocabulary, K support. Element-wise work goes through the L rows
of a scratch buffer, so that a pass over V reads the cache and not the memory. Sums over V are taken in the
dtype of the logits, what is left after them in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SUM, GREATEST_SUM = 1e-15, 1e20
"""Sums of unshifted exponentials in this range lose nothing to under- or overflow in float32."""
LEAST_REST = 1e-38
"""Stands for the mass outside a support where it underflows, so that its logarithm is finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """The softmax of rows, taken apart into a support and the rest; float64."""

    logp: Tensor
    """[C, K + 1]; last: all tokens outside the support together"""
    total: Tensor
    """[C, 1] sum of exp(logits - shift); the shift is 0 or the greatest logit"""
    normaliser: Tensor
    """[C, 1] log sum exp(logits)"""


def exponentials_(logits: Tensor, ids: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leaves e = exp(logits - shift) in out, 0 at ids [L, K]; returns its sum and the shift [L, 1].

    The shift costs two passes; on CPU it is left out (None) unless the sum then leaves its range (on a
    GPU, looking at the sum would cost more).
    """
    if logits.device.type == "cpu":
        total = _sum_outside_(torch.exp(logits, out=out), ids)
        low, high = total.aminmax()
        if float(low) >= LEAST_SUM and float(high) <= GREATEST_SUM:
            return total, None
    shift = logits.amax(-1, keepdim=True)
    return _sum_outside_(torch.sub(logits, shift, out=out).exp_(), ids), shift


def _sum_outside_(exponentials: Tensor, ids: Tensor | None) -> Tensor:
    if ids is not None:
        exponentials.scatter_(-1, ids, 0.0)
    return exponentials.sum(-1, keepdim=True)


def partition(logits: Tensor, ids: Tensor, scratch: Tensor) -> Partition:
    """The softmax of rows [C, V] by ids [C, K]; scratch: [L, V]."""
    picked, size = logits.gather(-1, ids), len(scratch)
    sums = [
        exponentials_(lines, at, scratch[: len(lines)])
        for lines, at in zip(logits.split(size), ids.split(size), strict=True)
    ]
    return partition_of(picked, sums)


def partition_of(picked: Tensor, sums: list[tuple[Tensor, Tensor | None]]) -> Partition:
    """picked: logits [C, K] of the support; sums: what exponentials_ returned, block by block."""
    picked = picked.double()
    # A sum over the rest alone: 1 - mass would be noise where the support holds nearly everything.
    rest = torch.cat([total for total, _ in sums]).double()
    shift = torch.cat([torch.zeros_like(t) if at is None else at for t, at in sums]).double()
    total = rest + (picked - shift).exp().sum(-1, keepdim=True)
    normaliser = total.log() + shift
    rest_logp = (rest / total).clamp(min=LEAST_REST).log()
    logp = torch.cat([picked - normaliser, rest_logp], -1)
    return Partition(logp=logp, total=total, normaliser=normaliser)


def log_normaliser(logits: Tensor, scratch: Tensor) -> Tensor:
    """log sum_v exp(logits), float64.  [C, V] -> [C, 1]; scratch: [L, V]"""
    no_ids = torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    return partition(logits, no_ids, scratch).normaliser
