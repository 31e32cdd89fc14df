"""What a data set holds and what is wrong with it, row by row."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .annotations import annotation_type, type_names
from .questions import parse_json
from .texts import disclosed
from .views import Skipped, make_sample, origin_of

MAX_LISTED = 20
"""Problems that the data card lists; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Counts over a data set."""

    num_rows: int
    num_images: int
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    """Smallest and largest (width, height) in pixels by area; None without pictures."""
    answer_types: Mapping[str, int]
    coverage: Mapping[str, int]
    """Rows that hold each annotation type."""
    unknown: Mapping[str, int]
    """Keys under `annotations` that are no type."""
    unlabelled: int
    """Rows without an answer."""
    disclosing: Sequence[str] = field(default_factory=tuple)
    """uids whose privileged text holds the answer: allowed, but the teacher then need not see."""
    problems: Sequence[Skipped] = field(default_factory=tuple)
    """Rows that make no Sample, and why."""


def validate(rows: Sequence[Mapping[str, Any]], annotations: Sequence[str] | None = None) -> Report:
    """Builds every row with every annotation type it holds, and counts.

    Args:
        rows: as `read_rows` gives them.
        annotations: types to check; None takes all that a row holds.
    """
    for name in annotations or ():
        annotation_type(name)
    known = set(type_names())
    kinds, unknown, coverage, unlabelled = Counter(), Counter(), Counter(), 0
    sizes: list[tuple[int, int]] = []
    disclosing, problems = [], []
    for row in rows:
        try:
            held = _held(row)
            unknown.update(held - known)
            chosen = sorted(held & known if annotations is None else set(annotations))
            sample = make_sample(row, chosen, coords="pixel")
        except ValueError as error:
            file = str(origin_of(row).get("file") or "")
            problems.append(Skipped(uid=str(row.get("uid")), file=file, reason=str(error)))
            continue
        coverage.update(held & known)
        kinds[sample.answer_type] += 1
        unlabelled += not sample.answer
        sizes.extend(image.size for image in sample.plain.images)
        if disclosed(sample.privileged.context, sample.answer, sample.choices):
            disclosing.append(sample.uid)
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return Report(
        num_rows=len(rows),
        num_images=len(sizes),
        sizes=(by_area[0], by_area[-1]) if by_area else None,
        answer_types=dict(kinds),
        coverage=dict(coverage),
        unknown=dict(unknown),
        unlabelled=unlabelled,
        disclosing=disclosing,
        problems=problems,
    )


def data_card(report: Report, title: str) -> str:
    """The report as Markdown."""
    good = report.num_rows - len(report.problems)
    lines = [
        f"# {title}",
        "",
        f"- rows: {report.num_rows}, of which {good} are good and {len(report.problems)} are not",
        f"- pictures: {report.num_images}{_size_range(report)}",
        f"- answers: {_counts(report.answer_types)}; {report.unlabelled} rows without one",
        f"- annotations (rows): {_counts(report.coverage)}",
        f"- rows whose privileged text holds the answer: {len(report.disclosing)}",
    ]
    for key, count in sorted(report.unknown.items()):
        near = difflib.get_close_matches(key, type_names(), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        lines.append(f"- unknown annotation {key!r} in {count} rows{hint}")
    if report.problems:
        lines += ["", "## Problems", ""]
        lines += [f"- {problem.reason}" for problem in report.problems[:MAX_LISTED]]
        rest = len(report.problems) - MAX_LISTED
        lines += [f"- and {rest} more"] if rest > 0 else []
    return "\n".join(lines) + "\n"


def _held(row: Mapping[str, Any]) -> set[str]:
    """Names under `annotations` that have a value."""
    annotations = row.get("annotations") or {}
    if isinstance(annotations, str):
        annotations = parse_json("annotations", annotations)
    if not isinstance(annotations, Mapping):
        raise ValueError(f"row {row.get('uid')!r}: annotations must be an object")
    return {str(name) for name, value in annotations.items() if value}


def _size_range(report: Report) -> str:
    if report.sizes is None:
        return ""
    (width, height), (max_width, max_height) = report.sizes
    return f", {width} x {height} to {max_width} x {max_height} pixels"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
