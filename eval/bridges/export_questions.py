"""A task's questions in the files of VLMEvalKit and lmms-eval."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dopd_vlm.data_uri import image_base64
from dopd_vlm.jsonl import to_line, write_whole
from dopd_vlm.prompts import PLACEHOLDER, question_text
from dopd_vlm.types import Sample

from ..benchmarks.benchmark import Benchmark
from ..completions.store import Record

LMMS_FUNCTIONS = '''"""Images, text and score of the rows beside this file, for lmms-eval."""

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


def vlmevalkit(given: Export) -> list[Path]:
    """A TSV for each kind of question, since VLMEvalKit reads a whole file as one kind.

    `<task>.tsv` has images and options and is scored there. `_text` holds questions without
    images, which would be dropped from the other files, and `_openended` for those without options, which
    VLMEvalKit asks and does not score.
    """
    kinds: dict[str, list[tuple[int, Sample]]] = {}
    for index, sample in enumerate(given.samples):
        suffix = ("" if sample.plain.images else "_text") + ("" if sample.choices else "_openended")
        kinds.setdefault(suffix, []).append((index, sample))
    return [_table(given, suffix, placed) for suffix, placed in kinds.items()]


def _table(given: Export, suffix: str, placed: Sequence[tuple[int, Sample]]) -> Path:
    """index, image (a list written as text where there are several), question, A.., answer, category.

    `index` is the question's place in the task. Empty columns are left out: an empty
    `image` or `category` is read as NaN.
    """
    rows = [_cells(given, index, sample) for index, sample in placed]
    letters = sorted({letter for _, sample in placed for letter in sample.choices or ()})
    columns = ["index", "image", "question", *letters, "answer", "category"]
    text = io.StringIO()
    used = [name for name in columns if any(row.get(name) for row in rows) or name == "index"]
    writer = csv.DictWriter(text, used, delimiter="\t", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path = given.out / f"{given.task.name}{suffix}.tsv"
    write_whole(path, text.getvalue())
    return path


def _cells(given: Export, index: int, sample: Sample) -> dict[str, Any]:
    images = [image_base64(image) for image in sample.plain.images]
    return {
        "index": index,
        "image": images[0] if len(images) == 1 else str(images) if images else "",
        "question": _numbered(sample.question),
        **(sample.choices or {}),
        "answer": sample.answer,
        "category": sample.source.get(given.task.category or "", ""),
    }


def lmms_eval(given: Export) -> list[Path]:
    """A folder for `--include_path`: task YAML, functions, `test/metadata.jsonl` and images."""
    folder = (given.out / f"dopd_{given.task.name}").resolve()
    (folder / "test").mkdir(parents=True, exist_ok=True)
    rows = [_lmms_row(given, sample, index, folder) for index, sample in enumerate(given.samples)]
    lines = "".join(map(to_line, rows))
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


def _numbered(question: str) -> str:
    """`<image>` as `<image 1>`, `<image 2>`, ... in their order."""
    pieces = question.split(PLACEHOLDER)
    return "".join(
        piece + (f"<image {number}>" if number < len(pieces) else "")
        for number, piece in enumerate(pieces, start=1)
    )
