"""Other programs' formats to rows, and rows to other formats."""

from .exporters import EXPORTERS, export, write_parquet
from .folder import write_rows
from .importers import IMPORTERS, import_folder, import_rows

__all__ = [
    "EXPORTERS",
    "IMPORTERS",
    "export",
    "import_folder",
    "import_rows",
    "write_parquet",
    "write_rows",
]
