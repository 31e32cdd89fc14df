"""Boxes with labels: the annotation type `boxes`, as text and drawn.

Rows hold COCO's XYWH in pixels of the EXIF-upright image; inside, boxes are XYXY.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..coords import Frame, encode
from .drawing import draw_boxes
from .parsing import describe_by_image, entries, image_index, label_of, numbers

EDGE_TOLERANCE = 0.5
"""Pixels by which a box may leave the image and is clipped: rounding of other tools."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One labelled box."""

    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the loaded image."""
    label: str = ""
    image: int = 0
    """Which image of the row, counted from 0."""


class Boxes:
    """Labelled boxes: `[{"bbox": [x, y, w, h], "label": str, "image": int}]`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Box, ...]:
        """Checked boxes; ValueError for a box without area, outside its image or not finite."""
        return tuple(_parse_box(index, entry, sizes) for index, entry in enumerate(entries(raw)))

    def describe(self, value: Sequence[Box], frame: Frame) -> str:
        """`[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]`, one line `image N: [...]` per image
        when there are several."""
        return describe_by_image(
            [(box.image, _as_json(box, frame.image(box.image))) for box in value], frame
        )

    def draw(self, images: Sequence[Image.Image], value: Sequence[Box]) -> list[Image.Image]:
        """Copies of the images with the boxes and labels on them."""
        drawn = []
        for index, image in enumerate(images):
            boxes = [box for box in value if box.image == index]
            drawn.append(
                draw_boxes(image, [box.xyxy for box in boxes], [box.label for box in boxes])
            )
        return drawn


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
    return Box(xyxy=clipped, label=label_of(where, entry), image=image)


def _as_json(box: Box, frame: Frame) -> dict[str, Any]:
    place = {"bbox_2d": encode(box.xyxy, frame)}
    return {**place, "label": box.label} if box.label else place
