"""Which option a completion chose: strict precedence, never a guess.

The rules, in order; the name of the one that fired is returned for auditing:
    unclosed_think  a <think> that never ends: nothing was answered
    bare            the text is a letter and nothing else
    declared        the last "answer | option | choice [is] [:] X"
    ambiguous       such a declaration that names two letters: "answer: A or B"
    lead            the text starts with "X) ..." or "X. ..."
    paren           the last letter in parentheses that no "not" precedes
    tail            the text ends in "so | thus | therefore | hence ... X"
    text            exactly one option's text occurs
    unparsed        none of these
"""

import re
from collections.abc import Mapping

CUE = r"(?:(?i:\b(?:answers?|options?|choices?))|\u7b54\u6848)"
LINK = r"\s*(?:(?i:is|are|\u4e3a|\u662f))?\s*[:=\uff1a]?\s*"
PRONOUN = r"(?!'|\s+(?:think|believe|guess|am|would|will|choose|pick|see|can|cannot|have|do|was)\b)"
"""What must not follow a capital I that is an option's letter."""
NEGATION = r"(?<!\bnot )(?<!\bnor )(?<!\bneither )(?<!\bnever )"


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
    letters = _letters(choices)
    item = rf"\(?\s*[{letters}]\s*\)?"
    several = rf"{item}(?:(?:\s*[,;/&]\s*(?:and\s+)?|\s+and\s+|\s*){item})*"
    if re.fullmatch(rf"{several}\s*[.:]?", answer):
        return _set(answer, letters), "bare"
    if re.search(rf"{CUE}{LINK}{item}\s*or\s+{item}(?![A-Za-z0-9'])", answer):
        return None, "ambiguous"
    declared = re.findall(rf"{CUE}{LINK}({several})(?![A-Za-z0-9'])", answer)
    if declared:
        return _set(declared[-1], letters), "declared"
    listed = re.findall(
        rf"{NEGATION}(\([{letters}]\)(?:\s*(?:,|and|&|,\s*and)\s*\([{letters}]\))+)", answer
    )
    if listed:
        return _set(listed[-1], letters), "paren"
    letter, rule = _extract(answer, choices)
    return (None if letter is None else frozenset(letter)), rule


def final_answer(text: str) -> str | None:
    """The text without its thinking; None when a <think> was opened and never closed."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]
    return None if "<think>" in text else text


def _plain(text: str) -> str:
    """`\\boxed{X}` as a declaration, and no markup."""
    text = re.sub(
        r"\\boxed\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}|([^{}]*))\s*\}",
        lambda match: f" answer is {match[1] or match[2] or ''} ",
        text,
    )
    return re.sub(r"[*_`$]", "", text).strip()


def _extract(text: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    letters = _letters(choices)
    bare = re.fullmatch(rf"\(?\s*([{letters}{letters.lower()}])\s*[).:]?", text)
    if bare:
        return bare[1].upper(), "bare"
    found = _declared(text, letters, choices)
    if found is not None:
        return found
    lead = re.match(rf"\(?([{letters}])[).:]\s+\S", text)
    if lead:
        return lead[1], "lead"
    parens = re.findall(rf"{NEGATION}\(([{letters}])\)", text)
    if parens:
        return parens[-1], "paren"
    tail = re.search(rf"\b(?:so|thus|therefore|hence)\b([^.\n]*?)\b([{letters}])\s*[.)]?\s*$", text)
    if tail and not re.search(r"\bnot\s*$", tail[1]):
        return tail[2], "tail"
    return _by_text(text, choices)


def _declared(text: str, letters: str, choices: Mapping[str, str]) -> tuple[str | None, str] | None:
    pattern = rf"{CUE}{LINK}\(?([{letters}])(?![A-Za-z0-9'])"
    found = [m for m in re.finditer(pattern, text) if not _is_pronoun(m[1], text[m.end() :])]
    if not found:
        lower = re.findall(rf"{CUE}{LINK}\(?([{letters.lower()}])\)?\s*\.?\s*$", text)
        return (lower[-1].upper(), "declared") if lower else None
    last = found[-1]
    rest = text[last.end() :]
    if re.match(rf"\)?\s*(?:or|/)\s*\(?[{letters}](?![A-Za-z0-9'])", rest):
        return None, "ambiguous"
    return (
        (_after_article(rest, choices) or last[1], "declared")
        if last[1] == "A"
        else (last[1], "declared")
    )


def _is_pronoun(letter: str, rest: str) -> bool:
    return letter == "I" and re.match(PRONOUN, rest) is None


def _after_article(rest: str, choices: Mapping[str, str]) -> str | None:
    """The option whose text follows "A" as in "Answer: A blue car", if there is one."""
    found = [
        letter
        for letter, option in choices.items()
        if option.strip()
        and re.match(rf"\s+{re.escape(_plain(option))}(?!\w)", rest, re.IGNORECASE)
    ]
    return found[0] if len(found) == 1 else None


def _by_text(text: str, choices: Mapping[str, str]) -> tuple[str | None, str]:
    found = [
        letter
        for letter, option in choices.items()
        if option.strip()
        and re.search(rf"(?<!\w){re.escape(_plain(option))}(?!\w)", text, re.IGNORECASE)
    ]
    return (found[0], "text") if len(found) == 1 else (None, "unparsed")


def _letters(choices: Mapping[str, str]) -> str:
    return "".join(choices)


def _set(text: str, letters: str) -> frozenset[str]:
    return frozenset(re.findall(rf"[{letters}]", text))


def _check(choices: Mapping[str, str]) -> None:
    wrong = [letter for letter in choices if not re.fullmatch(r"[A-Z]", letter)]
    if wrong or not choices:
        raise ValueError(
            f"choices must map capital letters to option texts, got keys {list(choices)!r}"
        )
