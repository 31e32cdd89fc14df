"""A task's questions, or a model's answers to them, in the files of other evaluation programs.

vlmevalkit  questions  <task>.tsv, pictures in base64; never a `hint` column, which it would print
lmms-eval   questions  a task folder: YAML, rows, pictures and functions that score as here
bfcl        answers    result/<model>/..._result.json, for `bfcl evaluate`
livebench   answers    data/live_bench/<category>/<task>/model_answer/<model>.jsonl
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dopd_vlm.picture_uri import picture_base64
from dopd_vlm.prompts import PLACEHOLDER, question_text
from dopd_vlm.types import Sample

from .benchmarks import Benchmark
from .requests import digest
from .store import Record, write_whole

LMMS_FUNCTIONS = '''"""Pictures, text and score of the rows beside this file, for lmms-eval."""

import json

from dopd_vlm.eval.scorers import scorer
from dopd_vlm.types import Sample, View

ANSWER_TYPE, OPTIONS = {answer_type!r}, {options!r}


def doc_to_visual(doc):
    return [image.convert("RGB") for image in doc.get("images") or ()]


def doc_to_text(doc):
    return doc["prompt"]


def process_results(doc, results):
    kind = doc["answer_type"] if ANSWER_TYPE == "row" else ANSWER_TYPE
    options = OPTIONS if ANSWER_TYPE != "row" or kind == "number" else {{}}
    sample = Sample(
        uid=doc["uid"],
        question=doc["question"],
        answer=doc["answer"],
        choices=json.loads(doc["choices"]),
        answer_type=doc["answer_type"],
        plain=View(),
        privileged=View(),
    )
    return {{"accuracy": scorer(kind, **options)(results[0], sample).correct}}
'''


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is written, and where."""

    task: Benchmark
    samples: Sequence[Sample]
    records: Sequence[Record]
    """Lines of the samples file; empty where the model was not run."""
    out: Path
    model: str


def export(kind: str, given: Export) -> list[Path]:
    """Write the files of one of FORMATS and return their paths.

    Raises:
        ValueError: unknown format, naming the near ones; no questions; answers that are missing; a
            task that is not of the format's benchmark.
    """
    if kind not in FORMATS:
        near = difflib.get_close_matches(kind, FORMATS, n=2) or list(FORMATS)
        raise ValueError(f"unknown export {kind!r}; near: {', '.join(near)}")
    if not given.samples:
        raise ValueError(f"task {given.task.name!r}: no questions to export; check its rows")
    return FORMATS[kind](given)


def vlmevalkit(given: Export) -> list[Path]:
    """One TSV: index, image (a list written as text where there are several), question, A.., answer, category."""
    letters = sorted({letter for sample in given.samples for letter in sample.choices or ()})
    columns = ["index", "image", "question", *letters, "answer", "category"]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    for index, sample in enumerate(given.samples):
        options = [(sample.choices or {}).get(letter, "") for letter in letters]
        pictures = [picture_base64(image) for image in sample.plain.images]
        shown = pictures[0] if len(pictures) == 1 else str(pictures) if pictures else ""
        category = sample.source.get(given.task.category or "", "")
        writer.writerow(
            [index, shown, _numbered(sample.question), *options, sample.answer, category]
        )
    path = given.out / f"{given.task.name}.tsv"
    write_whole(path, text.getvalue())
    return [path]


def lmms_eval(given: Export) -> list[Path]:
    """A folder for `--include_path`: task YAML, functions, `test/metadata.jsonl` and pictures."""
    folder = (given.out / f"dopd_{given.task.name}").resolve()
    (folder / "test").mkdir(parents=True, exist_ok=True)
    rows = [_lmms_row(given, sample, index, folder) for index, sample in enumerate(given.samples)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    command = (
        f"python -m lmms_eval --model dopd --model_args pretrained={given.model} "
        f"--tasks dopd_{given.task.name} --include_path {folder} --output_path out --log_samples\n"
    )
    functions = LMMS_FUNCTIONS.format(
        answer_type=given.task.answer_type, options=dict(given.task.scorer)
    )
    files = {
        "test/metadata.jsonl": lines,
        f"dopd_{given.task.name}.yaml": _lmms_task(given, folder),
        "utils.py": functions,
        "command.txt": command,
    }
    for name, text in files.items():
        write_whole(folder / name, text)
    return [folder / name for name in files]


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
        folder = given.out / "data" / "live_bench" / str(sample.source["group"])
        path = (
            folder / str(sample.source["category"]) / "model_answer" / f"{_safe(given.model)}.jsonl"
        )
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


FORMATS: dict[str, Callable[[Export], list[Path]]] = {
    "vlmevalkit": vlmevalkit,
    "lmms-eval": lmms_eval,
    "bfcl": bfcl,
    "livebench": livebench,
}


def _lmms_task(given: Export, folder: Path) -> str:
    generation = asdict(given.task.generation)
    tree = {
        "task": f"dopd_{given.task.name}",
        "test_split": "test",
        **_lmms_source(given, folder),
        "output_type": "generate_until",
        "doc_to_visual": "utils.doc_to_visual",
        "doc_to_text": "utils.doc_to_text",
        "doc_to_target": "answer",
        "process_results": "utils.process_results",
        "generation_kwargs": {
            "max_new_tokens": generation["max_completion_length"],
            "temperature": generation["temperature"],
            "do_sample": generation["temperature"] > 0,
        },
        "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 0},
    }
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return re.sub(r": (utils\.\w+)$", r": !function \1", text, flags=re.MULTILINE)


def _lmms_source(given: Export, folder: Path) -> Mapping[str, Any]:
    if any(sample.plain.images for sample in given.samples):
        return {"dataset_path": "imagefolder", "dataset_kwargs": {"data_dir": str(folder)}}
    files = {"test": str(folder / "test" / "metadata.jsonl")}
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}


def _lmms_row(given: Export, sample: Sample, index: int, folder: Path) -> dict[str, Any]:
    names = [f"{index:06d}_{number}.png" for number in range(len(sample.plain.images))]
    for name, image in zip(names, sample.plain.images, strict=True):
        image.save(folder / "test" / name)
    row = {
        "uid": sample.uid,
        "prompt": question_text(sample, given.task.prompts).replace(PLACEHOLDER, "").strip(),
        "question": sample.question,
        "answer": sample.answer,
        "answer_type": sample.answer_type,
        "choices": json.dumps(dict(sample.choices) if sample.choices else None),
    }
    return {"images_file_names": names, **row} if names else row


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
        write_whole(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in entries))
    return list(files)


def _numbered(question: str) -> str:
    """`<image>` as `<image 1>`, `<image 2>`, ... in their order."""
    pieces = question.split(PLACEHOLDER)
    return "".join(
        piece + (f"<image {number}>" if number < len(pieces) else "")
        for number, piece in enumerate(pieces, start=1)
    )


def _safe(model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", model).strip("_")
