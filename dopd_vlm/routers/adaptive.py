"""Routers of methods that choose or weigh tokens by what student and teacher say of them, both in the plain view.

The student is scored without gradient, which costs one forward more than the target's. Shapes as in router.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor

from dopd_vlm.config import MethodConfig
from dopd_vlm.routers.router import Router, Routing, Scores, everywhere
from dopd_vlm.routing import quantile
from dopd_vlm.types import Regime

STUDENT, TEACHER = ("student", "plain"), ("teacher", "plain")
ENTROPY_LIMIT = 0.8
"""tau of EOPD, nats."""
TIP_SHARE = 0.5
"""rho of TIP: the share of tokens that is trained."""
CLIP = 0.5
"""lambda of REOPOLD's floor; not readable in the paper, so the value is ours."""
HIGH_ENTROPY_SHARE = 0.5
"""Of REOPOLD's tokens; ours, as above."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Named limits of one optimizer batch."""

    values: Mapping[str, float]

    def record(self) -> dict[str, float]:
        """The values as they are."""
        return dict(self.values)


def reward_to_go(scores: Scores, limits: None) -> Routing:
    """w_t = sum_{u >= t} (log T_u - log s_u) / (|y| - t + 1): policy gradient of the sequence's reverse KL.

    The division by the tokens that remain is MiniLLM's length normalisation (2306.08543), after an audit.
    """
    reward = scores.ratio(TEACHER, STUDENT) * scores.mask
    to_go = reward.flip(-1).cumsum(-1).flip(-1)
    remaining = scores.mask.flip(-1).cumsum(-1).flip(-1).clamp(min=1)
    return Routing(route=everywhere(scores.mask), weight=to_go / remaining)


def teacher_entropy(scores: Scores, limits: None) -> Routing:
    """HT where the teacher's entropy exceeds ENTROPY_LIMIT, else LH (EOPD)."""
    is_open = scores.entropy[TEACHER] > ENTROPY_LIMIT
    route = torch.where(is_open, int(Regime.HT), int(Regime.LH))
    return Routing(route=route.masked_fill(~scores.mask, -1))


def _soft_or(scores: Scores, largest: Mapping[str, float]) -> Tensor:
    """s = h + d - h d, with entropy h and |log T - log s| d each divided by its largest value in the batch."""
    h = scores.entropy[STUDENT] / largest["entropy"]
    d = scores.ratio(TEACHER, STUDENT).abs() / largest["divergence"]
    return h + d - h * d


def _soft_or_limits(scores: Scores, settings: MethodConfig) -> Bounds:
    if not scores.mask.any():
        return Bounds(values={"entropy": 1.0, "divergence": 1.0, "soft_or": inf})
    smallest = 1e-12  # two models that are one have a divergence of 0 everywhere
    largest = {
        "entropy": max(float(scores.entropy[STUDENT].max()), smallest),
        "divergence": max(float(scores.ratio(TEACHER, STUDENT).abs().max()), smallest),
    }
    limit = quantile(_soft_or(scores, largest).flatten(), 1.0 - TIP_SHARE)
    return Bounds(values={**largest, "soft_or": float(limit)})


def soft_or(scores: Scores, limits: Bounds) -> Routing:
    """The TIP_SHARE of tokens with the highest s; others take no route. d is the sampled token's log-ratio
    where TIP normalises a whole divergence, by a rule that was not readable."""
    keep = scores.mask & (_soft_or(scores, limits.values) >= limits.values["soft_or"])
    return Routing(route=everywhere(keep))


def _entropy_limits(scores: Scores, settings: MethodConfig) -> Bounds:
    if not scores.mask.any():
        return Bounds(values={"entropy": inf})
    entropy = scores.entropy[STUDENT].flatten()
    return Bounds(values={"entropy": float(quantile(entropy, 1.0 - HIGH_ENTROPY_SHARE))})


def clipped_reward(scores: Scores, limits: Bounds) -> Routing:
    """w = max(log T - log s, log(CLIP) / (1 - CLIP)) on tokens of high student entropy (REOPOLD).

    Sources write the floor also as log(CLIP / (1 - CLIP)).
    """
    keep = scores.mask & (scores.entropy[STUDENT] >= limits.values["entropy"])
    weight = scores.ratio(TEACHER, STUDENT).clamp(min=log(CLIP) / (1.0 - CLIP))
    return Routing(route=everywhere(keep), weight=weight)


def advantage_sign(scores: Scores, limits: None) -> Routing:
    """A = log T - log s: HT with weight A where it is above 0, else HS with weight 1 (AOPD)."""
    advantage = scores.ratio(TEACHER, STUDENT)
    is_up = advantage > 0
    route = torch.where(is_up, int(Regime.HT), int(Regime.HS)).masked_fill(~scores.mask, -1)
    return Routing(route=route, weight=torch.where(is_up, advantage, 1.0))


ROUTERS = (
    Router(name="reward_to_go", pairs=(TEACHER, STUDENT), route=reward_to_go),
    Router(
        name="teacher_entropy",
        entropies=(TEACHER,),
        route=teacher_entropy,
        regimes=(Regime.LH, Regime.HT),
    ),
    Router(
        name="soft_or",
        pairs=(TEACHER, STUDENT),
        entropies=(STUDENT,),
        limits=_soft_or_limits,
        route=soft_or,
    ),
    Router(
        name="clipped_reward",
        pairs=(TEACHER, STUDENT),
        entropies=(STUDENT,),
        limits=_entropy_limits,
        route=clipped_reward,
    ),
    Router(
        name="advantage_sign",
        pairs=(TEACHER, STUDENT),
        route=advantage_sign,
        regimes=(Regime.HT, Regime.HS),
    ),
)
