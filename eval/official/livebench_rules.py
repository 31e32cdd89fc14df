"""LiveBench's rules for texts: what is read from an answer and how it is compared with the truth."""

import ast
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..scoring.answers import last_number, last_object, normal, value_of
from ..scoring.texts import declared_answer
from .livebench_tables import table_score

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
SHAPES = ("tetrahedra", "tetrahedron", "triangle", "square")
NEW_FORM = "2024-11-25"
"""Release from which zebra puzzles and connections are answered in <solution> tags."""
Gold = Mapping[str, Any]
"""What `livebench_gold` kept of a row."""
Rule = Callable[[str, Gold], float | None]
"""(completion without thinking, gold) -> correctness, None when no answer was found."""


def find_marked(text: str) -> str | None:
    """The last of <solution>X</solution>, \\boxed{X} and **X**, in this order of preference."""
    return _solution(text) or _bold(text)


def _solution(text: str) -> str | None:
    for pattern in (r"</?solution>(.*?)</solution>", r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"):
        matches = re.findall(pattern, text, re.DOTALL)
        if matches:
            return re.sub(r"\\text\w*\{([^{}]*)\}", r"\1", matches[-1]).strip()
    return None


def _bold(text: str) -> str | None:
    matches = re.findall(r"\*\*\*?(.+?)\*?\*\*", text, re.DOTALL)
    return matches[-1].strip() if matches else None


def _split_list(text: str) -> list[str]:
    return [normal(part) for part in text.split(",") if part.strip()]


def _truthfulness(text: str, gold: Gold) -> float | None:
    """Web of lies: yes, no and unknown: those marked, the last bold ones, or a plain list."""
    wanted = _split_list(gold["ground_truth"])
    word = r"\b(?:yes|no|unknown)\b"
    solution = _solution(text)
    if solution is not None:
        words = re.findall(word, solution.lower())
        return float(words == wanted) if words else None
    bold = " ".join(re.findall(r"\*\*(.*?)\*\*", text, re.DOTALL)).lower()
    words = re.findall(word, bold)
    if not words:
        lists = re.findall(rf"{word}(?:, {word}){{{len(wanted) - 1}}}", text.lower())
        words = re.findall(word, lists[-1]) if lists else []
    return float(words[-len(wanted) :] == wanted) if words else None


def _zebra(text: str, gold: Gold) -> float | None:
    """Half for the share of right parts, half for all of them; old puzzles ask for one word."""
    if gold["release"] < NEW_FORM:
        return _one_word(text, gold["ground_truth"])
    wanted = gold["ground_truth"].split(",")
    parts = _solution_parts(text, len(wanted))
    if not parts:
        return None
    pairs = zip(map(_dashless, parts), map(_dashless, wanted), strict=False)
    right = sum(other in one for one, other in pairs) / len(wanted)
    return ((right == 1.0) + right) / 2


def _dashless(text: str) -> str:
    return text.strip().lower().replace("-", " ")


def _solution_parts(text: str, count: int) -> list[str]:
    """The last `count` parts of all solutions, those of a box, or of a last line of so many."""
    matches = re.findall(r"</?solution>(.*?)</solution>", text.replace("\n", " "))
    if len(matches) > 1:
        return [part for one in matches for part in one.split(",")][-count:]
    last = text.strip().splitlines()[-1]
    whole = _solution(text) or (last if last.count(",") == count - 1 else "")
    return [part.replace("\n", "") for part in whole.split(",")] if whole else []


def _one_word(text: str, gold: str) -> float | None:
    words = re.findall(r"\*\*\*(\w+)\*\*\*", text) or re.findall(r"\b\w+\b", text)
    if not words:
        return None
    return float(_numeral(words[-1]) == _numeral(gold) or f"{normal(words[-1])} movies" == gold)


def _numeral(value: str) -> str:
    value = normal(value)
    return str(SMALL.index(value)) if value in SMALL else value


def _spatial(text: str, gold: Gold) -> float | None:
    """One of the last three bold words, numbers also in words, shapes with a word around them."""
    candidates = re.findall(r"\*\*([^*]+)\*\*", text)[-3:] or [_solution(text) or ""]
    wanted = _numeral(gold["ground_truth"])
    if not any(one.strip() for one in candidates):
        return None
    return float(any(_numeral(one) == wanted or _is_shape(one, wanted) for one in candidates))


def _is_shape(answer: str, gold: str) -> bool:
    return gold in SHAPES and gold in answer.lower() and len(answer) < 2 * len(gold) + 5


def _contest(text: str, gold: Gold) -> float | None:
    """A letter written four times or marked, or its option's value; whole numbers as the last one."""
    truth = gold["ground_truth"].strip()
    if not re.fullmatch(r"[A-E]", truth):
        answer = last_number(declared_answer(text)[0] or "")
        return None if answer is None else float(value_of(answer) == value_of(truth))
    repeated = re.findall(r"([A-F])\1{3}", text)
    answer = repeated[-1] if repeated else (find_marked(text) or "").strip("()")
    if re.fullmatch(r"([A-F])\1*", answer):
        return float(answer[0] == truth)
    value = _option_value(gold["question"], truth)
    return float(bool(value) and value in text[-20 - len(value) :]) if text.strip() else None


def _option_value(question: str, letter: str) -> str:
    options = re.findall(r"\\textbf\{\(([A-E])\)\s?\}(.*?)(?:\\qquad|\$)", question)
    return dict(options).get(letter, "").strip().strip("$~")


def _ordering(text: str, gold: Gold) -> float | None:
    """Olympiad: one minus the edit distance of the number lists over the longer one's length."""
    numbers = _numbers_after_answer(text) or _numbers_of(_solution(text) or "")
    numbers = numbers or _numbers_of(text.strip().splitlines()[-1])
    if not numbers:
        return None
    wanted = re.findall(r"\d+", gold["ground_truth"])
    return 1 - edit_distance(numbers, wanted) / max(len(numbers), len(wanted))


def _numbers_after_answer(text: str) -> list[str]:
    """Of the line with the last `answer:`, or of the next one where that line ends there."""
    lines = re.findall(r"answer:[\s*]*([^\n]*)", text.replace("**", ""), re.IGNORECASE)
    return _numbers_of(lines[-1]) if lines else []


def _numbers_of(text: str) -> list[str]:
    """The last number of each part between commas; parts without one count as wrong, all as none."""
    parts = [(re.findall(r"\d+", part) or [""])[-1] for part in text.split(",")]
    return parts if any(parts) else []


def _typos(text: str, gold: Gold) -> float | None:
    """The corrected text occurs, line breaks aside."""
    return float(_one_line(gold["ground_truth"]) in _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _plot(text: str, gold: Gold) -> float | None:
    """One minus the edit distance between the order of sentences and the right one, as a share."""
    wanted, sentences = _sentences(gold["ground_truth"]), _sentences(_after(text))
    if not sentences:
        return None
    nearest = [difflib.get_close_matches(one, sentences, n=1, cutoff=0.0)[0] for one in wanted]
    order = [sentences.index(one) for one in nearest]
    return max(0.0, 1 - edit_distance(order, list(range(len(wanted)))) / len(wanted))


def _connections(text: str, gold: Gold) -> float | None:
    """Share of groups of four that are right, in any order; of old puzzles the best bold list."""
    wanted = _groups(gold["ground_truth"].split(","))
    if gold["release"] < NEW_FORM:
        lists = [one.split(",") for one in re.findall(r"\*\*(.*?)\*\*", text.replace("\n", ""))]
    else:
        lists = [_solution_parts(text, 4 * len(wanted))]
    shares = [len(_groups(one) & wanted) / len(wanted) for one in lists if one]
    return max(shares) if shares else None


def _groups(words: Sequence[str]) -> set[frozenset[str]]:
    plain = [word.strip().lower() for word in words]
    return {frozenset(plain[start : start + 4]) for start in range(0, len(plain), 4)}


def _column_type(text: str, gold: Gold) -> float | None:
    """The marked class, else the last line, letters and digits only."""
    lines = [line for line in text.splitlines() if line.strip()]
    return float(_squeezed(find_marked(text) or lines[-1]) == _squeezed(gold["ground_truth"]))


def _table_join(text: str, gold: Gold) -> float | None:
    """F1 of the pairs of a mapping between columns, rounded to two digits as published."""
    mapping = last_object(text) or _literal(text)
    if mapping is None:
        return None
    truth = gold["ground_truth"]
    wanted = _literal(truth) or last_object(truth) or {}
    right = sum(wanted.get(key) == value for key, value in mapping.items())
    total = len(mapping) + len(wanted)
    return round(2 * right / total, 2) if total else None


def _table(text: str, gold: Gold) -> float | None:
    return table_score(text, gold["ground_truth"], gold["question"])


RULES: dict[str, Rule] = {
    "web_of_lies_v2": _truthfulness,
    "web_of_lies_v3": _truthfulness,
    "zebra_puzzle": _zebra,
    "spatial": _spatial,
    "math_comp": _contest,
    "olympiad": _ordering,
    "typos": _typos,
    "plot_unscrambling": _plot,
    "connections": _connections,
    "cta": _column_type,
    "tablejoin": _table_join,
    "tablereformat": _table,
}
"""Task -> rule."""


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
    return [part.strip() for part in text.split(".") if part.strip()]


def _after(text: str) -> str:
    """The plot summary where the text marks it, else the whole text."""
    matches = re.findall(r"<PLOT_SUMMARY>(.*?)(?:</PLOT_SUMMARY>|$)", text, re.DOTALL)
    return matches[-1] if matches else text


def _literal(text: str) -> Mapping[Any, Any] | None:
    """The last {...} without inner braces, as a Python literal."""
    for block in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            value = ast.literal_eval(block)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value
    return None
