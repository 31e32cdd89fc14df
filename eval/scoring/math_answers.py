"""Whether a completion's mathematical answer equals the gold one, by math-verify in a worker."""

from dopd_vlm.types import Sample

from .answers import Score, final_answer, unread
from .math import MathWorker, shared_worker


def score_math(text: str, sample: Sample, *, worker: MathWorker | None = None) -> Score:
    """math-verify's judgement (gold first; it is not symmetric), made in a process with a timeout.

    A timeout or crash is unparsed with that rule, never a plain wrong answer.
    """
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    if not answer.strip():
        return unread()
    if answer.strip() == sample.answer.strip():
        return Score(correct=1.0, extracted=answer.strip(), rule="exact")
    verdict = (worker or shared_worker()).compare(answer, sample.answer)
    if "failure" in verdict:
        return unread(verdict["failure"])
    rule = "math_verify" if verdict["extracted"] is not None else "unparsed"
    return Score(correct=float(verdict["correct"]), extracted=verdict["extracted"], rule=rule)
