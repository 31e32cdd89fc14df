"""Distil a student from a privileged teacher.

    dopd train RECIPE [section.field=value ...] [--dry-run | --memory[=GIB]]
    torchrun --nproc_per_node N --master_addr 127.0.0.1 -m dopd_vlm.scripts.train RECIPE ...
    dopd train --help                                              # every field of a recipe

RECIPE is a YAML file, or the name of one that ships: demo, demo_text, ... `accelerate launch` starts
it as `torchrun` does; without the package, `python scripts/train.py` is the same command.
--dry-run resolves the recipe, checks the rows, shows the first prompts and says what would happen;
it loads no model and needs no GPU.
--memory predicts the peak memory of each phase of a step and says whether it fits this machine, or a
GPU of GIB; it loads no weights, and for the paper's models it needs no network.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.pretty import pprint

from dopd_vlm.config import RunConfig, parser, read_config
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.command_line import (
    add_plugin_option,
    command_parser,
    load_plugins,
    recipe_path,
    with_plugins,
)  # fmt: skip
from dopd_vlm.types import Sample

if TYPE_CHECKING:  # --help and --dry-run load no model, and do not wait for the libraries of one
    from dopd_vlm.scripts.wiring.evaluation import Evaluation
    from dopd_vlm.train import TrainResult

THIS_MACHINE = 0.0


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0; 1 non-finite loss or full disk; 2 wrong recipe or data; 130 interrupted."""
    if not arguments or {"-h", "--help"} & set(arguments):
        _parser().print_help()
        print("\nfields of a recipe, each also an override section.field=value:\n")
        parser().print_help()
        return 0 if arguments else 2
    console = Console(width=None if sys.stdout.isatty() else 120)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}"
    logging.captureWarnings(True)
    try:
        options, others = _parser().parse_known_intermixed_args(_with_values(arguments))
        load_plugins(options)
        config = read_config(recipe_path(options.recipe), [*options.overrides, *others])
        return act(with_plugins(config), options, console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    except OSError as error:
        console.print(f"stopped: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:  # before the first step, or a second time during one
        console.print("stopped at once: resume=true goes on from what was saved")
        return 130


def act(config: RunConfig, options: argparse.Namespace, console: Console) -> int:
    """Look ahead or train, as the options say."""
    if options.memory is not None:
        from dopd_vlm.scripts.wiring.memory_table import show_memory

        return show_memory(config, console, options.memory or None)
    return show(config, console) if options.dry_run else run(config, console)


def _parser() -> argparse.ArgumentParser:
    command = command_parser("train", __doc__)
    add = command.add_argument
    add("recipe", help="a recipe's file, or the name of one that ships")
    add("overrides", nargs="*", metavar="section.field=value", help="settings over the recipe's")
    add("--dry-run", action="store_true", help="say what would happen; no model is loaded")
    add(
        "--memory",
        type=_gpu,
        metavar="GIB",
        help="predict the peak on this machine, or on a GPU of GIB",
    )
    add_plugin_option(command)
    return command


def _with_values(arguments: Sequence[str]) -> list[str]:
    """`--memory` alone must not take the recipe after it for its size."""
    return [f"--memory={THIS_MACHINE}" if one == "--memory" else one for one in arguments]


def _gpu(size: str) -> float:
    """GiB of --memory=GIB."""
    try:
        gib = float(size)
    except ValueError:
        gib = -1.0
    if gib < 0:
        raise argparse.ArgumentTypeError(
            f"{size!r}: the size of a GPU in GiB is a number above 0, as in --memory=80"
        )
    return gib


def show(config: RunConfig, console: Console) -> int:
    """What a run would do: config, method, rows and the first good row's prompts in both views."""
    from dopd_vlm.methods import configured_method
    from dopd_vlm.scripts.wiring.row_check import check_rows, load_reader, notes
    from dopd_vlm.scripts.wiring.samples import further_views, resizer, resolved, training_samples

    method = configured_method(config)
    with console.status("indexing the rows"):
        samples = training_samples(
            config.data, resize=resizer(resolved(config)), views=further_views(config)
        )
    reader = load_reader(resolved(config).student, config.prompts)
    check = check_rows(samples, config.data.validate_rows, console, reader)
    pprint(config, console=console, expand_all=True)
    pprint(method, console=console)
    num_checked = check.num_good + len(check.problems)
    console.print(f"rows: {len(samples)}; checked {num_checked}, good {check.num_good}")
    for line in notes(check, config.student.path):
        console.print(line, markup=False)
    if reader is None:
        console.print(
            f"no tokenizer of {config.student.path!r} is here: its words were not looked up"
        )
    first = check.first or first_good(samples, skip=num_checked)
    if first is None:
        raise ValueError(f"no row of {config.data.train!r} can be used: 0 steps would be taken")
    show_prompts(first, config, console)
    optim = config.optim
    console.rule()
    console.print(
        f"would take {optim.max_steps} steps of {optim.batch_size} prompts x "
        f"{config.rollout.num_generations} rollouts with {config.method.name} "
        f"({config.student.path} <- {config.teacher.path}) into {config.output_dir}/{config.name}",
        markup=False,
    )
    return 0


def first_good(samples: Sequence[Sample], skip: int) -> Sample | None:
    """The first sample that its row makes, after the `skip` that were tried; None without any."""
    for index in range(skip, len(samples)):
        with suppress(ValueError):
            return samples[index]
    return None


def show_prompts(sample: Sample, config: RunConfig, console: Console) -> None:
    """Both views' messages, without a chat template; an image is shown by its size."""
    pair = build_prompts(sample, config.prompts)
    for view in ("plain", "privileged"):
        console.rule(f"{view}: {sample.uid}")
        for message in pair.view(view):
            console.print(f"{message['role']}: {to_text(message['content'])}", markup=False)


def to_text(content: str | list[dict[str, Any]]) -> str:
    """A turn's content as text."""
    if isinstance(content, str):
        return content
    return "".join(
        f"[image {part['image'].width} x {part['image'].height}]\n"
        if part["type"] == "image"
        else part["text"]
        for part in content
    )


def run(config: RunConfig, console: Console) -> int:
    """Evaluate, distil, evaluate, and print the table."""
    from transformers.utils.logging import disable_progress_bar

    from dopd_vlm.distributed import process_state
    from dopd_vlm.rollout.engine import EngineError
    from dopd_vlm.scripts.wiring.evaluation import Evaluation
    from dopd_vlm.scripts.wiring.row_check import check_rows, load_reader, notes, record
    from dopd_vlm.scripts.wiring.samples import (
        further_views,
        resizer,
        resolved,
        score_answer,
        training_samples,
    )  # fmt: skip
    from dopd_vlm.train import train
    from dopd_vlm.training.step import NonFiniteLossError

    disable_progress_bar()
    recipe, config = config, resolved(config)
    with console.status("indexing the rows"):
        samples = training_samples(config.data, resize=resizer(config), views=further_views(config))
    reader = load_reader(config.student, config.prompts)
    check = check_rows(samples, config.data.validate_rows, console, reader)
    if check.first is None and first_good(samples, skip=len(check.problems)) is None:
        reasons = "; ".join(check.problems[:3])
        raise ValueError(f"no row of {config.data.train!r} can be used: {reasons}")
    for line in notes(check, recipe.student.path):
        console.print(line, markup=False)
    evaluation = Evaluation(config, console)
    try:
        result = train(
            config, samples, evaluate=evaluation, score_answer=score_answer, console=console,
            recipe=recipe, rows=record(check, reader is not None, evaluation.left_out),
        )  # fmt: skip
    except (NonFiniteLossError, EngineError) as error:
        console.print(f"stopped: {error}", style="red", markup=False)
        return 1
    if process_state().is_main_process:
        closing(recipe, evaluation, result, console)
    return 130 if result.interrupted else 0


def closing(
    config: RunConfig, evaluation: Evaluation, result: TrainResult, console: Console
) -> None:
    """The table of this run, its folder and what to try next."""
    if config.evaluation.tasks:
        console.print(evaluation.table())
    if result.num_skipped:
        console.print(f"{result.num_skipped} rows were skipped, see {result.run_dir}/skipped.jsonl")
    tasks = ",".join(config.evaluation.tasks) or "TASK"
    recipe = result.run_dir / "config.yaml"
    lines = (
        f"run folder: {result.run_dir}",
        "next:",
        f"  dopd evaluate {result.run_dir}/checkpoint --tasks {tasks} --view plain,privileged",
        f"  dopd train {recipe} name={config.name}_opd method.name=opd",
        f"  dopd preview {recipe} --rows 20",
    )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
