"""Checks a data set row by row and prints a data card; exits with 1 when a row is bad.

python scripts/validate.py rows/ --card rows/README.md
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from build import rows_of

from dopd_vlm.data.validate import data_card, validate


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the arguments, checks, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a data set as read_rows takes it")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--annotations", nargs="*", help="types to check; default: all there are")
    parser.add_argument("--card", type=Path, help="write the data card here")
    parser.add_argument("--problems", type=Path, help="write all bad rows here, as JSONL")
    options = parser.parse_args(arguments)
    try:
        report = validate(rows_of(options.source, options.split), options.annotations)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    card = data_card(report, options.source)
    print(card)
    if options.card:
        options.card.write_text(card, encoding="utf-8")
    if options.problems:
        lines = [json.dumps(asdict(problem), ensure_ascii=False) for problem in report.problems]
        options.problems.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
