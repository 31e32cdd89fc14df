"""Which route each token takes, and how heavily: pure functions of per-token scores, by name."""

from dopd_vlm.routers.registry import ROUTERS, register, router
from dopd_vlm.routers.router import Limits, Pair, Router, Routing, Scores

__all__ = ["ROUTERS", "Limits", "Pair", "Router", "Routing", "Scores", "register", "router"]
