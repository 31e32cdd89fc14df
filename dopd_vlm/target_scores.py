"""Pass 1: what routing and the top-K routes need of a target, without [N, V] logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .divergences import top_k_ids
from .heads import Head, as_head, chunk_dtype, default_chunk_size, logits_

ROWS_IN_CACHE_BYTES = 4 << 20
"""Element-wise work is done on this many bytes of logits at a time, so that it stays in cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetScores:
    """Scores of the sampled tokens under one target; detached, 0 where masked."""

    logp: Tensor
    """[B, T] log-prob of the sampled token at temperature 1, nats: what routing compares."""
    loss_logp: Tensor
    """[B, T] the same at the loss temperature."""
    top_ids: Tensor | None
    """int32 [N, K] of the N valid tokens in order, most probable first, ties by the lowest id."""
    top_logp: Tensor | None
    """[N, K] their log-probs under the full softmax at the loss temperature."""
    width: int
    """Vocabulary entries that the softmax ran over."""


@torch.no_grad()
def target_scores(
    hidden: Tensor,
    head: Tensor | Head,
    completion_ids: Tensor,
    mask: Tensor,
    *,
    top_k: int | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> TargetScores:
    """Scores of one target at the valid tokens, in chunks of rows. No gradient.

    Args:
        hidden: [B, T, H] at the positions that predict each completion token.
        head: weight [V, H] or a Head.
        completion_ids: int64 [B, T].
        mask: bool [B, T].
        top_k: size of the support to keep; None keeps none.
        bias: [V], beside a plain weight.
        temperature: of the loss; the routing's log-probs are always at temperature 1.
        vocab_size: width of the softmax; the smaller of student's and target's when they are
            padded differently (as routed_loss cuts them). None is V.
        chunk_size: rows at a time; None chooses by memory.

    Raises:
        ValueError: a completion id outside the width, temperature <= 0, top_k < 1.
    """
    head = as_head(head, bias).detach()
    width = min(len(head.weight), vocab_size or len(head.weight))
    rows = mask.flatten().nonzero().squeeze(-1)
    ids = completion_ids.flatten()[rows]
    check_inputs(ids, width, temperature, top_k)
    dtype = chunk_dtype(hidden, head.weight)
    flat = hidden.detach().flatten(0, 1)
    keep = min(top_k, width) if top_k else 0
    logp, loss_logp = flat.new_zeros((2, mask.numel()), dtype=dtype)
    top_ids = torch.empty(len(rows), keep, dtype=torch.int32, device=flat.device)
    top_logp = torch.empty(len(rows), keep, dtype=dtype, device=flat.device)
    size = chunk_size or default_chunk_size(width, dtype, flat.device)
    buffer = flat.new_empty(min(size, len(rows)), width, dtype=dtype)
    scratch = flat.new_empty(min(rows_in_cache(width, dtype), len(rows)), width, dtype=dtype)
    for start in range(0, len(rows), size):
        at = slice(start, start + size)
        logits = logits_(flat[rows[at]].to(dtype), head, buffer[: len(rows[at])])
        top = top_k_ids(logits, max(1, keep))
        picked = logits.gather(-1, ids[at, None]).squeeze(-1)
        logp[rows[at]] = loss_logp[rows[at]] = picked - _log_normaliser(logits, top, scratch)
        if temperature != 1.0:
            logits /= temperature
            loss_logp[rows[at]] = picked / temperature - _log_normaliser(logits, top, scratch)
        if keep:
            top_ids[at] = top.int()
            # log p = log p(y) + z - z(y): one normaliser serves the support as well.
            offset = loss_logp[rows[at]] - logits.gather(-1, ids[at, None]).squeeze(-1)
            top_logp[at] = logits.gather(-1, top) + offset[:, None]
    return TargetScores(
        logp=logp.view_as(mask),
        loss_logp=loss_logp.view_as(mask),
        top_ids=top_ids if keep else None,
        top_logp=top_logp if keep else None,
        width=width,
    )


def _log_normaliser(logits: Tensor, top: Tensor, scratch: Tensor) -> Tensor:
    """log sum_v exp(logits) of rows whose most probable id is top[:, 0].  [C, V] -> [C]"""
    first = top[:, :1]
    greatest = torch.cat(
        [
            torch.softmax(lines, -1, out=scratch[: len(lines)]).gather(-1, at)
            for lines, at in zip(logits.split(len(scratch)), first.split(len(scratch)), strict=True)
        ]
    )
    # The greatest probability is exp(0) / sum, at least 1 / V: it cannot underflow.
    return (logits.gather(-1, first) - greatest.log()).squeeze(-1)


def rows_in_cache(width: int, dtype: torch.dtype) -> int:
    """Rows of logits that element-wise work takes at a time."""
    return max(1, ROWS_IN_CACHE_BYTES // (width * dtype.itemsize))


def check_inputs(ids: Tensor, width: int, temperature: float, top_k: int | None) -> None:
    """Raises ValueError for ids outside the softmax, a temperature <= 0 or a top_k < 1."""
    if temperature <= 0.0:
        raise ValueError(f"temperature={temperature} must be positive")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1, or None")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < width:
        raise ValueError(
            f"completion ids run from {int(ids.min())} to {int(ids.max())}, outside the common "
            f"vocabulary of {width}: are they of the student's tokenizer?"
        )
