"""Plots of an evaluation as plotly data: scores, gaps, categories, differences of two models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dopd_vlm.report.figures import Figure
from dopd_vlm.report.palette import SERIES
from dopd_vlm.types import ViewName

from .results import Results, privilege_gap
from .stats import paired_difference

VIEW_COLOURS: dict[ViewName, str] = {"plain": SERIES[0], "privileged": SERIES[4]}
SYMBOLS = ("diamond", "circle", "square", "triangle-up", "cross", "star", "hexagon")
"""One fewer than SERIES has colours, so that 56 pairs differ."""
POINTS_WIDTH = 0.8
"""Of the distance between two tasks, over which published numbers are spread."""
TWO_SIDED_95 = 1.96
PERCENT = ".2~%"
"""d3: up to two decimals, none of them a closing zero, so that ticks half a percent apart differ."""
LINE_PX = 26
"""Height of one bar of a horizontal plot."""


def score_figure(results: Sequence[Results]) -> Figure:
    """Every task's score in both views with standard errors; published numbers as points."""
    tasks = list(dict.fromkeys(one.name for one in results))
    data = [
        _bars(view, [one for one in results if one.view == view], tasks)
        for view in VIEW_COLOURS
        if any(one.view == view for one in results)
    ]
    return Figure(
        key="scores",
        title="Scores",
        data=data + _references(results, tasks),
        layout={
            "barmode": "group",
            "hovermode": "closest",
            "yaxis": _percent_axis("score"),
            # Numbers for places: points of one task stand beside each other, not on top.
            "xaxis": {"tickvals": list(range(len(tasks))), "ticktext": tasks, "zeroline": False},
            "height": 420,
        },
        caption="Bars are means over questions, lines one standard error (clustered where questions share an "
        "image). Points are published numbers: other models, prompts or decoding, so a "
        "reference and no target.",
    )


def gap_figures(results: Sequence[Results]) -> list[Figure]:
    """Privileged minus plain with paired standard errors, a bar a task that has both views; [] without any."""
    views = {(one.name, one.view): one for one in results}
    gaps = {
        name: privilege_gap(views[name, "plain"], views[name, "privileged"])
        for name in dict.fromkeys(one.name for one in results)
        if {(name, "plain"), (name, "privileged")} <= views.keys()
    }
    if not gaps:
        return []
    bar = {
        "type": "bar",
        "x": list(gaps),
        "y": [gap["privilege_gap"] for gap in gaps.values()],
        "error_y": _errors([gap["privilege_gap_stderr"] for gap in gaps.values()]),
        "marker": {"color": SERIES[2]},
        "name": "privileged - plain",
    }
    figure = Figure(
        key="gap",
        title="Privilege gap",
        data=[bar],
        layout={
            "hovermode": "closest",
            "height": 420,
            "yaxis": _percent_axis("gap", None),
            "xaxis": {"type": "category"},
        },
        caption="How much of a score is information: the same questions with annotations shown, minus "
        "without, with the paired standard error. Near 0 the annotations do not help this model.",
    )
    return [figure]


def category_figures(results: Sequence[Results]) -> list[Figure]:
    """One plot for each task whose questions have categories."""
    names = dict.fromkeys(one.name for one in results if len(one.categories) > 1)
    return [_categories([f for f in results if f.name == name]) for name in names]


def difference_figure(pairs: Sequence[tuple[Results, Results]]) -> Figure:
    """A minus B on the same questions with 95 % intervals, one line a task and view."""
    differences = [
        paired_difference(a.per_question, b.per_question, a.clusters or None) for a, b in pairs
    ]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [one.value for one in differences],
        "y": [f"{a.name} {a.view}" for a, _ in pairs],
        "error_x": _errors([one.stderr for one in differences], TWO_SIDED_95),
        "marker": {"size": 10, "color": SERIES[0]},
        "name": "A - B",
    }
    return Figure(
        key="difference",
        title="A - B",
        data=[points],
        layout={
            "hovermode": "closest",
            "height": 150 + 40 * len(pairs),
            "xaxis": {
                **_percent_axis("difference", None),
                "zeroline": True,
                "zerolinecolor": "#333",
            },
            "yaxis": {"type": "category", "autorange": "reversed"},
        },
        caption="Mean difference over the same questions with its 95 % interval (1.96 paired standard errors). "
        "An interval that holds 0 is no evidence of a difference.",
    )


def _bars(view: ViewName, part: Sequence[Results], tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": view,
        "x": [tasks.index(one.name) for one in part],
        "y": [one.official.value for one in part],
        "error_y": _errors([one.official.stderr for one in part]),
        "marker": {"color": VIEW_COLOURS[view]},
        "customdata": [one.name for one in part],
        "hovertemplate": "%{customdata}: %{y:.1%}<extra>" + view + "</extra>",
    }


def _references(results: Sequence[Results], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One series a model or method, each with a place, a symbol and a colour of its own."""
    published = {one.name: one.reference for one in results}
    names = list(dict.fromkeys(who for numbers in published.values() for who in numbers))
    traces = []
    for index, who in enumerate(names):
        numbers = {task: published[task][who] for task in tasks if who in published[task]}
        offset = POINTS_WIDTH * ((index + 0.5) / len(names) - 0.5)
        marker = {
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "color": SERIES[(1 + index) % len(SERIES)],
            "size": 10,
            "line": {"width": 1, "color": "#fff"},
        }
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": who,
                "x": [tasks.index(task) + offset for task in numbers],
                "y": [number / 100 for number in numbers.values()],
                "marker": marker,
                "customdata": list(numbers),
                "hovertemplate": "%{customdata}: %{y:.1%}<extra>%{fullData.name}</extra>",
            }
        )
    return traces


def _categories(views: Sequence[Results]) -> Figure:
    labels = list(dict.fromkeys(label for one in views for label in one.categories))
    names = [_label_with_size(label, views) for label in labels]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": one.view,
            "y": names,
            "x": [one.categories.get(label) for label in labels],
            "error_x": _errors([_stderr(one.category_stderr, label) for label in labels]),
            "marker": {"color": VIEW_COLOURS[one.view]},
        }
        for one in views
    ]
    return Figure(
        key=f"categories-{views[0].name}",
        title=f"By category: {views[0].name}",
        data=data,
        layout={
            "barmode": "group",
            "hovermode": "closest",
            "height": 130 + LINE_PX * len(labels) * len(views),
            "xaxis": {**_percent_axis("score", None), "rangemode": "tozero"},
            "yaxis": {"type": "category", "autorange": "reversed"},
        },
        caption="Means over the questions of each category, lines one standard error.",
    )


def _label_with_size(label: str, results: Sequence[Results]) -> str:
    sizes = {one.category_n[label] for one in results if label in one.category_n}
    return f"{label} (n = {max(sizes)})" if sizes else label


def _stderr(errors: Mapping[str, float | None], label: str) -> float:
    error = errors.get(label)
    return math.nan if error is None else error


def _errors(stderrs: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    sizes = [0.0 if math.isnan(one) else factor * one for one in stderrs]
    return {"type": "data", "array": sizes, "thickness": 1.5, "color": "#333"}


def _percent_axis(title: str, top: float | None = 1.02) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": title}, "tickformat": PERCENT}
    return axis | ({"range": [0, top]} if top else {})
