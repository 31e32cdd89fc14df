"""A file of a model's raw replies that survives a kill: append only, each line on the disk.

The first line holds the settings the replies were asked under; a half last line, left by a kill in
the middle of a write, is cut off at the next start, so that its request is asked again.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..sources.jsonl import read_lines

Record = dict[str, Any]


class RepliesFile:
    """Records by row uid; texts stay on the disk, only their places are held."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens or makes the file.

        Raises:
            ValueError: it holds replies that were asked under other settings, or is none of ours.
        """
        self._path = path
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        whole = _cut_half_line(path)
        self._file = path.open("ab")
        if whole:
            self._index(settings)
        else:
            self._append({"settings": dict(settings)})

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record, which holds its `uid`, and waits until the disk has it."""
        self._places[record["uid"]].append(self._append(record))

    def of(self, uid: str) -> list[Record]:
        """The row's records, oldest first."""
        with self._path.open("rb") as file:
            return [json.loads(os.pread(file.fileno(), n, at)) for at, n in self._places[uid]]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _index(self, settings: Mapping[str, Any]) -> None:
        for offset, number, line in read_lines(self._path):
            try:
                record = json.loads(line)
                if number > 1:
                    self._places[record["uid"]].append((offset, len(line)))
                    continue
                found = record["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path} line {number} is no reply: {error}") from error
            if found != dict(settings):
                changed = [key for key in settings if found.get(key) != settings[key]]
                raise ValueError(
                    f"{self._path} holds replies under other settings ({', '.join(changed)}: "
                    f"{[found.get(key) for key in changed]}); choose another --out"
                )

    def _append(self, record: Mapping[str, Any]) -> tuple[int, int]:
        line = json.dumps(record, ensure_ascii=False).encode()
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return offset, len(line)


def _cut_half_line(path: Path) -> bool:
    """Cuts what stands behind the last line end; whether anything whole is left."""
    if not path.exists():
        return False
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
    return end > 0
