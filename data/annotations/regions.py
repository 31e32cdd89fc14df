"""Regions shown in other ways than as boxes: `crops`, `marks` (set-of-mark) and `ocr`."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..coords import Frame, encode
from .boxes import Box, Boxes
from .drawing import draw_boxes, draw_numbers
from .parsing import describe_by_image, entries

CROP_MARGIN = 0.15
"""Share of the box's longer side kept around it."""
CROP_SIDE = 448
"""Pixels to which a crop's longer side is scaled up; a larger crop stays as it is."""


class Crops:
    """Enlarged regions as further images after the row's own; rows as for `boxes`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Box, ...]:
        """As `Boxes.parse`."""
        return Boxes().parse(raw, sizes)

    def describe(self, value: Sequence[Box], frame: Frame) -> str:
        """A line `crop N: LABEL, image M at [x1, y1, x2, y2]` per region."""
        lines = []
        for number, box in enumerate(value, start=1):
            label = f"{box.label}, " if box.label else ""
            place = encode(box.xyxy, frame.image(box.image))
            lines.append(f"crop {number}: {label}image {box.image + 1} at {place}")
        return "\n".join(lines)

    def draw(self, images: Sequence[Image.Image], value: Sequence[Box]) -> list[Image.Image]:
        """Copies of the images, then one crop per region."""
        return [*(image.copy() for image in images), *(_crop(images[b.image], b) for b in value)]


class Marks:
    """Set-of-mark (arXiv 2310.11441): numbers on the regions, and what each number is."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Box, ...]:
        """As `Boxes.parse`."""
        return Boxes().parse(raw, sizes)

    def describe(self, value: Sequence[Box], frame: Frame) -> str:
        """A line `N: LABEL` per region, numbered over all images."""
        return "\n".join(f"{n}: {box.label or 'region'}" for n, box in enumerate(value, start=1))

    def draw(self, images: Sequence[Image.Image], value: Sequence[Box]) -> list[Image.Image]:
        """Copies of the images with the number in the middle of each region."""
        drawn = []
        for index, image in enumerate(images):
            marks = [(n, b.xyxy) for n, b in enumerate(value, start=1) if b.image == index]
            centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for _, b in marks]
            drawn.append(draw_numbers(image, centres, [number for number, _ in marks]))
        return drawn


class Ocr:
    """Words in the image and where: `[{"text": str, "bbox": [x, y, w, h], "image": int}]`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Box, ...]:
        """Boxes whose label is the text; ValueError for an empty text, or as `Boxes.parse`."""
        return Boxes().parse(
            [{**entry, "label": _text(i, entry)} for i, entry in enumerate(entries(raw))], sizes
        )

    def describe(self, value: Sequence[Box], frame: Frame) -> str:
        """`[{"bbox_2d": [...], "text_content": "..."}]`, the key of Qwen's own OCR prompts."""
        return describe_by_image(
            [
                (
                    box.image,
                    {
                        "bbox_2d": encode(box.xyxy, frame.image(box.image)),
                        "text_content": box.label,
                    },
                )
                for box in value
            ],
            frame,
        )

    def draw(self, images: Sequence[Image.Image], value: Sequence[Box]) -> list[Image.Image]:
        """Copies of the images with a box around each text, which itself is not repeated."""
        return [
            draw_boxes(image, places, [""] * len(places))
            for index, image in enumerate(images)
            for places in [[box.xyxy for box in value if box.image == index]]
        ]


def _text(index: int, entry: Mapping[str, Any]) -> str:
    text = entry.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"[{index}].text must be a non-empty string, got {text!r}")
    return text.strip()


def _crop(image: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = box.xyxy
    margin = CROP_MARGIN * max(right - left, bottom - top)
    cut = image.crop(
        (
            int(max(0, left - margin)),
            int(max(0, top - margin)),
            int(min(image.width, -(-(right + margin) // 1))),
            int(min(image.height, -(-(bottom + margin) // 1))),
        )
    )
    scale = CROP_SIDE / max(cut.size)
    if scale <= 1:
        return cut
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    return cut.resize(size, Image.Resampling.BICUBIC)
