"""Writes a data set as one Parquet file with its images inside, in our form or another trainer's.

    dopd export-rows parquet rows/ rows.parquet
    dopd export-rows trl rows/ trl.parquet --annotations boxes hints

`trl` puts the teacher's text into `privileged_context`, `verl` its images into `bbox_images`.
Rows that make no sample are left out and counted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dopd_vlm.data.formats.exporters import EXPORTERS, export
from dopd_vlm.data.validate import MAX_LISTED
from dopd_vlm.scripts.wiring.command_line import command_parser
from dopd_vlm.scripts.wiring.samples import rows_of


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments, writes, reports; 1 when a row was left out."""
    parser = command_parser("export-rows", __doc__)
    parser.add_argument("kind", choices=sorted(EXPORTERS))
    parser.add_argument("source", help="a data set as read_rows takes it, or embedded:NAME/SPLIT")
    parser.add_argument("out", type=Path, help="the Parquet file to write")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--annotations", nargs="*", default=[], help="NAME or NAME:FORM")
    parser.add_argument("--coords", default="qwen3", help="coordinates of places in the text")
    options = parser.parse_args(arguments)
    pairs = [name.partition(":") for name in options.annotations]
    wanted = [(name, form) if form else name for name, _, form in pairs]
    try:
        rows = rows_of(options.source, options.split)
        written, skipped = export(options.kind, rows, wanted, options.out, coords=options.coords)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for bad in skipped[:MAX_LISTED]:
        print(bad.reason, file=sys.stderr)
    print(f"{written} rows in {options.out}, {len(skipped)} left out")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
