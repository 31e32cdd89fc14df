"""The routed distillation loss from hidden states, in memory that does not grow with the tokens.

Pass 1 (target_scores.py) scores the targets; routing.py turns the scores into one route and one
weight per token (plan.py); pass 2 (chunked.py) takes each route's rows through the head in
chunks and computes value and gradients there and then. No [N, V] tensor exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dopd_vlm.methods import Method
from dopd_vlm.methods import method as method_of
from dopd_vlm.routed_loss.chunked import routed_sum
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.plan import (
    Student,
    Target,
    Tokens,
    complete,
    make_plan,
    routing_of,
    scored,
)
from dopd_vlm.routed_loss.softmax import Softmax
from dopd_vlm.routed_loss.target_scores import TargetScores, check_inputs, target_scores
from dopd_vlm.routers import Limits, Routing
from dopd_vlm.routing import Counts, privilege_advantage_gap, token_weights
from dopd_vlm.types import Regime

__all__ = [
    "Head",
    "LossOutput",
    "Student",
    "Target",
    "TargetScores",
    "routed_loss",
    "target_scores",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutput:
    """The loss of one micro-batch and what the log wants to know of it."""

    loss: Tensor
    """Scalar sum of weight x divergence, with gradient; sums over micro-batches and ranks."""
    per_token: Tensor
    """[B, T] unweighted divergence, nats, detached; 0 where masked or dropped by weight 0."""
    regime: Tensor
    """int64 [B, T], -1 where masked; all HT where the router is `uniform`."""
    metrics: dict[str, Tensor]
    """Detached float64 sums: add them over micro-batches and ranks, then divide once.

    count/tokens, count/lh ...: valid tokens, all and by regime; count/trained: of weight > 0.
    divergence/all, divergence/lh ...: sums of per_token.  entropy/student: over trained tokens.
    With both targets scored: gap/all, prob/self_target, prob/teacher: over valid tokens.
    """


def routed_loss(
    student: Student,
    targets: Mapping[str, Target],
    completion_ids: Tensor,
    mask: Tensor,
    method: Method | str,
    *,
    thresholds: Limits | None = None,
    routing: Routing | None = None,
    num_sequences: int | Counts | None = None,
    trim: float = 0.05,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> LossOutput:
    """Sum over tokens of weight x divergence(student, the target of the token's regime).

    Args:
        student: the learning side, under the method's `student_view`.
        targets: {"teacher": ..., "self_target": ...}, each under the method's view of it, and the method's
            composed targets by name (see `compose_hidden`); one that the method does not need may be
            missing. A self-target without a head has the live student's.
        completion_ids: int64 [B, T].
        mask: bool [B, T], True at completion tokens.
        method: a Method or its name.
        thresholds: of the whole optimizer batch; None computes them from this batch, which is
            right only where it is the whole one.
        routing: what the method's router says of these completions; None asks it, with `thresholds`, where it
            compares nothing but the targets.
        num_sequences: sequences of the whole optimizer batch, or its Counts (for a method whose
            reduction is token-mean); None counts this batch.
        trim: see `routing.thresholds`; unused where thresholds are given.
        temperature: divides the logits of all sides in the divergence. Routing compares the
            probabilities of the sampled tokens at temperature 1.
        chunk_size: rows of a buffer of logits; None chooses by memory. There are two, for student
            and target, and they are one where that is better.

    Returns:
        LossOutput. The arithmetic is float32, or float64 where an input is; hidden and head
        gradients come back in the dtype of their inputs. No gradient reaches a target. Heads of
        different widths are cut to the smallest before the softmax.

    Raises:
        ValueError: a target or score is missing that the method needs, or that it does not know; scores
            of another width or a smaller support; ids outside the vocabulary.
    """
    method = method_of(method) if isinstance(method, str) else method
    targets = complete(targets, student, method)
    heads = (student.head, *(target.head for target in targets.values()))
    width = min(len(head.weight) for head in heads if head is not None)
    check_inputs(completion_ids[mask.bool()], width)
    softmax = Softmax(width=width, temperature=temperature, chunk_size=chunk_size)
    tokens = Tokens(ids=completion_ids, mask=mask, softmax=softmax)
    targets = {name: scored(target, method, name, tokens) for name, target in targets.items()}
    logp = {name: t.scores.logp if t.scores else None for name, t in targets.items()}
    routing = routing or routing_of(method, logp, mask, thresholds, trim)
    regime, weight = routing.route, _weights(method, routing, mask, num_sequences)
    plan = make_plan(student, targets, tokens, method, regime, weight)
    del targets  # what pass 1 kept for rows that do not need it ends before pass 2 begins
    loss, value, entropy = routed_sum(student.hidden, student.head.weight, student.head.bias, plan)
    per_token = value.new_zeros(mask.numel()).index_copy(0, plan.positions, value).view_as(regime)
    metrics = _metrics(per_token, entropy, regime, weight, logp, mask)
    return LossOutput(loss=loss, per_token=per_token, regime=regime, metrics=metrics)


def _weights(method: Method, routing: Routing, mask: Tensor, counts: int | Counts | None) -> Tensor:
    is_record = isinstance(counts, Counts)
    weight = token_weights(
        routing.route,
        method.routes,
        mask,
        counts.num_sequences if is_record else counts,
        reduction=method.reduction,
        num_tokens=counts.num_tokens if is_record else None,
    )
    return weight if routing.weight is None else weight * routing.weight


def _metrics(
    per_token: Tensor,
    entropy: Tensor,
    regime: Tensor,
    weight: Tensor,
    logp: Mapping[str, Tensor | None],
    mask: Tensor,
) -> dict[str, Tensor]:
    values = per_token.double()
    metrics = {
        "count/tokens": mask.sum().double(),
        "count/trained": (weight != 0).sum().double(),
        "divergence/all": values.sum(),
        "entropy/student": entropy.double().sum(),
    }
    for kind in Regime:
        here = regime == kind
        metrics[f"count/{kind.name.lower()}"] = here.sum().double()
        metrics[f"divergence/{kind.name.lower()}"] = (values * here).sum()
    teacher, own = logp["teacher"], logp["self_target"]
    if teacher is not None and own is not None:
        gap = privilege_advantage_gap(teacher.double(), own.double())
        metrics["gap/all"] = (gap * mask).sum()
        metrics["prob/teacher"] = (teacher.double().exp() * mask).sum()
        metrics["prob/self_target"] = (own.double().exp() * mask).sum()
    return metrics
