"""The embedded image set: coloured shapes on a grid, with exact boxes, captions and hints.

A row is a function of (split, seed, index), so any number of training rows costs no disk and the
first N never depend on how many follow. Images have one cell of 16 x 16 pixels per object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

CELL = 16
"""Pixels per side of a grid cell: one merged patch of the embedded models (patch 8, merge 2)."""
COLOURS = {
    "red": (210, 50, 50),
    "green": (50, 165, 70),
    "blue": (60, 80, 210),
    "yellow": (220, 200, 50),
}
SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT = (("red", "cross"), ("green", "square"), ("blue", "triangle"), ("yellow", "circle"))
"""Colour and shape pairs that only the split `shifted` has."""
SPLITS = ("train", "test", "shifted")
TARGET_DIM = 0.9
"""Dimness of the rows that students are distilled and tested on; 0 is a clean image."""
DARKENING = (0.25, 0.5)
"""Range of the share of light that is missing at dimness 1."""
NOISE_STD = 43.0
"""Standard deviation of the pixel noise in grey levels at dimness 1."""
LEVELS = 16
"""Grey steps between stored values: keeps noisy PNG files small."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: its looks, and its place in pixels of the image."""

    colour: str
    shape: str
    left: int
    top: int
    side: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects in reading order, one per cell of two rows, and the asked word with its count."""

    columns: int
    things: tuple[Thing, ...]
    asked: str

    @property
    def count(self) -> int:
        """How many objects have the asked colour or shape."""
        return sum(self.asked in (thing.colour, thing.shape) for thing in self.things)


def rows(split: str, num: int, seed: int = 0, *, dim: float = TARGET_DIM) -> list[dict[str, Any]]:
    """`num` rows of a split, images as PIL images in memory.

    Args:
        split: `train` and `test` have 2 x 2 cells and no pair of `HELD_OUT`; `shifted` has 3 x 2
            cells and at least one such pair. No two splits share a random stream.
        num: number of rows.
        seed: another seed gives other rows.
        dim: how dark and noisy the images are, see `render`.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"shapes has no split {split!r}; it has: {', '.join(SPLITS)}")
    return [_row(split, seed, index, dim) for index in range(num)]


def make_row(scene: Scene, image: Image.Image, uid: str, split: str, seed: int) -> dict[str, Any]:
    """The row of a scene: its question, exact boxes, captions and hints."""
    boxes = [
        {"bbox": list(box_of(thing)), "label": f"{thing.colour} {thing.shape}", "image": 0}
        for thing in scene.things
    ]
    meta = {"source": "embedded:shapes", "licence": "Apache-2.0", "split": split, "seed": seed}
    return {
        "uid": uid,
        "images": [image],
        "question": f"how many {scene.asked} objects?",
        "answer": str(scene.count),
        "answer_type": "number",
        "choices": None,
        "system": None,
        "annotations": {"boxes": boxes, "captions": captions(scene), "hints": hints(scene)},
        "privileged_context": None,
        "teacher_images": None,
        "meta": {**meta, "solution": solution(scene)},
    }


def solution(scene: Scene) -> str:
    """The worked answer: every object with the running count of the asked word."""
    count, words = 0, []
    for thing in scene.things:
        count += scene.asked in (thing.colour, thing.shape)
        words.append(f"{thing.colour} {thing.shape} {count}")
    return " ".join([*words, f"answer {count}"])


def captions(scene: Scene) -> list[str]:
    """One line per object: colour, shape, row and column."""
    columns = ("left", "right") if scene.columns == 2 else ("left", "middle", "right")
    return [
        f"{thing.colour} {thing.shape} {('top', 'bottom')[index // scene.columns]} "
        f"{columns[index % scene.columns]}"
        for index, thing in enumerate(scene.things)
    ]


def hints(scene: Scene) -> list[str]:
    """Steps without any number: what each row holds, and what to count."""
    steps = []
    for index, name in enumerate(("top", "bottom")):
        line = scene.things[index * scene.columns : (index + 1) * scene.columns]
        listed = " and ".join(f"{thing.colour} {thing.shape}" for thing in line)
        steps.append(f"step {index + 1}: the {name} row holds {listed}")
    return [*steps, f"step 3: count the {scene.asked} objects"]


def box_of(thing: Thing) -> tuple[int, int, int, int]:
    """x, y, width, height in pixels: the bounds of the pixels that `render` paints."""
    ys, xs = np.nonzero(_mask(thing.shape, thing.side))
    left, top = int(xs.min()), int(ys.min())
    return (
        thing.left + left,
        thing.top + top,
        int(xs.max()) - left + 1,
        int(ys.max()) - top + 1,
    )


def make_scene(
    generator: np.random.Generator,
    *,
    columns: int = 2,
    pairs: Sequence[tuple[str, str]] | None = None,
    need: Sequence[tuple[str, str]] = (),
) -> Scene:
    """A random scene whose count is uniform over 0 .. number of objects.

    Args:
        columns: cells per row; there are two rows.
        pairs: allowed (colour, shape) pairs; None allows all.
        need: at least one object is one of these, where given.
    """
    allowed = list(pairs) if pairs is not None else all_pairs()
    num = 2 * columns
    while True:
        asked = str(generator.choice([*COLOURS, *SHAPES]))
        is_match = np.arange(num) < generator.integers(num + 1)
        generator.shuffle(is_match)
        matching = [pair for pair in allowed if asked in pair]
        others = [pair for pair in allowed if asked not in pair]
        objects = [_draw(generator, matching if hit else others) for hit in is_match]
        if not need or any(pair in need for pair in objects):
            break
    things = tuple(_place(generator, pair, columns, i) for i, pair in enumerate(objects))
    return Scene(columns=columns, things=things, asked=asked)


def all_pairs() -> list[tuple[str, str]]:
    """Every (colour, shape)."""
    return [(colour, shape) for colour in COLOURS for shape in SHAPES]


def seen_pairs() -> list[tuple[str, str]]:
    """The pairs of `train` and `test`."""
    return [pair for pair in all_pairs() if pair not in HELD_OUT]


def render(scene: Scene, generator: np.random.Generator, dim: float) -> Image.Image:
    """The image of a scene, RGB, `CELL` pixels per cell, as a poor camera takes it in dim light.

    pixel = clean x (1 - dim u) + dim NOISE_STD n, with u ~ U(DARKENING) per image, n ~ N(0, 1).
    At dim 0 an object's pixels have exactly its colour and no other pixel has.
    """
    pixels = np.full((2 * CELL, scene.columns * CELL, 3), 235.0)
    for thing in scene.things:
        mask = _mask(thing.shape, thing.side)
        window = pixels[thing.top : thing.top + thing.side, thing.left : thing.left + thing.side]
        window[mask] = COLOURS[thing.colour]
    if dim > 0:
        pixels *= 1 - dim * generator.uniform(*DARKENING)
        pixels += dim * NOISE_STD * generator.standard_normal(pixels.shape)
        pixels = np.round(pixels / LEVELS) * LEVELS
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _row(split: str, seed: int, index: int, dim: float) -> dict[str, Any]:
    generator = np.random.default_rng([SPLITS.index(split), seed, index])
    if split == "shifted":
        scene = make_scene(generator, columns=3, need=HELD_OUT)
    else:
        scene = make_scene(generator, pairs=seen_pairs())
    image = render(scene, generator, dim)
    return make_row(scene, image, f"shapes-{split}-{seed}-{index:06d}", split, seed)


def _draw(generator: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    return pairs[int(generator.integers(len(pairs)))]


def _place(
    generator: np.random.Generator, pair: tuple[str, str], columns: int, index: int
) -> Thing:
    side = int(generator.integers(11, 15))
    shift = generator.integers(0, CELL - side + 1, size=2)
    return Thing(
        colour=pair[0],
        shape=pair[1],
        left=index % columns * CELL + int(shift[0]),
        top=index // columns * CELL + int(shift[1]),
        side=side,
    )


def _mask(shape: str, side: int) -> np.ndarray:
    """bool [side, side]: the pixels of a shape."""
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side - 0.5
    if shape == "circle":
        return x**2 + y**2 <= 0.25
    if shape == "triangle":
        return np.abs(x) <= (y + 0.5) / 2
    if shape == "cross":
        return np.minimum(np.abs(x), np.abs(y)) <= 0.17
    return np.maximum(np.abs(x), np.abs(y)) <= 0.5
