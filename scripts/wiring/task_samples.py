"""A benchmark's rows -> the questions that evaluate.py asks, and its first prompts on the console."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from dopd_vlm.data.embedded.sets import is_embedded
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval.benchmarks.benchmark import Benchmark
from dopd_vlm.eval.benchmarks.convert import convert
from dopd_vlm.eval.benchmarks.sources import raw_rows
from dopd_vlm.eval.picture_pool import PicturePool
from dopd_vlm.models.policy import Policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.samples import rows_of
from dopd_vlm.types import Sample, ViewName


def task_samples(task: Benchmark, options: argparse.Namespace, console: Console) -> list[Sample]:
    """The task's questions; rows that make none are counted and the first ones shown."""
    annotations = _annotations(options.annotations) or list(task.annotations)
    source = options.rows and options.rows.replace("{task}", task.name)
    found = convert(task, task_rows(task, source), options.limit)
    pool, samples, problems = PicturePool(), [], list(found.problems)
    for row in found.rows:  # one by one, so that equal pictures are never held twice
        made, skipped = make_samples([row], annotations, coords=options.coords)
        samples += map(pool.share, made)
        problems += [one.reason for one in skipped]
    if found.left_out:
        console.print(
            f"{task.name}: {found.left_out} rows are not among those that the task keeps",
            markup=False,
        )
    if problems:
        console.print(f"{task.name}: {len(problems)} rows are left out:", markup=False)
        for reason in problems[:3]:
            console.print(f"  {reason}", markup=False)
    return samples


def task_rows(task: Benchmark, source: str | None) -> Sequence[Mapping[str, Any]]:
    """The task's rows as they are stored, or those of another source in the same schema."""

    def read(source: str, *, split: str | None, name: str | None) -> Sequence[Mapping[str, Any]]:
        is_ours = is_embedded(source)
        return rows_of(source, split) if is_ours else read_rows(source, split=split, name=name)

    return raw_rows(task, read, source)


def show_prompts(
    model: Policy | Endpoint,
    task: Benchmark,
    samples: Sequence[Sample],
    view: ViewName,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """The first prompts as the model gets them: rendered, or the turns that an endpoint is sent."""
    for sample in samples[: options.show_prompts]:
        console.rule(f"{task.name} {view} {sample.uid}")
        for number, image in enumerate(sample.view(view).images, start=1):
            console.print(f"picture {number}: {image.width} x {image.height}", markup=False)
        messages = build_prompts(sample, task.prompts).view(view)
        console.print(_readable(model, messages, options.template_kwargs), markup=False)


def _readable(
    model: Policy | Endpoint,
    messages: list[dict[str, Any]],
    template_kwargs: Mapping[str, Any] | None,
) -> str:
    if isinstance(model, Policy):
        return model.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **(template_kwargs or {})
        )
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def _annotations(text: str | None) -> list[str | tuple[str, str]]:
    pairs = [part.partition(":") for part in listed(text or "")]
    return [(name, form) if form else name for name, _, form in pairs]


def listed(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
