"""Whether a text gives an answer away: as a word, an equal number, or a choice's letter or text."""

import re
from collections.abc import Mapping

ENUMERATION = re.compile(r"^\s*(?:step\s*\d+\s*[.):-]?|\d+\s*[.):])\s*", re.IGNORECASE)
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
        named = [answer] if answer in choices else list(letters)
        places = [_letter(text, letter) or _phrase(text, choices[letter]) for letter in named]
        return next(filter(None, places), None)
    return _phrase(text, answer)


def _letter(text: str, letter: str) -> str | None:
    escaped = re.escape(letter)
    match = re.search(
        rf"\({escaped}\)|(?<!\w){escaped}\)|\*\*{escaped}[.:)]?\*\*|\\boxed\{{{escaped}\}}|"
        rf"""["'`]{escaped}["'`]|"""
        rf"(?i:option|choice|answer|letter|select|choose|pick|correct|right)(?:\s+(?i:one))?"
        rf"\s*(?i:is|are|:|=)?\s*[*\"']*{escaped}(?!\w)|"
        rf"(?<!\w){escaped}\s+(?i:is\s+(?:the\s+)?(?:correct|right|answer))|"
        rf"^\s*{escaped}\s*[.:]?\s*$",
        text,
    )
    return match.group(0).strip() if match else None


def _phrase(text: str, answer: str) -> str | None:
    value = _as_number(answer)
    if value is not None:
        return _number(text, value)
    match = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
    return match.group(0) if match else None


def _number(text: str, value: float) -> str | None:
    for pattern in (_FRACTION, _NUMBER):
        for match in pattern.finditer(text):
            if _as_number(match.group(0)) == value:
                return match.group(0)
    words = _words(value)
    match = re.search(rf"\b{words}\b", text, re.IGNORECASE) if words else None
    return match.group(0) if match else None


def _words(value: float) -> str | None:
    """A whole number below a hundred in words, as a pattern."""
    if value not in range(100):
        return None
    until_19, (tens, ones) = _UNTIL_19.split(), divmod(int(value), 10)
    if value < len(until_19):
        return until_19[int(value)]
    return _TENS.split()[tens - 2] + (f"[- ]{until_19[ones]}" if ones else "")


def _as_number(text: str) -> float | None:
    match = _FRACTION.fullmatch(text.strip(" $%"))
    if match:
        above, below = (int(part) for part in match.groups() if part is not None)
        return above / below if below else None
    try:
        return float(text.replace(",", "").strip(" $%"))
    except ValueError:
        return None
