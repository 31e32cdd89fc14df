"""The annotation types: what the teacher may see and the student may not, one class per kind.

A type has `parse` and `describe`; one that can mark images also has `draw`; one whose value may
give the answer away also has `check`. To add a type, write such a class and either add it to
`TYPES`, call `register`, or name an instance under the entry-point group `dopd_vlm.annotations`.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from dopd_vlm.errors import unknown

from ..coords import Frame
from .boxes import Boxes
from .masks import Masks
from .points import Points
from .regions import Crops, Marks, Ocr
from .texts import Answer, Captions, Hints, SceneGraph, Solution

ENTRY_POINT_GROUP = "dopd_vlm.annotations"
Size = tuple[int, int]


@runtime_checkable
class AnnotationType(Protocol):
    """Turns the value under `row["annotations"][name]` into privileged text."""

    def parse(self, raw: Any, sizes: Sequence[Size]) -> Any:
        """The checked value, or an empty one when `raw` is None.

        Args:
            raw: what the row holds under this type's name.
            sizes: (width, height) in pixels of each loaded image of the row.

        Raises:
            ValueError: when `raw` does not fit; the caller adds the row's uid and file.
        """
        ...

    def describe(self, value: Any, frame: Frame) -> str:
        """The value as text, places in the frame's coordinates; "" for an empty value."""
        ...


@runtime_checkable
class DrawnType(AnnotationType, Protocol):
    """A type that can also be shown in the images."""

    def draw(self, images: Sequence[Image.Image], value: Any) -> Sequence[Image.Image]:
        """New images with the value drawn; the given ones stay untouched; may add images."""
        ...


@runtime_checkable
class CheckedType(AnnotationType, Protocol):
    """A type whose value must not give the answer away."""

    def check(self, value: Any, answer: str, choices: Mapping[str, str] | None) -> None:
        """Raises ValueError, naming the place, when the value discloses the answer."""
        ...


TYPES: dict[str, AnnotationType] = {
    "boxes": Boxes(),
    "points": Points(),
    "masks": Masks(),
    "crops": Crops(),
    "marks": Marks(),
    "ocr": Ocr(),
    "scene_graph": SceneGraph(),
    "captions": Captions(),
    "hints": Hints(),
    "summary": Hints(),
    "solution": Solution(),
    "answer": Answer(),
}


def register(name: str, instance: AnnotationType) -> None:
    """Adds a type under `name`; a name can be taken once.

    Raises:
        ValueError: the name is taken, or `instance` lacks `parse` or `describe`.
    """
    if name in TYPES:
        raise ValueError(f"annotation type {name!r} exists already: {type(TYPES[name]).__name__}")
    _check_instance(name, instance)
    TYPES[name] = instance


def annotation_type(name: str) -> AnnotationType:
    """The type of that name: built in, registered, or from another package's entry point.

    Raises:
        ValueError: unknown name, listing the near ones; or a broken type of another package, naming it.
    """
    if name in TYPES:
        _plugins()  # warns of a plug-in whose name is taken
        return TYPES[name]
    if name in _plugins():
        return _loaded(name)
    raise unknown("annotation type", name, type_names())


def type_names() -> list[str]:
    """The names `annotation_type` knows, sorted."""
    return sorted({*_plugins(), *TYPES})


def forms(name: str) -> tuple[str, ...]:
    """The forms in which this type can be shown: `text`, and `drawn` and `both` if it draws."""
    drawn = isinstance(annotation_type(name), DrawnType)
    return ("text", "drawn", "both") if drawn else ("text",)


@cache
def _plugins() -> dict[str, EntryPoint]:
    """Types that other packages offer, by name; they are loaded when asked for."""
    points = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in TYPES:
            warnings.warn(
                f"annotation type {point.name!r} of {_owner(point)} is left out: the name is taken",
                stacklevel=3,
            )
        else:
            points[point.name] = point
    return points


@cache
def _loaded(name: str) -> AnnotationType:
    point = _plugins()[name]
    try:
        loaded = point.load()
        instance = loaded() if isinstance(loaded, type) else loaded
        _check_instance(name, instance)
    except Exception as error:  # another package's code: it may raise anything
        raise ValueError(
            f"annotation type {name!r} of {_owner(point)} cannot be used: "
            f"{type(error).__name__}: {error}"
        ) from error
    return instance


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'an unknown distribution'} ({point.value})"


def _check_instance(name: str, instance: Any) -> None:
    if isinstance(instance, type) or not isinstance(instance, AnnotationType):
        raise ValueError(
            f"annotation type {name!r}: got {instance!r}, need an instance with "
            "parse(raw, sizes) and describe(value, frame)"
        )
