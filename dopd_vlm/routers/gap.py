"""`gap`: the paper's four regimes, by privilege advantage gap and confidence (sections 1.2 to 1.4)."""

import math
from dataclasses import replace

from dopd_vlm import routing
from dopd_vlm.config import MethodConfig
from dopd_vlm.routers.router import Limits, Router, Routing, Scores
from dopd_vlm.routing import Thresholds
from dopd_vlm.types import Regime

TEACHER, OWN = ("teacher", "privileged"), ("self_target", "privileged")


def _limits(scores: Scores, settings: MethodConfig) -> Limits:
    if not scores.mask.any():  # a process without rows routes nothing
        return Thresholds(gap=math.inf, q_self=math.inf, q_teacher=math.inf)
    limits = routing.thresholds(
        scores.logp[TEACHER].cpu(),
        scores.logp[OWN].cpu(),
        scores.mask.cpu(),
        settings.trim,
        statistic=settings.statistic,
        trim_of=settings.trim_of,
        train_outliers=settings.train_outliers,
    )
    gap = limits.gap if settings.gap_threshold is None else settings.gap_threshold
    return replace(limits, gap=max(gap, settings.gap_floor or 0.0))


def _route(scores: Scores, limits: Thresholds) -> Routing:
    teacher, own = scores.logp[TEACHER], scores.logp[OWN]
    return Routing(route=routing.assign_regimes(teacher, own, scores.mask, limits))


GAP = Router(
    name="gap",
    pairs=(TEACHER, OWN),
    limits=_limits,
    route=_route,
    own_view=True,
    regimes=tuple(Regime),
)
