"""Two to eight runs on one page: curves, what their recipes differ in, and their last scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import write_whole
from dopd_vlm.report.figures import Figure, Trace, axes
from dopd_vlm.report.html import render
from dopd_vlm.report.palette import SERIES
from dopd_vlm.report.plots import Compared, compared_metrics
from dopd_vlm.run_folder import PLACES, RunRecord, Series, flatten, read_run

FEWEST, MOST = 2, 8
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
    return render(
        "comparison.html",
        title=" / ".join(group.name for group in groups),
        num_groups=len(groups),
        scores=scores,
        differences=differences(runs),
        figures=curves(groups),
        runs=[{"run": run.name, **_state(run)} for run in runs],
    )


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
    same: dict[str, list[RunRecord]] = {}
    for run in runs:
        same.setdefault(json.dumps(_essence(run), sort_keys=True), []).append(run)
    return [
        Group(name=runs[0].name if len(runs) == 1 else _common_name(runs), runs=runs)
        for runs in same.values()
    ]


def _essence(run: RunRecord) -> dict[str, Any]:
    return {k: v for k, v in flatten(run.config).items() if k not in (*PLACES, "seed")}


def _common_name(runs: Sequence[RunRecord]) -> str:
    seeds = ", ".join(str(run.config["seed"]) for run in runs)
    return f"{runs[0].name} (seeds {seeds})"


def differences(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Recipe fields in which any two runs differ, one column a run."""
    flat = [{k: v for k, v in flatten(run.config).items() if k not in PLACES} for run in runs]
    names = dict.fromkeys(name for tree in flat for name in tree)
    return [
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


def curves(groups: Sequence[Group]) -> list[Figure]:
    """One plot for each compared metric that any run has: the benchmarks first."""
    names = dict.fromkeys(name for g in groups for run in g.runs for name in run.names(""))
    figures = (_curve(groups, curve) for curve in compared_metrics(list(names)).values())
    return [figure for figure in figures if figure.data]


def _curve(groups: Sequence[Group], curve: Compared) -> Figure:
    coloured = zip(groups, SERIES, strict=False)
    data = [
        trace for group, colour in coloured for trace in group_traces(group, curve.metric, colour)
    ]
    return Figure(
        key=f"curve-{curve.metric.replace('/', '-')}",
        title=curve.title,
        data=data,
        layout=axes("step", curve.unit, percent=curve.unit == "accuracy"),
        caption=curve.caption,
    )


def group_traces(group: Group, name: str, colour: str) -> list[Trace]:
    """The mean of the group's runs at the steps that all of them have, and a band from lowest to highest."""
    series = [one for run in group.runs if (one := run.series(name))]
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
