"""Token maps: what happens to each token of a completion, as records that JSON can hold.

A probe is a sample that is looked at again and again; a token map is one completion of it at one
moment: for each token its regime, gap, confidences, loss and what the three distributions would say.
Shapes: B sequences, T completion tokens, N valid tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dopd_vlm.data_uri import thumbnail_uri
from dopd_vlm.models.encoder import collate
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.policy import Policy, output_head
from dopd_vlm.routed_loss.loss import LossOutput
from dopd_vlm.routed_loss.target_scores import TargetScores, target_scores
from dopd_vlm.routers import Limits
from dopd_vlm.routing import Counts, Thresholds
from dopd_vlm.training.completions import sample_completions
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import StepOutput, completion_text, micro_batch_loss
from dopd_vlm.training.targets import MicroBatch, batch_limits, score_targets, with_routes
from dopd_vlm.types import Regime, Rollout, Sample, ViewName

TOP = 5
"""Candidates shown of each distribution."""


def probe_record(encoded: EncodedSample) -> dict[str, Any]:
    """What a page shows of a sample: uid, answer, and of both views the prompt and the images.

    {"uid", "question", "answer", "plain": {"text", "images": [data URI], "context"}, "privileged": {...}}
    """
    sample = encoded.sample
    views: tuple[ViewName, ...] = ("plain", "privileged")
    return {
        "uid": sample.uid,
        "question": sample.question,
        "answer": sample.answer,
        **{
            view: {
                "text": encoded.prompts[view].text,
                "context": sample.view(view).context,
                "images": [thumbnail_uri(image) for image in sample.view(view).images],
            }
            for view in views
        },
    }


@torch.no_grad()
def token_maps(
    state: TrainState,
    samples: Sequence[EncodedSample],
    *,
    limits: Limits | None = None,
    score_answer: Callable[[str, Sample], float | None] | None = None,
) -> list[dict[str, Any]]:
    """One completion of each sample with all that routing knows of its tokens; changes nothing.

    Completions are sampled as in training, with a seed that does not depend on the step, so that
    maps of two moments differ by what was learnt. Runs on one process, without collectives; a
    state for a checkpoint comes from `assembly.build_state`.

    Args:
        state: models, method and settings.
        samples: probes, encoded by `state.encode_sample`.
        limits: the routing thresholds of a training batch; None takes those of these tokens.
        score_answer: adds `correct`.

    Returns:
        One record a sample, in order: `uid`, `step`, `method`, `finish_reason`, `text`, `correct`
        or None, `threshold` (`gap`, `q_self`, `q_teacher`, `of`: "batch" or "probes") or None,
        and lists with one entry a token: `tokens`; `regime` (0 LH, 1 LL, 2 HT, 3 HS, -1 an outlier
        that is left out; None for a router without the paper's regimes); `loss` (unweighted
        divergence, nats); `weight` (of the route); `q_plain`, `q_self`, `q_teacher` (probability
        of the token under the student's plain and privileged view and the teacher); `gap` =
        |log q_T - log q_S| (nats; None unless the teacher scores the privileged view); and `top`:
        {"student", "self_target", "teacher"} -> a list of [token, probability] of the
        TOP best. Entries of a model that the method does not have are None.
    """
    sampling = state.config.rollout.sampling(num_generations=1, seed=state.config.seed)
    rollouts = sample_completions(state, [s.prompts["plain"] for s in samples], sampling)
    micro_batches = score_targets(state, samples, rollouts)
    origin = "probes" if limits is None else "batch"
    limits = limits or batch_limits(state, micro_batches, is_alone=True)
    micro_batches = with_routes(state, micro_batches, limits)
    counts = Counts(
        num_sequences=len(rollouts), num_tokens=sum(len(r.completion_ids) for r in rollouts)
    )
    threshold = {**limits.record(), "of": origin} if isinstance(limits, Thresholds) else None
    records: dict[int, dict[str, Any]] = {}
    for micro in micro_batches:
        columns = _columns(state, micro, micro_batch_loss(state, micro, limits, counts))
        for rollout, sample, column in zip(micro.rollouts, micro.samples, columns, strict=True):
            text = completion_text(state.student, rollout)
            records[id(rollout)] = {
                "uid": rollout.uid,
                "step": state.step,
                "method": state.method.name,
                "finish_reason": rollout.finish_reason,
                "text": text,
                "correct": score_answer(text, sample.sample) if score_answer else None,
                "threshold": threshold,
                **column,
            }
    return [records[id(rollout)] for rollout in rollouts]


def _columns(state: TrainState, micro: MicroBatch, loss: LossOutput) -> list[dict[str, Any]]:
    """One dict of per-token lists for each sequence."""
    scores = {
        "student": _view_scores(state, state.student, "plain", micro),
        "self_target": _view_scores(state, state.self_target or state.student, "privileged", micro),
        "teacher": _view_scores(state, state.teacher, state.method.teacher_view, micro),
    }
    ends = micro.batch.mask.sum(-1).cumsum(0).tolist()
    return [
        _column(state, row, rollout, slice(end - len(rollout.completion_ids), end), loss, scores)
        for row, (rollout, end) in enumerate(zip(micro.rollouts, ends, strict=True))
    ]


def _column(
    state: TrainState,
    row: int,
    rollout: Rollout,
    rows: slice,
    loss: LossOutput,
    scores: dict[str, TargetScores | None],
) -> dict[str, Any]:
    length = len(rollout.completion_ids)
    logp = {
        name: None if view_scores is None else view_scores.logp[row, :length].double()
        for name, view_scores in scores.items()
    }
    teacher, self_target = logp["teacher"], logp["self_target"]
    comparable = (
        teacher is not None
        and self_target is not None
        and state.method.teacher_view == "privileged"
    )
    regime = loss.regime[row, :length].tolist()
    weights = [state.method.routes[Regime(kind)].weight if kind >= 0 else 0.0 for kind in regime]
    return {
        "tokens": token_texts(state.student, rollout.completion_ids),
        "regime": regime if state.method.by_gap else None,
        "loss": rounded(loss.per_token[row, :length]),
        "weight": weights,
        "gap": rounded((teacher - self_target).abs()) if comparable else None,  # type: ignore[operator]
        "q_plain": _probabilities(logp["student"]),
        "q_self": _probabilities(self_target),
        "q_teacher": _probabilities(teacher),
        "top": {name: _top(state, view_scores, rows) for name, view_scores in scores.items()},
    }


def _view_scores(
    state: TrainState, policy: Policy | None, view: ViewName, micro: MicroBatch
) -> TargetScores | None:
    """The policy's scores of the sampled tokens in that view, at temperature 1, with its TOP best."""
    if policy is None:
        return None
    batch = collate(
        [sample.prompts[view] for sample in micro.samples],
        [rollout.completion_ids for rollout in micro.rollouts],
        pad_id=policy.pad_id,
    ).to(policy.device)
    with state.accelerator.autocast():
        hidden = completion_hidden(policy, batch)
    return target_scores(
        hidden,
        output_head(policy),
        batch.completion_ids,
        batch.mask,
        top_k=TOP,
        vocab_size=state.vocab_size,
    )


def _top(state: TrainState, scores: TargetScores | None, rows: slice) -> Any:
    """For each token the TOP best [token, probability] pairs."""
    if scores is None or scores.top_ids is None or scores.top_logp is None:
        return None
    width = scores.top_ids.shape[1]  # top_logp has one more column: all other tokens together
    names = token_texts(state.student, scores.top_ids[rows].flatten().long().cpu())
    shares = _probabilities(scores.top_logp[rows, :width].flatten()) or []
    pairs = [[name, share] for name, share in zip(names, shares, strict=True)]
    return [pairs[start : start + width] for start in range(0, len(pairs), width)]


def decoded_samples(state: TrainState, output: StepOutput, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` completions as token strings, with regime, scores and loss of each token."""
    records = []
    for micro, loss in zip(output.micro_batches, output.losses, strict=True):
        for row, rollout in enumerate(micro.rollouts):
            if len(records) == limit:
                return records
            length = len(rollout.completion_ids)
            record = {
                "uid": rollout.uid,
                "finish_reason": rollout.finish_reason,
                "tokens": token_texts(state.student, rollout.completion_ids),
                "regime": loss.regime[row, :length].tolist(),
                "loss": rounded(loss.per_token[row, :length]),
            }
            if micro.teacher is not None:
                record["teacher_logp"] = rounded(micro.teacher.scores.logp[row, :length])
            if micro.self_target is not None:
                record["self_target_logp"] = rounded(micro.self_target.scores.logp[row, :length])
            records.append(record)
    return records


def token_texts(policy: Policy, ids: Tensor) -> list[str]:
    """Each id as text on its own, special tokens included."""
    return policy.tokenizer.batch_decode(ids[:, None], clean_up_tokenization_spaces=False)


def _probabilities(logp: Tensor | None) -> list[float] | None:
    return None if logp is None else rounded(logp.double().exp())


def rounded(values: Tensor) -> list[float]:
    """Numbers for a log: five significant digits."""
    return [float(f"{value:.5g}") for value in values.double().tolist()]


def token_map_text(record: Mapping[str, Any]) -> str:
    """The map as a line of Markdown, for what shows no HTML: each run of a regime with its name."""
    runs: list[tuple[str, list[str]]] = []
    for place, text in enumerate(record["tokens"]):
        kind = record["regime"][place] if record["regime"] else -1
        name = Regime(kind).name if kind >= 0 else "token"
        if not runs or runs[-1][0] != name:
            runs.append((name, []))
        runs[-1][1].append(text.replace("`", "'").replace("\n", "\\n"))
    body = " ".join(f"**{name}** `{' '.join(texts)}`" for name, texts in runs)
    return f"*{record['uid']}*, step {record['step']}: {body}"
