"""Whether a text turns against an option that it names."""

import re

RULED_OUT = re.compile(
    r"\)?[\s:-]*(?:(?:(?:is|are|was|were|can|could|must|does|do|has|be|been|seems?|looks?|both|"
    r"all|also|clearly|definitely|obviously|therefore)\s+)+not\b|"
    r"(?:(?:is|are|was|were|can|could|must|has|be|been|seems?|looks?|both|all|also|clearly|definitely|"
    r"obviously|therefore)\s+)*"
    r"(?:cannot|can't|isn't|aren't|wasn't|doesn't|don't|couldn't|never|wrong|incorrect|false|"
    r"ruled out|eliminated|excluded|impossible|invalid|unlikely|\u4e0d|\u9519)"
    r"(?:\b|(?=[\u4e00-\u9fff])))",
    re.IGNORECASE,
)
"""What follows a letter that the text rejects."""
NEGATION = re.compile(
    r"\b(?:not|no|nor|neither|never|cannot|\w+n't|except|excluding|excludes?|without|unlike|"
    r"rather than|instead of|other than|(?:all|any|\w+thing) but|rules? out|ruling out|"
    r"eliminates?|eliminating|rejects?|wrong|incorrect|false)\b|\u4e0d|\u6392\u9664|\u9519",
    re.IGNORECASE,
)
"""What turns a clause against the option that it names."""
NEAR_WORDS = 3
LIST_END = re.compile(
    r"(?:\(?[A-J]\)?(?:,\s*and|,\s*or|,|\s+and\s+|\s+or\s+|\s+nor\s+|\s*[&/])\s*\(?)+$"
)
LIST_START = re.compile(r"(?:\)?\s*(?:,\s*and|,\s*or|,|and|or|nor|&|/)\s*\(?[A-J](?![A-Za-z0-9]))*")


def turns(clause: str) -> bool:
    """Whether a clause turns against what follows it; the "but" of "not A but B" turns back."""
    after_but = re.split(r"(?<!all )(?<!thing )(?<!any )\bbut\b", clause, flags=re.IGNORECASE)[-1]
    return NEGATION.search(after_but) is not None


def is_negated(before: str) -> bool:
    """Whether the last words before a cue's letter negate it: "I do not think the answer is".

    Words before "answer is" beyond NEAR_WORDS do not count: "I see no dog so the answer is".
    """
    clause = _clause(LIST_END.sub("", before))
    cue = re.search(r"\b(?:answer|option|choice|letter)s?\b[^,]*$", clause, re.IGNORECASE)
    if cue is None:
        return turns(clause)
    near = " ".join(clause[: cue.start()].split()[-NEAR_WORDS:])
    return turns(near) or turns(clause[cue.start() :])


def is_called_wrong(following: str) -> bool:
    """Whether what follows a letter, or the list that it begins, rejects it: "A and B are wrong"."""
    match = LIST_START.match(following)
    return RULED_OUT.match(following, match.end() if match else 0) is not None


def is_ruled_out(text: str, start: int, end: int) -> bool:
    """Whether the clause before text[start:end] negates it, or what follows does."""
    before = LIST_END.sub("", text[:start])
    return turns(_clause(before)) or is_called_wrong(text[end:])


def _clause(text: str) -> str:
    """The last clause of a text."""
    return re.split(r"[.,;:!?\n]|\b(?:so|thus|therefore|hence|because|since|then)\b", text)[-1]
