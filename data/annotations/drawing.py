"""Marks on copies of images, in colours that colour-blind people tell apart.

Strokes are torchvision's, with a dark or light edge so that they stand out on any ground. Labels are
placed here: torchvision writes them inside the box, over the very thing that it shows, and the
`LabelAnnotator(smart_position=True)` of supervision (0.31) puts labels over each other in corners and
over other boxes, and white letters on yellow.
Sizes follow the image's shorter side, so that marks are legible at 256 and at 4,096 pixels.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if (
    TYPE_CHECKING
):  # torch and torchvision are imported by what draws: a command's help waits for neither
    from torch import Tensor

# Okabe and Ito, Color Universal Design (2008), without black.
PALETTE = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
WHITE_TEXT = ("#0072B2", "#009E73", "#D55E00", "black")
STROKE_SHARE = 1 / 160
FONT_SHARE = 1 / 26
TINT = 0.45
"""Opacity of a mask's colour."""
MIN_FONT_PX = 9
LARGEST_TAG = 1 / 8
"""Share of the image above which a label hides more than it says: the mark is then drawn without one."""
LABEL_WEIGHT = 8
"""How much worse it is to hide a pixel of another label than one of a marked place."""

Box = Sequence[float]
"""XYXY in pixels of the image."""


def colours_of(labels: Sequence[str]) -> list[str]:
    """A palette colour per label; equal labels have the same one."""
    order = list(dict.fromkeys(labels))
    return [PALETTE[order.index(label) % len(PALETTE)] for label in labels]


def stroke_px(size: tuple[int, int]) -> int:
    """Line width for an image of that size, at least 1."""
    return max(1, math.ceil(min(size) * STROKE_SHARE))


def font_px(size: tuple[int, int]) -> int:
    """Font size for an image of that size."""
    return max(MIN_FONT_PX, round(min(size) * FONT_SHARE))


def draw_boxes(image: Image.Image, xyxy: Sequence[Box], labels: Sequence[str]) -> Image.Image:
    """A copy of the image with boxes and their labels."""
    import torch
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import draw_bounding_boxes

    if not xyxy:
        return image.copy()
    colours, width = colours_of(labels), stroke_px(image.size)
    edge = max(1, width // 3)
    # One call: a wider dark frame, of two as wide as the coloured one, and that one over them.
    frames = [_grown(box, by) for by in (edge, -edge) for box in xyxy]
    strokes = draw_bounding_boxes(
        pil_to_tensor(image),
        torch.tensor([*frames, *xyxy], dtype=torch.float32),
        colors=[*["black"] * len(frames), *colours],
        width=width,
    )
    return draw_tags(to_pil_image(strokes), xyxy, labels, colours)


def draw_dots(
    image: Image.Image, xy: Sequence[Sequence[float]], labels: Sequence[str]
) -> Image.Image:
    """A copy of the image with a ringed dot and label per point."""
    import torch
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import draw_keypoints

    if not xy:
        return image.copy()
    colours, radius = colours_of(labels), 2 * stroke_px(image.size)
    places = torch.tensor([[place] for place in xy], dtype=torch.float32)
    ring = radius + max(1, radius // 3)
    pixels = draw_keypoints(pil_to_tensor(image), places, colors="black", radius=ring)
    for colour in dict.fromkeys(colours):
        of_colour = torch.tensor([other == colour for other in colours])
        pixels = draw_keypoints(pixels, places[of_colour], colors=colour, radius=radius)
    around = [(x - ring, y - ring, x + ring, y + ring) for x, y in xy]
    return draw_tags(to_pil_image(pixels), around, labels, colours, keep_clear=around)


def draw_masks(
    image: Image.Image, areas: Sequence[np.ndarray], around: Sequence[Box], labels: Sequence[str]
) -> Image.Image:
    """A copy of the image with tinted, outlined areas and their labels.

    Args:
        areas: bool [height, width] each.
        around: the areas' bounds, next to which labels are put.
    """
    import torch
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import draw_segmentation_masks

    if not areas:
        return image.copy()
    masks, colours = torch.from_numpy(np.stack(areas)), colours_of(labels)
    tinted = draw_segmentation_masks(pil_to_tensor(image), masks, alpha=TINT, colors=[*colours])
    rims = masks & ~_shrunk(masks, stroke_px(image.size))
    outlined = draw_segmentation_masks(tinted, rims, alpha=1.0, colors=[*colours])
    return draw_tags(to_pil_image(outlined), around, labels, colours)


def draw_numbers(
    image: Image.Image, centres: Sequence[Sequence[float]], numbers: Sequence[int]
) -> Image.Image:
    """A copy of the image with each number on a dark patch on its centre, or close by."""
    numbered, used = image.copy(), np.zeros((0, 4))
    for (x, y), number in zip(centres, numbers, strict=True):
        width, height = _patch_size(image, str(number))
        left, top = x - width / 2, y - height / 2
        spots = [
            (left + across * width, top + along * height)
            for across, along in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        spot = _free_spot(spots, (width, height), image.size, used, np.zeros((0, 4)))
        used = np.vstack([used, spot])
        _draw_patch(numbered, spot, str(number), "black")
    return numbered


def draw_tags(
    image: Image.Image,
    around: Sequence[Box],
    texts: Sequence[str],
    colours: Sequence[str],
    keep_clear: Sequence[Box] = (),
) -> Image.Image:
    """A copy with each text on a patch of its colour at the box it belongs to.

    Above the box, below it or inside, where it hides least of other texts, of `keep_clear` and of
    the boxes, in this order. A text too large for the image (`LARGEST_TAG`) is left out.
    """
    tagged = image.copy()
    used = np.array(keep_clear, dtype=float).reshape(-1, 4)
    places = np.array(around, dtype=float).reshape(-1, 4)
    for (left, top, right, bottom), text, colour in zip(around, texts, colours, strict=True):
        width, height = _patch_size(image, text)
        if not text or not _has_room(image.size, width, height):
            continue
        spots = [
            (x, y)
            for y in (top - height, bottom, top, bottom - height)
            for x in (left, right - width)
        ]
        spot = _free_spot(spots, (width, height), image.size, used, places)
        used = np.vstack([used, spot])
        _draw_patch(tagged, spot, text, colour)
    return tagged


def _has_room(size: tuple[int, int], width: float, height: float) -> bool:
    return width <= size[0] and width * height <= LARGEST_TAG * size[0] * size[1]


def _free_spot(
    spots: Sequence[tuple[float, float]],
    patch: tuple[float, float],
    size: tuple[int, int],
    used: np.ndarray,
    places: np.ndarray,
) -> tuple[float, float, float, float]:
    """XYXY of the first spot, moved into the image, that hides least of `used` and `places` [n, 4]."""
    best, least = (0.0, 0.0, 0.0, 0.0), float("inf")
    for corner in spots:
        x, y = (
            min(max(0.0, place), max(0.0, room - length))
            for place, room, length in zip(corner, size, patch, strict=True)
        )
        spot = (x, y, x + patch[0], y + patch[1])
        hidden = LABEL_WEIGHT * _shared(np.array(spot), used) + _shared(np.array(spot), places)
        if hidden < least:
            best, least = spot, hidden
        if not hidden:
            break
    return best


def _shared(place: np.ndarray, used: np.ndarray) -> float:
    """Pixels of `place` [4] that one of `used` [n, 4] covers."""
    corner, opposite = np.maximum(place[:2], used[:, :2]), np.minimum(place[2:], used[:, 2:])
    return float((opposite - corner).clip(min=0).prod(axis=1).sum())


def _patch_size(image: Image.Image, text: str) -> tuple[float, float]:
    font = _font(font_px(image.size))
    _, _, width, height = font.getbbox(text)
    pad = stroke_px(image.size)
    return width + 2 * pad, height + 2 * pad


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _draw_patch(image: Image.Image, place: Box, text: str, colour: str) -> None:
    pen, pad = ImageDraw.Draw(image), stroke_px(image.size)
    pen.rectangle(tuple(place), fill=colour)
    ink = "white" if colour in WHITE_TEXT else "black"
    font = _font(font_px(image.size))
    pen.text((place[0] + pad, place[1] + pad), text, font=font, fill=ink)


def _grown(box: Box, by: float) -> Box:
    """The box with its sides moved outward, or inward until they meet."""
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return (
        min(box[0] - by, middle[0]),
        min(box[1] - by, middle[1]),
        max(box[2] + by, middle[0]),
        max(box[3] + by, middle[1]),
    )


def _shrunk(masks: "Tensor", by: int) -> "Tensor":
    """bool [n, height, width]: pixels whose four neighbours `by` pixels away are inside too."""
    from torch.nn.functional import pad

    padded = pad(masks, (by, by, by, by))
    height, width = masks.shape[1:]
    inside = masks
    for down, right in ((0, by), (2 * by, by), (by, 0), (by, 2 * by)):
        inside = inside & padded[:, down : down + height, right : right + width]
    return inside
