"""ZebraLogic's grid mode: a JSON table of houses, scored as a whole and cell by cell."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dopd_vlm.types import Sample

from ..scoring.answers import Score, final_answer, last_object, normal, unread

FORM = """{puzzle}

Solve the puzzle. Present your reasoning and the solution as JSON of this form, with every "___" filled in:
{form}"""


def score_grid(text: str, sample: Sample) -> Score:
    """1 when every cell is right, the puzzle accuracy; part `cell_accuracy`, the share of right cells.

    The answer is the last JSON object of the text, with or without its `solution` key; a cell may
    be a list of one. Case and outer punctuation do not count; missing houses and cells are wrong.
    """
    gold = json.loads(sample.answer)
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    reply = last_object(answer)
    if reply is None:
        return _scored(0.0, None, "unparsed")
    solution = reply.get("solution", reply)
    if not isinstance(solution, Mapping):
        return _scored(0.0, None, "unparsed")
    cells = [
        normal(_cell(solution, house, column)) == normal(value)
        for house, columns in gold.items()
        for column, value in columns.items()
    ]
    return _scored(sum(cells) / len(cells), json.dumps(solution), "json")


def grid_gold(raw: Any) -> str:
    """{"House 1": {column: value, ...}, ...} of a solution with `header` and `rows`, as JSON.

    Raises:
        ValueError: no table, or one whose cells are hidden.
    """
    raw = json.loads(raw) if isinstance(raw, str) else raw
    if not isinstance(raw, Mapping) or not raw.get("rows") or not raw.get("header"):
        raise ValueError(f"a grid solution needs header and rows, got {raw!r}")
    header, rows = list(raw["header"]), [list(map(str, row)) for row in raw["rows"]]
    if all(set(row[1:]) <= {"___", ""} for row in rows):
        raise ValueError("the solution is hidden: its cells are all '___'")
    return json.dumps(
        {f"House {i}": dict(zip(header[1:], row[1:], strict=True)) for i, row in enumerate(rows, 1)}
    )


def grid_question(raw: Sequence[Any]) -> str:
    """The puzzle and the JSON form that the answer must have; ZeroEval adds a worked example."""
    puzzle, solution = raw
    solution = json.loads(solution) if isinstance(solution, str) else solution
    columns = dict.fromkeys(solution["header"][1:], "___")
    houses = {f"House {i}": columns for i in range(1, len(solution["rows"]) + 1)}
    form = json.dumps({"reasoning": "___", "solution": houses}, indent=2)
    return FORM.replace("{puzzle}", str(puzzle)).replace("{form}", form)


def _scored(share: float, extracted: str | None, rule: str) -> Score:
    parts = {"cell_accuracy": share}
    return Score(correct=float(share == 1.0), extracted=extracted, rule=rule, parts=parts)


def _cell(solution: Mapping[str, Any], house: str, column: str) -> str:
    row = solution.get(house)
    value = row.get(column, "") if isinstance(row, Mapping) else ""
    value = value[0] if isinstance(value, list) and value else value
    return str(value)
