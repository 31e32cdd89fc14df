"""Limits of settings: a value outside is refused with its name and what is allowed."""

import math
from collections.abc import Callable
from typing import Any


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError unless `ok`, with the setting, its value and what is allowed."""
    if not ok:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}")


def require_each(
    section: object, prefix: str, names: str, ok: Callable[[Any], bool], allowed: str
) -> None:
    """`require` for each of the section's fields `names`, separated by spaces; null passes."""
    for name in names.split():
        value = getattr(section, name)
        require(value is None or ok(value), f"{prefix}{name}", value, allowed)


def at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    """(test, its wording): finite and at least `low`."""
    return lambda value: low <= value < math.inf, f">= {low}"


def above(low: float) -> tuple[Callable[[Any], bool], str]:
    """(test, its wording): finite and larger than `low`."""
    return lambda value: low < value < math.inf, f"> {low}"
