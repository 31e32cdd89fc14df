"""Distil a student from a privileged teacher.

    python scripts/train.py RECIPE [section.field=value ...] [--dry-run | --memory[=GIB]]
    torchrun --nproc_per_node N scripts/train.py RECIPE ...        # or accelerate launch
    python scripts/train.py --help                                 # every field of a recipe

--dry-run resolves the recipe, checks the rows, shows the first prompts and says what would happen;
it loads no model and needs no GPU.
--memory predicts the peak memory of each phase of a step and says whether it fits this machine, or a
GPU of GIB; it loads no weights, and for the paper's models it needs no network.
"""

import logging
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console
from rich.pretty import pprint
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.config import RunConfig, parser, read_config
from dopd_vlm.models.policy import process_state
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.memory_table import show_memory
from dopd_vlm.scripts.wiring.samples import (
    Evaluation,
    good_rows,
    resizer,
    resolved,
    score_answer,
    training_samples,
)
from dopd_vlm.train import TrainResult, train
from dopd_vlm.training.build import configured_method
from dopd_vlm.training.step import NonFiniteLossError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 non-finite loss or full disk; 2 wrong recipe or data; 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        parser().print_help()
        return 0 if arguments else 2
    modes = {"--dry-run": show, "--memory": show_memory}
    mode = next((modes[a] for a in arguments if a in modes), run)
    asked = next((a for a in arguments if a.startswith("--memory=")), None)
    recipe, *overrides = [a for a in arguments if a not in modes and a != asked]
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}"
    logging.captureWarnings(True)
    try:
        config = read_config(recipe, overrides)
        return mode(config, console) if asked is None else show_memory(config, console, gpu(asked))
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    except (NonFiniteLossError, OSError) as error:
        console.print(f"stopped: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:  # before the first step, or a second time during one
        console.print("stopped at once: what was saved stands, resume=true goes on from there")
        return 130


def gpu(asked: str) -> float:
    """GiB of --memory=GIB. Raises ValueError for no positive number."""
    try:
        size = float(asked.removeprefix("--memory="))
    except ValueError:
        size = 0.0
    if size <= 0:
        raise ValueError(
            f"{asked}: the size of a GPU in GiB is a number above 0, as in --memory=80"
        )
    return size


def show(config: RunConfig, console: Console) -> int:
    """What a run would do: config, method, rows and the first row's prompts in both views."""
    method = configured_method(config)
    with console.status("finding where the rows lie"):
        samples = training_samples(config.data, resize=resizer(resolved(config)))
    good, problems = good_rows(samples, config.data.validate_rows, console)
    pprint(config, console=console, expand_all=True)
    pprint(method, console=console)
    console.print(f"rows: {len(samples)}; checked {good + len(problems)}, good {good}")
    for problem in problems[:10]:
        console.print(f"  left out: {problem}", markup=False)
    first = next((s for s in samples if s is not None), None)
    if first is not None:
        pair = build_prompts(first, config.prompts)
        for view in ("plain", "privileged"):
            console.rule(f"{view}: {first.uid}")
            for message in pair.view(view):
                console.print(f"{message['role']}: {message['content']}", markup=False)
    optim = config.optim
    console.rule()
    console.print(
        f"would take {optim.max_steps} steps of {optim.batch_size} prompts x "
        f"{config.rollout.num_generations} rollouts with {config.method.name} "
        f"({config.student.path} <- {config.teacher.path}) into {config.output_dir}/{config.name}",
        markup=False,
    )
    return 0


def run(config: RunConfig, console: Console) -> int:
    """Evaluate, distil, evaluate, and print the table."""
    recipe, config = config, resolved(config)
    with console.status("finding where the rows lie"):
        samples = training_samples(config.data, resize=resizer(config))
    good, problems = good_rows(samples, config.data.validate_rows, console)
    if not good:
        raise ValueError(f"no row of {config.data.train!r} can be used: {'; '.join(problems[:3])}")
    if problems:
        console.print(
            f"{len(problems)} rows cannot be used, the first: {problems[0]}", markup=False
        )
    evaluation = Evaluation(config, console)
    result = train(
        config, samples, evaluate=evaluation, score_answer=score_answer, console=console,
        recipe=recipe,
    )  # fmt: skip
    if process_state().is_main_process:
        closing(config, evaluation, result, console)
    return 130 if result.interrupted else 0


def closing(
    config: RunConfig, evaluation: Evaluation, result: TrainResult, console: Console
) -> None:
    """The table of this run, where it lies and what to try next."""
    if config.evaluation.tasks:
        console.print(evaluation.table())
    if result.num_skipped:
        console.print(f"{result.num_skipped} rows were skipped, see {result.run_dir}/skipped.jsonl")
    tasks = ",".join(config.evaluation.tasks) or "TASK"
    lines = (
        f"run folder: {result.run_dir}",
        "next:",
        f"  python scripts/evaluate.py {result.run_dir}/checkpoint --tasks {tasks} --view plain,privileged",
        "  python scripts/train.py scripts/recipes/demo.yaml name=opd method.name=opd",
        "  python scripts/preview.py scripts/recipes/demo.yaml --rows 20",
    )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
