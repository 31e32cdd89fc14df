"""Which target teaches which token: gap, thresholds, regimes and one weight per token.

Shapes: B sequences, T completion tokens. Log-probs are those of the sampled tokens, at temperature
1, under the teacher and under the self-target (the privileged student, never the plain one), in nats. Nothing here
has a gradient: routing decides what is learnt, and is not learnt itself.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dopd_vlm.types import Reduction, Regime, Route

Statistic = Literal["mean", "median"]
TrimOf = Literal["gap", "each"]
SMALLEST_USEFUL_GAP = 1e-5
"""Nats. Below it the teacher and the self-target are the same up to rounding."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the tokens of one optimizer batch are compared with (paper section 1.3)."""

    gap: float
    """Nats; a gap at or above it is high."""
    q_self: float
    """Probability of the sampled token under the self-target."""
    q_teacher: float
    """Probability of the sampled token under the teacher."""
    largest_gap: float = math.inf
    """Nats; a token of a larger gap is an outlier that is not trained."""

    @property
    def q_student(self) -> float:
        """The same as `q_self`."""
        return self.q_self

    def record(self) -> dict[str, float]:
        """What logs and pages show: {"gap", "q_self", "q_teacher"}."""
        return {"gap": self.gap, "q_self": self.q_self, "q_teacher": self.q_teacher}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What divides the loss: counts of the whole optimizer batch, over micro-batches and processes."""

    num_sequences: int
    num_tokens: int


def privilege_advantage_gap(teacher_logp: Tensor, privileged_logp: Tensor) -> Tensor:
    """A = |log q_T - log q_S| of the sampled tokens (paper Eq. 1).  [B, T], [B, T] -> [B, T]"""
    return (teacher_logp.detach() - privileged_logp.detach()).abs()


def thresholds(
    teacher_logp: Tensor,
    privileged_logp: Tensor,
    mask: Tensor,
    trim: float = 0.05,
    *,
    statistic: Statistic | float = "mean",
    trim_of: TrimOf = "gap",
    train_outliers: bool = True,
) -> Thresholds:
    """Averages of gap, q_S and q_T over the tokens whose gap is not among the largest.

    keep = gap <= quantile(gap over mask, 1 - trim) with linear interpolation; then the statistic
    of each quantity over keep. The paper does not say which quantity is trimmed, nor whether the
    trimmed tokens are trained: `trim_of` and `train_outliers`. Its "normalization within the batch"
    is left out: any increasing affine map of the gap and of its mean leaves the split as it is.

    Args:
        teacher_logp: [B, T] or any shape; tokens of other ranks are gathered by the caller, e.g.
            all valid tokens of the optimizer batch as [1, N].
        privileged_logp: same shape.
        mask: bool, same shape, True at completion tokens.
        trim: share of the largest gaps left out, in [0, 1).
        statistic: mean (the paper), median, or a number in (0, 1): that quantile.
        trim_of: gap trims all three by the gap; each trims each by its own largest values.
        train_outliers: False makes the gap's quantile the `largest_gap` of what is trained.

    Returns:
        Thresholds computed in float64 from sorted values: the same to the last bit for every
        order and shape of the same tokens. Fixed thresholds need no call: build `Thresholds`.

    Raises:
        ValueError: empty mask, trim or statistic out of range, a score that is not a number.
    """
    if not 0.0 <= trim < 1.0:
        raise ValueError(f"trim={trim} is outside [0, 1): it is the share of gaps left out")
    valid = mask.bool()
    teacher, own = (
        teacher_logp.detach()[valid].double(),
        privileged_logp.detach()[valid].double(),
    )
    if teacher.numel() == 0:
        raise ValueError("thresholds need at least one valid token; the mask has none")
    gap = privilege_advantage_gap(teacher, own)
    if gap.isnan().any():
        raise ValueError("a teacher or self-target score is NaN or both are infinite")
    largest = quantile(gap, 1.0 - trim)

    def average(values: Tensor) -> float:
        keep = gap <= largest if trim_of == "gap" else values <= quantile(values, 1.0 - trim)
        return _summary(values[keep], statistic)

    return Thresholds(
        gap=average(gap),
        q_self=average(own.exp()),
        q_teacher=average(teacher.exp()),
        largest_gap=math.inf if train_outliers else float(largest),
    )


def quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of [N] values with linear interpolation, N >= 1, `share` in [0, 1]."""
    # torch.quantile refuses more than 2^24 values. Rounded: 1 - 0.9 is a little below 0.1, and the
    # value that a whole position falls on must not be lost to that.
    ordered = values.sort().values
    position = round(share * (len(ordered) - 1), 9)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


def _summary(values: Tensor, statistic: Statistic | float) -> float:
    if statistic == "mean":
        return float(values.sort().values.mean())
    share = 0.5 if statistic == "median" else statistic
    if not isinstance(share, float) or not 0.0 < share < 1.0:
        raise ValueError(f"statistic={statistic!r}: choose mean, median or a quantile in (0, 1)")
    return float(quantile(values, share))


def assign_regimes(
    teacher_logp: Tensor, privileged_logp: Tensor, mask: Tensor, thresholds: Thresholds
) -> Tensor:
    """Regime of every token, int64 [B, T], -1 where masked (paper Eqs. 6-9).

    gap < threshold: LH if q_T + q_S >= the sum of their thresholds, else LL.
    gap >= threshold: HT if q_T >= q_S, else HS. Compared in float64. A gap above `largest_gap` has
    no regime: -1. A gap that is zero everywhere makes all tokens HT, and warns: routing then
    decides nothing.
    """
    if thresholds.gap < SMALLEST_USEFUL_GAP:
        warnings.warn(
            f"the mean privilege gap is {thresholds.gap:.2e} nats: teacher and self-target give "
            "the same scores, so that routing decides nothing; check that they are two models",
            stacklevel=2,
        )
    teacher, own = teacher_logp.detach().double(), privileged_logp.detach().double()
    q_teacher, q_self = teacher.exp(), own.exp()
    gap = privilege_advantage_gap(teacher, own)
    low = gap < thresholds.gap
    confident = q_teacher + q_self >= thresholds.q_teacher + thresholds.q_self
    low_regime = torch.where(confident, int(Regime.LH), int(Regime.LL))
    high_regime = torch.where(q_teacher >= q_self, int(Regime.HT), int(Regime.HS))
    is_out = ~mask.bool() | (gap > thresholds.largest_gap)
    return torch.where(low, low_regime, high_regime).masked_fill(is_out, -1)


def high_gaps(regime: Tensor) -> Tensor:
    """bool, where a token of that regime has a high gap: HT and HS."""
    return (regime == Regime.HT) | (regime == Regime.HS)


def token_weights(
    regime: Tensor,
    routes: Mapping[Regime, Route],
    mask: Tensor,
    num_sequences: int | None = None,
    *,
    reduction: Reduction = "sequence-mean",
    num_tokens: int | None = None,
) -> Tensor:
    """One weight per token, so that the loss is a plain sum.  float64 [B, T], 0 without a regime

    sequence-mean (paper Eq. 10): route weight / (|y_b| num_sequences), with |y_b| the valid tokens
    of sequence b. token-mean: route weight / num_tokens.

    Args:
        regime: int [B, T] from `assign_regimes`.
        routes: the method's table.
        mask: bool [B, T].
        num_sequences: sequences of the whole optimizer batch, over micro-batches and ranks;
            None is B.
        reduction: see above.
        num_tokens: valid tokens of the whole optimizer batch; None is those of this mask.
    """
    if reduction not in ("sequence-mean", "token-mean"):
        raise ValueError(f"reduction={reduction!r}: choose sequence-mean or token-mean")
    valid = mask.bool()
    table = torch.tensor(
        [routes[r].weight for r in Regime], dtype=torch.float64, device=mask.device
    )
    weight = table[regime.clamp(min=0)] * (valid & (regime >= 0))
    lengths = valid.sum(-1, keepdim=True).clamp(min=1)
    if reduction == "sequence-mean":
        return weight / (lengths * (num_sequences or len(mask)))
    return weight / (num_tokens or max(1, int(valid.sum())))
