"""Images of the embedded scenes: where things are, and how much of each can be seen.

Places are in pixels of the image, x right, y down. Later items cover earlier ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from .sprites import OPAQUE, Look, Sprite, cutout, photo

SIZE = (320, 256)
"""Width and height of every image: multiples of Qwen3-VL's 32 pixels per token."""
BORDER = 3
LARGEST_OVERLAP = 0.12
"""Share of the smaller of two boxes that the other may cover."""
LARGEST_ANGLE = 18
TRIES = 40
SHADOW_SHIFT, SHADOW_BLUR, SHADOW_SHARE = (3, 4), 4, 0.45


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """How many things a split's images hold, and how large they and their labels are."""

    num: tuple[int, int]
    side: tuple[int, int]
    """Smallest and largest longest side in pixels."""
    tag_px: int
    """Height of the letters on labels."""


CROWDS = {
    "train": Crowd(num=(6, 8), side=(40, 66), tag_px=10),
    "test": Crowd(num=(6, 8), side=(40, 66), tag_px=10),
    "shifted": Crowd(num=(10, 13), side=(26, 38), tag_px=9),
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """A thing in the image, perhaps with a label tied to it."""

    look: Look
    left: int = 0
    top: int = 0
    tag: str = ""
    tag_px: int = 10

    @property
    def label(self) -> str:
        """What one of it is called."""
        return self.look.sprite.label

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY of its opaque pixels, were nothing over it."""
        width, height = cutout(self.look).size
        return self.left, self.top, self.left + width, self.top + height

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of `box`."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def tag_box(self) -> tuple[int, int, int, int]:
        """XYXY of its label, which hangs below it; without area when it has none."""
        width, height = _tag_size(self.tag, self.tag_px)
        left = round(self.centre[0] - width / 2)
        return left, self.box[3] - 1, left + width, self.box[3] - 1 + height

    @property
    def footprint(self) -> tuple[int, int, int, int]:
        """XYXY around the thing and its label."""
        if not self.tag:
            return self.box
        one, other = self.box, self.tag_box
        return min(one[0], other[0]), one[1], max(one[2], other[2]), other[3]


def random_items(
    generator: np.random.Generator, kinds: Sequence[Sprite], crowd: Crowd
) -> list[Item]:
    """One item per entry of `kinds`, in random looks, not placed yet."""
    return [
        Item(
            look=Look(
                sprite=sprite,
                side=int(generator.integers(crowd.side[0], crowd.side[1] + 1)),
                angle=int(generator.integers(-LARGEST_ANGLE, LARGEST_ANGLE + 1)),
                is_flipped=bool(generator.integers(2)),
            ),
            tag_px=crowd.tag_px,
        )
        for sprite in kinds
    ]


def place_items(
    generator: np.random.Generator,
    items: Sequence[Item],
    fits: Callable[[Sequence[Item]], bool],
) -> tuple[Item, ...]:
    """The items at random places inside the image, with little overlap and so that `fits` holds."""
    while True:
        placed = _try_to_place(generator, items)
        if placed is not None and fits(placed):
            return tuple(placed)


def render(
    generator: np.random.Generator, background: str, items: Sequence[Item]
) -> tuple[Image.Image, np.ndarray]:
    """The image, RGB, and bool [items, height, width]: the pixels of each that can be seen.

    Labels hide what is under them.
    """
    image = _window(generator, background)
    image.paste("black", mask=_shadow(items))
    masks = np.zeros((len(items), SIZE[1], SIZE[0]), dtype=bool)
    for index, item in enumerate(items):
        sprite = cutout(item.look)
        image.paste(sprite, (item.left, item.top), sprite)
        left, top, right, bottom = item.box
        opaque = np.asarray(sprite.getchannel("A")) > OPAQUE
        masks[:index, top:bottom, left:right] &= ~opaque
        masks[index, top:bottom, left:right] = opaque
    for item in items:
        if item.tag:
            _draw_tag(image, item)
            left, top, right, bottom = item.tag_box
            masks[:, top:bottom, left:right] = False
    return image, masks


def _try_to_place(generator: np.random.Generator, items: Sequence[Item]) -> list[Item] | None:
    placed: list[Item] = []
    for item in items:
        for x, y in generator.random((TRIES, 2)):
            moved = _moved(item, x, y)
            if all(_overlap(moved.footprint, other.footprint) <= LARGEST_OVERLAP * (not item.tag)
                   for other in placed):  # fmt: skip
                placed.append(moved)
                break
        else:
            return None
    return placed


def _moved(item: Item, x: float, y: float) -> Item:
    """The item with its footprint at a place inside the image, x and y from 0 to 1."""
    left, top, right, bottom = item.footprint
    room = (SIZE[0] - 2 * BORDER - (right - left), SIZE[1] - 2 * BORDER - (bottom - top))
    shift = (BORDER - left + int(x * room[0]), BORDER - top + int(y * room[1]))
    return replace(item, left=item.left + shift[0], top=item.top + shift[1])


def _overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Shared area over that of the smaller box."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / min(areas)


def _window(generator: np.random.Generator, background: str) -> Image.Image:
    """A random part of the photograph, perhaps mirrored, at the size of the image."""
    source = photo(background)
    largest = min(source.width / SIZE[0], source.height / SIZE[1])
    scale = largest * generator.uniform(0.65, 1.0)
    width, height = SIZE[0] * scale, SIZE[1] * scale
    left = generator.uniform(0, source.width - width)
    top = generator.uniform(0, source.height - height)
    part = source.resize(
        SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    return ImageOps.mirror(part) if generator.integers(2) else part


def _shadow(items: Sequence[Item]) -> Image.Image:
    """Opacity of the soft shadow that all items throw."""
    shadow = Image.new("L", SIZE)
    for item in items:
        alpha = cutout(item.look).getchannel("A")
        place = (item.left + SHADOW_SHIFT[0], item.top + SHADOW_SHIFT[1])
        shadow.paste(255, place, alpha)
    blurred = shadow.filter(ImageFilter.GaussianBlur(SHADOW_BLUR))
    return blurred.point([round(value * SHADOW_SHARE) for value in range(256)])


def _tag_size(text: str, tag_px: int) -> tuple[int, int]:
    if not text:
        return 0, 0
    return round(0.9 * tag_px * len(text)) + 4, tag_px + 3


def _draw_tag(image: Image.Image, item: Item) -> None:
    left, top, right, bottom = item.tag_box
    pen = ImageDraw.Draw(image)
    pen.rectangle((left, top, right - 1, bottom - 1), fill="#FFFDF2", outline="#444444")
    font = ImageFont.load_default(size=item.tag_px)
    middle = ((left + right) / 2, (top + bottom) / 2)
    pen.text(middle, item.tag, font=font, fill="#111111", anchor="mm")
