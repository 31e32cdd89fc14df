"""Token maps as HTML: images, prompts and coloured tokens, with a slider over training.

`token_map_html` returns a fragment that needs nothing else; script and style lie in assets/.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dopd_vlm.report.html import render
from dopd_vlm.report.method_text import MethodText
from dopd_vlm.report.palette import PAINTS

TOKEN_BUDGET = 20_000
"""Tokens of one page, about 3 MB; beyond it moments are left out, then the ends of completions."""
COLUMNS = ("regime", "loss", "weight", "gap", "q_plain", "q_self", "q_teacher")

Record = Mapping[str, Any]


def token_map_html(
    probes: Sequence[Record],
    maps: Sequence[Record],
    method: MethodText,
    *,
    budget: int = TOKEN_BUDGET,
) -> Markup:
    """The maps of all probes and moments, one shown at a time.

    Args:
        probes: of `token_maps.probe_record`.
        maps: of `token_maps.token_maps`, of any number of steps; a map belongs to the probe of
            its uid, and is shown in the order of its `step`.
        method: for the legend.
        budget: tokens of the page; the first and the last moment are kept longest.

    Returns:
        HTML with style and script inside; an explaining sentence when there is no map.
    """
    known = {probe["uid"] for probe in probes}
    maps = [record for record in maps if record["uid"] in known]
    if not maps:
        return Markup("<p>There is no token map: no probe was rolled out in this run.</p>")
    data = _page_data(probes, _within(maps, budget, len(known)), method)
    return render("token_map.html", data=data)


def token_map_page(probes: Sequence[Record], maps: Sequence[Record], method: MethodText) -> Markup:
    """The same as a whole page."""
    token_maps = token_map_html(probes, maps, method)
    return render("token_page.html", title="token maps", token_maps=token_maps)


def _within(maps: Sequence[Record], budget: int, num_probes: int) -> list[Record]:
    """As many moments as fit, evenly spaced with the last; then completions cut to an equal share."""
    steps = sorted({record["step"] for record in maps})
    tokens = {step: sum(len(m["tokens"]) for m in maps if m["step"] == step) for step in steps}
    while sum(tokens[step] for step in steps) > budget and len(steps) > 2:
        steps = [*steps[:-1:2], steps[-1]] if len(steps) > 3 else [steps[0], steps[-1]]
    longest = budget // max(1, len(steps) * num_probes)
    return [_cut(record, longest) for record in maps if record["step"] in steps]


def _cut(record: Record, longest: int) -> Record:
    whole = len(record["tokens"])
    cut = {name: record[name] and record[name][:longest] for name in ("tokens", *COLUMNS)}
    top = {name: rows and rows[:longest] for name, rows in record["top"].items()}
    return {**record, **cut, "top": top, "length": whole}


def _page_data(
    probes: Sequence[Record], maps: Sequence[Record], method: MethodText
) -> dict[str, Any]:
    """What the script reads: every token text once in `strings`, elsewhere its index."""
    index: dict[str, int] = {}
    pages = []
    for probe in probes:
        records = sorted((m for m in maps if m["uid"] == probe["uid"]), key=lambda m: m["step"])
        if records:
            pages.append({**probe, "maps": [_compact(record, index) for record in records]})
    return {
        "probes": pages,
        "strings": list(index),
        "paints": [
            {
                "name": regime.name,
                "fill": paint.fill,
                "ink": paint.ink,
                "meaning": method.legend(regime),
            }
            for regime, paint in PAINTS.items()
        ],
        "every_token": method.every_token,
    }


def _compact(record: Record, index: dict[str, int]) -> dict[str, Any]:
    def number(text: str) -> int:
        return index.setdefault(text, len(index))

    top = {
        name: rows and [[x for text, p in row for x in (number(text), p)] for row in rows]
        for name, rows in record["top"].items()
    }
    kept = ("step", "finish_reason", "correct", "threshold", "length", *COLUMNS)
    return {
        **{name: record[name] for name in kept},
        "tokens": [number(text) for text in record["tokens"]],
        "top": top,
    }
