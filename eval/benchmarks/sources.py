"""A task's raw rows: all its configurations, splits and files, in turn from each."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmark import Benchmark
from .convert import PART

Row = Mapping[str, Any]
Read = Callable[..., Sequence[Row]]
"""(source, split=, name=) -> rows; ValueError when there are none."""


def raw_rows(task: Benchmark, read: Read, source: str | None = None) -> Sequence[Row]:
    """The task's rows as they are stored, or those of another source in the same schema.

    Several parts are read in turn, a row of each, so that the first N rows show them all; every row
    then names its own in `part`.

    Args:
        task: what to read.
        read: reads one table; `dopd_vlm.data.rows.read_rows`.
        source: a file or folder in place of the task's own rows.

    Raises:
        ValueError: nothing there, saying how to get it.
    """
    if source is not None:
        folder = Path(source)
        if task.files and folder.is_dir():
            return _from_files(task, folder)
        return read(source, split=None, name=None)
    try:
        if task.files:
            return _from_files(task, _downloaded(task))
        tables = [read(part.rows, split=part.split, name=part.config) for part in task.parts]
    except (ValueError, OSError) as error:
        reason = f"{task.rows}: {_first_line(error)}" if task.files else _first_line(error)
        raise ValueError(f"task {task.name!r}: {reason}; {_advice(task)}") from error
    return tables[0] if len(tables) == 1 else _in_turn([part.label for part in task.parts], tables)


def _in_turn(labels: Sequence[str], tables: Sequence[Sequence[Row]]) -> list[Row]:
    longest = max(map(len, tables))
    return [
        {**table[index], PART: label}
        for index in range(longest)
        for label, table in zip(labels, tables, strict=True)
        if index < len(table)
    ]


def _from_files(task: Benchmark, folder: Path) -> list[Row]:
    """Rows of JSON-lines files, joined with their answers by `id`; the part is the pattern's group."""
    matches = {path.name: re.fullmatch(task.files, path.name) for path in sorted(folder.iterdir())}
    names = {name: match[1] for name, match in matches.items() if match}
    if not names:
        raise ValueError(f"{folder} holds no file named {task.files}")
    tables = [_join_answers(folder / name, _answer_path(task, folder, name)) for name in names]
    return _in_turn(list(names.values()), tables)


def _answer_path(task: Benchmark, folder: Path, name: str) -> Path | None:
    path = folder / task.answer_files.replace("{file}", name)
    return path if task.answer_files and path.is_file() else None


def _join_answers(path: Path, answers: Path | None) -> list[Row]:
    by_id = {row["id"]: row for row in _lines(answers)} if answers else {}
    return [
        {"ground_truth": None, **row, **by_id.get(row["id"], {}), "origin": {"file": str(path)}}
        for row in _lines(path)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise ValueError(f"{path} is not JSON lines: {error}") from error


def _downloaded(task: Benchmark) -> Path:
    """The folder of the task's files in the hub's cache, after a download where there is a network."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", task.answer_files.replace("{file}", "*.json")]
    return Path(snapshot_download(task.rows, repo_type="dataset", allow_patterns=patterns))


def _advice(task: Benchmark) -> str:
    if task.access:
        return task.access
    names = dict.fromkeys(part.rows for part in task.parts)
    commands = "; ".join(
        f"hf download {name} --repo-type dataset --local-dir DIR" for name in names
    )
    rows = "DIR" if task.files else "DIR/FILE, .parquet or .jsonl"
    return (
        "run this once where there is a network (gated data need `hf auth login`), which fills the "
        f"cache, or fetch `{commands}` there and pass --rows {rows}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
