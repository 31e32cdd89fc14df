"""Distillation methods by name. No code branches on a name: a method is a table (method_tables/table.py)."""

from dataclasses import replace
from typing import Literal

from dopd_vlm import method_tables, plugins
from dopd_vlm.config import RunConfig
from dopd_vlm.method_tables import Method, dropped, uniform
from dopd_vlm.method_tables.paper import (
    DEEP_TEACHER,
    DOPD_ROUTES,
    LIGHT_STUDENT,
    LIGHT_TEACHER,
    PRIVILEGED_TEACHER,
    SELF,
    TOP_K_JS,
    VANILLA,
    WEAK_STUDENT,
    variant,
)
from dopd_vlm.types import POLICIES, Reduction, Regime, Route, SelfTarget, Tail

__all__ = [
    "DEEP_TEACHER",
    "DOPD_ROUTES",
    "LIGHT_STUDENT",
    "LIGHT_TEACHER",
    "METHODS",
    "POLICIES",
    "PRIVILEGED_TEACHER",
    "SELF",
    "TOP_K_JS",
    "VANILLA",
    "WEAK_STUDENT",
    "Method",
    "adjusted",
    "configured_method",
    "dropped",
    "method",
    "register",
    "uniform",
    "variant",
]

METHODS: dict[str, Method] = {method.name: method for method in method_tables.METHODS}
"""All methods by name; the paper's own is `dopd`."""


def register(method: Method) -> Method:
    """Makes a method known under its name, and returns it; ValueError where another has the name."""
    return plugins.add("method", METHODS, method.name, method)


def method(name: str) -> Method:
    """The method of that name, which may be the object of an entry point; ValueError for an unknown one."""
    if name not in METHODS:
        for loaded in plugins.load(plugins.METHODS).values():
            if isinstance(loaded, Method):
                register(loaded)
    return plugins.look_up("method", METHODS, name)


def adjusted(
    method: Method,
    *,
    self_target: SelfTarget | None = None,
    top_k: int | None = None,
    support: Literal["target", "student"] | None = None,
    tail: Tail | None = None,
    light_weight: float | None = None,
    weak_weight: float | None = None,
    reduction: Reduction = "sequence-mean",
) -> Method:
    """The method with what the paper leaves open chosen otherwise.

    Args:
        self_target: whose weights the self-target has; None keeps the table's.
        top_k: size of every top-K route's support; None keeps each.
        support, tail: of every top-K route; see `Route`. None keeps each.
        light_weight: beta_l, of the LH and HS tokens that a method by gap trains; None keeps it.
        weak_weight: beta_w, of its LL tokens; None keeps it.
        reduction: what the loss is a mean of.
    """
    weights = {Regime.LH: light_weight, Regime.HS: light_weight, Regime.LL: weak_weight}

    def route_of(regime: Regime, route: Route) -> Route:
        if route.top_k:
            route = replace(
                route,
                top_k=top_k or route.top_k,
                support=support or route.support,
                tail=tail or route.tail,
            )
        weight = weights.get(regime) if method.by_gap and route.weight else None
        return route if weight is None else replace(route, weight=weight)

    routes = {regime: route_of(regime, route) for regime, route in method.routes.items()}
    return replace(
        method,
        self_target=self_target or method.self_target,
        routes=routes,
        reduction=reduction,
    )


def configured_method(config: RunConfig) -> Method:
    """The table named in the config, with the config's choices where the paper leaves one."""
    settings = config.method
    table = method(settings.name)
    if config.rollout.sources is not None:
        table = replace(table, completions=config.rollout.sources)
    return adjusted(
        table,
        self_target=settings.self_target,
        top_k=settings.top_k,
        support=settings.support,
        tail=settings.tail,
        light_weight=settings.light_weight,
        weak_weight=settings.weak_weight,
        reduction=settings.reduction,
    )
