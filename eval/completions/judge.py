"""A model that judges answers, for benchmarks whose official protocol has one: rules first, it second.

The rules' verdict holds wherever they read an answer; the judge decides where they read none. It is
asked about every answer, so that the two can be compared. The prompts are this project's own wording of
the official protocols: `extract` has the judge name the answer that a text gives, which the task's scorer
then compares with gold (MathVista, MathVision, DynaMath, LogicVista); `verdict` has it compare the text
with gold itself (HallusionBench, AMO-Bench). The extracting judge never sees the gold answer.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from dopd_vlm.endpoint import Endpoint
from dopd_vlm.types import Sample, Sampling, ViewName

from ..scorers import Scorer
from ..scoring.answers import final_answer
from .complete import Source, complete_all
from .endpoint import endpoint_ask, endpoint_name
from .generators import FAILED
from .requests import Request, digest
from .store import Record, SampleStore

EXTRACT = """\
Below are a question and a model's response. Say which final answer the response gives. Do not solve the \
question and do not correct the response. If it gives no final answer, or refuses, write none.
Give an option by its letter (several without anything between them), and a number without its unit.

Examples:
Response: The number missing in the sequence is 14.
Extracted answer: 14
Response: So (B) 8/11 of the shape is blue. (A) would count one part too few.
Extracted answer: B
Response: The image does not show this.
Extracted answer: none

Question: {question}
Response: {response}
Extracted answer:"""
VERDICT = """\
Below are a question, its right answer and a model's response. Judge whether the final answer of the response \
means the same as the right answer. How it was found does not matter; a response without a clear final answer \
is incorrect.

Question: {question}
Right answer: {gold}
Response: {response}

End with one line, "Judgement: correct" or "Judgement: incorrect"."""
PROMPTS = {"extract": EXTRACT, "verdict": VERDICT}
GREEDY = Sampling(max_completion_length=2048)


class Judge:
    """An endpoint's model as judge of one task in one view; what it said is kept and not asked again."""

    def __init__(
        self, endpoint: Endpoint, protocol: str, count: Scorer, store: SampleStore | None
    ) -> None:
        self.name = endpoint_name(endpoint)
        self._protocol, self._count, self._store = protocol, count, store
        self._source = Source(
            name=self.name, fingerprint=digest(self.name), ask=endpoint_ask(endpoint)
        )

    def judged(
        self,
        records: Sequence[Record],
        samples: Sequence[Sample],
        progress: Progress | None = None,
        title: str = "judge",
    ) -> list[Record]:
        """The records with the judge's verdicts, which decide where the rules read nothing."""
        asked = {
            index: self._request(record, samples[record["doc_id"]])
            for index, record in enumerate(records)
            if record["finish_reason"] != FAILED and record["resps"][0][0].strip()
        }
        replies = complete_all(
            self._source,
            list({one.key: one for one in asked.values()}.values()),
            GREEDY,
            store=self._store,
            progress=progress,
            title=title,
        )
        return [
            self._decided(
                record, samples[record["doc_id"]], asked[index], replies[asked[index].key].text
            )
            if index in asked
            else record
            for index, record in enumerate(records)
        ]

    def _request(self, record: Record, sample: Sample) -> Request:
        options = "\n".join(f"({letter}) {text}" for letter, text in (sample.choices or {}).items())
        response = record["resps"][0][0]
        fields = {
            "question": f"{sample.question}\n{options}".strip(),
            "response": final_answer(response) or response,
            "gold": sample.answer,
        }
        prompt = re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], PROMPTS[self._protocol])
        return Request(
            doc_id=record["doc_id"],
            uid=record["uid"],
            sample_idx=record["sample_idx"],
            messages=[{"role": "user", "content": prompt}],
            prompt_hash=digest(prompt),
            image_hash=digest([]),
            key=digest([self.name, prompt]),
        )

    def _decided(self, record: Record, sample: Sample, request: Request, reply: str) -> Record:
        correct, extracted = self._verdict(reply, sample)
        verdict_record = {
            "model": self.name,
            "prompt": request.messages[0]["content"],
            "reply": reply,
            "extracted": extracted,
            "verdict": correct,
            "rules": record["accuracy"] if _rules_read(record) else None,
        }
        if _rules_read(record) or correct is None:
            return {**record, "judge": verdict_record}
        decided = {"accuracy": correct, "filtered_resps": [extracted], "filter": "judge"}
        return {**record, **decided, "judge": verdict_record}

    def _verdict(self, reply: str, sample: Sample) -> tuple[float | None, str | None]:
        """(score, what was read); None for a reply that is neither an answer nor a judgement."""
        text = (final_answer(reply) or "").strip()
        if self._protocol == "verdict":
            words = re.findall(r"judge?ment:\W*(correct|incorrect)\b", text.lower())
            return (float(words[-1] == "correct"), words[-1]) if words else (None, None)
        answer = text.rpartition("Extracted answer:")[2].strip()
        if answer.lower().strip(".") == "none":
            return 0.0, None
        score = self._count(answer, sample) if answer else None
        if score is None or score.extracted is None:
            return None, None
        return score.correct, answer


def judge_summary(records: Sequence[Record], name: str) -> dict[str, Any]:
    """How often the judge was asked, could not be read and decided, and agreed with the rules.

    `agreement` is the share of answers that both could read on which their verdicts are the same; None
    without any.
    """
    asked = [record["judge"] for record in records if "judge" in record]
    both = [one for one in asked if one["verdict"] is not None and one["rules"] is not None]
    same = sum((one["verdict"] >= 0.5) == (one["rules"] >= 0.5) for one in both)
    return {
        "model": name,
        "asked": len(asked),
        "unread": sum(one["verdict"] is None for one in asked),
        "decided": sum(record["filter"] == "judge" for record in records),
        "agreement": same / len(both) if both else None,
        "compared": len(both),
    }


def judge_store(out: Path | None, task: str, view: ViewName, rank: int) -> SampleStore | None:
    """Where a task's judgements are kept."""
    return SampleStore(out, f"judge_{task}", view, rank) if out else None


def _rules_read(record: Mapping[str, Any]) -> bool:
    return record["filtered_resps"][0] is not None and not record["filter"].startswith("error")
