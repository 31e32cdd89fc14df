"""Value and gradient of each divergence on rows of logits, in place.

Shapes: C rows, L rows that fit the cache, V vocabulary, K support. In: student logits [C, V], already
divided by the loss temperature. Out: the value [C] in nats; the logits buffer then holds d value / d
logits but for one factor per row, which costs nothing on the [C, H] side of a product. The formulas are
those of divergences.py, differentiated; tests hold the two together.

Element-wise work goes through the L rows of a scratch buffer, as in partition.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dopd_vlm import divergences
from dopd_vlm.routed_loss.softmax import exp_, exponentials_, log_of, partition_of
from dopd_vlm.types import Route

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Log-probs of student and target, [C, K + 1] each, last the rest -> value [C], slope [C, K + 1]."""
MAX_LOG_RATIO = 80.0
"""exp of it fits float32; the smaller of two probabilities so far apart adds nothing to a JSD."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What is kept of rows, detached."""

    value: Tensor
    """float64 [C] divergence, nats."""
    entropy: Tensor
    """float64 [C] entropy of the student, nats."""
    factor: Tensor
    """float64 [C] by which the rows that are left in the buffer are to be multiplied."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """Student p and target q on L rows; the buffers may be used up."""

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


def dot(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """sum_v a b.  [L, V], [L, V] -> [L, 1]"""
    # On CPU a batched matrix product of such shapes is thirty times slower.
    return torch.mul(a, b, out=scratch).sum(-1, keepdim=True)


def full_(logits: Tensor, target_logits: Tensor, route: Route, scratch: Tensor) -> RowResult:
    """A full-vocabulary divergence; uses up the target's logits. scratch: [2, L, V]."""
    size = scratch.shape[1]
    blocks = zip(logits.split(size), target_logits.split(size), strict=True)
    results = [_full_lines_(own, target, route, scratch[:, : len(own)]) for own, target in blocks]
    return RowResult(
        value=torch.cat([result.value for result in results]),
        entropy=torch.cat([result.entropy for result in results]),
        factor=torch.cat([result.factor for result in results]),
    )


def _full_lines_(logits: Tensor, target_logits: Tensor, route: Route, scratch: Tensor) -> RowResult:
    student, target = scratch
    total, shift = exponentials_(logits, None, student)
    normaliser = log_of(total, shift)
    entropy = normaliser - dot(student, logits, target) / total
    target_total, target_shift = exponentials_(target_logits, None, target)
    offset = (normaliser - log_of(target_total, target_shift)).to(logits.dtype)
    pair = _Pair(
        student=student,
        total=total,
        target=target,
        target_total=target_total,
        log_ratio=target_logits.sub_(logits).add_(offset),
        out=logits,
    )
    kind = effective_divergence(route)
    value, factor = _jsd_(pair, route.beta) if kind == "jsd" else KLS[kind](pair)
    return RowResult(
        value=value.double().squeeze(-1),
        entropy=entropy.squeeze(-1),
        factor=factor.double().squeeze(-1),
    )


def effective_divergence(route: Route) -> str:
    """The divergence of a route; a JSD with beta 0 or 1 is a KL."""
    if route.divergence == "jsd" and route.beta in (0.0, 1.0):
        return "forward_kl" if route.beta == 0.0 else "reverse_kl"
    return route.divergence


def _forward_kl_(pair: _Pair) -> tuple[Tensor, Tensor]:
    """sum q (log q - log p); gradient p - q."""
    value = dot(pair.target, pair.log_ratio, pair.out) / pair.target_total
    torch.div(pair.student, pair.total, out=pair.out)
    pair.out.sub_(pair.target.div_(pair.target_total))
    return value, torch.ones_like(pair.total)


def _reverse_kl_(pair: _Pair) -> tuple[Tensor, Tensor]:
    """sum p (log p - log q); gradient p (log p - log q - value)."""
    value = -dot(pair.student, pair.log_ratio, pair.out) / pair.total
    torch.add(pair.log_ratio, value, out=pair.out).mul_(pair.student)
    return value, -1.0 / pair.total


KLS: dict[str, Callable[[_Pair], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl_,
    "reverse_kl": _reverse_kl_,
}


def _jsd_(pair: _Pair, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(q || M) + (1 - beta) KL(p || M); gradient (1 - beta) p (log p - log M - KL(p || M)).

    log M - log p = log(1 - beta + beta q / p) needs no logarithm of a probability that underflows.
    """
    log_ratio = pair.log_ratio.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    cost = exp_(log_ratio, pair.out).mul_(beta).add_(1.0 - beta).log_()
    target_kl = log_ratio.sub_(cost).mul_(pair.target).sum(-1, keepdim=True) / pair.target_total
    student_kl = -dot(pair.student, cost, pair.target) / pair.total
    cost.add_(student_kl).mul_(pair.student)
    return beta * target_kl + (1.0 - beta) * student_kl, (beta - 1.0) / pair.total


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
    if route.divergence == "jsd":

        def pair(student: Tensor, target: Tensor) -> Tensor:
            return divergences.generalized_jsd(student, target, route.beta)
    else:
        pair = getattr(divergences, route.divergence)

    def slopes(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_logp.detach().requires_grad_()
            value = divergences.partition_divergence(pair, leaf, target_logp, route.tail)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    return slopes


def sampled_slopes(route: Route) -> Slopes:
    """Value and slope of the one-sample estimate at y ~ student, with r = log p(y) - log q(y).

    Reverse KL: value r, slope r, so that the gradient is r d log p(y): in expectation that of the
    full KL (the score-function estimate; TRL's and Thinking Machines' sampled-token loss).
    Forward KL: value -(q/p) r, slope -q/p. JSD: value beta (q/p) log(q/M) + (1 - beta) log(p/M),
    slope (1 - beta) log(p/M). The value may be negative; only its mean is a divergence.
    """
    kind = effective_divergence(route)

    def slopes(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio = student_logp[:, 0] - target_logp[:, 0]
        inverse = (-log_ratio).exp()
        if kind == "reverse_kl":
            value = slope = log_ratio
        elif kind == "forward_kl":
            value, slope = -inverse * log_ratio, -inverse
        else:
            student_part = -torch.log1p(route.beta * (inverse - 1.0))
            target_part = inverse * (student_part - log_ratio)
            value = route.beta * target_part + (1.0 - route.beta) * student_part
            slope = (1.0 - route.beta) * student_part
        return value, torch.stack([slope, torch.zeros_like(slope)], -1)

    return slopes
