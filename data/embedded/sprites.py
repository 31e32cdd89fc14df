"""Cut-outs and photographs that the embedded scenes are composed of.

`scripts/make/scenes.py parts` writes them, with their licences, to assets/scenes_parts.
Sprites and photographs of the split `train` are in no other split, and the other way round.
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageOps

PARTS = Path(__file__).parents[1] / "assets" / "scenes_parts"
TILE = 112
"""Pixels per side of a sprite on the sheet."""
COLUMNS = 12
"""Sprites a line on the sheet."""
OPAQUE = 32
"""Alpha above which a pixel belongs to the sprite: boxes and masks are made of these."""


_IS_OPAQUE = [255 * (alpha > OPAQUE) for alpha in range(256)]


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One kind of thing."""

    label: str
    plural: str
    split: str
    """`train` or `test`; the split `shifted` has those of `test`."""
    tile: int
    """Place on the sheet, counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a sprite looks in an image."""

    sprite: Sprite
    side: int
    """Longest side in pixels before it is turned."""
    angle: int = 0
    """Degrees counter-clockwise."""
    is_flipped: bool = False


@cache
def sprites(split: str) -> tuple[Sprite, ...]:
    """The kinds of things in a split."""
    entries = json.loads((PARTS / "sprites.json").read_text(encoding="utf-8"))
    every = [Sprite(**entry, tile=index) for index, entry in enumerate(entries)]
    return tuple(sprite for sprite in every if sprite.split == _pool(split))


@cache
def photos(split: str) -> tuple[str, ...]:
    """Names of the photographs that are backgrounds in a split."""
    return tuple(json.loads((PARTS / "photos.json").read_text(encoding="utf-8"))[_pool(split)])


@cache
def photo(name: str) -> Image.Image:
    """A photograph, RGB; shared, so not to be painted on."""
    with Image.open(PARTS / f"{name}.jpg") as stored:
        return stored.convert("RGB")


@lru_cache(maxsize=1024)
def cutout(look: Look) -> Image.Image:
    """The sprite as RGBA, cut to the bounds of its opaque pixels; shared, not to be painted on."""
    tile = _tile(look.sprite.tile)
    scale = look.side / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    small = tile.resize(size, Image.Resampling.LANCZOS)
    small = ImageOps.mirror(small) if look.is_flipped else small
    return _trimmed(small.rotate(look.angle, Image.Resampling.BICUBIC, expand=True))


@cache
def _tile(index: int) -> Image.Image:
    left, top = index % COLUMNS * TILE, index // COLUMNS * TILE
    return _trimmed(_sheet().crop((left, top, left + TILE, top + TILE)))


@cache
def _sheet() -> Image.Image:
    with Image.open(PARTS / "sprites.webp") as stored:
        return stored.convert("RGBA")


def _trimmed(image: Image.Image) -> Image.Image:
    bounds = image.getchannel("A").point(_IS_OPAQUE).getbbox()
    return image.crop(bounds)


def _pool(split: str) -> str:
    return "train" if split == "train" else "test"
