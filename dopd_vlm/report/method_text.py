"""What pages say of a run's method: from its own table of routes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dopd_vlm.config import DataConfig, MethodConfig, ModelConfig, RunConfig
from dopd_vlm.report.palette import PAINTS
from dopd_vlm.run_folder import RunRecord
from dopd_vlm.types import Regime, Route

if TYPE_CHECKING:
    from dopd_vlm.methods import Method

DIVERGENCES = {"reverse_kl": "reverse KL", "forward_kl": "forward KL", "jsd": "JS divergence"}
SELF_TARGETS = {"live": "self-target", "ema": "EMA self-target", "frozen": "frozen self-target"}


@dataclass(frozen=True, kw_only=True)
class MethodText:
    """What the method does with a token."""

    by_gap: bool
    """Whether regimes decide."""
    self_target: str
    """`live`, `ema` or `frozen`; "" for a method without a self-target."""
    routes: Mapping[Regime, str]
    """What teaches the tokens of each regime; {} where the method is not installed here."""

    @property
    def every_token(self) -> str:
        """What teaches all tokens, for a method that does not route by gap."""
        return "" if self.by_gap else next(iter(self.routes.values()), "")

    def legend(self, regime: Regime) -> str:
        """Which tokens are of the regime, and what teaches them."""
        route = self.routes.get(regime)
        return PAINTS[regime].condition + (f": {route}" if route else "")


def method_text(method: "Method") -> MethodText:
    """The text of a method's table."""
    return MethodText(
        by_gap=method.by_gap,
        self_target=method.self_target if method.needs_self_target else "",
        routes={r: _route_text(method.routes[r], method.self_target) for r in Regime},
    )


def read_method(run: RunRecord) -> MethodText:
    """The text of the run's method with the recipe's choices; without routes where it is not installed."""
    # Here: a method's table needs the divergences, and they torch, which the help of a command does without.
    from dopd_vlm.methods import configured_method

    settings = run.config["method"]
    try:
        config = RunConfig(
            student=ModelConfig(path=""),
            teacher=ModelConfig(path=""),
            data=DataConfig(train=""),
            method=MethodConfig(**settings),
        )
        return method_text(configured_method(config))
    except (TypeError, ValueError):
        by_gap = bool(run.series("threshold/gap"))
        return MethodText(by_gap=by_gap, self_target=settings["self_target"] or "live", routes={})


def _route_text(route: Route, self_target: str) -> str:
    if route.weight == 0:
        return "not trained"
    name = DIVERGENCES.get(route.divergence, route.divergence)
    target = {"teacher": "teacher", "self_target": SELF_TARGETS[self_target]}.get(route.target)
    support = "of the sampled token" if route.support == "sampled" else ""
    if not support and route.top_k:
        support = f"over the top {route.top_k}"
    whom = f"the {target} ({route.target_view} view)" if target else f"`{route.target}`"
    words = (name, support, f"to {whom}, weight {route.weight:g}")
    return " ".join(filter(None, words))
