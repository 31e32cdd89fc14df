"""What all types with places share: their list of entries, checked numbers, text by image."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..coords import Frame
from ..questions import plain_text

MAX_ENTRIES = 1000
"""Annotations of one type in a row; more are a mistake, or a prompt that no model reads."""


def entries(raw: Any) -> list[Mapping[str, Any]]:
    """The list of mappings that types with places are written as; None is the empty list."""
    if raw is None:
        return []
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise ValueError(f"must be a list of objects, got {type(raw).__name__}")
    if len(raw) > MAX_ENTRIES:
        raise ValueError(f"must be at most {MAX_ENTRIES} objects, got {len(raw)}")
    for index, entry in enumerate(raw):
        if not isinstance(entry, Mapping):
            raise ValueError(f"[{index}] must be an object, got {entry!r}")
    return list(raw)


def image_index(where: str, entry: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> int:
    """The entry's image, 0 when it names none; ValueError for one the row does not have."""
    index = entry.get("image") or 0
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(sizes):
        raise ValueError(f"{where} names image {index!r}, but the row has {len(sizes)} images")
    return index


def label_of(where: str, entry: Mapping[str, Any]) -> str:
    """The entry's label, "" when it has none; ValueError for anything but text or a number."""
    label = entry.get("label")
    return "" if label is None else plain_text(f"{where}.label", label)


def numbers(where: str, values: Any, count: int) -> list[float]:
    """`count` finite numbers, or ValueError."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or len(values) != count:
        raise ValueError(f"{where} must be {count} numbers, got {values!r}")
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{where} must be {count} finite numbers, got {list(values)!r}")
    return [float(value) for value in values]


def check_inside(
    where: str, xy: Sequence[float], image: int, sizes: Sequence[tuple[int, int]]
) -> None:
    """ValueError for x, y, x, y, ... that leave the image."""
    width, height = sizes[image]
    for x, y in zip(xy[::2], xy[1::2], strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"{where} ({x:g}, {y:g}) leaves image {image} of {width} x {height} pixels"
            )


def describe_by_image(items: Sequence[tuple[int, Any]], frame: Frame) -> str:
    """(image, JSON value) pairs as one JSON list, or one `image N: [...]` line per image."""
    if not items:
        return ""
    if not frame.rest:
        return json.dumps([item for _, item in items], ensure_ascii=False)
    lines = []
    for index in range(1 + len(frame.rest)):
        here = [item for image, item in items if image == index]
        if here:
            lines.append(f"image {index + 1}: {json.dumps(here, ensure_ascii=False)}")
    return "\n".join(lines)
