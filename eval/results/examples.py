"""Which samples of an evaluation to look at: what went wrong, every kind of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dopd_vlm.types import Sample

from ..completions.generators import FAILED
from ..completions.store import Record

KINDS = {
    "failed": "no answer came from the server",
    "scorer error": "the scorer failed",
    "empty": "the answer is empty",
    "cut": "cut at the token limit",
    "unread": "no answer could be read",
    "wrong": "read, and wrong",
    "partly right": "read, and not wholly right",
}
"""Kind of a sample that is not right -> what it means; the first that applies."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One completion to look at."""

    uid: str
    kind: str
    """Of KINDS."""
    images: tuple[Image.Image, ...]
    """What the model saw."""
    prompt: str
    """As rendered, or the question where a server rendered it."""
    answer: str
    gold: str
    extracted: str | None
    rule: str
    """Which rule read the answer, or why none did."""
    score: float
    num_tokens: int


def worst(records: Iterable[Record], samples: Sequence[Sample], count: int) -> list[Example]:
    """Up to `count` completions that are not right, the kinds in turn, the lowest scores first."""
    by_uid = {sample.uid: sample for sample in samples}
    kinds: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for record in records:
        kind = kind_of(record)
        if kind is not None:
            kinds[kind].append(record)
    for found in kinds.values():
        found.sort(key=lambda r: (r["accuracy"], r["doc_id"], r["sample_idx"]))
    longest = max(map(len, kinds.values()), default=0)
    turns = [
        (kind, found[i]) for i in range(longest) for kind, found in kinds.items() if i < len(found)
    ]
    return [_example(kind, record, by_uid[record["uid"]]) for kind, record in turns[:count]]


def kind_counts(records: Iterable[Record]) -> dict[str, int]:
    """Kind -> number of completions of it; kinds that do not occur are left out."""
    counts = Counter(kind for kind in map(kind_of, records) if kind is not None)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def kind_of(record: Mapping[str, Any]) -> str | None:
    """The kind of a sample line; None when it is right."""
    if record["accuracy"] == 1.0:
        return None
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


def _example(kind: str, record: Record, sample: Sample) -> Example:
    extracted = record["filtered_resps"][0]
    return Example(
        uid=record["uid"],
        kind=kind,
        images=sample.view(record["view"]).images,
        prompt=record["arguments"]["gen_args_0"]["arg_0"] or sample.question,
        answer=record["resps"][0][0],
        gold=sample.answer,
        extracted=None if extracted is None else str(extracted),
        rule=record["filter"],
        score=record["accuracy"],
        num_tokens=record["num_tokens"],
    )
