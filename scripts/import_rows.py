"""Turns other projects' files into a folder of rows.

    python scripts/import_rows.py coco instances.json --images DIR --out rows/

Pictures are stored upright as PNG. Rows whose pictures cannot be loaded are left out and listed
in OUT/skipped.jsonl.
"""

import argparse
import json
import sys
from pathlib import Path

from dopd_vlm.data.importers import IMPORTERS, import_rows
from dopd_vlm.data.store import write_rows


def main() -> int:
    """Reads the arguments, imports, reports; 1 when a row was skipped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(IMPORTERS))
    parser.add_argument("source", type=Path, help="the file, or the folder of pictures")
    parser.add_argument("--images", type=Path, help="folder of the pictures; default: the source's")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--question", default="Describe the picture.", help="where none is given")
    options = parser.parse_args()
    folder = options.source if options.source.is_dir() else options.source.parent
    try:
        rows = import_rows(options.kind, options.source, options.question)
        written, skipped = write_rows(rows, options.out, root=options.images or folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if skipped:
        lines = [json.dumps(entry, ensure_ascii=False) for entry in skipped]
        (options.out / "skipped.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{written} rows in {options.out}, {len(skipped)} skipped")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
