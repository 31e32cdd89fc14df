"""Real outputs of models with the verdicts that their benchmarks published, one reader a benchmark.

Each reader takes the folder of the benchmark's repository; eval/VERDICTS.md says which files it needs.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.benchmarks.convert import convert
from dopd_vlm.types import Sample

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One output and its official verdict."""

    task: str
    source: str
    """File of the output."""
    sample: Sample
    text: str
    is_right: bool
    """By the official judge."""
    answer: str = ""
    """What the official judge read."""


def read_mathvista(folder: Path) -> Iterator[Case]:
    """results/*/output_*.json: GPT-4 extracts. Programs' outputs and guesses are no texts of models."""
    for path in sorted(folder.glob("results/*/output_*.json")):
        if "_code" in path.name or "template" in path.name or "random" in str(path.parent):
            continue
        entries = [one for one in _json(path).values() if "true_false" in one and one["response"]]
        samples = _samples("mathvista", entries)
        for entry in entries:
            if sample := samples.get(str(entry["pid"])):
                yield Case(
                    task="mathvista", source=path.stem, sample=sample, text=str(entry["response"]),
                    is_right=entry["true_false"], answer=str(entry["extraction"]),
                )  # fmt: skip


def read_mathvision(folder: Path) -> Iterator[Case]:
    """data/test.jsonl and outputs/**/*.jsonl: rules and latex2sympy."""
    samples = _samples("mathvision", _lines(folder / "data/test.jsonl"))
    for path in sorted(folder.glob("outputs/*/**/*.jsonl")):
        for entry in _lines(path):
            if sample := samples.get(str(entry["id"])):
                yield Case(
                    task="mathvision", source=path.stem, sample=sample,
                    text=str(entry["response"]), is_right=entry["correct"],
                    answer=str(entry["model_answer"]),
                )  # fmt: skip


def read_mmmu_pro(folder: Path) -> Iterator[Case]:
    """mmmu-pro/output/*.jsonl: rules, a random letter where they read none."""
    for path in sorted(folder.glob("mmmu-pro/output/*.jsonl")):
        entries = _lines(path)
        samples = _samples("mmmu_pro", entries)
        for entry in entries:
            if sample := samples.get(str(entry["id"])):
                text = entry["response"] if isinstance(entry["response"], str) else ""
                yield Case(
                    task="mmmu_pro", source=path.stem, sample=sample, text=text,
                    is_right=entry["if_right"], answer=str(entry["pred_indexs"]),
                )  # fmt: skip


def read_logicvista(folder: Path) -> Iterator[Case]:
    """data/dataset.json and eval/results/*.csv: GPT-4 names the letters."""
    rows = [{"id": uid, **row} for uid, row in _json(folder / "data/dataset.json").items()]
    samples = _samples("logicvista", rows)
    for path in sorted(folder.glob("eval/results/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for entry in csv.DictReader(file):
                sample = samples.get(entry["id"])
                text = next(value for name, value in entry.items() if name.endswith("answer raw"))
                letters = next(value for name, value in entry.items() if name.endswith("extracted"))
                if sample and text:
                    yield Case(
                        task="logicvista", source=path.stem, sample=sample, text=text,
                        is_right=entry["match?"] == "1", answer=letters,
                    )  # fmt: skip


def read_zeroeval(folder: Path) -> Iterator[Case]:
    """result_dirs/gsm/*.json: the field "answer" of the JSON that the prompt asks for."""
    for path in sorted(folder.glob("result_dirs/gsm/*.json")):
        entries = _json(path)
        rows = [{**one, "answer": f"####{one['answer'].strip('# ')}"} for one in entries]
        samples = list(_samples("gsm8k", rows).values())
        for entry, sample in zip(entries, samples, strict=True):
            answer = _json_answer(entry["output"][0])
            yield Case(
                task="gsm8k", source=path.stem, sample=sample, text=entry["output"][0],
                is_right=_same_number(answer, sample.answer), answer=answer,
            )  # fmt: skip


def read_grade_school_math(folder: Path) -> Iterator[Case]:
    """example_model_solutions.jsonl: a human label each; "A: " comes before the answer."""
    path = folder / "grade_school_math/data/example_model_solutions.jsonl"
    entries = _lines(path)
    rows = [{**one, "answer": "####" + one["ground_truth"].rpartition("A: ")[2]} for one in entries]
    samples = list(_samples("gsm8k", rows).values())
    for entry, sample in zip(entries, samples, strict=True):
        for name, solution in entry.items():
            if isinstance(solution, Mapping):
                yield Case(
                    task="gsm8k", source=name, sample=sample,
                    text=solution["solution"].replace("A: ", "#### "),
                    is_right=solution["is_correct"],
                )  # fmt: skip


READERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "mathvista": read_mathvista,
    "mathvision": read_mathvision,
    "mmmu_pro": read_mmmu_pro,
    "logicvista": read_logicvista,
    "zeroeval": read_zeroeval,
    "grade_school_math": read_grade_school_math,
}
"""Benchmark -> reader of its folder."""


def _samples(task_name: str, raw: list[Row]) -> dict[str, Sample]:
    """{id of the row: Sample without images}; rows that the task cannot read are left out."""
    task = load_benchmark(task_name)
    task = replace(
        task, columns={key: value for key, value in task.columns.items() if key != "images"}
    )
    samples, _ = make_samples(convert(task, raw).rows, [])
    return {str(sample.source["id"]): sample for sample in samples}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _json_answer(text: str) -> str:
    """The last "answer": value, quoted or not; "" without one."""
    values = re.findall(r'"answer"\s*:\s*("(?:[^"\\]|\\.)*"|[^,}\n]*)', text)
    return values[-1].strip('" ') if values else ""


def _same_number(first: str, second: str) -> bool:
    first, second = (re.sub(r"[$,\s]", "", one) for one in (first, second))
    with suppress(ValueError):
        return float(first) == float(second)
    return first == second
