"""report.html: one self-contained page of an evaluation, or of the comparison of two (extra `viz`)."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vlm.data_uri import thumbnail_uri
from dopd_vlm.jsonl import write_whole
from dopd_vlm.report.run_page import facts, figure_grid, page
from dopd_vlm.types import Sample

from ..completions.store import Record
from .examples import KINDS, Example, kind_counts, worst
from .figures import (
    category_figures,
    difference_figure,
    gap_figure,
    score_figure,
)
from .results import Results
from .tables import (
    COMPARE_COLUMNS,
    PUBLISHED,
    cells,
    common,
    comparison_lines,
    published,
)

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"
EXAMPLES = 8
"""Samples shown for each task and view."""
LONGEST_TEXT = 4000
"""Characters of a prompt or answer on the page."""
MOST_UIDS = 40
STYLE = """<style>
.example{border:1px solid #ddd;border-radius:6px;padding:.6rem .8rem;margin:.6rem 0;min-width:0}
.example h4{margin:0 0 .4rem;font-size:.95rem;font-weight:600;overflow-wrap:anywhere}
.example .kind{background:#f3e2d9;border-radius:4px;padding:.05rem .4rem;margin-right:.4rem}
.example .pictures{display:flex;flex-wrap:wrap;gap:.5rem;margin:.3rem 0}
.example img{max-width:100%;max-height:260px;min-height:96px;border:1px solid #ddd;object-fit:contain}
.example img.small{image-rendering:pixelated}
.example pre{background:#f6f6f6;border-radius:4px;padding:.4rem .6rem;margin:.15rem 0 .5rem;max-height:15rem;
overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
.example .verdict{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.2rem 0;font-size:.9rem}
.example .verdict code{white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.4rem 0}h1{overflow-wrap:anywhere}
table.scores{border-collapse:collapse;font-size:.9rem;margin:.5rem 0}
table.scores td,table.scores th{border:1px solid #ddd;padding:.25rem .5rem;text-align:left;white-space:nowrap}
table.scores td.number{text-align:right;font-variant-numeric:tabular-nums}
</style>"""
NUMBER = re.compile(r"[+-]?\d|-$")
"""How a cell of a number begins."""
SMALL_SIDE = 64
"""Pictures below it are enlarged without smoothing."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the page says about the samples of one Results."""

    examples: Sequence[Example]
    counts: Mapping[str, int]
    """Kind -> completions of it."""


def shown(records: Sequence[Record], samples: Sequence[Sample]) -> Shown:
    """The samples to show of an evaluation's lines."""
    return Shown(examples=worst(records, samples, EXAMPLES), counts=kind_counts(records))


def write_report(
    folder: Path, results: Sequence[Results], examples: Mapping[tuple[str, str], Shown]
) -> Path:
    """FOLDER/report.html; examples by (task, view).

    Raises:
        ValueError: plotly is not installed.
    """
    return write_whole(folder / REPORT_FILE, evaluation_page(results, examples))


def write_comparison(
    folder: Path, a: Sequence[Results], b: Sequence[Results], names: tuple[str, str]
) -> Path:
    """FOLDER/comparison.html of two evaluations.

    Raises:
        ValueError: nothing in common, or plotly is not installed.
    """
    return write_whole(folder / COMPARISON_FILE, comparison_page(a, b, names))


def evaluation_page(results: Sequence[Results], examples: Mapping[tuple[str, str], Shown]) -> str:
    """The page as HTML that needs no other file and no network."""
    categories = category_figures(results)
    sections = {
        "Scores": STYLE
        + _table(*cells(results))
        + _second(results)
        + _published(results)
        + figure_grid([score_figure(results), gap_figure(results)]),
        **({"By category": figure_grid(categories)} if categories else {}),
        "Samples to look at": "".join(
            _samples(found, examples[found.name, found.view], place == 0)
            for place, found in enumerate(results)
            if (found.name, found.view) in examples
        ),
        "How it was measured": "".join(map(_measured, results)),
    }
    intro = (
        f"{html.escape(results[0].model)}: {len({found.name for found in results})} task(s), "
        f"{sum(found.n * found.num_generations for found in results)} completions. "
        "Scores and rates are in percent, +- one standard error."
    )
    return page(_title(results), intro, sections)


def comparison_page(a: Sequence[Results], b: Sequence[Results], names: tuple[str, str]) -> str:
    """Differences of two evaluations on their common tasks and views."""
    pairs = common(a, b)
    who = facts({"A": f"{a[0].model} ({names[0]})", "B": f"{b[0].model} ({names[1]})"})
    sections = {
        "Differences": STYLE
        + who
        + _table(COMPARE_COLUMNS, comparison_lines(a, b))
        + figure_grid([difference_figure(pairs)]),
        "Questions that changed": "".join(_changed(one, other) for one, other in pairs),
    }
    intro = "The same questions in both; scores in percent, +- one standard error."
    return page(f"{_title(a)} against {_title(b)}", intro, sections)


def _title(results: Sequence[Results]) -> str:
    """The last part of a path, the whole of another name."""
    name = results[0].model
    return name if " @ " in name else Path(name).name or name


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if place and NUMBER.match(cell) else ''}>{html.escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="scores"><tr>{head}</tr>{body}</table></div>'


def _second(results: Sequence[Results]) -> str:
    """Second metrics and pass@k, where there are any."""
    rows = [
        [found.name, found.view, name, f"{100 * value:.1f}"]
        for found in results
        for name, value in {**found.pass_at, **found.second}.items()
    ]
    return "<h3>Second metrics</h3>" + _table(("task", "view", "metric", "%"), rows) if rows else ""


def _published(results: Sequence[Results]) -> str:
    columns, lines = published(results)
    return f"<h3>Published numbers</h3><p>{PUBLISHED}.</p>{_table(columns, lines)}" if lines else ""


def _samples(found: Results, chosen: Shown, is_open: bool) -> str:
    total = found.n * found.num_generations
    counts = ", ".join(f"{count} {KINDS[kind]}" for kind, count in chosen.counts.items())
    title = f"{found.name}, {found.view}: {counts or 'all are right'}, of {total} completions"
    cards = "".join(map(_card, chosen.examples))
    return (
        f"<details{' open' if is_open else ''}><summary><b>{html.escape(title)}</b></summary>"
        f'<div class="grid">{cards}</div></details>'
    )


def _card(example: Example) -> str:
    pictures = "".join(
        f'<img{" class=small" if max(image.size) < SMALL_SIDE else ""} src="{thumbnail_uri(image)}" '
        f'alt="{image.width} x {image.height} pixels">'
        for image in example.images
    )
    return (
        f'<div class="example"><h4><span class="kind">{example.kind}</span>{html.escape(example.uid)}'
        f" &middot; {example.num_tokens} tokens</h4>"
        f'<div class="pictures">{pictures}</div>'
        f"prompt<pre>{html.escape(_cut(example.prompt))}</pre>"
        f"answer<pre>{html.escape(_cut(example.answer)) or '&nbsp;'}</pre>"
        + '<p class="verdict">'
        + "".join(
            f"<span>{name} <code>{html.escape(_cut(value, 300))}</code></span>"
            for name, value in {
                "gold": example.gold,
                "read": "nothing" if example.extracted is None else example.extracted,
                "rule": example.rule,
                "score": f"{example.score:g}",
            }.items()
        )
        + "</p>"
        + "</div>"
    )


def _cut(text: str, longest: int = LONGEST_TEXT) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... {len(text) - longest} characters ...]\n{text[-half:]}"


def _measured(found: Results) -> str:
    settings = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in found.settings.items()
    }
    title = f"{found.name}, {found.view}"
    return f"<details><summary>{html.escape(title)}</summary>{facts(settings)}</details>"


def _changed(one: Results, other: Results) -> str:
    """uids that one side got better than the other."""
    a, b = one.per_question, other.per_question
    better: dict[str, list[str]] = {
        "A is better on": [uid for uid in a if a[uid] > b[uid]],
        "B is better on": [uid for uid in a if a[uid] < b[uid]],
    }
    rows: dict[str, Any] = {
        f"{name} ({len(uids)})": ", ".join(uids[:MOST_UIDS])
        + (" ..." if len(uids) > MOST_UIDS else "")
        for name, uids in better.items()
    }
    title = f"{one.name}, {one.view}"
    return f"<details><summary>{html.escape(title)}</summary>{facts(rows)}</details>"
