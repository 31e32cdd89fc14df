"""A figure of a run for a README or a paper: one probe with coloured tokens, and the regime shares.

Needs matplotlib (extra `viz`). The same run gives the same file, byte for byte.
"""

import base64
import io
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dopd_vlm.report.method_text import read_method
from dopd_vlm.report.palette import PAINTS
from dopd_vlm.run_folder import Record, RunRecord, read_run
from dopd_vlm.types import Regime

FORMATS = (".svg", ".pdf", ".png")
WIDTH, COLUMNS = 10.0, 92
"""Inches of the figure, and characters of a line of the completion."""
LINE_HEIGHT = 0.27
"""Inches."""
MOST_LINES = 12
GREY = "#eeeeee"


def write_figure(
    run_dir: str | Path, out: str | Path, *, probe: int = 1, step: int | None = None
) -> Path:
    """The figure of one token map at `out`, whose ending chooses svg, pdf or png.

    Args:
        run_dir: a run folder with token maps.
        out: where to.
        probe: which probe, counted from 1.
        step: of which moment; None is the last one.

    Raises ValueError for another ending, an absent probe or moment, or without matplotlib.
    """
    path, run = Path(out), read_run(run_dir)
    if path.suffix not in FORMATS:
        raise ValueError(f"--figure {path}: the ending must be one of {', '.join(FORMATS)}")
    token_map = token_map_of(run, probe, step)
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("a figure needs matplotlib: pip install 'dopd-vlm[viz]'") from error
    settings: Any = {
        "svg.hashsalt": "dopd",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure = _draw(run, run.probes[probe - 1], token_map)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, metadata=_no_date(path.suffix))
    return path


def token_map_of(run: RunRecord, probe: int, step: int | None) -> Record:
    """The token map of that probe and moment. Raises ValueError naming what there is."""
    if not 1 <= probe <= len(run.probes):
        raise ValueError(f"--probe {probe}: the run has {len(run.probes)} probes, counted from 1")
    maps = {m["step"]: m for m in run.maps if m["uid"] == run.probes[probe - 1]["uid"]}
    if not maps or (step is not None and step not in maps):
        raise ValueError(
            f"--step {step}: token maps of this probe exist at steps {', '.join(map(str, maps)) or '(none)'}"
        )
    return maps[max(maps) if step is None else step]


def token_cells(tokens: Sequence[str], columns: int = COLUMNS) -> list[tuple[int, int, int, str]]:
    """(line, column, width, text) of each token in lines of `columns` characters, one apart."""
    cells, row, column = [], 0, 0
    for token in tokens:
        text = token.replace("\n", "\u21b5").strip(" ") or "\u00b7"
        text = text if len(text) <= columns else f"{text[: columns - 3]}..."
        width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
        if column and column + width > columns:
            row, column = row + 1, 0
        cells.append((row, column, width, text))
        column += width + 1
        if "\n" in token:
            row, column = row + 1, 0
    return cells


def _draw(run: RunRecord, probe: Record, token_map: Record) -> Any:
    from matplotlib.figure import Figure

    cells = [cell for cell in token_cells(token_map["tokens"]) if cell[0] < MOST_LINES]
    completion = LINE_HEIGHT * (1 + max((cell[0] for cell in cells), default=0)) + 0.35
    heights = [2.3, completion, 1.6]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    rows = figure.add_gridspec(3, 1, height_ratios=heights)
    top = rows[0].subgridspec(1, 4, width_ratios=[1, 1, 1.6, 1.9])
    _image(figure.add_subplot(top[0]), probe["plain"], "plain: the student")
    _image(figure.add_subplot(top[1]), probe["privileged"], "privileged: both targets")
    _words(figure.add_subplot(top[2]), probe)
    _legend(figure.add_subplot(top[3]), run)
    _completion(figure.add_subplot(rows[1]), cells, token_map)
    _shares(figure.add_subplot(rows[2]), run, token_map["step"])
    return figure


def _image(axes: Any, view: Record, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.axis("off")
    if not view["images"]:
        axes.text(0.5, 0.5, "no image", ha="center")
        return
    images = [_decoded(uri) for uri in view["images"]]
    axes.imshow(images[0], interpolation="nearest")
    if len(images) > 1:
        axes.text(0, 1.02, f"1 of {len(images)} images", transform=axes.transAxes, fontsize=7)


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def _words(axes: Any, probe: Record) -> None:
    axes.axis("off")
    context = probe["privileged"]["context"] or "(nothing in words)"
    lines = [
        *textwrap.wrap(probe["question"], 34),
        "",
        "only the targets read:",
        *(line for part in context.splitlines() for line in textwrap.wrap(part, 34) or [""]),
    ]
    lines = lines if len(lines) <= 13 else [*lines[:12], "..."]
    axes.text(
        0, 1, "\n".join(lines), va="top", fontsize=8, transform=axes.transAxes, parse_math=False
    )


def _legend(axes: Any, run: RunRecord) -> None:
    from matplotlib.patches import Patch

    axes.axis("off")
    method = read_method(run)
    if not method.by_gap:
        text = textwrap.fill(f"every token: {method.every_token}", 34)
        axes.text(0, 1, text, va="top", fontsize=8, transform=axes.transAxes, parse_math=False)
        return
    handles = [
        Patch(color=paint.fill, label=f"{regime.name}  {textwrap.fill(method.legend(regime), 34)}")
        for regime, paint in PAINTS.items()
    ]
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=8)


def _completion(axes: Any, cells: Sequence[tuple[int, int, int, str]], token_map: Record) -> None:
    from matplotlib.patches import Rectangle

    axes.axis("off")
    verdict = {None: "", 0: ", wrong", 1: ", right"}.get(token_map["correct"], "")
    axes.set_title(
        f"a completion of {token_map['uid']} at step {token_map['step']}{verdict}",
        loc="left", fontsize=9, parse_math=False,
    )  # fmt: skip
    lines = 1 + max((cell[0] for cell in cells), default=0)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(lines, 0)
    for place, (row, column, width, text) in enumerate(cells):
        kind = token_map["regime"][place] if token_map["regime"] else None
        paint = None if kind is None or kind < 0 else PAINTS[Regime(kind)]
        fill, ink = (paint.fill, paint.ink) if paint else (GREY, "#000000")
        axes.add_patch(Rectangle((column - 0.2, row + 0.08), width + 0.4, 0.84, color=fill, lw=0))
        axes.text(
            column + width / 2, row + 0.5, text, ha="center", va="center", family="monospace", fontsize=9,
            color=ink, weight="bold" if kind in (Regime.HT, Regime.HS) else "normal", parse_math=False,
        )  # fmt: skip


def _shares(axes: Any, run: RunRecord, step: int) -> None:
    axes.set_title("share of tokens in each regime over training", loc="left", fontsize=9)
    names = [f"share/{regime.name.lower()}" for regime in Regime]
    series = [run.series(name) for name in names]
    if not any(series) or not run.series("threshold/gap"):
        axes.axis("off")
        axes.text(0, 0.5, "the method does not route by gap, or no step was taken")
        return
    values = [[value or 0.0 for value in one.values] for one in series]
    axes.stackplot(series[0].steps, *values, colors=[PAINTS[regime].fill for regime in Regime])
    axes.axvline(step, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(min(series[0].steps), max(*series[0].steps, step))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("step")


def _no_date(suffix: str) -> dict[str, Any]:
    return (
        {"Date": None} if suffix == ".svg" else {"CreationDate": None} if suffix == ".pdf" else {}
    )
