"""All routers by name; other packages and files add theirs (dopd_vlm/ADD_A_METHOD.md)."""

from dopd_vlm import plugins
from dopd_vlm.routers import adaptive
from dopd_vlm.routers.gap import GAP
from dopd_vlm.routers.router import Router, Routing, Scores, everywhere
from dopd_vlm.routers.visual import VISUAL


def _uniform(scores: Scores, limits: None) -> Routing:
    return Routing(route=everywhere(scores.mask))


UNIFORM = Router(name="uniform", route=_uniform)

ROUTERS: dict[str, Router] = {one.name: one for one in (GAP, UNIFORM, VISUAL, *adaptive.ROUTERS)}


def register(router: Router) -> Router:
    """Makes a router known under its name, and returns it; ValueError where another has the name."""
    return plugins.add("router", ROUTERS, router.name, router)


def router(name: str) -> Router:
    """The router of that name; ValueError for an unknown one."""
    return plugins.look_up("router", ROUTERS, name)
