"""Reads a task's real rows from a file and tries gold and wrong answers on its scorer.

    dopd check-task-rows math500 MATH-500/test.jsonl
    dopd check-task-rows mmmu mmmu.parquet --no-images --limit 100

Gold answers must count, wrong ones and empty texts must not. Where rows have no answer that a text
can give (LiveCodeBench's programs, instructions to follow) only reading and the empty text are tried.
Exits with 1 when a verdict is wrong or a row cannot be read.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dopd_vlm.data.views import make_sample
from dopd_vlm.eval.benchmarks.benchmark import Benchmark, load_benchmark
from dopd_vlm.eval.benchmarks.convert import Row, convert
from dopd_vlm.eval.official.autologi import solve
from dopd_vlm.eval.scorers import LETTERS, row_scorer
from dopd_vlm.scripts.wiring.command_line import command_parser
from dopd_vlm.scripts.wiring.samples import task_rows
from dopd_vlm.types import Sample

SHOWN = 5
TextOf = Callable[[Sample, Row], str | None]


@dataclass(kw_only=True)
class Verdicts:
    """How many texts of one kind were tried, and those whose verdict is wrong."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, sample: Sample, text: str, is_wrong: bool, why: str) -> None:
        """Counts one text."""
        self.tried += 1
        if is_wrong:
            self.wrong.append(f"{sample.uid}: {text[:80]!r} ({why}), gold {sample.answer[:80]!r}")


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments, checks, reports."""
    parser = command_parser("check-task-rows", __doc__)
    parser.add_argument("task", help="a name in eval/tasks or a YAML file")
    parser.add_argument("rows", help="file or folder of rows in the benchmark's own schema")
    parser.add_argument("--limit", type=int, help="first rows only")
    parser.add_argument("--no-images", action="store_true", help="the rows' images are not here")
    options = parser.parse_args(arguments)
    try:
        task = load_benchmark(options.task)
        if options.no_images:
            columns = {key: value for key, value in task.columns.items() if key != "images"}
            task = replace(task, columns=columns, frames=0)
        raw = task_rows(task, options.rows)
        conversion = convert(task, raw, options.limit)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{task.name}: {len(raw)} rows, {len(conversion.rows)} used, {conversion.left_out} left out"
    )
    for problem in conversion.problems[:SHOWN]:
        print(f"  {problem}")
    verdicts = check(
        task, [(row, raw[at]) for row, at in zip(conversion.rows, conversion.places, strict=True)]
    )
    for name, counts in verdicts.items():
        print(f"{name}: {counts.tried - len(counts.wrong)}/{counts.tried}")
        for line in counts.wrong[:SHOWN]:
            print(f"  {line}")
    return 1 if conversion.problems or any(counts.wrong for counts in verdicts.values()) else 0


def check(task: Benchmark, pairs: Sequence[tuple[Row, Row]]) -> dict[str, Verdicts]:
    """Verdicts on gold, wrong and empty texts of (row, raw row) pairs.

    A wrong text may have partial credit only where the measure gives it.
    """
    count = row_scorer(task.answer_type, task.scorer)
    names = ("gold accepted", "wrong rejected", "empty unread")
    gold, wrong, empty = counts = [Verdicts() for _ in names]
    for row, raw in pairs:
        try:
            sample = make_sample(row, [])
            trials = (
                (gold, gold_text(task, sample, raw)),
                (wrong, wrong_text(sample, task)),
            )
            for verdicts, text in trials:
                if text is not None:
                    score = count(text, sample)
                    is_right = score.correct == 1.0
                    verdicts.add(sample, text, is_right != (verdicts is gold), score.rule)
            nothing = count("", sample)
            empty.add(sample, "", nothing.correct != 0 and not _wants_nothing(sample), nothing.rule)
        except Exception as error:  # a row, or an answer, that the scorer cannot read
            gold.tried += 1
            gold.wrong.append(f"{row.get('uid')}: {type(error).__name__}: {error}")
    return dict(zip(names, counts, strict=True))


def gold_text(task: Benchmark, sample: Sample, raw: Row) -> str | None:
    """A right answer; None where the row has none in words."""
    kind = task.answer_type if task.answer_type != "row" else sample.answer_type
    if kind in GOLD:
        return GOLD[kind](sample, raw)
    answer = json.loads(sample.answer)[0] if sample.answer.startswith('["') else sample.answer
    return f"\\boxed{{{answer}}}" if kind == "math" else f"The answer is {answer}"


def wrong_text(sample: Sample, task: Benchmark) -> str | None:
    """A wrong answer in the right form; None where any text may be right."""
    kind = task.answer_type if task.answer_type != "row" else sample.answer_type
    if kind in WRONG:
        return WRONG[kind](sample)
    return "None of these words is the answer."


def _calls(sample: Sample, raw: Row) -> str:
    truths = json.loads(sample.answer)["ground_truth"]
    if not truths:
        return (
            "No function fits." if _wants_nothing(sample) else f"[{raw['function'][0]['name']}()]"
        )
    required = {one["name"]: one["parameters"].get("required", ()) for one in raw["function"]}
    return f"[{', '.join(_call(truth, required) for truth in truths)}]"


def _call(
    truth: Mapping[str, Mapping[str, Sequence[Any]]], required: Mapping[str, Sequence[str]]
) -> str:
    """With what must be given only: rows allow optional values that no function describes."""
    ((name, arguments),) = truth.items()
    needed = [key for key in arguments if key in required[name] or "" not in arguments[key]]
    return f"{name}({', '.join(f'{key}={_first(arguments[key])!r}' for key in needed)})"


def _first(allowed: Sequence[Any]) -> Any:
    """The first allowed value; an object, alone or in a list, names what each of its keys allows."""
    value = next((one for one in allowed if one != ""), "")
    if isinstance(value, list):
        return [_first_choices(one) for one in value]
    return _first_choices(value)


def _first_choices(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    given = {key: [one for one in inner if one != ""] for key, inner in value.items()}
    return {key: inner[0] for key, inner in given.items() if inner}


def _wants_nothing(sample: Sample) -> bool:
    """Where no function fits, an answer without calls is right, an empty one too."""
    return '"category"' in sample.answer and "irrelevance" in sample.answer.partition(",")[0]


def _livebench(sample: Sample, raw: Row) -> str | None:
    gold = json.loads(sample.answer)
    truth, is_old = gold.get("ground_truth"), gold.get("release", "9") < "2024-11-25"
    forms = {
        "zebra_puzzle": "***{}***" if is_old else "<solution>{}</solution>",
        "connections": "**{}**" if is_old else "<solution>{}</solution>",
        "AMPS_Hard": "\\boxed{{{}}}",
        "olympiad": "Answer: {}",
        "plot_unscrambling": "<PLOT_SUMMARY>{}",
        "tablereformat": "```\n{}\n```",
    }
    plain = ("typos", "cta", "tablejoin", "math_comp")
    if truth is None:
        return None
    if gold["task"] == "math_comp":
        return truth * 5 if truth.isalpha() else f"The answer is {truth}"
    return forms.get(gold["task"], "{}" if gold["task"] in plain else "**{}**").format(truth)


def _grid(sample: Sample, raw: Row) -> str:
    return json.dumps({"reasoning": "", "solution": json.loads(sample.answer)})


def _arrangement(sample: Sample, raw: Row) -> str | None:
    solution = solve(raw["code"])
    return solution and f"```python\n{solution}\n```"


def _other_letter(sample: Sample) -> str:
    letters = [one for one in sample.choices or LETTERS if one not in sample.answer]
    return f"The answer is {letters[0] if letters else 'not there'}"


GOLD: dict[str, TextOf] = {
    "code": lambda sample, raw: raw.get("canonical_solution"),
    "tests": lambda sample, raw: None,
    "arrangement": _arrangement,
    "calls": _calls,
    "grid": _grid,
    "livebench": _livebench,
}
WRONG: dict[str, Callable[[Sample], str | None]] = {
    "choice": _other_letter,
    "number": lambda sample: "The answer is 123456789.5",
    "math": lambda sample: "\\boxed{-123456789.5}",
    "yes_no": lambda sample: "no" if sample.answer == "yes" else "yes",
    "code": lambda sample: "    return None\n",
    "tests": lambda sample: "print('no such output')",
    "arrangement": lambda sample: "```\n[]\n```",
    "calls": lambda sample: "[f(x=1)]" if _wants_nothing(sample) else "f(x=",
    "grid": lambda sample: '{"solution": {"House 1": {"Name": "nobody"}}}',
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
