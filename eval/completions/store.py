"""Samples on disk: append-only parts while a run goes on, one ordered file when it is done."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import append_lines, read_lines, write_lines
from dopd_vlm.types import ViewName

Record = dict[str, Any]
SYNC_EVERY_S = 1.0
"""A disk takes milliseconds to sync, and a thousand answers a second may come."""


class SampleStore:
    """`samples_<task>__<view>.jsonl` in a folder, and this process's part of it."""

    def __init__(self, folder: Path, task: str, view: ViewName, rank: int) -> None:
        self._stem = f"samples_{task}__{view}"
        self._folder, self._rank = folder, rank
        self._synced = 0.0

    @property
    def path(self) -> Path:
        """The finished file."""
        return self._folder / f"{self._stem}.jsonl"

    def finished(self) -> dict[str, Record]:
        """Key -> record of every whole line that earlier runs left, of any number of processes."""
        parts = sorted(self._folder.glob(f"{self._stem}.part*.jsonl"))
        lines = (record for path in (self.path, *parts) for record in read_lines(path))
        return {record["key"]: record for record in lines}

    def append(self, records: Iterable[Record]) -> None:
        """Write records to this process's part; the disk has them at most SYNC_EVERY_S later."""
        is_due = time.monotonic() - self._synced >= SYNC_EVERY_S
        self._synced = time.monotonic() if is_due else self._synced
        append_lines(self._folder / f"{self._stem}.part{self._rank}.jsonl", records, sync=is_due)

    def finish(self, records: Sequence[Record]) -> None:
        """Write all records in the given order as the finished file, whole or not at all."""
        write_lines(self.path, records)
        for part in self._folder.glob(f"{self._stem}.part*.jsonl"):
            part.unlink()
