"""The embedded scenes: things on photographs, closer to life than shapes on a grid.

A row is a function of (split, seed, index); its image is composed when the row is asked for.
Splits: `train`; `test` has other sprites and other photographs; `shifted` has these too, and
more and smaller things.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from ..annotations.masks import bounds, encode_runs
from .scene_images import SIZE, Item, render
from .scene_questions import DIRECTIONS, Puzzle, make_puzzle
from .sprites import photos

Row = dict[str, Any]
SPLITS = ("train", "test", "shifted")
LICENCE = "MIT sprites on CC0 or public-domain photographs, see ATTRIBUTION.md"
MOST_TRIPLES = 6


class SceneRows(Sequence[Row]):
    """Rows of a split, each composed when asked for; so are slices."""

    def __init__(self, split: str, indices: range, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"scenes has no split {split!r}; it has: {', '.join(SPLITS)}")
        self._split, self._indices, self._seed = split, indices, seed

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "SceneRows": ...
    def __getitem__(self, index: int | slice) -> "Row | SceneRows":
        if isinstance(index, slice):
            return SceneRows(self._split, self._indices[index], self._seed)
        return make_row(self._split, self._seed, self._indices[index])


def rows(split: str, num: int, seed: int = 0) -> SceneRows:
    """`num` rows of a split; the first N never depend on how many follow.

    Raises:
        ValueError: unknown split.
    """
    return SceneRows(split, range(num), seed)


def puzzle_of(split: str, seed: int, index: int) -> Puzzle:
    """The things and the question of a row, without its image."""
    return make_puzzle(np.random.default_rng(_stream(split, seed, index)), split, index)


def make_row(split: str, seed: int, index: int) -> Row:
    """One row, its image as a PIL image in memory."""
    puzzle = puzzle_of(split, seed, index)
    generator = np.random.default_rng([*_stream(split, seed, index), 1])
    background = str(generator.choice(photos(split)))
    image, masks = render(generator, background, puzzle.items)
    return {
        "uid": f"scenes-{split}-{seed}-{index:06d}",
        "images": [image],
        "question": puzzle.question,
        "answer": puzzle.answer,
        "answer_type": "choice" if puzzle.choices else "number",
        "choices": puzzle.choices,
        "annotations": annotations(puzzle, masks, background),
        "meta": {
            "source": "embedded:scenes",
            "licence": LICENCE,
            "split": split,
            "seed": seed,
            "kind": puzzle.kind,
            "background": background,
        },
    }


def annotations(puzzle: Puzzle, masks: np.ndarray, background: str) -> dict[str, Any]:
    """Every type that can be told exactly; places are those of the things the question is about.

    Args:
        masks: bool [items, height, width], the pixels of each thing that can be seen.
    """
    asked = [(puzzle.items[index], masks[index]) for index in puzzle.asked]
    boxes = [{"bbox": _xywh(mask), "label": item.label} for item, mask in asked]
    by_type: dict[str, Any] = {
        "boxes": boxes,
        "points": [_point(item, mask) for item, mask in asked],
        "masks": [{"segmentation": encode_runs(mask), "label": item.label} for item, mask in asked],
        "crops": boxes,
        "marks": boxes,
        "captions": [_caption(puzzle.items, background)],
        "scene_graph": _triples(puzzle),
        "hints": list(puzzle.hints),
        "summary": puzzle.summary,
        "solution": _solution(puzzle, asked),
    }
    if puzzle.kind == "text":
        around = [{"bbox": _around(item), "label": f"{item.label} with label"} for item, _ in asked]
        by_type |= {"crops": around, "ocr": [_word(item) for item in puzzle.items]}
    return by_type


def _stream(split: str, seed: int, index: int) -> list[int]:
    return [200 + SPLITS.index(split), seed, index]


def _xywh(mask: np.ndarray) -> list[int]:
    left, top, right, bottom = (int(value) for value in bounds(mask))
    return [left, top, right - left, bottom - top]


def _point(item: Item, mask: np.ndarray) -> dict[str, Any]:
    """The pixel of the thing that is nearest to the middle of its pixels."""
    ys, xs = np.nonzero(mask)
    nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
    return {"point": [int(xs[nearest]), int(ys[nearest])], "label": item.label}


def _word(item: Item) -> dict[str, Any]:
    left, top, right, bottom = item.tag_box
    return {"text": item.tag, "bbox": [left, top, right - left, bottom - top]}


def _around(item: Item) -> list[int]:
    left, top, right, bottom = item.footprint
    return [left, top, right - left, bottom - top]


def _caption(items: Sequence[Item], background: str) -> str:
    """Kinds of things without number or place."""
    kinds = ", ".join(sorted({item.label for item in items}))
    return f"On a photograph ({background.replace('_', ' ')}) lie things of these kinds: {kinds}."


def _triples(puzzle: Puzzle) -> list[list[str]]:
    """Each thing and the one nearest to it; never two that the question is about."""
    triples = []
    for index, item in enumerate(puzzle.items):
        others = [
            other
            for place, other in enumerate(puzzle.items)
            if other.label != item.label and not {index, place} <= set(puzzle.asked)
        ]
        nearest = min(others, key=lambda other: np.hypot(*_offset(other, item)))
        triples.append([item.label, _direction(_offset(nearest, item)), nearest.label])
    return triples[:MOST_TRIPLES]


def _offset(start: Item, end: Item) -> tuple[float, float]:
    return end.centre[0] - start.centre[0], end.centre[1] - start.centre[1]


def _direction(offset: tuple[float, float]) -> str:
    axis = int(abs(offset[1]) > abs(offset[0]))
    sign = 1 if offset[axis] > 0 else -1
    words = next(name for name, way in DIRECTIONS.items() if way == (axis, sign))
    return {"to the left": "left of", "to the right": "right of"}.get(words, words)


def _solution(puzzle: Puzzle, asked: Sequence[tuple[Item, np.ndarray]]) -> list[str]:
    """The hints carried out: where things are in percent of the image, then the answer."""
    steps = []
    for item, mask in asked:
        left, top, right, bottom = bounds(mask)
        across = round(50 * (left + right) / SIZE[0])
        down = round(50 * (top + bottom) / SIZE[1])
        steps.append(f"{item.label}: {across}% from the left, {down}% from the top")
    return [*steps, f"{puzzle.working}, so the answer is {puzzle.answer}"]
