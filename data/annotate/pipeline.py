"""Privileged annotations by a strong model: written, rechecked, and bad rows dropped with a reason.

The paper's pipeline (section on data): a first pass writes query-related boxes or step hints, a
second pass of the same model judges them, low-quality rows are discarded. Every raw reply is kept
in `replies.jsonl`; what a row comes to is a function of its replies alone, so a run that was
killed goes on where it was, and `metadata.jsonl` and `dropped.jsonl` can always be made again.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vlm.endpoint import Client, Endpoint, GaveUpError, RejectedError, Reply, SetupError
from dopd_vlm.jsonl import replacing, to_line

from ..formats.folder import with_files
from ..questions import Question
from ..rows import METADATA, Row
from ..views import as_object, uid_of
from .outcomes import (
    Accepted,
    Dropped,
    Needed,
    Task,
    question_of,
    row_digest,
    state_of,
)
from .replies import describe, reply_schema
from .reply_log import Record, RepliesFile
from .requests import (
    CHECK,
    PLACES,
    REPAIR,
    WORDINGS,
    ShownRow,
    check_request,
    repair_turns,
    show_row,
    write_request,
)

REPLIES, DROPPED = "replies.jsonl", "dropped.jsonl"


@dataclass(kw_only=True)
class Progress:
    """Counts of a run, updated as it goes."""

    num_rows: int
    finished: int = 0
    """Rows that need no further request."""
    num_requests: int = 0
    """Replies received in this run."""
    num_repeats: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens of this run, as the endpoint counts them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended; kept + dropped + pending = the rows there were."""

    kept: int
    dropped: Mapping[str, int]
    """Rows by the first word or two of the reason."""
    pending: int
    """Rows still without all replies; the same command goes on with them."""
    stopped: str
    """Why not all rows were asked; empty when they were."""
    progress: Progress


def annotate(
    rows: Sequence[Row],
    out: Path,
    task: Task,
    endpoint: Endpoint,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Asks for what is missing and writes `metadata.jsonl`, `dropped.jsonl` and the images.

    Ends early, with everything received kept, when the endpoint fails for as many rows in a row
    as there are requests at once; Ctrl-C likewise.

    Raises:
        ValueError: `out` holds replies under other settings; the endpoint refuses address, key or
            model. What was received until then is kept.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    replies = RepliesFile(out / REPLIES, _settings(task, endpoint))
    run = _Run(rows, task, endpoint, replies, on_progress)
    try:
        stopped = asyncio.run(run.all_rows())
    except KeyboardInterrupt:
        stopped = "interrupted"
    return _write(run, out, stopped)


class _Run:
    """Workers that take one row after another and ask what it still needs."""

    def __init__(
        self,
        rows: Sequence[Row],
        task: Task,
        endpoint: Endpoint,
        replies: RepliesFile,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.rows, self.task, self.endpoint, self.replies = rows, task, endpoint, replies
        self.progress, self.on_progress = Progress(num_rows=len(rows)), on_progress
        self.bad_rows: dict[str, str] = {}
        self._failures, self._stopped = 0, ""
        self._setup_error: SetupError | None = None
        self._next = 0

    async def all_rows(self) -> str:
        """Works until all rows are finished; why it stopped before that, or ""."""
        async with Client(self.endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(min(self.endpoint.max_concurrent, len(self.rows))):
                group.create_task(self._worker(client))
        if self._setup_error is not None:
            raise self._setup_error
        return self._stopped

    async def _worker(self, client: Client) -> None:
        while self._next < len(self.rows) and not self._stopped:
            position, self._next = self._next, self._next + 1
            try:
                await self._row(self.rows[position], client)
                self.progress.finished += 1
            except GaveUpError as error:
                self._failures += 1
                if self._failures >= min(self.endpoint.max_concurrent, len(self.rows)):
                    self._stopped = str(error)
            except SetupError as error:
                self._setup_error, self._stopped = error, str(error)
            self.progress.num_repeats = client.num_repeats
            self.on_progress(self.progress)

    async def _row(self, row: Row, client: Client) -> None:
        """Asks for all kinds of a row, until one fails."""
        uid, shown, digest = uid_of(row), None, row_digest(row)
        try:
            question = question_of(row, self.task)
        except ValueError:
            return  # of_row finds it again
        for kind in self.task.kinds:
            while isinstance(state := self._state_of(uid, digest, kind, question), Needed):
                if shown is None:
                    try:
                        shown = await asyncio.to_thread(
                            show_row, row, self.task.coords, self.task.max_pixels
                        )
                    except ValueError as error:
                        self.bad_rows[uid] = f"row: {error}"
                        return
                record = await self._ask(client, kind, state, shown)
                self.replies.add({"uid": uid, "row": digest, **record})
                self.on_progress(self.progress)
            if isinstance(state, Dropped):
                return

    def _state_of(
        self, uid: str, digest: str, kind: str, question: Question
    ) -> Needed | Dropped | Accepted:
        replies = [record for record in self.replies.of(uid) if record["row"] == digest]
        return state_of(kind, replies, question, self.task.attempts)

    def of_row(self, row: Row) -> dict[str, Any] | Dropped | None:
        """{kind: value} of a finished row, why it is dropped, or None while something is missing."""
        uid, answers = uid_of(row), {}
        if uid in self.bad_rows:
            return Dropped(kind="", step="", reason=self.bad_rows[uid])
        try:
            question = question_of(row, self.task)
        except ValueError as error:
            return Dropped(kind="", step="", reason=f"row: {error}")
        for kind in self.task.kinds:
            state = self._state_of(uid, row_digest(row), kind, question)
            if isinstance(state, Dropped):
                return state
            if isinstance(state, Needed):
                return None
            answers[kind] = state.value
        return answers

    async def _ask(self, client: Client, kind: str, state: Needed, shown: ShownRow) -> Record:
        """One request, as the record that is kept."""
        if state.step == "write":
            messages = write_request(kind, shown)
        else:
            annotation = describe(kind, state.value, shown.frames)
            messages = check_request(kind, shown, annotation)
        if state.bad is not None:
            messages += repair_turns(*state.bad)
        frames = [[frame.family, frame.size, frame.resized] for frame in shown.frames]
        head = {"kind": kind, "step": state.step, "attempt": state.attempt, "frames": frames}
        try:
            reply = await client.ask(messages, **self._fields(kind, state.step, shown))
        except RejectedError as error:
            self._failures = 0
            return {**head, "rejected": str(error)}
        self._count(reply)
        return {**head, **vars(reply)}

    def _fields(self, kind: str, step: str, shown: ShownRow) -> dict[str, Any]:
        """What the request sets besides its messages."""
        if not self.task.json_schema:
            return {}
        schema = {
            "name": step,
            "strict": True,
            "schema": reply_schema(kind, step, len(shown.frames)),
        }
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def _count(self, reply: Reply) -> None:
        self._failures = 0
        self.progress.num_requests += 1
        self.progress.prompt_tokens += reply.prompt_tokens
        self.progress.completion_tokens += reply.completion_tokens


def _settings(task: Task, endpoint: Endpoint) -> dict[str, Any]:
    """What replies depend on; another value needs another folder."""
    wording = repr([WORDINGS[kind] for kind in task.kinds]) + CHECK + REPAIR + repr(PLACES)
    return {
        "model": endpoint.model,
        "coords": task.coords,
        "max_pixels": task.max_pixels,
        "temperature": endpoint.temperature,
        "json_schema": task.json_schema,
        "wording": hashlib.sha256(wording.encode()).hexdigest()[:16],
    }


def _write(run: _Run, out: Path, stopped: str) -> Outcome:
    """Writes the finished rows and the dropped ones, each file in one step."""
    kept, pending, dropped = 0, 0, Counter()
    with (
        replacing(out / METADATA) as rows_part,
        replacing(out / DROPPED) as dropped_part,
        rows_part.open("w", encoding="utf-8") as good,
        dropped_part.open("w", encoding="utf-8") as bad,
    ):
        for number, row in enumerate(run.rows):
            outcomes = run.of_row(row)
            if isinstance(outcomes, dict):
                try:
                    annotated = _add_annotations(row, outcomes, run.endpoint.model)
                    root = row["origin"]["root"]
                    good.write(to_line(with_files(annotated, f"{number:07d}", out, root)))
                    kept += 1
                    continue
                except ValueError as error:
                    outcomes = Dropped(kind="", step="", reason=f"row: {error}")
            if outcomes is None:
                pending += 1
                continue
            bad.write(to_line({"uid": uid_of(row), **vars(outcomes)}))
            dropped[outcomes.reason.partition(":")[0]] += 1
    return Outcome(
        kept=kept, dropped=dict(dropped), pending=pending, stopped=stopped, progress=run.progress
    )


def _add_annotations(row: Row, values: Mapping[str, Any], model: str) -> Row:
    """The row with the new annotations; those of other kinds stay."""
    held = as_object(row.get("annotations"), "annotations")
    meta = as_object(row.get("meta"), "meta")
    held = {kind: value for kind, value in held.items() if value is not None}
    return {
        **row,
        "annotations": {**held, **values},
        "meta": {**meta, "annotator": model},
    }
