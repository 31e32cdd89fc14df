"""The parts of a plot as plotly data in plain dicts: curves, stacks, axes, marks.

Dicts instead of plotly's classes: building a page must cost less than a step, and the classes are
checked in the tests instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dopd_vlm.run_folder import RunRecord, Series, running_mean

SMOOTH = 9
"""Steps of the running mean that is drawn over noisy curves."""
NO_STEP = "no step was taken yet"

Trace = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot, with the sentence that says how to read it."""

    key: str
    title: str
    data: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    missing: str = NO_STEP
    """Why the plot is empty, where `data` is."""
    caption: str = ""
    """How to read it and what bad looks like."""


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


def stack(run: RunRecord, colours: Mapping[str, tuple[str, str]]) -> list[Trace]:
    """Metrics on top of each other: metric -> (its name in the legend, its colour)."""
    traces: list[Trace] = []
    for metric, (name, colour) in colours.items():
        series = run.series(metric)
        if not series:
            continue
        base = {"name": name, "x": series.steps, "y": series.values}
        if len(series.steps) == 1:  # an area needs two points
            traces.append({**base, "type": "bar", "marker": {"color": colour}})
        else:
            style = {"width": 0.5, "color": colour}
            area = {"type": "scatter", "mode": "lines", "stackgroup": "one", "fillcolor": colour}
            traces.append({**base, **area, "line": style})
    return traces


def mark(step: int, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(shape, annotation) of a dashed line at a step."""
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
