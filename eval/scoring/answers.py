"""What scorers share: the Score of a completion, and reading its answer, numbers, JSON or code."""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NUMBER = re.compile(
    r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?\s*%?"
)
FENCE = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE
)
PYTHON = ("python", "python3", "py", "py3", "")
PROGRAM = re.compile(r"^\s*(?:async\s+def|def|class)\s|\binput\(|\bsys\.stdin\b", re.MULTILINE)
"""What a solution has, and an example of its use or its output has not."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one completion is worth and why."""

    correct: float
    """In [0, 1]."""
    extracted: str | None
    """The answer that was read from the completion; None when none was found."""
    rule: str
    """Which rule read it, or why none did."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Second metrics of this completion, in [0, 1], by name."""

    @property
    def is_unparsed(self) -> bool:
        """No answer was found; counted as wrong and separately."""
        return self.extracted is None


def unread(rule: str = "unparsed") -> Score:
    """The Score of a completion that holds no answer."""
    return Score(correct=0.0, extracted=None, rule=rule)


def final_answer(text: str) -> str | None:
    """The text without its thinking; None when a <think> was opened and never closed."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]
    return None if "<think>" in text else text


def own_part(text: str) -> str:
    """The text up to where it goes on with another question, as models without an end do."""
    part = re.split(r"\n\s*(?:#+ *|\*\*)?(?:Question|Human|User|Q|Hint|Problem)\s*\d*\s*:", text)[0]
    return part if part.strip() else text


def numbers(text: str) -> list[str]:
    """Every number as it is written: thousands commas, fractions and percent signs included."""
    matches = (match.strip() for match in NUMBER.findall(text.replace("\u2212", "-")))
    return [number for number in matches if re.search(r"\d", number)]


def last_number(text: str) -> str | None:
    """The last of `numbers`."""
    values = numbers(text)
    return values[-1] if values else None


def value_of(number: str) -> float:
    """The value of one of `numbers`; 35% is 0.35."""
    top, _, bottom = number.replace(",", "").rstrip("% ").partition("/")
    value = float(top) / float(bottom) if bottom.strip() and float(bottom) else float(top)
    return value / 100 if number.endswith("%") else value


def normal(text: str) -> str:
    """Case, width, markup, articles in front, outer punctuation and runs of spaces do not count."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\s+", " ", re.sub(r"[*`$]", "", text)).strip(" \t\n.,;:!?\"'()")
    return re.sub(r"^(?:a|an|the) ", "", text)


def last_object(text: str) -> dict[str, Any] | None:
    """The last whole JSON object of the text that is not inside another; None without any."""
    decoder, value, place = json.JSONDecoder(strict=False), None, text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return value


def code_of(text: str) -> str:
    """The last fenced Python block that defines something or reads input, else the last one.

    Blocks of no named language count as Python, a block that is cut off ends with the text; without
    any block the whole text is code.
    """
    blocks = [match[3] for match in FENCE.finditer(text) if match[2].lower() in PYTHON]
    programs = [block for block in blocks if PROGRAM.search(block)]
    return (programs or blocks or [text])[-1]
