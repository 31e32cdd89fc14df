"""A model's answers in the files of BFCL and LiveBench."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import write_lines
from dopd_vlm.types import Sample

from ..completions.requests import digest
from ..completions.store import Record
from .export_questions import Export


def bfcl(given: Export) -> list[Path]:
    """One result file a category, of the version that the rows' file names (3 by default)."""
    _need_answers(given, "bfcl", "calls")
    files: dict[Path, list[dict[str, Any]]] = {}
    for sample, records in _answered(given):
        category = json.loads(sample.answer)["category"]
        version = re.search(r"BFCL_v(\d+)_", str(sample.source.get("file")))
        number = version[1] if version else "3"
        folder = given.out / "result" / _safe(given.model)
        if int(number) > 3:
            folder = folder / ("live" if category.startswith("live") else "non_live")
        entry = {
            "id": sample.source["id"],
            "result": records[0]["resps"][0][0],
            "output_token_count": records[0]["num_tokens"],
        }
        files.setdefault(folder / f"BFCL_v{number}_{category}_result.json", []).append(entry)
    return _write_lines(files)


def livebench(given: Export) -> list[Path]:
    """One file of answers a task, a choice for every completion."""
    _need_answers(given, "livebench", "livebench")
    files: dict[Path, list[dict[str, Any]]] = {}
    for sample, records in _answered(given):
        group, task, model = (
            _safe(str(one))
            for one in (sample.source["group"], sample.source["category"], given.model)
        )
        folder = given.out / "data" / "live_bench" / group / task
        path = folder / "model_answer" / f"{model}.jsonl"
        question = str(sample.source["id"])
        entry = {
            "question_id": question,
            "answer_id": digest([question, given.model])[:22],
            "model_id": given.model,
            "choices": [
                {"index": record["sample_idx"], "turns": [record["resps"][0][0]]}
                for record in records
            ],
            "tstamp": 0.0,
        }
        files.setdefault(path, []).append(entry)
    return _write_lines(files)


def _answered(given: Export) -> list[tuple[Sample, list[Record]]]:
    """Every question with its completions, in the order of the questions."""
    by_uid: dict[str, list[Record]] = {}
    for record in given.records:
        by_uid.setdefault(record["uid"], []).append(record)
    missing = [sample.uid for sample in given.samples if sample.uid not in by_uid]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(given.samples)} questions have no answer in {given.out}, "
            f"first {missing[0]!r}: evaluate them with the same --out first"
        )
    return [
        (sample, sorted(by_uid[sample.uid], key=lambda record: record["sample_idx"]))
        for sample in given.samples
    ]


def _need_answers(given: Export, kind: str, answer_type: str) -> None:
    if given.task.answer_type != answer_type:
        raise ValueError(
            f"export {kind} is for tasks of that benchmark (answer_type {answer_type}), not "
            f"{given.task.name!r}"
        )


def _write_lines(files: Mapping[Path, Sequence[Mapping[str, Any]]]) -> list[Path]:
    for path, entries in files.items():
        write_lines(path, entries)
    return list(files)


def _safe(model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", model).strip("_")
