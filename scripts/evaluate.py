"""Evaluate a model on benchmarks, or compare two evaluations.

    python scripts/evaluate.py CHECKPOINT --tasks shapes --view plain,privileged --out results/
    python scripts/evaluate.py --endpoint http://127.0.0.1:8000/v1 --model NAME --suite paper_vlm --out results/
    python scripts/evaluate.py CHECKPOINT --harness lm-eval --tasks gsm8k --out results/
    python scripts/evaluate.py --compare results_a/ results_b/ --out comparison/
    python scripts/evaluate.py CHECKPOINT --export vlmevalkit --tasks mmstar --out files/

CHECKPOINT is a Hugging Face folder, a hub id or `embedded:NAME`. Under `accelerate launch` or
`torchrun` the processes share the questions. A run that was killed goes on in the same --out.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import build  # noqa: F401  # first: it keeps this script from standing in for the library `evaluate`
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from task_samples import listed, show_prompts, task_samples
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded import embedded_model, is_embedded
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval import report
from dopd_vlm.eval.benchmarks import SUITES, Benchmark, benchmark_names, load_benchmark
from dopd_vlm.eval.endpoint import only_model
from dopd_vlm.eval.exports import FORMATS, Export, export
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.page import Shown, shown, write_comparison, write_report
from dopd_vlm.eval.results import Results, read_results, write_results
from dopd_vlm.eval.store import SampleStore, read_samples
from dopd_vlm.models import Policy, load_policy, process_state
from dopd_vlm.types import Sample

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


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
    _add_others(made)
    add(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="paired difference of two folders"
    )
    return made


def _add_others(made: argparse.ArgumentParser) -> None:
    """Options of endpoints and of lm-eval."""
    add = made.add_argument_group("a model behind an OpenAI-compatible endpoint").add_argument
    add("--endpoint", metavar="URL", help="address up to /v1; the key is read from $OPENAI_API_KEY")
    add("--model", help="its name there; the only one served when left out")
    add("--concurrent", type=int, default=16, help="requests under way at once")
    add("--timeout", type=float, default=600.0, help="seconds to wait for one answer")
    add("--repeats", type=int, default=6, help="how often a request that failed is repeated")
    add = made.add_argument_group("lm-evaluation-harness (extra `lm-eval`)").add_argument
    add("--harness", choices=("dopd", "lm-eval"), default="dopd", help="whose tasks and metrics")
    add("--include-path", type=Path, help="folder of lm-eval task YAMLs; only they are known then")
    add("--num-fewshot", type=int, help="solved examples before each question")
    add("--no-chat-template", action="store_true", help="give the bare text, as lm-eval by itself")


def run(options: argparse.Namespace, console: Console) -> None:
    """List, compare, export or evaluate."""
    if options.list:
        for name in benchmark_names():
            console.print(f"{name:20} {load_benchmark(name).description}", markup=False)
    elif options.compare:
        compare(options, console)
    elif bool(options.checkpoint) == bool(options.endpoint) or not (options.tasks or options.suite):
        raise ValueError(
            "give either a CHECKPOINT or --endpoint URL, with --tasks NAME[,NAME...] or --suite NAME; "
            "or --list; or --compare A B"
        )
    elif options.export:
        export_all(options, console)
    elif options.harness == "lm-eval":
        run_lm_eval(options, console)
    else:
        evaluate_all(options, console)


def compare(options: argparse.Namespace, console: Console) -> None:
    """Print the paired differences of two folders; with --out also write them as pages."""
    first, second = options.compare
    a, b = read_results(first), read_results(second)
    console.print(report.comparison_table(a, b))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "comparison.md").write_text(
            report.comparison_markdown(a, b), encoding="utf-8"
        )
        path = write_comparison(options.out, a, b, (str(first), str(second)))
        console.print(f"written: {path}", markup=False)


def run_lm_eval(options: argparse.Namespace, console: Console) -> None:
    """lm-eval's tasks on the checkpoint; its own table and files."""
    if options.endpoint or options.suite:
        raise ValueError(
            "--harness lm-eval takes a CHECKPOINT and --tasks: the suites are our own, and for an "
            "endpoint lm-eval has its model local-chat-completions"
        )
    try:
        from dopd_vlm.eval.lm_eval_run import load_lm, result_table, run_tasks
    except ImportError as error:
        raise ValueError(str(error)) from error
    found = run_tasks(
        load_lm(_local_path(options.checkpoint), options.batch_size, options.template_kwargs),
        listed(options.tasks),
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=not options.no_chat_template,
        generation=_generation(options),
        out=options.out,
        seed=options.seed,
    )
    if found is not None:
        console.print(result_table(found), markup=False)


def evaluate_all(options: argparse.Namespace, console: Console) -> None:
    """Every task in every view; a task without data stops no other and is named at the end."""
    tasks = [load_benchmark(name) for name in task_names(options.tasks, options.suite)]
    model = load_model(options)
    is_main = process_state().is_main_process
    found: list[Results] = []
    examples: dict[tuple[str, str], Shown] = {}
    problems = []
    with Progress(*COLUMNS, console=console, disable=not is_main) as progress:
        for task in tasks:
            try:
                samples = task_samples(task, options, console)
            except ValueError as error:
                problems.append(str(error))
                continue
            for view in listed(options.view):
                made = evaluate_one(model, task, samples, view, options, progress)
                found.append(made)
                if made.samples_path is not None and is_main:
                    examples[made.name, view] = shown(read_samples(made.samples_path), samples)
    if found and is_main:
        finish(found, examples, options.out, console)
    if problems:
        raise ValueError("\n".join(problems))


def load_model(options: argparse.Namespace) -> Policy | Endpoint:
    """The checkpoint on this process's device, or the endpoint."""
    if not options.endpoint:
        device = process_state().device or "cpu"
        config = ModelConfig(path=_local_path(options.checkpoint))
        return load_policy(config, device=device, trainable=False)
    endpoint = Endpoint(
        url=options.endpoint.rstrip("/"),
        model=options.model or "",
        api_key=os.environ.get("OPENAI_API_KEY"),
        max_concurrent=options.concurrent,
        timeout_s=options.timeout,
        max_repeats=options.repeats,
    )
    return endpoint if options.model else replace(endpoint, model=only_model(endpoint))


def evaluate_one(
    model: Policy | Endpoint,
    task: Benchmark,
    samples: Sequence[Sample],
    view: Any,
    options: argparse.Namespace,
    progress: Progress,
) -> Results:
    """One task in one view; an endpoint gets several rounds of requests as one batch, so that a
    slow answer holds up less."""
    if process_state().is_main_process:
        show_prompts(model, task, samples, view, options, progress.console)
    size = options.batch_size
    return evaluate(
        model,
        task,
        view=view,
        samples=samples,
        generation=_generation(options),
        out=options.out,
        batch_size=max(size, 4 * options.concurrent) if options.endpoint else size,
        seed=options.seed,
        template_kwargs=options.template_kwargs,
        progress=progress,
    )


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
            model=options.checkpoint or options.model,
        )
        paths = export(options.export, given)
        console.print(f"{name}: {len(paths)} files, e.g. {paths[0]}", markup=False)


def task_names(tasks: str, suite: str | None) -> list[str]:
    """The named tasks and those of the suite."""
    if suite is not None and suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
    return [*listed(tasks), *(SUITES[suite] if suite else ())]


def finish(
    found: Sequence[Results],
    examples: Mapping[tuple[str, str], Shown],
    out: Path | None,
    console: Console,
) -> None:
    """Print the table and write results.json, report.md and report.html."""
    console.print(report.table(found, title=found[0].model))
    if out is None:
        return
    write_results(found, out)
    (out / "report.md").write_text(report.markdown(found), encoding="utf-8")
    try:
        page = str(write_report(out, found, examples))
    except ValueError as error:
        page = f"no report.html, {error}"
    console.print(
        f"written to {out}/: results.json, report.md, samples_*.jsonl; {page}", markup=False
    )


def _generation(options: argparse.Namespace) -> Mapping[str, Any]:
    names = ("num_generations", "temperature", "top_p", "max_completion_length")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _local_path(checkpoint: str) -> str:
    return str(embedded_model(checkpoint)) if is_embedded(checkpoint) else checkpoint


if __name__ == "__main__":
    sys.exit(main())
