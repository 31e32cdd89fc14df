"""What `bench.py step` and `bench.py rollout` share: options, the table, and a JSON that grows by runs."""

import argparse
import contextlib
import json
import platform
import signal
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from dopd_vlm.scripts.make.smollm2 import default_folder

MODELS = {"smollm2": "demo_text", "embedded_text": "demo_text", "embedded_vl": "demo"}
"""Model -> recipe that gives the prompts."""
FREE = ("out", "repeats", "variants", "profile")
"""Options that timings of one table may differ in."""

Timings = dict[str, list[dict[str, float]]]
"""Variant -> one entry a timed call: seconds per phase, and `tokens`, the completion tokens made."""


def bench_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """What both are told."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=list(MODELS), default="smollm2")
    add("--prompts", type=int, default=4, help="prompts a step")
    add("--generations", type=int, default=4, help="completions a prompt")
    add("--tokens", type=int, default=16, help="longest completion")
    add("--repeats", type=int, default=3, help="timings of each variant, after one untimed")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--natural", action="store_true", help="let completions end at EOS")
    add("--smollm2", type=Path, default=default_folder(), help="made by scripts/make/smollm2.py")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON")
    return parser


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ends its block at Ctrl-C or SIGTERM without an error: what was timed until then counts."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report_of(args: argparse.Namespace, timings: Timings, failed: dict[str, str]) -> dict:
    """Machine, settings, timings, and why what has none has none."""
    names = ("torch", "transformers", "trl")
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": args.threads,
        **{name: version(name) for name in names},
    }
    known = {k: v for k, v in vars(args).items() if k not in FREE and isinstance(v, int | str)}
    return {"machine": machine, "settings": known, "timings": timings, "failed": failed}


def write(args: argparse.Namespace, name: str, report: dict) -> dict:
    """Writes OUT/NAME_MODEL.json and returns it; timings on the same terms that it holds are kept."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}_{args.model}.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if all(before.get(key) == report[key] for key in ("machine", "settings")):
            for variant, timed in report["timings"].items():
                before["timings"].setdefault(variant, []).extend(timed)
            report = {**before, "failed": before["failed"] | report["failed"]}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{json.dumps(report['machine'])}\nwritten: {path}")
    return report


def table(report: dict, title: str, phases: Sequence[str], against: str) -> Table:
    """Median seconds per phase, tokens per second, and their ratio to one of the variants."""
    rich_table = Table(title=f"{title}, medians")
    shown = phases if len(phases) > 1 else ()
    for column in ("variant", "timed", *shown, "total", "min..max", "tokens/s", f"x {against}"):
        rich_table.add_column(column, justify="left" if column == "variant" else "right")
    timings: Timings = {name: calls for name, calls in report["timings"].items() if calls}
    for name, calls in timings.items():
        medians = [statistics.median(call.get(phase, 0.0) for call in calls) for phase in shown]
        totals = [sum(call.get(phase, 0.0) for phase in phases) for call in calls]
        ratio = speed(calls, phases) / speed(timings[against], phases) if against in timings else 0
        rich_table.add_row(
            name,
            str(len(calls)),
            *(f"{value:.3f}" for value in medians),
            f"{statistics.median(totals):.3f}",
            f"{min(totals):.2f}..{max(totals):.2f}",
            f"{speed(calls, phases):.1f}",
            f"{ratio:.2f}" if ratio else "-",
        )
    for name, reason in report["failed"].items():
        rich_table.add_row(name, reason)
    return rich_table


def speed(calls: Sequence[dict[str, float]], phases: Sequence[str]) -> float:
    """Completion tokens per second of the median call."""
    rates = [call["tokens"] / sum(call.get(phase, 0.0) for phase in phases) for call in calls]
    return statistics.median(rates)
