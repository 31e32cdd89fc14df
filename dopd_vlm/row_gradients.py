"""Value and gradient of each divergence on a few rows of logits, in place.

Shapes: C rows, V vocabulary, K support. In: student logits [C, V], already divided by the loss
temperature. Out: the value [C] in nats; the logits buffer then holds d value / d logits. The
formulas are those of divergences.py, differentiated; tests hold the two together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import divergences
from .types import Route

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What is kept of a chunk of rows, detached."""

    value: Tensor
    """[C] divergence, nats."""
    entropy: Tensor
    """[C] entropy of the student, nats."""


def dot(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """sum_v a b.  [C, V], [C, V] -> [C]"""
    # On CPU a batched matrix product of such shapes is thirty times slower.
    return torch.mul(a, b, out=scratch).sum(-1)


def log_normaliser(logits: Tensor, prob: Tensor) -> Tensor:
    """log sum_v exp(logits), given prob = softmax(logits).  [C, V], [C, V] -> [C]"""
    # The greatest probability is exp(0) / sum, at least 1 / V: it cannot underflow.
    return logits.amax(-1) - prob.amax(-1).log()


def full_(logits: Tensor, target_logits: Tensor, route: Route, scratch: Tensor) -> RowResult:
    """A full-vocabulary divergence; uses up the target's logits. scratch: [3, C, V]."""
    kind = effective_divergence(route)
    if kind == "jsd":
        return _jsd_(logits, target_logits, route.beta, scratch)
    student_logp = torch.log_softmax(logits, -1, out=scratch[0])
    target_logp = torch.log_softmax(target_logits, -1, out=scratch[1])
    student = torch.exp(student_logp, out=logits)
    entropy = -dot(student, student_logp, scratch[2])
    if kind == "forward_kl":
        target = torch.exp(target_logp, out=target_logits)
        value = dot(target, target_logp.sub_(student_logp), scratch[2])
        student.sub_(target)
    else:
        ratio = student_logp.sub_(target_logp)
        value = dot(student, ratio, scratch[2])
        student.mul_(ratio.sub_(value[:, None]))
    return RowResult(value=value, entropy=entropy)


def effective_divergence(route: Route) -> str:
    """The divergence of a route; a JSD with beta 0 or 1 is a KL."""
    if route.divergence == "jsd" and route.beta in (0.0, 1.0):
        return "forward_kl" if route.beta == 0.0 else "reverse_kl"
    return route.divergence


def _jsd_(logits: Tensor, target_logits: Tensor, beta: float, scratch: Tensor) -> RowResult:
    tiny = torch.finfo(logits.dtype).tiny
    student = torch.softmax(logits, -1, out=scratch[0])
    entropy = log_normaliser(logits, student) - dot(student, logits, scratch[1])
    # Probabilities that underflow would give log 0; at `tiny` their terms vanish all the same.
    student.clamp_(min=tiny)
    target = torch.softmax(target_logits, -1, out=logits).clamp_(min=tiny)
    mixture = torch.lerp(student, target, beta, out=target_logits)
    ratio = torch.div(student, mixture, out=scratch[1]).log_()
    student_kl = dot(student, ratio, scratch[2])
    gradient = ratio.sub_(student_kl[:, None]).mul_(student)
    ratio = torch.div(target, mixture, out=mixture).log_()
    target_kl = dot(target, ratio, scratch[2])
    torch.mul(gradient, 1.0 - beta, out=logits)
    return RowResult(value=beta * target_kl + (1.0 - beta) * student_kl, entropy=entropy)


def on_support_(
    logits: Tensor, ids: Tensor, target_logp: Tensor, slopes: Slopes, scratch: Tensor
) -> RowResult:
    """A divergence that sees the student's log-probs u at ids [C, K] only.

    d value / d logits_v = [v in ids] g_v - p_v sum(g), with g = d value / d u from `slopes`.
    scratch: [2 or more, C, V].
    """
    student = torch.softmax(logits, -1, out=scratch[0])
    normaliser = log_normaliser(logits, student)
    entropy = normaliser - dot(student, logits, scratch[1])
    value, slope = slopes(logits.gather(-1, ids) - normaliser[:, None], target_logp)
    torch.mul(student, -slope.sum(-1, keepdim=True), out=logits)
    logits.scatter_add_(-1, ids, slope)
    return RowResult(value=value, entropy=entropy)


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
