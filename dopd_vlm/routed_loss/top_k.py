"""The ids of the k greatest entries of long rows, exactly and in a defined order."""

import torch
from torch import Tensor

FOLD = 8
"""Entries per block of the search in `top_k_ids`."""


@torch.no_grad()
def top_k_ids(scores: Tensor, k: int) -> Tensor:
    """Ids of the k greatest entries, greatest first, ties by the lowest id.  [..., V] -> [..., k]

    Exact for every input; a row whose k-th and next entry are equal is sorted whole.
    """
    vocab = scores.shape[-1]
    k = min(k, vocab)
    if k == 0:
        return torch.empty(*scores.shape[:-1], 0, dtype=torch.int64, device=scores.device)
    rows = scores.reshape(-1, vocab)
    if k == vocab:
        return _ordered(rows).view(*scores.shape[:-1], k)
    values, ids = _folded_top(rows, k + 1)
    ids = ids[:, :k]
    is_equal = values[:, 1:] == values[:, :-1]
    inner = is_equal[:, :-1].any(-1)
    if inner.any():
        ids[inner] = _ordered(rows[inner], ids[inner])
    boundary = is_equal[:, -1]
    if boundary.any():
        ids[boundary] = _ordered(rows[boundary])[:, :k]
    return ids.reshape(*scores.shape[:-1], k)


def _ordered(rows: Tensor, ids: Tensor | None = None) -> Tensor:
    """The ids (None: all) of each row by falling value, then rising id."""
    if ids is None:
        return rows.sort(dim=-1, descending=True, stable=True).indices
    ids = ids.sort(-1).values
    order = rows.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _folded_top(rows: Tensor, k: int, *, is_sorted: bool = True) -> tuple[Tensor, Tensor]:
    """torch.topk of rows [C, V], reading V once.

    The k greatest entries lie in the k blocks with the greatest maxima, so that only these blocks
    are searched, and the maxima likewise. A block is FOLD entries, V // FOLD apart: its maxima are
    element-wise over whole lines.
    """
    stride = rows.shape[-1] // FOLD
    if stride <= k:
        return rows.topk(k, -1, sorted=is_sorted)
    whole = FOLD * stride
    maxima = rows[:, :whole].unflatten(-1, (FOLD, stride)).amax(1)
    _, blocks = _folded_top(maxima, k, is_sorted=False)
    starts = torch.arange(0, whole, stride, device=rows.device)
    ids = (blocks[:, None, :] + starts[:, None]).flatten(1)
    if whole < rows.shape[-1]:
        rest = torch.arange(whole, rows.shape[-1], device=rows.device).expand(len(rows), -1)
        ids = torch.cat([ids, rest], -1)
    values, at = rows.gather(-1, ids).topk(k, -1, sorted=is_sorted)
    return values, ids.gather(-1, at)
