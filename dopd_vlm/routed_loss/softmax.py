"""The softmax of rows of logits, taken apart into the tokens of a support and the rest.

Shapes: C rows, L rows that fit the cache, V vocabulary, K support. Element-wise work goes through the L rows
of a scratch buffer, so that a pass over V reads the cache and not the memory. Sums over V are taken in the
dtype of the logits, what is left after them in float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SUM, GREATEST_SUM = 1e-15, 1e20
"""Sums of unshifted exponentials in this range lose nothing to under- or overflow in float32."""
LOG2_E = math.log2(math.e)
LEAST_REST = 1e-38
"""Stands for the mass outside a support where it underflows, so that its logarithm is finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """The softmax of rows, taken apart into a support and the rest; float64."""

    logp: Tensor
    """[C, K + 1]; last: all tokens outside the support together"""
    normaliser: Tensor
    """[C, 1] log sum exp(logits)"""


def exp_(values: Tensor, out: Tensor) -> Tensor:
    """exp(values) in out, which may be values."""
    if values.device.type != "cpu":
        return torch.exp(values, out=out)
    # A third of the time of MKL's exp; the product rounds as much as a logit itself is rounded.
    return torch.mul(values, LOG2_E, out=out).exp2_()


def exponentials_(logits: Tensor, ids: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leaves e = exp(logits - shift) in out, 0 at ids [L, K]; returns its sum and the shift [L, 1].

    The shift costs two passes; on CPU it is left out (None) unless the sum then leaves its range (on a
    GPU, looking at the sum would cost more).
    """
    if logits.device.type == "cpu":
        total = _sum_outside_(exp_(logits, out), ids)
        low, high = total.aminmax()
        if float(low) >= LEAST_SUM and float(high) <= GREATEST_SUM:
            return total, None
    shift = logits.amax(-1, keepdim=True)
    return _sum_outside_(exp_(torch.sub(logits, shift, out=out), out), ids), shift


def _sum_outside_(exponentials: Tensor, ids: Tensor | None) -> Tensor:
    if ids is not None and ids.shape[1]:
        exponentials.scatter_(-1, ids, 0.0)
    return exponentials.sum(-1, keepdim=True)


def log_sum_outside(logits: Tensor, ids: Tensor, scratch: Tensor) -> Tensor:
    """log of the sum of exp(logits) but at ids [C, K], float64.  [C, V] -> [C, 1]; scratch: [L, V]"""
    size = len(scratch)
    sums = [
        exponentials_(lines, at, scratch[: len(lines)])
        for lines, at in zip(logits.split(size), ids.split(size), strict=True)
    ]
    return torch.cat([log_of(total, shift) for total, shift in sums])


def log_of(total: Tensor, shift: Tensor | None) -> Tensor:
    """What `exponentials_` returned as one logarithm, float64.  [L, 1]"""
    log_total = total.double().log()
    return log_total if shift is None else log_total + shift


def partition(logits: Tensor, ids: Tensor, scratch: Tensor) -> Partition:
    """The softmax of rows [C, V] by ids [C, K]; scratch: [L, V]."""
    return partition_of(logits.gather(-1, ids), log_sum_outside(logits, ids, scratch))


def partition_of(picked: Tensor, log_rest: Tensor) -> Partition:
    """picked: logits [C, K] of the support; log_rest: float64 [C, 1] log sum exp of all others."""
    picked = picked.double()
    # A sum over the rest alone: 1 - mass would be noise where the support holds nearly everything.
    normaliser = torch.cat([picked, log_rest], -1).logsumexp(-1, keepdim=True)
    rest_logp = (log_rest - normaliser).clamp(min=math.log(LEAST_REST))
    return Partition(logp=torch.cat([picked - normaliser, rest_logp], -1), normaliser=normaliser)
