"""lm-eval's tasks on a PolicyLM: names checked, its files written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopd_vlm.errors import unknown

from .lm_eval import PolicyLM  # isort: skip  # first: it says which extra is missing
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

FEWSHOT_SEED = 1234
"""lm-eval's own; another one draws other examples than published numbers have."""


def load_lm(path: str, batch_size: int, template_kwargs: Mapping[str, Any] | None) -> PolicyLM:
    """The checkpoint on this process's device as lm-eval's model."""
    kind: Any = PolicyLM  # its decorator hides the parameters
    return kind(path, batch_size=batch_size, template_kwargs=template_kwargs)


def result_table(results: Mapping[str, Any]) -> str:
    """lm-eval's own table of results."""
    return make_table(results)


def run_tasks(
    lm: PolicyLM,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = True,
    generation: Mapping[str, Any] | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """lm-eval's results tree; None on all processes but the first.

    Args:
        lm: the model.
        tasks: names or patterns of lm-eval's tasks and of those in `include_path`.
        include_path: folder of task YAMLs of your own; only they are known then.
        limit: the first documents of each task only.
        num_fewshot: solved examples before each question; None is the task's own number.
        apply_chat_template: whether questions are put into the model's chat template.
        generation: decoding settings, by our names, that differ from the tasks'.
        out: folder of lm-eval's results and samples files.
        seed: of sampled completions; few-shot examples are always those of lm-eval's own seed.

    Raises:
        ValueError: an unknown task, or data that cannot be loaded.
    """
    manager = TaskManager(
        include_path=str(include_path) if include_path else None,
        include_defaults=include_path is None,
    )
    run: Any = simple_evaluate  # its decorator hides the parameters
    tracker = EvaluationTracker(output_path=str(out)) if out else None
    try:
        output = run(
            model=lm,
            tasks=_known_tasks(manager, tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
            gen_kwargs=_gen_kwargs(generation or {}),
            evaluation_tracker=tracker,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=FEWSHOT_SEED,
            bootstrap_iters=1000,
        )
    except OSError as error:
        raise ValueError(
            f"lm-eval cannot read the data of {', '.join(tasks)}: {error}; its own tasks need the "
            "hub or a filled cache, a YAML of yours with local data_files needs neither"
        ) from error
    if output is not None and tracker is not None:
        samples = output.get("samples", {})
        tracker.save_results_aggregated(
            results={k: v for k, v in output.items() if k != "samples"}, samples=samples
        )
        for name, lines in samples.items():
            tracker.save_results_samples(task_name=name, samples=lines)
    lm.barrier()
    return output


def _gen_kwargs(generation: Mapping[str, Any]) -> dict[str, Any] | None:
    names = {"max_completion_length": "max_gen_toks"}
    renamed = {names.get(name, name): value for name, value in generation.items()}
    if "temperature" in renamed:
        renamed["do_sample"] = renamed["temperature"] > 0
    return renamed or None


def _known_tasks(manager: TaskManager, tasks: Sequence[str]) -> list[str]:
    names = []
    for task in tasks:
        matches = manager.match_tasks([task])
        if not matches:
            raise unknown("lm-eval task", task, manager.all_tasks)
        names += matches
    return names
