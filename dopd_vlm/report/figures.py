"""The plots of a run as plotly figures in plain dicts: data and layout, nothing drawn yet.

Dicts instead of plotly's classes: building a page must cost less than a step, and the classes are
checked in the tests instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dopd_vlm.report.captions import CAPTIONS
from dopd_vlm.report.palette import PAINTS, SERIES
from dopd_vlm.run_folder import RunRecord, Series, running_mean, spread
from dopd_vlm.types import Regime

SMOOTH = 9
"""Steps of the running mean that is drawn over noisy curves."""
COLLAPSE_SHARE = 0.1
"""Of its first values: a running mean of entropy below it is marked as a collapse; of length, half."""
COLLAPSE_WINDOW = 5
MOST_MOMENTS = 6
"""Steps whose histograms are drawn."""
BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, BROWN = SERIES

Trace = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot, with the sentence that says how to read it."""

    key: str
    title: str
    data: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    missing: str = "nothing was logged for it"
    """Why the plot is empty, where `data` is."""

    @property
    def caption(self) -> str:
        """How to read it and what bad looks like: that of the key, or of its part before the dash."""
        return CAPTIONS.get(self.key) or CAPTIONS[self.key.partition("-")[0]]


def run_figures(run: RunRecord) -> list[Figure]:
    """All plots of one run, in the order of the page."""
    return [
        *accuracy_figures(run),
        training_accuracy(run),
        regime_loss(run),
        regime_shares(run),
        entropy_and_length(run),
        phase_times(run),
        memory(run),
        optimizer(run),
    ]


def line(
    name: str, series: Series, colour: str, *, smooth: bool = True, **options: Any
) -> list[Trace]:
    """A curve; a long one faintly, with its running mean on top, if it is to be smoothed."""
    style = {"color": colour, "width": 2, **options.pop("line", {})}
    base = {"type": "scatter", "mode": "lines", "x": series.steps, **options}
    if len(series.steps) < 3:
        base["mode"] = "lines+markers"
    if not smooth or len(series.steps) <= 3 * SMOOTH:
        return [{**base, "name": name, "y": series.values, "line": style}] if series else []
    faint = {**base, "y": series.values, "line": {**style, "width": 1}, "opacity": 0.3}
    mean = {**base, "y": running_mean(series.values, SMOOTH), "line": style, "name": name}
    return [{**faint, "name": name, "showlegend": False, "hoverinfo": "skip"}, mean]


def accuracy_figures(run: RunRecord) -> list[Figure]:
    """One plot a task: student over training in both views with error bars, the teacher as lines."""
    tasks = dict.fromkeys(name.split("/")[1] for name in run.names("eval/", "/accuracy"))
    layout = axes("step", "accuracy", percent=True)
    layout["xaxis"]["rangemode"] = "normal"  # room for the error bars of step 0
    made = [
        Figure(
            key=f"accuracy-{task}",
            title=f"Accuracy: {task}",
            data=_accuracy_traces(run, task),
            layout=layout,
        )
        for task in tasks
    ]
    if made:
        return made
    why = "the run has no evaluation: set evaluation.tasks in the recipe"
    return [Figure(key="accuracy", title="Accuracy", data=[], missing=why)]


def _accuracy_traces(run: RunRecord, task: str) -> list[Trace]:
    traces = []
    for view, colour in (("plain", BLUE), ("privileged", ORANGE)):
        series = run.series(f"eval/{task}/{view}/accuracy")
        bars = run.series(f"eval/{task}/{view}/stderr")
        if series:
            traces.append(
                {
                    "type": "scatter", "mode": "lines+markers", "name": f"student, {view}",
                    "x": series.steps, "y": series.values, "line": {"color": colour, "width": 2},
                    "error_y": {"type": "data", "array": bars.values, "thickness": 1.5},
                }
            )  # fmt: skip
        level = run.series(f"teacher/{task}/{view}/accuracy")
        if level:
            ends = [0, max(run.last_step, 1)]
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "name": f"teacher, {view}", "x": ends,
                    "y": [level.values[-1]] * 2, "line": {"color": colour, "dash": "dash", "width": 1.5},
                }
            )  # fmt: skip
    return traces


def training_accuracy(run: RunRecord) -> Figure:
    """Right rollouts of each step, and the greedy probe on fixed training prompts in both views."""
    data = [
        *line("sampled rollouts", run.series("rollout/accuracy"), GREEN),
        *line("greedy, plain", run.series("probe/plain_accuracy"), BLUE, mode="lines+markers"),
        *line("greedy, privileged", run.series("probe/privileged_accuracy"), ORANGE, mode="lines+markers"),
    ]  # fmt: skip
    return Figure(
        key="training", title="Accuracy on training prompts", data=data,
        layout=axes("step", "accuracy", percent=True),
        missing="no scorer of answers was given to the run",
    )  # fmt: skip


def regime_loss(run: RunRecord) -> Figure:
    """Mean divergence of the tokens of each regime, of all tokens, and the weighted loss."""
    data = [*line("loss (weighted)", run.series("loss"), BLACK, line={"dash": "dot"})]
    if _routes_by_gap(run):
        for regime in Regime:
            kind = regime.name.lower()
            series = run.series(f"divergence/{kind}", where=f"share/{kind}")
            data += line(regime.name, series, PAINTS[regime].fill)
    else:
        data += line("mean divergence", run.series("divergence/all"), BLUE)
    return Figure(
        key="loss", title="Loss by regime", data=data,
        layout=axes("step", "nats, log scale", log=True),
    )  # fmt: skip


def regime_shares(run: RunRecord) -> Figure:
    """Stacked shares of the four regimes."""
    traces = []
    for regime in Regime:
        series = run.series(f"share/{regime.name.lower()}")
        if series and _routes_by_gap(run):
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "stackgroup": "one", "name": regime.name,
                    "x": series.steps, "y": series.values, "line": {"width": 0.5, "color": PAINTS[regime].fill},
                    "fillcolor": PAINTS[regime].fill,
                }
            )  # fmt: skip
            if len(series.steps) == 1:
                traces[-1] |= {"type": "bar", "marker": {"color": PAINTS[regime].fill}}
    return Figure(
        key="shares", title="Regime shares", data=traces,
        layout={**axes("step", "share of tokens", percent=True), "barmode": "stack"},
        missing="the method does not route by gap, or no step was taken",
    )  # fmt: skip


def entropy_and_length(run: RunRecord) -> Figure:
    """Entropy of the student and completion length on two panels, with marks where they collapse."""
    entropy, length = run.series("entropy/student"), run.series("rollout/length")
    cut = run.series("rollout/truncated")
    data = [
        *line("entropy, nats", entropy, BLUE),
        *line("length, tokens", length, GREEN, yaxis="y2"),
        *line("cut at the limit", cut, RED, yaxis="y3", line={"dash": "dot", "width": 1}),
    ]
    marks = [
        _mark(step, f"{name} collapses")
        for name, step in (
            ("entropy", collapse_step(entropy, COLLAPSE_SHARE)),
            ("length", collapse_step(length, 0.5)),
        )
        if step is not None
    ]
    layout = axes("step", "entropy, nats", tozero=True)
    layout["yaxis"] |= {"domain": [0.56, 1]}
    layout["xaxis"]["anchor"] = "y2"
    layout["yaxis2"] = {
        "title": {"text": "tokens"},
        "domain": [0, 0.44],
        "rangemode": "tozero",
        "anchor": "x",
    }
    layout["yaxis3"] = {
        "overlaying": "y2", "side": "right", "range": [0, 1.02], "tickvals": [0, 0.5, 1], "tickformat": ".0%",
        "showgrid": False,
        "anchor": "x",
    }  # fmt: skip
    return Figure(
        key="entropy", title="Entropy and length", data=data,
        layout={**layout, "height": 420, "shapes": [m[0] for m in marks], "annotations": [m[1] for m in marks]},
    )  # fmt: skip


def collapse_step(series: Series, share: float) -> int | None:
    """The first step whose running mean falls under `share` of the first window's mean; None without."""
    means = running_mean(series.values, COLLAPSE_WINDOW)
    start = means[COLLAPSE_WINDOW - 1] if len(means) > COLLAPSE_WINDOW else None
    if not start:
        return None
    later = zip(series.steps[COLLAPSE_WINDOW:], means[COLLAPSE_WINDOW:], strict=True)
    return next((step for step, mean in later if mean is not None and mean < share * start), None)


def phase_times(run: RunRecord) -> Figure:
    """Stacked seconds of each step's phases."""
    phases = [
        n for n in run.names("time/") if n not in ("time/step_total", "time/tokens_per_second")
    ]
    traces = []
    for name, colour in zip(phases, (BROWN, SKY, BLUE, ORANGE, GREEN, PINK, RED), strict=False):
        series = run.series(name)
        traces.append(
            {
                "type": "scatter", "mode": "lines", "stackgroup": "one", "name": name.removeprefix("time/"),
                "x": series.steps, "y": series.values, "line": {"width": 0.5, "color": colour},
            }
        )  # fmt: skip
        if len(series.steps) == 1:
            traces[-1] |= {"type": "bar", "marker": {"color": colour}}
    return Figure(
        key="time", title="Seconds of a step", data=traces,
        layout={**axes("step", "seconds", tozero=True), "barmode": "stack"},
    )  # fmt: skip


def memory(run: RunRecord) -> Figure:
    """Memory of the main process and the peak on its GPU."""
    data = [
        *line("process", run.series("memory/process_gib"), BLUE),
        *line("GPU peak", run.series("memory/gpu_peak_gib"), RED),
    ]
    return Figure(
        key="memory", title="Memory", data=data,
        layout=axes("step", "GiB", tozero=True),
    )  # fmt: skip


def optimizer(run: RunRecord) -> Figure:
    """Learning rate and gradient norm."""
    data = [
        *line("gradient norm", run.series("optim/grad_norm"), BLUE),
        *line("learning rate", run.series("optim/learning_rate"), RED, smooth=False, yaxis="y2"),
    ]
    layout = axes("step", "gradient norm", tozero=True)
    layout["yaxis2"] = {
        "title": {"text": "learning rate"}, "overlaying": "y", "side": "right", "showgrid": False,
        "rangemode": "tozero", "tickformat": ".1e", "nticks": 5,
    }  # fmt: skip
    return Figure(
        key="optimizer", title="Gradient norm and learning rate", data=data,
        layout=layout,
    )  # fmt: skip


def moments(run: RunRecord) -> Sequence[Any]:
    """The steps whose histograms are shown."""
    return spread(run.histograms, MOST_MOMENTS)


def _routes_by_gap(run: RunRecord) -> bool:
    return bool(run.series("threshold/gap"))


def _mark(step: int, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    shape = {
        "type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": "#000", "dash": "dash", "width": 1},
    }  # fmt: skip
    note = {
        "x": step,
        "y": 1,
        "yref": "paper",
        "text": text,
        "showarrow": False,
        "yanchor": "bottom",
    }
    return shape, note


def axes(
    x: str, y: str, *, percent: bool = False, tozero: bool = False, log: bool = False
) -> dict[str, Any]:
    """Layout of both axes with their titles and units."""
    vertical: dict[str, Any] = {"title": {"text": y}}
    if percent:
        vertical |= {"range": [0, 1.02], "tickformat": ".0%"}
    if tozero:
        vertical["rangemode"] = "tozero"
    if log:
        vertical |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {"xaxis": {"title": {"text": x}, "rangemode": "tozero"}, "yaxis": vertical}
