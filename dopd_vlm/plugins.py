"""What other packages offer under an entry-point group; a broken one is named, and the rest works."""

import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

METHODS = "dopd_vlm.methods"
"""Entry points of methods; the module of one may register divergences and routers too."""

_loaded: dict[str, dict[str, Any]] = {}


def load(group: str) -> Mapping[str, Any]:
    """Objects of all entry points of the group by name, loaded once.

    One that fails to import is left out with a warning that names its distribution.
    """
    if group in _loaded:  # also while a plug-in is being imported: it may ask for names itself
        return _loaded[group]
    objects = _loaded.setdefault(group, {})
    for point in entry_points(group=group):
        try:
            objects[point.name] = point.load()
        except Exception as error:  # another package's code: it may raise anything
            warnings.warn(
                f"{group}: {point.name!r} of {owner(point)} cannot be used: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
    return objects


def forget() -> None:
    """Lets the next `load` read the entry points anew."""
    _loaded.clear()


def owner(point: EntryPoint) -> str:
    """The distribution and the object an entry point names."""
    return f"{point.dist.name if point.dist else 'an unknown distribution'} ({point.value})"
