"""Pixels of the image <-> the numbers a model family writes for a place.

Inside, places are x right, y down, in pixels of the loaded (EXIF-upright) image. Families:

    qwen2, qwen3  integers 0..1000, relative to width and height
    qwen2_5       integer pixels of the image as the processor resizes it (`resized`)
    norm1         fractions 0..1 with four decimals
    pixel         integer pixels of the loaded image

Sources: Qwen2-VL report; QwenLM/Qwen3-VL issues #676 and #1486 and its cookbooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dopd_vlm.errors import unknown

FAMILIES = ("qwen2", "qwen2_5", "qwen3", "norm1", "pixel")
RELATIVE_STEPS = 1000
NORM1_DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The coordinates of an image for one family; of a row with several, the first's."""

    family: str
    size: tuple[int, int]
    """Width and height in pixels of the loaded image."""
    resized: tuple[int, int] | None = None
    """Width and height after the processor's resize; `qwen2_5` needs it (see `resized_size`)."""
    rest: tuple["Frame", ...] = ()
    """Frames of the row's further images."""

    def __post_init__(self) -> None:
        check_family(self.family)
        if self.family == "qwen2_5" and self.resized is None:
            raise ValueError(
                "coords 'qwen2_5' are pixels of the resized image: give Frame(resized=...), or "
                "make_sample(resize=lambda image: resized_size(processor, image))"
            )

    def image(self, index: int) -> "Frame":
        """The frame of the row's image `index`, counted from 0."""
        return (self, *self.rest)[index]


def check_family(family: str) -> None:
    """Raises ValueError for a name that is not in `FAMILIES`, naming the near ones."""
    if family not in FAMILIES:
        raise unknown("coords", family, FAMILIES)


def cell_size(frame: Frame) -> tuple[float, float]:
    """Width and height in image pixels of one step of the family's numbers.

    A place comes back from `decode(encode(...))` within half of it per axis.
    """
    if frame.family == "pixel":
        return 1.0, 1.0
    if frame.family == "qwen2_5":
        assert frame.resized is not None
        return frame.size[0] / frame.resized[0], frame.size[1] / frame.resized[1]
    steps = 10**NORM1_DECIMALS if frame.family == "norm1" else RELATIVE_STEPS
    return frame.size[0] / steps, frame.size[1] / steps


def encode(xy: Sequence[float], frame: Frame) -> list[int] | list[float]:
    """The family's numbers for x, y, x, y, ... in pixels of the loaded image.

    Args:
        xy: alternating x and y, so points [2], boxes as XYXY [4] and polygons [2 n] alike.
    """
    cells = cell_size(frame)
    steps = [round(value / cells[index % 2]) for index, value in enumerate(xy)]
    if frame.family == "norm1":
        return [round(step / 10**NORM1_DECIMALS, NORM1_DECIMALS) for step in steps]
    return steps


def decode(values: Sequence[float], frame: Frame) -> list[float]:
    """Pixels of the loaded image for the family's numbers: the inverse of `encode`."""
    cells = cell_size(frame)
    scale = 10**NORM1_DECIMALS if frame.family == "norm1" else 1
    return [value * scale * cells[index % 2] for index, value in enumerate(values)]


def resized_size(processor: Any, image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels to which this processor resizes the image (Qwen-VL's grid).

    Asks the image processor itself, so it holds for whatever limits the processor was given.
    """
    image_processor = processor.image_processor
    grid = image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    return grid[2] * image_processor.patch_size, grid[1] * image_processor.patch_size
