"""Value and gradient of each divergence on rows of logits, in place.

Shapes: C rows, L rows that fit the cache, V vocabulary, K support. In: student logits [C, V], already
divided by the loss temperature. Out: the value [C] in nats; the logits buffer then holds d value / d
logits but for one factor per row, which costs nothing on the [C, H] side of a product. The formulas are
those of divergences.py, differentiated; tests hold the two together.

Element-wise work goes through the L rows of a scratch buffer, as in softmax.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dopd_vlm import divergences
from dopd_vlm.divergences import Divergence
from dopd_vlm.routed_loss.softmax import exponentials_, log_of, partition_of
from dopd_vlm.routed_loss.torch_kernels import Pair, dot, kernel_of
from dopd_vlm.types import TOKENS, Route

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Log-probs of student and target, [C, K + 1] each, last the rest -> value [C], slope [C, K + 1]."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What is kept of rows, detached."""

    value: Tensor
    """float64 [C] divergence, nats."""
    entropy: Tensor
    """float64 [C] entropy of the student, nats."""
    factor: Tensor
    """float64 [C] by which the rows that are left in the buffer are to be multiplied."""


def full_(logits: Tensor, target_logits: Tensor, route: Route, scratch: Tensor) -> RowResult:
    """A full-vocabulary divergence; uses up the target's logits. scratch: [2, L, V]."""
    size, divergence = scratch.shape[1], divergences.of_route(route)
    blocks = zip(logits.split(size), target_logits.split(size), strict=True)
    results = [
        _full_lines_(own, target, divergence, route.beta, scratch[:, : len(own)])
        for own, target in blocks
    ]
    return RowResult(
        value=torch.cat([result.value for result in results]),
        entropy=torch.cat([result.entropy for result in results]),
        factor=torch.cat([result.factor for result in results]),
    )


def _full_lines_(
    logits: Tensor, target_logits: Tensor, divergence: Divergence, beta: float, scratch: Tensor
) -> RowResult:
    kernel = kernel_of(divergence)
    if kernel is None:
        return _by_autograd_(logits, target_logits, divergence, beta)
    student, target = scratch
    total, shift = exponentials_(logits, None, student)
    normaliser = log_of(total, shift)
    entropy = normaliser - dot(student, logits, target) / total
    target_total, target_shift = exponentials_(target_logits, None, target)
    offset = (normaliser - log_of(target_total, target_shift)).to(logits.dtype)
    pair = Pair(
        student=student,
        total=total,
        target=target,
        target_total=target_total,
        log_ratio=target_logits.sub_(logits).add_(offset),
        out=logits,
    )
    value, factor = kernel(pair, beta)
    return RowResult(
        value=value.double().squeeze(-1),
        entropy=entropy.squeeze(-1),
        factor=factor.double().squeeze(-1),
    )


def _by_autograd_(
    logits: Tensor, target_logits: Tensor, divergence: Divergence, beta: float
) -> RowResult:
    """A divergence without a kernel: autograd through the whole rows, about five of them per row in memory."""
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        student_logp = leaf.log_softmax(-1)
        value = divergence.value(student_logp, target_logits.log_softmax(-1), beta)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    student_logp = student_logp.detach()
    entropy = -torch.where(student_logp == -torch.inf, 0.0, student_logp.exp() * student_logp).sum(
        -1
    )
    logits.copy_(grad)
    value = value.detach().double()
    return RowResult(value=value, entropy=entropy.double(), factor=torch.ones_like(value))


def on_support_(
    logits: Tensor, ids: Tensor, target_logp: Tensor, slopes: Slopes, scratch: Tensor
) -> RowResult:
    """A divergence that sees the student through its log-probs u at ids [C, K] and that of the rest.

    With g = d value / d u [C, K + 1] from `slopes` and p the student: d value / d logits_v is
    g_v - p_v sum(g) at ids, and p_v (g_rest / p_rest - sum(g)) elsewhere. scratch: [L, V].
    """
    picked, size = logits.gather(-1, ids), len(scratch)
    log_rest, shifts, expected = [], [], []
    for lines, at in zip(logits.split(size), ids.split(size), strict=True):
        own = scratch[: len(lines)]
        total, shift = exponentials_(lines, at, own)
        log_rest.append(log_of(total, shift))
        shifts.append(torch.zeros_like(total) if shift is None else shift)
        expected.append(lines.mul_(own).sum(-1, keepdim=True))
        lines.copy_(own)
    part = partition_of(picked, torch.cat(log_rest))
    total = (part.normaliser - torch.cat(shifts)).exp()
    inside, rest = part.logp.exp().split((ids.shape[1], 1), -1)
    expected = torch.cat(expected) / total + (inside * picked).sum(-1, keepdim=True)
    value, slope = slopes(part.logp, target_logp.double())
    slope_sum = slope.sum(-1, keepdim=True)
    outside = slope[:, -1:] / rest - slope_sum
    # Next to zero it is no factor to divide by; a gradient of eps^2 p in its place is lost in rounding.
    least = torch.finfo(logits.dtype).eps ** 2
    outside = torch.where(outside.abs() < least, least, outside)
    factor = outside / total
    logits.scatter_(-1, ids, ((slope[:, :-1] - inside * slope_sum) / factor).to(logits.dtype))
    return RowResult(
        value=value,
        entropy=(part.normaliser - expected).squeeze(-1),
        factor=factor.squeeze(-1),
    )


def support_slopes(route: Route) -> Slopes:
    """Value and slope of a top-K route, by autograd on the K + 1 entries of divergences.py."""
    pair = divergences.of_route(route).at(route.beta)

    def slopes(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_logp.detach().requires_grad_()
            value = divergences.partition_divergence(pair, leaf, target_logp, route.tail)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    return slopes


def sampled_slopes(route: Route) -> Slopes:
    """Value and slope of the divergence's one-sample estimate; the rest of the vocabulary has slope 0."""
    if route.target == TOKENS:
        return _likelihood_slopes
    divergence = divergences.of_route(route)
    assert divergence.estimate is not None  # checked where the method is made
    estimate = divergence.estimate

    def slopes(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = estimate(student_logp[:, 0], target_logp[:, 0], route.beta)
        return value, torch.stack([slope, torch.zeros_like(slope)], -1)

    return slopes


def _likelihood_slopes(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
    """KL to a target of mass 1 on the token: value -log p, slope -1, exact and no estimate."""
    logp = student_logp[:, 0]
    return -logp, torch.stack([-torch.ones_like(logp), torch.zeros_like(logp)], -1)
