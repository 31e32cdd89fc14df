"""Every task on self-written rows in the benchmark's own schema: gold answers score 1, others 0."""

import json
from pathlib import Path

import pytest
import tiny

from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks import benchmark_names, load_benchmark
from dopd_vlm.eval.generators import Completion
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.schemas import to_row, to_rows
from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Message, Sample

FIXTURES = Path(__file__).parent / "fixtures" / "tasks"
SOLUTIONS = {
    "humaneval": [
        "    return a + b\n",
        "```python\ndef last(xs: List[int]) -> int:\n    return xs[-1]\n```",
    ]
}
"""Answers of tasks whose gold is a test, not a text."""
TASKS = [name for name in benchmark_names() if load_benchmark(name).columns]


def samples_of(name: str, folder: Path) -> list[Sample]:
    tiny.picture(40, 30).save(folder / "picture.png")
    task = load_benchmark(name)
    rows = to_rows(task, read_rows(FIXTURES / f"{name}.jsonl", root=folder))
    samples, skipped = make_samples(rows, [])
    assert not skipped, skipped
    return samples


def prompt_text(messages: list[Message]) -> str:
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)


def accuracy(name: str, samples: list[Sample], answers: list[str]) -> float:
    prompts = load_benchmark(name).prompts
    texts = {
        prompt_text(build_prompts(sample, prompts).plain): answer
        for sample, answer in zip(samples, answers, strict=True)
    }

    def complete(prompts, generation, seed):
        return [
            Completion(text=texts[prompt_text(p)], finish_reason="stop", num_tokens=1)
            for p in prompts
        ]

    found = evaluate("fake", name, samples=samples, generate=complete)
    assert found.error_rate == 0.0
    return found.accuracy


@pytest.mark.parametrize("name", TASKS)
def test_gold_is_right_and_nonsense_is_not(name: str, tmp_path: Path) -> None:
    samples = samples_of(name, tmp_path)
    assert len(samples) == 2
    gold = SOLUTIONS.get(name) or [s.answer for s in samples]
    assert accuracy(name, samples, gold) == 1.0
    if name not in SOLUTIONS:
        assert accuracy(name, samples, [f"\\boxed{{{answer}}}" for answer in gold]) == 1.0
    assert accuracy(name, samples, ["I cannot say.", ""]) == 0.0


def test_every_task_has_rows() -> None:
    assert {path.stem for path in FIXTURES.glob("*.jsonl")} == set(TASKS)


def test_pictures_and_their_places(tmp_path: Path) -> None:
    two, one = samples_of("mmmu", tmp_path)
    assert len(two.plain.images) == 2 and two.question.count("<image>") == 2
    assert one.answer_type == "number" and one.choices is None
    assert "Who has" in samples_of("zebralogic_mc", tmp_path)[1].question
    assert "picture 2" in samples_of("mmmu_pro", tmp_path)[1].question


def test_option_order_depends_on_the_question_alone() -> None:
    task = load_benchmark("gpqa_diamond")
    raw = [json.loads(line) for line in (FIXTURES / "gpqa_diamond.jsonl").read_text().splitlines()]
    alone = to_row(task, raw[1], 1)
    assert to_rows(task, raw)[1] == alone
    assert alone["choices"][alone["answer"]] == "argon"
    orders = {tuple(to_row(task, raw[1], i)["choices"].values()) for i in range(30)}
    assert len(orders) > 5


def test_missing_columns_are_named() -> None:
    with pytest.raises(
        ValueError, match="no column 'problem' or 'answer' or 'subject'; they have: question"
    ):
        to_rows(load_benchmark("math500"), [{"question": "1 + 1?"}])
