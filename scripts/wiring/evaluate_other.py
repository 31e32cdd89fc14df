"""What else evaluate.py does: compare two evaluations, export, run lm-eval's tasks."""

import argparse

from rich.console import Console

from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.bridges.export_questions import Export
from dopd_vlm.eval.bridges.exports import export
from dopd_vlm.eval.completions.store import SampleStore
from dopd_vlm.eval.results import tables as report
from dopd_vlm.eval.results.page import write_comparison
from dopd_vlm.eval.results.results import read_results
from dopd_vlm.scripts.wiring.evaluate_tasks import generation_options, task_names
from dopd_vlm.scripts.wiring.samples import local_path
from dopd_vlm.scripts.wiring.task_samples import listed, task_samples


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


def export_all(options: argparse.Namespace, console: Console) -> None:
    """Every task's questions, or the answers that an evaluation left in --out, for other programs."""
    if options.out is None:
        raise ValueError(
            "--export needs --out FOLDER, for bfcl and livebench that of an evaluation"
        )
    name = options.model or options.checkpoint or ""
    for task in map(load_benchmark, task_names(options.tasks, options.suite)):
        given = Export(
            task=task,
            samples=task_samples(task, options, console),
            records=list(SampleStore(options.out, task.name, "plain", 0).finished().values()),
            out=options.out,
            model=local_path(name) if options.export == "lmms-eval" else name,
        )
        paths = export(options.export, given)
        console.print(f"{task.name}: {len(paths)} files, e.g. {paths[0]}", markup=False)


def run_lm_eval(options: argparse.Namespace, console: Console) -> None:
    """lm-eval's tasks on the checkpoint; its own table and files."""
    if options.endpoint or options.suite:
        raise ValueError(
            "--harness lm-eval takes a CHECKPOINT and --tasks: the suites are our own, and for an "
            "endpoint lm-eval has its model local-chat-completions"
        )
    try:
        from dopd_vlm.eval.bridges.lm_eval_run import load_lm, result_table, run_tasks
    except ImportError as error:
        raise ValueError(str(error)) from error
    found = run_tasks(
        load_lm(local_path(options.checkpoint), options.batch_size, options.template_kwargs),
        listed(options.tasks),
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=not options.no_chat_template,
        generation=generation_options(options),
        out=options.out,
        seed=options.seed,
    )
    if found is not None:
        console.print(result_table(found), markup=False)
