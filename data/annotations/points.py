"""Points with labels: the annotation type `points`, as text and as dots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..coords import Frame, encode
from .drawing import draw_dots
from .parsing import check_inside, describe_by_image, entries, image_index, label_of, numbers


@dataclass(frozen=True, kw_only=True)
class Point:
    """One labelled point."""

    xy: tuple[float, float]
    """Pixels of the loaded image."""
    label: str = ""
    image: int = 0
    """Which image of the row, counted from 0."""


class Points:
    """Labelled points: `[{"point": [x, y], "label": str, "image": int}]`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Point, ...]:
        """Checked points; ValueError for one outside its image or not finite."""
        return tuple(_parse_point(index, entry, sizes) for index, entry in enumerate(entries(raw)))

    def describe(self, value: Sequence[Point], frame: Frame) -> str:
        """`[{"point_2d": [x, y], "label": "..."}]`, per image as boxes are."""
        return describe_by_image(
            [
                (
                    point.image,
                    {
                        "point_2d": encode(point.xy, frame.image(point.image)),
                        **({"label": point.label} if point.label else {}),
                    },
                )
                for point in value
            ],
            frame,
        )

    def draw(self, images: Sequence[Image.Image], value: Sequence[Point]) -> list[Image.Image]:
        """Copies of the images with a dot and label per point."""
        drawn = []
        for index, image in enumerate(images):
            points = [point for point in value if point.image == index]
            drawn.append(draw_dots(image, [p.xy for p in points], [p.label for p in points]))
        return drawn


def _parse_point(index: int, entry: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> Point:
    where = f"[{index}]"
    image = image_index(where, entry, sizes)
    x, y = numbers(f"{where}.point", entry.get("point"), 2)
    check_inside(f"{where}.point", (x, y), image, sizes)
    return Point(xy=(x, y), label=label_of(where, entry), image=image)
