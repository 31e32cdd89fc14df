"""The embedded text set: lists of changes to a number, with step hints.

A row is a function of (split, seed, index). What makes it hard is to know which verbs add and
which take away; the hints say so, one step each, without any number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ADDING = ("finds", "buys", "wins", "gets", "earns")
TAKING = ("loses", "sells", "drops", "eats", "gives")
VERBS: dict[str, str] = {**dict.fromkeys(ADDING, "add"), **dict.fromkeys(TAKING, "take")}
"""Verb -> operation."""
NAMES = ("Ann", "Ben", "Eva", "Tom")
THINGS = ("apples", "coins", "nuts", "cards")
SPLITS = ("train", "test", "shifted")
LIMIT = 20
"""Numbers stay within 0 .. LIMIT."""
LARGEST_CHANGE = 5


def rows(split: str, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """`num` rows of a split: `train` and `test` have 2 or 3 changes, `shifted` 4 or 5.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"lists has no split {split!r}; it has: {', '.join(SPLITS)}")
    lengths = (4, 5) if split == "shifted" else (2, 3)
    lines = []
    for index in range(num):
        generator = np.random.default_rng([100 + SPLITS.index(split), seed, index])
        uid = f"lists-{split}-{seed}-{index:06d}"
        lines.append(make_row(generator, uid, split, lengths=lengths, seed=seed))
    return lines


def make_row(
    generator: np.random.Generator,
    uid: str,
    split: str,
    *,
    lengths: Sequence[int],
    verbs: Mapping[str, str] = VERBS,
    seed: int = 0,
) -> dict[str, Any]:
    """One random row with as many changes as one of `lengths`, its verbs among `verbs`."""
    start = int(generator.integers(5, 16))
    name, thing = str(generator.choice(NAMES)), str(generator.choice(THINGS))
    value, sentences, steps, hints = start, [f"{name} has {start} {thing}."], [], []
    for index in range(int(generator.choice(lengths))):
        verb, change, value = _change(generator, verbs, value)
        sentences.append(f"{name} {verb} {change}.")
        steps.append(f"{verbs[verb]} {change} {value}")
        hints.append(f"step {index + 1}: {verbs[verb]}")
    meta = {"source": "embedded:lists", "licence": "Apache-2.0", "split": split, "seed": seed}
    return {
        "uid": uid,
        "images": [],
        "question": " ".join([*sentences, f"how many {thing}?"]),
        "answer": str(value),
        "answer_type": "number",
        "choices": None,
        "system": None,
        "annotations": {"hints": hints},
        "privileged_context": None,
        "teacher_images": None,
        "meta": {**meta, "solution": " ".join([*steps, f"answer {value}"])},
    }


def _change(
    generator: np.random.Generator, verbs: Mapping[str, str], value: int
) -> tuple[str, int, int]:
    """A verb, how much it changes, and the number after it, which stays within 0 .. LIMIT."""
    while True:
        verb = str(generator.choice(list(verbs)))
        change = int(generator.integers(1, LARGEST_CHANGE + 1))
        after = value + change if verbs[verb] == "add" else value - change
        if 0 <= after <= LIMIT:
            return verb, change, after
