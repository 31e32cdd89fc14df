"""`train.py --memory`: what a recipe needs per phase, and whether a device holds it."""

import os
from dataclasses import fields

from rich.console import Console
from rich.table import Table

from dopd_vlm.config import RunConfig
from dopd_vlm.memory.dry_step import empty_policy
from dopd_vlm.memory.known_models import KNOWN, estimated_views, known_model
from dopd_vlm.memory.predict import Device, MemoryReport, Phase, predict, this_device
from dopd_vlm.methods import configured_method
from dopd_vlm.scripts.wiring import samples as build
from dopd_vlm.training.samples import encoded_views

GIB = 1 << 30
ROWS = 32
"""Of so many rows the longest prompt is taken for the whole batch."""
TIGHT = 0.9
"""Above this share of a device, pieces of free memory between tensors can be what is missing."""


def show_memory(config: RunConfig, console: Console, gpu_gib: float | None = None) -> int:
    """Prints the prediction, for this machine or for a GPU of that many GiB; 0 if it fits, 1 if not."""
    device = this_device()
    if gpu_gib is not None:
        device = Device(kind="cuda", memory=int(gpu_gib * GIB))
    config = build.resolved(config)
    report = report_of(config, device)
    console.print(table(report))
    for note in notes(config, device):
        console.print(note, markup=False)
    word, style = verdict(report, device)
    console.print(
        f"peak {report.peak / GIB:.2f} GiB, {device.kind} has {device.memory / GIB:.1f} GiB: {word}",
        style=style,
    )
    if report.peak > TIGHT * device.memory:
        console.print(
            "lower optim.micro_batch_size, optim.score_batch_size or rollout.batch_size, "
            "set optim.gradient_checkpointing=true, lora.rank=64, or teacher.load_in=4bit"
        )
    return 0 if report.peak <= device.memory else 1


def verdict(report: MemoryReport, device: Device) -> tuple[str, str]:
    """In words, and the colour of them."""
    if report.peak > device.memory:
        return "it does not fit", "red"
    if report.peak > TIGHT * device.memory:
        return "it fits, but barely", "yellow"
    return "it fits", "green"


def notes(config: RunConfig, device: Device) -> list[str]:
    """What the reader must know of these numbers."""
    lines = []
    known = [m.path for m in (config.student, config.teacher) if known_model(m.path)]
    if known:
        lines.append(
            f"{', '.join(dict.fromkeys(known))}: from a table of shapes, prompts' lengths estimated; "
            "a folder with config and processor in its place gives exact ones"
        )
    if device.kind == "cpu":
        lines.append("this machine has no GPU: --memory=80 asks about one of 80 GiB, in bfloat16")
        lines.append(
            "counted are live tensors; malloc may hold on to freed memory beside them, a quarter more was seen: "
            "MALLOC_MMAP_THRESHOLD_=65536 in the environment gives it back, for some time"
        )
    if device.kind == "cuda":
        lines.append(
            "weights that are trained, moments and gradients in float32, the rest in bfloat16"
        )
    return lines


def report_of(config: RunConfig, device: Device) -> MemoryReport:
    """The prediction for a resolved recipe, with the prompts of its first rows."""
    return predict(
        config,
        configured_method(config),
        prompts_of(config),
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        device=device,
    )


def prompts_of(config: RunConfig) -> dict:
    """Encoded prompts of the first good rows, in every view of the method."""
    known = known_model(config.student.path)
    student = None if known else empty_student(config)
    samples = build.training_samples(config.data, views=build.further_views(config))
    views = configured_method(config).views
    encoded, problems = [], []
    for index in range(min(ROWS, len(samples))):
        try:
            sample = samples[index]
            encoded.append(
                encoded_views(config, student.encoder, sample, views)
                if student
                else estimated_views(config, sample, views)
            )
        except ValueError as error:
            problems.append(str(error))
    if not encoded:
        raise ValueError(f"no row of {config.data.train!r} can be used: {'; '.join(problems[:3])}")
    return {view: [prompts[view] for prompts in encoded] for view in views}


def empty_student(config: RunConfig):
    """The student's architecture and processor. Raises ValueError with the known names where there is none."""
    try:
        return empty_policy(config.student, device="cpu", trainable=False)
    except ValueError as error:
        raise ValueError(f"{error}; shapes are known of {', '.join(KNOWN)}") from error


def table(report: MemoryReport) -> Table:
    """GiB per phase and holder."""
    rich_table = Table(title="predicted GiB per process, completions of full length")
    columns = [field.name for field in fields(Phase)]
    for name in ("phase", *columns, "process", "total"):
        rich_table.add_column(name, justify="left" if name == "phase" else "right")
    for name, phase in report.phases.items():
        parts = [getattr(phase, column) for column in columns]
        total = phase.total + report.process
        cells = (f"{part / GIB:.3f}" for part in (*parts, report.process, total))
        rich_table.add_row(name, *cells, style="bold" if total == report.peak else "")
    return rich_table
