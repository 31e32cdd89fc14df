"""AutoLogi's puzzles: an arrangement is right when the puzzle's own functions say so.

A row's `code` defines `inputs_check`, whether an arrangement has the asked form, and
`constraint_list`, functions that all must hold (arXiv 2502.16906). They run in the sandbox. An
arrangement is a Python or JSON literal, often with sets, that ends the answer.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dopd_vlm.types import Sample

from ..scoring.answers import Score, final_answer, unread
from ..scoring.sandbox import execute

BLOCK = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
CHECK = """{code}

_found = {found!r}
if not inputs_check(_found):
    raise AssertionError("not of the asked form")
for _number, _holds in enumerate(constraint_list, start=1):
    if not _holds(_found):
        raise AssertionError(f"constraint {{_number}}")
"""
SEARCH = """{code}


def verify_function(inputs, inputs_check, constraint_list):
    if inputs_check(inputs) and all(one(inputs) for one in constraint_list):
        print(repr(inputs))
        raise SystemExit
    return False


{traverse}

count_valid_arrangements()
"""
LITERAL_NAMES = {"true": "True", "false": "False", "null": "None"}


def score_arrangement(text: str, sample: Sample, *, timeout: float = 20.0) -> Score:
    """Whether the text's last arrangement has the asked form and meets every constraint.

    It is the last fenced block, else the last pair of outer brackets, else of one kind of bracket.
    """
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    arrangement = read_arrangement(answer)
    if arrangement is None:
        return unread()
    code = "\n\n".join(json.loads(sample.answer).values())
    ended = execute(CHECK.format(code=code, found=arrangement), timeout=timeout)
    return Score(correct=float(ended.passed), extracted=repr(arrangement), rule=ended.reason)


def read_arrangement(text: str) -> Any:
    """The literal of the text, None without one: Python's or JSON's, perhaps after `name =`."""
    for candidate in _candidates(text):
        plain = re.sub(r"//[^\n]*", "", candidate).strip()
        for form in (plain, plain.partition("=")[2].strip()):
            value = _literal(form)
            if isinstance(value, dict | list | tuple | set):
                return value
    return None


def arrangement_gold(raw: Any) -> str:
    """A row's `code` as JSON: the check of the form and the constraints.

    Raises:
        ValueError: one of the two is missing.
    """
    raw = json.loads(raw) if isinstance(raw, str) else raw
    names = {"check": "Inputs_Check_code", "constraints": "Constraint_List_code"}
    if not isinstance(raw, Mapping) or not all(raw.get(name) for name in names.values()):
        raise ValueError(f"code needs {' and '.join(names.values())}, got {raw!r}")
    return json.dumps({key: str(raw[name]) for key, name in names.items()}, ensure_ascii=False)


def solve(raw: Mapping[str, str], *, timeout: float = 60.0) -> str | None:
    """A right arrangement as text, by the row's own search through all of them; None without one."""
    code = "\n\n".join([raw["Inputs_Check_code"], raw["Constraint_List_code"]])
    ended = execute(SEARCH.format(code=code, traverse=raw["Traverse_code"]), timeout=timeout)
    return ended.stdout.strip() or None


def _candidates(text: str) -> Iterator[str]:
    yield from BLOCK.findall(text)[-1:]
    for brackets in ("{}[]", "{}", "[]"):
        candidate = _last_bracketed(text, brackets)
        if candidate:
            yield candidate


def _last_bracketed(text: str, brackets: str) -> str | None:
    """The last outermost pair of brackets, given as `opening closing ...`, with all between them."""
    depth, start, last = 0, 0, None
    for place, character in enumerate(text):
        if character in brackets[::2]:
            start = start if depth else place
            depth += 1
        elif character in brackets[1::2] and depth:
            depth -= 1
            last = last if depth else text[start : place + 1]
    return last


def _literal(text: str) -> Any:
    """The value of a Python or JSON literal; None when the text is neither."""
    named = re.sub(r"\b(?:true|false|null)\b", lambda match: LITERAL_NAMES[match[0]], text)
    for form, read in ((text, ast.literal_eval), (text, json.loads), (named, ast.literal_eval)):
        try:
            return read(form)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
