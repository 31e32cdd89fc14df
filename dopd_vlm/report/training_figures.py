"""Plots of training itself: accuracy, the student, and what a step costs."""

from dopd_vlm.report.figures import Figure, Trace, axes, line, mark, stack
from dopd_vlm.report.palette import BLUE, BROWN, GREEN, ORANGE, PINK, RED, SKY
from dopd_vlm.run_folder import RunRecord, Series, running_mean

COLLAPSE_SHARE = 0.1
"""Of its first values: a running mean of entropy below it is marked as a collapse; of length, half."""
COLLAPSE_WINDOW = 5
NOT_PHASES = ("time/step_total", "time/tokens_per_second")


def accuracy_figures(run: RunRecord) -> list[Figure]:
    """One plot a task: student over training in both views with error bars, the teacher as lines."""
    tasks = dict.fromkeys(name.split("/")[1] for name in run.names("eval/", "/accuracy"))
    layout = axes("step", "accuracy", percent=True)
    layout["xaxis"]["rangemode"] = "normal"  # room for the error bars of step 0
    figures = [
        Figure(
            key=f"accuracy-{task}",
            title=f"Accuracy: {task}",
            data=_accuracy_traces(run, task),
            layout=layout,
        )
        for task in tasks
    ]
    if figures:
        return figures
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
        mark(step, f"{name} collapses")
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
    phases = [name for name in run.names("time/") if name not in NOT_PHASES]
    colours = zip(phases, (BROWN, SKY, BLUE, ORANGE, GREEN, PINK, RED), strict=False)
    return Figure(
        key="time",
        title="Seconds of a step",
        data=stack(run, {name: (name.removeprefix("time/"), colour) for name, colour in colours}),
        layout={**axes("step", "seconds", tozero=True), "barmode": "stack"},
    )


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
