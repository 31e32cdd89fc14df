"""report.html: one self-contained page of an evaluation, or of the comparison of two (extra `viz`)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dopd_vlm.data_uri import thumbnail_uri
from dopd_vlm.jsonl import write_whole
from dopd_vlm.report.html import render
from dopd_vlm.run_folder import flatten
from dopd_vlm.types import Sample

from ..completions.store import Record
from .examples import KINDS, Answer, Example, Shown, choose_examples
from .figures import category_figures, difference_figure, gap_figures, score_figure
from .results import Results
from .tables import (
    COMPARE_COLUMNS,
    PUBLISHED,
    cells,
    common,
    comparison_lines,
    error_of,
    published,
)

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"
EXAMPLES = 200
"""Samples of each task and view on the page."""
IMAGE_CHARACTERS = 12_000_000
"""Of all images on a page as text; samples beyond are shown without theirs."""
IMAGE_SIDE = 400
"""Pixels to which images are scaled down."""
LONGEST_TEXT = 3000
"""Characters of a prompt or answer on the page."""


def choose_samples(
    task: str, records: Sequence[Record], samples: Sequence[Sample], category: str | None = None
) -> Shown:
    """The samples of an evaluation's lines that its page holds."""
    return choose_examples(task, records, samples, category, EXAMPLES)


def write_report(
    folder: Path, results: Sequence[Results], examples: Mapping[tuple[str, str], Shown]
) -> Path:
    """FOLDER/report.html; examples by (task, view).

    Raises:
        ValueError: plotly is not installed.
    """
    return write_whole(folder / REPORT_FILE, evaluation_page(results, examples))


def write_comparison(
    folder: Path,
    a: Sequence[Results],
    b: Sequence[Results],
    names: tuple[str, str],
    examples: Sequence[Example] = (),
) -> Path:
    """FOLDER/comparison.html of two evaluations; `examples` are of `examples.changed_samples`.

    Raises:
        ValueError: nothing in common, or plotly is not installed.
    """
    return write_whole(folder / COMPARISON_FILE, comparison_page(a, b, names, examples))


def evaluation_page(results: Sequence[Results], examples: Mapping[tuple[str, str], Shown]) -> str:
    """The page as HTML that needs no other file and no network."""
    columns, lines = published(results)
    return render(
        "evaluation.html",
        title=_title(results),
        model=results[0].model,
        num_tasks=len({one.name for one in results}),
        num_completions=sum(one.n * one.num_generations for one in results),
        scores=cells(results),
        second=_second(results),
        published=(columns, lines),
        published_note=PUBLISHED,
        figures=[score_figure(results), *gap_figures(results)],
        categories=category_figures(results),
        verdicts=_verdicts(results, examples),
        samples=samples_data([one for part in examples.values() for one in part.examples]),
        measured={f"{one.name}, {one.view}": _settings(one) for one in results},
    )


def comparison_page(
    a: Sequence[Results],
    b: Sequence[Results],
    names: tuple[str, str],
    examples: Sequence[Example] = (),
) -> str:
    """Differences of two evaluations on their common tasks and views."""
    pairs = common(a, b)
    return render(
        "evaluation_comparison.html",
        title=f"{_title(a)} against {_title(b)}",
        models={"A": f"{a[0].model} ({names[0]})", "B": f"{b[0].model} ({names[1]})"},
        differences=(COMPARE_COLUMNS, comparison_lines(a, b)),
        figures=[difference_figure(pairs)],
        changed=(CHANGED_COLUMNS, [_changed(one, other) for one, other in pairs]),
        samples=samples_data(examples),
    )


CHANGED_COLUMNS = ("task", "view", "A is better", "B is better", "equal")


def samples_data(examples: Sequence[Example]) -> dict[str, Any]:
    """What samples.js reads: {"samples": [...], "images": [data URI]}; each image once, while there is room."""
    uris: list[str] = []
    places: dict[int, int | None] = {}

    def place_of(image: Image.Image) -> int | None:
        if id(image) not in places:
            is_room = sum(map(len, uris)) < IMAGE_CHARACTERS
            places[id(image)] = len(uris) if is_room else None
            if is_room:
                uris.append(thumbnail_uri(image, IMAGE_SIDE))
        return places[id(image)]

    samples = [
        {
            "task": one.task,
            "view": one.view,
            "uid": one.uid,
            "category": one.category,
            "verdict": one.verdict,
            "prompt": _shorten(one.prompt),
            "gold": _shorten(one.gold, 300),
            "images": [place_of(image) for image in one.images],
            "answers": list(map(_answer, one.answers)),
        }
        for one in examples
    ]
    return {"samples": samples, "images": uris}


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "verdict": answer.verdict,
        "text": _shorten(answer.text),
        "read": None if answer.extracted is None else _shorten(answer.extracted, 300),
        "rule": _shorten(answer.rule, 300),
        "score": answer.score,
        "tokens": answer.num_tokens,
    }


def _title(results: Sequence[Results]) -> str:
    """The last part of a path, the whole of another name."""
    name = results[0].model
    return name if " @ " in name else Path(name).name or name


def _second(results: Sequence[Results]) -> tuple[Sequence[str], list[list[str]]]:
    """(columns, lines) of second metrics and pass@k, where there are any."""
    lines = [
        [one.name, one.view, name, f"{100 * value:.1f}{error_of(one.second, name)}"]
        for one in results
        for name, value in {**one.pass_at, **one.second}.items()
        if not name.endswith("_stderr")
    ]
    return ("task", "view", "metric", "%"), lines


def _verdicts(
    results: Sequence[Results], examples: Mapping[tuple[str, str], Shown]
) -> tuple[Sequence[str], list[list[str]]]:
    """(columns, lines): how many completions of each verdict; verdicts that never occur are left out."""
    parts = [
        (one, examples[one.name, one.view]) for one in results if (one.name, one.view) in examples
    ]
    kinds = [kind for kind in KINDS if any(part.counts.get(kind) for _, part in parts)]
    lines = [
        [one.name, one.view, *(str(part.counts.get(kind, 0)) for kind in kinds)]
        for one, part in parts
    ]
    return ("task", "view", *kinds), lines


def _changed(one: Results, other: Results) -> list[str]:
    a, b = one.per_question, other.per_question
    better, worse = sum(a[uid] > b[uid] for uid in a), sum(a[uid] < b[uid] for uid in a)
    return [one.name, one.view, str(better), str(worse), str(len(a) - better - worse)]


def _settings(results: Results) -> dict[str, str]:
    """Settings by dotted name, as text."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in flatten(results.settings).items()
    }


def _shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... {len(text) - longest} characters ...]\n{text[-half:]}"
