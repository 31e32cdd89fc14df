"""The routed distillation loss from hidden states, in memory that does not grow with the tokens.

Pass 1 (target_scores.py) scores the targets; routing.py turns the scores into one route and one
weight per token (routed_plan.py); pass 2 (routed_rows.py) takes each route's rows through the head in
chunks and computes value and gradients there and then. No [N, V] tensor exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dopd_vlm import routing
from dopd_vlm.methods import Method
from dopd_vlm.methods import method as method_of
from dopd_vlm.routed_loss.chunked import routed_sum
from dopd_vlm.routed_loss.head import Head, as_head
from dopd_vlm.routed_loss.plan import Tokens, make_plan, regimes, scored, target_of
from dopd_vlm.routed_loss.softmax import Softmax
from dopd_vlm.routed_loss.target_scores import TargetScores, check_inputs, target_scores
from dopd_vlm.routing import Reduction, Statistic, Thresholds
from dopd_vlm.types import Regime

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
        chunk_size: rows of a buffer of logits; None chooses by memory. There are two, for student
            and target, and they are one where that is better.
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
    if privileged_head is None:
        privileged_head = student
    targets = {
        "teacher": target_of(teacher_hidden, teacher_head, teacher_bias, teacher_scores),
        "student": target_of(
            privileged_hidden, privileged_head, privileged_bias, privileged_scores
        ),
    }
    heads = (student, *(target.head for target in targets.values()))
    width = min(len(head.weight) for head in heads if head is not None)
    check_inputs(completion_ids[mask.bool()], width)
    softmax = Softmax(width=width, temperature=temperature, chunk_size=chunk_size)
    tokens = Tokens(ids=completion_ids, mask=mask, softmax=softmax)
    targets = {name: scored(target, method, name, tokens) for name, target in targets.items()}
    logp = {name: t.scores.logp if t.scores else None for name, t in targets.items()}
    regime = regimes(logp, mask, thresholds, trim, statistic)
    weight = routing.token_weights(
        regime, method.routes, mask, num_sequences, reduction=reduction, num_tokens=num_tokens
    )
    plan = make_plan(student_hidden, student, targets, tokens, method, regime, weight)
    del targets  # what pass 1 kept for rows that do not need it ends before pass 2 begins
    loss, value, entropy = routed_sum(student_hidden, student.weight, student.bias, plan)
    per_token = value.new_zeros(mask.numel()).index_copy(0, plan.positions, value).view_as(regime)
    metrics = _metrics(per_token, entropy, regime, weight, logp, mask)
    return LossOutput(loss=loss, per_token=per_token, regime=regime, metrics=metrics)


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
    teacher, student = logp["teacher"], logp["student"]
    if teacher is not None and student is not None:
        gap = routing.privilege_advantage_gap(teacher.double(), student.double())
        metrics["gap/all"] = (gap * mask).sum()
        metrics["prob/teacher"] = (teacher.double().exp() * mask).sum()
        metrics["prob/student"] = (student.double().exp() * mask).sum()
    return metrics
