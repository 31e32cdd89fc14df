"""Answer extraction and scoring: published and adversarial vectors, gold, hangs and crashes."""

import dataclasses
import sys

import pytest

from dopd_vlm.eval.results.stats import accuracy_metric
from dopd_vlm.eval.scorers import (
    SCORERS,
    declared_number,
    extract_choice,
    extract_choices,
    score,
    scorer,
)
from dopd_vlm.eval.scoring.answers import code_of, final_answer, value_of
from dopd_vlm.eval.scoring.boxes import iou
from dopd_vlm.eval.scoring.math import MathWorker, score_math
from dopd_vlm.types import Sample, View

FOUR = {"A": "red apple", "B": "blue car", "C": "green key", "D": "yellow dog"}
TEN = {letter: f"option number {i}" for i, letter in enumerate("ABCDEFGHIJ")}
VECTORS = [
    ("B", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("**B**", "B"),
    ("The correct answer is (B).", "B"),
    ("Answer: **B**", "B"),
    ("The answer is B because A is wrong.", "B"),
    ("Based on the image, it is the green key.", "C"),
    ("A careful look shows the car is blue, so B", "B"),
    ("I considered (A), but the final answer is (B)", "B"),
    ("blue car", "B"),
    ("b", "B"),
    (r"\boxed{B}", "B"),
    ("Option B: blue car", "B"),
    ("The object is a key. Therefore the answer is C) green key", "C"),
    ("I cannot determine the answer.", None),
    ("", None),
    ("<think>maybe A</think>\nB", "B"),
    ("<think>answer is A", None),
    ("The answer is a blue car", "B"),
    (r"\boxed{\text{(C)}}", "C"),
    ("Either (A) or (B). I pick the answer: B", "B"),
    ("answer: b", "B"),
    ("The answer is a", "A"),
    ("Answer (b).", "B"),
    ("not the red apple but the blue car", None),
]
ADVERSARIAL = [
    ("Answer: A or B", None),
    ("It is not (A).", None),
    ("The answer is not B", None),
    ("Answer: A blue car", "B"),
    ("Answer: A", "A"),
    ("The answer is A. Wait, the answer is D.", "D"),
    ("reasoning</think>The answer is C", "C"),
    ("So it is not B", None),
    ("A", "A"),
    ("E", None),
    ("\u7b54\u6848\uff1aC", "C"),
    ("Apples are red.", None),
    ("Option Believe me", None),
    ("hence we take D.", "D"),
    (r"so $\boxed{ D }$.", "D"),
    ("The answer's B-side is D", None),
]


@pytest.mark.parametrize(("text", "expected"), VECTORS + ADVERSARIAL)
def test_extract_choice(text: str, expected: str | None) -> None:
    assert extract_choice(text, FOUR)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: I think J", None),
        ("Answer: I", "I"),
        ("The answer is I.", "I"),
        ("I think so", None),
        ("j", "J"),
    ],
)
def test_ten_options_and_the_pronoun(text: str, expected: str | None) -> None:
    assert extract_choice(text, TEN)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected", "rule"),
    [
        ("A, C", "AC", "bare"),
        ("ACD", "ACD", "bare"),
        ("The answer is A and D.", "AD", "declared"),
        ("answers: (B), (C)", "BC", "declared"),
        (r"\boxed{A,C}", "AC", "bare"),
        ("Answer: B", "B", "declared"),
        ("We take (A), (B) and (D)", "ABD", "declared"),
        ("Answer: A or C", None, "ambiguous"),
        ("nothing", None, "unparsed"),
        ("<think>A, B", None, "unclosed_think"),
        ("green key", "C", "text"),
    ],
)
def test_extract_choices(text: str, expected: str | None, rule: str) -> None:
    letters, fired = extract_choices(text, FOUR)
    assert (letters, fired) == (None if expected is None else frozenset(expected), rule)


def sample(answer: str, kind: str, choices: dict[str, str] | None = None) -> Sample:
    return Sample(
        uid="q",
        question="?",
        answer=answer,
        plain=View(),
        privileged=View(),
        answer_type=kind,
        choices=choices,
    )


GOLD = [
    ("text", "a red circle"),
    ("number", "1,234.5"),
    ("number", "-3"),
    ("math", r"\frac{1}{2}"),
    ("math", "x=3"),
    ("box", "[1, 2, 30, 40]"),
    ("choice", "C"),
    ("choice", "A, C"),
    ("yes_no", "Yes"),
]


@pytest.mark.parametrize(("kind", "gold"), GOLD)
def test_every_scorer_accepts_gold_bare_and_declared(kind: str, gold: str) -> None:
    question = sample(gold, kind, FOUR if kind == "choice" else None)
    declared = rf"so \boxed{{{gold}}}" if kind == "math" else f"looking at it, answer {gold}"
    for text in (gold, declared):
        assert score(text, question).correct == 1.0, (text, score(text, question))
    for text in ("", "<think>" + gold):
        assert score(text, question).correct == 0.0 and score(text, question).is_unparsed


def test_every_scorer_has_a_gold_case() -> None:
    elsewhere = {"code", "tests", "arrangement", "calls", "grid", "livebench"}
    assert {kind for kind, _ in GOLD} | elsewhere == set(SCORERS)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("red circle 1 blue square 1 red ring 2 answer 2", "2"),
        ("answer 3 answer 4", "4"),
        ("12 or 13", None),
        ("The answer is 3 + 4 = 7, not 9", "7"),
        (r"\boxed{5} and 6", "5"),
        ("work\n#### 1,024", "1,024"),
        ("The answer is unclear. 8", "8"),
        ("nothing", None),
    ],
)
def test_declared_number(text: str, number: str | None) -> None:
    assert declared_number(text)[0] == number


@pytest.mark.parametrize(
    ("text", "gold", "tolerance", "right"),
    [
        ("104", "100", 0.05, 1.0),
        ("106", "100", 0.05, 0.0),
        ("35%", "35", 1e-6, 1.0),
        ("35%", "0.35", 1e-6, 1.0),
        ("35%", "36%", 1e-6, 0.0),
        ("1/4", "0.25", 1e-6, 1.0),
        ("0", "0", 1e-6, 1.0),
        ("0.001", "0", 0.05, 0.0),
    ],
)
def test_number_tolerance(text: str, gold: str, tolerance: float, right: float) -> None:
    assert scorer("number", tolerance=tolerance)(text, sample(gold, "number")).correct == right


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("3.34", "3.3", 1.0),
        ("3.36", "3.3", 0.0),
        ("about 0.125 m", "0.12", 1.0),
        # A whole gold number: the answer is cut, not rounded.
        ("3.6", "3", 1.0),
        ("2.6", "3", 0.0),
        ("63%", "1", 0.0),
        ("30%", "0", 0.0),
        ("1.98", "2", 0.0),
    ],
)
def test_number_rounded_to_golds_decimals(text: str, gold: str, right: float) -> None:
    assert scorer("number", measure="rounded")(text, sample(gold, "number")).correct == right


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("4", "4", 1.0),
        # An error of 5 % is within every 1 - t, of 25 % within those of t = 0.5 ... 0.75, 55 % in none.
        ("10.5", "10", 1.0),
        ("10.6", "10", 0.9),
        ("7.5", "10", 0.6),
        ("15", "10", 0.1),
        ("15.5", "10", 0.0),
        ("none", "10", 0.0),
    ],
)
def test_mean_relative_accuracy(text: str, gold: str, expected: float) -> None:
    found = scorer("number", measure="relative")(text, sample(gold, "number"))
    assert found.correct == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "gold", "right", "rule"),
    [
        ("Yes, there is a dog.", "yes", 1.0, "whole"),
        ("No.", "yes", 0.0, "whole"),
        ("I see no cat. The answer is yes", "yes", 1.0, "declared"),
        ("yes and no", "yes", 0.0, "ambiguous"),
        ("There is nothing", "no", 0.0, "unparsed"),
        ("<think>yes", "yes", 0.0, "unclosed_think"),
    ],
)
def test_yes_or_no(text: str, gold: str, right: float, rule: str) -> None:
    found = score(text, sample(gold, "yes_no"))
    assert (found.correct, found.rule) == (right, rule)
    assert found.is_unparsed == (rule not in ("whole", "declared"))


def test_a_letter_of_options_that_stand_in_the_question() -> None:
    question = dataclasses.replace(sample("B", "text"), question="Where to?\nA. left\nB. right")
    for text in ("B", "B. right", "right", "It goes right, so B", "The answer is (B)."):
        assert score(text, question).correct == 1.0, text
    for text in ("A", "left", "A or B", "a right turn or left"):
        assert score(text, question).correct == 0.0, text


def test_alternatives_of_a_text() -> None:
    question = sample('["$6.50", "six fifty"]', "text")
    assert [score(text, question).correct for text in ("6.50", "Six fifty.", "6")] == [
        1.0,
        1.0,
        0.0,
    ]


def test_a_sample_without_gold_is_an_error() -> None:
    with pytest.raises(ValueError, match="sample 'q' has no gold answer"):
        score("", sample(" ", "text"))


def test_text_takes_the_last_declaration_and_normalises() -> None:
    question = sample("Red circle", "text")
    assert (
        score(
            "it is blue. The answer is blue\nno: answer is the **red  circle**.", question
        ).correct
        == 1.0
    )
    assert score("red circle, answer blue", question).correct == 0.0


def test_box_is_judged_by_overlap() -> None:
    question = sample("[0, 0, 10, 20]", "box")
    assert iou((0, 0, 10, 20), (5, 0, 15, 20)) == pytest.approx(1 / 3)
    # Half of the gold box is a half exactly, and a half is enough; of several boxes the last one counts.
    assert score("[0, 0, 10, 10]", question).correct == 1.0
    assert score("[0, 0, 10, 20], no: [50, 50, 60, 70]", question).correct == 0.0
    assert score("[50, 50, 60, 70], no: [0, 0, 10, 20]", question).correct == 1.0
    assert score('{"bbox_2d": [1, 0, 10, 20]}', question).correct == 1.0
    assert score("[5, 0, 15, 20]", question).correct == 0.0
    assert score("[9, 9, 2, 2]", question).is_unparsed


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"so $\boxed{0.5}$", r"\frac{1}{2}", 1.0),
        (r"\boxed{3\sqrt{2}}", r"\sqrt{18}", 1.0),
        (r"the answer is $6$", "5", 0.0),
        ("1000", "1,000", 1.0),
    ],
)
def test_math(text: str, gold: str, right: float) -> None:
    assert score(text, sample(gold, "math")).correct == right


READY = "import sys,time,json; print(json.dumps({'ready': True}), flush=True); "


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("sys.stdin.readline(); time.sleep(60)", "timeout"),
        ("sys.stdin.readline(); sys.exit(3)", "crash"),
        (
            "sys.stdin.readline(); print(json.dumps({'error': 'ValueError: x'}), flush=True)",
            "error: ValueError: x",
        ),
    ],
)
def test_a_hang_or_crash_costs_one_answer(body: str, rule: str) -> None:
    worker = MathWorker(timeout=0.5, command=(sys.executable, "-c", READY + body))
    try:
        for _ in range(2):
            result = score_math("1", sample("2", "math"), worker=worker)
            assert (result.correct, result.extracted) == (0.0, None)
            assert result.rule == rule
            worker.close()
    finally:
        worker.close()


PROGRAM = "{completion}\n\nassert add(2, 3) == 5\n"


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("def add(a, b): return a + b", "passed"),
        ("text\n```python\ndef add(a, b):\n    return a + b\n```\nmore", "passed"),
        ("def add(a, b): return a - b", "AssertionError"),
        ("def add(a, b):\n    while True: pass", "timeout"),
        ("x = bytearray(4 << 30)", "MemoryError"),
        (
            "import os; os.environ['PATH']; open('f', 'wb').write(b'x' * (40 << 20))",
            "File too large",
        ),
        (
            "import os\nassert not os.listdir('.')\nos.environ['SECRET']",
            "KeyError",
        ),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ],
)
def test_code_runs_within_limits(code: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    result = scorer("code", timeout=2.0)(code, sample(PROGRAM, "code"))
    assert rule in result.rule and result.correct == float(rule == "passed")


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="near: number"):
        scorer("numbr")
    with pytest.raises(ValueError, match="not among"):
        score("A", sample("E", "choice", FOUR))
    with pytest.raises(ValueError, match="holds no number"):
        score("1", sample("one", "number"))


def test_accuracy_is_an_evaluate_metric() -> None:
    scores = [1.0, 0.0, 1.0, 1.0]
    alone = accuracy_metric().compute(predictions=scores, references=["a", "b", "c", "d"])
    together = accuracy_metric().compute(predictions=scores, references=["a", "a", "b", "b"])
    assert alone is not None and together is not None
    assert alone["accuracy"] == together["accuracy"] == 0.75
    assert alone["accuracy_stderr"] == pytest.approx((0.75 / 12) ** 0.5)
    assert together["accuracy_stderr"] == pytest.approx((2 * (0.5**2 + 0.5**2)) ** 0.5 / 4)


@pytest.mark.parametrize(
    ("text", "right"),
    [("24/7", 1.0), ("Answer: 3.43", 1.0), ("3.4291.", 1.0), ("3.4", 0.0), ("24 of 7", 0.0)],
)
def test_alternatives_may_be_numbers(text: str, right: float) -> None:
    assert score(text, sample('["24/7", "3.429"]', "text")).correct == right


@pytest.mark.parametrize(("text", "right"), [("2.0954", 1.0), ("2.095", 1.0), ("2.0933", 0.0)])
def test_absolute_tolerance(text: str, right: float) -> None:
    assert score(text, sample("2.0944", "number"), absolute=0.001).correct == right


def test_options_that_an_image_numbers() -> None:
    asked = sample("3", "choice")
    texts = ("3", "The answer is 3.", "Option 3", "4", "C")
    assert [score(text, asked, multiple=True).correct for text in texts] == [1, 1, 1, 0, 0]


def test_options_of_the_same_text_count_alike() -> None:
    question = sample("C", "choice", {"A": "9", "B": "12", "C": "18", "D": "18"})
    assert [score(text, question).correct for text in ("C", "D", "The answer is D.", "B")] == [
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"\boxed{\$32,348}", r"\$32,\!348", 1.0),
        (r"\boxed{18.90}", r"\$18.90", 1.0),
        (r"\boxed{35}", r"\$36", 0.0),
        (r"16 $\pi$", r"\pi", 0.0),
        (r"16 $\pi$", r"16\pi", 1.0),
        ("There are 4 values of x for which $f(f(x)) = 3$.", "3", 0.0),
        (r"Thus the area is $\frac{1}{2}$.", r"\frac{1}{2}", 1.0),
        (r'{"answer": "\frac{1}{2}"}', "0.5", 1.0),
        ("<|begin_of_box|>x^2+1<|end_of_box|>", "1+x^2", 1.0),
    ],
)
def test_math_reads_currencies_and_no_part_of_an_answer(text: str, gold: str, right: float) -> None:
    assert score(text, sample(gold, "math")).correct == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{\text{May}}", 1.0),
        ("The hottest month on average in Cape Town is May.", 1.0),
        ('{"answer": "May"}', 1.0),
        ("The answer is May because the curve peaks there.", 1.0),
        ("It is May.", 1.0),
        ("<|begin_of_box|>May<|end_of_box|>", 1.0),
        ("The answer is not May.", 0.0),
        ("May or June", 0.0),
        ("In May it rains. The answer is June.", 0.0),
    ],
)
def test_text_forms(text: str, right: float) -> None:
    assert score(text, sample("May", "text")).correct == right


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes, there is no other dog.", "yes"),
        ("**No**, the sign says yes.", "no"),
        (r"\boxed{\text{Yes}}", "yes"),
        ('{"answer": "no"}', "no"),
        ("The answer is yes because there is no cat.", "yes"),
        ("There is no doubt that it is a dog.", None),
        ("Yes or no?", None),
    ],
)
def test_yes_no_forms(text: str, word: str | None) -> None:
    result = score(text, sample("yes", "yes_no"))
    if word is None:
        assert result.correct == 0.0
    else:
        assert result.extracted == word


@pytest.mark.parametrize(
    "text",
    [
        "(10,20),(30,40)",
        "<|box_start|>(10,20),(30,40)<|box_end|>",
        "<box>10 20 30 40</box>",
        '{"x1": 10, "y1": 20, "x2": 30, "y2": 40}',
        '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]\n```',
    ],
)
def test_box_forms(text: str) -> None:
    assert score(text, sample("[10, 20, 30, 40]", "box")).correct == 1.0


SOLUTION = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "text",
    [
        f"```python3\n{SOLUTION}```",
        f"```py\n{SOLUTION}```\nExample:\n```python\nprint(add(1, 2))\n```\nOutput:\n```\n3\n```",
        f"Here it is:\n```python\n{SOLUTION}",
        f"~~~python\n{SOLUTION}~~~",
        f"```Python\n{SOLUTION}```\n```bash\npip install x\n```",
    ],
)
def test_code_forms(text: str) -> None:
    assert code_of(text).strip() == SOLUTION.strip()


def test_thinking_whose_start_stood_in_the_prompt_is_no_answer() -> None:
    assert final_answer("3, or rather 4 </think>5") == "5"
    assert final_answer("<think>3</think>5") == "5"
    assert final_answer("5 <think>3") is None


def test_the_value_of_a_number_as_it_is_written() -> None:
    written = {"35%": 0.35, "1,000": 1000.0, "3/4": 0.75, "1/2 %": 0.005, "7/0": 7.0}
    assert {number: value_of(number) for number in written} == pytest.approx(written)


def test_the_last_program_of_a_text_is_its_code() -> None:
    blocks = [f"```python\ndef f():\n    return {number}\n```\n" for number in (1, 2)]
    assert code_of("".join(blocks)) == "def f():\n    return 2\n"
