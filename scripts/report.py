"""The page of a run, or of several runs side by side, from their run folders alone.

    python scripts/report.py runs/a                              # runs/a/report.html
    python scripts/report.py runs/a runs/b --out cmp.html        # two to eight runs
    python scripts/report.py runs/a --figure routing.svg         # a still picture (svg, pdf or png)
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dopd_vlm.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for what the command line or a folder gets wrong."""
    options = _parser().parse_args(arguments)
    try:
        print(write_report(options.runs[0], options.out))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, help="where the page goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
