"""Which number a completion answers with: the declared one, else the one that its last sentence ends in.

Everything is read by `read_quantity`, so ranges, alternatives and refusals are no number. The rules:
    declared    the last box, "answer is X", "answer: X" or "#### X" that holds a number
    whole       the text is a number, perhaps with its unit
    last        the last sentence with a number says one: "so she has 18 eggs.", "x = 5"
    refused     that sentence says that the number cannot be known
    unclear     a declared value or the last sentence holds numbers, but not one
"""

import math
import re
from collections.abc import Iterator

from dopd_vlm.types import Sample

from .answers import Score, final_answer, own_part, unread
from .markup import CLOSE, OPEN, plain
from .quantity import LEADING, WORDS, Quantity, read_quantity

MEASURES = ("close", "rounded", "relative")
THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))

CUE = re.compile(
    rf"{OPEN}(?P<box>[^{CLOSE}]*){CLOSE}|^[ \t]*####[ \t]*(?P<hashes>[-+$\d\\.(][^\n]*)|"
    r"\b(?:answers?|ans\.?)(?:[^:=\n.]{0,60}?\s(?:is|are|be|equals)\b|\s*[:=]|(?=\s+[-$\\\d]))\s*:?"
    rf"(?P<value>(?:(?!\banswer\b)[^\n{OPEN}])*)|"
    "\u7b54\u6848\\s*(?:\u662f|\u4e3a)?\\s*:?\\s*(?P<chinese>[^\n,;]*)",
    re.IGNORECASE | re.MULTILINE,
)
NUMERAL = re.compile(
    rf"[-+]?(?<![\w.])(?:\d+(?:,\d{{3}})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?\s*%?|"
    rf"\b(?:{'|'.join(WORDS)})\b",
    re.IGNORECASE,
)
END = re.compile(r"(?<=[^\d][.!?;])\s+|(?<=\d[.!?;])\s+(?=[^\d])|\n|;")
HEAD = re.compile(
    r",\s|\s\(|\s(?:because|since|which|so|as|where|with|when|after|for|per|not|but|in|on|at|of|from|that|out)\b",
    re.IGNORECASE,
)
LINK = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|equal to|about|approximately|has|have|had|gives?|leaves?|makes?|costs?|"
    r"needs?|gets?|takes?|total of|there are)\b|[=:\u2248]|\\approx)",
    re.IGNORECASE,
)
REFUSED = re.compile(
    r"\b(?:cannot|can't|can not|unable|impossible|not possible|insufficient|not enough|no way|unknown|"
    r"not (?:clear|visible|provided|specified|mentioned|given|shown|available)|don't know|sorry)\b",
    re.IGNORECASE,
)
APOLOGY = re.compile(
    r"\W*(?:i'm sorry|sorry|i am sorry|as an ai|as a text|i'm unable|i am unable)", re.IGNORECASE
)
APART = re.compile(
    r"\d\s*(?:to|or|-|\u2013|\u2014)\s*\d|\bbetween\b|\beither\b|\bnot\s+\d|"
    rf"\b(?:and|or|to|plus)\s+(?:\d|(?:{'|'.join(WORDS)})\b)",
    re.IGNORECASE,
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
    """How well the number that the text answers with agrees with gold.

    `measure`: `close` is |found - gold| <= max(tolerance |gold|, absolute). `rounded` is MathVista's: found
    is cut to a whole number where gold is one, else rounded to gold's decimals, and equal; with
    `decimals` both are rounded to these. `relative` is the mean over t = 0.5, 0.55, ..., 0.95 of
    |found - gold| / |gold| <= 1 - t (VSI-Bench's mean relative accuracy). Where exactly one side
    carries a percent sign both of its readings count (35% is 35 and 0.35), under `rounded` the face
    value only.

    Raises:
        ValueError: the gold answer holds no number, or an unknown measure.
    """
    gold = _gold(sample)
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; known: {', '.join(MEASURES)}")
    number, rule = declared_number(text)
    answer = None if number is None else read_quantity(number)
    if number is None or answer is None:
        return unread(rule)
    if measure == "rounded":
        places = decimals if decimals is not None else _places(sample.answer)
        is_right = _rounded(answer.value, places, is_cut=decimals is None) == _rounded(
            gold.value, places, is_cut=False
        )
        return Score(correct=float(is_right), extracted=number, rule=rule)
    pairs = _readings(answer, gold)
    if measure == "relative":
        correct = max(_mean_relative(a, b, tolerance) for a, b in pairs)
    else:
        correct = float(any(_is_close(a, b, tolerance, absolute) for a, b in pairs))
    return Score(correct=correct, extracted=number, rule=rule)


def _gold(sample: Sample) -> Quantity:
    gold = read_quantity(sample.answer) or read_quantity((_numerals(sample.answer) or [""])[-1])
    if gold is None or not re.search(r"\d", sample.answer):
        raise ValueError(f"sample {sample.uid!r}: gold {sample.answer!r} holds no number")
    return gold


def _places(gold: str) -> int:
    return len(re.match(r"\d*", gold.partition(".")[2])[0])  # type: ignore[index]


def _rounded(value: float, places: int, *, is_cut: bool) -> float:
    return float(math.trunc(value)) if is_cut and places == 0 else round(value, places)


def _readings(answer: Quantity, gold: Quantity) -> list[tuple[float, float]]:
    """Pairs to compare: face values, and the share where only one side is a percentage."""
    pairs = [(answer.value, gold.value)]
    if answer.is_percent and not gold.is_percent:
        pairs.append((answer.value / 100, gold.value))
    if gold.is_percent and not answer.is_percent:
        pairs.append((answer.value, gold.value / 100))
    return pairs


def _is_close(value: float, gold: float, tolerance: float, absolute: float) -> bool:
    # In decimals 1.001 - 1 is the tolerance, in floats a hair above it.
    most = max(tolerance * abs(gold), absolute) * (1 + 1e-9)
    return math.isclose(value, gold, rel_tol=0.0, abs_tol=most)


def _mean_relative(value: float, gold: float, tolerance: float) -> float:
    if gold == 0:
        return float(value == 0)
    error = abs(value - gold) / abs(gold)
    # 1 - 0.95 is above 0.05 in floats; an error of exactly the threshold counts upstream.
    return sum(error <= 1 - t + tolerance for t in THRESHOLDS) / len(THRESHOLDS)


def declared_number(text: str) -> tuple[str | None, str]:
    """(number as written, rule); `read_quantity` reads it."""
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    answer = plain(answer)
    for part in dict.fromkeys((own_part(answer), answer)):
        number, rule = _declared(part)
        if rule != "none":
            return number, rule
    answer = own_part(answer)
    if read_quantity(answer):
        return answer.strip(" ."), "whole"
    return _last(answer)


def _declared(text: str) -> tuple[str | None, str]:
    for match in reversed(list(CUE.finditer(text))):
        is_whole = match["value"] is None
        value = next((group for group in match.groups() if group), "")
        number = number_in(value, is_whole=is_whole)
        if number is not None:
            return number, "declared"
        if (match["box"] and _numerals(value)) or REFUSED.search(value):
            return None, "refused" if REFUSED.search(value) else "unclear"
        if _numerals(END.split(value.strip())[0]):
            return None, "unclear"
    return None, "none"


def _last(text: str) -> tuple[str | None, str]:
    parts = END.split(text)
    places = [place for place, part in enumerate(parts) if _numerals(part)]
    if not places:
        return None, "unparsed"
    sentence = parts[places[-1]]
    if APOLOGY.match(text) or any(REFUSED.search(part) for part in parts[places[-1] :]):
        return None, "refused"
    number = number_in(sentence, is_whole=False)
    return number, "unclear" if number is None else "last"


def number_in(value: str, *, is_whole: bool) -> str | None:
    """The number that a declared value or a sentence gives; a box must hold it and nothing else."""
    for candidate in _candidates(value, is_whole):
        if read_quantity(candidate):
            return candidate.strip(" .")
    return None


def _candidates(value: str, is_whole: bool) -> Iterator[str]:
    """From the strictest reading to the only number of the first sentence."""
    yield value
    yield re.split(r"[=\u2248]|\\approx", value)[-1]
    if is_whole:
        return
    sentence = END.split(value.strip())[0]
    head = HEAD.split(sentence, maxsplit=1)[0]
    for part in (sentence, head, LINK.split(sentence)[-1], HEAD.split(LINK.split(sentence)[-1])[0]):
        yield re.split(r"[=\u2248]|\\approx", part)[-1]
    opening = LEADING.sub("", sentence.strip())
    leading = NUMERAL.match(opening)
    if leading and not APART.search(sentence):
        is_alone = re.match(r"\s+[A-Za-z]|[.,]?$|[.,]\s+[A-Za-z]", opening[leading.end() :])
        yield leading[0] if is_alone else ""
    numerals = _numerals(sentence)
    if len(numerals) == 1 and not APART.search(sentence):
        yield numerals[0]


def _numerals(text: str) -> list[str]:
    numerals = (match[0].strip() for match in NUMERAL.finditer(text))
    return [one for one in numerals if re.search(r"\d|[a-z]", one, re.IGNORECASE)]
