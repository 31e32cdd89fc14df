"""How benchmarks write questions and answers, by name, and what this project makes of them."""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..official.autologi import arrangement_gold
from ..official.bfcl import calls_gold
from ..official.livebench import livebench_gold
from ..official.zebralogic import grid_gold, grid_question
from ..scoring.programs import cases_gold, function_gold, program_question

Choices = Mapping[str, str]
"""{letter: option text}; empty for open questions."""


def plain(raw: Any) -> str:
    """The value as text; of a list the first item."""
    return str(raw[0] if isinstance(raw, list) and raw else raw).strip()


def _index(raw: Any, choices: Choices) -> str:
    if not choices:
        return plain(raw)
    place = int(plain(raw))
    if not 0 <= place < len(choices):
        raise ValueError(f"answer {place} is no place among {len(choices)} options")
    return list(choices)[place]


def _option(raw: Any, choices: Choices) -> str:
    text = plain(raw)
    if not choices or text in choices:
        return text
    letters = [letter for letter, option in choices.items() if option.strip() == text]
    if not letters:
        raise ValueError(f"answer {text!r} is not one of {list(choices.values())}")
    return letters[0]  # others of the same text count as well


def _zero_one(raw: Any, choices: Choices) -> str:
    known = {"0": "no", "1": "yes", "no": "no", "yes": "yes"}
    text = plain(raw).lower()
    if text not in known:
        raise ValueError(f"answer {text!r} is not one of {', '.join(known)}")
    return known[text]


def _alternatives(raw: Any, choices: Choices) -> str:
    text = plain(raw)
    values = ast.literal_eval(text) if text.startswith("[") else [text]
    return str(values[0]) if len(values) == 1 else json.dumps(list(map(str, values)))


ANSWER_FORMS: dict[str, Callable[[Any, Choices], str]] = {
    "plain": lambda raw, choices: plain(raw),
    "index": _index,
    "option": _option,
    "alternatives": _alternatives,
    "hashes": lambda raw, choices: plain(raw).rpartition("####")[2].strip(),
    "parens": lambda raw, choices: plain(raw).strip("()."),
    "zero_one": _zero_one,
    "first_choice": lambda raw, choices: plain(raw),
    "function_tests": lambda raw, choices: function_gold(raw),
    "tests": lambda raw, choices: cases_gold(raw),
    "arrangement": lambda raw, choices: arrangement_gold(raw),
    "calls": lambda raw, choices: calls_gold(raw),
    "grid": lambda raw, choices: grid_gold(raw),
    "livebench": lambda raw, choices: livebench_gold(raw),
}
"""plain: value or letter as it is. index: number of the option. option: its text. alternatives: one of
a list written as text. hashes: behind `####`. parens: `(A)`. zero_one: 0 or 1 for no or yes.
first_choice: the right option before the wrong ones; their order is drawn per question.
function_tests: prompt, tests and entry point. tests: LiveCodeBench's. arrangement: AutoLogi's
programs. calls: id, functions and ground truth. grid: a logic grid. livebench: a whole row."""


def _join_turns(raw: Any) -> str:
    return "\n\n".join(map(str, raw)) if isinstance(raw, list) else str(raw)


def _first_turn(raw: Any) -> str:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or len(raw) != 1:
        raise ValueError(f"a question of one turn is needed, got {raw!r}")
    return str(raw[0])


def dialogue(raw: Any) -> list[dict[str, str]]:
    """The messages of a question of one turn, `[[{role, content}, ...]]`.

    Raises:
        ValueError: several turns, which need the official runner.
    """
    if not isinstance(raw, Sequence) or len(raw) != 1:
        raise ValueError("a question of several turns needs the official runner (--export bfcl)")
    return [{"role": str(one["role"]), "content": str(one["content"])} for one in raw[0]]


QUESTION_FORMS: dict[str, Callable[[Any], str]] = {
    "plain": _join_turns,
    "first_turn": _first_turn,
    "dialogue": lambda raw: dialogue(raw)[-1]["content"],
    "grid": grid_question,
    "program": program_question,
}
"""plain: text, or several columns joined by blank lines. first_turn: the only item of a list.
dialogue: messages. grid: a puzzle with its solution's shape. program: LiveCodeBench's content with its
starter code."""
