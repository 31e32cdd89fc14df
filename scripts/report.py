"""The page of a run, or of several runs side by side, from their run folders alone.

dopd report runs/a                              # runs/a/report.html
dopd report runs/a runs/b --out cmp.html        # two to eight runs
dopd report runs/a --figure routing.svg         # a figure: svg, pdf or png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dopd_vlm.scripts.wiring.command_line import command_parser

if TYPE_CHECKING:
    from dopd_vlm.eval.results.results import Results


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 2 for what the command line or a folder gets wrong."""
    options = _parser().parse_args(arguments)
    try:
        print(_write(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(options: argparse.Namespace) -> Path:
    from dopd_vlm.report.comparison import write_comparison
    from dopd_vlm.report.run_page import write_report
    from dopd_vlm.report.static_figure import write_figure

    if options.figure:
        if len(options.runs) > 1:
            raise ValueError("--figure draws one run; give one run folder")
        return write_figure(options.runs[0], options.figure, probe=options.probe, step=options.step)
    if len(options.runs) == 1:
        return write_report(options.runs[0], options.out)
    if options.out is None:
        raise ValueError("several runs need --out FILE.html for their common page")
    return write_comparison(options.runs, options.out, final_scores(options.runs))


def final_scores(run_dirs: Sequence[Path]) -> list[dict[str, str]]:
    """Accuracy of every run at its last evaluation, and its paired difference from the first run.

    Differences only where both answered the same questions.
    """
    # Here: the page of one run needs no benchmarks.
    from dopd_vlm.scripts.wiring.evaluation import last_evaluation

    lines = []
    evaluations = [last_evaluation(path) for path in run_dirs]
    baseline = {(r.name, r.view): r for r in evaluations[0][1]}
    names = dict.fromkeys((r.name, r.view) for _, results in evaluations for r in results)
    for task, view in names:
        for path, (step, results) in zip(run_dirs, evaluations, strict=True):
            one = next((r for r in results if (r.name, r.view) == (task, view)), None)
            if one is None:
                continue
            line = {
                "task": task,
                "view": view,
                "run": path.name,
                "step": str(step),
                "n": str(one.n),
            }
            line["accuracy, %"] = f"{100 * one.accuracy:.1f} ± {100 * one.stderr:.1f}"
            first = None if path is run_dirs[0] else baseline.get((task, view))
            lines.append(line | paired(one, first))
    return lines


def paired(one: "Results", first: "Results | None") -> dict[str, str]:
    """The columns that compare a run with the first one."""
    from dopd_vlm.eval.results.stats import mcnemar, paired_difference

    columns: dict[str, str] = dict.fromkeys(
        ("minus first, %", "p (paired)", "only this / only first", "p (McNemar)"), ""
    )
    if first is None:
        return columns
    if one.per_question.keys() != first.per_question.keys():
        return columns | {"minus first, %": "other questions"}
    difference = paired_difference(one.per_question, first.per_question, one.clusters or None)
    columns |= {
        "minus first, %": f"{100 * difference.value:+.1f} ± {100 * difference.stderr:.1f}",
        "p (paired)": f"{difference.p_value:.3g}",
    }
    if {*one.per_question.values(), *first.per_question.values()} <= {0.0, 1.0}:
        test = mcnemar(one.per_question, first.per_question)
        columns["only this / only first"] = f"{test.only_a} / {test.only_b}"
        columns["p (McNemar)"] = f"{test.p_value:.3g}"
    return columns


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, help="where the page goes; RUN/report.html for one run")
    parser.add_argument("--figure", type=Path, help="write a figure instead: svg, pdf or png")
    parser.add_argument("--probe", type=int, default=1, help="of the figure: which probe, from 1")
    parser.add_argument("--step", type=int, help="of the figure: which step; the last by default")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
