"""Two to eight runs on one page: curves, what their recipes differ in, and their last scores."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import write_whole
from dopd_vlm.report.figures import Figure, Trace, axes
from dopd_vlm.report.palette import SERIES
from dopd_vlm.report.run_page import figure_grid, page
from dopd_vlm.run_folder import PLACES, RunRecord, Series, flatten, read_run

FEWEST, MOST = 2, 8
CURVES = {
    "rollout/accuracy": ("Right rollouts", "accuracy"),
    "probe/plain_accuracy": ("Training prompts, plain, greedy", "accuracy"),
    "probe/privileged_accuracy": ("Training prompts, privileged, greedy", "accuracy"),
    "loss": ("Loss", "nats"),
    "divergence/all": ("Mean divergence", "nats"),
    "entropy/student": ("Entropy", "nats"),
    "rollout/length": ("Completion length", "tokens"),
    "share/ht": ("Share of HT", "share of tokens"),
    "threshold/gap": ("Gap threshold", "nats"),
    "optim/grad_norm": ("Gradient norm", "norm"),
    "time/step_total": ("Seconds of a step", "seconds"),
}
"""Compared metrics beside the benchmarks: title and unit."""

HOW_TO_READ = (
    "One colour a run, or a group of runs that differ in their seed only; the line is their mean, the band goes "
    "from the lowest to the highest: trust differences that are larger than the bands."
)

Score = Mapping[str, str]
"""One line of the table of scores: column -> text, the same columns in every line."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed only."""

    name: str
    runs: list[RunRecord]


def write_comparison(
    run_dirs: Sequence[str | Path], out: str | Path, scores: Sequence[Score] = ()
) -> Path:
    """The comparison page at `out`; `scores` are lines for its table of final scores.

    Raises ValueError for a folder without a run, or a number of runs outside 2..8.
    """
    return write_whole(Path(out), comparison_page([read_run(path) for path in run_dirs], scores))


def comparison_page(runs: Sequence[RunRecord], scores: Sequence[Score] = ()) -> str:
    """The page as HTML that needs no other file. Raises ValueError unless there are 2..8 runs."""
    if not FEWEST <= len(runs) <= MOST:
        raise ValueError(
            f"a comparison takes {FEWEST} to {MOST} runs; got {len(runs)}: "
            + ", ".join(str(run.path) for run in runs)
        )
    groups = grouped(runs)
    title = " / ".join(group.name for group in groups)
    intro = f"{len(runs)} runs in {len(groups)} groups of equal recipes; a band spans the seeds of a group."
    sections = {
        "Final scores": _table(scores)
        if scores
        else "<p>No run holds an evaluation: set evaluation.tasks.</p>",
        "What differs": differences(runs),
        "Curves": f"<p>{HOW_TO_READ}</p>{figure_grid(curves(groups))}",
        "Runs": _table([{"run": run.name, **_state(run)} for run in runs]),
    }
    return page(title, intro, sections)


def _state(run: RunRecord) -> dict[str, str]:
    return {
        "group": run.config["method"]["name"],
        "seed": str(run.config["seed"]),
        "steps": f"{run.last_step} of {run.max_steps}",
        "rows skipped": str(len(run.skipped)),
        "folder": str(run.path),
    }


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Runs by their recipe without its seed and places, in the order given."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(json.dumps(_essence(run), sort_keys=True), []).append(run)
    return [
        Group(name=runs[0].name if len(runs) == 1 else _common_name(runs), runs=runs)
        for runs in found.values()
    ]


def _essence(run: RunRecord) -> dict[str, Any]:
    return {k: v for k, v in flatten(run.config).items() if k not in (*PLACES, "seed")}


def _common_name(runs: Sequence[RunRecord]) -> str:
    seeds = ", ".join(str(run.config["seed"]) for run in runs)
    return f"{runs[0].name} (seeds {seeds})"


def differences(runs: Sequence[RunRecord]) -> str:
    """Recipe fields in which any two runs differ, one column a run."""
    flat = [{k: v for k, v in flatten(run.config).items() if k not in PLACES} for run in runs]
    names = dict.fromkeys(name for tree in flat for name in tree)
    rows = [
        {
            "field": name,
            **{
                f"{i + 1}: {run.name}": json.dumps(tree.get(name))
                for i, (run, tree) in enumerate(zip(runs, flat, strict=True))
            },
        }
        for name in names
        if len({json.dumps(tree.get(name), sort_keys=True) for tree in flat}) > 1
    ]
    return _table(rows) if rows else "<p>Nothing: the recipes are the same, seed included.</p>"


def curves(groups: Sequence[Group]) -> list[Figure]:
    """One plot for each metric that any run has: the benchmarks first."""
    tasks = dict.fromkeys(
        name for g in groups for run in g.runs for name in run.names("eval/", "/accuracy")
    )
    titles = {name: (" ".join(name.split("/")[1:3]), "accuracy") for name in tasks} | CURVES
    made = []
    for name, (title, unit) in titles.items():
        data = [
            trace
            for group, colour in zip(groups, SERIES, strict=False)
            for trace in group_traces(group, name, colour)
        ]
        if data:
            layout = axes("step", unit, percent=unit == "accuracy")
            key = f"curve-{name.replace('/', '-')}"
            made.append(Figure(key=key, title=title, data=data, layout=layout))
    return made


def group_traces(group: Group, name: str, colour: str) -> list[Trace]:
    """The mean of the group's runs at the steps that all of them have, and a band from lowest to highest."""
    series = [found for run in group.runs if (found := run.series(name))]
    if not series:
        return []
    steps, low, mean, high = band(series)
    style = {"color": colour, "width": 2}
    kind = "lines+markers" if len(steps) <= 20 else "lines"
    base = {"type": "scatter", "x": steps, "mode": kind, "name": group.name, "line": style}
    if len(series) == 1:
        return [{**base, "y": mean}]
    edge = {
        "type": "scatter",
        "x": steps,
        "mode": "lines",
        "line": {"width": 0},
        "showlegend": False,
    }
    fill = {"fill": "tonexty", "fillcolor": _faint(colour)}
    quiet = {"hoverinfo": "skip", "legendgroup": group.name}
    return [
        {**edge, **quiet, "y": low},
        {**edge, **quiet, **fill, "y": high},
        {**base, "legendgroup": group.name, "y": mean},
    ]


def band(
    series: Sequence[Series],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """(steps, lowest, mean, highest) over the steps at which all of them have a value."""
    tables = [
        {s: v for s, v in zip(one.steps, one.values, strict=True) if v is not None}
        for one in series
    ]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    columns = [[table[step] for table in tables] for step in steps]
    means = [sum(values) / len(values) for values in columns]
    return steps, [min(v) for v in columns], means, [max(v) for v in columns]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="facts"><tr>{head}</tr>{body}</table></div>'
