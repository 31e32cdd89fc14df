"""Evaluate a checkpoint on benchmarks, or compare two evaluations.

    python scripts/evaluate.py CHECKPOINT --tasks shapes --view plain,privileged --out results/
    python scripts/evaluate.py --compare results_a/ results_b/

CHECKPOINT is a Hugging Face folder, a hub id or `embedded:NAME`. Under `accelerate launch` or
`torchrun` the processes share the questions.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from build import rows_of
from rich.console import Console
from rich.progress import Progress
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded import embedded_model, is_embedded
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval import report
from dopd_vlm.eval.benchmarks import SUITES, Benchmark, benchmark_names, load_benchmark
from dopd_vlm.eval.exports import FORMATS, Export, export
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results import Results, read_results, write_results
from dopd_vlm.eval.schemas import convert
from dopd_vlm.eval.sources import raw_rows
from dopd_vlm.eval.store import SampleStore
from dopd_vlm.models import load_policy, process_state
from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with the message of whatever the user can put right."""
    options = parser().parse_args(arguments)
    disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        run(options, console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("checkpoint", nargs="?", help="model folder, hub id or embedded:NAME")
    add("--tasks", default="", help="comma-separated names; --list shows them")
    add("--suite", help=f"a set of tasks: {', '.join(SUITES)}")
    add("--view", default="plain", help="plain, privileged, or both with a comma")
    add("--annotations", help="what the privileged view shows, e.g. boxes:drawn,captions")
    add("--rows", help="file, folder or hub id of the rows, in place of the task's own")
    add("--limit", type=int, help="first N questions of each task")
    add("--num-generations", type=int, help="completions per question (avg@k); needs --temperature")
    add("--temperature", type=float, help="sampling temperature; 0 is greedy")
    add("--top-p", type=float, help="nucleus mass")
    add("--max-completion-length", type=int, help="tokens after which a completion is cut")
    add("--batch-size", type=int, default=32, help="prompts at once, halved when memory runs out")
    add("--seed", type=int, default=0, help="of sampled completions")
    add("--coords", default="qwen3", help="the model family's coordinates")
    add("--template-kwargs", type=json.loads, help="JSON given to the chat template")
    add("--out", type=Path, help="folder for samples and results; a killed run goes on there")
    add("--show-prompts", type=int, default=0, help="print the first N prompts of each task")
    add("--export", help=f"write files for another program to --out: {', '.join(FORMATS)}")
    add("--list", action="store_true", help="list the tasks")
    add(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="paired difference of two folders"
    )
    return made


def run(options: argparse.Namespace, console: Console) -> None:
    """List, compare or evaluate."""
    if options.list:
        for name in benchmark_names():
            console.print(f"{name:20} {load_benchmark(name).description}", markup=False)
    elif options.compare:
        a, b = map(read_results, options.compare)
        console.print(report.comparison_table(a, b))
    elif not options.checkpoint or not (options.tasks or options.suite):
        raise ValueError(
            "give a CHECKPOINT and --tasks NAME[,NAME...], or --list, or --compare A B"
        )
    elif options.export:
        export_all(options, console)
    else:
        found = evaluate_all(options, console)
        if process_state().is_main_process:
            finish(found, options.out, console)


def evaluate_all(options: argparse.Namespace, console: Console) -> list[Results]:
    """Every task in every view."""
    tasks = [load_benchmark(name) for name in task_names(options.tasks, options.suite)]
    path = options.checkpoint
    path = str(embedded_model(path)) if is_embedded(path) else path
    device = process_state().device or "cpu"
    policy = load_policy(ModelConfig(path=path), device=device, trainable=False)
    found = []
    with Progress(console=console, disable=not process_state().is_main_process) as progress:
        for task in tasks:
            samples = task_samples(task, options, console)
            for view in _listed(options.view):
                _show_prompts(task, samples, view, options.show_prompts, console)
                made = evaluate(
                    policy,
                    task,
                    view=view,  # type: ignore[arg-type]  # checked by the harness, which names the views
                    samples=samples,
                    generation=_generation(options),
                    out=options.out,
                    batch_size=options.batch_size,
                    seed=options.seed,
                    template_kwargs=options.template_kwargs,
                    progress=progress,
                )
                found.append(made)
    return found


def export_all(options: argparse.Namespace, console: Console) -> None:
    """Every task's questions, or the answers that an evaluation left in --out, for other programs."""
    if options.out is None:
        raise ValueError(
            "--export needs --out FOLDER, for bfcl and livebench that of an evaluation"
        )
    for name in task_names(options.tasks, options.suite):
        task = load_benchmark(name)
        given = Export(
            task=task,
            samples=task_samples(task, options, console),
            records=list(SampleStore(options.out, name, "plain", 0).finished().values()),
            out=options.out,
            model=options.checkpoint,
        )
        paths = export(options.export, given)
        console.print(f"{name}: {len(paths)} files, e.g. {paths[0]}", markup=False)


def task_names(tasks: str, suite: str | None) -> list[str]:
    """The named tasks and those of the suite."""
    if suite is not None and suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
    return [*_listed(tasks), *(SUITES[suite] if suite else ())]


def task_samples(task: Benchmark, options: argparse.Namespace, console: Console) -> list[Sample]:
    """The task's questions; rows that make none are counted and the first ones shown."""
    annotations = _annotations(options.annotations) or list(task.annotations)
    found = convert(task, task_rows(task, options.rows), options.limit)
    samples, skipped = make_samples(found.rows, annotations, coords=options.coords)
    problems = [*found.problems, *(one.reason for one in skipped)]
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


def finish(found: Sequence[Results], out: Path | None, console: Console) -> None:
    """Print the table and write results.json and report.md."""
    console.print(report.table(found, title=found[0].model))
    if out is not None:
        write_results(found, out)
        (out / "report.md").write_text(report.markdown(found), encoding="utf-8")
        console.print(f"written to {out}/: results.json, report.md, samples_*.jsonl", markup=False)


def _show_prompts(
    task: Benchmark, samples: Sequence[Sample], view: Any, count: int, console: Console
) -> None:
    for sample in samples[:count]:
        console.rule(f"{task.name} {view} {sample.uid}")
        for turn in build_prompts(sample, task.prompts).view(view):
            console.print(f"{turn['role']}: {turn['content']}", markup=False)


def _generation(options: argparse.Namespace) -> Mapping[str, Any]:
    names = ("num_generations", "temperature", "top_p", "max_completion_length")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _annotations(text: str | None) -> list[str | tuple[str, str]]:
    pairs = [part.partition(":") for part in _listed(text or "")]
    return [(name, form) if form else name for name, _, form in pairs]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
