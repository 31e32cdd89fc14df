"""(completion text, Sample) -> Score, one scorer per answer_type."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from dopd_vlm.errors import unknown
from dopd_vlm.types import Sample

from .official.autologi import score_arrangement
from .official.bfcl import score_calls
from .official.livebench import score_livebench
from .official.zebralogic import score_grid
from .scoring.answers import Score
from .scoring.boxes import score_box
from .scoring.choices import extract_choice, extract_choices
from .scoring.math import score_math
from .scoring.numbers import declared_number, score_number
from .scoring.options import options_in
from .scoring.programs import score_code, score_tests
from .scoring.texts import score_text, score_yes_no

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
Scorer = Callable[[str, Sample], Score]


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
    entry = SCORERS[answer_type]

    def count(text: str, sample: Sample) -> Score:
        if not sample.answer.strip():
            raise ValueError(f"sample {sample.uid!r} has no gold answer")
        return entry(text, sample, **options)

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


def score_words(text: str, sample: Sample) -> Score:
    """`score_text`; where gold is the letter of an option that the question lists, `score_choice`."""
    is_letter = sample.answer in options_in(sample.question)
    return score_choice(text, sample) if is_letter else score_text(text, sample)


def score_choice(text: str, sample: Sample, *, multiple: bool | None = None) -> Score:
    """Letter equal to the gold letter, or letter set equal to the gold set.

    Options are the sample's, else those that its question lists, else the letters A to J; a gold
    number is one of options that the image numbers. Options of the same text count alike.

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
    same = {key for key, option in choices.items() if option and option == choices[min(gold)]}
    is_right = {letter} == gold or (len(gold) == 1 and letter in same)
    return Score(correct=float(is_right), extracted=letter, rule=rule)


SCORERS: dict[str, Callable[..., Score]] = {
    "text": score_words,
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
