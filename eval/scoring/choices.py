"""Which option a completion chose: strict precedence, never a guess.

The rules, in order; the name of the one that fired is returned for auditing:
    unclosed_think  a <think> that never ends: nothing was answered
    bare            the text is a letter and nothing else
    declared        the last phrase that commits to a letter (`cues.py`): "the answer is B", a box, "B is
                    correct", "I choose B"; an option that is only mentioned or called wrong is none
    refused         the last such phrase says that no option is right, or that none can be known
    ambiguous       such a phrase that names several letters: "answer: A or B"
    last_line       the last line is a letter, or a letter with its option, and no list of options
    lead            the text starts with "X) ...", "X. ...", "Option X ..." or a line "X", and is no list
    tail            the last sentence ends in the letter: "so it matches option X."
    list            (sets only) a text of one sentence names one list of letters: "both A and C turn"
    paren           a text of one sentence names one letter in parentheses that nothing rules out
    text            a declared value, a box or the whole text is one option's text
    unparsed        none of these
"""

import itertools
import re
from collections.abc import Mapping

from .answers import final_answer, normal, own_part
from .cues import Cue, cues, item, several
from .markup import CLOSE, OPEN, plain
from .negation import is_ruled_out
from .options import (
    declared_option,
    equal_option,
    is_one_sentence,
    leading_option,
    only_option,
    option_texts,
)

PRONOUN = re.compile(
    r"'|\s+(?:think|believe|guess|am|would|will|choose|pick|see|can|cannot|have|do|was)\b"
)
"""What follows a capital I that is no option's letter."""
NO_ARTICLE = re.compile(
    r"\s+(?!(?:because|since|as|for|which|is|was|and|or|with|where|due|based|in|on|from|it|the|but|not|if|"
    r"option|choice|so|that|has|shows?|to|at|by|this|these|there|would|are|since)\b)[a-z]"
)
"""What follows an A that is an article and no option's letter."""


def extract_choice(text: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    """(letter, rule), or (None, rule) when the text does not say which option it takes.

    `choices` maps capital letters to option texts, which may be empty where only letters count.
    Lower-case letters count when they are the whole text or end a declaration.

    Raises:
        ValueError: no choices, or a key that is not one capital letter.
    """
    letters, rule = _read(text, choices, is_set=False)
    if letters is not None and len(letters) > 1:
        return None, "ambiguous"
    return (None if letters is None else letters[0]), rule


def extract_choices(text: str, choices: Mapping[str, str]) -> tuple[frozenset[str] | None, str]:
    """(set of letters, rule) for questions that may have several right options.

    A list is letters run together or separated by commas, slashes, "and" or "&". Where no list is
    declared the rules of `extract_choice` give a set of one.
    """
    letters, rule = _read(text, choices, is_set=True)
    return (None if letters is None else frozenset(letters)), rule


def _read(text: str, choices: Mapping[str, str], *, is_set: bool) -> tuple[str | None, str]:
    """(letters as a string without repeats, rule)."""
    _check(choices)
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    answer, letters = plain(answer), "".join(choices)
    bare = _bare(answer, letters, is_set)
    if bare:
        return bare, "bare"
    answer = _without_lists(answer, letters)
    for part in dict.fromkeys((own_part(answer), answer)):
        declared = _declared(part, choices, is_set)
        if declared is not None:
            return declared
    answer = own_part(answer)
    by_text = declared_option(answer, choices) or leading_option(answer, choices)
    if by_text:
        return by_text, "text"
    for rule, read in (("last_line", _last_line), ("lead", _lead), ("tail", _tail)):
        letter = read(answer, choices)
        if letter:
            return letter, rule
    in_brackets = _paren(answer, letters, is_set)
    if in_brackets:
        return in_brackets, "paren"
    if is_set and (group := _only_list(answer, letters)):
        return group, "list"
    by_text = only_option(answer, choices)
    return (by_text, "text") if by_text else (None, "unparsed")


def _bare(text: str, letters: str, is_set: bool) -> str | None:
    text = text.strip(f" \n\t\"'.:{OPEN}{CLOSE}")
    if is_set and re.fullmatch(rf"[{letters}]{{2,}}|{several(letters)}", text):
        return _in_order(text, letters)
    match = re.fullmatch(rf"[(\[{{\"']*\s*([{letters}{letters.lower()}])\s*[)\]}}\"']*[.:]?", text)
    return match[1].upper() if match else None


def _declared(text: str, choices: Mapping[str, str], is_set: bool) -> tuple[str | None, str] | None:
    letters = "".join(choices)
    for cue in reversed(cues(text, dict.fromkeys(letters, "") | option_texts(choices))):
        if not cue.letters:
            return None, "refused"
        if _is_word(cue, text):
            named = _option_after(text[cue.start :], choices)
            if named:
                return named, "declared"
            continue
        group = _in_order(cue.letters, letters)
        if len(group) == 1:
            return group, "declared"
        if is_set and not re.search(r"\bor\b|\u6216", cue.letters):
            return group, "declared"
        if _is_plural(text, cue):
            continue
        return None, "ambiguous"
    lower = re.findall(
        rf"(?i:\b(?:answer|option|choice)\b(?:\s+is)?)\s*:?\s*[(\"']*([{letters.lower()}])[)\"']*\s*\.?\s*$",
        text,
    ) or re.findall(rf"{OPEN}\s*\(?([{letters.lower()}])\)?\s*{CLOSE}", text)
    return (lower[-1].upper(), "declared") if lower else None


def _is_word(cue: Cue, text: str) -> bool:
    """Whether the cue's only letter is the article A or the pronoun I."""
    following = text[cue.end :]
    if cue.letters == "I":
        return PRONOUN.match(following) is not None
    return cue.letters == "A" and NO_ARTICLE.match(following) is not None


def _is_plural(text: str, cue: Cue) -> bool:
    """Whether "options A, B and C" only speaks of several, which commits to none of them."""
    before = text[: cue.start].rstrip("( ")
    return (
        re.search(r"\b(?:options|choices|select|choose|pick|from)$", before, re.IGNORECASE)
        is not None
    )


def _names_other(following: str, letter: str, choices: Mapping[str, str]) -> bool:
    """Whether the text right after a letter is another option's: "(A) no" where A is yes."""
    head = re.split(r"[.;,](?:\s|$)|\n", following.lstrip(" \t)]}:.\"'"), maxsplit=1)[0]
    named = equal_option(head, option_texts(choices))
    return named is not None and named != letter


def _option_after(text: str, choices: Mapping[str, str]) -> str | None:
    """The option whose text begins here, as in "Answer: A blue car"."""
    start = normal(text)
    named = [
        letter
        for letter, option in option_texts(choices).items()
        if re.match(rf"{re.escape(option)}(?!\w)", start)
    ]
    return named[0] if len(named) == 1 else None


def _without_lists(text: str, letters: str) -> str:
    """The text without the starts of lines that list options, two or more in a row."""
    start = r"^[ \t]*(?:[-\u2022][ \t]*)?"
    label = (
        rf"{start}(?:(?i:option|choice)[ \t]+\(?([{letters}])(?!\w)|\(?([{letters}])[).:](?!\w))"
    )
    items = [(m.span(), m[1] or m[2]) for m in re.finditer(label, text, re.MULTILINE)]
    follows = [ord(b[1]) == ord(a[1]) + 1 for a, b in itertools.pairwise(items)]
    in_row = [before or after for before, after in itertools.pairwise([False, *follows, False])]
    for (span, _), is_item in reversed(list(zip(items, in_row, strict=False))):
        if is_item:
            text = text[: span[0]] + "\x00" * (span[1] - span[0]) + text[span[1] :]
    return text


def _last_line(text: str, choices: Mapping[str, str]) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    match = re.fullmatch(rf"[-=>\u2192 ]*({item(''.join(choices))})[.:)]*\s*(.*)", lines[-1])
    if match is None:
        return None
    letter, rest = _in_order(match[1], "".join(choices)), normal(match[2])
    return letter if not rest or rest == option_texts(choices).get(letter) else None


def _lead(text: str, choices: Mapping[str, str]) -> str | None:
    letters = "".join(choices)
    if re.match(
        rf"\([{letters}]\)\s+(?i:is|are|was|has|and|or|nor|would|can|could|does|shows?|to)\b", text
    ):
        return None  # (A) is the subject of a sentence
    match = re.match(
        rf"(?:(?i:the\s+)?(?i:option|choice|answer)\s+)?({item(letters)})"
        r"(?:[.:)]+\s+\S|\s*[.:)]*\s*\n|,\s*(?:because|since|as)\b|\s+(?:because|since)\b|\.(?=[^\x00-\x7f]))",
        text,
    )
    if match is None or is_ruled_out(text, 0, match.end(1)):
        return None
    if match[1] == "A" and text[1:2] == ":" and option_texts(choices):
        return None  # "A:" is short for "Answer:"
    if len(set(re.findall(rf"\(([{letters}])\)", text))) > 1:
        return None  # (A) x (B) y: the options again
    letter, others = _in_order(match[1], letters), rf"^[ \t]*{item(letters)}[).:]\s+\S"
    is_list = len(re.findall(others, text, re.MULTILINE)) > 1
    return None if is_list or _names_other(text[match.end(1) :], letter, choices) else letter


def _tail(text: str, choices: Mapping[str, str]) -> str | None:
    """The letter that ends the last sentence, in brackets, after a noun or after a concluding word."""
    letters, has_texts = "".join(choices), bool(option_texts(choices))
    sentence = re.split(r"(?<=[.!?])\s+|\n", text.strip())[-1]
    nouns = (
        "option|choice|answer"
        if has_texts
        else "option|choice|answer|figure|image|diagram|letter|is|be"
    )
    cue = rf"(?i:\b(?:so|thus|therefore|hence|but|{nouns})\b|=>|\u2192)[\s:,]*"
    match = re.search(rf"(?:{cue}|(?=[(\[]))({item(letters)})\s*[.!)\"']*$", sentence)
    if match is None:
        return None
    before = sentence[: match.start(1)]
    others = [
        one
        for one in re.finditer(
            rf"(?<![A-Za-z0-9'])[{letters}](?![A-Za-z0-9']|(?<=[AI]) [a-z])", before
        )
        if not is_ruled_out(before, one.start(), one.end())
    ]
    if others or is_ruled_out(sentence, match.start(1), match.end(1)):
        return None
    return _in_order(match[1], letters)


def _paren(text: str, letters: str, is_set: bool) -> str | None:
    """Of a text of one sentence: its letters in parentheses that nothing rules out."""
    if not is_one_sentence(text):
        return None
    named = [
        match[1]
        for match in re.finditer(rf"(?<!\w)\(([{letters}])\)", text)
        if not is_ruled_out(text, match.start(), match.end())
    ]
    group = "".join(dict.fromkeys(named))
    is_list = is_set and len(group) < len(letters)
    return group if len(group) == 1 or (is_list and group) else None


def _only_list(text: str, letters: str) -> str | None:
    """Of a text of one sentence: the letters of its only list, where it names no others."""
    if not is_one_sentence(text):
        return None
    groups = [
        match
        for match in re.finditer(several(letters), text)
        if len(_in_order(match[0], letters)) > 1 or not _is_article(text, match.end(), match[0])
    ]
    if len(groups) != 1 or re.search(r"\bor\b", groups[0][0]):
        return None
    group = _in_order(groups[0][0], letters)
    if len(group) < 2 or is_ruled_out(text, groups[0].start(), groups[0].end()):
        return None
    return group


def _is_article(text: str, end: int, letter: str) -> bool:
    return letter in "AI" and re.match(r"\s+[a-z]", text[end:]) is not None


def _in_order(text: str, letters: str) -> str:
    """The letters of a text, each once, in its order."""
    return "".join(dict.fromkeys(re.findall(rf"[{letters}]", re.sub(r"\b(?:and|or)\b", "", text))))


def _check(choices: Mapping[str, str]) -> None:
    wrong = [letter for letter in choices if not re.fullmatch(r"[A-Z]", letter)]
    if wrong or not choices:
        raise ValueError(
            f"choices must map capital letters to option texts, got keys {list(choices)!r}"
        )
