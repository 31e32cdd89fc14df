"""LiveBench's rule-scored questions: one rule a task, none of them asks a judge.

The rules are read from the published descriptions, in our own words; official numbers come from
LiveBench's own program on an export (`--export livebench`).
"""

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from dopd_vlm.types import Sample

from .answers import Score, declared_answer, final_answer, last_number, last_object, normal, unread
from .math_answers import score_math

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
Rule = Callable[[str, str], float | None]
"""(completion without thinking, gold) -> correctness, None when no answer was found."""


def score_livebench(text: str, sample: Sample) -> Score:
    """The rule of the question's task; gold is JSON with `task` and `ground_truth`.

    Raises:
        ValueError: a task that has no rule here, naming those that have.
    """
    gold = json.loads(sample.answer)
    task, truth = gold["task"], gold["ground_truth"]
    if task not in RULES:
        raise ValueError(f"LiveBench task {task!r} is not scored here; known: {', '.join(RULES)}")
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    if task == "AMPS_Hard":
        return score_math(answer, dataclasses.replace(sample, answer=truth))
    correct = RULES[task](answer, truth) if answer.strip() else None
    if correct is None:
        return unread()
    return Score(correct=correct, extracted=marked(answer) or answer.strip()[-200:], rule=task)


def livebench_gold(raw: Sequence[Any]) -> str:
    """A row's task and ground truth as JSON.

    Raises:
        ValueError: an empty ground truth.
    """
    task, truth = raw
    if truth is None or truth == "":
        raise ValueError(f"a question of {task!r} has no ground_truth")
    truth = truth if isinstance(truth, str) else json.dumps(truth)
    return json.dumps({"task": str(task), "ground_truth": truth}, ensure_ascii=False)


def marked(text: str) -> str | None:
    """The last of <solution>X</solution>, **X** and \\boxed{X}, in this order of preference."""
    for pattern in (
        r"<solution>(.*?)</solution>",
        r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}",
        r"\*\*\*?(.+?)\*?\*\*",
    ):
        found = re.findall(pattern, text, re.DOTALL)
        if found:
            return re.sub(r"\\text\{([^{}]*)\}", r"\1", found[-1]).strip()
    return None


def _listed(text: str) -> list[str]:
    return [normal(part) for part in text.split(",") if part.strip()]


def _same_list(text: str, gold: str) -> float | None:
    """Web of lies: as many last words yes, no and unknown as gold has, of what is marked or bold."""
    wanted = _listed(gold)
    bold = " ".join(re.findall(r"\*\*(.*?)\*\*", text, re.DOTALL))
    found = re.findall(r"<solution>(.*?)</solution>", text, re.DOTALL)
    source = found[-1] if found else bold or marked(text) or text
    words = re.findall(r"\b(?:yes|no|unknown)\b", source.lower())
    return float(words[-len(wanted) :] == wanted) if len(words) >= len(wanted) else None


def _zebra(text: str, gold: str) -> float | None:
    """Half for the share of right parts, half for all of them."""
    found = marked(text)
    if found is None:
        return None
    parts, wanted = _listed(found), _listed(gold)
    right = sum(a == b for a, b in zip(parts, wanted, strict=False)) / len(wanted)
    return ((right == 1.0 and len(parts) == len(wanted)) + right) / 2


def _spatial(text: str, gold: str) -> float | None:
    """The marked word or number, numbers up to twelve also in words."""
    found = marked(text)

    def plain(value: str) -> str:
        value = normal(value)
        return str(SMALL.index(value)) if value in SMALL else value

    return None if found is None else float(plain(found) == plain(gold))


def _contest(text: str, gold: str) -> float | None:
    """A letter written five times or marked; for whole numbers the last one of the answer."""
    if not re.fullmatch(r"[A-Z]", gold.strip()):
        found = last_number(declared_answer(text)[0] or "")
        return None if found is None else float(int(float(found.strip("%"))) == int(gold))
    repeated = re.findall(r"([A-Z])\1{4}", text)
    found = repeated[-1] if repeated else (marked(text) or "").strip("()")
    return float(found == gold.strip()) if found else None


def _ordering(text: str, gold: str) -> float | None:
    """Olympiad: one minus the edit distance of the number lists over the longer one's length."""
    listed = r"\d+(?:\s*,\s*\d+)"
    lists = re.findall(rf"[Aa]nswer:?[\s*]*({listed}*)", text) or re.findall(rf"{listed}+", text)
    if not lists:
        return None
    found, wanted = re.findall(r"\d+", lists[-1]), re.findall(r"\d+", gold)
    return 1 - edit_distance(found, wanted) / max(len(found), len(wanted))


def _typos(text: str, gold: str) -> float | None:
    """The corrected text occurs, spaces aside."""
    plain = re.sub(r"\s+", " ", marked(text) or text)
    return float(re.sub(r"\s+", " ", gold).strip() in plain or _squeezed(gold) in _squeezed(text))


def _plot(text: str, gold: str) -> float | None:
    """One minus the edit distance between the order of sentences and the right one, as a share."""
    wanted, found = _sentences(gold), _sentences(_after(text))
    if not found:
        return None
    order = [max(range(len(wanted)), key=lambda i: _like(one, wanted[i])) for one in found]
    return max(0.0, 1 - edit_distance(order, list(range(len(wanted)))) / len(wanted))


def _connections(text: str, gold: str) -> float | None:
    """Share of groups of four that are right, in any order."""
    found = marked(text)
    if found is None:
        return None
    groups = [
        {frozenset(words[i : i + 4]) for i in range(0, len(words), 4)}
        for words in (_listed(found), _listed(gold))
    ]
    return len(groups[0] & groups[1]) / len(groups[1])


def _column_type(text: str, gold: str) -> float | None:
    """The marked class, else the last line, letters and digits only."""
    lines = [line for line in text.splitlines() if line.strip()]
    return float(_squeezed(marked(text) or lines[-1]) == _squeezed(gold))


def _table_join(text: str, gold: str) -> float | None:
    """F1 of the pairs of a mapping between columns."""
    found = last_object(text) or _literal(text)
    if found is None:
        return None
    wanted = _literal(gold) or last_object(gold) or {}
    right = sum(wanted.get(key) == value for key, value in found.items())
    total = len(found) + len(wanted)
    return 2 * right / total if total else None


RULES: dict[str, Rule] = {
    "web_of_lies_v2": _same_list,
    "web_of_lies_v3": _same_list,
    "zebra_puzzle": _zebra,
    "spatial": _spatial,
    "AMPS_Hard": lambda text, gold: None,
    "math_comp": _contest,
    "olympiad": _ordering,
    "typos": _typos,
    "plot_unscrambling": _plot,
    "connections": _connections,
    "cta": _column_type,
    "tablejoin": _table_join,
}
"""Task -> rule; AMPS_Hard goes to math-verify."""


def edit_distance(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Levenshtein distance of two sequences."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        above, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _after(text: str) -> str:
    """The plot summary where the text marks it, else the whole text."""
    found = re.findall(r"<PLOT_SUMMARY>(.*?)(?:</PLOT_SUMMARY>|$)", text, re.DOTALL)
    return found[-1] if found else text


def _like(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _literal(text: str) -> Mapping[Any, Any] | None:
    """The last {...} without inner braces, as a Python literal."""
    for found in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            value = ast.literal_eval(found)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value
    return None
