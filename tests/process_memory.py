"""Prints as JSON the bytes at the highest of each phase of a recipe's steps: measured or predicted.

python tests/process_memory.py measure|predict RECIPE [section.field=value ...]

`measure` takes two steps with completions of full length. The kernel keeps the highest resident size
since it was last told to forget it (Linux), so that each phase has its own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

from dopd_vlm.config import RunConfig, read_config
from dopd_vlm.memory.predict import this_device
from dopd_vlm.scripts.benchmarks import step as bench_step
from dopd_vlm.scripts.wiring import memory_table
from dopd_vlm.scripts.wiring import samples as build
from dopd_vlm.training.build import build_state
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.step import Clock, train_step

STEPS = 2
"""The optimizer's moments are there from the second on."""


class PhasePeaks(Clock):
    """The greatest resident size of this process in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")
        with super().phase(name):
            yield
        self.peaks[name] = resident("VmHWM")


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(config: RunConfig) -> dict[str, int]:
    process = resident("VmRSS")
    precision = "bf16" if config.precision == "bfloat16" else "no"
    state = build_state(config, Accelerator(cpu=True, mixed_precision=precision), Path("unused"))
    for policy in (state.student, state.teacher):
        bench_step.never_end_(policy)
    samples = build.training_samples(config.data)
    rows = [encode_sample(state, samples[i]) for i in range(config.optim.batch_size)]
    clock = PhasePeaks()
    for state.step in range(STEPS):
        train_step(state, rows, clock)
    return {"process": process, **clock.peaks, "peak": max(clock.peaks.values())}


def predicted(config: RunConfig) -> dict[str, int]:
    report = memory_table.report_of(config, this_device())
    phases = {name: phase.total + report.process for name, phase in report.phases.items()}
    sys.stderr.write(f"{report}\n")
    return {"process": report.process, **phases, "peak": report.peak}


def main(mode: str, recipe: str, overrides: Sequence[str]) -> None:
    torch.set_num_threads(1)
    config = build.resolved(read_config(recipe, overrides))
    found = measured(config) if mode == "measure" else predicted(config)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
