"""Measure time and memory: the loss, whole steps, sampling, data.

    dopd bench loss --help

Each kind is the `main(arguments)` of benchmarks/<kind>.py, imported when it is called.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from dopd_vlm.scripts.wiring.command_line import command_parser

KINDS = {
    "loss": "the routed loss against its peers and against its matrix products alone",
    "step": "whole optimizer steps, seconds per phase, against TRL's trainer",
    "rollout": "sampling, against Hugging Face's generate and generate_batch",
    "data": "rows a second from files to model inputs, against a bare loop",
    "streaming": "memory and time of training on a set of many rows",
}


def main(arguments: Sequence[str]) -> int:
    """Hands the arguments after the kind to its module."""
    listing = "\n".join(f"  {name:10} {what}" for name, what in KINDS.items())
    parser = command_parser("bench", f"{__doc__}\n{listing}")
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("others", nargs=argparse.REMAINDER, metavar="...", help="of that kind")
    kind = parser.parse_args(arguments[:1]).kind
    import_module(f"dopd_vlm.scripts.benchmarks.{kind}").main(list(arguments[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
