"""The five kinds of questions about embedded scenes, so that nothing but the image tells.

Right letters, counts, quarters and directions take turns by `slot`; the rest is drawn. So the
the words of a question do not give its answer away: every kind has a chance of one in four.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .scene_images import CROWDS, SIZE, Item, place_items, random_items
from .sprites import Sprite, sprites

MARGIN = 10
"""Pixels by which the right answer must be right."""
SLANT = 1.8
"""How much longer the asked direction must be than the one across it."""
EXTREMES = {
    "farthest to the left": (0, 1),
    "farthest to the right": (0, -1),
    "highest up": (1, 1),
    "lowest down": (1, -1),
}
"""Words -> (axis, sign): the smallest sign x centre[axis] is the answer."""
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
DIRECTIONS = {
    "to the left": (0, -1),
    "to the right": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
TAG_LETTERS, TAG_DIGITS = "ACEFHKLMNPRTUVXY", "234679"


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """A scene's things, a question about them, and how to answer it."""

    kind: str
    items: tuple[Item, ...]
    asked: tuple[int, ...]
    """Which items the question is about."""
    question: str
    answer: str
    choices: Mapping[str, str] | None = None
    """Options by letter; None for a number."""
    hints: tuple[str, ...]
    """Steps that do not say what comes out."""
    summary: str
    working: str
    """What the last step finds; the answer follows."""


def make_puzzle(generator: np.random.Generator, split: str, index: int) -> Puzzle:
    """The puzzle of a row: kinds take turns with `index`, and answers within a kind."""
    kinds = tuple(MAKERS)
    kind = kinds[index % len(kinds)]
    return MAKERS[kind](generator, split, index // len(kinds))


def _which(generator: np.random.Generator, split: str, slot: int) -> Puzzle:
    way = str(generator.choice(list(EXTREMES)))
    axis, sign = EXTREMES[way]
    items = random_items(generator, _kinds(generator, split), CROWDS[split])
    asked = [int(index) for index in generator.permutation(len(items))[:4]]

    def order(items_in: Sequence[Item]) -> list[int]:
        return sorted(asked, key=lambda index: sign * items_in[index].centre[axis])

    def fits(items_in: Sequence[Item]) -> bool:
        first, second = (items_in[index].centre[axis] for index in order(items_in)[:2])
        return abs(first - second) >= MARGIN

    scene = place_items(generator, items, fits)
    labels = [scene[index].label for index in order(scene)]
    choices, answer = _lettered(generator, labels[0], labels[1:], slot)
    return Puzzle(
        kind="which", items=scene, asked=tuple(asked), choices=choices, answer=answer,
        question=f"Which of these is {way} in the picture?",
        hints=(
            "Find each option in the picture.",
            f"Compare where their middles lie, {'left and right' if axis == 0 else 'up and down'}.",
        ),
        summary="Find all options and compare the places of their middles.",
        working=f"the {labels[0]} is {way}",
    )  # fmt: skip


def _count(generator: np.random.Generator, split: str, slot: int) -> Puzzle:
    count = 1 + slot % 4
    kinds = _kinds(generator, split)
    target, rival = kinds[0], kinds[1]
    others = kinds[1 : max(3, len(kinds) - count + 1)]
    # A second kind in several copies: not whatever repeats is what is asked for.
    copies = [rival] * int(generator.integers(3))
    items = random_items(generator, [target] * count + copies + others, CROWDS[split])
    generator.shuffle(items)  # type: ignore[arg-type]
    scene = place_items(generator, items, lambda _: True)
    asked = tuple(i for i, item in enumerate(scene) if item.look.sprite == target)
    return Puzzle(
        kind="count", items=scene, asked=asked, answer=str(count),
        question=f"How many {target.plural} are in the picture?",
        hints=(
            f"Go through the picture from left to right and look for {target.plural}.",
            "Look also at things that are partly covered, and leave out all other things.",
            "Count what you found.",
        ),
        summary=f"Find all {target.plural} and count them.",
        working=f"number of {target.plural}: {count}",
    )  # fmt: skip


def _where(generator: np.random.Generator, split: str, slot: int) -> Puzzle:
    items = random_items(generator, _kinds(generator, split), CROWDS[split])
    target = int(generator.integers(len(items)))
    quarter = slot % 4

    def fits(items_in: Sequence[Item]) -> bool:
        offsets = [c - s / 2 for c, s in zip(items_in[target].centre, SIZE, strict=True)]
        is_far = min(abs(offset) for offset in offsets) >= MARGIN
        return is_far and quarter == 2 * (offsets[1] > 0) + (offsets[0] > 0)

    scene = place_items(generator, items, fits)
    right = QUARTERS[quarter]
    others = [name for name in QUARTERS if name != right]
    choices, answer = _lettered(generator, right, others, slot + slot // 4)
    label = scene[target].label
    return Puzzle(
        kind="where", items=scene, asked=(target,), choices=choices, answer=answer,
        question=f"In which quarter of the picture is the {label}?",
        hints=(
            f"Find the {label}.",
            "Compare its middle with the middle of the picture, across and along.",
        ),
        summary=f"Find the {label} and compare it with the middle of the picture.",
        working=f"the {label} is in the {right}",
    )  # fmt: skip


def _relation(generator: np.random.Generator, split: str, slot: int) -> Puzzle:
    items = random_items(generator, _kinds(generator, split), CROWDS[split])
    one, other = (int(index) for index in generator.permutation(len(items))[:2])
    right = list(DIRECTIONS)[slot % 4]
    axis, sign = DIRECTIONS[right]

    def fits(items_in: Sequence[Item]) -> bool:
        offset = [b - a for a, b in zip(items_in[other].centre, items_in[one].centre, strict=True)]
        return sign * offset[axis] >= max(3 * MARGIN, SLANT * abs(offset[1 - axis]))

    scene = place_items(generator, items, fits)
    others = [name for name in DIRECTIONS if name != right]
    choices, answer = _lettered(generator, right, others, slot + slot // 4)
    a, b = scene[one].label, scene[other].label
    return Puzzle(
        kind="relation", items=scene, asked=(one, other), choices=choices, answer=answer,
        question=f"Where is the {a}, seen from the {b}?",
        hints=(
            f"Find the {a} and the {b}.",
            "Compare how far apart they are across the picture and along it.",
            f"Of the longer distance, tell on which side the {a} is.",
        ),
        summary=f"Find the {a} and the {b} and compare their places.",
        working=f"the {a} is {right}, seen from the {b}",
    )  # fmt: skip


def _text(generator: np.random.Generator, split: str, slot: int) -> Puzzle:
    items = random_items(generator, _kinds(generator, split), CROWDS[split])
    tags = generator.permutation([a + b for a in TAG_LETTERS for b in TAG_DIGITS])
    tagged = [replace(item, tag=str(tag)) for item, tag in zip(items, tags, strict=False)]
    target, *others = (int(index) for index in generator.permutation(len(items))[:4])
    scene = place_items(generator, tagged, lambda _: True)
    choices, answer = _lettered(
        generator, scene[target].tag, [scene[index].tag for index in others], slot
    )
    label = scene[target].label
    return Puzzle(
        kind="text", items=scene, asked=(target,), choices=choices, answer=answer,
        question=f"What is written on the label below the {label}?",
        hints=(f"Find the {label}.", "Look closely at the small label at its lower edge."),
        summary=f"Find the {label} and read its label, no other one.",
        working=f"the label below the {label} reads {scene[target].tag}",
    )  # fmt: skip


MAKERS: dict[str, Callable[[np.random.Generator, str, int], Puzzle]] = {
    "which": _which,
    "count": _count,
    "where": _where,
    "relation": _relation,
    "text": _text,
}


def _kinds(generator: np.random.Generator, split: str) -> list[Sprite]:
    """Different kinds, as many as the split's images hold."""
    num = int(generator.integers(CROWDS[split].num[0], CROWDS[split].num[1] + 1))
    pool = sprites(split)
    return [pool[int(index)] for index in generator.permutation(len(pool))[:num]]


def _lettered(
    generator: np.random.Generator, right: str, others: Sequence[str], slot: int
) -> tuple[dict[str, str], str]:
    """(options by letter, the right letter): it takes turns with `slot`, the others are drawn."""
    options = [others[int(index)] for index in generator.permutation(len(others))]
    options.insert(slot % 4, right)
    return dict(zip("ABCD", options, strict=True)), "ABCD"[slot % 4]
