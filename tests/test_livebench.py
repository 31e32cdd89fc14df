"""LiveBench's rules: gold, near misses and partial credit of each task, by hand."""

import json
from typing import Any

import pytest

from dopd_vlm.eval.official.livebench import MATHEMATICS, livebench_gold, score_livebench
from dopd_vlm.eval.official.livebench_rules import RULES, edit_distance
from dopd_vlm.types import Sample, View

ORDER = "One came. Two went. Three stayed. Four slept."
AMC = r"Which? $\textbf{(A) }14\qquad\textbf{(B) }26\qquad\textbf{(C) }x+1$"
CSV = "Please convert the Input Table from JSON format to CSV format. Please respond only with the table."
TABLE = "name,size\nfir,2\noak,"
CASES = [
    ("web_of_lies_v2", "yes, no, yes", "so **yes, no, yes**", 1.0),
    ("web_of_lies_v2", "yes, no, yes", "it is yes, no, yes. Yes!", 1.0),
    ("web_of_lies_v2", "yes, no, yes", "**yes**, **no**, **yes**", 1.0),
    ("web_of_lies_v2", "yes, no, yes", "Ann: **no**. So **yes, yes, no**", 0.0),
    ("web_of_lies_v3", "yes, unknown, no", "<solution>yes, unknown, no</solution>", 1.0),
    ("web_of_lies_v3", "yes, unknown, no", "<solution>no, yes, unknown, no</solution>", 0.0),
    ("zebra_puzzle", "tea, 3, police-officer, red", "<solution>tea, position 3, Police Officer, red</solution>", 1.0),
    ("zebra_puzzle", "tea, 3, cat, red", "<solution>tea, 3, dog, red</solution>", 0.375),
    ("zebra_puzzle", "tea, 3", "<solution>tea</solution> and <solution>3</solution>", 1.0),
    ("zebra_puzzle", "tea, 3", "They are:\ntea, 3", 1.0),
    ("zebra_puzzle", "tea, 3", r"\boxed{\text{tea, 3}}", 1.0),
    ("spatial", "three", "**3**", 1.0),
    ("spatial", "tetrahedron", "two **tetrahedron shapes**", 1.0),
    ("spatial", "triangle", "**circle, square, triangle**", 0.0),
    ("spatial", "5", "**5** of **6** and **7**", 1.0),
    ("spatial", "5", "**5**: **6**, **7**, **8**", 0.0),
    ("AMPS_Hard", "2 x", r"so $\boxed{2x}$", 1.0),
    ("AMPS_Hard", "20\\ 2^{3/5} 5^{2/5}", r"$\boxed{20 \cdot 200^{1/5}}$", 1.0),
    ("AMPS_Hard", "x^2", r"$\boxed{x^2 + C}$", 1.0),
    ("AMPS_Hard", "2 x", r"$\boxed{x}$", 0.0),
    ("math_comp", "B", "BBBBB", 1.0),
    ("math_comp", "B", r"\boxed{\text{B}}", 1.0),
    ("math_comp", "B", "AAAAA no, BBBBB", 1.0),
    ("math_comp", "B", r"so it is $\boxed{26}$", 1.0),
    ("math_comp", "B", r"so it is $\boxed{14}$", 0.0),
    ("math_comp", "B", "CCCCC", 0.0),
    ("math_comp", "025", "The answer is 25", 1.0),
    ("math_comp", "025", "The answer is 1/4", 0.0),
    ("math_comp", "025", "26", 0.0),
    ("olympiad", "3,1,2", "Answer: 3,1,2", 1.0),
    ("olympiad", "3,1,2", "**Answer:**\n<expression 3>, 1, 2.", 1.0),
    ("olympiad", "3,1,2", r"Thus \boxed{3, 1, 2}", 1.0),
    ("olympiad", "3,1,2", "Answer: 3,2,2", 2 / 3),
    ("olympiad", "3,1,2", "Answer: 3,?,1,2", 3 / 4),
    ("typos", "We saw the sea.", "We saw\nthe  sea.", 1.0),
    ("typos", "We saw, the sea.", "We saw the sea.", 0.0),
    ("plot_unscrambling", ORDER, ORDER, 1.0),
    ("plot_unscrambling", ORDER, "<PLOT_SUMMARY>Two went. One came. Three stayed. Four slept.", 0.5),
    ("connections", "a,b,c,d,e,f,g,h", "<solution>h, g, F, e,\na, b, c, d</solution>", 1.0),
    ("connections", "a,b,c,d,e,f,g,h", "<solution>a, b, c, e, d, f, g, h</solution>", 0.0),
    ("cta", "postal_code", "I think:\npostal code", 1.0),
    ("cta", "postal_code", "city", 0.0),
    ("tablejoin", "{'a': 'x', 'b': 'y'}", '{"a": "x", "b": "y"}', 1.0),
    ("tablejoin", '{"a": "x", "b": "y"}', "{'a': 'x', 'c': 'y', 'd': 'z'}", 0.4),
    ("tablereformat", TABLE, "```csv\nsize,name\n2.0,fir\n,oak\n```", 1.0),
    ("tablereformat", TABLE, "Here it is:\nname,size\nfir,2\noak,\n\nDone.", 1.0),
    ("tablereformat", TABLE, "name,size\noak,\nfir,2", 0.0),
    ("tablereformat", TABLE, "name,size\nfir,2", 0.0),
]  # fmt: skip


def sample(task: str, truth: str, release: str = "2024-11-25", **more: Any) -> Sample:
    question = AMC if task == "math_comp" else CSV
    row = {"task": task, "ground_truth": truth, "turns": [question], "category": "?"}
    answer = livebench_gold({**row, "livebench_release_date": release, **more})
    return Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())


@pytest.mark.parametrize(("task", "truth", "text", "correct"), CASES)
def test_rules(task: str, truth: str, text: str, correct: float) -> None:
    found = score_livebench(text, sample(task, truth))
    assert found.correct == pytest.approx(correct) and not found.is_unparsed


def test_every_rule_has_a_case_and_reads_nothing_from_nothing() -> None:
    assert {task for task, *_ in CASES} == {*RULES, MATHEMATICS}
    for task, truth, *_ in CASES:
        for text in ("", "<think>**3** BBBBB"):
            assert score_livebench(text, sample(task, truth)).is_unparsed


@pytest.mark.parametrize(
    ("task", "truth", "text", "correct"),
    [
        ("zebra_puzzle", "three", "***3***", 1.0),
        ("zebra_puzzle", "comedy movies", "It is comedy", 1.0),
        ("zebra_puzzle", "three", "<solution>3</solution> so four", 0.0),
        ("connections", "a,b,c,d,e,f,g,h", "**a, b** **h, g, f, e, a, b, c, d**", 1.0),
    ],
)
def test_releases_before_the_solution_tags(
    task: str, truth: str, text: str, correct: float
) -> None:
    assert score_livebench(text, sample(task, truth, "2024-08-31")).correct == correct


@pytest.mark.parametrize(
    ("kind", "gold", "text"),
    [
        (
            "JSON",
            '{"7":{"a":"x","b":1},"3":{"a":"y","b":null}}',
            '[{"a": "x", "b": 1}, {"b": null, "a": "y"}]',
        ),
        ("JSONL", '{"a":"x","b":0.5}\n', 'The rows:\n{"b": 0.5, "a": "x"}'),
        ("TSV", "a\tb\nx\t1", "a\tb\nx\t1.0000001"),
        ("Markdown", "| a | b |\n|:--|--:|\n| x | 1 |", "| b | a |\n|---|---|\n| 1.0 | x |"),
        (
            "HTML",
            "<table><tr><th>a</th></tr><tr><td>x</td></tr></table>",
            "```html\n<table><thead><th>a</th></thead><tr><td>x</td></tr></table>\n```",
        ),
    ],
)
def test_tables_of_every_format(kind: str, gold: str, text: str) -> None:
    for question in (CSV.replace("CSV", kind), f"Source Format: CSV\nTarget Format: {kind}\n"):
        asked = sample("tablereformat", gold, turns=[question])
        assert score_livebench(text, asked).correct == 1.0
        assert score_livebench(text.replace("x", "z"), asked).correct == 0.0
    with pytest.raises(ValueError, match="format 'xml' is not one of csv, tsv"):
        score_livebench("x", sample("tablereformat", gold, turns=["to XML: Target Format: XML"]))


def test_code_continues_the_given_part() -> None:
    tests = json.dumps([{"input": "2\n", "output": "4", "testtype": "stdin"}])
    row = {
        "public_test_cases": tests,
        "private_test_cases": "",
        "original_json": {"metadata": "{}"},
    }
    asked = sample("coding_completion", "", partial_solution="n = int(input())", **row)
    for text in ("```python\nprint(2 * n)\n```", "n = int(input())\nprint(n + n)"):
        assert score_livebench(text, asked).correct == 1.0
    assert score_livebench("print(n)", asked).rule == "test 1: prints '2'"
    assert score_livebench("", asked).is_unparsed


def test_rows_that_lack_what_their_rule_needs() -> None:
    with pytest.raises(ValueError, match="'nothing' is not scored here; known: web_of_lies"):
        score_livebench("x", sample("nothing", "y"))
    with pytest.raises(ValueError, match="'cta' has no ground_truth"):
        sample("cta", "")
    with pytest.raises(ValueError, match="'simplify' has no instruction_id_list"):
        sample("simplify", "", category="instruction_following")


def test_edit_distance() -> None:
    assert [
        edit_distance("kitten", "sitting"),
        edit_distance("", "ab"),
        edit_distance("ab", "ab"),
    ] == [3, 2, 0]
