"""One recipe under several methods and seeds, and a table of the final accuracies.

    dopd sweep demo --methods dopd,opd,priv_s_to_s --seeds 0,1,2

Every run is a process of `dopd train` in runs/sweep/METHOD-SEED; one that is finished is not run
again, one that was interrupted goes on. The table gives mean +- standard error over the seeds, in %.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from dopd_vlm.scripts.wiring.command_line import add_plugin_option, command_parser


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 1 where a run failed (the others are still made and shown)."""
    parser = command_parser("sweep", __doc__)
    parser.add_argument("recipe", help="a recipe's file, or the name of one that ships")
    parser.add_argument("--methods", default="dopd,opd,priv_s_to_s,priv_t_to_s,priv_t_to_priv_s")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    add_plugin_option(parser)
    given = parser.parse_intermixed_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    methods, seeds = given.methods.split(","), given.seeds.split(",")
    failed = []
    for seed in seeds:
        for method in methods:
            console.print(f"{method}, seed {seed}")
            settings = [*given.overrides, *(f"--plugin={path}" for path in given.plugin)]
            if not run(given.recipe, method, seed, given.out, settings):
                failed.append(f"{method}-{seed}")
    console.print(table(given.out, methods, seeds))
    if failed:
        console.print(f"failed: {', '.join(failed)}; their output is in {given.out}/NAME.log")
    return 1 if failed else 0


def run(recipe: str, method: str, seed: str, out: Path, overrides: Sequence[str]) -> bool:
    """Makes one run unless it is finished; its console output goes to a file beside it."""
    folder = out / f"{method}-{seed}"
    if final_scores(folder):
        return True
    settings = [
        f"name={folder.name}", f"output_dir={out}", f"seed={seed}", f"method.name={method}",
        f"resume={str(folder.exists()).lower()}", *overrides,
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "dopd_vlm.scripts.train", recipe, *settings]
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0


def final_scores(folder: Path) -> dict[str, float]:
    """{task/view: accuracy} of a finished run's last evaluation; empty where it is not finished."""
    if not (folder / "metrics.jsonl").exists():
        return {}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [r for r in map(json.loads, lines) if r["step"] == config["optim"]["max_steps"]]
    return {
        name.removeprefix("eval/").removesuffix("/accuracy"): value
        for record in last
        for name, value in record.items()
        if name.startswith("eval/") and name.endswith("/accuracy")
    }


def table(out: Path, methods: Sequence[str], seeds: Sequence[str]) -> Table:
    """Methods down, tasks and views across."""
    by_method = {
        m: [s for seed in seeds if (s := final_scores(out / f"{m}-{seed}"))] for m in methods
    }
    columns = sorted({name for scores in by_method.values() for one in scores for name in one})
    rich_table = Table(title="accuracy in %, mean +- standard error over seeds")
    rich_table.add_column("method")
    rich_table.add_column("seeds", justify="right")
    for name in columns:
        rich_table.add_column(name, justify="right")
    for method, scores in by_method.items():
        rich_table.add_row(
            method, str(len(scores)), *(cell([s[c] for s in scores]) for c in columns)
        )
    return rich_table


def cell(values: Sequence[float]) -> str:
    """Mean and, of two seeds or more, its standard error, in percent."""
    if not values:
        return "-"
    mean = f"{100 * statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} +- {100 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
