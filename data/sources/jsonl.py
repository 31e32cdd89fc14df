"""JSONL by position: where each line starts is held in memory, the lines stay on the disk."""

import json
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, line number from 1, bytes without the line end) of each line that is not blank.

    Lines end at \\n alone: JSON strings may hold U+2028, which str.splitlines would break at.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start = len(BOM) if number == 1 and line.startswith(BOM) else 0
            text = line[start:].rstrip(b"\r\n")
            if text.strip():
                yield offset + start, number, text
            offset += len(line)


class JsonLines:
    """The objects of a JSONL file, each parsed when asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets, self._sizes, self._lines = array("q"), array("q"), array("q")
        for offset, number, text in read_lines(path):
            self._offsets.append(offset)
            self._sizes.append(len(text))
            self._lines.append(number)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The object at that position.

        Raises:
            ValueError: the line is not UTF-8, not JSON or no object.
        """
        with self._path.open("rb") as file:
            return self._read(file.fileno(), position)

    def line(self, position: int) -> int:
        """The line number of the object, from 1."""
        return self._lines[position]

    def heads(self) -> Iterator[Mapping[str, Any] | None]:
        """All objects in order; None for a line that holds none."""
        with self._path.open("rb") as file:
            for position in range(len(self)):
                try:
                    yield self._read(file.fileno(), position)
                except ValueError:
                    yield None

    def _read(self, handle: int, position: int) -> dict[str, Any]:
        # pread has no shared file position, so threads do not disturb each other.
        data = os.pread(handle, self._sizes[position], self._offsets[position])
        try:
            row = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        except UnicodeDecodeError as error:
            raise ValueError(f"the line is not UTF-8: {error}") from error
        except ValueError as error:
            raise ValueError(f"the line is not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError("the line is not JSON that can be read: nested too deep") from error
        if not isinstance(row, dict):
            raise ValueError(f"the line must be an object, got {type(row).__name__}")
        return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; ValueError for a key that it holds twice, of which one would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return row


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it cannot be read, is not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
