"""Which option a completion chose: strict precedence, never a guess.

The rules, in order; the name of the one that fired is returned for auditing:
    unclosed_think  a <think> that never ends: nothing was answered
    bare            the text is a letter and nothing else
    declared        the last "answer | option | choice [is] [:] X" that is not called wrong; "options A,
                    B and C" is none
    ambiguous       such a declaration that names several letters: "answer: A or B"
                    (from here on lines that list options, "Option A: x", "(B) y", do not count)
    lead            the text starts with "X) ..." or "X. ..." and no other line does so
    paren           the last letter in parentheses that nothing around it rules out
    tail            the text ends in "so | thus | therefore | hence ... X", no negation between
    text            the text is an option's, or exactly one option's text occurs and none is negated
    unparsed        none of these
"""

import itertools
import re
from collections.abc import Mapping

from .answers import final_answer

CUE = r"(?:(?i:\b(?:answers?|options?|choices?))|\u7b54\u6848)"
LINK = (
    r"\s*(?:(?i:is|are|would be|should be|must be|will be|\u4e3a|\u662f))?\s*[:=\uff1a]?\s*"
    r"(?:(?i:clearly|definitely|most likely|likely|probably|therefore|thus)\s+)?"
)
PRONOUN = r"(?!'|\s+(?:think|believe|guess|am|would|will|choose|pick|see|can|cannot|have|do|was)\b)"
"""What must not follow a capital I that is an option's letter."""
RULED_OUT = (
    r"\)?[\s:-]*(?i:(?:(?:is|are|was|were|can|could|must|does|do|has|be|been|seems?|looks?|both|"
    r"all|also|clearly|definitely|obviously|therefore)\s+)+not\b|"
    r"(?:(?:is|are|was|were|can|could|must|has|be|been|seems?|looks?|both|all|also|clearly|definitely|"
    r"obviously|therefore)\s+)*"
    r"(?:cannot|can't|isn't|aren't|wasn't|doesn't|don't|couldn't|never|wrong|incorrect|false|"
    r"ruled out|eliminated|excluded|impossible|invalid|unlikely)\b)"
)
"""What follows a letter that the text rejects."""
NEGATION = re.compile(
    r"\b(?:not|no|nor|neither|never|cannot|\w+n't|except|excluding|excludes?|without|unlike|"
    r"rather than|instead of|other than|(?:all|any|\w+thing) but|rules? out|ruling out|"
    r"eliminates?|eliminating|rejects?|wrong|incorrect|false)\b",
    re.IGNORECASE,
)
"""What turns a clause against the option that it names."""
NEAR_WORDS = 3
LETTER, AND = r"[A-J](?!['\u2019]?[A-Za-z0-9])", r",\s*and|,\s*or|,|and|or|nor|&|/"
LISTED = (
    r"\(([A-J])\)[ \t]*([^\n(]+)",
    r"^[ \t]*([A-J])[.):][ \t]*(\S[^\n]*)",
    r"(?:^|,|:)[ \t]*([A-J])[:.][ \t]*([^\n,]+)",
)
"""How questions list their options: `(A) x`, a line `A. x`, and `A: x, B: y`."""


def extract_choice(text: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    """(letter, rule), or (None, rule) when the text does not say which option it takes.

    `choices` maps capital letters to option texts, which may be empty where only letters count.
    Lower-case letters count when they are the whole text or end a declaration.

    Raises:
        ValueError: no choices, or a key that is not one capital letter.
    """
    _check(choices)
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    return _extract(_plain(answer), choices)


def extract_choices(text: str, choices: Mapping[str, str]) -> tuple[frozenset[str] | None, str]:
    """(set of letters, rule) for questions that may have several right options.

    A list is letters run together or separated by commas, slashes, "and" or "&". Where no list is
    declared the rules of `extract_choice` give a set of one.
    """
    _check(choices)
    answer = final_answer(text)
    if answer is None:
        return None, "unclosed_think"
    answer = _plain(answer)
    item, several = _items(choices)
    if re.fullmatch(rf"{several}\s*[.:]?", answer):
        return _set(answer, choices), "bare"
    declared = [
        match[1]
        for match in re.finditer(rf"{CUE}{LINK}({several})(?!['\u2019]?[A-Za-z0-9])", answer)
        if not _is_declaration_ruled_out(answer, match.start(), match.end(1))
    ]
    if declared:
        last = rf"{re.escape(declared[-1])}\s*or\s+{item}(?!['\u2019]?[A-Za-z0-9])"
        if re.search(rf"{CUE}{LINK}{last}", answer):
            return None, "ambiguous"
        return _set(declared[-1], choices), "declared"
    bracketed = rf"\({_any(choices)}\)(?:\s*(?:,\s*and|,|and|&)\s*\({_any(choices)}\))+"
    listed = [
        match[0]
        for match in re.finditer(bracketed, answer)
        if not _is_ruled_out(answer, match.start(), match.end())
    ]
    if listed:
        return _set(listed[-1], choices), "paren"
    letter, rule = _extract(answer, choices)
    return (None if letter is None else frozenset(letter)), rule


def options_in(question: str) -> dict[str, str]:
    """{letter: text} of the options that a question lists, in the forms of LISTED; {} without any.

    A list starts at A and has no gap, so that a stray "B." is none.
    """
    for pattern in LISTED:
        found = {m[1]: m[2].strip(" ,;") for m in re.finditer(pattern, question, re.MULTILINE)}
        letters = "ABCDEFGHIJ"[: len(found)]
        if len(found) > 1 and "".join(found) == letters:
            return found
    return {}


def _plain(text: str) -> str:
    """`\\boxed{X}` and `<answer>X</answer>` as declarations, and no markup."""
    text = re.sub(r"<answer>(.*?)</answer>", r" answer is \1 ", text, flags=re.DOTALL)
    text = re.sub(
        r"\\boxed\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}|([^{}]*))\s*\}",
        lambda match: f" answer is {match[1] or match[2] or ''} ",
        text,
    )
    return re.sub(r"[*_`$]", "", text).strip()


def _list_items(text: str, choices: Mapping[str, str]) -> list[range]:
    """Places of lines that list options, as `- Option A: x` or `(A) x`: two or more in a row."""
    letter = _any(choices)
    start = r"^[ \t]*(?:[-\u2022][ \t]*)?"
    item = rf"{start}(?:(?i:options?|choices?)[ \t]+\(?({letter})(?!\w)|\(?({letter})[).:](?!\w))"
    found = [(m.span(), m[1] or m[2]) for m in re.finditer(item, text, re.MULTILINE)]
    follows = [ord(b[1]) == ord(a[1]) + 1 for a, b in itertools.pairwise(found)]
    follows = [False, *follows, False]
    in_row = [before or after for before, after in itertools.pairwise(follows)]
    return [range(*span) for (span, _), is_item in zip(found, in_row, strict=False) if is_item]


def _extract(text: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    bare = re.fullmatch(rf"\(?\s*({_any(choices, lower=True)})\s*[).:]?", text)
    if bare:
        return bare[1].upper(), "bare"
    for item in _list_items(text, choices):
        text = text[: item.start] + "\n" * len(item) + text[item.stop :]
    found = _declared(text, choices)
    if found is not None:
        return found
    for rule, read in (("lead", _lead), ("paren", _paren), ("tail", _tail), ("text", _by_text)):
        letter = read(text, choices)
        if letter is not None:
            return letter, rule
    return None, "unparsed"


def _declared(text: str, choices: Mapping[str, str]) -> tuple[str | None, str] | None:
    pattern = rf"{CUE}{LINK}\(?({_any(choices)})(?!['\u2019]?[A-Za-z0-9])"
    found = [
        match
        for match in re.finditer(pattern, text)
        if not _is_pronoun(match[1], text[match.end() :])
        and not _is_listing(match[0], text[match.end() :])
        and not _is_declaration_ruled_out(text, match.start(), match.end())
    ]
    if not found:
        lower = re.findall(rf"{CUE}{LINK}\(?({_any(choices).lower()})\)?\s*\.?\s*$", text)
        return (lower[-1].upper(), "declared") if lower else None
    last = found[-1]
    rest = text[last.end() :]
    other = re.match(
        rf"\)?\s*(?:\bor\b|\band\b|/|,|&)\s*\(?({_any(choices)})(?!['\u2019]?[A-Za-z0-9])", rest
    )
    if other and not _is_pronoun(other[1], rest[other.end() :]):
        return None, "ambiguous"
    letter = _after_article(rest, choices) if last[1] == "A" else None
    return letter or last[1], "declared"


def _lead(text: str, choices: Mapping[str, str]) -> str | None:
    starts = re.findall(rf"^\s*\(?({_any(choices)})[).:]\s+\S", text, re.MULTILINE)
    lead = re.match(rf"\(?({_any(choices)})[).:]\s+\S", text)
    if not lead or len(starts) > 1 or _is_ruled_out(text, 0, lead.end() - 1):
        return None
    return lead[1]


def _paren(text: str, choices: Mapping[str, str]) -> str | None:
    found = [
        match[1]
        for match in re.finditer(rf"\(({_any(choices)})\)", text)
        if not _is_ruled_out(text, match.start(), match.end())
    ]
    return found[-1] if found else None


def _tail(text: str, choices: Mapping[str, str]) -> str | None:
    letter = _any(choices)
    cue = r"\b(?:so|thus|therefore|hence)\b"
    found = re.search(rf"{cue}([^.\n]*?)\b({letter})\s*[.)]?\s*$", text)
    if found is None or _turns(found[1]) or re.search(rf"\b{letter}\b", found[1]):
        return None
    return found[2]


def _by_text(text: str, choices: Mapping[str, str]) -> str | None:
    """Options of one letter are left out: "a" is an article and "B" the name of another option."""
    options = {
        letter: plain.casefold()
        for letter, plain in ((key, _plain(option)) for key, option in choices.items())
        if plain and not re.fullmatch(r"[A-Za-z]", plain)
    }
    text = text.casefold()
    whole = [letter for letter, option in options.items() if option == text.strip(" .")]
    if len(whole) == 1:
        return whole[0]
    places = {
        letter: [m.start() for m in re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)", text)]
        for letter, option in options.items()
    }
    named = [letter for letter, starts in places.items() if starts]
    if len(named) != 1 or any(_turns(_clause(text[:at])) for at in places[named[0]]):
        return None
    return named[0]


def _clause(text: str) -> str:
    """What stands at the end of a text in the same clause."""
    return re.split(r"[.,;:!?\n]|\b(?:so|thus|therefore|hence|because|since|then)\b", text)[-1]


def _is_ruled_out(text: str, start: int, end: int) -> bool:
    """Whether the clause before a letter negates it, or what follows (after a list of letters) does."""
    before = re.sub(rf"(?:\(?{LETTER}\)?\s*(?:{AND})\s*\(?)+$", "", text[:start])
    return _turns(_clause(before)) or _is_called_wrong(text[end:])


def _is_declaration_ruled_out(text: str, start: int, end: int) -> bool:
    """As `_is_ruled_out`, but only the last words before "answer" count: "I do not think the answer is"."""
    words = _clause(text[:start]).split()[-NEAR_WORDS:]
    return _turns(" ".join(words)) or _is_called_wrong(text[end:])


def _is_called_wrong(rest: str) -> bool:
    joined = re.match(rf"(?:\)?\s*(?:{AND})\s*\(?{LETTER})*", rest)
    return re.match(RULED_OUT, rest[joined.end() if joined else 0 :]) is not None


def _turns(before: str) -> bool:
    """Whether a clause turns against what follows it; the "but" of "not A but B" turns back."""
    after_but = re.split(r"(?<!all )(?<!thing )(?<!any )\bbut\b", before, flags=re.IGNORECASE)[-1]
    return NEGATION.search(after_but) is not None


def _is_pronoun(letter: str, rest: str) -> bool:
    return letter == "I" and re.match(PRONOUN, rest) is None


def _is_listing(match: str, rest: str) -> bool:
    """Whether "options A, B and C" speaks of several, which declares none of them."""
    is_plural = re.match(r"(?i:answers|options|choices)\b", match) is not None
    return is_plural and re.match(rf"\)?\s*(?:{AND})\s*\(?{LETTER}", rest) is not None


def _after_article(rest: str, choices: Mapping[str, str]) -> str | None:
    """The option whose text follows "A" as in "Answer: A blue car", if there is one."""
    found = [
        letter
        for letter, option in choices.items()
        if option.strip()
        and re.match(rf"\s+{re.escape(_plain(option))}(?!\w)", rest, re.IGNORECASE)
    ]
    return found[0] if len(found) == 1 else None


def _items(choices: Mapping[str, str]) -> tuple[str, str]:
    """Patterns of one letter, brackets optional, and of a list of them."""
    item = rf"\(?\s*{_any(choices)}\s*\)?"
    return item, rf"{item}(?:(?:\s*[,;/&]\s*(?:and\s+)?|\s+and\s+|\s*){item})*"


def _any(choices: Mapping[str, str], *, lower: bool = False) -> str:
    letters = "".join(choices)
    return f"[{letters}{letters.lower()}]" if lower else f"[{letters}]"


def _set(text: str, choices: Mapping[str, str]) -> frozenset[str]:
    return frozenset(re.findall(_any(choices), text))


def _check(choices: Mapping[str, str]) -> None:
    wrong = [letter for letter in choices if not re.fullmatch(r"[A-Z]", letter)]
    if wrong or not choices:
        raise ValueError(
            f"choices must map capital letters to option texts, got keys {list(choices)!r}"
        )
