"""All routers by name; other packages and files add theirs (dopd_vlm/ADD_A_METHOD.md)."""

from dopd_vlm import plugins
from dopd_vlm.errors import unknown
from dopd_vlm.routers import adaptive
from dopd_vlm.routers.gap import GAP
from dopd_vlm.routers.router import Router, Routing, Scores, everywhere
from dopd_vlm.routers.visual import VISUAL


def _uniform(scores: Scores, limits: None) -> Routing:
    return Routing(route=everywhere(scores.mask))


UNIFORM = Router(name="uniform", route=_uniform)

ROUTERS: dict[str, Router] = {one.name: one for one in (GAP, UNIFORM, VISUAL, *adaptive.ROUTERS)}


def register(router: Router) -> Router:
    """Makes a router known under its name, and returns it.

    Raises:
        ValueError: the name is taken by another router.
    """
    if ROUTERS.setdefault(router.name, router) is not router:
        raise ValueError(f"router {router.name!r} exists already; give yours another name")
    return router


def router(name: str) -> Router:
    """The router of that name.

    Raises:
        ValueError: unknown name; the message lists the near ones.
    """
    if name not in ROUTERS:
        plugins.load(plugins.METHODS)
    if name not in ROUTERS:
        raise unknown("router", name, ROUTERS)
    return ROUTERS[name]
