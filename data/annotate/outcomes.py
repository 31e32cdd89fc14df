"""What a row's replies come to: asked for, dropped with a reason, or accepted. All pure."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..coords import Frame, check_family
from ..questions import Question, read_question
from ..rows import Row
from ..views import origin_of
from .replies import BadReplyError, read_annotation, read_verdict
from .reply_log import Record
from .requests import WORDINGS

NEEDS_IMAGE = ("boxes", "captions")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be written, and how."""

    kinds: tuple[str, ...]
    """Names in `requests.WORDINGS`, in the order in which they are asked for."""
    coords: str = "qwen3"
    """How the annotating model writes places."""
    attempts: int = 2
    """How often a pass is asked before its bad replies drop the row."""
    max_pixels: int = 1_500_000
    """Larger images are sent smaller."""
    json_schema: bool = False
    """Whether the endpoint is told to hold replies to the form (`replies.reply_schema`)."""

    def __post_init__(self) -> None:
        check_family(self.coords)
        unknown = [kind for kind in self.kinds if kind not in WORDINGS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(
                f"kinds {','.join(self.kinds)!r}: need distinct names of {', '.join(WORDINGS)}"
            )
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The next request a row's kind needs."""

    step: str
    """`write` or `check`."""
    attempt: int
    value: Any = None
    """What is to be checked."""
    bad: tuple[str, str] | None = None
    """The last reply of this step and why it could not be used."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Why a row's kind came to nothing."""

    kind: str
    step: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A written and rechecked annotation."""

    value: Any


def state_of(
    kind: str, replies: Sequence[Record], question: Question, attempts: int
) -> Needed | Dropped | Accepted:
    """What a row's replies of one kind come to: a pure function, whenever it is asked."""

    def of_step(step: str) -> list[Record]:
        return [record for record in replies if (record["kind"], record["step"]) == (kind, step)]

    def missing(step: str, bad: Sequence[tuple[str, str]], value: Any) -> Needed | Dropped:
        if bad and (len(bad) >= attempts or bad[-1][1].startswith("rejected")):
            return Dropped(kind=kind, step=step, reason=bad[-1][1])
        last = bad[-1] if bad else None
        return Needed(step=step, attempt=len(bad), value=value, bad=last)

    value, bad = _first_usable(of_step("write"), lambda r: _read_written(kind, r, question))
    if value is None:
        return missing("write", bad, None)
    judged, bad = _first_usable(
        of_step("check"), lambda r: read_verdict(r["text"], r["finish_reason"])
    )
    if judged is None:
        return missing("check", bad, value)
    good, why = judged
    return (
        Accepted(value=value)
        if good
        else Dropped(kind=kind, step="check", reason=f"recheck: {why}")
    )


def _first_usable(
    records: Sequence[Record], read: Callable[[Record], Any]
) -> tuple[Any, list[tuple[str, str]]]:
    """(what the first usable reply says or None, each bad reply before it with its reason)."""
    bad: list[tuple[str, str]] = []
    for record in records:
        try:
            if record.get("rejected"):
                raise BadReplyError(f"rejected: {record['rejected']}")
            return read(record), bad
        except BadReplyError as error:
            bad.append((str(record.get("text")), str(error)))
    return None, bad


def question_of(row: Row, task: Task) -> Question:
    """The row's question; ValueError when it is wrong, or a kind needs an image that is not there."""
    if "problem" in origin_of(row):
        raise ValueError(origin_of(row)["problem"])
    num_images = len(row.get("images") or [])
    if row.get("videos"):
        raise ValueError("rows with videos cannot be annotated: only images are sent")
    for kind in task.kinds:
        if kind in NEEDS_IMAGE and not num_images:
            raise ValueError(f"{kind} need an image, and the row has none")
    return read_question(row, num_images)


def row_digest(row: Mapping[str, Any]) -> str:
    """A name of the row's content; replies to a row that has changed since do not count."""
    content = {key: value for key, value in row.items() if key != "origin"}
    text = json.dumps(content, sort_keys=True, default=_digestible)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digestible(value: Any) -> str:
    data = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(data).hexdigest()


def _read_written(kind: str, record: Record, question: Question) -> Any:
    frames = [
        Frame(family=family, size=tuple(size), resized=tuple(resized))
        for family, size, resized in record["frames"]
    ]
    return read_annotation(
        kind,
        record["text"],
        record["finish_reason"],
        frames=frames,
        answer=question.answer,
        choices=question.choices,
    )
