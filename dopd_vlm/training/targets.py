"""The targets' side of a step: micro-batches with what the targets say; limits and routes of all of them.

Each (policy, view) of the method runs once over the completions, whatever number of targets it is a term of.

Shapes: B sequences, T completion tokens, H hidden size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from dopd_vlm import routers
from dopd_vlm.distributed import gather_rows
from dopd_vlm.models.encoder import Batch, collate
from dopd_vlm.models.forward import can_share, completion_hidden
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.models.policy import Policy
from dopd_vlm.routed_loss.head import Head, compose_head, compose_hidden
from dopd_vlm.routed_loss.softmax import Softmax
from dopd_vlm.routed_loss.target_scores import TargetScores, entropies, target_scores
from dopd_vlm.routers import Limits, Pair, Routing, Scores
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
    scores: Scores
    """What the method's router asks for, of these sequences."""
    routing: Routing | None = None
    """What the router says of them; see `with_routes`."""

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
        targets, scores = _scored_targets(state, heads, scored_rows, features)
        for first in range(0, len(scored_rows), optim.micro_batch_size):
            part = slice(first, first + optim.micro_batch_size)
            micro_batches.append(_micro_batch(state, scored_rows[part], part, targets, scores))
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
    scores: Scores,
) -> MicroBatch:
    # Checkpointed layers recompute without a cache: each completion then brings its own prompt.
    share = not state.config.optim.gradient_checkpointing and can_share(state.student)
    batch = _batch(rows, state.method.student_view, state.student.pad_id, share=share)
    return MicroBatch(
        samples=[sample for sample, _ in rows],
        rollouts=[rollout for _, rollout in rows],
        batch=batch,
        targets={name: target.rows(part, batch.mask) for name, target in targets.items()},
        scores=_part_of(scores, part, batch.mask),
    )


def _batch(rows: Sequence[Row], view: ViewName, pad_id: int, *, share: bool) -> Batch:
    return collate(
        [sample.prompts[view] for sample, _ in rows],
        [rollout.completion_ids for _, rollout in rows],
        pad_id=pad_id,
        share=share,
    )


def _policy(state: TrainState, name: str) -> Policy:
    policy = {
        "teacher": state.teacher,
        "self_target": state.self_target,
        "student": state.student,
        "base": state.base,
    }[name]
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
) -> tuple[dict[str, ScoredTarget], Scores]:
    """The method's targets on these rows, and the router's scores; each (policy, view) runs once."""
    runs: dict[Pair, tuple[Tensor, Batch]] = {}

    def run(pair: Pair) -> tuple[Tensor, Batch]:
        if pair not in runs:
            runs[pair] = _run(state, pair[0], pair[1], rows, features)
        return runs[pair]

    targets = {}
    for name, head in heads.items():
        terms = state.method.terms(name)
        pairs = [run((term.policy, term.view)) for term in terms]
        composed = compose_hidden(
            [term.coefficient for term in terms],
            [hidden for hidden, _ in pairs],
            [state.head(_policy(state, term.policy)) for term in terms],
        )
        targets[name] = _scored(state, name, composed, head, pairs[0][1])
    return targets, _router_scores(state, rows, targets, run)


def _router_scores(
    state: TrainState,
    rows: Sequence[Row],
    targets: Mapping[str, ScoredTarget],
    run: Callable[[Pair], tuple[Tensor, Batch]],
) -> Scores:
    """What the router asks for; the log-probs of a pair that is a target come from the target's pass 1."""
    router, method = routers.router(state.method.router), state.method
    known = {
        (term.policy, term.view): name
        for name in targets
        for term in method.terms(name)
        if method.terms(name) == (replace(term, coefficient=1.0),)
    }
    settings = state.config.method
    softmax = Softmax(width=state.vocab_size, chunk_size=settings.chunk_size)

    def logp(pair: Pair) -> Tensor:
        if pair in known:
            return targets[known[pair]].scores.logp
        hidden, batch = run(pair)
        head = state.head(_policy(state, pair[0]))
        return target_scores(
            hidden,
            head,
            batch.completion_ids,
            batch.mask,
            vocab_size=softmax.width,
            chunk_size=softmax.chunk_size,
        ).logp

    def entropy(pair: Pair) -> Tensor:
        hidden, batch = run(pair)
        return entropies(hidden, state.head(_policy(state, pair[0])), batch.mask, softmax)

    numbers: dict[int, int] = {}
    prompts = [numbers.setdefault(id(sample), len(numbers)) for sample, _ in rows]
    lengths = torch.tensor([len(rollout.completion_ids) for _, rollout in rows])
    return Scores(
        logp={pair: logp(pair).double() for pair in router.pairs},
        entropy={pair: entropy(pair).double() for pair in router.entropies},
        mask=torch.arange(int(lengths.max()))[None] < lengths[:, None],
        prompts=torch.tensor(prompts),
    )


def _part_of(scores: Scores, part: slice, mask: Tensor) -> Scores:
    """Sequences `part` of the scored ones, whose own mask is `mask`."""
    width = mask.shape[1]
    return Scores(
        logp={pair: value[part, :width] for pair, value in scores.logp.items()},
        entropy={pair: value[part, :width] for pair, value in scores.entropy.items()},
        mask=mask,
        prompts=scores.prompts[part],
    )


@torch.no_grad()
def _run(
    state: TrainState,
    name: str,
    view: ViewName,
    rows: Sequence[Row],
    features: StepFeatures | None,
) -> tuple[Tensor, Batch]:
    policy = _policy(state, name)
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


def batch_limits(
    state: TrainState, micro_batches: Sequence[MicroBatch], *, is_alone: bool = False
) -> Limits | None:
    """The router's limits over every valid token of the optimizer batch, of all processes; None where it has none.

    `is_alone` takes the tokens of this process only, without a word to the others.
    """
    router, options = routers.router(state.method.router), state.config.method
    if router.limits is None:
        return None
    num_scores = len(router.pairs) + len(router.entropies)
    device = state.accelerator.device
    parts = [torch.empty(0, num_scores, dtype=torch.float64, device=device)]
    for micro in micro_batches:
        scores = [*micro.scores.logp.values(), *micro.scores.entropy.values()]
        parts.append(
            torch.stack([value[micro.scores.mask.to(value.device)] for value in scores], -1)
        )
    columns = torch.cat(parts)
    if options.threshold_scope == "batch" and not is_alone:
        columns = gather_rows(state.accelerator, columns)
    column = iter(columns.cpu().T[:, None])
    tokens = Scores(
        logp={pair: next(column) for pair in router.pairs},
        entropy={pair: next(column) for pair in router.entropies},
        mask=torch.ones(1, len(columns), dtype=torch.bool),
        prompts=torch.zeros(1, dtype=torch.int64),
    )
    return router.limits(tokens, options)


def with_routes(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    limits: Limits | None,
    rewards: Mapping[int, float] | None = None,
) -> list[MicroBatch]:
    """The micro-batches with their routing, decided over all completions of this process at once.

    Siblings of a prompt may lie in several micro-batches. `rewards`: id of a rollout -> its reward.
    """
    router = routers.router(state.method.router)
    device = state.student.device
    width = max((micro.batch.mask.shape[1] for micro in micro_batches), default=0)

    def joined(parts: Sequence[Tensor]) -> Tensor:
        padded = [functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.cat([part.to(device) for part in padded])

    if not micro_batches:
        return []
    everything = [micro.scores for micro in micro_batches]
    rollouts = [rollout for micro in micro_batches for rollout in micro.rollouts]
    values = [(rewards or {}).get(id(rollout), math.nan) for rollout in rollouts]
    scores = Scores(
        logp={pair: joined([one.logp[pair] for one in everything]) for pair in router.pairs},
        entropy={
            pair: joined([one.entropy[pair] for one in everything]) for pair in router.entropies
        },
        mask=joined([one.mask for one in everything]),
        prompts=torch.cat([one.prompts for one in everything]).to(device),
        rewards=torch.tensor(values, dtype=torch.float64, device=device)
        if router.needs_reward
        else None,
    )
    whole = router.route(scores, limits)
    start, routed = 0, []
    for micro in micro_batches:
        num_rows, num_tokens = micro.batch.mask.shape
        part = slice(start, start + num_rows), slice(0, num_tokens)
        weight = None if whole.weight is None else whole.weight[part]
        routed.append(replace(micro, routing=Routing(route=whole.route[part], weight=weight)))
        start += num_rows
    return routed
