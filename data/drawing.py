"""Marks on copies of pictures, in colours that colour-blind people tell apart.

Strokes are torchvision's; labels are set here, because torchvision writes them inside the box,
over the very thing that the box shows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

# Okabe and Ito, Color Universal Design (2008), without black.
PALETTE = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
WHITE_TEXT = ("#0072B2", "#009E73", "#D55E00", "black")
STROKE_SHARE = 1 / 160
FONT_SHARE = 1 / 26
TINT = 0.45
"""Opacity of a mask's colour."""
MIN_FONT_PX = 9


def colours_of(labels: Sequence[str]) -> list[str]:
    """A palette colour per label; equal labels have the same one."""
    order = list(dict.fromkeys(labels))
    return [PALETTE[order.index(label) % len(PALETTE)] for label in labels]


def stroke_px(size: tuple[int, int]) -> int:
    """Line width for a picture of that size, at least 1."""
    return max(1, round(min(size) * STROKE_SHARE))


def font_px(size: tuple[int, int]) -> int:
    """Font size for a picture of that size."""
    return max(MIN_FONT_PX, round(min(size) * FONT_SHARE))


def draw_boxes(
    image: Image.Image, xyxy: Sequence[Sequence[float]], labels: Sequence[str]
) -> Image.Image:
    """A copy of the picture with boxes and their labels."""
    if not xyxy:
        return image.copy()
    colours = colours_of(labels)
    strokes = draw_bounding_boxes(
        pil_to_tensor(image),
        torch.tensor(xyxy, dtype=torch.float32),
        colors=[*colours],
        width=stroke_px(image.size),
    )
    return draw_tags(to_pil_image(strokes), [box[:2] for box in xyxy], labels, colours)


def draw_dots(
    image: Image.Image, xy: Sequence[Sequence[float]], labels: Sequence[str]
) -> Image.Image:
    """A copy of the picture with a dot and label per point."""
    if not xy:
        return image.copy()
    colours, radius = colours_of(labels), 2 * stroke_px(image.size)
    pixels = pil_to_tensor(image)
    for place, colour in zip(xy, colours, strict=True):
        pixels = draw_keypoints(pixels, torch.tensor([[place]]), colors=colour, radius=radius)
    corners = [(x + radius, y - radius) for x, y in xy]
    return draw_tags(to_pil_image(pixels), corners, labels, colours)


def draw_masks(
    image: Image.Image,
    areas: Sequence[np.ndarray],
    corners: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> Image.Image:
    """A copy of the picture with tinted areas (bool [height, width]) and labels at the corners."""
    if not areas:
        return image.copy()
    colours = colours_of(labels)
    tinted = draw_segmentation_masks(
        pil_to_tensor(image), torch.from_numpy(np.stack(areas)), alpha=TINT, colors=[*colours]
    )
    return draw_tags(to_pil_image(tinted), corners, labels, colours)


def draw_numbers(
    image: Image.Image, centres: Sequence[Sequence[float]], numbers: Sequence[int]
) -> Image.Image:
    """A copy of the picture with each number on a dark patch around its centre."""
    size, pad = font_px(image.size), stroke_px(image.size)
    corners = [(x - size / 4 - pad, y + size / 2 + pad) for x, y in centres]
    return draw_tags(image, corners, [str(number) for number in numbers], ["black"] * len(corners))


def draw_tags(
    image: Image.Image,
    corners: Sequence[Sequence[float]],
    texts: Sequence[str],
    colours: Sequence[str],
) -> Image.Image:
    """A copy with each text on a patch of its colour above its (left, top) corner.

    Below the corner where there is no room above; moved left where it would leave the picture.
    """
    tagged = image.copy()
    pen = ImageDraw.Draw(tagged)
    font = ImageFont.load_default(size=font_px(image.size))
    pad = stroke_px(image.size)
    for (left, top), text, colour in zip(corners, texts, colours, strict=True):
        if not text:
            continue
        _, _, width, height = pen.textbbox((0, 0), text, font=font)
        width, height = width + 2 * pad, height + 2 * pad
        x = max(0, min(left, image.width - width))
        y = top - height if top >= height else max(0, top)
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        ink = "white" if colour in WHITE_TEXT else "black"
        pen.text((x + pad, y + pad), text, font=font, fill=ink)
    return tagged
