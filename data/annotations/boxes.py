"""Boxes with labels: the annotation type `boxes`, as text and drawn.

Rows hold COCO's XYWH in pixels of the EXIF-upright picture; inside, boxes are XYXY.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..coords import Frame, encode
from .drawing import draw_boxes

EDGE_TOLERANCE = 0.5
"""Pixels by which a box may leave the picture and is clipped: rounding of other tools."""
MAX_ENTRIES = 1000
"""Annotations of one type in a row; more are a mistake, or a prompt that no model reads."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One labelled box."""

    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the loaded picture."""
    label: str = ""
    image: int = 0
    """Which picture of the row, counted from 0."""


class Boxes:
    """Labelled boxes: `[{"bbox": [x, y, w, h], "label": str, "image": int}]`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Box, ...]:
        """Checked boxes; ValueError for a box without area, outside its picture or not finite."""
        return tuple(_parse_box(index, entry, sizes) for index, entry in enumerate(entries(raw)))

    def describe(self, value: Sequence[Box], frame: Frame) -> str:
        """`[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]`, one line `image N: [...]` per picture
        when there are several."""
        return describe_by_image(
            [(box.image, _as_json(box, frame.image(box.image))) for box in value], frame
        )

    def draw(self, images: Sequence[Image.Image], value: Sequence[Box]) -> list[Image.Image]:
        """Copies of the pictures with the boxes and labels on them."""
        drawn = []
        for index, image in enumerate(images):
            boxes = [box for box in value if box.image == index]
            drawn.append(
                draw_boxes(image, [box.xyxy for box in boxes], [box.label for box in boxes])
            )
        return drawn


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
    """The entry's picture, 0 when it names none; ValueError for one the row does not have."""
    index = entry.get("image") or 0
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(sizes):
        raise ValueError(f"{where} names image {index!r}, but the row has {len(sizes)} images")
    return index


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


def describe_by_image(items: Sequence[tuple[int, Any]], frame: Frame) -> str:
    """(picture, JSON value) pairs as one JSON list, or one `image N: [...]` line per picture."""
    if not items:
        return ""
    if not frame.rest:
        return json.dumps([item for _, item in items], ensure_ascii=False)
    lines = []
    for index in range(1 + len(frame.rest)):
        found = [item for image, item in items if image == index]
        if found:
            lines.append(f"image {index + 1}: {json.dumps(found, ensure_ascii=False)}")
    return "\n".join(lines)


def _parse_box(index: int, entry: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> Box:
    where = f"[{index}]"
    image = image_index(where, entry, sizes)
    left, top, width, height = numbers(f"{where}.bbox", entry.get("bbox"), 4)
    if width <= 0 or height <= 0:
        raise ValueError(
            f"{where}.bbox {entry['bbox']} has no area; boxes are [x, y, width, height] in pixels"
        )
    xyxy = (left, top, left + width, top + height)
    right, bottom = sizes[image]
    out = max(-xyxy[0], -xyxy[1], xyxy[2] - right, xyxy[3] - bottom)
    if out > EDGE_TOLERANCE:
        raise ValueError(
            f"{where}.bbox {entry['bbox']} ([x, y, width, height]) leaves image {image} of "
            f"{right} x {bottom} pixels by {out:g}"
        )
    clipped = (max(xyxy[0], 0.0), max(xyxy[1], 0.0), min(xyxy[2], right), min(xyxy[3], bottom))
    label = entry.get("label")
    return Box(xyxy=clipped, label="" if label is None else str(label), image=image)


def _as_json(box: Box, frame: Frame) -> dict[str, Any]:
    place = {"bbox_2d": encode(box.xyxy, frame)}
    return {**place, "label": box.label} if box.label else place
