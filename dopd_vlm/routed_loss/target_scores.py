"""Pass 1: what routing and the top-K routes need of a target, without [N, V] logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dopd_vlm.routed_loss.head import Head, as_head
from dopd_vlm.routed_loss.products import products_for
from dopd_vlm.routed_loss.rows import RowScores, TorchRows, logits_of, rows_for
from dopd_vlm.routed_loss.softmax import Buffer, Softmax, chunk_dtype


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
    """[N, K + 1] their log-probs under the full softmax at the loss temperature, and in the last column
    that of all other tokens together."""
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
    buffer: Buffer | None = None,
) -> TargetScores:
    """Scores of one target at the valid tokens, in chunks of rows. No gradient.

    Args:
        hidden: [B, T, H] at the positions that predict each completion token.
        head: weight [V, H] or a Head.
        completion_ids: int64 [B, T].
        mask: bool [B, T].
        top_k: size of the support to keep; None keeps none.
        bias: [V], with a plain weight.
        temperature: of the loss; the routing's log-probs are always at temperature 1.
        vocab_size: width of the softmax; the smaller of student's and target's when they are
            padded differently (as routed_loss cuts them). None is V.
        chunk_size: rows of a buffer of logits; None chooses by memory.
        buffer: memory for the logits, kept for the next call; None is made and freed.

    Raises:
        ValueError: a completion id outside the width, temperature <= 0, top_k < 1.
    """
    head = as_head(head, bias).detach()
    width = min(len(head.weight), vocab_size or len(head.weight))
    softmax = Softmax(
        width=width, temperature=temperature, chunk_size=chunk_size, buffer=buffer or Buffer()
    )
    valid = _valid_rows(hidden, completion_ids, mask)
    check_inputs(valid.ids, width, top_k)
    scores = _scores_of_rows(valid, head, softmax, min(top_k or 0, width))
    logp, loss_logp = scores.logp.new_zeros((2, mask.numel()))
    logp[valid.positions], loss_logp[valid.positions] = scores.logp, scores.loss_logp
    return TargetScores(
        logp=logp.view_as(mask),
        loss_logp=loss_logp.view_as(mask),
        top_ids=scores.top_ids if top_k else None,
        top_logp=scores.top_logp if top_k else None,
        width=width,
    )


@torch.no_grad()
def entropies(hidden: Tensor, head: Head, mask: Tensor, softmax: Softmax) -> Tensor:
    """H = -sum_v p_v log p_v at temperature 1, nats, 0 where masked.  [B, T, H] -> [B, T]

    Of the softmax over `softmax.width` entries, in chunks of rows; its temperature is not used. One more product
    with the head: asked for by routers alone.
    """
    head, rows = head.detach(), hidden.detach()[mask.bool()]
    dtype = chunk_dtype(hidden, head.weight)
    size = max(1, softmax.rows(len(rows), dtype, hidden.device))
    buffer = softmax.buffer.take(min(size, max(1, len(rows))), softmax.width, dtype, hidden.device)
    products, out = products_for(head, dtype), rows.new_zeros(len(rows), dtype=dtype)
    backend = TorchRows(len(buffer), softmax.width, buffer)
    for start in range(0, len(rows), len(buffer)):
        part = rows[start : start + len(buffer)].to(dtype)
        raw = buffer[: len(part)]
        products.logits_(part, raw)
        logp = backend.ready_(logits_of(raw, head, 1.0)).raw.log_softmax(-1)
        out[start : start + len(part)] = -(logp.exp() * logp).sum(-1)
    return mask.new_zeros(mask.shape, dtype=dtype).masked_scatter_(mask.bool(), out)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """The N valid tokens, or a chunk of them."""

    hidden: Tensor
    """[B T, H], all tokens"""
    positions: Tensor
    """int64 [N] of the valid ones in it"""
    ids: Tensor
    """int64 [N] completion ids"""


def _valid_rows(hidden: Tensor, completion_ids: Tensor, mask: Tensor) -> _Rows:
    positions = mask.flatten().nonzero().squeeze(-1)
    return _Rows(
        hidden=hidden.detach().flatten(0, 1),
        positions=positions,
        ids=completion_ids.flatten()[positions],
    )


def _scores_of_rows(rows: _Rows, head: Head, softmax: Softmax, keep: int) -> RowScores:
    dtype, device = chunk_dtype(rows.hidden, head.weight), rows.hidden.device
    num_rows, new = len(rows.ids), rows.hidden.new_empty
    size = max(1, min(2 * softmax.rows(num_rows, dtype, device), num_rows))
    buffer = softmax.buffer.take(size, softmax.width, dtype, device)
    backend, products = rows_for(size, softmax.width, buffer), products_for(head, dtype)
    scores = RowScores(
        logp=new(num_rows, dtype=dtype),
        loss_logp=new(num_rows, dtype=dtype),
        top_ids=new(num_rows, keep, dtype=torch.int32),
        top_logp=new(num_rows, keep + 1, dtype=dtype),
    )
    for start in range(0, num_rows, size):
        at = slice(start, start + size)
        hidden = rows.hidden[rows.positions[at]].to(dtype)
        raw = buffer[: len(hidden)]
        products.logits_(hidden, raw)
        part = backend.score_(logits_of(raw, head, softmax.temperature), rows.ids[at], keep)
        scores.logp[at], scores.loss_logp[at] = part.logp, part.loss_logp
        scores.top_ids[at], scores.top_logp[at] = part.top_ids, part.top_logp
    return scores


def check_inputs(ids: Tensor, width: int, top_k: int | None = None) -> None:
    """Raises ValueError for ids outside the softmax, or a top_k < 1."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1, or None")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < width:
        raise ValueError(
            f"completion ids run from {int(ids.min())} to {int(ids.max())}, outside the common "
            f"vocabulary of {width}: are they of the student's tokenizer?"
        )
