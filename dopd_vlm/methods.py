"""Distillation methods as tables: the route each regime's tokens take. No code branches on a name.

A method that does not route by gap has the same route in every regime.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dopd_vlm import divergences, plugins
from dopd_vlm.config import RunConfig
from dopd_vlm.errors import unknown
from dopd_vlm.types import Reduction, Regime, Route, Tail, Term, ViewName

POLICIES = ("teacher", "self_target")
"""Each is a target of its own name too, under the view of the routes that use it."""
TOP_K = 128
LIGHT, WEAK = 0.6, 0.3
"""beta_l and beta_w of the paper (section 1.4)."""


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
    self_target: Literal["live", "ema", "frozen"] = "live"
    """Which copy of the student is the self-target: the paper's live one, an average, the first."""
    routes_by_gap: bool = True
    """Whether the privilege gap decides the regime; needs both privileged scores."""
    reduction: Reduction = "sequence-mean"
    """What the loss is a mean of; see `routing.token_weights`."""

    def __post_init__(self) -> None:
        missing = [regime.name for regime in Regime if regime not in self.routes]
        if missing:
            raise ValueError(f"method {self.name!r} has no route for {', '.join(missing)}")
        for name, terms in self.targets.items():
            _check_target(self.name, name, terms)
        for route in self.routes.values():
            _check_route(self.name, route)
            if route.target not in (*POLICIES, *self.targets):
                raise unknown("target", route.target, (*POLICIES, *self.targets))
        for target in POLICIES:
            views = {route.target_view for route in self._used(target)}
            if self.routes_by_gap:
                views.add("privileged")
            if len(views) > 1:
                raise ValueError(
                    f"method {self.name!r} needs its {target} target in {len(views)} views; "
                    "routing by gap needs privileged, and a method scores each target once"
                )

    def _used(self, target: str) -> list[Route]:
        return [r for r in self.routes.values() if r.target == target and r.weight != 0.0]

    @property
    def used_targets(self) -> tuple[str, ...]:
        """Names of the targets that routing compares or a route of weight above 0 learns."""
        compared = POLICIES if self.routes_by_gap else ()
        names = (*POLICIES, *self.targets)
        return tuple(name for name in names if name in compared or self._used(name))

    def terms(self, target: str) -> tuple[Term, ...]:
        """What the target of that name is made of."""
        if target in self.targets:
            return self.targets[target]
        return (Term(policy=target, view=self._view(target)),)  # pyright: ignore[reportArgumentType]

    @property
    def scored_pairs(self) -> tuple[tuple[str, ViewName], ...]:
        """Every (policy, view) that must run over the completions; each runs once."""
        terms = (term for name in self.used_targets for term in self.terms(name))
        return tuple(dict.fromkeys((term.policy, term.view) for term in terms))

    @property
    def views(self) -> tuple[ViewName, ...]:
        """Views that a sample needs: the rollouts' and the student's, the privileged one, the targets'."""
        scored = (view for _, view in self.scored_pairs)
        return tuple(dict.fromkeys(("plain", "privileged", self.student_view, *scored)))

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher must score the completions."""
        return any(policy == "teacher" for policy, _ in self.scored_pairs)

    @property
    def needs_self_target(self) -> bool:
        """Whether the student (live, EMA or frozen) must score them as a target."""
        return any(policy == "self_target" for policy, _ in self.scored_pairs)

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
    if name in POLICIES:
        raise ValueError(f"method {method!r}: target {name!r} is a policy's; choose another name")
    if not terms or not all(math.isfinite(term.coefficient) for term in terms):
        raise ValueError(
            f"method {method!r}: target {name!r} needs at least one term, each with a finite "
            f"coefficient; got {terms!r}"
        )
    for term in terms:
        if term.policy not in POLICIES:
            raise unknown("policy", term.policy, POLICIES)


def _check_route(name: str, route: Route) -> None:
    divergence = divergences.of_route(route)
    if route.support == "sampled" and divergence.estimate is None:
        able = [one.name for one in divergences.DIVERGENCES.values() if one.estimate]
        raise ValueError(
            f"method {name!r}: divergence {divergence.name!r} has no one-sample estimate for support "
            f"'sampled'; give it one, choose top_k, or one of {', '.join(able)}"
        )


LIGHT_TEACHER = Route(target="teacher", divergence="reverse_kl", top_k=TOP_K, weight=LIGHT)
WEAK_STUDENT = Route(target="self_target", divergence="reverse_kl", top_k=TOP_K, weight=WEAK)
DEEP_TEACHER = Route(target="teacher", divergence="jsd")
LIGHT_STUDENT = Route(target="self_target", divergence="reverse_kl", top_k=TOP_K, weight=LIGHT)
TOP_K_JS = Route(target="teacher", divergence="jsd", top_k=TOP_K)
VANILLA = Route(
    target="teacher", target_view="plain", divergence="reverse_kl", top_k=TOP_K, weight=1.0
)
SELF = Route(target="self_target", divergence="reverse_kl", top_k=TOP_K)
PRIVILEGED_TEACHER = replace(VANILLA, target_view="privileged")

DOPD_ROUTES: dict[Regime, Route] = {
    Regime.LH: LIGHT_TEACHER,
    Regime.LL: WEAK_STUDENT,
    Regime.HT: DEEP_TEACHER,
    Regime.HS: LIGHT_STUDENT,
}


def uniform(name: str, route: Route, student_view: ViewName = "plain") -> Method:
    """A method that treats every token alike: no gap, one target."""
    routes = dict.fromkeys(Regime, route)
    return Method(name=name, routes=routes, student_view=student_view, routes_by_gap=False)


def variant(name: str, **routes: Route) -> Method:
    """DOPD with other routes for the named regimes: variant("x", LL=..., HS=...)."""
    return Method(name=name, routes=DOPD_ROUTES | {Regime[key]: r for key, r in routes.items()})


def dropped(route: Route) -> Route:
    """The route with weight 0: its tokens are not trained on."""
    return replace(route, weight=0.0)


def _token_types(name: str, *used: Regime) -> Method:
    routes = {r: DOPD_ROUTES[r] if r in used else dropped(DOPD_ROUTES[r]) for r in Regime}
    return Method(name=name, routes=routes)


def _one_objective(route: Route) -> Route:
    return replace(route, divergence="jsd")


_METHODS = (
    # Paper sections 1.4 and 1.5.
    Method(name="dopd", routes=DOPD_ROUTES),
    # Eq. 5 and Fig. 3 T->S. The paper leaves the granularity of its vanilla OPD open.
    uniform("opd", VANILLA),
    uniform("opd_full", replace(VANILLA, divergence="jsd", top_k=None)),
    uniform("opd_sampled", replace(VANILLA, top_k=None, support="sampled")),
    # Fig. 3.
    uniform("priv_s_to_s", SELF),
    uniform("opsd", SELF),
    uniform("priv_t_to_s", PRIVILEGED_TEACHER),
    uniform("priv_t_to_priv_s", PRIVILEGED_TEACHER, student_view="privileged"),
    # Table 6: which tokens are trained on, and the same with one strategy for all of them.
    _token_types("dopd_ht", Regime.HT),
    _token_types("dopd_ht_lh", Regime.HT, Regime.LH),
    _token_types("dopd_ht_ll", Regime.HT, Regime.LL),
    _token_types("dopd_ht_hs", Regime.HT, Regime.HS),
    uniform("dopd_non_adaptive", TOP_K_JS),
    # Table 8. What replaces the removed part is our reading: without the student policy its regimes
    # go to the teacher at the same weights, and the other way round; one objective is JS; one
    # strategy is top-K.
    variant(
        "dopd_no_student",
        LL=replace(WEAK_STUDENT, target="teacher"),
        HS=replace(LIGHT_STUDENT, target="teacher"),
    ),
    variant(
        "dopd_no_teacher",
        LH=replace(LIGHT_TEACHER, target="self_target"),
        HT=replace(DEEP_TEACHER, target="self_target"),
    ),
    variant(
        "dopd_one_objective",
        LH=_one_objective(LIGHT_TEACHER),
        LL=_one_objective(WEAK_STUDENT),
        HS=_one_objective(LIGHT_STUDENT),
    ),
    variant("dopd_one_strategy", HT=TOP_K_JS),
)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
"""All methods by name; the paper's own is `dopd`."""


def register(method: Method) -> Method:
    """Makes a method known under its name, and returns it.

    Raises:
        ValueError: the name is taken by another method.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"method {method.name!r} exists already; give yours another name")
    return method


def method(name: str) -> Method:
    """The method of that name: built in, registered, or from another package's entry point.

    Raises:
        ValueError: unknown name; the message lists the near ones.
    """
    if name not in METHODS:
        for loaded in plugins.load(plugins.METHODS).values():
            if isinstance(loaded, Method):
                register(loaded)
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def adjusted(
    method: Method,
    *,
    self_target: Literal["live", "ema", "frozen"] = "live",
    top_k: int | None = None,
    support: Literal["target", "student"] = "target",
    tail: Tail = "bucket",
    light_weight: float | None = None,
    weak_weight: float | None = None,
    reduction: Reduction = "sequence-mean",
) -> Method:
    """The method with what the paper leaves open chosen otherwise.

    Args:
        self_target: whose weights the self-target has.
        top_k: size of every top-K route's support; None keeps each.
        support, tail: of every top-K route; see `Route`.
        light_weight: beta_l, of the LH and HS tokens that a method by gap trains; None keeps it.
        weak_weight: beta_w, of its LL tokens; None keeps it.
        reduction: what the loss is a mean of.
    """
    weights = {Regime.LH: light_weight, Regime.HS: light_weight, Regime.LL: weak_weight}

    def route_of(regime: Regime, route: Route) -> Route:
        if route.top_k:
            route = replace(route, top_k=top_k or route.top_k, support=support, tail=tail)
        weight = weights.get(regime) if method.routes_by_gap and route.weight else None
        return route if weight is None else replace(route, weight=weight)

    routes = {regime: route_of(regime, route) for regime, route in method.routes.items()}
    return replace(method, self_target=self_target, routes=routes, reduction=reduction)


def configured_method(config: RunConfig) -> Method:
    """The table named in the config, with the config's choices where the paper leaves one."""
    settings = config.method
    return adjusted(
        method(settings.name),
        self_target=settings.self_target,
        top_k=settings.top_k,
        support=settings.support,
        tail=settings.tail,
        light_weight=settings.light_weight,
        weak_weight=settings.weak_weight,
        reduction=settings.reduction,
    )
