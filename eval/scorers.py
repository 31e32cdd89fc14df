"""(completion text, Sample) -> Score, one scorer per answer_type."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dopd_vlm.errors import unknown
from dopd_vlm.types import Sample

from .official.autologi import score_arrangement
from .official.bfcl import score_calls
from .official.livebench import score_livebench
from .official.zebralogic import score_grid
from .scoring.answers import (
    NUMBER,
    Score,
    declared_answer,
    declared_number,
    final_answer,
    last_number,
    normal,
    unread,
    value_of,
)
from .scoring.choices import extract_choice, extract_choices
from .scoring.math import score_math
from .scoring.options import options_in
from .scoring.programs import score_code, score_tests

__all__ = [
    "SCORERS",
    "Score",
    "declared_number",
    "extract_choice",
    "extract_choices",
    "row_scorer",
    "score",
    "scorer",
]

LETTERS = "ABCDEFGHIJ"
THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
Scorer = Callable[[str, Sample], Score]


def _is_close(found: float, gold: float, tolerance: float, absolute: float = 1e-12) -> bool:
    # In decimals 1.001 - 1 is the tolerance, in floats a hair above it.
    most = max(tolerance * abs(gold), absolute) * (1 + 1e-9)
    return math.isclose(found, gold, rel_tol=0.0, abs_tol=most)


def _mean_relative(found: float, gold: float, tolerance: float) -> float:
    if gold == 0:
        return float(found == 0)
    error = abs(found - gold) / abs(gold)
    # 1 - 0.95 is above 0.05 in floats; an error of exactly the threshold counts upstream.
    return sum(error <= 1 - t + tolerance for t in THRESHOLDS) / len(THRESHOLDS)


MEASURES = ("close", "rounded", "relative")


def scorer(answer_type: str, **options: Any) -> Scorer:
    """The scorer of an answer type with its options bound.

    Options: `number` takes `tolerance` (relative, default 1e-6), `absolute`, `measure` and
    `decimals`, `choice` takes `multiple` (sets of letters; None follows the gold answer), `box` takes `threshold` (IoU,
    default 0.5), `math` takes `worker`, those that run programs take `timeout` in seconds.

    A sample without a gold answer raises ValueError, so that it is counted as an error.

    Raises:
        ValueError: unknown answer type, naming the near ones.
    """
    if answer_type not in SCORERS:
        raise unknown("answer_type", answer_type, SCORERS)
    chosen = SCORERS[answer_type]

    def count(text: str, sample: Sample) -> Score:
        if not sample.answer.strip():
            raise ValueError(f"sample {sample.uid!r} has no gold answer")
        return chosen(text, sample, **options)

    return count


def row_scorer(answer_type: str, options: Mapping[str, Any]) -> Scorer:
    """A task's scorer; where its answer_type is `row`, that of each row's own, options for numbers."""
    if answer_type != "row":
        return scorer(answer_type, **options)
    known = {"number": dict(options)}
    return lambda text, sample: score(text, sample, **known.get(sample.answer_type, {}))


def score(text: str, sample: Sample, **options: Any) -> Score:
    """The Score of a completion by the sample's own answer_type."""
    return scorer(sample.answer_type, **options)(text, sample)


def score_text(text: str, sample: Sample) -> Score:
    """Normalised exact match of the last declared answer, else of the whole text.

    Where gold is the letter of an option that the question lists, `extract_choice` reads the text;
    a gold JSON list of texts names alternatives, numbers among them rounded to two decimals.
    """
    if sample.answer in options_in(sample.question):
        return score_choice(text, sample)
    found, rule = declared_answer(text)
    if found is None or not normal(found):
        return unread(rule if found is None else "unparsed")
    if sample.answer.startswith('["'):
        is_right = any(_is_alternative(found, gold) for gold in json.loads(sample.answer))
    else:
        is_right = normal(found) == normal(sample.answer)
    return Score(correct=float(is_right), extracted=found, rule=rule)


def _is_alternative(found: str, gold: str) -> bool:
    if normal(found) == normal(gold):
        return True
    values = [NUMBER.fullmatch(one.strip().rstrip(".")) for one in (found, gold)]
    return all(values) and len({round(value_of(match[0]), 2) for match in values if match}) == 1


def score_yes_no(text: str, sample: Sample) -> Score:
    """The last declared answer, else the text, holds gold, which is yes or no, and not the other.

    Raises:
        ValueError: gold is neither.
    """
    if normal(sample.answer) not in ("yes", "no"):
        raise ValueError(f"sample {sample.uid!r}: gold {sample.answer!r} is neither yes nor no")
    found, rule = declared_answer(text)
    words = set(re.findall(r"\b(?:yes|no)\b", (found or "").lower()))
    if len(words) != 1:
        return unread("ambiguous" if words else rule if found is None else "unparsed")
    word = words.pop()
    return Score(correct=float(word == normal(sample.answer)), extracted=word, rule=rule)


def score_choice(text: str, sample: Sample, *, multiple: bool | None = None) -> Score:
    """Letter equal to the gold letter, or letter set equal to the gold set.

    Options are the sample's, else those that its question lists, else the letters A to J; a gold
    number is one of options that the picture numbers.

    Raises:
        ValueError: a gold answer that is no letter of the choices.
    """
    if not sample.choices and sample.answer.isdecimal():
        return score_number(text, sample)
    choices = sample.choices or options_in(sample.question) or dict.fromkeys(LETTERS, "")
    gold = frozenset(re.findall(r"[A-Z]", sample.answer))
    if not gold or not gold <= choices.keys() or re.sub(r"[\s,;()A-Z]", "", sample.answer):
        raise ValueError(
            f"sample {sample.uid!r}: gold {sample.answer!r} is not among {list(choices)}"
        )
    if multiple if multiple is not None else len(gold) > 1:
        letters, rule = extract_choices(text, choices)
        extracted = None if letters is None else ",".join(sorted(letters))
        return Score(correct=float(letters == gold), extracted=extracted, rule=rule)
    letter, rule = extract_choice(text, choices)
    return Score(
        correct=float(letter is not None and {letter} == gold), extracted=letter, rule=rule
    )


def score_number(
    text: str,
    sample: Sample,
    *,
    tolerance: float = 1e-6,
    absolute: float = 1e-12,
    measure: str = "close",
    decimals: int | None = None,
) -> Score:
    """How well the last declared number, else the last number at all, agrees with gold.

    `measure`: `close` is |found - gold| <= max(tolerance |gold|, absolute); `rounded` is `close` after
    rounding found to gold's decimals, or both to `decimals`; `relative` is the mean over t = 0.5,
    0.55, ..., 0.95 of |found - gold| / |gold| <= 1 - t (VSI-Bench's mean relative accuracy). Where
    exactly one side carries a percent sign both of its readings count (35% is 35 and 0.35).

    Raises:
        ValueError: the gold answer holds no number, or an unknown measure.
    """
    gold = last_number(sample.answer)
    if gold is None:
        raise ValueError(f"sample {sample.uid!r}: gold {sample.answer!r} holds no number")
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    found, rule = declared_number(text)
    if found is None:
        return unread(rule)
    pairs = [(found, gold)]
    if found.endswith("%") != gold.endswith("%"):
        pairs.append((found.removesuffix("%"), gold.removesuffix("%")))
    values = [(value_of(a), value_of(b)) for a, b in pairs]
    if measure == "rounded":
        places = len(gold.partition(".")[2].rstrip("% ")) if decimals is None else decimals
        values = [
            (round(a, places), b if decimals is None else round(b, places)) for a, b in values
        ]
    agree = _mean_relative if measure == "relative" else partial(_is_close, absolute=absolute)
    correct = max(float(agree(a, b, tolerance)) for a, b in values)
    return Score(correct=correct, extracted=found, rule=rule)


def score_box(text: str, sample: Sample, *, threshold: float = 0.5) -> Score:
    """Whether the last four numbers in brackets are a box with IoU >= threshold to the gold one.

    Boxes are XYXY, gold and answer in the same frame: the one the model was asked to answer in.

    Raises:
        ValueError: the gold answer is no box.
    """
    gold = _last_box(sample.answer)
    if gold is None:
        raise ValueError(
            f"sample {sample.uid!r}: gold {sample.answer!r} is no box [x1, y1, x2, y2]"
        )
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    found = _last_box(answer)
    if found is None:
        return unread()
    overlap = iou(found, gold)
    return Score(
        correct=float(overlap >= threshold), extracted=str(list(found)), rule=f"iou {overlap:.3f}"
    )


SCORERS: dict[str, Callable[..., Score]] = {
    "text": score_text,
    "choice": score_choice,
    "number": score_number,
    "math": score_math,
    "box": score_box,
    "code": score_code,
    "yes_no": score_yes_no,
    "tests": score_tests,
    "arrangement": score_arrangement,
    "calls": score_calls,
    "grid": score_grid,
    "livebench": score_livebench,
}
"""Answer type -> scorer. Types below `code` belong to tasks; rows themselves call such answers text."""


def _last_box(text: str) -> tuple[float, float, float, float] | None:
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    found = re.findall(rf"[\[(<]{number},{number},{number},{number}[\])>]", text)
    if not found:
        return None
    x1, y1, x2, y2 = map(float, found[-1])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two XYXY boxes."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)
