"""A judge behind an endpoint: rules first, its verdict where they read nothing, garbage counted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from test_endpoint import chat, server

from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval.benchmarks.benchmark import Benchmark, load_benchmark
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.types import Sample, View

ANSWERS = {
    "clear": "The answer is 3.",
    "hidden": "There are as many as a triangle has corners.",
    "refusal": "I cannot see the image.",
    "wrong": "The answer is 5.",
    "garbage": "Nobody could count that.",
}
"""uid -> what the model says; gold is 3."""
TASK = Benchmark(name="count", description="d", rows="r", answer_type="number", judge="extract")


def samples() -> list[Sample]:
    return [
        Sample(uid=uid, question=f"How many? ({uid})", answer="3", answer_type="number",
               plain=View(), privileged=View())
        for uid in ANSWERS
    ]  # fmt: skip


def model(prompts: Any, generation: Any, seed: int) -> list[Any]:
    from dopd_vlm.eval.completions.generators import Completion

    texts = [turns[-1]["content"] for turns in prompts]
    uids = [next(uid for uid in ANSWERS if f"({uid})" in text) for text in texts]
    return [Completion(text=ANSWERS[uid], finish_reason="stop", num_tokens=5) for uid in uids]


def uid_of(body: dict[str, Any]) -> str:
    prompt = body["messages"][-1]["content"]
    return next(uid for uid in ANSWERS if f"How many? ({uid})" in prompt)


def extracting(body: dict[str, Any], tries: int) -> tuple[int, Any]:
    replies = {"clear": "3", "hidden": "<think>corners</think>Extracted answer: 3", "refusal": "none",
               "wrong": "3", "garbage": "As a language model, I like to count."}  # fmt: skip
    return 200, chat(replies[uid_of(body)])


def run(url: str, out: Path | None, task: Benchmark = TASK) -> Any:
    judge = Endpoint(url=url, model="judge", first_wait_s=0.01, max_repeats=1)
    return evaluate("m", task, samples=samples(), generate=model, out=out, judge=judge)


def lines(out: Path) -> dict[str, Any]:
    text = (out / "samples_count__plain.jsonl").read_text().splitlines()
    return {record["uid"]: record for record in map(json.loads, text)}


def test_rules_come_first_and_the_judge_reads_the_rest(tmp_path: Path) -> None:
    with server(extracting) as (url, bodies):
        found = run(url, tmp_path)
        records = lines(tmp_path)
        assert len(bodies) == 5 and not any(
            "\n3" in b["messages"][0]["content"][-9:] for b in bodies
        )
        again = run(url, tmp_path)
        assert len(bodies) == 5 and again == found
    right = {uid: record["accuracy"] for uid, record in records.items()}
    assert right == {"clear": 1.0, "hidden": 1.0, "refusal": 0.0, "wrong": 0.0, "garbage": 0.0}
    assert found.accuracy == pytest.approx(2 / 5)
    decided = [uid for uid, record in records.items() if record["filter"] == "judge"]
    assert decided == ["hidden", "refusal"]
    summary = found.settings["judge"]
    assert (summary["asked"], summary["unread"], summary["decided"]) == (5, 1, 2)
    assert (summary["agreement"], summary["compared"]) == (0.5, 2)
    assert found.second["judge_agreement"] == 0.5
    kept = records["hidden"]["judge"]
    assert kept["reply"].endswith("Extracted answer: 3") and "How many? (hidden)" in kept["prompt"]
    assert records["wrong"]["judge"]["verdict"] == 1.0 and records["wrong"]["judge"]["rules"] == 0.0
    # What nobody could read stays unread: the refusal, which the judge read as none, and the garbage.
    assert found.unparsed_rate == pytest.approx(2 / 5)


def test_a_verdict_needs_its_word(tmp_path: Path) -> None:
    replies = {"clear": "Judgement: correct", "hidden": "It fits.\n**Judgement:** correct",
               "refusal": "Judgement: incorrect", "wrong": "Judgement: incorrect",
               "garbage": "correct, perhaps incorrect"}  # fmt: skip
    task = dataclasses.replace(TASK, judge="verdict")
    with server(lambda body, tries: (200, chat(replies[uid_of(body)]))) as (url, bodies):
        found = run(url, tmp_path, task)
        assert all("Right answer: 3" in body["messages"][0]["content"] for body in bodies)
    assert found.accuracy == pytest.approx(2 / 5)
    summary = found.settings["judge"]
    assert (summary["unread"], summary["decided"], summary["agreement"]) == (1, 2, 1.0)


def test_a_judge_that_fails_decides_nothing_and_one_that_is_absent_is_an_error() -> None:
    with server(lambda body, tries: (400, "too long")) as (url, _):
        found = run(url, None)
    assert found.accuracy == pytest.approx(1 / 5) and found.settings["judge"]["unread"] == 5
    with pytest.raises(ValueError, match="is the server running"):
        run("http://127.0.0.1:9/v1", None)


def test_which_benchmarks_have_a_judge() -> None:
    protocols = {
        name: load_benchmark(name).judge
        for name in ("mathvista", "mathvision", "dynamath", "logicvista", "hallusionbench", "amo_bench", "mmstar")
    }  # fmt: skip
    assert set(protocols.values()) == {"extract", "verdict", ""} and protocols["mmstar"] == ""
    with pytest.raises(ValueError, match=r"judge of benchmark 'count': 'guess'"):
        dataclasses.replace(TASK, judge="guess")
