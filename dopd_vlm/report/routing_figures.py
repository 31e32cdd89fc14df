"""Plots of routing by gap: loss and share of each regime, the gap, and q_T against q_S with the regimes' borders."""

import math
from typing import Any

from dopd_vlm.report.figures import Figure, Trace, axes, line, stack
from dopd_vlm.report.method_text import MethodText
from dopd_vlm.report.palette import BLACK, BLUE, PAINTS, SERIES
from dopd_vlm.run_folder import Record, RunRecord, spread
from dopd_vlm.types import Regime

BORDER_POINTS = 60
MOST_MOMENTS = 6
"""Steps whose histograms are drawn."""


def regime_loss(run: RunRecord, method: MethodText) -> Figure:
    """Mean divergence of the tokens of each regime, of all tokens, and the weighted loss."""
    data = line("loss (weighted)", run.series("loss"), BLACK, line={"dash": "dot"})
    if method.by_gap:
        for regime in Regime:
            kind = regime.name.lower()
            series = run.series(f"divergence/{kind}", where=f"share/{kind}")
            data += line(regime.name, series, PAINTS[regime].fill)
    else:
        data += line("mean divergence", run.series("divergence/all"), BLUE)
    return Figure(
        key="loss",
        title="Loss by regime" if method.by_gap else "Loss",
        data=data,
        layout=axes("step", "nats, log scale", log=True),
    )


def regime_shares(run: RunRecord) -> Figure:
    """Stacked shares of the four regimes."""
    colours = {f"share/{r.name.lower()}": (r.name, PAINTS[r].fill) for r in Regime}
    return Figure(
        key="shares",
        title="Regime shares",
        data=stack(run, colours),
        layout={**axes("step", "share of tokens", percent=True), "barmode": "stack"},
    )


def gap_histogram(run: RunRecord) -> Figure:
    """Share of tokens by gap, one outline a moment, its threshold as a dashed line of the same colour."""
    traces: list[Trace] = []
    shapes = []
    for record, colour in zip(moments(run), SERIES, strict=False):
        edges, counts = record["gap_edges"], record["gap_counts"]
        total = max(1, sum(counts))
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": f"step {record['step']}", "x": edges,
                "y": [count / total for count in (*counts, counts[-1])],
                "line": {"shape": "hv", "color": colour, "width": 2},
            }
        )  # fmt: skip
        at = max(record["threshold"]["gap"], edges[0])
        shapes.append(
            {
                "type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper",
                "line": {"color": colour, "dash": "dash", "width": 1.5},
            }
        )  # fmt: skip
    return Figure(
        key="gap", title="Privilege advantage gap", data=traces,
        layout={
            "xaxis": {"title": {"text": "gap, nats"}, "type": "log", "dtick": 1, "exponentformat": "power"},
            "yaxis": {"title": {"text": "share of tokens"}, "tickformat": ".0%", "rangemode": "tozero"},
            "shapes": shapes,
        },
    )  # fmt: skip


def confidence_density(run: RunRecord) -> Figure:
    """Heat map of q_T against q_S with the borders of the regimes; a slider walks through the moments."""
    records = [record for record in moments(run) if any(map(any, record["q_counts"]))]
    traces: list[Trace] = []
    per_moment = 2
    for index, record in enumerate(records):
        is_shown = index == len(records) - 1
        traces += [{**trace, "visible": is_shown} for trace in _density(record)]
    steps = [
        {
            "label": str(record["step"]), "method": "restyle",
            "args": [{"visible": [at // per_moment == index for at in range(len(traces))]}],
        }
        for index, record in enumerate(records)
    ]  # fmt: skip
    slider = {
        "active": max(0, len(records) - 1), "steps": steps, "pad": {"t": 45}, "currentvalue": {"prefix": "step "},
    }  # fmt: skip
    axis: dict[str, Any] = {"range": [0, 1], "constrain": "domain", "tickformat": ".1f"}
    return Figure(
        key="density", title="Confidence of both targets", data=traces,
        layout={
            "xaxis": {**axis, "title": {"text": "q_S, self-target"}},
            "yaxis": {**axis, "title": {"text": "q_T, teacher"}, "scaleanchor": "x"},
            "annotations": _names() if traces else [], "sliders": [slider] if len(records) > 1 else [],
            "height": 560, "showlegend": False, "hovermode": "closest",
        },
    )  # fmt: skip


def _density(record: Record) -> list[Trace]:
    counts = record["q_counts"]
    size = len(counts)
    middles = [(i + 0.5) / size for i in range(size)]
    total = max(1, sum(map(sum, counts)))
    borders_x, borders_y = borders(record["threshold"])
    return [
        {
            "type": "heatmap", "x": middles, "y": middles,
            "z": [[math.log10(1 + count) if count else None for count in row] for row in counts],
            "customdata": [[count / total for count in row] for row in counts],
            "hovertemplate": "q_S %{x:.2f}, q_T %{y:.2f}: %{customdata:.2%} of the tokens<extra></extra>",
            "colorscale": [[0, "#c6dbef"], [1, "#08306b"]], "showscale": False,
        },
        {
            "type": "scatter", "mode": "lines", "x": borders_x, "y": borders_y, "hoverinfo": "skip",
            "line": {"color": SERIES[1], "width": 2},
        },
    ]  # fmt: skip


def borders(threshold: Record) -> tuple[list[float | None], list[float | None]]:
    """The regimes' borders in the plane of (q_S, q_T), as one line with gaps (paper Eqs. 6-9).

    q_T = q_S exp(+-gap) part low from high gaps; between them q_T + q_S = the sum of the means
    parts LH from LL. HT and HS lie on either side of the low band.
    """
    slope, total = math.exp(threshold["gap"]), threshold["q_teacher"] + threshold["q_self"]
    grid = [i / BORDER_POINTS for i in range(BORDER_POINTS + 1)]
    upper = [(x / slope, x) for x in grid]
    lower = [(y, x) for x, y in upper]
    # x + y = total inside the band x / slope <= y <= x slope
    low, high = total / (1 + slope), total * slope / (1 + slope)
    across = [
        (x, total - x) for x in (low + (high - low) * t for t in grid) if x <= 1 and total - x <= 1
    ]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for part in (upper, lower, across):
        xs += [*(x for x, _ in part), None]
        ys += [*(y for _, y in part), None]
    return xs[:-1], ys[:-1]


def _names() -> list[dict[str, Any]]:
    """The regimes' names; an arrow leads to the two that may be narrow, from (right, down) pixels off."""
    places = {
        "HT": (0.15, 0.82, 0, 0),
        "HS": (0.82, 0.15, 0, 0),
        "LH": (0.96, 0.96, -70, 45),
        "LL": (0.06, 0.06, 30, -75),
    }
    return [
        {
            "x": x, "y": y, "text": f"<b>{name}</b>", "showarrow": bool(right), "ax": right, "ay": down,
            "font": {"size": 14}, "bgcolor": "rgba(255,255,255,.85)",
        }
        for name, (x, y, right, down) in places.items()
    ]  # fmt: skip


def moments(run: RunRecord) -> list[Record]:
    """The steps whose histograms are drawn."""
    return spread(run.histograms, MOST_MOMENTS)
