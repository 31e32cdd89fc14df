"""What the strong model is asked: the wording of both passes, per kind of annotation.

The paper (its section on data, and Fig. 13, a picture) states what is asked for, not in which
words. `{question}` holds the choices too, `{answer}` a line with the known answer or nothing,
`{places}` how coordinates are written, `{annotation}` the first pass's result.
"""

from dataclasses import dataclass

RULES = (
    "You write training data. Reply with one JSON value and nothing else: no explanation, "
    "no code fence."
)
ANSWER = "Known answer, for your eyes only: {answer}\n"
NO_DISCLOSURE = (
    "Never state the answer, nor its letter, nor a result from which it can be read off directly."
)
PLACES = {
    "relative": (
        "Coordinates are integers from 0 to 1000, relative to the width and height of the picture"
    ),
    "fraction": "Coordinates are fractions from 0 to 1 of the picture's width and height",
    "pixels": "Coordinates are integer pixels of the picture as given ({sizes})",
}
CHECK = (
    "Another annotator wrote training data for a question. Judge it strictly.\n"
    "Question:\n{question}\n{answer}Annotation:\n{annotation}\n\n{criteria}\n"
    'Reply with one JSON object and nothing else: {"good": true or false, "reason": "one sentence"}'
)
REPAIR = (
    "That cannot be used. {reason}\nWrite it anew, all of it: one JSON value of the form asked for "
    "and nothing else."
)
"""Follows a bad reply: at temperature 0 the same question alone would get the same reply."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Both passes of one kind."""

    write: str
    """The first pass: writes the annotation."""
    criteria: str
    """What the second pass must find true."""


_LIST = 'Form: ["...", "..."]'
_TAIL = "\n\nQuestion:\n{question}\n{answer}"

WORDINGS: dict[str, Wording] = {
    "boxes": Wording(
        write=(
            f"{RULES}\nMark every object in the picture that one must look at to answer the "
            "question, and no other: a tight box and a short label that names the object.\n"
            "{places}; x grows to the right, y downwards.\n"
            'Form: [{"bbox_2d": [x1, y1, x2, y2], "label": "..."{image}}]' + _TAIL
        ),
        criteria=(
            "Good means: every box is tight around the object that its label names; every object "
            "needed for the question has a box; no box is beside the point. {places}."
        ),
    ),
    "hints": Wording(
        write=(
            f"{RULES}\nDecompose the way to the answer into two to six short steps that say what "
            "to do or to look at, in order. Do not carry any step out: no intermediate results. "
            f"{NO_DISCLOSURE}\n{_LIST}{_TAIL}"
        ),
        criteria=(
            "Good means: the steps are correct, complete and in order; none carries out its step "
            "or gives an intermediate result; the answer cannot be read off."
        ),
    ),
    "summary": Wording(
        write=(
            f"{RULES}\nSummarise in one or two sentences how to approach the question. "
            f"{NO_DISCLOSURE}\n{_LIST}{_TAIL}"
        ),
        criteria="Good means: the approach is correct, and the answer cannot be read off.",
    ),
    "solution": Wording(
        write=(
            f"{RULES}\nSolve the question in short steps, each with what comes out of it. The last "
            f"step states the answer.\n{_LIST}{_TAIL}"
        ),
        criteria="Good means: every step is correct and follows; the last one states the answer.",
    ),
    "captions": Wording(
        write=(
            f"{RULES}\nDescribe the picture in one to three sentences, with what matters for the "
            f"question. Do not answer the question.\n{_LIST}{_TAIL}"
        ),
        criteria="Good means: every statement is true of the picture and bears on the question.",
    ),
}
