"""JSON lines and whole files that survive a kill.

A log grows by whole lines: what a kill left half-written is never read, and cut off before the next
line. Any other file is written under another name and renamed, so that nobody ever reads half of it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 65536
"""Bytes read at once in search of the last line end."""


def to_line(record: Mapping[str, Any]) -> str:
    """The record as one line of JSON; lone surrogates, which UTF-8 cannot hold, stay escaped."""
    line = json.dumps(record, ensure_ascii=False)
    return (line if line.isascii() or _is_utf8(line) else json.dumps(record)) + "\n"


def append_lines(
    path: Path, records: Iterable[Mapping[str, Any]], *, sync: bool = True
) -> list[tuple[int, int]]:
    """Appends the records and waits until the disk has them; one writer a file.

    Without `sync` it does not wait: the lines survive a kill of the process, not a loss of power.

    Returns (offset, size) in bytes of each line, its end left out. Makes the file and its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    places, lines = [], [to_line(record).encode() for record in records]
    with path.open("a+b") as file:
        offset = _cut_half_line(file)
        for line in lines:
            places.append((offset, len(line) - 1))
            offset += len(line)
        file.write(b"".join(lines))
        file.flush()
        if sync:
            os.fsync(file.fileno())
    return places


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none without the file. A half-written last line is left out."""
    if not path.exists():
        return []
    # Bytes, split at \n alone: the half line may end within a character, and strings may hold U+2028.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes the records as a file of their own, whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(map(to_line, records))


def write_whole(path: Path, text: str) -> Path:
    """Writes the text, whole or not at all; the path."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free name in the folder of `path` for a file, folder or link, renamed to `path` when the block ends.

    When the block raises, what has that name is deleted and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _delete(partial)
    try:
        yield partial
        if partial.is_dir() and not partial.is_symlink():
            _delete(path)  # a rename replaces files and links only
        partial.replace(path)
    except BaseException:
        _delete(partial)
        raise


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _cut_half_line(file: BinaryIO) -> int:
    """Cuts what follows the last line end; the file's size then."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    return end


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
