"""Phrases by which a text commits to an option, as patterns over plain text (`markup.plain`).

A mention ("Option C shows a key") is none of them. Each pattern has the group `letters`: one letter, or
a list as in "A, B and D". What speaks against a match is in `negation.py`.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .answers import normal
from .markup import CLOSE, OPEN
from .negation import is_called_wrong, is_negated

BEFORE = r"(?<![A-Za-z0-9\\'])"
AFTER = r"(?!['\u2019-]?[A-Za-z0-9])(?!\s*[=<>^](?!\s*=))"
"""A letter of a word, a name ("B-side") or a formula is no option."""
AND = r"(?:\s*,?\s*(?:\band\b|\bor\b|&)\s*|\s*[,;/]\s*|\s*(?:\u548c|\u6216|\u4e0e)\s*)"
THING = (
    r"(?:(?:the|an?|is|be)\s+)?(?:(?:option|choice|letter|answer|figure|image|diagram|picture|statement|"
    r"number|shape|graph|box|pattern|symbol|cube|net|design|label(?:l?ed)?)s?\s*:?\s+|\u9009\u9879|\u9009)?"
)
IS = (
    r"(?:is|are|would be|should be|must be|will be|has to be|have to be|appears to be|seems to be|"
    r"is likely|'s)"
)
ADVERBS = (
    r"(?:(?:clearly|definitely|most likely|likely|probably|therefore|thus|hence|indeed|simply|actually|"
    r"still|then|also|both|just|so)[\s,]+)*"
)
JUDGED = r"(?:correct|right|best|appropriate|accurate|suitable|proper|valid|intended|final)"
SHAPES = (
    r"(?:option|choice|answer|letter|figure|image|diagram|picture|shape|pattern|one|piece|box|cube|graph|"
    r"statement|symbol|tile|net|proposal|sequence|view|design|conclusion|response|solution)s?"
)
STOP = rf"(?=\s*(?:[.,;:!?)\]\n{OPEN}{CLOSE}\"'-]|$|\b(?:because|since|as|for|with|based|which|due)\b))"
REASON = re.compile(
    r"\b(?:because|since|whether|depends?|while|unless|where|when|if|though|although)\b",
    re.IGNORECASE,
)
REFUSAL = (
    r"(?:not (?:among|in|one of|listed|any|present|given|included|provided|available|clear|possible)|"
    r"none of|no correct|cannot be (?:determined|answered|found)|can't be (?:determined|answered)|"
    r"impossible|unknown|unclear|undetermined|indeterminate|not (?:enough|sufficient)|n/a\b|none\b)"
)


ONE, GROUP = "@one@", "@group@"
"""In PHRASES: a letter; a letter or list of letters, the group `letters` of the pattern."""
LINK = rf"\s*:?\s*(?i:{ADVERBS}{THING})(?:not\s+{ONE},?\s+but\s+(?i:{THING}))?"
WITHIN = rf"[^.:\n{CLOSE}{OPEN}]"
PHRASES = (
    # the answer to question 3 is (B)
    rf"(?i:\bans(?:wers?)?\b)(?:\s{WITHIN}{{0,80}}?(?<=\s)(?i:{IS})|(?i:'s\b)){LINK}{GROUP}",
    # Answer: B; answer choice: B
    rf"(?i:\bans(?:wers?)?\b\.?(?:\s+(?:choice|option|letter)s?)?)\s*(?::|=>?|[\u2013\u2014-]+)[\s:]*"
    rf"{LINK}{GROUP}",
    # Answer (B).
    rf"(?i:\bans(?:wers?)?\b\.?)\s+{LINK}{GROUP}(?=\s*(?:[.!\n?]|$|\bor\b))",
    # the correct option letter is B; the best choice: B
    rf"(?i:\b(?:{JUDGED}|missing|next|matching|closest|odd)\s+(?:\w+\s+){{0,2}}?{SHAPES})\b"
    rf"(?:{WITHIN}{{0,80}}?\s(?i:{IS})|[\s,:=-]){LINK}{GROUP}",
    # the figure that completes the pattern is B
    rf"(?i:\b{SHAPES}\s+(?:that|which|to)\s)[^.:\n]{{0,100}}?\s(?i:{IS}){LINK}{GROUP}{STOP}",
    # the option is B; the sequence of the boxes is A, B, C
    rf"(?i:\b(?:option|choice|selection|pick|response|conclusion|solution|sequence|order)s?)"
    rf"[^.:,\n]{{0,30}}?\s(?i:{IS}){LINK}{GROUP}{STOP}",
    # Solution: B; leaving B
    rf"(?i:\b(?:solution|result|conclusion|response|output|choice|selection|guess)\s*:|"
    rf"\bleav(?:es|ing)(?: us)?(?: with)?(?: only)?\s){LINK}{GROUP}{STOP}",
    # I choose B; we go with option B
    rf"(?i:\b(?:choos(?:e|ing)|chose|select(?:ed|ing)?|pick(?:ed|ing)?|go(?:ing)? with|opt(?:ing)? for|"
    rf"take|vote for|settle on|guess(?: is)?|say)\s+(?:that it is )?)(?i:{THING}){GROUP}{STOP}",
    # B is correct; option B must be the right answer
    rf"{GROUP}\s+(?i:is|are|seems|appears|must be|should be)\s+"
    rf"(?i:(?:indeed|clearly|definitely|also|therefore|thus|most|likely|probably|both|all|to be|the|an?|"
    rf"only|my|our|more)\s+)*(?i:{JUDGED}(?:\s+{SHAPES})?|answers?|odd one out|closest match)"
    rf"(?=\s*(?:[.,;:!)\n{OPEN}]|$|\b(?:because|since|as|for|to|among|based|given|and|in)\b))",
    # Choice B: yes
    rf"(?i:\b(?:option|choice|answer)\s+)(?P<letters>{ONE})\s*[:-]\s*(?i:yes|correct|right)\b",
    # It is B.
    rf"(?i:\b(?:it|this|that)(?:\s+(?:is|must be|should be|has to be)|'s)\s+)(?i:{ADVERBS}{THING}){GROUP}"
    r"(?=\s*(?:[.!\n]|$|,?\s*(?:because|since)\b))",
    # ... is: (B) its text
    rf"(?:(?i:\b(?:is|are|be))\s*:?|\u4e3a|\u662f)\s*(?=\()(?P<letters>{ONE})(?=[ \t]*[^\s.,;)])",
    # a whole box, tag or JSON field, perhaps followed by the option's text
    rf"{OPEN}\s*(?i:(?:the )?(?:final |correct )?(?:answer|option|choice)?(?: is)?)[\s:]*{GROUP}"
    rf"\s*(?:[.:)][^{CLOSE}]*)?{CLOSE}",
    rf"^[ \t]*####[ \t]*{GROUP}[ \t.]*$",
    # Chinese: the answer is B, so choose B
    r"(?:\u7b54\u6848|\u6b63\u786e(?:\u7684)?(?:\u9009\u9879|\u7b54\u6848)?(?:\u7684)?|\u6545\u9009|"
    r"(?<!\u4e0d)(?<!\u4e0d\u80fd)\u9009(?:\u62e9)?)"
    r"\s*(?:\u5e94\u8be5|\u5e94|\u5c31)?(?:\u662f|\u4e3a|\u9009\u62e9|\u9009)?"
    rf"(?:\u9009\u9879|\u9879)?\s*[:\]]?\s*{GROUP}",
    # Chinese: B is right
    rf"{GROUP}\s*(?:\u9879|\u9009\u9879)?\s*(?:\u662f)?(?<!\u4e0d)\u6b63\u786e(?:\u7684|\u7b54\u6848)?(?=[,.;\n]|$)",
)
"""Patterns of commitments, letters in capitals."""
REFUSALS = (
    rf"(?i:\banswers?\b[^.:\n{OPEN}]{{0,40}}?(?:\s(?:is|are)|:|\s)\s*{REFUSAL})",
    rf"{OPEN}\s*(?i:{REFUSAL})[^{CLOSE}]*{CLOSE}",
)
"""The answer is not among the options; a box of "none of the above"."""


@dataclass(frozen=True, kw_only=True)
class Cue:
    """A place where a text commits to letters, or refuses to."""

    start: int
    end: int
    letters: str
    """As written; empty for a refusal."""


def cues(text: str, options: Mapping[str, str]) -> list[Cue]:
    """The cues of a plain text that nothing speaks against, in order; `options` are {letter: text}."""
    matches = sorted(_matches(text, "".join(options)), key=lambda cue: (cue.start, cue.end))
    return [cue for cue in matches if not cue.letters or not _is_dismissed(text, cue, options)]


def item(letters: str) -> str:
    """Pattern of one letter, in brackets or quotes or not."""
    return rf"[\"'(\[{{]*{BEFORE}[{letters}]{AFTER}(?:[\"')\]}}]+(?![A-Za-z]))?"


def several(letters: str) -> str:
    """Pattern of a letter, letters run together, or a list of letters."""
    run = rf"{BEFORE}[{letters}]{{2,}}{AFTER}"
    return rf"(?:{run}|(?:{item(letters)})(?:{AND}(?:{item(letters)}))*)"


@functools.cache
def _patterns(letters: str) -> list[re.Pattern[str]]:
    one, group = item(letters), rf"(?P<letters>{several(letters)})"
    return [
        re.compile(phrase.replace(ONE, one).replace(GROUP, group), re.MULTILINE)
        for phrase in PHRASES
    ]


def _matches(text: str, letters: str) -> Iterator[Cue]:
    for pattern in REFUSALS:
        for match in re.finditer(pattern, text):
            yield Cue(start=match.start(), end=match.end(), letters="")
    for pattern in _patterns(letters):
        for match in pattern.finditer(text):
            start, end = match.span("letters")
            if not REASON.search(text, match.start(), start):
                yield Cue(start=start, end=end, letters=match["letters"])


def _is_dismissed(text: str, cue: Cue, options: Mapping[str, str]) -> bool:
    """Whether the sentence around a cue negates it, supposes it, or only lists the options."""
    sentence = re.split(r"[.;!?](?:\s|$)|\n", text[: cue.start])[-1]
    own_words = re.split(r"\b(?:so|thus|therefore|hence|but)\b", sentence)[-1]
    if re.search(r"\b(?:if|suppose|assum\w+|whether)\b", own_words, re.IGNORECASE):
        return True
    following = text[cue.end :]
    own_text = options.get(cue.letters.strip("()[] "), "")
    if own_text and normal(following.lstrip(")].: ")).startswith(own_text):
        return is_negated(own_words)
    if re.match(r"[\s)]*(?:would be|could be|might be|if\b|were\b|or not\b)", following):
        return True
    if re.match(r"\)?[^\n()]{0,40}\n?\s*\([B-J]\)", following) and "(" in text[cue.start : cue.end]:
        return True  # (A) 2006 (B) 2007: the options again
    return is_negated(own_words) or is_called_wrong(following)
