"""`make gpu-check`: is the GPU path right, and how fast is it? Builds no environment and calls no pip.

    make gpu-check PYTHON=python3                         # all stages; each under 9 minutes on one H100
    python scripts/checks/gpu.py --stages loss step       # some of them
    python scripts/checks/gpu.py --small                  # the same code in small, also on a CPU
    python scripts/checks/gpu.py --into EXPERIMENTS.md    # puts the table of the last runs there

Needs torch >= 2.9 and Triton. transformers, TRL and Liger are used where they are installed. Each stage is a
process with a time limit that writes OUT/<stage>.json, so that an interrupted run loses one stage.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STAGES = {
    "kernels": "Triton rows and bfloat16 products against float64",
    "loss": "the routed loss against the bare products, dense, TRL and Liger",
    "step": "whole steps of a 2B-shaped student under an 8B-shaped teacher, and TRL's trainer",
    "decode": "tokens a second of the own sampling loop",
    "memory": "peak memory, predicted and measured",
    "fsdp": "the loss with the head of a sharded model, one process",
}
LIMIT_SECONDS = 540
BEGIN, END = "<!-- gpu-check -->", "<!-- /gpu-check -->"


def main(arguments: Sequence[str]) -> int:
    """Runs the stages and prints their table; 1 where one failed."""
    options = parse(arguments)
    if options.into is not None:
        put_into(options.into, table(options.out))
        return 0
    if options.stage is not None:
        return run_stage(options)
    failed = [stage for stage in options.stages if not in_a_process(stage, options)]
    print(table(options.out))
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    add("--small", action="store_true", help="small sizes, for a CPU or a first look")
    add("--out", type=Path, default=ROOT / "runs" / "gpu_check", help="folder of the results")
    add("--limit", type=float, default=LIMIT_SECONDS, help="seconds a stage may take")
    add("--into", type=Path, help="put the table of the last runs into this file, and end")
    add("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def in_a_process(stage: str, options: argparse.Namespace) -> bool:
    """Runs one stage; whether it ended well. What it measured before it failed is kept."""
    command = [sys.executable, str(Path(__file__)), "--stage", stage, "--out", str(options.out)]
    command += ["--small"] if options.small else []
    print(f"{stage}: {STAGES[stage]}", flush=True)
    start = time.perf_counter()
    try:
        status = subprocess.run(command, timeout=options.limit, check=False).returncode
        reason = f"ended with status {status}" if status else ""
    except subprocess.TimeoutExpired:
        reason = f"took more than {options.limit:.0f} s"
    path = options.out / f"{stage}.json"
    report = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    report |= {"seconds": round(time.perf_counter() - start, 1), "failed": reason}
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    return not reason


def run_stage(options: argparse.Namespace) -> int:
    """One stage, in this process; each row is written as it is measured."""
    os.environ.setdefault("TRITON_INTERPRET", "0" if has_cuda() else "1")
    map_folders()
    from dopd_vlm.scripts.checks import gpu_stages

    options.out.mkdir(parents=True, exist_ok=True)
    path, rows = options.out / f"{options.stage}.json", []
    path.unlink(missing_ok=True)
    for row in getattr(gpu_stages, options.stage)(is_small=options.small):
        rows.append(row)
        report = {"machine": gpu_stages.machine(), "small": options.small, "rows": rows}
        path.write_text(json.dumps(report, indent=1))
        print("  " + "  ".join(map(str, row.values())), flush=True)
    return 1 if any(str(row["result"]).startswith("WRONG") for row in rows) else 0


def has_cuda() -> bool:
    """Whether a GPU answers; before Triton is imported, which then decides how it runs."""
    import torch

    return torch.cuda.is_available()


def map_folders() -> None:
    """Where the project is not installed: data, eval and scripts as the packages that they are."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    for name in ("data", "eval", "scripts"):
        package = f"dopd_vlm.{name}"
        if find_spec(package) is None:
            _import_folder(package, ROOT / name)


def _import_folder(package: str, folder: Path) -> None:
    spec = spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert isinstance(spec, ModuleSpec) and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)


def table(out: Path) -> str:
    """Markdown of all stages that left a file."""
    lines = ["| stage | what | result |", "|---|---|---|"]
    machines = set()
    for stage in STAGES:
        path = out / f"{stage}.json"
        if not path.is_file():
            continue
        report = json.loads(path.read_text())
        machines |= {json.dumps(report.get("machine", {}))}
        lines += [_line(stage, row) for row in report["rows"]]
        if report.get("failed"):
            lines.append(f"| {stage} | | {report['failed']} |")
    return "\n".join([*sorted(machines), "", *lines])


def _line(stage: str, row: dict[str, Any]) -> str:
    return f"| {stage} | {row['what']} | {row['result']} |"


def put_into(path: Path, text: str) -> None:
    """The table between its two marks in the file; at its end where they are missing."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    block = f"{BEGIN}\n\n{text}\n\n{END}"
    path.write_text(before.rstrip() + f"\n\n{block}" + (after or "\n"), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
