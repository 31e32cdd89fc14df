"""LiveBench's rules: gold, near misses and partial credit of each task, by hand."""

import json

import pytest

from dopd_vlm.eval.livebench import RULES, edit_distance, score_livebench
from dopd_vlm.types import Sample, View

ORDER = "One came. Two went. Three stayed. Four slept."
CASES = [
    ("web_of_lies_v2", "yes, no, yes", "so **yes, no, yes**", 1.0),
    ("web_of_lies_v2", "yes, no, yes", "it is yes, no, yes.", 1.0),
    ("web_of_lies_v2", "yes, no, yes", "**yes**, **no**, **yes**", 1.0),
    ("web_of_lies_v2", "yes, no, yes", "Ann: **no**. So **yes, yes, no**", 0.0),
    ("web_of_lies_v3", "yes, unknown, no", "<solution>yes, unknown, no</solution>", 1.0),
    ("zebra_puzzle", "tea,3,cat,red", "<solution>tea, 3, cat, red</solution>", 1.0),
    ("zebra_puzzle", "tea,3,cat,red", "<solution>tea, 3, dog, red</solution>", 0.375),
    ("zebra_puzzle", "4", "***4***", 1.0),
    ("spatial", "three", "**3**", 1.0),
    ("spatial", "tetrahedron", "**Tetrahedron.**", 1.0),
    ("spatial", "5", "**6**", 0.0),
    ("AMPS_Hard", "2 x", r"so $\boxed{2x}$", 1.0),
    ("AMPS_Hard", "2 x", r"$\boxed{x}$", 0.0),
    ("math_comp", "B", "BBBBB", 1.0),
    ("math_comp", "B", r"\boxed{\text{B}}", 1.0),
    ("math_comp", "B", "AAAAA no, BBBBB", 1.0),
    ("math_comp", "B", "CCCCC", 0.0),
    ("math_comp", "025", "The answer is 25", 1.0),
    ("math_comp", "025", "26", 0.0),
    ("olympiad", "3,1,2", "Answer: 3,1,2", 1.0),
    ("olympiad", "3,1,2", "Answer: 3,2,2", 2 / 3),
    ("typos", "We saw the sea.", "We saw the  sea.", 1.0),
    ("typos", "We saw the sea.", "We saw teh sea.", 0.0),
    ("plot_unscrambling", ORDER, ORDER, 1.0),
    ("plot_unscrambling", ORDER, "Two went. One came. Three stayed. Four slept.", 0.5),
    ("connections", "a,b,c,d,e,f,g,h", "**h, g, f, e, a, b, c, d**", 1.0),
    ("connections", "a,b,c,d,e,f,g,h", "**a, b, c, e, d, f, g, h**", 0.0),
    ("cta", "postal_code", "I think:\npostal code", 1.0),
    ("cta", "postal_code", "city", 0.0),
    ("tablejoin", "{'a': 'x', 'b': 'y'}", '{"a": "x", "b": "y"}', 1.0),
    ("tablejoin", '{"a": "x", "b": "y"}', "{'a': 'x', 'c': 'y'}", 0.5),
]  # fmt: skip


def sample(task: str, truth: str) -> Sample:
    answer = json.dumps({"task": task, "ground_truth": truth})
    return Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())


@pytest.mark.parametrize(("task", "truth", "text", "correct"), CASES)
def test_rules(task: str, truth: str, text: str, correct: float) -> None:
    found = score_livebench(text, sample(task, truth))
    assert found.correct == pytest.approx(correct) and not found.is_unparsed


def test_every_rule_has_a_case_and_reads_nothing_from_nothing() -> None:
    assert {task for task, *_ in CASES} == set(RULES)
    for task, truth, *_ in CASES:
        for text in ("", "<think>**3** BBBBB"):
            assert score_livebench(text, sample(task, truth)).is_unparsed


def test_a_task_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match="'LCB_generation' is not scored here; known: web_of_lies"):
        score_livebench("x", sample("LCB_generation", "y"))


def test_edit_distance() -> None:
    assert [
        edit_distance("kitten", "sitting"),
        edit_distance("", "ab"),
        edit_distance("ab", "ab"),
    ] == [3, 2, 0]
