"""Evaluate a model on benchmarks, or compare two evaluations.

    dopd evaluate CHECKPOINT --tasks shapes --view plain,privileged --out results/
    dopd evaluate --endpoint http://127.0.0.1:8000/v1 --model NAME --suite paper_vlm --out results/
    dopd evaluate CHECKPOINT --harness lm-eval --tasks gsm8k --out results/
    dopd evaluate --merge results_a/ results_b/ --out results/
    dopd evaluate --compare results_a/ results_b/ --out comparison/
    dopd evaluate --export vlmevalkit --tasks mmstar --out files/

CHECKPOINT is a Hugging Face folder, a hub id or `embedded:NAME`. Under `accelerate launch` or
`torchrun` (... -m dopd_vlm.scripts.evaluate) the processes share the questions. A run that was killed
goes on in the same --out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dopd_vlm.scripts.wiring.command_line import (
    add_plugin_option,
    command_parser,
    load_plugins,
)  # fmt: skip

EXPORTS = ("vlmevalkit", "lmms-eval", "bfcl", "livebench")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 with the message of whatever the user can put right."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        load_plugins(options)
        run(options, console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    return 0


def run(options: argparse.Namespace, console: Console) -> None:
    """List, compare, export or evaluate."""
    if options.list:
        list_tasks(console)
    elif options.merge:
        merge_folders(options, console)
    elif options.compare:
        compare(options, console)
    elif not (options.tasks or options.suite):
        raise ValueError("give --tasks NAME[,NAME...] or --suite NAME; or --list; or --compare A B")
    elif options.export:
        export_all(options, console)
    elif bool(options.checkpoint) == bool(options.endpoint):
        raise ValueError("give either a CHECKPOINT or --endpoint URL")
    elif options.harness == "lm-eval":
        run_lm_eval(options, console)
    else:
        evaluate(options, console)


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """Every task in every view, and the end of the process group if there is one."""
    from transformers.utils.logging import disable_progress_bar

    from dopd_vlm.distributed import end_processes
    from dopd_vlm.scripts.wiring.evaluate_tasks import evaluate_all

    disable_progress_bar()
    evaluate_all(options, console)
    end_processes()


def list_tasks(console: Console) -> None:
    """Name and description of every benchmark."""
    from dopd_vlm.eval.benchmarks.benchmark import benchmark_names, load_benchmark

    for name in benchmark_names():
        console.print(f"{name:20} {load_benchmark(name).description}", markup=False)


def compare(options: argparse.Namespace, console: Console) -> None:
    """Print the paired differences of two folders; with --out also write them as pages."""
    from dopd_vlm.eval.results import tables as report
    from dopd_vlm.eval.results.page import write_comparison
    from dopd_vlm.eval.results.results import read_results
    from dopd_vlm.scripts.wiring.evaluate_tasks import changed_examples

    first, second = options.compare
    a, b = read_results(first), read_results(second)
    console.print(report.comparison_table(a, b))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "comparison.md").write_text(
            report.comparison_markdown(a, b), encoding="utf-8"
        )
        examples = changed_examples(a, b, options, console)
        path = write_comparison(options.out, a, b, (str(first), str(second)), examples)
        console.print(f"written: {path}", markup=False)


def merge_folders(options: argparse.Namespace, console: Console) -> None:
    """One page and one results.json of folders that jobs of one model left."""
    from dopd_vlm.eval.results.merge import merge
    from dopd_vlm.scripts.wiring.evaluate_tasks import finish_merged

    if options.out is None:
        raise ValueError("--merge needs --out FOLDER, where the folders come together")
    finish_merged(merge(options.merge, options.out), options.out, console)


def export_all(options: argparse.Namespace, console: Console) -> None:
    """Every task's questions, or the answers that an evaluation left in --out, for other programs."""
    from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
    from dopd_vlm.eval.bridges.export_questions import Export
    from dopd_vlm.eval.bridges.exports import export
    from dopd_vlm.eval.completions.store import SampleStore
    from dopd_vlm.scripts.wiring.evaluate_tasks import task_names
    from dopd_vlm.scripts.wiring.samples import local_path, task_samples

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
    if options.engine != "own":
        raise ValueError("--harness lm-eval has vLLM as a model of its own; leave --engine out")
    if options.endpoint or options.suite:
        raise ValueError(
            "--harness lm-eval takes a CHECKPOINT and --tasks: the suites are our own, and for an "
            "endpoint lm-eval has its model local-chat-completions"
        )
    try:
        from dopd_vlm.eval.bridges.lm_eval_run import load_lm, result_table, run_tasks
    except ImportError as error:
        raise ValueError(str(error)) from error
    from dopd_vlm.scripts.wiring.evaluate_tasks import generation_options
    from dopd_vlm.scripts.wiring.samples import local_path, split_names

    results = run_tasks(
        load_lm(local_path(options.checkpoint), options.batch_size, options.template_kwargs),
        split_names(options.tasks),
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=not options.no_chat_template,
        generation=generation_options(options),
        out=options.out,
        seed=options.seed,
    )
    if results is not None:
        console.print(result_table(results), markup=False)


def _parser() -> argparse.ArgumentParser:
    command = command_parser("evaluate", __doc__)
    _add_questions(command)
    add_plugin_option(command)
    _add_decoding(command)
    _add_files(command)
    _add_endpoint(command)
    _add_lm_eval(command)
    return command


def _add_questions(command: argparse.ArgumentParser) -> None:
    """Which model answers which questions."""
    add = command.add_argument
    add("checkpoint", nargs="?", help="model folder, hub id or embedded:NAME")
    add("--tasks", default="", help="comma-separated names; --list shows them")
    add("--suite", help="a set of tasks: paper_vlm or paper_llm")
    add("--view", default="plain", help="plain, privileged, or both with a comma")
    add("--annotations", help="what the privileged view shows, e.g. boxes:drawn,captions")
    add(
        "--rows",
        help="file, folder or hub id of the rows, in place of the task's own; {task} in it stands for "
        "each task's name, e.g. rows/{task}.jsonl",
    )
    add("--limit", type=int, help="first N questions of each task")


def _add_decoding(command: argparse.ArgumentParser) -> None:
    """How prompts and completions are made."""
    add = command.add_argument
    add(
        "--profile",
        help="how a model's makers evaluate it: greedy, internvl3, qwen3, qwen3_vl, or a .yaml of your own",
    )
    add("--num-generations", type=int, help="completions per question (avg@k); needs --temperature")
    add("--temperature", type=float, help="sampling temperature; 0 is greedy")
    add("--top-p", type=float, help="nucleus mass")
    add("--max-completion-length", type=int, help="tokens after which a completion is cut")
    add("--batch-size", type=int, default=32, help="prompts at once, halved when memory runs out")
    add(
        "--engine",
        default="own",
        help="who samples for a CHECKPOINT: own, or vllm where it is installed",
    )
    add("--seed", type=int, default=0, help="of sampled completions")
    add("--coords", default="qwen3", help="the model family's coordinates")
    add("--template-kwargs", type=json.loads, help="JSON given to the chat template")


def _add_files(command: argparse.ArgumentParser) -> None:
    """What is shown and written."""
    add = command.add_argument
    add("--out", type=Path, help="folder for samples and results; a killed run goes on there")
    add("--show-prompts", type=int, default=0, help="print the first N prompts of each task")
    add("--export", help=f"write files for another program to --out: {', '.join(EXPORTS)}")
    add("--list", action="store_true", help="list the tasks")
    add(
        "--merge",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="bring results of one model into --out",
    )
    add(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="paired difference of two folders"
    )


def _add_endpoint(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("a model behind an OpenAI-compatible endpoint").add_argument
    add(
        "--endpoint",
        nargs="+",
        metavar="URL",
        help="address up to /v1, or several of servers that share the work; the key is read from "
        "$OPENAI_API_KEY",
    )
    add(
        "--model",
        help="its name there, the only one served when left out; with --export the name that the other "
        "program knows the model by",
    )
    add("--concurrent", type=int, default=16, help="requests under way at once")
    add(
        "--judge",
        metavar="URL",
        help="endpoint of a model that judges answers where the benchmark's protocol has one, rules first",
    )
    add("--judge-model", help="its name there, the only one served when left out")
    add("--image-format", default="png", help="png keeps every pixel, jpeg travels faster")
    add("--timeout", type=float, default=600.0, help="seconds to wait for one answer")
    add("--repeats", type=int, default=6, help="how often a request that failed is repeated")


def _add_lm_eval(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("lm-evaluation-harness (extra `lm-eval`)").add_argument
    add("--harness", choices=("dopd", "lm-eval"), default="dopd", help="whose tasks and metrics")
    add("--include-path", type=Path, help="folder of lm-eval task YAMLs; only they are known then")
    add("--num-fewshot", type=int, help="solved examples before each question")
    add("--no-chat-template", action="store_true", help="give the bare text, as lm-eval by itself")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
