"""Measures time and memory: `loss` the routed loss alone, `step` whole steps, `rollout` sampling.

    python scripts/bench.py loss --help
    python scripts/bench.py step --help
    python scripts/bench.py rollout --help
    python scripts/bench.py data --help
    python scripts/bench.py streaming --help

Each subcommand is the `main(argv)` of benchmarks/<subcommand>.py, imported when it is called.
"""

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "loss": "the routed loss against its peers and against its matrix products alone",
    "step": "whole optimizer steps, seconds per phase, against TRL's trainer",
    "rollout": "sampling, against Hugging Face's generate and generate_batch",
    "data": "rows a second from files to model inputs, against a bare loop",
    "streaming": "memory and time of training on a set of many rows",
}


def main() -> None:
    """Hands the arguments after the subcommand to its module."""
    listing = "\n".join(f"  {name}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{listing}", formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=list(COMMANDS))
    command = parser.parse_args(sys.argv[1:2]).command
    import_module(f"dopd_vlm.scripts.benchmarks.{command}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
