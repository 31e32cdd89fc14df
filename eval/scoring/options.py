"""The options of a question, and which of them a text names by its words."""

import re
from collections.abc import Mapping

from .answers import normal
from .markup import CLOSE, OPEN, plain
from .negation import turns
from .quantity import read_quantity

LISTED = (
    r"\(([A-J])\)[ \t]*([^\n(]*)",
    r"^[ \t]*([A-J])[.):][ \t]*(\S[^\n]*)",
    r"(?:^|,|:)[ \t]*([A-J])[:.][ \t]*([^\n,]+)",
)
"""How questions list their options: `(A) x`, a line `A. x`, and `A: x, B: y`."""
VALUE = re.compile(
    r"\b(?:answer|option|choice)s?(?:\s+(?:would|should|must|will) be|\s+(?:is|are)|\s*:)\s*:?\s*([^\n]+)",
    re.IGNORECASE,
)
"""The words that a text declares as its answer."""
LONGEST = 12
"""Words of a declared value or one-sentence answer that may hold an option's text."""


def options_in(question: str) -> dict[str, str]:
    """{letter: text} of the options that a question lists, in the forms of LISTED; {} without any.

    Texts are empty where there are letters alone: "(A) (B) (C)".

    A list starts at A and has no gap, so that a stray "B." is none.
    """
    for pattern in LISTED:
        options = {m[1]: m[2].strip(" ,;") for m in re.finditer(pattern, question, re.MULTILINE)}
        if len(options) > 1 and "".join(options) == "ABCDEFGHIJ"[: len(options)]:
            return options
    return {}


def option_texts(choices: Mapping[str, str]) -> dict[str, str]:
    """Option texts to look for; those of one letter are left out: "a" is an article and "B" a name."""
    texts = {letter: normal(plain(option)) for letter, option in choices.items()}
    return {key: one for key, one in texts.items() if one and not re.fullmatch(r"[a-z]", one)}


def equal_option(value: str, texts: Mapping[str, str]) -> str | None:
    value = _key(value)
    same = [letter for letter, option in texts.items() if _key(option) == value]
    if not same and (quantity := read_quantity(value)):
        others = {letter: read_quantity(option) for letter, option in texts.items()}
        same = [letter for letter, other in others.items() if other == quantity]
    return same[0] if len(same) == 1 and value else None


def declared_option(text: str, choices: Mapping[str, str]) -> str | None:
    """The option of the last declared value that is one, boxes included."""
    texts = option_texts(choices)
    if not texts:
        return None
    values = [(match.start(1), match[1]) for match in VALUE.finditer(text)]
    values += [
        (match.start(1), match[1]) for match in re.finditer(rf"{OPEN}([^{CLOSE}]*){CLOSE}", text)
    ]
    for _, value in sorted(values, reverse=True):
        letter = _option_of(value, texts)
        if letter:
            return letter
    return None


def leading_option(text: str, choices: Mapping[str, str]) -> str | None:
    """The option that is all there is before the first comma, stop or line break: "No, it is round"."""
    head = re.match(r"[^.,:;!\n]+(?=[.,:;!]\s|\n)", text)
    return equal_option(head[0], option_texts(choices)) if head else None


def only_option(text: str, choices: Mapping[str, str]) -> str | None:
    """The option that the whole text names, where it is one short sentence."""
    texts = option_texts(choices)
    letter = equal_option(text, texts)
    if letter or not texts:
        return letter
    if not is_one_sentence(text) or re.match(r"\W*[A-Z]\s*[).:-]", text):
        return None
    last = re.split(r"\b(?:so|thus|therefore|hence)\b", text)[-1]
    value = re.split(r"\b(?:is|are|was|were|equals|equal to|approximately|about)\b|=", last)[-1]
    letter = None if turns(last) else equal_option(value, texts)
    return letter or _option_of(last, texts)


def is_one_sentence(text: str) -> bool:
    return re.search(r"[.!?]\s|\n|\x00", text.strip()) is None


def _option_of(value: str, texts: Mapping[str, str]) -> str | None:
    """The option that a value is, up to the end of its clause, or the only one whose words it holds."""
    value = re.sub(r"^\s*(?:it|this|he|she)(?: is|'s)\s+", "", value, flags=re.IGNORECASE)
    heads = [value, re.split(r"[.!?](?:\s|$)|\n", value)[0]]
    heads.append(re.split(r"[,;:(]\s|\b(?:because|since|as|which)\b", heads[-1])[0])
    for head in heads:
        letter = equal_option(head, texts)
        if letter:
            return letter
    head = normal(heads[1])
    if len(head.split()) > LONGEST or turns(head):
        return None
    named = [
        letter
        for letter, option in texts.items()
        if re.search(rf"(?<![\w.\\/^+-]){re.escape(option)}(?![\w\\/^+]|[.-]\w)", head)
    ]
    is_formula = re.search(r"[=\\^+*/]|\d\s*[-\u2013]\s*\d", head) is not None
    return (
        named[0] if len(named) == 1 and not is_formula and not _is_small(texts[named[0]]) else None
    )


def _is_small(option: str) -> bool:
    """Numbers and short words ("no", "right", "2") turn up in sentences that mean something else."""
    return (
        re.fullmatch(r"[\W\d]*|yes|no|right|left|true|false|none|all|both|same", option) is not None
    )


def _key(text: str) -> str:
    return re.sub(r"\s+|\\(?=%)", "", normal(text))
