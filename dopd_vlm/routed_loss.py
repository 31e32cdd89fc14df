"""The routed distillation loss from hidden states, in memory that does not grow with the tokens.

Pass 1 (target_scores.py) scores the targets; routing.py turns the scores into one route and one
weight per token; pass 2 (here and routed_rows.py) takes each route's rows through the head in
chunks and computes value and gradients there and then. No [N, V] tensor exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import routing
from .heads import Head, as_head, chunk_dtype
from .methods import Method
from .methods import method as method_of
from .routed_rows import Group, Plan, Target, needs_target_logits, routed_sum
from .routing import Reduction, Statistic, Thresholds
from .target_scores import TargetScores, check_inputs, target_scores
from .types import Regime

__all__ = ["Head", "LossOutput", "TargetScores", "routed_loss", "target_scores"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutput:
    """The loss of one micro-batch and what the log wants to know of it."""

    loss: Tensor
    """Scalar sum of weight x divergence, with gradient; sums over micro-batches and ranks."""
    per_token: Tensor
    """[B, T] unweighted divergence, nats, detached; 0 where masked or dropped by weight 0."""
    regime: Tensor
    """int64 [B, T], -1 where masked; all HT where the method has no two scores to compare."""
    metrics: dict[str, Tensor]
    """Detached float64 sums: add them over micro-batches and ranks, then divide once.

    count/tokens, count/lh ...: valid tokens, all and by regime; count/trained: of weight > 0.
    divergence/all, divergence/lh ...: sums of per_token.  entropy/student: over trained tokens.
    With both targets scored: gap/all, prob/student, prob/teacher: over valid tokens.
    """


def routed_loss(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    privileged_hidden: Tensor | None,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | Head | None,
    completion_ids: Tensor,
    mask: Tensor,
    method: Method | str,
    *,
    privileged_head: Tensor | Head | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    privileged_bias: Tensor | None = None,
    thresholds: Thresholds | None = None,
    num_sequences: int | None = None,
    num_tokens: int | None = None,
    trim: float = 0.05,
    statistic: Statistic | float = "mean",
    reduction: Reduction = "sequence-mean",
    temperature: float = 1.0,
    chunk_size: int | None = None,
    teacher_scores: TargetScores | None = None,
    privileged_scores: TargetScores | None = None,
) -> LossOutput:
    """Sum over tokens of weight x divergence(student, the target of the token's regime).

    Args:
        student_hidden: [B, T, H], with gradient, at the positions that predict each completion
            token, under the method's `student_view`.
        student_head: weight [V, H] or a Head; gets a gradient if it requires one.
        privileged_hidden: [B, T, H'] of the self-target under its view; None where the method
            needs none. Detached here, as the teacher's.
        teacher_hidden: [B, T, H''] of the teacher under the method's `teacher_view`; or None.
        teacher_head: the teacher's; None without a teacher.
        completion_ids: int64 [B, T].
        mask: bool [B, T], True at completion tokens.
        method: a Method or its name.
        privileged_head: of the self-target's model; None is the live student's, detached.
        student_bias, teacher_bias, privileged_bias: [V], beside plain weights.
        thresholds: of the whole optimizer batch; None computes them from this batch, which is
            right only where it is the whole one.
        num_sequences, num_tokens, reduction: see `routing.token_weights`.
        trim, statistic: see `routing.thresholds`; unused where thresholds are given.
        temperature: divides the logits of all sides in the divergence. Routing compares the
            probabilities of the sampled tokens at temperature 1.
        chunk_size: rows of logits at a time; None chooses by memory.
        teacher_scores, privileged_scores: results of `target_scores` with the same temperature,
            `vocab_size` = the smallest of the heads' widths and the method's `teacher_top_k` and
            `self_target_top_k`; None computes them where they are needed.

    Returns:
        LossOutput. The arithmetic is float32, or float64 where an input is; hidden and head
        gradients come back in the dtype of their inputs. No gradient reaches a target. Heads of
        different widths are cut to the smallest before the softmax.

    Raises:
        ValueError: a tensor or score is missing that the method needs; scores of another width
            or a smaller support; ids outside the vocabulary.
    """
    method = method_of(method) if isinstance(method, str) else method
    student = as_head(student_head, student_bias)
    self_head = _self_head(student, privileged_head, privileged_bias)
    heads: dict[str, Head | None] = {
        "teacher": None if teacher_head is None else as_head(teacher_head, teacher_bias).detach(),
        "student": self_head,
    }
    hidden = {"teacher": teacher_hidden, "student": privileged_hidden}
    scores = {"teacher": teacher_scores, "student": privileged_scores}
    width = min(len(h.weight) for h in (student, *heads.values()) if h is not None)
    check_inputs(completion_ids[mask.bool()], width, temperature, None)
    options: dict[str, Any] = {
        "temperature": temperature,
        "vocab_size": width,
        "chunk_size": chunk_size,
    }
    targets = {
        name: _target(method, name, hidden[name], heads[name], scores[name], width)
        for name in heads
    }
    targets = {
        name: _scored(target, method, name, completion_ids, mask, options)
        for name, target in targets.items()
    }
    regime = _regimes(method, targets, mask, thresholds, trim, statistic)
    weight = routing.token_weights(
        regime, method.routes, mask, num_sequences, reduction=reduction, num_tokens=num_tokens
    )
    plan = _plan(
        student_hidden, student, targets, completion_ids, mask, method, regime, weight, options
    )
    loss, value, entropy = routed_sum(student_hidden, student.weight, student.bias, plan)
    per_token = value.new_zeros(mask.numel()).index_copy(0, plan.positions, value).view_as(regime)
    metrics = _metrics(per_token, entropy, regime, weight, targets, mask)
    return LossOutput(loss=loss, per_token=per_token, regime=regime, metrics=metrics)


def _self_head(student: Head, head: Tensor | Head | None, bias: Tensor | None) -> Head:
    return student.detach() if head is None else as_head(head, bias).detach()


def _target(
    method: Method,
    name: str,
    hidden: Tensor | None,
    head: Head | None,
    scores: TargetScores | None,
    width: int,
) -> Target:
    argument = "teacher" if name == "teacher" else "privileged"
    routes = [r for r in method.routes.values() if r.target == name and r.weight != 0.0]
    needed = method.needs_teacher if name == "teacher" else method.needs_self_target
    if needed and hidden is None and (scores is None or any(map(needs_target_logits, routes))):
        raise ValueError(f"method {method.name!r} needs {argument}_hidden; got None")
    if hidden is not None and head is None:
        raise ValueError(f"{argument}_hidden needs {argument}_head beside it; got None")
    if scores is not None and scores.width != width:
        raise ValueError(
            f"{argument}_scores ran over {scores.width} vocabulary entries, the loss over {width}: "
            f"call target_scores with vocab_size={width}"
        )
    return Target(hidden=None if hidden is None else hidden.detach(), head=head, scores=scores)


def _scored(
    target: Target,
    method: Method,
    name: str,
    completion_ids: Tensor,
    mask: Tensor,
    options: Mapping[str, Any],
) -> Target:
    if target.hidden is None or target.head is None or target.scores is not None:
        return target
    top_k = method.teacher_top_k if name == "teacher" else method.self_target_top_k
    sampled = any(r.support == "sampled" and r.target == name for r in method.routes.values())
    if not (method.routes_by_gap or top_k or sampled):
        return target
    scores = target_scores(target.hidden, target.head, completion_ids, mask, top_k=top_k, **options)
    return Target(hidden=target.hidden, head=target.head, scores=scores)


def _regimes(
    method: Method,
    targets: Mapping[str, Target],
    mask: Tensor,
    thresholds: Thresholds | None,
    trim: float,
    statistic: Statistic | float,
) -> Tensor:
    teacher, student = targets["teacher"].scores, targets["student"].scores
    is_empty = not bool(mask.any())
    if teacher is None or student is None or is_empty:
        return torch.where(mask.bool(), int(Regime.HT), -1)
    if thresholds is None:
        thresholds = routing.thresholds(teacher.logp, student.logp, mask, trim, statistic=statistic)
    return routing.assign_regimes(teacher.logp, student.logp, mask, thresholds)


def _plan(
    student_hidden: Tensor,
    student: Head,
    targets: Mapping[str, Target],
    completion_ids: Tensor,
    mask: Tensor,
    method: Method,
    regime: Tensor,
    weight: Tensor,
    options: Mapping[str, Any],
) -> Plan:
    dtype = chunk_dtype(student_hidden, student.weight)
    positions = mask.flatten().nonzero().squeeze(-1)
    row_regime = regime.flatten()[positions]
    by_route: dict[Any, list[Regime]] = {}
    for kind in Regime:
        route = method.routes[kind]
        if route.weight != 0.0:
            by_route.setdefault(route, []).append(kind)
    groups = []
    for route, kinds in by_route.items():
        wanted = torch.isin(row_regime, torch.tensor(kinds, device=row_regime.device))
        groups.append(
            Group(route=route, rows=wanted.nonzero().squeeze(-1), target=targets[route.target])
        )
    return Plan(
        head=student.detach(),
        groups=tuple(groups),
        positions=positions,
        ids=completion_ids.flatten()[positions],
        weights=weight.flatten()[positions].to(dtype),
        dtype=dtype,
        width=options["vocab_size"],
        temperature=options["temperature"],
        chunk_size=options["chunk_size"],
    )


def _metrics(
    per_token: Tensor,
    entropy: Tensor,
    regime: Tensor,
    weight: Tensor,
    targets: Mapping[str, Target],
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
    teacher, student = targets["teacher"].scores, targets["student"].scores
    if teacher is not None and student is not None:
        gap = routing.privilege_advantage_gap(teacher.logp.double(), student.logp.double())
        metrics["gap/all"] = (gap * mask).sum()
        metrics["prob/teacher"] = (teacher.logp.double().exp() * mask).sum()
        metrics["prob/student"] = (student.logp.double().exp() * mask).sum()
    return metrics
