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

from dopd_vlm.jsonl import append_lines

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
        append_lines(path, [])  # cuts what a kill left half-written
        if path.stat().st_size:
            self._index(settings)
        else:
            append_lines(path, [{"settings": dict(settings)}])

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record, which holds its `uid`, and waits until the disk has it."""
        self._places[record["uid"]] += append_lines(self._path, [record])

    def of(self, uid: str) -> list[Record]:
        """The row's records, oldest first."""
        with self._path.open("rb") as file:
            return [json.loads(os.pread(file.fileno(), n, at)) for at, n in self._places[uid]]

    def _index(self, settings: Mapping[str, Any]) -> None:
        for offset, number, line in read_lines(self._path):
            try:
                record = json.loads(line)
                if number > 1:
                    self._places[record["uid"]].append((offset, len(line)))
                    continue
                earlier = record["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path} line {number} is no reply: {error}") from error
            if earlier != dict(settings):
                changed = [key for key in settings if earlier.get(key) != settings[key]]
                raise ValueError(
                    f"{self._path} holds replies under other settings ({', '.join(changed)}: "
                    f"{[earlier.get(key) for key in changed]}); choose another --out"
                )
