"""AutoLogi: arrangements are read from answers and judged by the puzzle's own functions."""

import json
from pathlib import Path

import pytest

from dopd_vlm.eval.official.autologi import arrangement_gold, read_arrangement, solve
from dopd_vlm.eval.scorers import scorer
from dopd_vlm.types import Sample, View

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "fixtures/tasks/autologi.jsonl").read_text().splitlines()
]


def sample(code: dict[str, str]) -> Sample:
    answer = arrangement_gold(code)
    return Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{'Ann': 2, 'Bob': 3, 'Cem': 1}", "passed"),
        ('First {"Ann": 1}, no: ```json\n{"Ann": 2, "Bob": 3, "Cem": 1}\n```', "passed"),
        ("```python\ninputs = {'Ann': 2, 'Bob': 3, 'Cem': 1}  # so\n```", "passed"),
        ('```json\n{\n"Ann": 2, // left\n"Bob": 3, "Cem": 1}\n```', "passed"),
        ("**{'Ann': 2, 'Bob': 3, 'Cem': 1}** and not {'Ann': 1", "passed"),
        ("{'Ann': 3, 'Bob': 2, 'Cem': 1}", "AssertionError: constraint 1"),
        ("{'Ann': 1, 'Bob': 3, 'Cem': 2}", "AssertionError: constraint 2"),
        ("{'Ann': 1}", "AssertionError: not of the asked form"),
        ("{'Ann': 'x', 'Bob': 1, 'Cem': 2}", "TypeError"),
        ("{'Ann': 1, 'Bob': }", "unparsed"),
        ("{'Ann': __import__('os')}", "unparsed"),
        ("no arrangement", "unparsed"),
        ("<think>{'Ann': 2, 'Bob': 3, 'Cem': 1}", "unclosed_think"),
    ],
)
def test_arrangements(text: str, rule: str) -> None:
    found = scorer("arrangement")(text, sample(ROWS[0]["code"]))
    assert found.rule.startswith(rule) and found.correct == float(rule == "passed")
    assert found.is_unparsed == (rule in ("unparsed", "unclosed_think"))


def test_literals_of_both_languages() -> None:
    read = {
        '{"is": true, "not": null}': {"is": True, "not": None},
        "{'is': True, 'word': 'true'}": {"is": True, "word": "true"},
        "Teams: [{'a'}, {'b', 'c'}].": [{"a"}, {"b", "c"}],
        "See [1 {'a': 1}": {"a": 1},
        "The list [1, 2] then {'a': [3, {'b': 4}]}": {"a": [3, {"b": 4}]},
        "```\nx = ('a', 'b')\n```": ("a", "b"),
        "7": None,
    }
    assert {text: read_arrangement(text) for text in read} == read


def test_a_row_can_be_solved_by_its_own_search() -> None:
    for row in ROWS:
        found = solve(row["code"])
        assert found and scorer("arrangement")(found, sample(row["code"])).correct == 1.0
    none = {**ROWS[0]["code"], "Constraint_List_code": "constraint_list = [lambda inputs: False]"}
    assert solve(none) is None


def test_programs_that_hang_or_lack_a_part() -> None:
    endless = {**ROWS[0]["code"], "Constraint_List_code": "while True: pass"}
    found = scorer("arrangement", timeout=0.5)("{'Ann': 1}", sample(endless))
    assert (found.correct, found.rule) == (0.0, "timeout")
    with pytest.raises(ValueError, match="Inputs_Check_code and Constraint_List_code, got"):
        arrangement_gold({"Inputs_Check_code": "def inputs_check(x): return True"})
