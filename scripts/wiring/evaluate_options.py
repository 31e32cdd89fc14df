"""The command line of evaluate.py."""

import argparse
import json
from pathlib import Path

from dopd_vlm.eval.benchmarks.benchmark import SUITES
from dopd_vlm.eval.bridges.exports import FORMATS


def parser(description: str | None) -> argparse.ArgumentParser:
    """Its parser; `description` stands above the options."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_questions(made)
    _add_decoding(made)
    _add_files(made)
    _add_endpoint(made)
    _add_lm_eval(made)
    return made


def _add_questions(made: argparse.ArgumentParser) -> None:
    """Which model answers which questions."""
    add = made.add_argument
    add("checkpoint", nargs="?", help="model folder, hub id or embedded:NAME")
    add("--tasks", default="", help="comma-separated names; --list shows them")
    add("--suite", help=f"a set of tasks: {', '.join(SUITES)}")
    add("--view", default="plain", help="plain, privileged, or both with a comma")
    add("--annotations", help="what the privileged view shows, e.g. boxes:drawn,captions")
    add(
        "--rows",
        help="file, folder or hub id of the rows, in place of the task's own; {task} in it stands for "
        "each task's name, e.g. rows/{task}.jsonl",
    )
    add("--limit", type=int, help="first N questions of each task")


def _add_decoding(made: argparse.ArgumentParser) -> None:
    """How prompts and completions are made."""
    add = made.add_argument
    add("--num-generations", type=int, help="completions per question (avg@k); needs --temperature")
    add("--temperature", type=float, help="sampling temperature; 0 is greedy")
    add("--top-p", type=float, help="nucleus mass")
    add("--max-completion-length", type=int, help="tokens after which a completion is cut")
    add("--batch-size", type=int, default=32, help="prompts at once, halved when memory runs out")
    add("--seed", type=int, default=0, help="of sampled completions")
    add("--coords", default="qwen3", help="the model family's coordinates")
    add("--template-kwargs", type=json.loads, help="JSON given to the chat template")


def _add_files(made: argparse.ArgumentParser) -> None:
    """What is shown and written."""
    add = made.add_argument
    add("--out", type=Path, help="folder for samples and results; a killed run goes on there")
    add("--show-prompts", type=int, default=0, help="print the first N prompts of each task")
    add("--export", help=f"write files for another program to --out: {', '.join(FORMATS)}")
    add("--list", action="store_true", help="list the tasks")
    add(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="paired difference of two folders"
    )


def _add_endpoint(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("a model behind an OpenAI-compatible endpoint").add_argument
    add("--endpoint", metavar="URL", help="address up to /v1; the key is read from $OPENAI_API_KEY")
    add(
        "--model",
        help="its name there, the only one served when left out; with --export the name that the other "
        "program knows the model by",
    )
    add("--concurrent", type=int, default=16, help="requests under way at once")
    add("--timeout", type=float, default=600.0, help="seconds to wait for one answer")
    add("--repeats", type=int, default=6, help="how often a request that failed is repeated")


def _add_lm_eval(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("lm-evaluation-harness (extra `lm-eval`)").add_argument
    add("--harness", choices=("dopd", "lm-eval"), default="dopd", help="whose tasks and metrics")
    add("--include-path", type=Path, help="folder of lm-eval task YAMLs; only they are known then")
    add("--num-fewshot", type=int, help="solved examples before each question")
    add("--no-chat-template", action="store_true", help="give the bare text, as lm-eval by itself")
