"""Value and gradient of each divergence on rows of logits, in place.

Shapes: C rows, L rows that fit the cache, V vocabulary, K support. In: student logits [C, V], already
divided by the loss temperature. Out: the value [C] in nats; the logits buffer then holds d value / d
logits. The formulas are those of divergences.py, differentiated; tests hold the two together.

Element-wise work goes through the L rows of a scratch buffer, so that a pass over V reads the cache and not
the memory. Sums over V are taken in the dtype of the logits, what is left after them in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import divergences
from .types import Route

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
LEAST_SUM, GREATEST_SUM = 1e-20, 1e30
"""Sums of unshifted exponentials in this range lose nothing to under- or overflow in float32."""
MAX_LOG_RATIO = 80.0
"""exp of it fits float32; the smaller of two probabilities so far apart adds nothing to a JSD."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What is kept of rows, detached."""

    value: Tensor
    """float64 [C] divergence, nats."""
    entropy: Tensor
    """float64 [C] entropy of the student, nats."""


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


def exp_sum(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of e, log sum exp(logits) in float64), with e = exp(logits - shift) left in out.

    [L, V] -> [L, 1] each. Shifting by the greatest logit costs two passes; on CPU it is done only where
    the sum without it leaves its range (on a GPU, looking at the sum would cost more).
    """
    if logits.device.type == "cpu":
        total = torch.exp(logits, out=out).sum(-1, keepdim=True)
        low, high = total.aminmax()
        if float(low) >= LEAST_SUM and float(high) <= GREATEST_SUM:
            return total, total.double().log()
    shift = logits.amax(-1, keepdim=True)
    total = torch.sub(logits, shift, out=out).exp_().sum(-1, keepdim=True)
    return total, total.double().log() + shift


def log_normaliser(logits: Tensor, scratch: Tensor) -> Tensor:
    """log sum_v exp(logits), float64.  [C, V] -> [C, 1]; scratch: [L, V]"""
    blocks = logits.split(len(scratch))
    return torch.cat([exp_sum(lines, scratch[: len(lines)])[1] for lines in blocks])


def full_(logits: Tensor, target_logits: Tensor, route: Route, scratch: Tensor) -> RowResult:
    """A full-vocabulary divergence; uses up the target's logits. scratch: [2, L, V]."""
    size = scratch.shape[1]
    blocks = zip(logits.split(size), target_logits.split(size), strict=True)
    results = [_full_lines_(own, target, route, scratch[:, : len(own)]) for own, target in blocks]
    return RowResult(
        value=torch.cat([result.value for result in results]),
        entropy=torch.cat([result.entropy for result in results]),
    )


def _full_lines_(logits: Tensor, target_logits: Tensor, route: Route, scratch: Tensor) -> RowResult:
    student, target = scratch
    total, normaliser = exp_sum(logits, student)
    entropy = normaliser - dot(student, logits, target) / total
    target_total, target_normaliser = exp_sum(target_logits, target)
    offset = (normaliser - target_normaliser).to(logits.dtype)
    pair = _Pair(
        student=student,
        total=total,
        target=target,
        target_total=target_total,
        log_ratio=target_logits.sub_(logits).add_(offset),
        out=logits,
    )
    kind = effective_divergence(route)
    value = _jsd_(pair, route.beta) if kind == "jsd" else KLS[kind](pair)
    return RowResult(value=value.double().squeeze(-1), entropy=entropy.squeeze(-1))


def effective_divergence(route: Route) -> str:
    """The divergence of a route; a JSD with beta 0 or 1 is a KL."""
    if route.divergence == "jsd" and route.beta in (0.0, 1.0):
        return "forward_kl" if route.beta == 0.0 else "reverse_kl"
    return route.divergence


def _forward_kl_(pair: _Pair) -> Tensor:
    """sum q (log q - log p); gradient p - q."""
    value = dot(pair.target, pair.log_ratio, pair.out) / pair.target_total
    torch.div(pair.student, pair.total, out=pair.out)
    pair.out.sub_(pair.target.div_(pair.target_total))
    return value


def _reverse_kl_(pair: _Pair) -> Tensor:
    """sum p (log p - log q); gradient p (log p - log q - value)."""
    value = -dot(pair.student, pair.log_ratio, pair.out) / pair.total
    torch.add(pair.log_ratio, value, out=pair.out).mul_(pair.student).mul_(-1.0 / pair.total)
    return value


KLS: dict[str, Callable[[_Pair], Tensor]] = {
    "forward_kl": _forward_kl_,
    "reverse_kl": _reverse_kl_,
}


def _jsd_(pair: _Pair, beta: float) -> Tensor:
    """beta KL(q || M) + (1 - beta) KL(p || M); gradient (1 - beta) p (log p - log M - KL(p || M)).

    log M - log p = log(1 - beta + beta q / p) needs no logarithm of a probability that underflows.
    """
    log_ratio = pair.log_ratio.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    cost = torch.exp(log_ratio, out=pair.out).mul_(beta).add_(1.0 - beta).log_()
    target_kl = log_ratio.sub_(cost).mul_(pair.target).sum(-1, keepdim=True) / pair.target_total
    student_kl = -dot(pair.student, cost, pair.target) / pair.total
    cost.add_(student_kl).mul_(pair.student).mul_((beta - 1.0) / pair.total)
    return beta * target_kl + (1.0 - beta) * student_kl


def on_support_(
    logits: Tensor, ids: Tensor, target_logp: Tensor, slopes: Slopes, scratch: Tensor
) -> RowResult:
    """A divergence that sees the student's log-probs u at ids [C, K] only.

    d value / d logits_v = [v in ids] g_v - p_v sum(g), with g = d value / d u from `slopes`.
    scratch: [L, V].
    """
    picked = logits.new_empty(ids.shape)
    total, normaliser, expected = logits.new_empty((3, len(logits), 1), dtype=torch.float64)
    for start in range(0, len(logits), len(scratch)):
        at = slice(start, start + len(scratch))
        lines, own = logits[at], scratch[: len(logits[at])]
        picked[at] = lines.gather(-1, ids[at])
        total[at], normaliser[at] = exp_sum(lines, own)
        expected[at] = lines.mul_(own).sum(-1, keepdim=True)
        lines.copy_(own)
    value, slope = slopes(picked.double() - normaliser, target_logp.double())
    logits.mul_((-slope.sum(-1, keepdim=True) / total).to(logits.dtype))
    logits.scatter_add_(-1, ids, slope.to(logits.dtype))
    return RowResult(value=value, entropy=(normaliser - expected / total).squeeze(-1))


def support_slopes(route: Route) -> Slopes:
    """Value and slope of a top-K route, by autograd on the K entries of divergences.py."""
    if route.divergence == "jsd":

        def pair(student: Tensor, target: Tensor) -> Tensor:
            return divergences.generalized_jsd(student, target, route.beta)
    else:
        pair = getattr(divergences, route.divergence)

    def slopes(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_logp.detach().requires_grad_()
            value = divergences.support_divergence(pair, leaf, target_logp, route.tail)
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
        log_ratio = student_logp - target_logp
        inverse = (-log_ratio).exp()
        if kind == "reverse_kl":
            return log_ratio.squeeze(-1), log_ratio
        if kind == "forward_kl":
            return (-inverse * log_ratio).squeeze(-1), -inverse
        student_part = -torch.log1p(route.beta * (inverse - 1.0))
        target_part = inverse * (student_part - log_ratio)
        value = route.beta * target_part + (1.0 - route.beta) * student_part
        return value.squeeze(-1), (1.0 - route.beta) * student_part

    return slopes
