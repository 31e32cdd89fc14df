"""Make a small teacher and student that can read your rows, by supervised learning, in minutes.

    dopd make-tiny my_rows --annotations captions --out models/
    dopd train models/recipe.yaml

OUT gets teacher/ and student/ (plain Hugging Face folders of a few MB), recipe.yaml for `dopd train`,
and table.md: accuracy of both models in both views on rows that were held out. Both start from the
embedded models, whose tokenizer gets the rows' words; the student is left poor in its plain view.
2,000 rows of 64-pixel images take about 10 minutes on two cores. The same rows and seed give the same
models. For anything but learning how DOPD behaves, real models are the better start.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dopd_vlm.scripts.wiring.command_line import add_plugin_option, command_parser, load_plugins

FEWEST = 40
"""Rows below which nothing can be learnt."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 2 for wrong arguments or rows."""
    options = _parser().parse_args(arguments)
    try:
        load_plugins(options)
        make(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make(options: argparse.Namespace) -> None:
    """Both models, their table and the recipe."""
    from dopd_vlm.scripts.make import tiny_models as tiny

    samples = read(options.rows, options)
    if len(samples) < FEWEST:
        raise ValueError(f"{options.rows}: {len(samples)} good rows; at least {FEWEST} are needed")
    if options.test:
        train, held_out = samples, read(options.test, options)[: options.most_test]
    else:
        train, held_out = tiny.split(samples, 0.1, options.most_test, options.seed)
    train, checked = tiny.split(train, 0.1, tiny.CHECKED, options.seed + 1)
    plan = tiny.plan_of(len(train), options.seed)
    counts = f"{len(train)} rows to learn from, {len(checked)} for the student's stop"
    print(f"{counts}, {len(held_out)} held out", flush=True)
    results = {}
    teacher = tiny.make_teacher(train, plan)
    report_unwritable(tiny.unwritable(held_out, teacher), len(held_out))
    tiny.save(teacher, options.out / "teacher")
    for view in tiny.VIEWS:
        results["teacher", view] = tiny.measured(teacher, held_out, view)
    goal = tiny.PLAIN_SHARE * tiny.measured(teacher, checked, "plain").accuracy
    student = tiny.make_student(train, checked, plan, goal)
    tiny.save(student, options.out / "student")
    for view in tiny.VIEWS:
        results["student", view] = tiny.measured(student, held_out, view)
    text = f"{table(results)}\n\n{tiny.verdict(results)}.\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    write_recipe(options, tiny.longest(train, student))
    print(f"\n{text}\nnext: dopd train {options.out / 'recipe.yaml'}")


def read(source: str, options: argparse.Namespace) -> list[Any]:
    """Samples of the good rows with a gold; the others are counted."""
    from dopd_vlm.data.views import make_samples
    from dopd_vlm.scripts.wiring.samples import annotation_choices, rows_of

    rows = rows_of(source, options.split)[: options.limit]
    samples, skipped = make_samples(rows, annotation_choices(options.annotations))
    answered = [sample for sample in samples if sample.answer]
    left_out = len(skipped) + len(samples) - len(answered)
    if left_out:
        first = skipped[0].reason if skipped else "no gold answer"
        print(f"{source}: {left_out} rows are left out, the first: {first}")
    if not answered:
        raise ValueError(f"{source}: no row can be used")
    return answered


def report_unwritable(count: int, total: int) -> None:
    """A line where golds cannot be said by these models."""
    if count:
        print(
            f"{count} of {total} held-out golds cannot be written with this tokenizer: never right"
        )


def table(results: dict[tuple[str, str], Any]) -> str:
    """Accuracy in percent with standard errors, as Markdown."""
    lines = ["| accuracy in % | plain | privileged |", "|---|--:|--:|"]
    for model in ("teacher", "student"):
        cells = [
            f"{100 * one.accuracy:.1f} ± {100 * one.stderr:.1f}"
            for one in (results[model, "plain"], results[model, "privileged"])
        ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_recipe(options: argparse.Namespace, most_tokens: int) -> None:
    """recipe.yaml, and with --test the benchmark of its evaluations."""

    from dopd_vlm.scripts.wiring.samples import annotation_choices

    choices = [
        choice if isinstance(choice, str) else list(choice)
        for choice in annotation_choices(options.annotations)
    ]
    recipe: dict[str, Any] = {
        "name": f"{options.out.name}_dopd",
        "student": {"path": str(options.out / "student")},
        "teacher": {"path": str(options.out / "teacher")},
        "data": {"train": options.rows, "split": options.split, "annotations": choices, "limit": options.limit},
        "rollout": {"max_completion_length": most_tokens},
        "method": {"name": "dopd", "self_target": "frozen"},
        "optim": {
            "learning_rate": 6.0e-4, "max_steps": 250, "batch_size": 32, "micro_batch_size": 64,
            "score_batch_size": 64, "warmup_steps": 5,
        },
    }  # fmt: skip
    if options.test:
        task = {
            "description": f"rows of {options.test}, for {options.out.name}", "rows": options.test,
            "split": options.split, "answer_type": "row",
            "generation": {"max_completion_length": most_tokens},
        }  # fmt: skip
        write(options.out / "test.yaml", task)
        recipe["evaluation"] = {
            "tasks": [str(options.out / "test.yaml")],
            "every": 50,
            "limit": 200,
        }
    write(options.out / "recipe.yaml", recipe)


def write(path: Path, tree: dict[str, Any]) -> None:
    """A YAML file without what is not set."""
    import yaml

    tree = {
        name: {k: v for k, v in value.items() if v is not None}
        if isinstance(value, dict)
        else value
        for name, value in tree.items()
        if value is not None
    }
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    command = command_parser("make-tiny", __doc__)
    add = command.add_argument
    add("rows", help="a data set as read_rows takes it")
    add("--out", type=Path, required=True, help="folder to write")
    add(
        "--annotations",
        nargs="+",
        required=True,
        metavar="NAME[:FORM]",
        help="the privilege, as the recipe will have it",
    )
    add(
        "--test",
        metavar="ROWS",
        help="rows to measure on; without it a tenth of the rows' images is held out",
    )
    add("--most-test", type=int, default=400, help="questions to measure on")
    add("--split", help="split of the data set")
    add("--limit", type=int, help="the first N rows only")
    add("--seed", type=int, default=0)
    add_plugin_option(command)
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
