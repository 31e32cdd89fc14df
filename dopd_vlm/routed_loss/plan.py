"""From inputs to the plan of pass 2: targets checked and scored, a regime per token, rows by route."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dopd_vlm import routers
from dopd_vlm.config import MethodConfig
from dopd_vlm.errors import unknown
from dopd_vlm.methods import POLICIES, Method
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.products import Products, products_for
from dopd_vlm.routed_loss.softmax import Softmax, chunk_dtype
from dopd_vlm.routed_loss.target_scores import TargetScores, target_scores
from dopd_vlm.routers import Limits, Routing, Scores
from dopd_vlm.routers.router import everywhere
from dopd_vlm.types import TOKENS, Regime, Route


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """The side that learns."""

    hidden: Tensor
    """[B, T, H] with gradient, at the positions that predict each completion token."""
    head: Head
    """Its weight and bias get a gradient if they require one."""
    head_grad: Tensor | None = None
    """[V, H] in the loss's arithmetic (float32, or float64): the call adds the gradient of the head's weight
    to it, and the backward gives the weight none, so that no other [V, H] exists. For a loss whose backward
    starts from 1. None leaves the gradient to autograd."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """One distribution to learn from; detached."""

    hidden: Tensor | None = None
    """[B, T, H'] at the positions that predict each completion token; None where scores are enough."""
    head: Head | None = None
    scores: TargetScores | None = None
    """Results of `target_scores` at the loss's temperature, `vocab_size` = the smallest of the heads' widths
    and the method's top-K of this target; None computes them where they are needed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """The sampled tokens, and how the heads' logits over them become probabilities."""

    ids: Tensor
    """int64 [B, T]"""
    mask: Tensor
    """bool [B, T]"""
    softmax: Softmax


@dataclass(frozen=True, kw_only=True, eq=False)
class Support:
    """What pass 1 kept of a target for the rows of a group: all that a cached route needs."""

    ids: Tensor
    """int [M, K]"""
    logp: Tensor
    """[M, K + 1] under the full softmax at the loss temperature; last: all other tokens together"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The rows that take one route."""

    route: Route
    rows: Tensor
    """int64 [M] indices into the valid tokens."""
    support: Support | None
    """None where `needs_target_logits`."""
    hidden: Tensor | None
    """[B, T, H] of the target, detached; needed where its logits are."""
    head: Head | None
    products: Products | None
    """Of the head, where its logits are needed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What pass 2 has to do."""

    head: Head
    groups: tuple[Group, ...]
    positions: Tensor
    """int64 [N] in the flattened grid."""
    weights: Tensor
    """[N]"""
    dtype: torch.dtype
    softmax: Softmax
    head_grad: Tensor | None = None
    """[V, H] of `dtype`: where the gradient of the head's weight is added; None makes room for it."""


def needs_target_logits(route: Route) -> bool:
    """Whether pass 2 must run the target's head again: all but cached supports."""
    if route.support == "sampled":
        return False
    return route.top_k is None or route.support == "student"


def complete(targets: Mapping[str, Target], student: Student, method: Method) -> dict[str, Target]:
    """All targets by name, detached; a copy of the student has its head unless it brings its own.

    Raises:
        ValueError: a target of another name.
    """
    names = (*POLICIES, *method.targets)
    for name in targets:
        if name not in names:
            raise unknown("target", name, names)
    complete = {name: targets.get(name, Target()) for name in names}
    for name in POLICIES[1:]:  # copies of the student
        if complete[name].head is None:
            complete[name] = replace(complete[name], head=student.head)
    return {
        name: replace(
            target,
            hidden=None if target.hidden is None else target.hidden.detach(),
            head=None if target.head is None else target.head.detach(),
        )
        for name, target in complete.items()
    }


def scored(target: Target, method: Method, name: str, tokens: Tokens) -> Target:
    """The target with the pass-1 scores that the method needs of it.

    Raises:
        ValueError: hidden states or head are missing, or given scores are of another width.
    """
    _check(target, method, name, tokens.softmax.width)
    if target.hidden is None or target.head is None or target.scores is not None:
        return target
    top_k = method.top_k(name)
    sampled = any(r.support == "sampled" and r.target == name for r in method.routes.values())
    router = routers.router(method.router)
    compared = router.own_view and name in {policy for policy, _ in router.pairs}
    if not (compared or top_k or sampled):
        return target
    scores = target_scores(
        target.hidden,
        target.head,
        tokens.ids,
        tokens.mask,
        top_k=top_k,
        temperature=tokens.softmax.temperature,
        vocab_size=tokens.softmax.width,
        chunk_size=tokens.softmax.chunk_size,
        buffer=tokens.softmax.buffer,
    )
    return replace(target, scores=scores)


def _check(target: Target, method: Method, name: str, width: int) -> None:
    routes = [r for r in method.routes.values() if r.target == name and r.weight != 0.0]
    needed = name in method.used_targets
    is_deep = any(needs_target_logits(route) for route in routes)
    if needed and target.hidden is None and (target.scores is None or is_deep):
        raise ValueError(f"method {method.name!r} needs hidden states of its {name}; got None")
    if target.hidden is not None and target.head is None:
        raise ValueError(f"hidden states of the {name} need its head beside them; got None")
    if target.scores is not None and target.scores.width != width:
        raise ValueError(
            f"scores of the {name} ran over {target.scores.width} vocabulary entries, the loss over "
            f"{width}: call target_scores with vocab_size={width}"
        )


def routing_of(
    method: Method,
    logp: Mapping[str, Tensor | None],
    mask: Tensor,
    limits: Limits | None,
    trim: float,
) -> Routing:
    """The routing of one batch by itself, for a router that compares the targets themselves, or nothing.

    logp: name of a target -> [B, T] of the sampled tokens at temperature 1. Limits that are None are those
    of this batch.

    Raises:
        ValueError: a router that needs other scores.
    """
    router = routers.router(method.router)
    if router.scored_pairs and not router.own_view:
        raise ValueError(
            f"method {method.name!r}: router {router.name!r} scores {router.scored_pairs}, which are no targets "
            "of this loss: call it and give its answer as `routing`"
        )
    if not mask.any():
        return Routing(route=everywhere(mask))
    by_pair = {pair: logp[pair[0]] for pair in router.pairs}
    scores = Scores(
        logp={pair: value for pair, value in by_pair.items() if value is not None},
        mask=mask.bool(),
        prompts=torch.arange(len(mask), device=mask.device),
    )
    if limits is None and router.limits is not None:
        tokens = {pair: value[mask.bool()][None].double() for pair, value in scores.logp.items()}
        flat = replace(scores, logp=tokens, mask=mask[mask.bool()][None].bool())
        limits = router.limits(flat, MethodConfig(trim=trim))
    return router.route(scores, limits)


def make_plan(
    student: Student,
    targets: Mapping[str, Target],
    tokens: Tokens,
    method: Method,
    regime: Tensor,
    weight: Tensor,
) -> Plan:
    """What pass 2 has to do; of the targets' supports it holds only the rows that need them."""
    dtype = chunk_dtype(student.hidden, student.head.weight)
    positions = tokens.mask.flatten().nonzero().squeeze(-1)
    row_regime = regime.flatten()[positions]
    ids = tokens.ids.flatten()[positions]
    groups = []
    for route, kinds in _by_route(method).items():
        wanted = torch.isin(row_regime, torch.tensor(kinds, device=row_regime.device))
        rows = wanted.nonzero().squeeze(-1)
        target = Target() if route.target == TOKENS else targets[route.target]
        support = None
        if not needs_target_logits(route):
            support = _support(target, route, rows, positions, ids, tokens.softmax.width)
        groups.append(
            Group(
                route=route,
                rows=rows,
                support=support,
                hidden=target.hidden,
                head=target.head,
                products=None
                if support or target.head is None
                else products_for(target.head, dtype),
            )
        )
    return Plan(
        head=student.head.detach(),
        groups=tuple(groups),
        positions=positions,
        weights=weight.flatten()[positions].to(dtype),
        dtype=dtype,
        softmax=tokens.softmax,
        head_grad=_checked(student.head_grad, student.head, dtype),
    )


def _checked(head_grad: Tensor | None, head: Head, dtype: torch.dtype) -> Tensor | None:
    if head_grad is not None and (head_grad.shape, head_grad.dtype) != (head.weight.shape, dtype):
        raise ValueError(
            f"head_grad is {head_grad.dtype} {tuple(head_grad.shape)}; the head's gradient is {dtype} "
            f"{tuple(head.weight.shape)}: give a tensor of that kind, or None"
        )
    return head_grad


def _by_route(method: Method) -> dict[Route, list[Regime]]:
    by_route: dict[Route, list[Regime]] = {}
    for kind in Regime:
        if method.routes[kind].weight != 0.0:
            by_route.setdefault(method.routes[kind], []).append(kind)
    return by_route


def _support(
    target: Target, route: Route, rows: Tensor, positions: Tensor, ids: Tensor, width: int
) -> Support:
    if route.target == TOKENS:
        certain = torch.zeros(len(rows), 2, device=ids.device)
        certain[:, 1] = -torch.inf
        return Support(ids=ids[rows, None], logp=certain)
    scores, wanted = target.scores, min(route.top_k or 0, width)
    assert scores is not None
    if route.support == "sampled":
        logp = scores.loss_logp.flatten()[positions[rows], None]
        return Support(ids=ids[rows, None], logp=torch.cat([logp, (-logp.expm1()).log()], -1))
    if scores.top_ids is None or scores.top_logp is None or scores.top_ids.shape[1] < wanted:
        raise ValueError(
            f"a route needs the {route.target}'s top {wanted} tokens, which its scores lack: "
            f"call target_scores with top_k={wanted}"
        )
    is_all = len(rows) == len(ids)  # then in order: no copy
    top_ids = scores.top_ids if is_all else scores.top_ids[rows]
    top_logp = scores.top_logp if is_all else scores.top_logp[rows]
    if wanted < top_ids.shape[1]:
        rest = top_logp[:, wanted:].logsumexp(-1, keepdim=True)
        top_ids = top_ids[:, :wanted]
        top_logp = torch.cat([top_logp[:, :wanted], rest], -1)
    return Support(ids=top_ids, logp=top_logp)
