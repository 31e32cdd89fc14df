"""What the scripts share: recipe -> samples for training, and callables for evaluation.

`dopd_vlm` knows neither rows nor benchmarks, and `data` and `eval` are strangers; they meet here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoProcessor

from dopd_vlm.config import DataConfig, ModelConfig, RunConfig
from dopd_vlm.data.coords import resized_size
from dopd_vlm.data.embedded.sets import embedded_model, embedded_rows, is_embedded
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import check_choices, make_sample, make_samples
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.benchmarks.convert import to_rows
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results.results import Results, read_results, write_results
from dopd_vlm.eval.results.stats import paired_difference
from dopd_vlm.eval.scorers import score
from dopd_vlm.models.policy import Policy, load_policy, process_state
from dopd_vlm.training.build import run_folder
from dopd_vlm.types import Sample

EVALUATIONS = "evaluations"
"""Folder in a run's: per-question results of each evaluation."""


class LazySamples(Sequence[Sample]):
    """Samples made from rows when asked for; a bad row raises ValueError naming its uid and file."""

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], Sample]
    ) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self._make(self._rows[index])


def rows_of(source: str, split: str | None) -> Sequence[Mapping[str, Any]]:
    """Rows of a recipe's source, embedded ones included."""
    return embedded_rows(source) if is_embedded(source) else read_rows(source, split=split)


def training_samples(data: DataConfig, *, resize: Callable[..., Any] | None = None) -> LazySamples:
    """The recipe's samples, one at a time; unknown annotation types and forms raise at once."""
    check_choices(data.annotations)
    rows = rows_of(data.train, data.split)[: data.limit]
    # No closure: data.workers sends it to other processes.
    make = partial(make_sample, annotations=data.annotations, coords=data.coords, resize=resize)
    return LazySamples(rows, make)


def resizer(config: RunConfig) -> Callable[..., Any] | None:
    """How the student's processor resizes a picture; only Qwen2.5's coordinates ask for it.

    `config` is a resolved one. For the other families no processor is loaded.
    """
    if config.data.coords != "qwen2_5":
        return None
    student = config.student
    processor = AutoProcessor.from_pretrained(
        student.path, trust_remote_code=student.trust_remote_code
    )
    return partial(resized_size, processor)


def good_rows(samples: LazySamples, limit: int, console: Console) -> tuple[int, list[str]]:
    """How many of the first `limit` rows make a sample, and what is wrong with the others."""
    problems = []
    count = min(limit, len(samples))
    for index in track(range(count), "checking rows", console=console, transient=True):
        try:
            samples[index]
        except ValueError as error:
            problems.append(str(error))
    return count - len(problems), problems


def resolved(config: RunConfig) -> RunConfig:
    """The config with `embedded:` model names replaced by their folders."""
    return replace(config, student=_model(config.student), teacher=_model(config.teacher))


def _model(model: ModelConfig) -> ModelConfig:
    return replace(model, path=local_path(model.path))


def local_path(model: str) -> str:
    """The folder of an `embedded:` model; any other name as it is."""
    return str(embedded_model(model)) if is_embedded(model) else model


def score_answer(text: str, sample: Sample) -> float:
    """Correctness of a completion by the sample's own answer type."""
    return score(text, sample).correct


class Evaluation:
    """The recipe's benchmarks as a callable for the training loop; what it finds goes into the run folder."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config, self.console = config, console
        self._samples = {
            name: benchmark_samples(name, config.data, resizer(config))
            for name in config.evaluation.tasks
        }

    def __call__(self, student: Policy, step: int, is_last: bool) -> dict[str, float]:
        """{eval/<task>/<view>/<value>: number} of the student; the teacher's once, before step 1."""
        if not self._samples:
            return {}
        metrics: dict[str, float] = {}
        limit = self.config.evaluation.limit if step and not is_last else None
        found = self._evaluate(student, limit)
        self._save(found, step_name(step))
        for result in found:
            metrics |= _metrics(f"eval/{result.name}/{result.view}", result)
        if step == 0 and self.config.evaluation.teacher:
            teacher = load_policy(self.config.teacher, device=student.device, trainable=False)
            taught = self._evaluate(teacher, None)
            self._save(taught, "teacher")
            for result in taught:
                metrics |= _metrics(f"teacher/{result.name}/{result.view}", result)
        return metrics

    def _save(self, found: list[Results], name: str) -> None:
        """Per-question results into the run folder, for paired statistics between runs."""
        if process_state().is_main_process:
            write_results(found, run_folder(self.config) / EVALUATIONS, f"{name}.json")

    def _evaluate(self, policy: Policy, limit: int | None) -> list[Results]:
        return [
            evaluate(
                policy,
                name,
                view=view,
                samples=samples,
                limit=limit,
                batch_size=self.config.rollout.batch_size,
                template_kwargs=self.config.chat.template_kwargs,
            )
            for name, samples in self._samples.items()
            for view in self.config.evaluation.views
        ]

    def _found(self, name: str) -> dict[tuple[str, str], Results]:
        """What one evaluation left in the run folder, of this process or of the one it resumes."""
        path = run_folder(self.config) / EVALUATIONS / f"{name}.json"
        return {(r.name, r.view): r for r in read_results(path)} if path.exists() else {}

    def table(self) -> Table:
        """Accuracy in percent with standard errors: student before and after, teacher, per view."""
        names = (step_name(0), step_name(self.config.optim.max_steps), "teacher")
        kept = [self._found(name) for name in names]
        made = Table(title="accuracy in %, +- standard error")
        for column in (
            "task",
            "view",
            "student before",
            "student after",
            "after - before",
            "teacher",
        ):
            made.add_column(column, justify="left" if column in ("task", "view") else "right")
        for name in self._samples:
            for view in self.config.evaluation.views:
                before, after, teacher = (found.get((name, view)) for found in kept)
                change = "-"
                if before and after:
                    difference = paired_difference(after.per_question, before.per_question, None)
                    change = f"{100 * difference.value:+.1f} +- {100 * difference.stderr:.1f}"
                made.add_row(name, view, _cell(before), _cell(after), change, _cell(teacher))
        return made


def benchmark_samples(
    name: str, data: DataConfig, resize: Callable[..., Any] | None = None
) -> list[Sample]:
    """A benchmark's questions with the privileged view of the recipe's annotations."""
    benchmark = load_benchmark(name)
    rows = to_rows(benchmark, rows_of(benchmark.rows, benchmark.split))
    samples, skipped = make_samples(rows, data.annotations, coords=data.coords, resize=resize)
    if not samples:
        raise ValueError(
            f"task {name!r} has no usable row: {skipped[0].reason if skipped else 'it is empty'}"
        )
    return samples


def step_name(step: int) -> str:
    """Name of an evaluation's file in the run folder."""
    return f"step_{step:06d}"


def last_evaluation(run_dir: Path) -> tuple[int, list[Results]]:
    """(step, results) of the run's newest evaluation; step 0 and none where there is none."""
    found = sorted((run_dir / EVALUATIONS).glob("step_*.json"))
    if not found:
        return 0, []
    return int(found[-1].stem.removeprefix("step_")), read_results(found[-1])


def _metrics(prefix: str, result: Results) -> dict[str, float]:
    return {
        f"{prefix}/accuracy": result.accuracy,
        f"{prefix}/stderr": result.stderr,
        f"{prefix}/length": result.mean_tokens,
        f"{prefix}/truncated": result.truncated_rate,
        f"{prefix}/n": float(result.n),
    }


def _cell(result: Results | None) -> str:
    return "-" if result is None else f"{100 * result.accuracy:.1f} +- {100 * result.stderr:.1f}"
