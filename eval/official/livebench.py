"""LiveBench's questions: one rule a task, none of them asks a judge.

The rules follow LiveBench's own program (process_results/ of its repository), in our own words;
where they are stricter or looser, tasks/SOURCES.md says so.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from dopd_vlm.types import Sample

from ..scoring.answers import Score, final_answer, unread
from ..scoring.math import score_math
from ..scoring.programs import cases_gold, score_tests
from .ifeval import instruction_score
from .livebench_rules import RULES, find_marked

CODE_TASKS = ("LCB_generation", "coding_completion")
MATHEMATICS = "AMPS_Hard"
INSTRUCTIONS = "instruction_following"
"""The category whose tasks have instructions in place of a truth."""


def score_livebench(text: str, sample: Sample) -> Score:
    """The rule of the question's task; gold is what `livebench_gold` makes.

    Raises:
        ValueError: a task that has no rule here, naming those that have.
    """
    gold = json.loads(sample.answer)
    task, answer = gold["task"], final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    if task in CODE_TASKS:
        return score_tests(answer, dataclasses.replace(sample, answer=gold["tests"]))
    if task == MATHEMATICS:
        return _mathematics(answer, gold["ground_truth"], sample)
    correct = _correctness(task, answer, gold) if answer.strip() else None
    if correct is None:
        return unread()
    return Score(correct=correct, extracted=find_marked(answer) or answer.strip()[-200:], rule=task)


def livebench_gold(raw: Mapping[str, Any]) -> str:
    """What a row's rule needs, as JSON.

    Raises:
        ValueError: no ground truth, no tests, or no instructions where the task needs them.
    """
    task = str(raw["task"])
    gold: dict[str, Any] = {"task": task}
    if task in CODE_TASKS:
        metadata = raw["original_json"]["metadata"]
        tests = [raw["public_test_cases"], raw["private_test_cases"], metadata]
        gold["tests"] = cases_gold(tests, start=raw.get("partial_solution") or "")
    elif raw.get("category") == INSTRUCTIONS:
        if not raw.get("instruction_id_list"):
            raise ValueError(f"a question of {task!r} has no instruction_id_list")
        gold["instructions"] = list(raw["instruction_id_list"])
        gold["arguments"] = [_set_arguments(one) for one in raw["kwargs"]]
    else:
        gold |= _truth(task, raw)
    return json.dumps(gold, ensure_ascii=False)


def _truth(task: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    truth = raw.get("ground_truth")
    if truth is None or truth == "":
        raise ValueError(f"a question of {task!r} has no ground_truth")
    truth = truth if isinstance(truth, str) else json.dumps(truth)
    needs_question = task in ("math_comp", "tablereformat")
    question = {"question": str(raw["turns"][0])} if needs_question else {}
    return {"ground_truth": truth, "release": str(raw["livebench_release_date"])[:10], **question}


def _set_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (arguments or {}).items() if value is not None}


def _mathematics(text: str, gold: str, sample: Sample) -> Score:
    """math-verify; gold's `\\ ` multiplies, and a constant of integration does not count."""
    gold = gold.replace("\\ ", " \\cdot ")
    text = re.sub(r"\+\s*[Cc](?![\w\\])", "", text)
    return score_math(text, dataclasses.replace(sample, answer=gold))


def _correctness(task: str, text: str, gold: Mapping[str, Any]) -> float | None:
    if "instructions" in gold:
        return instruction_score(text, gold["instructions"], gold["arguments"])
    if task not in RULES:
        known = (*RULES, *CODE_TASKS, MATHEMATICS)
        raise ValueError(f"LiveBench task {task!r} is not scored here; known: {', '.join(known)}")
    return RULES[task](text, gold)
