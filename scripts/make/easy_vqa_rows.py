"""Rows of easy-vqa, a set that no part of this project was made for: images of one coloured shape each.

    pip install easy-vqa            # 5,000 images of 64 x 64 pixels and 48,248 questions, MIT licence
    python scripts/make/easy_vqa_rows.py easy_vqa [--count 2000] [--seed 0]

OUT/train and OUT/test get images and metadata.jsonl: questions drawn with the seed from the set's own
training and test images, half as many for the test, and as privilege a caption such as `a red circle`.
The set has no captions: each is put together from all questions on its image, and images whose
questions do not tell both colour and shape (a fifth) are left out.
"""

import argparse
import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLOURS = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})
SHAPES = frozenset({"circle", "rectangle", "triangle"})
Question = tuple[str, str, int]
"""Text, answer and image."""


def caption(questions: Iterable[tuple[str, str]]) -> str | None:
    """`a COLOUR SHAPE`, as the questions on one image and their answers tell; None where they do not."""
    shown: set[str] = set()
    for question, answer in questions:
        words = question.rstrip("?").split()
        is_denied = "no" in words or "not" in words
        if answer == ("no" if is_denied else "yes"):
            shown.update(words)
        shown.add(answer)
    colour, shape = sorted(shown & COLOURS), sorted(shown & SHAPES)
    return f"a {colour[0]} {shape[0]}" if colour and shape else None


def rows(questions: Sequence[Question], split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows drawn from the questions whose images have a caption; all of them where there are fewer."""
    by_image: dict[int, list[tuple[str, str]]] = {}
    for text, answer, image in questions:
        by_image.setdefault(image, []).append((text, answer))
    captions = {image: caption(asked) for image, asked in by_image.items()}
    usable = [at for at, (_, _, image) in enumerate(questions) if captions[image]]
    random.Random(seed).shuffle(usable)
    return [
        {
            "uid": f"{split}-{at}",
            "images": [f"images/{questions[at][2]}.png"],
            "question": questions[at][0],
            "answer": questions[at][1],
            "annotations": {"captions": [captions[questions[at][2]]]},
        }
        for at in usable[:count]
    ]


def write(source: Path, out: Path, split: str, count: int, seed: int) -> None:
    """OUT/SPLIT with the rows and their images."""
    questions = json.loads((source / split / "questions.json").read_text(encoding="utf-8"))
    drawn = rows([tuple(one) for one in questions], split, count, seed)
    try:
        (out / split / "images").mkdir(parents=True)
    except FileExistsError as error:
        raise FileExistsError(f"{out / split} is there: move it, or name another folder") from error
    for image in {row["images"][0] for row in drawn}:
        shutil.copy(source / split / image, out / split / image)
    lines = "".join(json.dumps(row) + "\n" for row in drawn)
    (out / split / "metadata.jsonl").write_text(lines, encoding="utf-8")


def data_folder() -> Path:
    """Where the installed package keeps its images. Raises ValueError without the package."""
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise ValueError("the package easy_vqa is not installed: pip install easy-vqa")
    return Path(found.origin).parent / "data"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 2 without the package, or where OUT is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--count", type=int, default=2000, help="training rows; half for the test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        source = data_folder()
        for split, count in (("train", options.count), ("test", options.count // 2)):
            write(source, options.out, split, count, options.seed)
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
