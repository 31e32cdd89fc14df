"""report.html: one self-contained page of a run, made from its folder alone (extra `viz`)."""

import functools
import html
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import write_whole
from dopd_vlm.report.figures import Figure, run_figures
from dopd_vlm.report.routing_figures import histogram_figures
from dopd_vlm.report.token_page import asset, safe_json, token_map_html
from dopd_vlm.run_folder import RunRecord, read_run, recipe_difference

REPORT_FILE = "report.html"
MOST_REASONS = 20


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """The page of a run, whole or not at all, at `out` or RUN/report.html.

    Raises ValueError when the folder holds no run or plotly is not installed.
    """
    run = read_run(run_dir)
    path = Path(out) if out else run.path / REPORT_FILE
    return write_whole(path, report_page(run))


def report_page(run: RunRecord) -> str:
    """The page as HTML that needs no other file and no network."""
    figures = run_figures(run)
    sections = {
        "What was run": what_was_run(run),
        "Accuracy": figure_grid([f for f in figures if f.key.startswith(("accuracy", "training"))]),
        "Token maps": token_map_html(run.probes, run.maps),
        "Routing": figure_grid(
            [f for f in figures if f.key in ("loss", "shares")] + histogram_figures(run)
        ),
        "The student": figure_grid([f for f in figures if f.key in ("entropy", "optimizer")]),
        "Cost": figure_grid([f for f in figures if f.key in ("time", "memory")]),
        "Skipped rows": skipped_rows(run),
    }
    return page(f"{run.name}: {run.config['method']['name']}", status(run), sections)


def page(title: str, intro: str, sections: Mapping[str, str]) -> str:
    """A page with plotly inside it once, a table of contents and the sections."""
    links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{html.escape(name)}</h2>{content}</section>'
        for name, content in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{asset('report.css')}</style>"
        f"<script>{plotly_script()}</script></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="status">{intro}</p><nav>{links}</nav>{body}'
        f"<script>{asset('report.js')}</script></body></html>"
    )


@functools.cache
def plotly_script() -> str:
    """plotly.js. Raises ValueError when plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError("a page needs plotly: pip install 'dopd-vlm[viz]'") from error
    return get_plotlyjs()


def figure_grid(figures: Sequence[Figure]) -> str:
    """The figures beside and under each other, each with its caption."""
    return f'<div class="grid">{"".join(map(figure_html, figures))}</div>'


def figure_html(figure: Figure) -> str:
    """A plot with its data beside it; a sentence in its place where there is none."""
    caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>"
    title = f"<h3>{html.escape(figure.title)}</h3>"
    if not figure.data:
        missing = f'<p class="empty">No plot: {html.escape(figure.missing)}.</p>'
        return f"<figure>{title}{missing}{caption}</figure>"
    data = safe_json({"data": figure.data, "layout": figure.layout})
    name = f"figure-{figure.key}"
    height = figure.layout.get("height", 340)
    return (
        f'<figure>{title}<div class="plot" data-figure="{html.escape(name)}" style="min-height:{height}px">'
        f'</div><script type="application/json" id="{html.escape(name)}">{data}</script>{caption}</figure>'
    )


def status(run: RunRecord) -> str:
    """How far the run is, in one sentence."""
    last, most = run.last_step, run.max_steps
    if last >= most:
        return f"All {most} steps are done."
    return (
        f"Step {last} of {most}: the run is going on, or was interrupted "
        "(then <code>resume=true</code> goes on from its last checkpoint)."
    )


def what_was_run(run: RunRecord) -> str:
    """Models, data and method, what differs from the defaults, versions, and the command."""
    config, environment = run.config, run.environment
    main = {
        "method": f"{config['method']['name']}, self-target {config['method']['self_target']}",
        "student": config["student"]["path"],
        "teacher": config["teacher"]["path"],
        "training rows": config["data"]["train"],
        "privileged view": json.dumps(config["data"]["annotations"]),
        "seed": config["seed"],
    }
    versions = {
        "Python": environment.get("python"),
        **environment.get("packages", {}),
        "git": environment.get("git"),
        "platform": environment.get("platform"),
        "GPU": environment.get("cuda") or "none",
    }
    different = {name: json.dumps(value) for name, value in recipe_difference(config).items()}
    recipe = html.escape(Path(run.path / "config.yaml").read_text(encoding="utf-8"))
    return (
        f'<div class="grid"><div>{facts(main)}<h3>The command</h3><pre class="command">'
        f"{html.escape(command(run))}</pre><h3>The same again, from the run folder alone</h3>"
        f'<pre class="command">{html.escape(again(run))}</pre></div>'
        f"<div><h3>What the recipe changes</h3>{facts(different) or '<p>Nothing: all defaults.</p>'}</div></div>"
        f"<details><summary>versions</summary>{facts(versions)}</details>"
        f"<details><summary>the whole recipe, defaults included</summary><pre>{recipe}</pre></details>"
    )


def command(run: RunRecord) -> str:
    """The command line that started the run."""
    words = run.environment.get("command", [])
    if words and Path(words[0]).name == "dopd":
        return shlex.join(["dopd", *words[1:]])
    return shlex.join(["python", *words])


def again(run: RunRecord) -> str:
    """A command that repeats the run under another name."""
    recipe = shlex.quote(str(run.path / "config.yaml"))
    return f"dopd train {recipe} name={shlex.quote(run.name)}_again resume=false"


def facts(values: Mapping[str, Any]) -> str:
    """A two-column table; nothing for no values."""
    if not values:
        return ""
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def skipped_rows(run: RunRecord) -> str:
    """How many rows were left out, and why."""
    if not run.skipped:
        return "<p>No row was skipped. Bad would be many: the run then sees other data than it says.</p>"
    reasons = Counter(line["reason"] for line in run.skipped)
    rows = dict(reasons.most_common(MOST_REASONS))
    more = len(reasons) - len(rows)
    note = f"<p>and {more} more reasons, see skipped.jsonl</p>" if more else ""
    return f"<p>{len(run.skipped)} rows were skipped:</p>{facts(rows)}{note}"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
