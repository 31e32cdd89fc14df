"""Good rows with parts changed at random: each is a sample or a refusal that names its uid and file."""

import copy
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.samples import answer_problem

EVERYTHING = [
    ("boxes", "both"), ("points", "both"), ("masks", "both"), ("marks", "both"), ("crops", "both"),
    ("ocr", "both"), "scene_graph", "captions", "hints", "summary", "solution",
]  # fmt: skip
PLACE = {"bbox": [2, 3, 10, 8], "label": "cup", "image": 0}
GOOD = {
    "images": ["p.png"],
    "question": "<image> what is it ?",
    "answer": "B",
    "answer_type": "choice",
    "choices": {"A": "dog", "B": "cup"},
    "system": "be brief",
    "privileged_context": "look",
    "meta": {"source": "s", "split": "train"},
    "annotations": {
        "boxes": [PLACE],
        "marks": [PLACE],
        "crops": [PLACE],
        "points": [{"point": [4, 5], "label": "tip"}],
        "masks": [{"segmentation": [[1, 1, 20, 1, 20, 15]], "label": "m"}],
        "ocr": [{"text": "hi", "bbox": [1, 1, 5, 5]}],
        "scene_graph": [["cup", "on", "table"]],
        "captions": ["a thing on a table"],
        "hints": ["find it"],
        "summary": "look closely",
        "solution": ["it is there"],
    },
}
VALUES = (
    None, True, False, 0, -1, 7, 1e308, float("nan"), float("inf"), 10**30, "", " ", "a", "B", "<image>",
    "<|im_end|>", "\0", "\ud800", "../p.png", "p.png", "absent.png", "x" * 3000, "{", "[1]", [], [None],
    [[]], ["a", "a"], {}, {"a": 1}, {"bytes": "x"}, {"role": "user", "content": "who ?"}, [0, 0, 1, 1],
    ["p.png"] * 3, "number", "box", "code",
)  # fmt: skip
NAMES = (
    "messages",
    "videos",
    "teacher_images",
    "image",
    "uid",
    "origin",
    "label",
    "size",
    "counts",
    "bbox",
)


def places(value, path=()):
    """The path of every part of a row, containers first."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield from places(part, (*path, key))


def mutated(generator: random.Random) -> dict:
    """A good row in which one to three parts are replaced, removed, doubled or added."""
    row = copy.deepcopy(GOOD)
    for _ in range(generator.randint(1, 3)):
        *path, key = generator.choice([path for path in places(row) if path])
        part = row
        for step in path:
            part = part[step]
        action = generator.randrange(4)
        if action == 0:
            part[key] = copy.deepcopy(generator.choice(VALUES))
        elif action == 1:
            del part[key]
        elif action == 2 and isinstance(part, list):
            part.append(copy.deepcopy(part[key]))
        elif isinstance(part, dict):
            part[generator.choice(NAMES)] = copy.deepcopy(generator.choice(VALUES))
    return row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutated")
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(folder / "p.png")
    return folder


def check(rows: list[dict], folder, name: str) -> tuple[int, int]:
    """(good, bad) rows of a file; every one is told, every sample makes prompts and has a verdict."""
    path = folder / name
    lines = [json.dumps({**row, "uid": f"r{n}"}) for n, row in enumerate(rows)]
    path.write_text("\n".join(lines))
    samples, skipped = make_samples(read_rows(path), EVERYTHING)
    assert len(samples) + len(skipped) == len(rows)
    for bad in skipped:
        line = int(bad.uid.removeprefix("r")) + 1
        assert bad.reason.startswith(f"row {bad.uid!r} ({path} line {line}): "), bad
    for sample in samples:
        assert build_prompts(sample).plain
        problem = answer_problem(sample)
        assert problem is None or problem.startswith(f"sample {sample.uid!r}: "), problem
    return len(samples), len(skipped)


def test_a_good_row_is_good(folder):
    assert check([GOOD], folder, "good.jsonl") == (1, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_rows_are_samples_or_refusals(folder, seed):
    generator = random.Random(seed)
    check([mutated(generator) for _ in range(10)], folder, "some.jsonl")


@pytest.mark.slow
def test_a_hundred_thousand_mutated_rows_are_samples_or_refusals(folder):
    generator = random.Random(0)
    counts = [
        check([mutated(generator) for _ in range(1000)], folder, "many.jsonl") for _ in range(100)
    ]
    good, bad = (sum(column) for column in zip(*counts, strict=True))
    assert good > 10_000 and bad > 10_000
