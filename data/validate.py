"""What a data set holds and what is wrong with it, row by row, and a data card that says so."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dopd_vlm.errors import near
from dopd_vlm.types import Sample

from .annotations.disclosure import disclosed
from .annotations.registry import forms, type_names
from .questions import parse_json
from .views import AnnotationChoice, Skipped, check_choices, make_sample, origin_of, uid_of

MAX_LISTED = 20
"""Problems that the data card lists; all are counted."""
MIN_LEAK_LENGTH = 12
"""A privileged line of at least so many characters that is also in the question is a leak, not chance."""
TRAPS = {"hint": "VLMEvalKit prints a column of this name into the student's prompt"}
SampleCheck = Callable[[Sample], str | None]
"""Why a sample is of no use for something, or None."""
META = ("source", "licence", "split", "annotator")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Counts over a data set; lists hold uids."""

    num_rows: int
    num_images: int
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    """Smallest and largest (width, height) in pixels by area; None without images."""
    answer_types: Mapping[str, int]
    coverage: Mapping[str, int]
    """Rows that hold each annotation type."""
    unknown: Mapping[str, int]
    """Keys under `annotations` that are no type."""
    unlabelled: int
    """Rows without an answer."""
    meta: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rows by each value of the fields `META` of `meta`."""
    disclosing: Sequence[str] = ()
    """Privileged text holds the answer: allowed, but the teacher then need not see."""
    leaking: Sequence[str] = ()
    """The question, which the student sees, holds a line of the privileged text."""
    answered: Sequence[str] = ()
    """The open question holds its answer: harmless where it lists alternatives."""
    repeated: Sequence[str] = ()
    """Question and images are those of an earlier row."""
    overlapping: Sequence[str] = ()
    """Question and images are in the other data set too."""
    shared_images: Sequence[str] = ()
    """An image is in the other data set too, under another question."""
    traps: Mapping[str, int] = field(default_factory=dict)
    """Rows with a column of `TRAPS`."""
    doubled: Sequence[str] = ()
    """Two options are the same."""
    unscorable: Sequence[str] = ()
    """Why the answers of some good rows cannot be scored: they train, and count in no accuracy."""
    problems: Sequence[Skipped] = ()
    """Rows that make no Sample, or that the model cannot take, and why."""


def validate(
    rows: Sequence[Mapping[str, Any]],
    annotations: Sequence[AnnotationChoice] | None = None,
    *,
    against: Iterable[Mapping[str, Any]] = (),
    answer_problem: SampleCheck = lambda sample: None,
    model_problem: SampleCheck = lambda sample: None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Report:
    """Builds and draws every row with every annotation type it holds, and counts.

    Args:
        rows: as `read_rows` gives them.
        annotations: types to check, or pairs with a form; None takes all that a row holds.
        against: another data set, such as the benchmark, that must not share questions.
        answer_problem: why a sample's answer cannot be scored, or None.
        model_problem: why a model cannot take a sample, or None.
        progress: shows how far a walk over the rows has come.
    """
    check_choices(annotations or ())
    counts = _Counts(_digests_of(against))
    for row in progress(rows):
        try:
            held = _held(row)
            known = held & set(type_names())
            choices = _choices_of(row, known) if annotations is None else annotations
            sample = make_sample(row, choices, coords="pixel")
            problem = model_problem(sample)
            if problem:
                raise ValueError(problem)
        except ValueError as error:
            file = str(origin_of(row).get("file") or "")
            counts.problems.append(Skipped(uid=uid_of(row), file=file, reason=str(error)))
            continue
        counts.add(row, sample, held, known)
        unscorable = answer_problem(sample)
        if unscorable:
            counts.unscorable.append(unscorable)
    return counts.report(len(rows))


def _choices_of(row: Mapping[str, Any], known: set[str]) -> list[AnnotationChoice]:
    """Types in every form they have; nothing is drawn where the teacher has images of its own."""
    can_draw = row.get("teacher_images") is None
    return [
        (name, "both" if can_draw and "both" in forms(name) else "text") for name in sorted(known)
    ]


class _Counts:
    """What `validate` has counted so far."""

    def __init__(self, others: tuple[set[bytes], set[bytes]]) -> None:
        self.others, self.seen = others, set()
        self.kinds, self.coverage, self.unknown, self.traps = (Counter() for _ in range(4))
        self.meta = {name: Counter() for name in META}
        self.num_images, self.unlabelled = 0, 0
        self.smallest: tuple[int, int] | None = None
        self.largest: tuple[int, int] | None = None
        self.uids: dict[str, list[str]] = {name: [] for name in _CHECKS}
        self.problems: list[Skipped] = []
        self.unscorable: list[str] = []

    def add(self, row: Mapping[str, Any], sample: Sample, held: set[str], known: set[str]) -> None:
        """Counts a good row."""
        self.coverage.update(known)
        self.unknown.update(held - known)
        self.kinds[sample.answer_type] += 1
        self.unlabelled += not sample.answer
        self.traps.update(name for name in TRAPS if row.get(name) is not None)
        for name, values in self.meta.items():
            if sample.source.get(name) is not None:
                values[str(sample.source[name])] += 1
        for image in sample.plain.images:
            self.num_images += 1
            self.smallest = min(self.smallest or image.size, image.size, key=_area)
            self.largest = max(self.largest or image.size, image.size, key=_area)
        whole, images = _digests(sample)
        checks = {
            "disclosing": disclosed(sample.privileged.context, sample.answer, sample.choices),
            "leaking": _leak(sample),
            "answered": not sample.choices and disclosed(sample.question, sample.answer),
            "doubled": len(set((sample.choices or {}).values())) < len(sample.choices or {}),
            "repeated": whole in self.seen,
            "overlapping": whole in self.others[0],
            "shared_images": whole not in self.others[0] and images & self.others[1],
        }
        self.seen.add(whole)
        for name in _CHECKS:
            if checks[name]:
                self.uids[name].append(sample.uid)

    def report(self, num_rows: int) -> Report:
        """The counts as a record."""
        sizes = (self.smallest, self.largest) if self.smallest and self.largest else None
        return Report(
            num_rows=num_rows,
            num_images=self.num_images,
            sizes=sizes,
            answer_types=dict(self.kinds),
            coverage=dict(self.coverage),
            unknown=dict(self.unknown),
            unlabelled=self.unlabelled,
            meta={name: dict(values) for name, values in self.meta.items() if values},
            traps=dict(self.traps),
            problems=self.problems,
            unscorable=self.unscorable,
            **self.uids,
        )


_CHECKS = {
    "disclosing": "privileged text holds the answer",
    "leaking": "the question holds privileged text",
    "answered": "the open question holds its answer",
    "doubled": "two options are the same",
    "repeated": "question and images of an earlier row",
    "overlapping": "question and images are in the other set",
    "shared_images": "an image is in the other set, under another question",
}


def data_card(report: Report, title: str) -> str:
    """The report as Markdown."""
    good = report.num_rows - len(report.problems)
    lines = [
        f"# {title}",
        "",
        f"- rows: {report.num_rows}, of which {good} are good and {len(report.problems)} are not",
        f"- images: {report.num_images}{_size_range(report)}",
        f"- answers: {_counts(report.answer_types)}; {report.unlabelled} rows without one",
        f"- annotations (rows): {_counts(report.coverage)}",
        *(f"- {name}: {_counts(values)}" for name, values in report.meta.items()),
        "",
        "## Checks",
        "",
        "| Rows in which | Count | The first |",
        "|---|--:|---|",
    ]
    for name, words in _CHECKS.items():
        uids = getattr(report, name)
        lines.append(f"| {words} | {len(uids)} | {', '.join(uids[:3])} |")
    if report.unknown or report.traps:
        lines.append("")
    for key, count in sorted(report.unknown.items()):
        likely = near(key, type_names())
        hint = f", did you mean {likely[0]}?" if likely else ""
        lines.append(f"- unknown annotation {key!r} in {count} rows{hint}")
    lines += [f"- column {name!r} in {n} rows: {TRAPS[name]}" for name, n in report.traps.items()]
    reasons = [problem.reason for problem in report.problems]
    lines += _section("Problems", reasons)
    lines += _section(
        "Answers that cannot be scored: they train, and count in no accuracy", report.unscorable
    )
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, reasons: Sequence[str]) -> list[str]:
    """A heading and the first reasons; nothing without any."""
    if not reasons:
        return []
    rest = len(reasons) - MAX_LISTED
    more = [f"- and {rest} more"] if rest > 0 else []
    return ["", f"## {title}", "", *(f"- {reason}" for reason in reasons[:MAX_LISTED]), *more]


def _digests_of(rows: Iterable[Mapping[str, Any]]) -> tuple[set[bytes], set[bytes]]:
    """Names of the questions with their images, and of the images, of the good rows."""
    wholes, images = set(), set()
    for row in rows:
        try:
            whole, its_images = _digests(make_sample(row, []))
        except ValueError:
            continue
        wholes.add(whole)
        images |= its_images
    return wholes, images


def _digests(sample: Sample) -> tuple[bytes, set[bytes]]:
    """A name of question and images together, and one of each image, by their pixels."""
    images = [
        _digest(image.tobytes() + bytes(str(image.size), "ascii")) for image in sample.plain.images
    ]
    words = " ".join(sample.question.lower().split())
    return _digest(words.encode() + b"".join(images)), set(images)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=12).digest()


def _leak(sample: Sample) -> str | None:
    """A privileged line that is also in what the student reads."""
    turns = [str(turn["content"]) for turn in sample.history]
    seen = "\n".join([sample.question, sample.system or "", *turns])
    lines = (line.strip() for line in sample.privileged.context.splitlines())
    return next((line for line in lines if len(line) >= MIN_LEAK_LENGTH and line in seen), None)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


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
