"""Which samples of an evaluation a page holds: right and wrong ones, of every kind some."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dopd_vlm.types import Sample, ViewName

from ..completions.generators import FAILED
from ..completions.store import Record
from .results import Results

KINDS = {
    "failed": "no answer came from the server",
    "scorer error": "the scorer failed",
    "empty": "the answer is empty",
    "cut": "cut at the token limit",
    "unread": "no answer could be read",
    "wrong": "read, and wrong",
    "partly right": "read, and not wholly right",
    "right": "read, and right",
}
"""Verdict on a completion -> what it means; the first that applies."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said, and what the scorer made of it."""

    verdict: str
    """Of KINDS."""
    text: str
    extracted: str | None
    rule: str
    """Which rule read the answer, or why none did."""
    score: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question with the answers to look at."""

    task: str
    view: ViewName
    uid: str
    category: str
    """"" where the task has none."""
    images: tuple[Image.Image, ...]
    """What the model saw."""
    prompt: str
    """As rendered, or the question where a server rendered it."""
    gold: str
    verdict: str
    """The answer's; of two answers which one is better."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a page says about the samples of one Results."""

    examples: Sequence[Example]
    counts: Mapping[str, int]
    """Verdict -> completions of it."""


def choose_examples(
    task: str,
    records: Sequence[Record],
    samples: Sequence[Sample],
    category: str | None,
    count: int,
) -> Shown:
    """Up to `count` completions, the verdicts in turn, the lowest scores first; `category` is a source field."""
    by_uid = {sample.uid: sample for sample in samples}
    kinds: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for record in records:
        kinds[verdict_of(record)].append(record)
    for same in kinds.values():
        same.sort(key=lambda r: (r["accuracy"], r["doc_id"], r["sample_idx"]))
    examples = [
        _example(task, record, by_uid.get(record["uid"]), category, verdict, (answer_of(record),))
        for verdict, record in _in_turn(kinds, count)
    ]
    return Shown(examples=examples, counts=verdict_counts(records))


def changed_samples(
    one: Results,
    records: tuple[Sequence[Record], Sequence[Record]],
    samples: Sequence[Sample],
    count: int,
) -> list[Example]:
    """Up to `count` questions that one of two models got better than the other, with both answers.

    Of several completions of a question the first is shown; a question without its sample has no image.
    """
    by_uid = {sample.uid: sample for sample in samples}
    first, second = ({r["uid"]: r for r in side if r["sample_idx"] == 0} for side in records)
    kinds: dict[str, list[Record]] = {"A is better": [], "B is better": []}
    for uid, record in first.items():
        other = second.get(uid)
        if other is not None and record["accuracy"] != other["accuracy"]:
            kinds[f"{'A' if record['accuracy'] > other['accuracy'] else 'B'} is better"].append(
                record
            )
    return [
        _example(
            one.name,
            record,
            by_uid.get(record["uid"]),
            None,
            verdict,
            (answer_of(record), answer_of(second[record["uid"]])),
        )
        for verdict, record in _in_turn(kinds, count)
    ]


def verdict_counts(records: Iterable[Record]) -> dict[str, int]:
    """Verdict -> number of completions of it; those that do not occur are left out."""
    counts = Counter(map(verdict_of, records))
    return {verdict: counts[verdict] for verdict in KINDS if counts[verdict]}


def verdict_of(record: Mapping[str, Any]) -> str:
    """The verdict on a sample line."""
    if record["accuracy"] == 1.0:
        return "right"
    if record["finish_reason"] == FAILED:
        return "failed"
    if record["filter"].startswith("error"):
        return "scorer error"
    if not record["resps"][0][0].strip():
        return "empty"
    if record["finish_reason"] == "length":
        return "cut"
    if record["filtered_resps"][0] is None:
        return "unread"
    return "partly right" if record["accuracy"] > 0 else "wrong"


def answer_of(record: Record) -> Answer:
    """The answer of a sample line."""
    extracted = record["filtered_resps"][0]
    return Answer(
        verdict=verdict_of(record),
        text=record["resps"][0][0],
        extracted=None if extracted is None else str(extracted),
        rule=record["filter"],
        score=record["accuracy"],
        num_tokens=record["num_tokens"],
    )


def _in_turn(kinds: Mapping[str, Sequence[Record]], count: int) -> list[tuple[str, Record]]:
    longest = max(map(len, kinds.values()), default=0)
    turns = [
        (kind, same[i]) for i in range(longest) for kind, same in kinds.items() if i < len(same)
    ]
    return turns[:count]


def _example(
    task: str,
    record: Record,
    sample: Sample | None,
    category: str | None,
    verdict: str,
    answers: tuple[Answer, ...],
) -> Example:
    source = sample.source if sample else {}
    return Example(
        task=task,
        view=record["view"],
        uid=record["uid"],
        category=str(source.get(category, "")) if category else "",
        images=sample.view(record["view"]).images if sample else (),
        prompt=record["arguments"]["gen_args_0"]["arg_0"] or record["doc"]["question"],
        gold=record["target"],
        verdict=verdict,
        answers=answers,
    )
