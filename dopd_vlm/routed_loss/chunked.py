"""Pass 2 of the routed loss: rows grouped by route, through the head in chunks, with gradients.

Gradients with respect to hidden states and head are computed in the forward, because all weights
are known there; the backward multiplies them by the upstream scalar. With a plan's `head_grad` the weight's is
added to that tensor at once, and the upstream scalar has to be 1.

Shapes: N valid tokens of the B x T grid, M rows of a group, C rows of a chunk, K support.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dopd_vlm.routed_loss.gradients import RowResult, sampled_slopes, support_slopes
from dopd_vlm.routed_loss.plan import Group, Plan, needs_target_logits
from dopd_vlm.routed_loss.products import products_for
from dopd_vlm.routed_loss.rows import Logits, logits_of, rows_for
from dopd_vlm.types import Route


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Rows first, first + 1, ... of a group that share a chunk."""

    group: Group
    first: int
    rows: Tensor


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
        # Of a plain loss.backward() it is 1; to see that on a GPU would cost more than the product.
        is_one = upstream[0].device.type == "cpu" and float(upstream[0]) == 1.0
        if ctx.plan.head_grad is not None and ctx.wants[1] and not is_one:
            # What was added cannot be scaled. On a GPU the host does not wait for the answer.
            torch._assert_async(  # pyright: ignore[reportPrivateImportUsage]
                upstream[0] == 1.0, "with head_grad, call loss.backward() as it is"
            )
        out = []
        for of in inputs:
            grad = grads.pop(0)
            if grad is not None and grad is not ctx.plan.head_grad and not is_one:
                grad.mul_(upstream[0])
            out.append(None if grad is None else grad.to(of.dtype).view_as(of))
        if ctx.plan.head_grad is not None:
            out[1] = None
        return (*out, None, None)


def _grads(plan: Plan, hidden: Tensor, wants: list[bool]) -> list[Tensor | None]:
    work = _Work(plan, hidden, wants)
    work.run_()
    return work.grads


def _lines(route: Route) -> int:
    """Lines of logits that a row takes: the student's, and the target's where they are needed."""
    return 2 if needs_target_logits(route) else 1


class _Work:
    """Buffers and accumulators of one pass; every method with a trailing underscore fills them."""

    def __init__(self, plan: Plan, hidden: Tensor, wants: list[bool]) -> None:
        self.plan = plan
        self.hidden = hidden.detach().flatten(0, 1)
        num_rows, width, device = len(plan.positions), plan.softmax.width, hidden.device
        new = self.hidden.new_zeros
        self.value, self.entropy, self.factor = new((3, num_rows), dtype=plan.dtype).unbind()
        shapes = (self.hidden.shape, plan.head.weight.shape, plan.head.weight.shape[:1])
        self.grads = [
            (given if given is not None else new(shape, dtype=plan.dtype)) if want else None
            for shape, want, given in zip(shapes, wants, (None, plan.head_grad, None), strict=True)
        ]
        needed = sum(_lines(group.route) * len(group.rows) for group in plan.groups)
        # Two buffers in one: rows that need no target's logits have both for themselves.
        size = max(2, min(2 * plan.softmax.rows(num_rows, plan.dtype, device), needed))
        self.buffer = plan.softmax.buffer.take(size, width, plan.dtype, device)
        is_deep = any(needs_target_logits(g.route) for g in plan.groups if len(g.rows))
        self.products = products_for(plan.head, plan.dtype)
        self.rows = rows_for(
            size // 2, width, self.buffer, is_deep=is_deep, grad_dtype=self.products.grad_dtype
        )

    def run_(self) -> None:
        """All rows, group after group, in chunks that may hold several groups."""
        chunk: list[_Part] = []
        room = len(self.buffer)
        for group in self.plan.groups:
            first, lines = 0, _lines(group.route)
            while first < len(group.rows):
                if room < lines:
                    self._chunk_(chunk)
                    chunk, room = [], len(self.buffer)
                rows = group.rows[first : first + room // lines]
                chunk.append(_Part(group=group, first=first, rows=rows))
                first, room = first + len(rows), room - lines * len(rows)
        if chunk:
            self._chunk_(chunk)
        self.plan.softmax.buffer.free()  # the plan lives until the backward

    def _chunk_(self, parts: list[_Part]) -> None:
        plan, head = self.plan, self.plan.head
        rows = torch.cat([part.rows for part in parts])
        hidden = self.hidden[plan.positions[rows]].to(plan.dtype)
        raw = self.buffer[: len(rows)]
        self.products.logits_(hidden, raw)
        grads = self.rows.gradients(raw)
        sizes = [len(part.rows) for part in parts]
        for part, own, out in zip(parts, raw.split(sizes), grads.split(sizes), strict=True):
            logits = self.rows.ready_(logits_of(own, head, plan.softmax.temperature))
            is_deep = needs_target_logits(part.group.route)
            room = self.buffer[len(rows) :][: len(part.rows)]
            result = (
                self._deep_(part, logits, room, out)
                if is_deep
                else self._cached_(part, logits, out)
            )
            self._keep_(part.rows, result)
        self._accumulate_(rows, hidden, grads)

    def _keep_(self, rows: Tensor, result: RowResult) -> None:
        self.value[rows] = result.value.to(self.plan.dtype)
        self.entropy[rows] = result.entropy.to(self.plan.dtype)
        self.factor[rows] = result.factor.to(self.plan.dtype)

    def _cached_(self, part: _Part, logits: Logits, out: Tensor) -> RowResult:
        route, support = part.group.route, part.group.support
        assert support is not None
        at = slice(part.first, part.first + len(part.rows))
        slopes = sampled_slopes(route) if route.support == "sampled" else support_slopes(route)
        ids, logp = support.ids[at].long(), support.logp[at]
        return self.rows.support_grad_(logits, ids, logp, slopes, out)

    def _deep_(self, part: _Part, logits: Logits, room: Tensor, out: Tensor) -> RowResult:
        route, target = part.group.route, self._target_logits_(part.group, part.rows, room)
        if route.top_k is None or route.top_k >= self.plan.softmax.width:
            return self.rows.full_grad_(logits, target, route, out)
        ids = self.rows.top_ids(logits, route.top_k)
        logp = self.rows.logp_at_(target, ids)
        return self.rows.support_grad_(logits, ids, logp, support_slopes(route), out)

    def _target_logits_(self, group: Group, rows: Tensor, out: Tensor) -> Logits:
        assert group.hidden is not None and group.head is not None and group.products is not None
        hidden = group.hidden.flatten(0, 1)[self.plan.positions[rows]].to(self.plan.dtype)
        group.products.logits_(hidden, out)
        return self.rows.ready_(logits_of(out, group.head, self.plan.softmax.temperature))

    def _accumulate_(self, rows: Tensor, hidden: Tensor, grad_logits: Tensor) -> None:
        plan, width = self.plan, self.plan.softmax.width
        # One factor per row, applied to the [C, H] side of each product: no pass over [C, V].
        factor = (plan.weights[rows] * self.factor[rows])[:, None]
        grad_hidden, grad_weight, grad_bias = self.grads
        if grad_hidden is not None:
            grad = self.products.hidden_grad(grad_logits)
            grad_hidden[plan.positions[rows]] = grad * factor
        if grad_weight is not None:
            self.products.add_head_grad_(grad_weight[:width], grad_logits, hidden * factor)
        if grad_bias is not None:
            grad_bias[:width] += grad_logits.T.to(factor.dtype) @ factor.squeeze(-1)
