"""Tables of rows that stay on the disk: Parquet by row group, and what `datasets` holds."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

MAX_GROUP_BYTES = 16 * 2**20
"""Row groups above this are too much to read for one row; `datasets` then converts the file once."""
GROUPS_HELD = 4
HEAD_COLUMNS = ("uid", "meta")
"""What is read of every row when a data set is opened: identity and split."""


class Table(Protocol):
    """Rows by position; `heads` gives each row's uid and meta, cheaply and in order."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> dict[str, Any]: ...
    def line(self, position: int) -> int:
        """What a person counts to find the row: a line or row number, from 1."""
        ...

    def heads(self) -> Iterator[Mapping[str, Any] | None]:
        """uid and meta of every row, as far as it has them; None for a row that cannot be read."""
        ...


class ParquetTable:
    """Rows of Parquet files, read a row group at a time; the last few groups are held."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the metadata of all files.

        Raises:
            ValueError: a file that is no readable Parquet.
        """
        self._paths = paths
        self._files = files = [_open(path) for path in paths]
        self._groups = [(file, n) for file in files for n in range(file.num_row_groups)]
        self._starts = [0]
        for file, number in self._groups:
            num_rows = file.metadata.row_group(number).num_rows
            self._starts.append(self._starts[-1] + num_rows)
        self._features = {id(file): _features(file.schema_arrow) for file in files}
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Another process opens the files anew and holds groups of its own."""
        return type(self), (self._paths,)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def largest_group(self) -> int:
        """Uncompressed bytes of the largest row group."""
        sizes = (file.metadata.row_group(number).total_byte_size for file, number in self._groups)
        return max(sizes, default=0)

    def __getitem__(self, position: int) -> dict[str, Any]:
        group = bisect_right(self._starts, position) - 1
        # Another thread may let go of a group between two of these lines, and a file has one reader.
        with self._lock:
            table = self._held.get(group)
            if table is None:
                file, number = self._groups[group]
                table = self._held[group] = file.read_row_group(number, use_threads=False)
            self._held.move_to_end(group)
            if len(self._held) > GROUPS_HELD:
                self._held.popitem(last=False)
        row = table.slice(position - self._starts[group], 1).to_pylist()[0]
        return self._features[id(self._groups[group][0])].decode_example(row)

    def line(self, position: int) -> int:
        """The row's number, from 1, over all files."""
        return position + 1

    def heads(self) -> Iterator[Mapping[str, Any]]:
        """uid and meta of every row."""
        for file in self._files:
            columns = [name for name in HEAD_COLUMNS if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                if columns:
                    group = file.read_row_group(number, columns=columns, use_threads=False)
                    yield from group.to_pylist()
                else:
                    yield from ({} for _ in range(file.metadata.row_group(number).num_rows))


class HubTable:
    """Rows of a `datasets.Dataset`, images left as path and bytes."""

    def __init__(self, table: Any) -> None:
        # Column by column: casting the whole table would write it anew.
        for column, feature in _undecoded(table.features).items():
            if feature != table.features[column]:
                table = table.cast_column(column, feature)
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self._table[position]

    def line(self, position: int) -> int:
        """The row's number, from 1."""
        return position + 1

    def heads(self) -> Iterator[Mapping[str, Any]]:
        """uid and meta of every row."""
        columns = [name for name in HEAD_COLUMNS if name in self._table.column_names]
        if columns:
            yield from self._table.select_columns(columns)
        else:
            yield from ({} for _ in range(len(self)))


def parquet_table(paths: Sequence[Path]) -> Table:
    """The rows of Parquet files, one file after the other.

    Files whose row groups are small are read in place. Others go once through the Arrow cache of
    `datasets` (on disk, memory-mapped), because shuffled reading would load a group for each row.

    Raises:
        ValueError: a file that is no readable Parquet.
    """
    table = ParquetTable(paths)
    return table if table.largest_group <= MAX_GROUP_BYTES else _converted(paths)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def _converted(paths: Sequence[Path]) -> Table:
    import datasets
    from datasets.exceptions import DatasetGenerationError
    from pyarrow.dataset import ParquetFragmentScanOptions

    # pre_buffer, which is the default, reads the whole file into memory before the first row.
    options: Any = {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    try:
        return HubTable(datasets.Dataset.from_parquet([str(path) for path in paths], **options))
    except (DatasetGenerationError, ValueError) as error:
        names = ", ".join(map(str, paths))
        raise ValueError(
            f"{names}: no readable Parquet of one form: {error.__cause__ or error}"
        ) from error


def _features(schema: pa.Schema) -> Any:
    import datasets

    return _undecoded(datasets.Features.from_arrow_schema(schema))


def _undecoded(features: Mapping[str, Any]) -> Any:
    """The features with images as path and bytes, which `load_image` then checks."""
    import datasets

    plain = datasets.Features(features)
    for column, feature in plain.items():
        if isinstance(feature, datasets.Image):
            plain[column] = datasets.Image(decode=False)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            plain[column] = datasets.List(datasets.Image(decode=False))
    return plain
