"""The error for a name that nobody knows: what was given, what is near, what there is."""

import difflib
from collections.abc import Iterable

MOST_NEAR = 3
MOST_KNOWN = 40
"""Names listed in a message."""


def near(name: object, known: Iterable[str]) -> list[str]:
    """Up to MOST_NEAR of the known names that look like `name`, the nearest first."""
    return difflib.get_close_matches(str(name), list(known), n=MOST_NEAR)


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error to raise: "unknown WHAT 'NAME'; near: ...; known: ...".

    Args:
        what: the kind of thing, with its place where that helps ("task", "mine.yaml: setting").
        name: what the user wrote.
        known: the names that are allowed, in the order to list them.
    """
    names = list(known)
    likely = near(name, names)
    hint = f"near: {', '.join(likely)}; " if likely else ""
    rest = len(names) - MOST_KNOWN
    more = f" and {rest} more" if rest > 0 else ""
    listed = f"{', '.join(names[:MOST_KNOWN]) or '(none)'}{more}"
    return ValueError(f"unknown {what} {name!r}; {hint}known: {listed}")
