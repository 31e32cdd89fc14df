"""Raw rows from disk, the hub or memory, each knowing its file, line and image folder.

A row is a dict as data/README.md describes it. `read_rows` adds `origin`: `{"file", "line",
"root"}`, and `uid` where there is none. A line that is no row, and a row whose uid an earlier one has,
is a bad row: `origin` has a `problem`, which `make_sample` refuses it with. Unknown columns stay; they
can reach the teacher only.
Files are read row by row when a row is asked for, so a set may be larger than memory.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from .sources.jsonl import JsonLines
from .sources.tables import HubTable, Table, parquet_table
from .sources.webdataset import TarTable

Row = dict[str, Any]
METADATA = "metadata.jsonl"
FILE_COLUMNS = {
    "file_name": "image",
    "file_names": "images",
    "images_file_names": "images",
    "teacher_images_file_names": "teacher_images",
}
"""The image-folder convention of `datasets`, and what these columns are called here."""


class Rows(Sequence[Row]):
    """Rows made one at a time from a table, so that a large one stays on disk; so do slices."""

    def __init__(
        self,
        table: Table,
        name: str,
        root: str | None,
        positions: Sequence[int] | None = None,
        doubles: Mapping[int, int] | None = None,
    ) -> None:
        """`doubles`: position -> that of the earlier row with the same uid."""
        self._table, self._name, self._root = table, name, root
        self._doubles = doubles or {}
        self._positions = range(len(table)) if positions is None else positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            chosen = self._positions[index]
            return Rows(self._table, self._name, self._root, chosen, self._doubles)
        position = self._positions[index]
        origin = {"file": self._name, "line": self._table.line(position), "root": self._root}
        try:
            row = _renamed(self._table[position])
        except ValueError as error:
            row = {}
            origin["problem"] = str(error)
        uid = uid_at(row.get("uid"), position, self._name)
        if position in self._doubles:
            line = self._table.line(self._doubles[position])
            origin["problem"] = (
                f"line {line} has the uid {uid!r} too, and is kept; uids must differ (leave the column "
                "out to get them from the position)"
            )
        return {**row, "uid": uid, "origin": origin}

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def read_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    split: str | None = None,
    name: str | None = None,
    root: str | Path | None = None,
) -> Sequence[Row]:
    """The rows of a data set.

    Args:
        source: a `.jsonl`, `.parquet` or `.tar` (WebDataset) file; a folder with
            `metadata.jsonl`, of Parquet or tar shards, or that `Dataset.save_to_disk` wrote; a
            `datasets` id on the hub; a `datasets.Dataset`; or dicts in memory.
        split: keeps this split: the data set's own, else rows whose `meta.split` it is.
        name: configuration of a hub data set.
        root: folder of the images; by default the folder of `source`.

    Returns:
        A sequence; rows stay on the disk and are read when asked for.

    Raises:
        ValueError: no such source or split, a file that cannot be read at all.
    """
    if not isinstance(source, str | Path):
        if hasattr(source, "column_names"):
            return _from_table(source, "data set", split, root)
        listed = _Listed([dict(row) for row in source])
        return _from(listed, "rows in memory", split, root)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, split, root)
    if path.is_file():
        readers: dict[str, Callable[[Path], Table]] = {
            ".jsonl": JsonLines,
            ".parquet": lambda file: parquet_table([file]),
            ".tar": lambda file: TarTable([file]),
        }
        if path.suffix not in readers:
            raise ValueError(f"cannot read {path}: need .jsonl, .parquet, .tar or a folder")
        return _from(readers[path.suffix](path), str(path), split, root or path.parent)
    return _from_hub(str(source), split, name, root)


def uid_at(uid: Any, position: int, name: str) -> str:
    """The uid as a string; a missing one is `<file stem>-<position>`."""
    if uid is None or uid == "":
        stem = re.sub(r"\W+", "_", Path(name).stem)
        return f"{stem}-{position:06d}"
    return str(uid)


def sound_rows(source: str | Path) -> Iterator[Row]:
    """The rows of a file in another program's format, which is turned as a whole or not at all.

    Raises:
        ValueError: at the first bad row, with file and line.
    """
    for row in read_rows(source):
        origin = row["origin"]
        if "problem" in origin:
            raise ValueError(f"{origin['file']} line {origin['line']}: {origin['problem']}")
        yield row


def doubled_uids(uids: Callable[[], Iterable[Any]], name: str) -> dict[int, int]:
    """Position of each row whose uid an earlier row has -> position of that row.

    Args:
        uids: gives all uids in order, each time it is called; a second time only on suspicion.
    """
    hashes = np.array(array("q", (hash(uid_at(u, i, name)) for i, u in enumerate(uids()))))
    order = np.sort(hashes)
    twice = set(order[1:][order[1:] == order[:-1]].tolist())
    seen: dict[str, int] = {}
    doubles: dict[int, int] = {}
    for index, uid in enumerate(uids() if twice else ()):
        text = uid_at(uid, index, name)
        if text in seen:
            doubles[index] = seen[text]
        elif hash(text) in twice:
            seen[text] = index
    return doubles


class _Listed:
    """Rows in memory as a table."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Row:
        return self._rows[position]

    def line(self, position: int) -> int:
        return position + 1

    def heads(self) -> Iterator[Row | None]:
        return iter(self._rows)


def _from_folder(path: Path, split: str | None, root: str | Path | None) -> Sequence[Row]:
    if (path / METADATA).is_file():
        return _from(JsonLines(path / METADATA), str(path / METADATA), split, root or path)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        import datasets

        return _from_table(datasets.load_from_disk(str(path)), str(path), split, root or path)
    if split is not None and (path / split).is_dir():
        return _from_folder(path / split, None, root)
    for suffix, read in ((".parquet", parquet_table), (".tar", TarTable)):
        # The hub names shards of a split `train-00000-of-00010.parquet`.
        files = sorted(path.glob(f"*{suffix}"))
        of_split = [file for file in files if split and file.name.startswith(f"{split}-")]
        if files:
            table = read(of_split or files)
            return _from(table, str(path), None if of_split else split, root or path)
    raise ValueError(
        f"folder {path} holds neither {METADATA} nor a data set written by save_to_disk nor "
        "Parquet or tar shards" + (f", nor a folder {split!r}" if split else "")
    )


def _from_hub(
    source: str, split: str | None, name: str | None, root: str | Path | None
) -> Sequence[Row]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or Path(source).suffix in (
        ".jsonl",
        ".parquet",
        ".tar",
    ):
        raise ValueError(f"no file or folder {source!r}, and it is no hub id (owner/name) either")
    import datasets
    from datasets.config import HF_DATASETS_CACHE

    try:
        table = datasets.load_dataset(source, name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source!r} is no file or folder here, and loading it from the hub failed: {error}"
        ) from error
    return _from_table(table, source, split, root or HF_DATASETS_CACHE)


def _from_table(table: Any, name: str, split: str | None, root: str | Path | None) -> Sequence[Row]:
    """Rows over a `datasets` table; of a dict of tables, the one of that split."""
    if isinstance(table, Mapping):
        if split not in table:
            raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(table)}")
        table, split = table[split], None
    return _from(HubTable(table), name, split, root)


def _from(table: Table, name: str, split: str | None, root: str | Path | None) -> Rows:
    """Rows over a table, of one split of it when one is named."""
    doubles = doubled_uids(lambda: ((head or {}).get("uid") for head in table.heads()), name)
    folder = None if root is None else str(root)
    if split is None:
        return Rows(table, name, folder, doubles=doubles)
    # A row that cannot be read has no split: it is a bad row of each.
    splits = (split if head is None else _split_of(head.get("meta")) for head in table.heads())
    return Rows(table, name, folder, _of_split(splits, split, name), doubles)


def _split_of(meta: Any) -> str | None:
    """`meta.split`, also where a table stored meta as JSON text."""
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except ValueError:
            return None  # make_sample refuses the row and says so
    return meta.get("split") if isinstance(meta, Mapping) else None


def _of_split(splits: Iterable[Any], split: str, name: str) -> Sequence[int]:
    """The positions whose split it is."""
    positions, known = array("q"), set()
    for position, other in enumerate(splits):
        if other == split:
            positions.append(position)
        elif other is not None:
            known.add(str(other))
    if not positions:
        there = ", ".join(sorted(known))
        raise ValueError(f"{name}: no row has meta.split {split!r}; there are: {there}")
    return positions


def _renamed(row: Mapping[str, Any]) -> Row:
    """The row with the image-folder convention's columns under our names."""
    named = {FILE_COLUMNS.get(key, key): value for key, value in row.items()}
    if named.get("images") is None and named.get("image") is not None:
        named["images"] = [named["image"]]
    named.pop("image", None)
    return named
