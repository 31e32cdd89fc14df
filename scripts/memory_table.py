"""`train.py --memory`: what a recipe needs per phase, and whether this machine's device holds it."""

import os

import build
import torch
from rich.console import Console
from rich.table import Table

from dopd_vlm.assembly import configured_method
from dopd_vlm.config import RunConfig
from dopd_vlm.memory import MemoryReport, predict
from dopd_vlm.memory_probe import PROBE
from dopd_vlm.models import empty_policy
from dopd_vlm.state import encoded_views

GIB = 1 << 30
ROWS = 32
"""Rows whose longest prompt stands for the batch."""


def show_memory(config: RunConfig, console: Console) -> int:
    """Prints the prediction; 0 if it fits, 1 if it does not."""
    config = build.resolved(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = predict(
        config,
        configured_method(config),
        prompts_of(config),
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        device=device,
    )
    has = device_bytes(device)
    console.print(table(report))
    fits = report.peak <= has
    console.print(
        f"peak {report.peak / GIB:.2f} GiB, {device} has {has / GIB:.1f} GiB: "
        + ("it fits" if fits else "it does not fit"),
        style="green" if fits else "red",
    )
    if not fits:
        console.print(
            "lower optim.micro_batch_size, optim.score_batch_size or rollout.batch_size, "
            "set optim.gradient_checkpointing=true, lora.rank=64, or teacher.load_in=4bit"
        )
    return 0 if fits else 1


def prompts_of(config: RunConfig) -> dict:
    """Encoded prompts of the first good rows, in both views."""
    student = empty_policy(config.student, device="cpu", trainable=False, attention=PROBE)
    samples = build.training_samples(config.data)
    found, problems = [], []
    for index in range(min(ROWS, len(samples))):
        try:
            found.append(encoded_views(config, student, samples[index]))
        except ValueError as error:
            problems.append(str(error))
    if not found:
        raise ValueError(f"no row of {config.data.train!r} can be used: {'; '.join(problems[:3])}")
    return {view: [prompts[view] for prompts in found] for view in ("plain", "privileged")}


def device_bytes(device: str) -> int:
    """Memory of the GPU, or of the machine."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def table(report: MemoryReport) -> Table:
    """GiB per phase and holder."""
    made = Table(title="predicted GiB per process, completions of full length")
    columns = ("weights", "optimizer", "gradients", "work")
    for name in ("phase", *columns, "process", "total"):
        made.add_column(name, justify="left" if name == "phase" else "right")
    for name, phase in report.phases.items():
        parts = [getattr(phase, column) for column in columns]
        total = phase.total + report.process
        cells = (f"{part / GIB:.3f}" for part in (*parts, report.process, total))
        made.add_row(name, *cells, style="bold" if total == report.peak else "")
    return made
