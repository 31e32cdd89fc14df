"""Per-token divergences between the distribution that learns (student) and a target.

Pure functions: full-vocabulary log-probabilities in, one value per token out. Masks, weights and
averages live in routing.py.

Shapes: ... = leading axes, V = vocabulary, K = support. Units: nats. Inputs are log-probabilities
(float32 or float64) with the temperature already applied to the logits; any input may carry a
gradient. Forward KL is KL(target || student), reverse KL is KL(student || target).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dopd_vlm import plugins
from dopd_vlm.types import Route, Tail

PairDivergence = Callable[[Tensor, Tensor], Tensor]
Support = Literal["target", "student"]
# log(1 - mass) has an infinite slope at mass 1; this is the largest log-mass that still has a tail.
MAX_LOG_MASS = -1e-7


def _kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    return (p_logp.exp() * (p_logp - q_logp)).sum(-1)


def forward_kl(student_logp: Tensor, target_logp: Tensor) -> Tensor:
    """KL(target || student) = sum_v q_v (log q_v - log p_v).  [..., V], [..., V] -> [...]

    p is the student, q the target (paper Eq. 2). At least 0, and 0 only at equality.
    """
    return _kl(target_logp, student_logp)


def reverse_kl(student_logp: Tensor, target_logp: Tensor) -> Tensor:
    """KL(student || target) = sum_v p_v (log p_v - log q_v).  [..., V], [..., V] -> [...]

    p is the student, q the target (paper Eq. 3). At least 0, and 0 only at equality.
    """
    return _kl(student_logp, target_logp)


def generalized_jsd(student_logp: Tensor, target_logp: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(target || M) + (1 - beta) KL(student || M), M = (1 - beta) student + beta target.

    [..., V], [..., V] -> [...]. beta = 0.5 is the paper's JS (Eq. 4), symmetric and at most log 2.
    beta = 0 is defined as the forward and beta = 1 as the reverse KL; the interior does not tend
    to these values (it tends to 0), so beta = 0.001 is not nearly a forward KL.

    Raises:
        ValueError: beta outside [0, 1].

    Source: Agarwal et al. 2024, On-Policy Distillation of Language Models (2306.13649); TRL's
    convention.
    """
    check_beta(beta)
    if beta == 0.0:
        return forward_kl(student_logp, target_logp)
    if beta == 1.0:
        return reverse_kl(student_logp, target_logp)
    # In log space: a tail below about e^-103 is 0 as a float32 probability, and log 0 is -inf.
    mixture = torch.logaddexp(student_logp + math.log1p(-beta), target_logp + math.log(beta))
    return beta * _kl(target_logp, mixture) + (1.0 - beta) * _kl(student_logp, mixture)


def check_beta(beta: float) -> None:
    """Raises ValueError unless beta is in [0, 1]."""
    if not 0.0 <= beta <= 1.0:
        raise ValueError(
            f"beta={beta} is outside [0, 1]; 0 is the forward KL, 1 the reverse KL, 0.5 the JS"
        )


def top_k_reverse_kl(
    student_logp: Tensor,
    target_logp: Tensor,
    k: int,
    *,
    support: Support = "target",
    tail: Tail = "bucket",
) -> Tensor:
    """Reverse KL over the K most probable tokens of the target or the student.  [...]

    `bucket` adds one entry with the mass outside the support, `renormalise` divides both sides by
    their mass inside, `truncate` drops the rest. Only the first two are divergences: a truncated
    one has a gradient where both distributions are equal. k >= V is the full form.

    Raises:
        ValueError: k < 1, unknown support or tail.
    """
    return _top_k(reverse_kl, student_logp, target_logp, k, support, tail)


def top_k_forward_kl(
    student_logp: Tensor,
    target_logp: Tensor,
    k: int,
    *,
    support: Support = "target",
    tail: Tail = "bucket",
) -> Tensor:
    """Forward KL over the K most probable tokens; options and errors of `top_k_reverse_kl`."""
    return _top_k(forward_kl, student_logp, target_logp, k, support, tail)


def top_k_jsd(
    student_logp: Tensor,
    target_logp: Tensor,
    k: int,
    *,
    beta: float = 0.5,
    support: Support = "target",
    tail: Tail = "bucket",
) -> Tensor:
    """Generalized JSD over the K most probable tokens; options and errors of `top_k_reverse_kl`."""

    def jsd(student: Tensor, target: Tensor) -> Tensor:
        return generalized_jsd(student, target, beta)

    return _top_k(jsd, student_logp, target_logp, k, support, tail)


def _top_k(
    divergence: PairDivergence,
    student_logp: Tensor,
    target_logp: Tensor,
    k: int,
    support: Support,
    tail: Tail,
) -> Tensor:
    if k < 1:
        raise ValueError(f"k={k}: the support needs at least one token")
    if support not in ("target", "student"):
        raise ValueError(f"support={support!r}: choose target or student")
    if k >= student_logp.shape[-1]:
        return divergence(student_logp, target_logp)
    ranked = target_logp if support == "target" else student_logp
    ids = ranked.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return support_divergence(
        divergence, student_logp.gather(-1, ids), target_logp.gather(-1, ids), tail
    )


def support_divergence(
    divergence: PairDivergence, student_logp: Tensor, target_logp: Tensor, tail: Tail
) -> Tensor:
    """The divergence of two distributions known on a support only.  [..., K], [..., K] -> [...]

    Inputs are log-probabilities of the full distribution at the K support tokens; `tail` says
    what the rest becomes (see `top_k_reverse_kl`).
    """
    student, target = with_tail_bucket(student_logp), with_tail_bucket(target_logp)
    return partition_divergence(divergence, student, target, tail)


def partition_divergence(
    divergence: PairDivergence, student_logp: Tensor, target_logp: Tensor, tail: Tail
) -> Tensor:
    """`support_divergence` where the mass of the rest is known.  [..., K + 1] twice -> [...]

    The last entry is the log-probability of all tokens outside the support. Summed over these tokens it
    is exact to a rounding; 1 - mass is not where the mass is near 1.
    """
    if tail == "bucket":
        return divergence(student_logp, target_logp)
    student_logp, target_logp = student_logp[..., :-1], target_logp[..., :-1]
    if tail == "renormalise":
        return divergence(student_logp.log_softmax(-1), target_logp.log_softmax(-1))
    if tail == "truncate":
        return divergence(student_logp, target_logp)
    raise ValueError(f"tail={tail!r}: choose bucket, renormalise or truncate")


def with_tail_bucket(logp: Tensor) -> Tensor:
    """Log-probs on a support with one more entry, log(1 - sum).  [..., K] -> [..., K + 1]"""
    mass = logp.logsumexp(-1, keepdim=True).clamp(max=MAX_LOG_MASS)
    return torch.cat([logp, (-mass.expm1()).log()], -1)


Value = Callable[[Tensor, Tensor, float], Tensor]
"""(student log-probs [..., V], target's, beta) -> [...] in nats."""
Estimate = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(log p(y), log q(y), beta) of tokens y ~ p, [...] each -> value and slope d value / d log p(y)."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A divergence that routes can name; `register` makes one known."""

    name: str
    value: Value
    """On log-probs, at least 0, and 0 with zero gradient at equality; differentiable by autograd."""
    estimate: Estimate | None = None
    """From the sampled token alone, so that slope x d log p(y) is on average the gradient of the value.
    None: `support: sampled` is refused."""
    kernels: Mapping[str, Any] = field(default_factory=dict)
    """What replaces autograd through whole rows, by backend: `torch`, a function of
    routed_loss/torch_kernels.py's form. The built-in ones stand in that file."""

    def at(self, beta: float) -> PairDivergence:
        """The value with beta filled in."""
        return partial(self._value_at, beta)

    def _value_at(self, beta: float, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return self.value(student_logp, target_logp, beta)


def _estimate_forward_kl(logp: Tensor, target_logp: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Value (q/p) log(q/p), slope -q/p."""
    ratio = (target_logp - logp).exp()
    return ratio * (target_logp - logp), -ratio


def _estimate_reverse_kl(logp: Tensor, target_logp: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Value and slope r = log(p/q): r d log p is on average the gradient of the full KL (the score-function
    estimate; TRL's and Thinking Machines' sampled-token loss). The value may be negative."""
    return logp - target_logp, logp - target_logp


def _estimate_jsd(logp: Tensor, target_logp: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Value beta (q/p) log(q/M) + (1 - beta) log(p/M), slope (1 - beta) log(p/M)."""
    log_ratio = logp - target_logp
    ratio = (-log_ratio).exp()
    student_part = -torch.log1p(beta * (ratio - 1.0))
    target_part = ratio * (student_part - log_ratio)
    slope = (1.0 - beta) * student_part
    return beta * target_part + slope, slope


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(
        name="forward_kl",
        value=lambda student_logp, target_logp, beta: forward_kl(student_logp, target_logp),
        estimate=_estimate_forward_kl,
    ),
    "reverse_kl": Divergence(
        name="reverse_kl",
        value=lambda student_logp, target_logp, beta: reverse_kl(student_logp, target_logp),
        estimate=_estimate_reverse_kl,
    ),
    "jsd": Divergence(
        name="jsd",
        value=generalized_jsd,
        estimate=_estimate_jsd,
    ),
}
"""All divergences by name; other packages add theirs (dopd_vlm/ADD_A_METHOD.md)."""


def register(divergence: Divergence) -> Divergence:
    """Makes a divergence known under its name, and returns it; ValueError where another has the name."""
    return plugins.add("divergence", DIVERGENCES, divergence.name, divergence)


def divergence(name: str) -> Divergence:
    """The divergence of that name; ValueError for an unknown one."""
    return plugins.look_up("divergence", DIVERGENCES, name)


def of_route(route: Route) -> Divergence:
    """The divergence of a route; a JSD with beta 0 or 1 is a KL."""
    if route.divergence == "jsd" and route.beta in (0.0, 1.0):
        return DIVERGENCES["forward_kl" if route.beta == 0.0 else "reverse_kl"]
    return divergence(route.divergence)
