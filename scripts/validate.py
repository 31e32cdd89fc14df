"""Checks a data set row by row and prints a data card, which --card also writes.

    dopd validate rows/ --card rows/README.md
    dopd validate rows/ --against benchmark/     # shared questions and images

Exits with 1 when a row is bad, leaks privileged text into the question, or is in the other set.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dopd_vlm.data.validate import data_card, validate
from dopd_vlm.scripts.wiring.command_line import (
    add_plugin_option,
    command_parser,
    load_plugins,
)  # fmt: skip
from dopd_vlm.scripts.wiring.samples import rows_of


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments, checks, reports."""
    parser = command_parser("validate", __doc__)
    parser.add_argument("source", help="a data set as read_rows takes it")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--annotations", nargs="*", help="types to check; default: all there are")
    parser.add_argument("--against", help="another data set that must not share questions")
    parser.add_argument("--card", type=Path, help="write the data card here, e.g. rows/README.md")
    parser.add_argument("--problems", type=Path, help="write all bad rows here, as JSONL")
    add_plugin_option(parser)
    options = parser.parse_args(arguments)
    try:
        load_plugins(options)
        others = rows_of(options.against, None) if options.against else ()
        rows = rows_of(options.source, options.split)
        report = validate(rows, options.annotations, against=others)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    card = data_card(report, options.source)
    print(card)
    if options.card:
        options.card.write_text(card, encoding="utf-8")
        print(f"data card: {options.card}")
    if options.problems:
        lines = [json.dumps(asdict(problem), ensure_ascii=False) for problem in report.problems]
        options.problems.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 1 if report.problems or report.leaking or report.overlapping else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
