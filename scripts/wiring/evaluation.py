"""A recipe's benchmarks in its run: evaluated before, during and after training, and the table of them."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dopd_vlm.config import RunConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results.results import Results, read_results, write_results
from dopd_vlm.eval.results.stats import paired_difference
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.rollout.engine import RolloutEngine
from dopd_vlm.scripts.wiring.samples import benchmark_samples, resizer
from dopd_vlm.training.build import run_folder
from dopd_vlm.types import Sample

EVALUATIONS = "evaluations"
"""Folder in a run's: per-question results of each evaluation."""


class Evaluation:
    """The recipe's benchmarks as a callable for the training loop; its results go into the run folder."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config, self.console = config, console
        self._samples: dict[str, list[Sample]] = {}
        self.left_out: dict[str, int] = {}
        """Task -> its rows that do not count."""
        for name in config.evaluation.tasks:
            samples, problems = benchmark_samples(name, config.data, resizer(config), console)
            self._samples[name] = samples
            self.left_out[load_benchmark(name).name] = len(problems)

    def __call__(
        self,
        student: Policy,
        step: int,
        is_last: bool,
        *,
        teacher: Policy | None,
        engine: RolloutEngine | None = None,
    ) -> dict[str, float]:
        """{eval/<task>/<view>/<value>: number} of the student; the teacher's once, before step 1."""
        if not self._samples:
            return {}
        limit = self.config.evaluation.limit if step and not is_last else None
        metrics = self._measure(student, "eval", step_name(step), limit, engine)
        if step == 0 and self.config.evaluation.teacher:
            # A run whose method needs no teacher holds none; the table shows one all the same.
            teacher = teacher or load_policy(
                self.config.teacher, device=student.device, trainable=False
            )
            metrics |= self._measure(teacher, "teacher", "teacher", None)
        return metrics

    def _measure(
        self,
        policy: Policy,
        prefix: str,
        name: str,
        limit: int | None,
        engine: RolloutEngine | None = None,
    ) -> dict[str, float]:
        """Metrics of every task in every view, and its results in the run folder as `name`."""
        results = self._evaluate(policy, limit, engine)
        self._save(results, name)
        metrics: dict[str, float] = {}
        for result in results:
            metrics |= _metrics(f"{prefix}/{result.name}/{result.view}", result)
        return metrics

    def _save(self, results: list[Results], name: str) -> None:
        """Per-question results into the run folder, for paired statistics between runs."""
        if process_state().is_main_process:
            write_results(results, run_folder(self.config) / EVALUATIONS, f"{name}.json")

    def _evaluate(
        self, policy: Policy, limit: int | None, engine: RolloutEngine | None
    ) -> list[Results]:
        return [
            evaluate(
                policy,
                name,
                view=view,
                engine=engine,
                samples=samples,
                limit=limit,
                batch_size=self.config.rollout.batch_size,
                template_kwargs=self.config.chat.template_kwargs,
            )
            for name, samples in self._samples.items()
            for view in self.config.evaluation.views
        ]

    def _saved(self, name: str) -> dict[tuple[str, str], Results]:
        """What one evaluation left in the run folder, of this process or of the one it resumes."""
        path = run_folder(self.config) / EVALUATIONS / f"{name}.json"
        return {(r.name, r.view): r for r in read_results(path)} if path.exists() else {}

    def table(self) -> Table:
        """Accuracy in percent with standard errors: student before and after, teacher, per view."""
        names = (step_name(0), step_name(self.config.optim.max_steps), "teacher")
        evaluations = [self._saved(name) for name in names]
        table = Table(title="accuracy in %, ± standard error")
        for column in (
            "task",
            "view",
            "student before",
            "student after",
            "after - before",
            "teacher",
        ):
            table.add_column(column, justify="left" if column in ("task", "view") else "right")
        for name in (load_benchmark(task).name for task in self._samples):
            for view in self.config.evaluation.views:
                before, after, teacher = (results.get((name, view)) for results in evaluations)
                change = "-"
                if before and after:
                    difference = paired_difference(after.per_question, before.per_question, None)
                    change = f"{100 * difference.value:+.1f} ± {100 * difference.stderr:.1f}"
                table.add_row(name, view, _cell(before), _cell(after), change, _cell(teacher))
        return table


def step_name(step: int) -> str:
    """Name of an evaluation's file in the run folder."""
    return f"step_{step:06d}"


def last_evaluation(run_dir: Path) -> tuple[int, list[Results]]:
    """(step, results) of the run's newest evaluation; step 0 and none where there is none."""
    paths = sorted((run_dir / EVALUATIONS).glob("step_*.json"))
    if not paths:
        return 0, []
    return int(paths[-1].stem.removeprefix("step_")), read_results(paths[-1])


def _metrics(prefix: str, result: Results) -> dict[str, float]:
    return {
        f"{prefix}/accuracy": result.accuracy,
        f"{prefix}/stderr": result.stderr,
        f"{prefix}/length": result.mean_tokens,
        f"{prefix}/truncated": result.truncated_rate,
        f"{prefix}/n": float(result.n),
    }


def _cell(result: Results | None) -> str:
    return "-" if result is None else f"{100 * result.accuracy:.1f} ± {100 * result.stderr:.1f}"
