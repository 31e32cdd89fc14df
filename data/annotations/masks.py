"""Masks from polygons or run lengths: the annotation type `masks`, as text and as tinted areas.

Run lengths are read here and not by pycocotools, which trusts them: 2.0.11 shows uninitialised memory
where lengths fall short, and damages the heap on malformed text. The tests compare with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..coords import Frame, encode
from .drawing import draw_masks
from .parsing import check_inside, describe_by_image, entries, image_index, label_of, numbers


@dataclass(frozen=True, kw_only=True)
class Mask:
    """One labelled area."""

    area: np.ndarray
    """bool [height, width] of the loaded image."""
    polygon: tuple[float, ...] | None = None
    """x, y, x, y, ... in pixels, where the row gave a single polygon."""
    label: str = ""
    image: int = 0
    """Which image of the row, counted from 0."""


class Masks:
    """Areas as COCO writes them: `[{"segmentation": ..., "label": str, "image": int}]`.

    `segmentation` is a polygon `[x, y, ...]`, a list of polygons, or run lengths
    `{"size": [height, width], "counts": [...] or "compressed"}`, column by column.
    """

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Mask, ...]:
        """Checked masks; ValueError for an empty one, or one of another size than its image."""
        return tuple(_parse_mask(index, entry, sizes) for index, entry in enumerate(entries(raw)))

    def describe(self, value: Sequence[Mask], frame: Frame) -> str:
        """`polygon_2d` of a single polygon, else `bbox_2d` around the area, with the label."""
        return describe_by_image(
            [(mask.image, _as_json(mask, frame.image(mask.image))) for mask in value], frame
        )

    def draw(self, images: Sequence[Image.Image], value: Sequence[Mask]) -> list[Image.Image]:
        """Copies of the images with tinted areas and their labels."""
        drawn = []
        for index, image in enumerate(images):
            masks = [mask for mask in value if mask.image == index]
            drawn.append(
                draw_masks(
                    image,
                    [mask.area for mask in masks],
                    [bounds(mask.area) for mask in masks],
                    [mask.label for mask in masks],
                )
            )
        return drawn


def bounds(area: np.ndarray) -> tuple[float, float, float, float]:
    """XYXY in pixels around the true cells of a mask that has some."""
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def decode_runs(counts: Sequence[int] | str, size: Sequence[int]) -> np.ndarray:
    """bool [height, width] from run lengths of 0s and 1s in turn, column by column.

    Args:
        counts: the lengths, or COCO's compressed text of them: base 32, five bits a character
            from chr(48), sixth bit for "more follows", sign extended, and from the third length
            on the difference to the one two before (cocoapi `rleFrString`).
        size: [height, width].
    """
    lengths = _uncompressed(counts) if isinstance(counts, str) else list(counts)
    if any(length < 0 for length in lengths) or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"run lengths must fill {size[0]} x {size[1]} pixels exactly")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(size[1], size[0]).T


def encode_runs(area: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a bool [height, width]: what `decode_runs` undoes."""
    flat = np.concatenate([[False], area.T.reshape(-1), [True]])
    # The first length counts 0s and may be 0; the last closes at the end whatever is there.
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if not area.size or edges[-1] != area.size:
        edges = np.append(edges, area.size)
    lengths = np.diff(edges, prepend=0).tolist()
    before = [0, 0, 0, *lengths[1:]]
    text = "".join(_compressed(n - b) for n, b in zip(lengths, before, strict=False))
    return {"size": list(area.shape), "counts": text}


def _compressed(value: int) -> str:
    """One difference of run lengths in COCO's base 32."""
    text, more = "", True
    while more:
        bits, value = value & 31, value >> 5
        more = value != (-1 if bits & 16 else 0)
        text += chr((bits | 32 if more else bits) + 48)
    return text


def _uncompressed(text: str) -> list[int]:
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths must not hold {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value |= -1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return lengths


def _parse_mask(index: int, entry: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> Mask:
    where = f"[{index}].segmentation"
    image = image_index(f"[{index}]", entry, sizes)
    width, height = sizes[image]
    raw, polygon = entry.get("segmentation"), None
    if isinstance(raw, Mapping):
        area = _from_runs(where, raw, (height, width))
    elif isinstance(raw, Sequence) and not isinstance(raw, str) and raw:
        polygons = [raw] if isinstance(raw[0], int | float) else list(raw)
        paths = [_polygon(where, path, image, sizes) for path in polygons]
        polygon = tuple(paths[0]) if len(paths) == 1 else None
        canvas = Image.new("1", (width, height))
        for path in paths:
            ImageDraw.Draw(canvas).polygon(path, fill=1)
        area = np.asarray(canvas)
    else:
        raise ValueError(f"{where} must be polygons or run lengths, got {raw!r}")
    if not area.any():
        raise ValueError(f"{where} has no area")
    return Mask(area=area, polygon=polygon, label=label_of(f"[{index}]", entry), image=image)


def _from_runs(where: str, raw: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    given = raw.get("size")
    if not isinstance(given, Sequence) or tuple(given) != size:
        raise ValueError(
            f"{where}.size must be the image's [height, width] {list(size)}, got {given}"
        )
    counts = raw.get("counts")
    is_list = isinstance(counts, list | tuple) and all(type(length) is int for length in counts)
    if counts is None or not (is_list or isinstance(counts, str)):
        raise ValueError(f"{where}.counts must be whole numbers or COCO's text, got {counts!r}")
    try:
        return decode_runs(counts, size)
    except ValueError as error:
        raise ValueError(f"{where}.counts: {error}, they must be this image's") from error


def _polygon(where: str, path: Any, image: int, sizes: Sequence[tuple[int, int]]) -> list[float]:
    count = len(path) if isinstance(path, Sequence) else 0
    if count < 6 or count % 2:
        raise ValueError(f"{where} must be x, y pairs of at least three corners, got {path!r}")
    xy = numbers(where, path, count)
    check_inside(where, xy, image, sizes)
    return xy


def _as_json(mask: Mask, frame: Frame) -> dict[str, Any]:
    place = (
        {"polygon_2d": encode(mask.polygon, frame)}
        if mask.polygon
        else {"bbox_2d": encode(bounds(mask.area), frame)}
    )
    return {**place, "label": mask.label} if mask.label else place
