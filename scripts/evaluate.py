"""Evaluate a model on benchmarks, or compare two evaluations.

    python scripts/evaluate.py CHECKPOINT --tasks shapes --view plain,privileged --out results/
    python scripts/evaluate.py --endpoint http://127.0.0.1:8000/v1 --model NAME --suite paper_vlm --out results/
    python scripts/evaluate.py CHECKPOINT --harness lm-eval --tasks gsm8k --out results/
    python scripts/evaluate.py --compare results_a/ results_b/ --out comparison/
    python scripts/evaluate.py --export vlmevalkit --tasks mmstar --out files/

CHECKPOINT is a Hugging Face folder, a hub id or `embedded:NAME`. Under `accelerate launch` or
`torchrun` the processes share the questions. A run that was killed goes on in the same --out.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.eval.benchmarks.benchmark import benchmark_names, load_benchmark
from dopd_vlm.models.policy import end_processes
from dopd_vlm.scripts.wiring.evaluate_options import parser
from dopd_vlm.scripts.wiring.evaluate_other import compare, export_all, run_lm_eval
from dopd_vlm.scripts.wiring.evaluate_tasks import evaluate_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with the message of whatever the user can put right."""
    options = parser(__doc__).parse_args(arguments)
    disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        run(options, console)
        end_processes()
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    return 0


def run(options: argparse.Namespace, console: Console) -> None:
    """List, compare, export or evaluate."""
    if options.list:
        for name in benchmark_names():
            console.print(f"{name:20} {load_benchmark(name).description}", markup=False)
    elif options.compare:
        compare(options, console)
    elif not (options.tasks or options.suite):
        raise ValueError("give --tasks NAME[,NAME...] or --suite NAME; or --list; or --compare A B")
    elif options.export:
        export_all(options, console)
    elif bool(options.checkpoint) == bool(options.endpoint):
        raise ValueError("give either a CHECKPOINT or --endpoint URL")
    elif options.harness == "lm-eval":
        run_lm_eval(options, console)
    else:
        evaluate_all(options, console)


if __name__ == "__main__":
    sys.exit(main())
