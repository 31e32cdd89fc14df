"""The plots of report.html, one row each: its section, how to read it, how it is built, what is compared.

A new metric reaches the pages in two places: where it is computed, and a row here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from dopd_vlm.report import routing_figures, training_figures
from dopd_vlm.report.figures import Figure, axes, line
from dopd_vlm.report.html import sentence
from dopd_vlm.report.method_text import MethodText, read_method
from dopd_vlm.report.palette import SERIES
from dopd_vlm.run_folder import RunRecord

Build = Callable[[RunRecord, MethodText], Sequence[Figure]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A metric as a curve of the comparison of runs."""

    metric: str
    """Its name, or a pattern with `*`: a curve for each metric that fits."""
    title: str
    """"" for a pattern: the parts of the name that `*` and its neighbour stand for."""
    unit: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One row."""

    key: str
    section: str
    caption: str
    """How to read it and what bad looks like; a template that knows the run's `method`."""
    build: Build
    compared: tuple[Compared, ...] = ()


def one(build: Callable[[RunRecord], Figure]) -> Build:
    """A plot that every run has."""
    return lambda run, method: [build(run)]


def by_gap(build: Callable[[RunRecord], Figure]) -> Build:
    """A plot of runs whose method routes by gap."""
    return lambda run, method: [build(run)] if method.by_gap else []


def lines(title: str, unit: str, metrics: Mapping[str, str], **options: bool) -> Build:
    """A plot of metrics as curves (metric -> name in the legend), where a run has any; `options` of `axes`."""

    def build(run: RunRecord, method: MethodText) -> list[Figure]:
        traces = [
            trace
            for (metric, name), colour in zip(metrics.items(), SERIES, strict=False)
            for trace in line(name, run.series(metric), colour)
        ]
        layout = axes("step", unit, **options)
        return [Figure(key="", title=title, data=traces, layout=layout)] if traces else []

    return build


def run_plots(run: RunRecord, plots: Sequence[Plot] | None = None) -> dict[str, list[Figure]]:
    """Section -> the run's plots of it with their captions, in the order of the rows."""
    method = read_method(run)
    sections: dict[str, list[Figure]] = {}
    for plot in PLOTS if plots is None else plots:
        caption = sentence(plot.caption).render(method=method)
        for figure in plot.build(run, method):
            captioned = replace(figure, key=figure.key or plot.key, caption=caption)
            sections.setdefault(plot.section, []).append(captioned)
    return sections


def compared_metrics(names: Sequence[str]) -> dict[str, Compared]:
    """Metric -> how it is compared, for those of the names that a row names; in the order of the rows."""
    curves: dict[str, Compared] = {}
    for curve in (curve for plot in PLOTS for curve in plot.compared):
        for name in names:
            if fnmatchcase(name, curve.metric):
                title = curve.title or " ".join(name.split("/")[1:-1])
                curves.setdefault(name, replace(curve, metric=name, title=title))
    return curves


PLOTS: tuple[Plot, ...] = (
    Plot(
        key="accuracy",
        section="Accuracy",
        caption=(
            "Share of right answers on held-out questions (bars: one standard error; dashed: the "
            "teacher, where it was measured): blue should rise towards the dashed lines; bad is "
            "a blue line that falls{% if method.self_target %}, or an orange one, the student's "
            "privileged view, that falls so far that a live self-target teaches errors{% endif "
            "%}."
        ),
        build=lambda run, method: training_figures.accuracy_figures(run),
        compared=(
            Compared(
                metric="eval/*/accuracy",
                title="",
                unit="accuracy",
                caption=(
                    "Share of right answers on held-out questions: higher is better; bad is a curve that "
                    "turns down."
                ),
            ),
        ),
    ),
    Plot(
        key="training",
        section="Accuracy",
        caption=(
            "How often the student's own completions of training prompts are right: all should "
            "rise{% if method.self_target %} and privileged stay above plain; bad is privileged "
            "at or below plain, for then the self-target has nothing to teach{% else %}; bad is "
            "a fall{% endif %}."
        ),
        build=one(training_figures.training_accuracy),
        compared=(
            Compared(
                metric="rollout/accuracy",
                title="Right rollouts",
                unit="accuracy",
                caption=(
                    "Right answers among the sampled completions: higher is better, and a sampled score "
                    "is below the greedy one; bad is a run that stays at its start."
                ),
            ),
            Compared(
                metric="probe/plain_accuracy",
                title="Training prompts, plain, greedy",
                unit="accuracy",
                caption=(
                    "Greedy answers to training prompts: bad is a rise here without one on held-out "
                    "questions."
                ),
            ),
            Compared(
                metric="probe/privileged_accuracy",
                title="Training prompts, privileged, greedy",
                unit="accuracy",
                caption="The same with privilege: bad is a fall, for a live self-target then teaches errors.",
            ),
        ),
    ),
    Plot(
        key="loss",
        section="Routing",
        caption=(
            "{% if method.by_gap %}Mean divergence of each regime's tokens before weighting{% "
            "else %}Mean divergence of the tokens before weighting{% endif %}, in nats (dotted: "
            "the loss as it is minimised): lines should fall or stay flat; bad is one that "
            "climbs while the others fall, or jumps.{% if method.every_token %} Every token: {{ "
            "method.every_token }}.{% endif %}"
        ),
        build=lambda run, method: [routing_figures.regime_loss(run, method)],
        compared=(
            Compared(
                metric="loss",
                title="Loss",
                unit="nats",
                caption=(
                    "What each run minimises: comparable within one method only; bad is a line that "
                    "rises or jumps."
                ),
            ),
            Compared(
                metric="divergence/all",
                title="Mean divergence",
                unit="nats",
                caption=(
                    "Mean divergence before weighting: comparable between runs with the same routes; bad "
                    "is a rise."
                ),
            ),
        ),
    ),
    Plot(
        key="shares",
        section="Routing",
        caption=(
            "Which share of the sampled tokens takes which route{% for regime, route in "
            "method.routes.items() %}{{ ': ' if loop.first else '; ' }}{{ regime.name }} {{ "
            "route }}{% endfor %}. Bad is one regime that swallows all, for routing then decides "
            "nothing."
        ),
        build=by_gap(routing_figures.regime_shares),
        compared=(
            Compared(
                metric="share/ht",
                title="Share of HT",
                unit="share of tokens",
                caption=(
                    "Share of tokens with a high gap of which the teacher is surer: bad is none at all, "
                    "for its privilege then adds nothing."
                ),
            ),
        ),
    ),
    Plot(
        key="gap",
        section="Routing",
        caption=(
            "Share of tokens by |log q_T - log q_S|, high gaps right of that step's dashed "
            "threshold: most tokens lie left of it, with a tail to the right; bad is everything "
            "in the leftmost bin, for teacher and self-target are then the same."
        ),
        build=by_gap(routing_figures.gap_histogram),
        compared=(
            Compared(
                metric="threshold/gap",
                title="Gap threshold",
                unit="nats",
                caption=(
                    "What counts as a high gap, in nats: bad is about 0, for teacher and self-target are "
                    "then the same."
                ),
            ),
        ),
    ),
    Plot(
        key="alive",
        section="Routing",
        caption=(
            "Share of the high-gap tokens whose gap exceeds what the arithmetic alone moves gaps by "
            "(a few completions are scored twice): near 100% is good; bad is below half, for "
            "rounding then routes most of them: set method.gap_floor."
        ),
        build=lines(
            "High gaps above the noise",
            "share of high gaps",
            {"routing/alive": "alive"},
            percent=True,
        ),
        compared=(
            Compared(
                metric="routing/alive",
                title="High gaps above the noise",
                unit="share of high gaps",
                caption="High gaps that are more than rounding: bad is below half.",
            ),
        ),
    ),
    Plot(
        key="density",
        section="Routing",
        caption=(
            "Tokens by the probability that the teacher (q_T) and the self-target (q_S) give "
            "them, darker is more (log scale), with the regimes' borders: mass should gather top "
            "right as training goes on; bad is a ridge along one axis, where one of the two "
            "knows nothing."
        ),
        build=by_gap(routing_figures.confidence_density),
    ),
    Plot(
        key="entropy",
        section="The student",
        caption=(
            "The student's mean entropy on trained tokens and the length of its completions: "
            "both may settle; bad is entropy under 10% or length under 50% of its first steps "
            "(marked where it happens), or most completions cut at the limit."
        ),
        build=one(training_figures.entropy_and_length),
        compared=(
            Compared(
                metric="entropy/student",
                title="Entropy",
                unit="nats",
                caption=(
                    "How undecided the student is: bad is a run that drops to nothing while the others "
                    "do not."
                ),
            ),
            Compared(
                metric="rollout/length",
                title="Completion length",
                unit="tokens",
                caption=(
                    "Tokens of a completion: bad is a run whose answers become much shorter or longer "
                    "than the others'."
                ),
            ),
        ),
    ),
    Plot(
        key="optimizer",
        section="The student",
        caption=(
            "The gradient norm before clipping, and the schedule: the norm should stay within a "
            "factor of ten; bad are spikes that come more and more often."
        ),
        build=one(training_figures.optimizer),
        compared=(
            Compared(
                metric="optim/grad_norm",
                title="Gradient norm",
                unit="norm",
                caption="Before clipping: bad are spikes that one run has and the others do not.",
            ),
        ),
    ),
    Plot(
        key="time",
        section="Cost",
        caption=(
            "Where the seconds of each step go: the stack should be level; bad is a phase that "
            "grows (rollout: completions get longer; data: rows are slow to make)."
        ),
        build=one(training_figures.phase_times),
        compared=(
            Compared(
                metric="time/step_total",
                title="Seconds of a step",
                unit="seconds",
                caption="Cost of a step: compare runs on the same machine only; bad is a climb.",
            ),
        ),
    ),
    Plot(
        key="memory",
        section="Cost",
        caption=(
            "GiB that the main process holds, and the peak on its GPU: level after a few steps; "
            "bad is a line that keeps climbing."
        ),
        build=one(training_figures.memory),
    ),
)
"""All plots, in the order of the page."""
