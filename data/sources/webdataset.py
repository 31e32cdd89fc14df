"""WebDataset shards: uncompressed tar files in which files of one base name make one row.

`0001.jpg`, `0001.json` and `0001.txt` are one sample: `json` holds the row's columns (question,
answer, annotations, ...), files named as images are its `images` in the order of their names, and
`txt` and `cls` become the columns of that name. Nothing is ever unpacked to the disk.
"""

import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_TEXT_BYTES = 16 * 2**20
TEXT_COLUMNS = ("txt", "cls")


class TarTable:
    """Rows of tar shards; only the place of each file is held in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers of all shards.

        Raises:
            ValueError: a shard that is no tar, is compressed or cut off, or has members that are
                links, devices or named outside the archive.
        """
        self._paths = list(paths)
        self._keys, self._key_ends = bytearray(), array("q", [0])
        self._suffixes: list[str] = []
        """Distinct suffixes; `_kinds` points into it."""
        self._firsts, self._shards = array("q"), array("i")
        self._offsets, self._sizes, self._kinds = array("q"), array("q"), array("i")
        for shard, path in enumerate(self._paths):
            self._index(shard, path)
        self._firsts.append(len(self._offsets))

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The row at that position.

        Raises:
            ValueError: its `json` is none, or is no object.
        """
        row: dict[str, Any] = {}
        images, texts = [], {}
        key, path = self._key(position), self._paths[self._shards[position]]
        with path.open("rb") as file:
            for index in range(self._firsts[position], self._firsts[position + 1]):
                suffix = self._suffixes[self._kinds[index]]
                data = os.pread(file.fileno(), self._sizes[index], self._offsets[index])
                where = f"{path}: {key}{suffix}"
                if suffix.endswith(IMAGE_SUFFIXES):
                    images.append((suffix, {"bytes": data, "path": f"{key}{suffix}"}))
                elif suffix == ".json":
                    row = _object(where, data)
                elif suffix[1:] in TEXT_COLUMNS:
                    texts[suffix[1:]] = _text(where, data).strip()
        images = [image for _, image in sorted(images, key=lambda named: named[0])]
        return {"uid": key, **texts, **row, "images": images}

    def line(self, position: int) -> int:
        """The row's number, from 1, over all shards."""
        return position + 1

    def heads(self) -> Iterator[Mapping[str, Any] | None]:
        """uid and meta of every row, None where its `json` is none; images are not read."""
        for position in range(len(self)):
            try:
                yield self._head(position)
            except ValueError:
                yield None

    def _head(self, position: int) -> Mapping[str, Any]:
        key = self._key(position)
        head = {"uid": key}
        path = self._paths[self._shards[position]]
        for index in range(self._firsts[position], self._firsts[position + 1]):
            if self._suffixes[self._kinds[index]] == ".json":
                with path.open("rb") as file:
                    data = os.pread(file.fileno(), self._sizes[index], self._offsets[index])
                row = _object(f"{path}: {key}.json", data)
                head |= {name: row[name] for name in ("uid", "meta") if name in row}
        return head

    def _key(self, position: int) -> str:
        name = self._keys[self._key_ends[position] : self._key_ends[position + 1]]
        return name.decode("utf-8", "surrogateescape")

    def _index(self, shard: int, path: Path) -> None:
        last, kinds = None, {suffix: n for n, suffix in enumerate(self._suffixes)}
        for member in _members(path):
            name = PurePosixPath(member.name)
            base, dot, rest = name.name.partition(".")
            key, suffix = str(name.parent / base), (dot + rest).lower()
            if key != last:
                self._keys += key.encode("utf-8", "surrogateescape")
                self._key_ends.append(len(self._keys))
                self._firsts.append(len(self._offsets))
                self._shards.append(shard)
                last = key
            if suffix not in kinds:
                kinds[suffix] = len(self._suffixes)
                self._suffixes.append(suffix)
            if member.size > MAX_TEXT_BYTES and not suffix.endswith(IMAGE_SUFFIXES):
                raise ValueError(f"{path}: {member.name} has {member.size} bytes: no text")
            self._kinds.append(kinds[suffix])
            self._offsets.append(member.offset_data)
            self._sizes.append(member.size)


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar, checked."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # TarFile keeps every member it has seen; a large shard has millions.
                tar.members = []  # type: ignore[attr-defined]
                pure = PurePosixPath(member.name)
                if pure.is_absolute() or ".." in pure.parts:
                    raise ValueError(f"{path}: member {member.name!r} is named outside the archive")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{path}: member {member.name!r} is no plain file")
                if member.offset_data + member.size > size:
                    raise ValueError(f"{path}: member {member.name!r} is cut off")
                yield member
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is no uncompressed tar file: {error}; decompress a .tar.gz first, as rows "
            "are read by position"
        ) from error


def _text(where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error


def _object(where: str, data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(_text(where, data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object, got {type(row).__name__}")
    return row
