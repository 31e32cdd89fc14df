"""Samples on disk: append-only parts while a run goes on, one ordered file when it is done."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from dopd_vlm.types import ViewName

Record = dict[str, Any]


class SampleStore:
    """`samples_<task>__<view>.jsonl` in a folder, and this process's part of it.

    A part is flushed batch by batch; a line that a killed process left half-written is dropped
    when the file is read again.
    """

    def __init__(self, folder: Path, task: str, view: ViewName, rank: int) -> None:
        self._stem = f"samples_{task}__{view}"
        self._folder, self._rank = folder, rank
        self._file: TextIO | None = None

    @property
    def path(self) -> Path:
        """The finished file."""
        return self._folder / f"{self._stem}.jsonl"

    def finished(self) -> dict[str, Record]:
        """Key -> record of every whole line that earlier runs left, of any number of processes."""
        found: dict[str, Record] = {}
        for path in (self.path, *sorted(self._folder.glob(f"{self._stem}.part*.jsonl"))):
            if path.is_file():
                found.update({record["key"]: record for record in _whole_lines(path)})
        return found

    def append(self, records: Iterable[Record]) -> None:
        """Write records to this process's part and to the disk."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._part()
            if part.is_file():
                _cut_broken_end(part)
            self._file = part.open("a", encoding="utf-8")
        for record in records:
            self._file.write(to_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close this process's part; it stays until `finish`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, records: Sequence[Record]) -> None:
        """Write all records in the given order as the finished file, whole or not at all."""
        write_whole(self.path, "".join(map(to_line, records)))
        for part in self._folder.glob(f"{self._stem}.part*.jsonl"):
            part.unlink()

    def _part(self) -> Path:
        return self._folder / f"{self._stem}.part{self._rank}.jsonl"


def read_samples(path: Path) -> list[Record]:
    """The lines of a finished samples file."""
    return list(_whole_lines(path))


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def to_line(record: Mapping[str, Any]) -> str:
    """One JSON line."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> Iterable[Record]:
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)


def _cut_broken_end(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
