"""What training will do with each row, said before it begins: rows, answers and words are tried.

A row is bad where it makes no sample, or where the student's tokenizer would misread its text or
runs out of context. A row whose answer no scorer reads trains, and is left out of the accuracy.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import track

from dopd_vlm.config import ModelConfig
from dopd_vlm.prompts import PromptTemplate, build_prompts
from dopd_vlm.scripts.wiring.samples import LISTED, LazySamples, answer_problem
from dopd_vlm.types import Sample

MUCH = 0.01
"""Share of unknown words from which a column is worth a warning."""


@dataclass(kw_only=True)
class RowCheck:
    """What was found in the rows that were tried."""

    num_good: int = 0
    problems: list[str] = field(default_factory=list)
    """Why each bad row is one."""
    unscorable: list[str] = field(default_factory=list)
    """Why the answer of a good row cannot be scored."""
    unknown: Mapping[str, float] = field(default_factory=dict)
    """Share of each column's tokens that the student does not know; columns without any are left out."""
    first: Sample | None = None
    """The first good one."""


class Reader:
    """The student's tokenizer, and what it makes of samples. No weights are loaded."""

    def __init__(
        self, tokenizer: Any, path: str, context: int | None, template: PromptTemplate
    ) -> None:
        self._tokenizer, self._path, self._context = tokenizer, path, context
        self._template = template
        self._tokens: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def problem(self, sample: Sample) -> str | None:
        """Why the model cannot take the sample, as training will say it, or None. Counts its words."""
        from dopd_vlm.models.encoder import check_texts

        prompts = build_prompts(sample, self._template)
        for messages in (prompts.plain, prompts.privileged):
            try:
                check_texts(self._tokenizer, messages, sample.uid, self._path)
            except ValueError as error:
                return f"{error}{sample.place}"
            length = sum(len(self._ids(text)) for text in _texts(messages))
            if self._context is not None and length > self._context:
                return (
                    f"sample {sample.uid!r}: a prompt of at least {length} tokens, the context of "
                    f"{self._path!r} has {self._context}{sample.place}"
                )
        self._count(sample)
        return None

    def unknown(self) -> dict[str, float]:
        """Share of unknown tokens of each column that has some."""
        return {name: count / self._tokens[name] for name, count in self._unknown.items() if count}

    def _count(self, sample: Sample) -> None:
        for name, text in (
            ("question", sample.question),
            ("options", "\n".join((sample.choices or {}).values())),
            ("system", sample.system or ""),
            ("answer", sample.answer),
            ("privileged text", sample.privileged.context),
        ):
            ids = self._ids(text.replace("<image>", " "))
            self._tokens[name] += len(ids)
            if self._tokenizer.unk_token_id is not None:
                self._unknown[name] += ids.count(self._tokenizer.unk_token_id)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def load_reader(model: ModelConfig, template: PromptTemplate) -> Reader | None:
    """The reader of a model whose tokenizer is here; None where it cannot be had."""
    from transformers import AutoConfig, AutoTokenizer

    # Only local files: a look ahead waits for no download.
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, **options)
        text = AutoConfig.from_pretrained(model.path, **options).get_text_config().to_dict()
    except (OSError, ValueError, KeyError):
        return None
    return Reader(tokenizer, model.path, text.get("max_position_embeddings"), template)


def check_rows(
    samples: LazySamples, limit: int, console: Console, reader: Reader | None = None
) -> RowCheck:
    """Tries the first `limit` rows, under a progress bar; their samples are held for training."""
    check = RowCheck()
    count = min(limit, len(samples))
    for index in track(range(count), "checking rows", console=console, transient=True):
        try:
            sample = samples[index]
        except ValueError as error:
            check.problems.append(str(error))
            continue
        problem = reader.problem(sample) if reader else None
        if problem:
            check.problems.append(problem)
            continue
        samples.hold(index, sample)
        check.num_good += 1
        check.first = check.first or sample
        unscorable = answer_problem(sample)
        if unscorable:
            check.unscorable.append(unscorable)
    check.unknown = reader.unknown() if reader else {}
    return check


def record(check: RowCheck, is_read: bool, left_out: Mapping[str, int]) -> dict[str, Any]:
    """What a run keeps of the check, as `report.run_page.row_facts` reads it.

    Args:
        is_read: whether the student's tokenizer was there to look words up.
        left_out: task -> its rows that the evaluation does not count.
    """
    return {
        "good": check.num_good,
        "bad": len(check.problems),
        "unscorable": len(check.unscorable),
        "unknown": dict(check.unknown) if is_read else None,
        "left_out": dict(left_out),
    }


def notes(check: RowCheck, model: str) -> Iterator[str]:
    """Lines for the user: rows left out, answers that cannot count, words that the model cannot read."""
    yield from list_reasons("row(s) cannot be used", check.problems)
    yield from list_reasons(
        "answer(s) cannot be scored: these rows train and are left out of the accuracy",
        check.unscorable,
    )
    shares = unknown_words(check.unknown)
    if any(share >= MUCH for share in check.unknown.values()):
        yield f"words that {model} does not know: {shares}; it reads each of them as the same one"


def unknown_words(shares: Mapping[str, float]) -> str:
    """`question 55%, answer 12%`."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def list_reasons(what: str, reasons: Sequence[str]) -> Iterator[str]:
    """A count, and the first reasons."""
    if not reasons:
        return
    yield f"{len(reasons)} {what}"
    yield from (f"  {reason}" for reason in reasons[:LISTED])
    if len(reasons) > LISTED:
        yield f"  and {len(reasons) - LISTED} more"


def _texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for turn in messages:
        blocks = turn["content"]
        yield from [blocks] if isinstance(blocks, str) else [b.get("text", "") for b in blocks]
