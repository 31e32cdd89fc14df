"""What others add: objects of an entry-point group, and files of one's own that register what they hold.

A broken entry point is named, and the rest works; a file that the user names must run.
"""

import sys
import traceback
import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

from dopd_vlm.errors import unknown

T = TypeVar("T")

METHODS = "dopd_vlm.methods"
"""Entry points of methods; the module of one may register divergences and routers too."""

_loaded: dict[str, dict[str, Any]] = {}
_files: list[Path] = []


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


def add(kind: str, table: dict[str, T], name: str, value: T) -> T:
    """Makes a value known under its name, and returns it; twice the same one is no error.

    Raises:
        ValueError: the name is taken by another value.
    """
    if table.setdefault(name, value) is not value:
        raise ValueError(f"{kind} {name!r} exists already; give yours another name")
    return value


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """The value of that name: built in, added, or added by the module of an entry point.

    Raises:
        ValueError: unknown name; the message lists the near ones.
    """
    if name not in table:
        load(METHODS)
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def load_file(name: str | Path) -> None:
    """Runs a Python file, once; it registers annotation types, methods or divergences.

    Raises:
        ValueError: no such file; its name hides another module; whatever it raises, with file and line.
    """
    path = Path(name).resolve()
    if path in _files:
        return
    spec = spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"plug-in {str(name)!r} is no Python file")
    if path.stem in sys.modules:
        raise ValueError(
            f"plug-in {str(name)!r}: a module {path.stem!r} is there already; rename it"
        )
    module = sys.modules[path.stem] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's own code: it may raise anything
        del sys.modules[path.stem]
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"plug-in {str(name)!r}: {type(error).__name__}: {error} ({line.filename}, line {line.lineno})"
        ) from error
    _files.append(path)


def files() -> tuple[Path, ...]:
    """The files that `load_file` ran; a worker process runs them too."""
    return tuple(_files)


def forget() -> None:
    """Lets the next `load` read the entry points anew, and `load_file` its files."""
    _loaded.clear()
    for path in _files:
        sys.modules.pop(path.stem, None)
    _files.clear()


def owner(point: EntryPoint) -> str:
    """The distribution and the object an entry point names."""
    return f"{point.dist.name if point.dist else 'an unknown distribution'} ({point.value})"
