"""Marks on copies of pictures, by torchvision, in colours that colour-blind people tell apart."""

import io
from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image, ImageFont
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

# Okabe and Ito, Color Universal Design (2008), without black.
PALETTE = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DARK = ("#0072B2", "#009E73", "#D55E00")
STROKE_SHARE = 1 / 160
FONT_SHARE = 1 / 26
MIN_FONT_PX = 9


def colour_of(index: int) -> str:
    """The palette's colour for the label number `index`."""
    return PALETTE[index % len(PALETTE)]


def stroke_px(size: tuple[int, int]) -> int:
    """Line width for a picture of that size, at least 1."""
    return max(1, round(min(size) * STROKE_SHARE))


def font_px(size: tuple[int, int]) -> int:
    """Font size for a picture of that size."""
    return max(MIN_FONT_PX, round(min(size) * FONT_SHARE))


def draw_boxes(
    image: Image.Image, xyxy: Sequence[Sequence[float]], labels: Sequence[str]
) -> Image.Image:
    """A copy of the picture with boxes; equal labels have the same colour."""
    if not xyxy:
        return image.copy()
    order = list(dict.fromkeys(labels))
    colours = [colour_of(order.index(label)) for label in labels]
    texts = ["white" if colour in DARK else "black" for colour in colours]
    drawn = draw_bounding_boxes(
        pil_to_tensor(image),
        torch.tensor(xyxy, dtype=torch.float32),
        labels=list(labels) if any(labels) else None,
        colors=[*colours],
        width=stroke_px(image.size),
        font=_font_file(),  # pyright: ignore[reportArgumentType]
        font_size=font_px(image.size),
        label_colors=[*texts],
        label_background_colors=[*colours],
        fill_labels=True,
    )
    return to_pil_image(drawn)


@cache
def _font_bytes() -> bytes:
    font = ImageFont.load_default(size=10)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_bytes


def _font_file() -> io.BytesIO:
    """Pillow's own scalable font: torchvision scales only a font that it is given."""
    return io.BytesIO(_font_bytes())
