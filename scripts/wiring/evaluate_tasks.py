"""evaluate.py's main work: every task in every view, then the table and the report."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dopd_vlm.config import ModelConfig, RolloutConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.errors import unknown
from dopd_vlm.eval.benchmarks.benchmark import SUITES, Benchmark, load_benchmark
from dopd_vlm.eval.benchmarks.profile import Profile, load_profile
from dopd_vlm.eval.completions.endpoint import endpoint_name, only_model
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results import tables as report
from dopd_vlm.eval.results.examples import Example, Shown, changed_samples
from dopd_vlm.eval.results.merge import check_folder, with_earlier
from dopd_vlm.eval.results.page import EXAMPLES, choose_samples, write_report
from dopd_vlm.eval.results.results import Results, write_results
from dopd_vlm.jsonl import read_lines
from dopd_vlm.models.chat import render
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout.engine import EngineError, RolloutEngine
from dopd_vlm.rollout.engines import open_engine
from dopd_vlm.scripts.wiring.samples import local_path, split_names, task_samples
from dopd_vlm.types import Sample, ViewName

TEXT_SUITES = ("paper_llm",)
"""Suites whose published numbers are of models that do not think; --template-kwargs '{}' leaves it to the model."""
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[speed]}"),
)


@dataclass(kw_only=True)
class Findings:
    """What the tasks gave so far, and what kept others from running."""

    results: list[Results] = field(default_factory=list)
    examples: dict[tuple[str, str], Shown] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def evaluate_all(options: argparse.Namespace, console: Console) -> None:
    """Every task in every view; one that cannot run stops no other and is named at the end.

    Raises:
        ValueError: tasks that did not run, each with its reason, after the report of the others.
    """
    tasks = [load_benchmark(name) for name in task_names(options.tasks, options.suite)]
    profile = load_profile(options.profile) if options.profile else None
    tasks = [profile.task(task) for task in tasks] if profile else tasks
    options.template_kwargs = template_kwargs(options, profile)
    judge = load_judge(options, tasks)
    model = load_model(options)
    options.sampler = open_sampler(options, model)
    if options.out is not None:
        check_folder(
            options.out, endpoint_name(model) if isinstance(model, Endpoint) else model.path
        )
    is_main = process_state().is_main_process
    findings = Findings()
    with Progress(*COLUMNS, console=console, disable=not is_main) as progress:
        for task in tasks:
            if not _add_task(findings, model, judge, task, options, progress):
                break
    if findings.results and is_main:
        finish(findings, options.out, console)
    if findings.problems:
        count = f"{len(findings.problems)} of {len(tasks)} tasks"
        raise ValueError(f"{count} did not run to their end:\n" + "\n".join(findings.problems))


def _add_task(
    findings: Findings,
    model: Policy | Endpoint,
    judge: Endpoint | None,
    task: Benchmark,
    options: argparse.Namespace,
    progress: Progress,
) -> bool:
    """Adds the task's results or why there are none; False where going on makes no sense."""
    try:
        samples = task_samples(task, options, progress.console)
    except ValueError as error:
        findings.problems.append(_name_task(task, error))
        return True
    for view in split_names(options.view):
        try:
            result = evaluate_one(model, task, samples, view, options, progress, judge)
        except (ValueError, EngineError) as error:
            findings.problems.append(_name_task(task, error))
            # An endpoint that refuses one task refuses all, and of several processes the others
            # are still in this task.
            return isinstance(model, Policy) and process_state().num_processes == 1
        findings.results.append(result)
        if result.samples_path is not None and process_state().is_main_process:
            findings.examples[result.name, view] = choose_samples(
                task.name, read_lines(result.samples_path), samples, task.category
            )
    return True


def _name_task(task: Benchmark, error: Exception) -> str:
    text = str(error)
    return f"- {text}" if repr(task.name) in text else f"- task {task.name!r}: {text}"


def load_model(options: argparse.Namespace) -> Policy | Endpoint:
    """The checkpoint on this process's device, or the endpoint."""
    if not options.endpoint:
        device = process_state().device or "cpu"
        config = ModelConfig(path=local_path(options.checkpoint))
        return load_policy(config, device=device, trainable=False)
    urls = [url.rstrip("/") for url in options.endpoint]
    endpoint = Endpoint(
        url=urls[0],
        more_urls=tuple(urls[1:]),
        model=options.model or "",
        api_key=os.environ.get("OPENAI_API_KEY"),
        max_concurrent=options.concurrent,
        timeout_s=options.timeout,
        max_repeats=options.repeats,
    )
    return endpoint if options.model else replace(endpoint, model=only_model(endpoint))


def open_sampler(options: argparse.Namespace, model: Policy | Endpoint) -> RolloutEngine | None:
    """The engine of --engine with the checkpoint's weights; None where the model itself samples.

    Raises:
        ValueError: an unknown engine, one that does not start, or one beside --endpoint.
    """
    if options.engine == "own":
        return None
    if isinstance(model, Endpoint):
        raise ValueError("--engine is for a CHECKPOINT: an --endpoint samples by itself")
    profile = load_profile(options.profile) if options.profile else None
    if profile and (profile.pixels or any("pixels" in one for one in profile.tasks.values())):
        raise ValueError(
            f"--engine {options.engine} with --profile {options.profile}: the engine holds one pixel limit, "
            "the profile has some of its own; use --engine own, or serve the model and give --endpoint"
        )
    try:
        config = RolloutConfig(
            engine=options.engine, num_generations=1, batch_size=options.batch_size
        )
        return open_engine(config, model)
    except EngineError as error:
        raise ValueError(str(error)) from error


def template_kwargs(
    options: argparse.Namespace, profile: Profile | None
) -> Mapping[str, Any] | None:
    """What the chat template gets: the command line's, else the profile's, else for text suites no thinking."""
    if options.template_kwargs is not None:
        return options.template_kwargs
    if profile is not None and profile.template_kwargs:
        return dict(profile.template_kwargs)
    return {"enable_thinking": False} if options.suite in TEXT_SUITES else None


def load_judge(options: argparse.Namespace, tasks: Sequence[Benchmark]) -> Endpoint | None:
    """The model that judges; None without --judge.

    Raises:
        ValueError: it cannot be reached, or no task's protocol has a judge.
    """
    if not options.judge:
        return None
    if not any(task.judge for task in tasks):
        raise ValueError(
            "--judge: the protocol of none of these tasks has a judge "
            f"({', '.join(task.name for task in tasks)}); leave it out"
        )
    endpoint = Endpoint(
        url=options.judge.rstrip("/"),
        model=options.judge_model or "",
        api_key=os.environ.get("OPENAI_API_KEY"),
        max_concurrent=options.concurrent,
        timeout_s=options.timeout,
        max_repeats=options.repeats,
    )
    return endpoint if options.judge_model else replace(endpoint, model=only_model(endpoint))


def evaluate_one(
    model: Policy | Endpoint,
    task: Benchmark,
    samples: Sequence[Sample],
    view: Any,
    options: argparse.Namespace,
    progress: Progress,
    judge: Endpoint | None = None,
) -> Results:
    """One task in one view."""
    if process_state().is_main_process:
        show_prompts(model, task, samples, view, options, progress.console)
    profile = load_profile(options.profile) if options.profile else None
    return evaluate(
        model,
        task,
        view=view,
        samples=samples,
        generation=generation_options(options),
        out=options.out,
        batch_size=options.batch_size,
        engine=options.sampler,
        seed=options.seed,
        template_kwargs=options.template_kwargs,
        image_format=options.image_format,
        pixels=profile.pixel_limits(task.name) if profile else None,
        judge=judge,
        progress=progress,
    )


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
            console.print(f"image {number}: {image.width} x {image.height}", markup=False)
        messages = build_prompts(sample, task.prompts).view(view)
        console.print(_prompt_text(model, messages, options.template_kwargs), markup=False)


def _prompt_text(
    model: Policy | Endpoint,
    messages: list[dict[str, Any]],
    template_kwargs: Mapping[str, Any] | None,
) -> str:
    if isinstance(model, Policy):
        return render(model.processor, messages, template_kwargs=template_kwargs)
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def task_names(tasks: str, suite: str | None) -> list[str]:
    """The named tasks and those of the suite, each once."""
    if suite is not None and suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    return list(dict.fromkeys([*split_names(tasks), *(SUITES[suite] if suite else ())]))


def generation_options(options: argparse.Namespace) -> Mapping[str, Any]:
    """The decoding settings that the command line gives."""
    names = ("num_generations", "temperature", "top_p", "max_completion_length")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def finish(findings: Findings, out: Path | None, console: Console) -> None:
    """Print the table and write results.json, report.md and report.html."""
    results = findings.results if out is None else with_earlier(out, findings.results)
    for table in report.tables(results, title=results[0].model):
        console.print(table)
    if out is None:
        return
    for one in results:
        if one.samples_path is not None and (one.name, one.view) not in findings.examples:
            records = read_lines(out / one.samples_path)
            findings.examples[one.name, one.view] = choose_samples(one.name, records, [])
    write_results(results, out)
    (out / "report.md").write_text(report.markdown(results), encoding="utf-8")
    try:
        page = str(write_report(out, results, findings.examples))
    except ValueError as error:
        page = f"no report.html, {error}"
    console.print(
        f"written to {out}/: results.json, report.md, samples_*.jsonl; {page}", markup=False
    )


def finish_merged(results: Sequence[Results], out: Path, console: Console) -> None:
    """`finish` of results that came together from several folders; their samples have no images here."""
    finish(Findings(results=list(results)), out, console)


def changed_examples(
    a: Sequence[Results], b: Sequence[Results], options: argparse.Namespace, console: Console
) -> list[Example]:
    """Questions that changed between two evaluations, with both answers, from their samples files."""
    examples: list[Example] = []
    samples: dict[str, list[Sample]] = {}
    for one, other in report.common(a, b):
        files = [
            folder / part.samples_path
            for folder, part in zip(options.compare, (one, other), strict=True)
            if part.samples_path is not None
        ]
        if len(files) < 2:
            continue
        if one.name not in samples:
            samples[one.name] = _samples_for_images(one.name, options, console)
        records = (read_lines(files[0]), read_lines(files[1]))
        examples += changed_samples(one, records, samples[one.name], EXAMPLES)
    return examples


def _samples_for_images(task: str, options: argparse.Namespace, console: Console) -> list[Sample]:
    """The task's questions; none where its rows cannot be read here: answers are worth a page without images."""
    try:
        return task_samples(load_benchmark(task), options, console)
    except ValueError as error:
        console.print(f"{task}: its questions are shown without images: {error}", markup=False)
        return []
