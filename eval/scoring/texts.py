"""Answers in words: exact match after normalising, and yes or no."""

import json
import re
from collections.abc import Iterator

from dopd_vlm.types import Sample

from .answers import Score, final_answer, normal, own_part, unread
from .markup import CLOSE, OPEN, plain
from .quantity import read_quantity

CUE = re.compile(
    rf"{OPEN}([^{CLOSE}]*){CLOSE}|^[ \t]*####[ \t]*(\S[^\n]*)\s*\Z|"
    rf"\banswers?\b(?:[^:\n.]{{0,60}}?\s(?:is|are)\b|\s*[:=]|\s)\s*:?\s*((?:(?!\banswer\b)[^\n{OPEN}])+)",
    re.IGNORECASE | re.MULTILINE,
)
CLAUSE = re.compile(r"[.!?;,:(](?:\s|$)|\n|\s(?:because|since|which|as)\s", re.IGNORECASE)


def score_text(text: str, sample: Sample) -> Score:
    """Normalised exact match of the last declared answer, else of a text of one sentence.

    What counts are the declared words, the same up to the end of their sentence or clause, and what
    comes after the last "is" of a sentence: "The hottest month is May." A gold JSON list of texts
    names alternatives, numbers among them rounded to two decimals.
    """
    answer, rule = declared_answer(text)
    if answer is None or not normal(answer):
        return unread(rule if answer is None else "unparsed")
    golds = json.loads(sample.answer) if sample.answer.startswith('["') else [sample.answer]
    is_right = any(
        _is_alternative(candidate, gold, len(golds) > 1)
        for candidate in _candidates(answer)
        for gold in golds
    )
    return Score(correct=float(is_right), extracted=answer, rule=rule)


def declared_answer(text: str) -> tuple[str | None, str]:
    """(answer, rule): the last box, JSON answer, `answer [is] X` or `#### X`, else the whole text."""
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    answer = plain(answer)
    for part in dict.fromkeys((own_part(answer), answer)):
        values = [next((one for one in match if one), "") for match in CUE.findall(part)]
        values = [value.strip(f" {OPEN}{CLOSE}") for value in values if value.strip()]
        if values:
            return values[-1], "declared"
    return (answer, "whole") if answer else (None, "unparsed")


def score_yes_no(text: str, sample: Sample) -> Score:
    """The word that a declared answer or the text begins with, else the only one of yes and no in it.

    Raises:
        ValueError: gold is neither.
    """
    if normal(sample.answer) not in ("yes", "no"):
        raise ValueError(f"sample {sample.uid!r}: gold {sample.answer!r} is neither yes nor no")
    answer, rule = declared_answer(text)
    words = re.findall(r"\b(?:yes|no)\b", (answer or "").lower())
    leading = re.match(r"\W*(yes|no)\b(?!\s+(?:or|and|doubt)\b)", (answer or "").lower())
    kinds = {leading[1]} if leading else set(words)
    if len(kinds) != 1 or re.match(r"\W*no doubt", (answer or "").lower()):
        return unread("ambiguous" if words else rule if answer is None else "unparsed")
    word = kinds.pop()
    return Score(correct=float(word == normal(sample.answer)), extracted=word, rule=rule)


def _candidates(answer: str) -> Iterator[str]:
    yield answer
    sentences = re.split(r"[.!?](?:\s|$)|\n", answer.strip())
    yield sentences[0]
    yield CLAUSE.split(answer.strip(), maxsplit=1)[0]
    if len([one for one in sentences if one.strip()]) == 1:
        yield re.split(r"\b(?:is|are|was|were)\b", sentences[0])[-1]
        yield re.sub(
            r"^\s*(?:it|this|that|they|there)(?:'s|\s+is|\s+are)\s+",
            "",
            sentences[0],
            flags=re.IGNORECASE,
        )


def _is_alternative(answer: str, gold: str, are_several: bool) -> bool:
    if normal(answer) == normal(plain(gold)):
        return True
    if not are_several:
        return False
    first, second = read_quantity(answer), read_quantity(gold)
    if first is None or second is None:
        return False
    return round(first.value, 2) == round(second.value, 2)
