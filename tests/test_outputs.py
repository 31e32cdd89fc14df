"""Real outputs of models, judged by hand: what a reader takes from each is what the scorers read."""

import json
from pathlib import Path
from typing import Any

import pytest

from dopd_vlm.eval.scoring.choices import extract_choice, extract_choices
from dopd_vlm.eval.scoring.math import score_math
from dopd_vlm.eval.scoring.numbers import declared_number
from dopd_vlm.eval.scoring.quantity import read_quantity
from dopd_vlm.types import Sample, View

FILE = Path(__file__).parent / "fixtures" / "outputs" / "judged.jsonl"
OUTPUTS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("output", OUTPUTS, ids=[one["source"] for one in OUTPUTS])
def test_the_answer_that_a_reader_takes(output: dict[str, Any]) -> None:
    text, answer = output["text"], output["answer"]
    options = output["options"] or dict.fromkeys("ABCDEFGHIJ", "")
    if output["type"] == "choice":
        assert extract_choice(text, options)[0] == answer
    elif output["type"] == "choices":
        letters = extract_choices(text, options)[0]
        assert letters == (None if answer is None else frozenset(answer.split(",")))
    elif output["type"] == "number":
        number = declared_number(text)[0]
        read = None if number is None else read_quantity(number)
        assert read == (None if answer is None else read_quantity(answer))
    else:
        gold = Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())
        assert score_math(text, gold).correct == 1.0
