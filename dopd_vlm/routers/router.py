"""What a router is: named scores in, a route index and a weight per token out.

Shapes: B sequences, T completion tokens, N tokens of the whole optimizer batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dopd_vlm.config import MethodConfig
from dopd_vlm.types import Regime, ViewName

Pair = tuple[str, ViewName]
"""A policy and the view that it sees."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a router may look at; detached, float64, 0 where masked."""

    logp: Mapping[Pair, Tensor]
    """[B, T] log-prob of the sampled token at temperature 1, nats, of each of `Router.pairs`."""
    entropy: Mapping[Pair, Tensor] = field(default_factory=dict)
    """[B, T] entropy at temperature 1, nats, of each of `Router.entropies`."""
    mask: Tensor
    """bool [B, T]. `Router.limits` gets all tokens of the batch as [1, N], all of them True."""
    prompts: Tensor
    """int64 [B]: completions of one prompt have one number."""
    rewards: Tensor | None = None
    """[B] of each completion, in [0, 1], NaN where it has none; None where the router asks for none."""

    def ratio(self, upper: Pair, lower: Pair) -> Tensor:
        """log p(upper) - log p(lower) of the sampled tokens, nats.  [B, T]"""
        return self.logp[upper] - self.logp[lower]


class Limits(Protocol):
    """What the tokens of one optimizer batch are compared with."""

    def record(self) -> dict[str, float]:
        """Names and values for the log."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Routing:
    """What a router decides."""

    route: Tensor
    """int64 [B, T], keys of `Method.routes`; -1 where a token takes none."""
    weight: Tensor | None = None
    """float64 [B, T], multiplies the route's weight; may be negative. None is 1 everywhere."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """A pure function of scores, and the scores that it asks for: only these are computed."""

    name: str
    route: Callable[[Scores, Any], Routing]
    """(scores of this process's completions, limits) -> routing."""
    pairs: tuple[Pair, ...] = ()
    """Whose log-probs of the sampled tokens it compares."""
    entropies: tuple[Pair, ...] = ()
    """Whose entropies it compares: one more product with the head each."""
    limits: Callable[[Scores, MethodConfig], Limits] | None = None
    """From all tokens of the optimizer batch and the recipe's settings; None has no threshold."""
    own_view: bool = False
    """Whether its pairs are the targets themselves, so that a target has to be taught in the view scored here."""
    needs_reward: bool = False
    """Whether it looks at rewards; a recipe without a scorer is then refused."""
    regimes: tuple[Regime, ...] = (Regime.HT,)
    """Route indices that it returns."""

    @property
    def scored_pairs(self) -> tuple[Pair, ...]:
        """Every (policy, view) that must run for it."""
        return tuple(dict.fromkeys((*self.pairs, *self.entropies)))

    @property
    def by_gap(self) -> bool:
        """Whether the four regimes are the paper's, decided by the gap of the two targets."""
        return self.own_view


def everywhere(mask: Tensor, regime: Regime = Regime.HT) -> Tensor:
    """One route for all tokens.  bool [B, T] -> int64 [B, T], -1 where masked"""
    return torch.where(mask.bool(), int(regime), -1)
