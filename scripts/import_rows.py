"""Turns other projects' files into a folder of rows.

    dopd import-rows coco instances.json --images DIR --out rows/

Upright JPEG, PNG and WebP images are kept as they are (linked where possible), others become
PNG. Rows whose images cannot be loaded are left out and listed in OUT/skipped.jsonl.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dopd_vlm.data.formats.importers import IMPORTERS, QUESTION, import_folder
from dopd_vlm.scripts.wiring.command_line import command_parser


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments, imports, reports; 1 when a row was skipped."""
    parser = command_parser("import-rows", __doc__)
    parser.add_argument("kind", choices=sorted(IMPORTERS))
    parser.add_argument("source", type=Path, help="the file, or the folder")
    parser.add_argument("--images", type=Path, help="folder of the images; default: the source's")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--question", default=QUESTION, help="where none is given")
    options = parser.parse_args(arguments)
    try:
        written, skipped = import_folder(
            options.kind,
            options.source,
            options.out,
            images=options.images,
            question=options.question,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{written} rows in {options.out}, {len(skipped)} skipped")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
