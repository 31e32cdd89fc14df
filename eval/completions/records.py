"""Completions <-> the lines of the samples file: lm-eval's names, and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dopd_vlm.types import Sample, ViewName

from ..scorers import Score, Scorer
from .generators import FAILED, Completion
from .requests import Request, digest
from .store import Record


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of all completions."""

    unparsed: float
    empty: float
    truncated: float
    scorer_error: float
    failed: float


def to_record(request: Request, completion: Completion) -> Record:
    """The line of a completion before it is scored."""
    return {
        "key": request.key,
        "doc_id": request.doc_id,
        "uid": request.uid,
        "sample_idx": request.sample_idx,
        "arguments": {"gen_args_0": {"arg_0": completion.prompt}},
        "resps": [[completion.text]],
        "finish_reason": completion.finish_reason,
        "failure": completion.failure,
        "num_tokens": completion.num_tokens,
        "prompt_hash": request.prompt_hash,
        "image_hash": request.image_hash,
    }


def completions_of(records: Mapping[str, Record]) -> dict[str, Completion]:
    """Key -> completion of the stored lines; failed requests are left out, to be asked again."""
    return {
        key: Completion(
            text=record["resps"][0][0],
            finish_reason=record["finish_reason"],
            num_tokens=record["num_tokens"],
            prompt=record["arguments"]["gen_args_0"]["arg_0"],
        )
        for key, record in records.items()
        if record["finish_reason"] != FAILED
    }


def scored(
    request: Request, sample: Sample, completion: Completion, count: Scorer, view: ViewName
) -> Record:
    """The finished line of one completion."""
    score = _score(count, completion, sample)
    doc = {
        "question": sample.question,
        "choices": dict(sample.choices) if sample.choices else None,
        "answer_type": sample.answer_type,
    }
    return {
        **to_record(request, completion),
        "view": view,
        "doc": doc,
        "target": sample.answer,
        "filtered_resps": [score.extracted],
        "filter": score.rule,
        "metrics": ["accuracy"],
        "doc_hash": digest(doc),
        "target_hash": digest(sample.answer),
        "accuracy": score.correct,
        "parts": dict(score.parts),
    }


def shares(records: Sequence[Record]) -> Rates:
    """The rates of a benchmark's records; what failed counts neither as unparsed nor as empty."""
    answered = [r for r in records if r["finish_reason"] != FAILED]
    total = len(records)
    return Rates(
        unparsed=sum(r["filtered_resps"][0] is None for r in answered) / total,
        empty=sum(not r["resps"][0][0].strip() for r in answered) / total,
        truncated=sum(r["finish_reason"] == "length" for r in records) / total,
        scorer_error=sum(r["filter"].startswith("error") for r in records) / total,
        failed=1 - len(answered) / total,
    )


def _score(count: Scorer, completion: Completion, sample: Sample) -> Score:
    if completion.finish_reason == FAILED:
        return Score(correct=0.0, extracted=None, rule=f"failed: {completion.failure}")
    try:
        return count(completion.text, sample)
    except Exception as error:  # whatever a scorer raises costs this answer only, never the run
        return Score(correct=0.0, extracted=None, rule=f"error: {type(error).__name__}: {error}")
