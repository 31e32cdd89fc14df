"""The targets' side of a step: micro-batches with what the targets say, and the thresholds.

Each (policy, view) of the method runs once over the completions, whatever number of targets it is a term of.

Shapes: B sequences, T completion tokens, H hidden size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dopd_vlm.distributed import gather_rows
from dopd_vlm.models.encoder import Batch, collate
from dopd_vlm.models.forward import can_share, completion_hidden
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.models.policy import Policy
from dopd_vlm.routed_loss.head import Head, compose_head, compose_hidden
from dopd_vlm.routed_loss.target_scores import TargetScores, target_scores
from dopd_vlm.routing import Thresholds, thresholds
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.types import Rollout, Term, ViewName


@dataclass(frozen=True, kw_only=True)
class ScoredTarget:
    """One frozen distribution: hidden states [B, T, H], head, and pass-1 scores on the sampled tokens."""

    hidden: Tensor
    head: Head
    mask: Tensor
    scores: TargetScores

    def rows(self, part: slice, mask: Tensor) -> "ScoredTarget":
        """Sequences `part` of the scored ones, whose own mask is `mask`.

        The supports hold valid tokens only, in row order, so that a range of sequences is a range of them.
        """
        width, scores = mask.shape[1], self.scores
        first = int(self.mask[: part.start].sum())
        tokens = slice(first, first + int(mask.sum()))
        return ScoredTarget(
            hidden=self.hidden[part, :width],
            head=self.head,
            mask=mask,
            scores=replace(
                scores,
                logp=scores.logp[part, :width],
                loss_logp=scores.loss_logp[part, :width],
                top_ids=None if scores.top_ids is None else scores.top_ids[tokens],
                top_logp=None if scores.top_logp is None else scores.top_logp[tokens],
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences of one forward and backward, with what the method's targets said about them."""

    samples: Sequence[EncodedSample]
    rollouts: Sequence[Rollout]
    batch: Batch
    targets: Mapping[str, ScoredTarget]
    """By name; those of `Method.used_targets`."""

    @property
    def teacher(self) -> ScoredTarget | None:
        """The teacher alone, under its own view; None where the method does not use it."""
        return self.targets.get("teacher")

    @property
    def self_target(self) -> ScoredTarget | None:
        """The self-target alone, as `teacher`."""
        return self.targets.get("self_target")


Row = tuple[EncodedSample, Rollout]


def score_targets(
    state: TrainState,
    samples: Sequence[EncodedSample],
    rollouts: Sequence[Rollout],
    features: StepFeatures | None = None,
) -> list[MicroBatch]:
    """Micro-batches with the targets' hidden states and scores, without gradient."""
    optim, method = state.config.optim, state.method
    heads = {name: _head(state, method.terms(name)) for name in method.used_targets}
    per_sample = len(rollouts) // max(1, len(samples))
    rows = [(samples[i // per_sample], rollout) for i, rollout in enumerate(rollouts)]
    rows = arranged(rows, optim.micro_batch_size, method.student_view)
    micro_batches = []
    for start in range(0, len(rows), optim.score_batch_size):
        scored_rows = rows[start : start + optim.score_batch_size]
        targets = _scored_targets(state, heads, scored_rows, features)
        for first in range(0, len(scored_rows), optim.micro_batch_size):
            part = slice(first, first + optim.micro_batch_size)
            micro_batches.append(_micro_batch(state, scored_rows[part], part, targets))
    return micro_batches


def arranged(rows: Sequence[Row], micro_batch_size: int, view: ViewName) -> list[Row]:
    """The rows in the order that costs the student fewer tokens, padding and repeated prompts counted.

    Either completions of one prompt together, so that a micro-batch encodes it once, or completions
    of like length together. The order never changes a result.
    """
    longest: dict[int, int] = {}
    for sample, rollout in rows:
        length = len(rollout.completion_ids)
        longest[id(sample)] = max(length, longest.get(id(sample), 0))
    by_length = sorted(rows, key=lambda row: -len(row[1].completion_ids))
    # A stable sort by two keys keeps completions of one prompt together, each prompt's by length.
    by_prompt = sorted(by_length, key=lambda row: (-longest[id(row[0])], row[0].sample.uid))

    def num_tokens(order: Sequence[Row]) -> int:
        total = 0
        for start in range(0, len(order), micro_batch_size):
            part = order[start : start + micro_batch_size]
            prompts = {id(s): len(s.prompts[view].input_ids) for s, _ in part}
            width = max(len(r.completion_ids) for _, r in part)
            total += len(prompts) * max(prompts.values()) + len(part) * width
        return total

    return min(by_prompt, by_length, key=num_tokens)


def _micro_batch(
    state: TrainState,
    rows: Sequence[Row],
    part: slice,
    targets: Mapping[str, ScoredTarget],
) -> MicroBatch:
    # Checkpointed layers recompute without a cache: each completion then brings its own prompt.
    share = not state.config.optim.gradient_checkpointing and can_share(state.student)
    batch = _batch(rows, state.method.student_view, state.student.pad_id, share=share)
    return MicroBatch(
        samples=[sample for sample, _ in rows],
        rollouts=[rollout for _, rollout in rows],
        batch=batch,
        targets={name: target.rows(part, batch.mask) for name, target in targets.items()},
    )


def _batch(rows: Sequence[Row], view: ViewName, pad_id: int, *, share: bool) -> Batch:
    return collate(
        [sample.prompts[view] for sample, _ in rows],
        [rollout.completion_ids for _, rollout in rows],
        pad_id=pad_id,
        share=share,
    )


def _policy(state: TrainState, name: str) -> Policy:
    policy = {"teacher": state.teacher, "self_target": state.self_target}[name]
    assert policy is not None, f"the method needs the {name}, which was not loaded"
    return policy


def _head(state: TrainState, terms: Sequence[Term]) -> Head:
    heads = [state.head(_policy(state, term.policy)) for term in terms]
    return compose_head([term.coefficient for term in terms], heads)


def _scored_targets(
    state: TrainState,
    heads: Mapping[str, Head],
    rows: Sequence[Row],
    features: StepFeatures | None,
) -> dict[str, ScoredTarget]:
    """The method's targets on these rows; each (policy, view) runs when the first target needs it."""
    runs: dict[tuple[str, ViewName], tuple[Tensor, Batch]] = {}
    targets = {}
    for name, head in heads.items():
        terms = state.method.terms(name)
        for term in terms:
            if (term.policy, term.view) not in runs:
                policy = _policy(state, term.policy)
                runs[term.policy, term.view] = _run(state, policy, term.view, rows, features)
        pairs = [runs[term.policy, term.view] for term in terms]
        composed = compose_hidden(
            [term.coefficient for term in terms],
            [hidden for hidden, _ in pairs],
            [state.head(_policy(state, term.policy)) for term in terms],
        )
        targets[name] = _scored(state, name, composed, head, pairs[0][1])
    return targets


@torch.no_grad()
def _run(
    state: TrainState,
    policy: Policy,
    view: ViewName,
    rows: Sequence[Row],
    features: StepFeatures | None,
) -> tuple[Tensor, Batch]:
    batch = _batch(rows, view, state.student.pad_id, share=can_share(policy)).to(policy.device)
    with state.accelerator.autocast():
        return completion_hidden(policy, batch, features), batch


def _scored(state: TrainState, name: str, hidden: Tensor, head: Head, batch: Batch) -> ScoredTarget:
    method = state.config.method
    scores = target_scores(
        hidden,
        head,
        batch.completion_ids,
        batch.mask,
        top_k=state.method.top_k(name),
        temperature=method.temperature,
        vocab_size=state.vocab_size,
        chunk_size=method.chunk_size,
    )
    return ScoredTarget(hidden=hidden, head=head, mask=batch.mask.cpu(), scores=scores)


def batch_thresholds(
    state: TrainState, micro_batches: Sequence[MicroBatch], *, is_alone: bool = False
) -> Thresholds | None:
    """Thresholds over every valid token of the optimizer batch, of all processes; None without a gap.

    `is_alone` takes the tokens of this process only, without a word to the others.
    """
    if not state.method.routes_by_gap:
        return None
    pairs = [torch.empty(0, 2, dtype=torch.float64, device=state.accelerator.device)]
    for micro in micro_batches:
        assert micro.teacher is not None and micro.self_target is not None
        mask = micro.batch.mask.to(micro.teacher.scores.logp.device)
        both = [micro.teacher.scores.logp[mask], micro.self_target.scores.logp[mask]]
        pairs.append(torch.stack(both, -1).double())
    options, scores = state.config.method, torch.cat(pairs)
    if options.threshold_scope == "batch" and not is_alone:
        scores = gather_rows(state.accelerator, scores)
    if len(scores) == 0:  # a process without rows routes nothing
        return Thresholds(gap=math.inf, q_self=math.inf, q_teacher=math.inf)
    limits = thresholds(
        scores[:, 0].cpu(),
        scores[:, 1].cpu(),
        torch.ones(len(scores), dtype=torch.bool),
        options.trim,
        statistic=options.statistic,
        trim_of=options.trim_of,
        train_outliers=options.train_outliers,
    )
    gap = limits.gap if options.gap_threshold is None else options.gap_threshold
    return replace(limits, gap=max(gap, options.gap_floor or 0.0))
