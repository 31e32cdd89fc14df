"""(completion text, Sample) -> Score, one scorer per answer_type."""

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dopd_vlm.types import Sample

from .choices import extract_choice, extract_choices, final_answer
from .math_client import MathWorker, shared_worker
from .sandbox import execute

__all__ = ["SCORERS", "Score", "extract_choice", "extract_choices", "score", "scorer"]

NUMBER = re.compile(
    r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?\s*%?"
)
DECLARATION = re.compile(
    r"\banswer\b(?:\s+is\b)?\s*[:=]?\s*((?!answer\b)\S(?:(?!\banswer\b)[^\n])*)|(?:\\boxed\{((?:[^{}]|\{[^{}]*\})*)\})|####\s*(\S[^\n]*)",
    re.IGNORECASE,
)
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one completion is worth and why."""

    correct: float
    """In [0, 1]."""
    extracted: str | None
    """The answer that was read from the completion; None when none was found."""
    rule: str
    """Which rule read it, or why none did."""

    @property
    def is_unparsed(self) -> bool:
        """No answer was found; counted as wrong and separately."""
        return self.extracted is None


Scorer = Callable[[str, Sample], Score]


def scorer(answer_type: str, **options: Any) -> Scorer:
    """The scorer of an answer type with its options bound.

    Options: `number` takes `tolerance` (relative, default 1e-6), `choice` takes `multiple` (sets
    of letters; None follows the gold answer), `box` takes `threshold` (IoU, default 0.5) and
    `math` takes `worker`.

    Raises:
        ValueError: unknown answer type, naming the near ones.
    """
    if answer_type not in SCORERS:
        near = difflib.get_close_matches(answer_type, SCORERS, n=3) or list(SCORERS)
        raise ValueError(
            f"unknown answer_type {answer_type!r}; near: {', '.join(near)}; "
            f"known: {', '.join(SCORERS)}"
        )
    chosen = SCORERS[answer_type]
    return lambda text, sample: chosen(text, sample, **options)


def score(text: str, sample: Sample, **options: Any) -> Score:
    """The Score of a completion by the sample's own answer_type."""
    return scorer(sample.answer_type, **options)(text, sample)


def score_text(text: str, sample: Sample) -> Score:
    """Normalised exact match of the last declared answer, else of the whole text."""
    found, rule = declared_answer(text)
    if found is None or not _normal(found):
        return Score(correct=0.0, extracted=None, rule=rule if found is None else "unparsed")
    return Score(
        correct=float(_normal(found) == _normal(sample.answer)), extracted=found, rule=rule
    )


def score_choice(text: str, sample: Sample, *, multiple: bool | None = None) -> Score:
    """Letter equal to the gold letter, or letter set equal to the gold set.

    Raises:
        ValueError: a gold answer that is no letter of the choices.
    """
    choices = sample.choices or dict.fromkeys(LETTERS, "")
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


def score_number(text: str, sample: Sample, *, tolerance: float = 1e-6) -> Score:
    """|found - gold| <= tolerance |gold| for the last declared number, else the last number at all.

    Where exactly one side carries a percent sign both of its readings count (35% is 35 and 0.35).

    Raises:
        ValueError: the gold answer holds no number.
    """
    gold = _last_number(sample.answer)
    if gold is None:
        raise ValueError(f"sample {sample.uid!r}: gold {sample.answer!r} holds no number")
    found, rule = declared_number(text)
    if found is None:
        return Score(correct=0.0, extracted=None, rule=rule)
    pairs = [(found, gold)]
    if found.endswith("%") != gold.endswith("%"):
        pairs.append((found.removesuffix("%"), gold.removesuffix("%")))
    is_right = any(_is_close(_value(a), _value(b), tolerance) for a, b in pairs)
    return Score(correct=float(is_right), extracted=found, rule=rule)


def score_math(text: str, sample: Sample, *, worker: MathWorker | None = None) -> Score:
    """math-verify's judgement (gold first; it is not symmetric), made in a process with a timeout.

    A timeout or crash is unparsed with that rule, never a plain wrong answer.
    """
    answer = final_answer(text)
    if answer is None:
        return Score(correct=0.0, extracted=None, rule="unclosed_think")
    if answer.strip() == sample.answer.strip():
        return Score(correct=1.0, extracted=answer.strip(), rule="exact")
    if not answer.strip():
        return Score(correct=0.0, extracted=None, rule="unparsed")
    verdict = (worker or shared_worker()).compare(answer, sample.answer)
    if "failure" in verdict:
        return Score(correct=0.0, extracted=None, rule=verdict["failure"])
    rule = "math_verify" if verdict["extracted"] is not None else "unparsed"
    return Score(correct=float(verdict["correct"]), extracted=verdict["extracted"], rule=rule)


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
        return Score(correct=0.0, extracted=None, rule="unclosed_think")
    found = _last_box(answer)
    if found is None:
        return Score(correct=0.0, extracted=None, rule="unparsed")
    overlap = iou(found, gold)
    return Score(
        correct=float(overlap >= threshold), extracted=str(list(found)), rule=f"iou {overlap:.3f}"
    )


def score_code(text: str, sample: Sample, *, timeout: float = 10.0) -> Score:
    """Whether the program passes its tests in the sandbox.

    The sample's answer is a template of the whole program with `{completion}` where the code
    goes. The code is the last fenced block, else the whole text.
    """
    answer = final_answer(text)
    if answer is None:
        return Score(correct=0.0, extracted=None, rule="unclosed_think")
    blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)```", answer, re.DOTALL)
    code = blocks[-1] if blocks else answer
    if not code.strip():
        return Score(correct=0.0, extracted=None, rule="unparsed")
    if "{completion}" not in sample.answer:
        raise ValueError(f"sample {sample.uid!r}: the answer must hold {{completion}}")
    found = execute(sample.answer.replace("{completion}", code), timeout=timeout)
    return Score(correct=float(found.passed), extracted=code, rule=found.reason)


SCORERS: dict[str, Callable[..., Score]] = {
    "text": score_text,
    "choice": score_choice,
    "number": score_number,
    "math": score_math,
    "box": score_box,
    "code": score_code,
}


def declared_answer(text: str) -> tuple[str | None, str]:
    """(answer, rule): the last `answer [is] X`, `\\boxed{X}` or `#### X`, else the whole text."""
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    found = [next(group for group in match.groups() if group) for match in _declarations(answer)]
    if found:
        return found[-1].strip(), "declared"
    return (answer.strip(), "whole") if answer.strip() else (None, "unparsed")


def declared_number(text: str) -> tuple[str | None, str]:
    """The number of the last declaration that holds one, else the last number of the text."""
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    for match in reversed(_declarations(answer)):
        found = _declared_in(next(group for group in match.groups() if group))
        if found is not None:
            return found, "declared"
    last = _last_number(answer)
    return last, "last" if last is not None else "unparsed"


def _declarations(text: str) -> list[re.Match[str]]:
    return [
        match for match in DECLARATION.finditer(re.sub(r"[*`]", "", text)) if any(match.groups())
    ]


def _declared_in(text: str) -> str | None:
    """The first number of a declaration, or the first one after its last equals sign."""
    numbers = _numbers(text.rpartition("=")[2])
    return numbers[0] if numbers else None


def _numbers(text: str) -> list[str]:
    found = (match.strip() for match in NUMBER.findall(text.replace("\u2212", "-")))
    return [number for number in found if re.search(r"\d", number)]


def _last_number(text: str) -> str | None:
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _value(number: str) -> float:
    top, _, bottom = number.replace(",", "").rstrip("% ").partition("/")
    value = float(top) / float(bottom) if bottom.strip() and float(bottom) else float(top)
    return value / 100 if number.endswith("%") else value


def _is_close(found: float, gold: float, tolerance: float) -> bool:
    return math.isclose(found, gold, rel_tol=0.0, abs_tol=max(tolerance * abs(gold), 1e-12))


def _normal(text: str) -> str:
    """Case, width, markup, articles in front, outer punctuation and runs of spaces do not count."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\s+", " ", re.sub(r"[*`$]", "", text)).strip(" \t\n.,;:!?\"'()")
    return re.sub(r"^(?:a|an|the) ", "", text)


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
