"""A method is a table: a router, a route for each of its answers, and the targets that routes name.

A method whose router is `uniform` has the same route in every regime.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dopd_vlm import divergences, routers
from dopd_vlm.errors import unknown
from dopd_vlm.types import (
    POLICIES,
    TOKENS,
    CompletionSource,
    Reduction,
    Regime,
    Route,
    SelfTarget,
    Term,
    ViewName,
    check_completions,
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A student view and a route for each regime."""

    name: str
    student_view: ViewName = "plain"
    """What the learning side sees; privileged only in Fig. 3's Priv.T->Priv.S."""
    routes: Mapping[Regime, Route]
    """All four regimes. A route of weight 0 drops its tokens."""
    targets: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)
    """Composed targets by name: log q = sum of coefficient x log p, normalised over the whole vocabulary.

    A coefficient may be negative, and they need not add up to 1.
    """
    self_target: SelfTarget = "live"
    """Which copy of the student is the self-target: the paper's live one, an average, the first."""
    router: str = "gap"
    """A name in dopd_vlm.routers.ROUTERS: what decides each token's regime and weight."""
    completions: Mapping[CompletionSource, float] = field(default_factory=lambda: {"student": 1.0})
    """Who writes them, in which shares of the rows: student, teacher, or the row's answer."""
    reduction: Reduction = "sequence-mean"
    """What the loss is a mean of; see `routing.token_weights`."""

    def __post_init__(self) -> None:
        check_completions(f"method {self.name!r}: completions", self.completions)
        missing = [regime.name for regime in Regime if regime not in self.routes]
        if missing:
            raise ValueError(f"method {self.name!r} has no route for {', '.join(missing)}")
        for name, terms in self.targets.items():
            _check_target(self.name, name, terms)
        for route in self.routes.values():
            _check_route(self.name, route)
            if route.target not in (*POLICIES, TOKENS, *self.targets):
                raise unknown("target", route.target, (*POLICIES, TOKENS, *self.targets))
        router = routers.router(self.router)
        for policy in POLICIES:
            views = {route.target_view for route in self._used(policy)}
            if router.own_view:
                views |= {view for name, view in router.pairs if name == policy}
            if len(views) > 1:
                raise ValueError(
                    f"method {self.name!r} needs its {policy} target in {len(views)} views "
                    f"({', '.join(sorted(views))}); router {self.router!r} included, a method scores each "
                    "target once: name a composed target in Method.targets for the other view"
                )

    def _used(self, target: str) -> list[Route]:
        return [r for r in self.routes.values() if r.target == target and r.weight != 0.0]

    @property
    def used_targets(self) -> tuple[str, ...]:
        """Names of the targets that routing compares or a route of weight above 0 learns."""
        router = routers.router(self.router)
        compared = {policy for policy, _ in router.pairs} if router.own_view else ()
        names = (*POLICIES, *self.targets)
        return tuple(name for name in names if name in compared or self._used(name))

    def terms(self, target: str) -> tuple[Term, ...]:
        """What the target of that name is made of."""
        if target in self.targets:
            return self.targets[target]
        return (Term(policy=target, view=self._view(target)),)

    @property
    def scored_pairs(self) -> tuple[tuple[str, ViewName], ...]:
        """Every (policy, view) that must run over the completions; each runs once."""
        terms = (term for name in self.used_targets for term in self.terms(name))
        pairs = [(term.policy, term.view) for term in terms]
        return tuple(dict.fromkeys((*pairs, *routers.router(self.router).scored_pairs)))

    @property
    def views(self) -> tuple[ViewName, ...]:
        """Views that a sample needs: the rollouts' and the student's, the privileged one, the targets'."""
        scored = (view for _, view in self.scored_pairs)
        return tuple(dict.fromkeys(("plain", "privileged", self.student_view, *scored)))

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher must score or write completions."""
        writes = self.completions.get("teacher", 0.0) > 0.0
        return writes or any(policy == "teacher" for policy, _ in self.scored_pairs)

    @property
    def needs_self_target(self) -> bool:
        """Whether the student (live, EMA or frozen) must score them as a target."""
        return any(policy == "self_target" for policy, _ in self.scored_pairs)

    @property
    def needs_base(self) -> bool:
        """Whether the student's first weights must score them."""
        return any(policy == "base" for policy, _ in self.scored_pairs)

    @property
    def needs_reward(self) -> bool:
        """Whether the router looks at rewards."""
        return routers.router(self.router).needs_reward

    @property
    def by_gap(self) -> bool:
        """Whether the regimes are the paper's four."""
        return routers.router(self.router).by_gap

    @property
    def teacher_view(self) -> ViewName:
        """View under which the teacher scores."""
        return self._view("teacher")

    @property
    def self_target_view(self) -> ViewName:
        """View under which the self-target scores."""
        return self._view("self_target")

    def _view(self, target: str) -> ViewName:
        used = self._used(target)
        return used[0].target_view if used else "privileged"

    @property
    def teacher_top_k(self) -> int | None:
        """Support size that pass 1 keeps of the teacher; None where no route needs one."""
        return self.top_k("teacher")

    @property
    def self_target_top_k(self) -> int | None:
        """Support size that pass 1 keeps of the self-target; None where no route needs one."""
        return self.top_k("self_target")

    def top_k(self, target: str) -> int | None:
        """Support size that pass 1 keeps of a target; None where no route needs one."""
        sizes = [r.top_k for r in self._used(target) if r.top_k and r.support == "target"]
        return max(sizes, default=None)


def _check_target(method: str, name: str, terms: tuple[Term, ...]) -> None:
    if name in (*POLICIES, TOKENS):
        raise ValueError(f"method {method!r}: target name {name!r} is taken; choose another name")
    if not terms or not all(math.isfinite(term.coefficient) for term in terms):
        raise ValueError(
            f"method {method!r}: target {name!r} needs at least one term, each with a finite "
            f"coefficient; got {terms!r}"
        )
    for term in terms:
        if term.policy not in POLICIES:
            raise unknown("policy", term.policy, POLICIES)


def _check_route(name: str, route: Route) -> None:
    if route.target == TOKENS and (route.divergence, route.support) != ("forward_kl", "sampled"):
        raise ValueError(
            f"method {name!r}: target {TOKENS!r} has all its mass on the completion's token: set "
            f"divergence='forward_kl', support='sampled'; got {route.divergence!r}, {route.support!r}"
        )
    divergence = divergences.of_route(route)
    if route.support == "sampled" and divergence.estimate is None:
        able = [one.name for one in divergences.DIVERGENCES.values() if one.estimate]
        raise ValueError(
            f"method {name!r}: divergence {divergence.name!r} has no one-sample estimate for support "
            f"'sampled'; give it one, choose top_k, or one of {', '.join(able)}"
        )


def uniform(name: str, route: Route, **fields: Any) -> Method:
    """A method that treats every token alike: one route; `fields` are further ones of `Method`."""
    return Method(name=name, routes=dict.fromkeys(Regime, route), router="uniform", **fields)


def dropped(route: Route) -> Route:
    """The route with weight 0: its tokens are not trained on."""
    return replace(route, weight=0.0)
