"""Raw rows from disk, the hub or memory, each knowing its file, line and picture folder.

A row is a dict as data/README.md describes it. `read_rows` adds `origin`: `{"file", "line",
"root"}`, and `uid` where there is none. Unknown columns stay; they can reach the teacher only.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

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
        table: Any,
        name: str,
        root: str | None,
        uids: Sequence[str],
        positions: Sequence[int] | None = None,
    ) -> None:
        self._table, self._name, self._root, self._uids = table, name, root, uids
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
            return Rows(self._table, self._name, self._root, self._uids, chosen)
        position = self._positions[index]
        row = _renamed(self._table[position])
        origin = {"file": self._name, "line": position + 1, "root": self._root}
        return {**row, "uid": self._uids[position], "origin": origin}

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
        source: a folder with `metadata.jsonl`, a `.jsonl` or `.parquet` file, a folder that
            `Dataset.save_to_disk` wrote, a `datasets` id on the hub, a `datasets.Dataset`, or
            dicts in memory.
        split: keeps this split: the data set's own, else rows whose `meta.split` it is.
        name: configuration of a hub data set.
        root: folder of the pictures where it is not the one `source` lies in.

    Returns:
        A sequence; tables stay on disk and rows are made when asked for.

    Raises:
        ValueError: no such source or split, a broken line (with its number), a uid held twice.
    """
    if not isinstance(source, str | Path):
        if hasattr(source, "column_names"):
            return _from_table(source, "data set", split, root)
        return _checked(source, "rows in memory", None if root is None else str(root), split)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, split, root)
    if path.is_file():
        folder = str(root or path.parent)
        if path.suffix == ".jsonl":
            return _checked(_read_jsonl(path), str(path), folder, split)
        if path.suffix == ".parquet":
            return _from_table(_parquet(path), str(path), split, folder)
        raise ValueError(f"cannot read {path}: need .jsonl, .parquet or a folder")
    return _from_hub(str(source), split, name, root)


def unique_uids(uids: Iterable[Any], name: str, word: str) -> list[str]:
    """The uids as strings; a missing one becomes `<file stem>-<index>`.

    Raises:
        ValueError: a uid held twice, naming both places.
    """
    stem = re.sub(r"\W+", "_", Path(name).stem)
    seen: dict[str, int] = {}
    for index, uid in enumerate(uids):
        text = f"{stem}-{index:06d}" if uid is None or uid == "" else str(uid)
        if text in seen:
            raise ValueError(
                f"{name}: {word}s {seen[text] + 1} and {index + 1} both have the uid {text!r}; "
                "uids must differ (leave the column out to get them from the position)"
            )
        seen[text] = index
    return list(seen)


def _from_folder(path: Path, split: str | None, root: str | Path | None) -> Sequence[Row]:
    if (path / METADATA).is_file():
        file = path / METADATA
        return _checked(_read_jsonl(file), str(file), str(root or path), split)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        import datasets

        return _from_table(datasets.load_from_disk(str(path)), str(path), split, root or path)
    if split is not None and (path / split).is_dir():
        return _from_folder(path / split, None, root)
    raise ValueError(
        f"folder {path} holds neither {METADATA} nor a data set written by save_to_disk"
        + (f", nor a folder {split!r}" if split else "")
    )


def _from_hub(
    source: str, split: str | None, name: str | None, root: str | Path | None
) -> Sequence[Row]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or Path(source).suffix in (
        ".jsonl",
        ".parquet",
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
    import datasets

    if isinstance(table, Mapping):
        if split not in table:
            raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(table)}")
        table, split = table[split], None
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(column, datasets.List(datasets.Image(decode=False)))
    given = table["uid"] if "uid" in table.column_names else [None] * len(table)
    uids = unique_uids(given, name, "row")
    positions = None
    if split is not None:
        metas = table["meta"] if "meta" in table.column_names else [None] * len(table)
        positions = _of_split([_split_of(meta) for meta in metas], split, name)
    return Rows(table, name, None if root is None else str(root), uids, positions)


def _parquet(path: Path) -> Any:
    import datasets
    from datasets.exceptions import DatasetGenerationError

    try:
        return datasets.Dataset.from_parquet(str(path))
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(
            f"{path} is no readable Parquet file: {error.__cause__ or error}"
        ) from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    # splitlines would also break at U+2028, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} must be an object, got {type(row).__name__}")
        yield {**row, "origin": {"line": number}}


def _checked(
    rows: Iterable[Mapping[str, Any]], name: str, root: str | None, split: str | None
) -> Sequence[Row]:
    listed = [_renamed(row) for row in rows]
    uids = unique_uids((row.get("uid") for row in listed), name, "row")
    made = []
    for index, (row, uid) in enumerate(zip(listed, uids, strict=True)):
        origin = row.get("origin")
        line = origin.get("line", index + 1) if isinstance(origin, Mapping) else index + 1
        made.append({**row, "uid": uid, "origin": {"file": name, "line": line, "root": root}})
    if split is None:
        return made
    splits = [_split_of(row.get("meta")) for row in made]
    return [made[position] for position in _of_split(splits, split, name)]


def _split_of(meta: Any) -> str | None:
    return meta.get("split") if isinstance(meta, Mapping) else None


def _of_split(splits: Sequence[Any], split: str, name: str) -> list[int]:
    """The positions whose split it is."""
    if split not in splits:
        known = sorted({str(other) for other in splits if other is not None})
        raise ValueError(f"{name}: no row has meta.split {split!r}; there are: {', '.join(known)}")
    return [position for position, other in enumerate(splits) if other == split]


def _renamed(row: Mapping[str, Any]) -> Row:
    """The row with the image-folder convention's columns under our names."""
    named = {FILE_COLUMNS.get(key, key): value for key, value in row.items()}
    if named.get("images") is None and named.get("image") is not None:
        named["images"] = [named["image"]]
    named.pop("image", None)
    return named
