"""The live view of a run: one panel, updated in place on a terminal; one line a step elsewhere."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dopd_vlm.report.palette import PAINTS
from dopd_vlm.types import Regime

PANEL_WIDTH = 84
BAR_WIDTH = 40
"""Characters of the regime bar."""
MOST_LINES = 200
"""Lines about steps that a run prints when it is piped; longer runs leave steps out."""
PHASES = ("data", "rollout", "score", "loss", "step")

Metrics = Mapping[str, float]


class RunView:
    """What the user sees of a run. A context manager; `step`, `measured` and `status` bring news."""

    def __init__(
        self,
        console: Console,
        *,
        title: str,
        num_steps: int,
        is_shown: bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            console: a panel on a terminal, lines elsewhere.
            title: run and method.
            num_steps: steps of the whole run.
            is_shown: False on all processes but one.
            now: a clock in seconds.
        """
        self._console, self._title, self._num_steps = console, title, num_steps
        self._is_shown, self._now = is_shown, now
        self._step, self._first_step, self._began = 0, 0, now()
        self._metrics: dict[str, float] = {}
        self._accuracy: list[tuple[int, float]] = []
        self._status = "starting"
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, auto_refresh=True
        )

    def __enter__(self) -> "RunView":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status = "" if kind is None else "stopped"
        if self._is_live:
            self._live.stop()

    @property
    def _is_live(self) -> bool:
        return self._is_shown and self._console.is_terminal

    def resume_at(self, step: int) -> None:
        """The run goes on from this step."""
        self._step = self._first_step = step

    def status(self, text: str) -> None:
        """What is being done between steps, e.g. an evaluation."""
        self._status = text

    def say(self, message: str) -> None:
        """A line that stays, above the panel."""
        if self._is_shown:
            self._console.print(message)

    def measured(self, step: int, values: Metrics) -> None:
        """Results of an evaluation."""
        accuracy = plain_accuracy(values)
        if accuracy is not None:
            self._accuracy.append((step, accuracy))
        if self._is_shown and not self._is_live and values:
            parts = [f"{name} {value:.3f}" for name, value in values.items() if "accuracy" in name]
            self._line(f"step {step}: {'  '.join(parts)}")

    def step(self, step: int, metrics: Metrics) -> None:
        """One optimizer step is done."""
        if self._step == self._first_step:
            self._began = self._now() - metrics.get("time/step_total", 0.0)
        self._step, self._metrics, self._status = step, dict(metrics), ""
        every = -(-self._num_steps // MOST_LINES)
        is_due = step % every == 0 or step == self._num_steps
        if self._is_shown and not self._is_live and is_due:
            parts = [f"step {step}/{self._num_steps}", *self._facts().values()]
            parts.append(f"left {self._time_left()}")
            self._line("  ".join(part for part in parts if part))

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _time_left(self) -> str:
        done = self._step - self._first_step
        if not done:
            return "?"
        seconds = (self._now() - self._began) / done * (self._num_steps - self._step)
        return str(timedelta(seconds=round(seconds)))

    def _facts(self) -> dict[str, str]:
        """The panel's rows as plain text, by name."""
        metrics = self._metrics
        gap = metrics.get("threshold/gap")
        times = [f"{p} {metrics[f'time/{p}']:.2f}s" for p in PHASES if f"time/{p}" in metrics]
        return {
            "accuracy": self._accuracy_text(),
            "loss": _number("loss", metrics.get("loss"), ".4f"),
            "gap": "" if gap is None else f"gap >= {gap:.3f} nats",
            "regimes": "" if gap is None else _shares(metrics),
            "entropy": _number("entropy", metrics.get("entropy/student"), ".3f"),
            "length": _number("length", metrics.get("rollout/length"), ".1f"),
            "speed": _number("", metrics.get("time/tokens_per_second"), ".0f", " tok/s"),
            "time": " ".join(times),
            "memory": memory_text(metrics),
        }

    def _accuracy_text(self) -> str:
        parts = []
        if self._accuracy:
            (first, start), (last, value) = self._accuracy[0], self._accuracy[-1]
            parts.append(f"plain {value:.1%}")
            if last != first:
                parts.append(f"({start:.1%} at step {first})")
        if "rollout/accuracy" in self._metrics:
            parts.append(f"rollouts {self._metrics['rollout/accuracy']:.0%}")
        return " ".join(parts)

    def render(self) -> RenderableType:
        """The panel as it is at this moment."""
        facts = self._facts()
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column()
        if facts["accuracy"]:
            grid.add_row("accuracy", facts["accuracy"])
        if self._metrics:
            grid.add_row("loss", _joined(facts, "loss", "gap").removeprefix("loss "))
        if facts["regimes"]:
            grid.add_row("regimes", regime_bar(self._metrics))
            grid.add_row("", regime_legend(self._metrics))
        if self._metrics:
            grid.add_row("student", _joined(facts, "entropy", "length", "speed"))
            grid.add_row("time", facts["time"])
        if facts["memory"]:
            grid.add_row("memory", facts["memory"])
        width = min(PANEL_WIDTH, self._console.width)
        if self._status:
            grid.add_row("now", Text(self._status, style="italic"))
        return Panel(
            Group(self._progress(), grid), title=Text(self._title), title_align="left", width=width
        )

    def _progress(self) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        row.add_row(
            f"step {self._step}/{self._num_steps}",
            ProgressBar(total=self._num_steps, completed=self._step, width=BAR_WIDTH),
            f"left {self._time_left()}",
        )
        return row


def plain_accuracy(values: Metrics) -> float | None:
    """Mean accuracy over the tasks in the plain view; without tasks that of the training prompts."""
    scores = [
        v for n, v in values.items() if n.startswith("eval/") and n.endswith("/plain/accuracy")
    ]
    return sum(scores) / len(scores) if scores else values.get("probe/plain_accuracy")


def regime_bar(metrics: Metrics) -> Text:
    """One cell per 1/BAR_WIDTH of the tokens, in the regimes' colours; the cells add up to the width."""
    bar, edge, total = Text(no_wrap=True), 0.0, 0
    for regime in Regime:
        edge += metrics.get(f"share/{regime.name.lower()}", 0.0) * BAR_WIDTH
        cells = round(edge) - total
        total += cells
        label = regime.name.center(cells) if cells >= 4 else " " * cells
        bar.append(label, style=f"{PAINTS[regime].ink} on {PAINTS[regime].fill}")
    return bar


def regime_legend(metrics: Metrics) -> Text:
    """The four shares in percent, each in its colour."""
    legend = Text()
    for regime in Regime:
        share = metrics.get(f"share/{regime.name.lower()}", 0.0)
        legend.append(
            f" {regime.name} ", style=f"{PAINTS[regime].ink} on {PAINTS[regime].fill}"
        ).append(f" {share:.0%}  ")
    return legend


def memory_text(metrics: Metrics) -> str:
    """Process memory and, on a GPU, the peak of its allocations."""
    parts = [_number("", metrics.get("memory/process_gib"), ".2f", " GiB")]
    parts.append(_number("GPU peak", metrics.get("memory/gpu_peak_gib"), ".2f", " GiB"))
    return ", ".join(part for part in parts if part)


def _shares(metrics: Metrics) -> str:
    return " ".join(f"{r.name} {metrics.get(f'share/{r.name.lower()}', 0.0):.0%}" for r in Regime)


def _joined(facts: Mapping[str, str], *names: str) -> str:
    return "   ".join(facts[name] for name in names if facts[name])


def _number(name: str, value: float | None, style: str, unit: str = "") -> str:
    return "" if value is None else f"{name} {value:{style}}{unit}".strip()
