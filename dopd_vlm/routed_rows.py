"""Pass 2 of the routed loss: rows grouped by route, through the head in chunks, with gradients.

Gradients with respect to hidden states and head are computed in the forward, because all weights
are known there; the backward multiplies them by the upstream scalar.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .divergences import top_k_ids
from .heads import Head, default_chunk_size, hidden_grad, logits_, softcap_slope
from .row_gradients import RowResult, full_, on_support_, sampled_slopes, support_slopes
from .target_scores import TargetScores, rows_in_cache
from .types import Route


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """One distribution to learn from; detached."""

    hidden: Tensor | None
    """[B, T, H]"""
    head: Head | None
    scores: TargetScores | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The rows that take one route."""

    route: Route
    rows: Tensor
    """int64 indices into the valid tokens."""
    target: Target


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What pass 2 has to do. N valid tokens of the B x T grid, in order."""

    head: Head
    groups: tuple[Group, ...]
    positions: Tensor
    """int64 [N] in the flattened grid."""
    ids: Tensor
    """int64 [N] completion ids."""
    weights: Tensor
    """[N]"""
    dtype: torch.dtype
    width: int
    temperature: float
    chunk_size: int | None


def needs_target_logits(route: Route) -> bool:
    """Whether pass 2 must run the target's head again: all but cached supports."""
    if route.support == "sampled":
        return False
    return route.top_k is None or route.support == "student"


def routed_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of weight x divergence (with gradient to hidden, weight, bias), and per valid token its
    divergence [N] and the student's entropy [N] (0 where the weight is 0), detached."""
    grads = [
        torch.is_grad_enabled() and t is not None and t.requires_grad
        for t in (hidden, weight, bias)
    ]
    return _RoutedSum.apply(hidden, weight, bias, plan, grads)  # pyright: ignore[reportReturnType]


class _RoutedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: Plan,
        wants: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        work = _Work(plan, hidden, wants)
        work.run_()
        loss = (plan.weights.double() * work.value.double()).sum().to(plan.dtype)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.plan, ctx.wants, ctx.grads = plan, wants, work.grads
        ctx.mark_non_differentiable(work.value, work.entropy)
        return loss, work.value, work.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = ctx.saved_tensors
        # The gradients are given away without a copy, so that a [V, H] buffer exists once; a
        # second backward through the same graph computes them again.
        grads, ctx.grads = ctx.grads or _grads(ctx.plan, inputs[0], ctx.wants), None
        out = []
        for of in inputs:
            grad = grads.pop(0)
            out.append(None if grad is None else grad.mul_(upstream[0]).to(of.dtype).view_as(of))
        return (*out, None, None)


def _grads(plan: Plan, hidden: Tensor, wants: list[bool]) -> list[Tensor | None]:
    work = _Work(plan, hidden, wants)
    work.run_()
    return work.grads


class _Work:
    """Buffers and accumulators of one pass; every method with a trailing underscore fills them."""

    def __init__(self, plan: Plan, hidden: Tensor, wants: list[bool]) -> None:
        self.plan = plan
        self.hidden = hidden.detach().flatten(0, 1)
        num_rows = len(plan.positions)
        new = self.hidden.new_zeros
        self.value, self.entropy = new((2, num_rows), dtype=plan.dtype).unbind()
        shapes = (self.hidden.shape, plan.head.weight.shape, plan.head.weight.shape[:1])
        self.grads = [
            new(shape, dtype=plan.dtype) if want else None
            for shape, want in zip(shapes, wants, strict=True)
        ]
        size = plan.chunk_size or default_chunk_size(plan.width, plan.dtype, hidden.device)
        self.chunk_size = max(1, min(size, num_rows))
        empty = self.hidden.new_empty
        self.logits = empty((self.chunk_size, plan.width), dtype=plan.dtype)
        is_deep = any(needs_target_logits(g.route) for g in plan.groups if len(g.rows))
        # Half a chunk of target logits at a time: less memory, and hardly slower.
        side = (self.chunk_size + 1) // 2 if is_deep else 0
        self.target_logits = empty((side, plan.width), dtype=plan.dtype)
        lines = min(self.chunk_size, rows_in_cache(plan.width, plan.dtype))
        self.scratch = empty((3, lines, plan.width), dtype=plan.dtype)

    def run_(self) -> None:
        """All rows, group after group, in chunks that may hold several groups."""
        chunk: list[tuple[Group, Tensor]] = []
        room = self.chunk_size
        for group in self.plan.groups:
            rows = group.rows
            while len(rows):
                chunk.append((group, rows[:room]))
                rows, room = rows[room:], room - len(rows[:room])
                if not room:
                    self._chunk_(chunk)
                    chunk, room = [], self.chunk_size
        if chunk:
            self._chunk_(chunk)

    def _chunk_(self, parts: list[tuple[Group, Tensor]]) -> None:
        plan, head = self.plan, self.plan.head
        rows = torch.cat([part for _, part in parts])
        hidden = self.hidden[plan.positions[rows]].to(plan.dtype)
        logits = logits_(hidden, head, self.logits[: len(rows)])
        slope = softcap_slope(logits, head)
        if plan.temperature != 1.0:
            logits /= plan.temperature
        sizes = [len(part) for _, part in parts]
        for (group, part), own in zip(parts, logits.split(sizes), strict=True):
            self._part_(group, part, own)
        if slope is not None:
            logits *= slope
        self._accumulate_(rows, hidden, logits)

    def _part_(self, group: Group, rows: Tensor, logits: Tensor) -> None:
        if not needs_target_logits(group.route):
            self._by_lines_(group, rows, logits, None)
            return
        side = len(self.target_logits)
        for part, own in zip(rows.split(side), logits.split(side), strict=True):
            self._by_lines_(group, part, own, self._target_logits_(group, part))

    def _by_lines_(
        self, group: Group, rows: Tensor, logits: Tensor, target_logits: Tensor | None
    ) -> None:
        lines = self.scratch.shape[1]
        for start in range(0, len(rows), lines):
            at = slice(start, start + lines)
            target = None if target_logits is None else target_logits[at]
            result = self._lines_(group, rows[at], logits[at], target)
            self.value[rows[at]] = result.value
            self.entropy[rows[at]] = result.entropy

    def _target_logits_(self, group: Group, rows: Tensor) -> Tensor:
        assert group.target.hidden is not None and group.target.head is not None
        hidden = group.target.hidden.flatten(0, 1)[self.plan.positions[rows]].to(self.plan.dtype)
        logits = logits_(hidden, group.target.head, self.target_logits[: len(rows)])
        return logits if self.plan.temperature == 1.0 else logits.div_(self.plan.temperature)

    def _lines_(
        self, group: Group, rows: Tensor, logits: Tensor, target_logits: Tensor | None
    ) -> RowResult:
        route, scratch = group.route, self.scratch[:, : len(rows)]
        if target_logits is not None:
            if route.top_k is None or route.top_k >= self.plan.width:
                return full_(logits, target_logits, route, scratch)
            ids = top_k_ids(logits, route.top_k)
            target_logp = torch.log_softmax(target_logits, -1, out=scratch[1]).gather(-1, ids)
            return on_support_(logits, ids, target_logp, support_slopes(route), scratch)
        scores = group.target.scores
        assert scores is not None
        if route.support == "sampled":
            logp = scores.loss_logp.flatten()[self.plan.positions[rows], None].to(logits.dtype)
            ids, slopes = self.plan.ids[rows, None], sampled_slopes(route)
        else:
            ids, logp = self._cached_support(scores, route, rows)
            slopes = support_slopes(route)
        return on_support_(logits, ids, logp.to(logits.dtype), slopes, scratch)

    def _cached_support(
        self, scores: TargetScores, route: Route, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = min(route.top_k or 0, self.plan.width)
        if scores.top_ids is None or scores.top_logp is None or scores.top_ids.shape[1] < wanted:
            raise ValueError(
                f"a route needs the {route.target}'s top {wanted} tokens, which its scores lack: "
                f"call target_scores with top_k={wanted}"
            )
        return scores.top_ids[rows, :wanted].long(), scores.top_logp[rows, :wanted]

    def _accumulate_(self, rows: Tensor, hidden: Tensor, grad_logits: Tensor) -> None:
        plan = self.plan
        # One factor per row, applied to the [C, H] side of each product: no pass over [C, V].
        factor = plan.weights[rows, None] * (plan.head.logit_scale / plan.temperature)
        grad_hidden, grad_weight, grad_bias = self.grads
        if grad_hidden is not None:
            grad_hidden[plan.positions[rows]] = hidden_grad(grad_logits, plan.head) * factor
        if grad_weight is not None:
            grad_weight[: plan.width].addmm_(grad_logits.T, hidden * factor)
        if grad_bias is not None:
            grad_bias[: plan.width] += grad_logits.T @ factor.squeeze(-1)
