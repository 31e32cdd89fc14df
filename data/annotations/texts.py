"""The annotation types that are text; `answer` is for the ablation only."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..coords import Frame


class Captions:
    """Captions of the pictures: a string or a list of strings, one line each."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The non-empty lines; ValueError for anything but strings."""
        return lines_of(raw)

    def describe(self, value: Sequence[str], frame: Frame) -> str:
        """The captions, one a line."""
        return "\n".join(value)


class Hints:
    """Steps or a summary that lead to the answer without holding it: a string or a list of strings.

    Serves `hints` (the paper's step-wise decomposition) and `summary` (its summarised form).
    """

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The non-empty steps; ValueError for anything but strings."""
        return lines_of(raw)

    def describe(self, value: Sequence[str], frame: Frame) -> str:
        """The steps, one a line."""
        return "\n".join(value)

    def check(self, value: Sequence[str], answer: str, choices: Mapping[str, str] | None) -> None:
        """Raises ValueError for the first step that discloses the answer."""
        for index, step in enumerate(value):
            found = disclosed(_ENUMERATION.sub("", step), answer, choices)
            if found is not None:
                raise ValueError(
                    f"[{index}] {step!r} discloses the answer {answer!r} (as {found!r}); hints say "
                    "what to do, not what comes out: reword the step or drop it"
                )


class Solution:
    """A worked solution, steps with what comes out of them: a string or a list of strings.

    Unlike `hints` it may hold the answer ("step hints with execution" in the paper's ablation).
    """

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The non-empty lines; ValueError for anything but strings."""
        return lines_of(raw)

    def describe(self, value: Sequence[str], frame: Frame) -> str:
        """The steps, one a line."""
        return "\n".join(value)


class SceneGraph:
    """What stands in which relation to what: `[[subject, relation, object]]`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[tuple[str, str, str], ...]:
        """Checked triples of non-empty strings."""
        if raw is None:
            return ()
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise ValueError(f"must be a list of [subject, relation, object], got {raw!r}")
        return tuple(_triple(index, entry) for index, entry in enumerate(raw))

    def describe(self, value: Sequence[tuple[str, str, str]], frame: Frame) -> str:
        """A line `subject | relation | object` per triple."""
        return "\n".join(" | ".join(triple) for triple in value)


class Answer:
    """The final answer itself, taken from the row: for the ablation only."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> str:
        """The answer as a string, empty if the row has none."""
        return "" if raw is None else str(raw).strip()

    def describe(self, value: str, frame: Frame) -> str:
        """The answer; warns."""
        if value:
            warnings.warn(
                "annotation type 'answer' shows the teacher the final answer: an ablation, which "
                "the paper found worse than step hints",
                stacklevel=2,
            )
        return value


def lines_of(raw: Any) -> tuple[str, ...]:
    """A string or a list of strings as a tuple of stripped, non-empty lines; None is empty."""
    if raw is None:
        return ()
    values = [raw] if isinstance(raw, str) else raw
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"must be a string or a list of strings, got {raw!r}")
    return tuple(value.strip() for value in values if value.strip())


def _triple(index: int, entry: Any) -> tuple[str, str, str]:
    is_list = isinstance(entry, Sequence) and not isinstance(entry, str)
    if (
        not is_list
        or len(entry) != 3
        or not all(isinstance(part, str) and part.strip() for part in entry)
    ):
        raise ValueError(f"[{index}] must be [subject, relation, object] in words, got {entry!r}")
    return entry[0].strip(), entry[1].strip(), entry[2].strip()


_ENUMERATION = re.compile(r"^\s*(?:step\s*\d+\s*[.):-]?|\d+\s*[.):])\s*", re.IGNORECASE)
"""`step 2:` and `2.` count the steps and disclose nothing."""
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w]|\.\d)")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|(?<![\w./])(-?\d+)\s*/\s*(\d+)(?![\w/])")
_UNTIL_19 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def disclosed(text: str, answer: str, choices: Mapping[str, str] | None = None) -> str | None:
    """The part of `text` that gives the answer away, or None.

    Looks for the answer as a whole word or phrase, for a number equal to it (`1,200`, `12.0`, `1/2`,
    `twenty-one`), and for a choice's letter as letters are written (`(B)`, `B.`, `**B**`,
    `option B`, `B is correct`) or its option text; of several letters, for each. An empty answer
    discloses nothing.
    """
    answer = answer.strip()
    if not answer:
        return None
    letters = re.sub(r"[,\s]", "", answer) if choices else ""
    if choices and (answer in choices or all(letter in choices for letter in letters)):
        chosen = [answer] if answer in choices else list(letters)
        found = [_letter(text, letter) or _phrase(text, choices[letter]) for letter in chosen]
        return next(filter(None, found), None)
    return _phrase(text, answer)


def _letter(text: str, letter: str) -> str | None:
    escaped = re.escape(letter)
    found = re.search(
        rf"\({escaped}\)|(?<!\w){escaped}\)|\*\*{escaped}[.:)]?\*\*|\\boxed\{{{escaped}\}}|"
        rf"""["'`]{escaped}["'`]|"""
        rf"(?i:option|choice|answer|letter|select|choose|pick|correct|right)(?:\s+(?i:one))?"
        rf"\s*(?i:is|are|:|=)?\s*[*\"']*{escaped}(?!\w)|"
        rf"(?<!\w){escaped}\s+(?i:is\s+(?:the\s+)?(?:correct|right|answer))|"
        rf"^\s*{escaped}\s*[.:]?\s*$",
        text,
    )
    return found.group(0).strip() if found else None


def _phrase(text: str, answer: str) -> str | None:
    value = _as_number(answer)
    if value is not None:
        return _number(text, value)
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
    return found.group(0) if found else None


def _number(text: str, value: float) -> str | None:
    for pattern in (_FRACTION, _NUMBER):
        for found in pattern.finditer(text):
            if _as_number(found.group(0)) == value:
                return found.group(0)
    words = _words(value)
    found = re.search(rf"\b{words}\b", text, re.IGNORECASE) if words else None
    return found.group(0) if found else None


def _words(value: float) -> str | None:
    """A whole number below a hundred in words, as a pattern."""
    if value not in range(100):
        return None
    until_19, (tens, ones) = _UNTIL_19.split(), divmod(int(value), 10)
    if value < len(until_19):
        return until_19[int(value)]
    return _TENS.split()[tens - 2] + (f"[- ]{until_19[ones]}" if ones else "")


def _as_number(text: str) -> float | None:
    found = _FRACTION.fullmatch(text.strip(" $%"))
    if found:
        above, below = (int(part) for part in found.groups() if part is not None)
        return above / below if below else None
    try:
        return float(text.replace(",", "").strip(" $%"))
    except ValueError:
        return None
