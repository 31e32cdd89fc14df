"""Rows of raw logits on the GPU: each pass over the vocabulary is one Triton kernel.

Bytes a logit (float32 logits, bfloat16 gradient): `score` reads once (4), `support_grad_` twice and writes
(10), `full_grad_` four times and writes two rows' worth (26). What is read and written outside the kernels is [C, K] or
[C, V / FOLD]. Nothing here waits for the device.

Shapes: C rows, V width, K support.
"""

# Triton says nothing of its own types that a checker could follow.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from collections.abc import Callable
from functools import cache

import torch
import triton
from torch import Tensor

from dopd_vlm import divergences
from dopd_vlm.routed_loss import triton_kernels as kernels
from dopd_vlm.routed_loss.gradients import RowResult, Slopes
from dopd_vlm.routed_loss.rows import Logits, RowScores, TorchRows
from dopd_vlm.routed_loss.softmax import Partition, partition_of
from dopd_vlm.types import Route

FOLD = 32
"""Entries of a fold: only its maximum is looked at in the search for the top-K."""
KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}
"""Divergences that the kernels know, by number."""
EXCLUDED = torch.finfo(torch.float32).min


def _transform(logits: Logits) -> tuple[float, float]:
    """(scale, cap) as the kernels take them."""
    return logits.scale, logits.softcap or 1.0


def _flags(logits: Logits) -> dict[str, bool]:
    """What the kernels are compiled for."""
    return {"HAS_BIAS": logits.bias is not None, "HAS_CAP": logits.softcap is not None}


def _bias_or_rows(logits: Logits) -> Tensor:
    """A pointer for the bias; never read where there is none."""
    return logits.raw if logits.bias is None else logits.bias


def _at(logits: Logits, ids: Tensor) -> Tensor:
    """x / temperature at ids [C, K], float64."""
    x = logits.raw.gather(-1, ids).double()
    if logits.bias is not None:
        x += logits.bias.double()[ids]
    x *= logits.scale
    if logits.softcap is not None:
        x = logits.softcap * (x / logits.softcap).tanh()
    return x / logits.temperature


def block_of(width: int) -> int:
    """Entries a program takes at a time."""
    return min(4096, max(FOLD, triton.next_power_of_2(width)))


def score(logits: Logits, ids: Tensor, k: int) -> RowScores:
    """Scores of the sampled ids [C] and the top k of each row, in one read."""
    count, width = logits.raw.shape
    num_folds, block = triton.cdiv(width, FOLD), block_of(width)
    new = logits.raw.new_empty
    log_sum = new(count, dtype=torch.float64)
    picked = new(count)
    keys, sums = new((count, num_folds), dtype=torch.int64), new((count, num_folds))
    kernels.folds_kernel[(count,)](
        logits.raw, logits.raw.stride(0), _bias_or_rows(logits), ids, log_sum, picked, keys, sums,
        num_folds, *_transform(logits), 1.0 / logits.temperature, width,
        **_flags(logits), BLOCK=block, FOLD=FOLD,
    )  # fmt: skip
    top_keys, log_rest = _top_and_rest(logits, keys, sums, min(k, width))
    top_ids, top = _decode(top_keys)
    part = partition_of(top / logits.temperature, log_rest)
    return RowScores(
        logp=picked.double() - log_sum,
        loss_logp=picked.double() / logits.temperature - part.normaliser.squeeze(-1),
        top_ids=top_ids,
        top_logp=part.logp,
    )


def _top_and_rest(logits: Logits, keys: Tensor, sums: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keys of the top k [C, k], and log sum exp of all others, float64 [C, 1].

    The k greatest entries lie in the k folds with the greatest keys: a fold's key is that of its greatest
    entry, and folds are runs of ids, so that equal values keep the order of ids.
    """
    count, num_folds = keys.shape
    width = logits.raw.shape[1]
    num_chosen = min(k, num_folds)
    top = keys.new_empty(count, 0)
    candidates, last = (
        keys,
        keys.amax(-1) + (1 << 32),
    )  # above every entry: all of them are the rest
    if k:
        fold_keys = keys.topk(num_chosen, -1).values.contiguous()
        candidates = keys.new_empty(count, num_chosen * FOLD)
        kernels.candidates_kernel[(count, num_chosen)](
            logits.raw, logits.raw.stride(0), _bias_or_rows(logits), fold_keys, sums, num_folds,
            candidates, num_chosen, *_transform(logits), width, **_flags(logits), FOLD=FOLD,
        )  # fmt: skip
        top = candidates.topk(k, -1).values
        last = top[:, -1].contiguous()
    log_rest = logits.raw.new_empty(count, dtype=torch.float64)
    kernels.rest_kernel[(count,)](
        keys, sums, num_folds, candidates, candidates.shape[1] if k else 0, last, log_rest,
        1.0 / logits.temperature, num_folds, BLOCK=min(1024, triton.next_power_of_2(num_folds)),
    )  # fmt: skip
    return top, log_rest[:, None]


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys -> ids, x in float64."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return 0x7FFFFFFF - (keys & 0x7FFFFFFF), bits.view(torch.float32).double()


def row_stats(logits: Logits) -> tuple[Tensor, Tensor]:
    """log sum exp(x / T) and sum p x / T.  float64 [C] each"""
    count, width = logits.raw.shape
    log_sum, expected = logits.raw.new_empty((2, count), dtype=torch.float64)
    kernels.stats_kernel[(count,)](
        logits.raw, logits.raw.stride(0), _bias_or_rows(logits), log_sum, expected,
        *_transform(logits), 1.0 / logits.temperature, width, **_flags(logits), BLOCK=block_of(width),
    )  # fmt: skip
    return log_sum, expected


def partition_at_(logits: Logits, ids: Tensor) -> tuple[Partition, Tensor, Tensor]:
    """The softmax of rows by ids [C, K], x / T there, and the mean of x / T over the rest [C].

    The entries at ids are marked as left out in the rows.
    """
    picked = _at(logits, ids)
    logits.raw.scatter_(-1, ids, EXCLUDED)
    log_rest, expected = row_stats(logits)
    return partition_of(picked, log_rest[:, None]), picked, expected


def support_grad_(
    logits: Logits, ids: Tensor, target_logp: Tensor, slopes: Slopes, out: Tensor
) -> RowResult:
    """Value and gradient of a divergence on a support; the formula of `gradients.on_support_`.

    Writes d value / d z into out [C, V]; the rows are used up. The result's factor is 1.
    """
    part, picked, rest_expected = partition_at_(logits, ids)
    inside, rest = part.logp.exp().split((ids.shape[1], 1), -1)
    value, slope = slopes(part.logp, target_logp.double())
    slope_sum = slope.sum(-1, keepdim=True)
    outside = (slope[:, -1:] / rest - slope_sum).squeeze(-1) / logits.temperature
    expected = rest.squeeze(-1) * rest_expected + torch.where(
        inside == 0.0, 0.0, inside * picked
    ).sum(-1)
    count, width = logits.raw.shape
    block = block_of(width)
    kernels.outside_grad_kernel[(count, triton.cdiv(width, block))](
        logits.raw, logits.raw.stride(0), _bias_or_rows(logits), part.normaliser, outside,
        out, out.stride(0), *_transform(logits), 1.0 / logits.temperature, width,
        **_flags(logits), BLOCK=block,
    )  # fmt: skip
    grad = (slope[:, :-1] - inside * slope_sum) / logits.temperature * logits.scale
    if logits.softcap is not None:
        grad *= 1.0 - (picked * logits.temperature / logits.softcap) ** 2
    out.scatter_(-1, ids, grad.to(out.dtype))
    return RowResult(
        value=value,
        entropy=part.normaliser.squeeze(-1) - expected,
        factor=torch.ones_like(value),
    )


def full_grad_(logits: Logits, target: Logits, route: Route, out: Tensor) -> RowResult:
    """Value and gradient of a full-vocabulary divergence that has a Triton kernel.

    Writes d value / d z into out [C, V]; the rows stay as they are. The result's factor is 1.
    """
    kind = KINDS[divergences.of_route(route).name]
    log_sum, expected = row_stats(logits)
    target_log_sum, _ = row_stats(target)
    count, width = logits.raw.shape
    block = block_of(width)
    student_part, target_part = logits.raw.new_empty((2, count), dtype=torch.float64)
    rows = (
        logits.raw, logits.raw.stride(0), _bias_or_rows(logits),
        target.raw, target.raw.stride(0), _bias_or_rows(target), log_sum, target_log_sum,
    )  # fmt: skip
    scalars = (
        *_transform(logits), *_transform(target), 1.0 / logits.temperature, route.beta, width,
    )  # fmt: skip
    flags = _flags(logits) | {f"TARGET_{name}": value for name, value in _flags(target).items()}
    kernels.value_kernel[(count,)](
        *rows, student_part, target_part, *scalars, KIND=kind, **flags, BLOCK=block
    )
    kernels.full_grad_kernel[(count, triton.cdiv(width, block))](
        *rows, student_part, out, out.stride(0), *scalars, KIND=kind, **flags, BLOCK=block
    )
    is_mixed = kind == KINDS["jsd"]
    student_weight, target_weight = (1.0 - route.beta, route.beta) if is_mixed else (1.0, 1.0)
    return RowResult(
        value=student_weight * student_part + target_weight * target_part,
        entropy=log_sum - expected,
        factor=torch.full_like(log_sum, 1.0 / logits.temperature),
    )


class TritonRows:
    """These functions as a backend. A divergence without a kernel runs by the compiled torch rows."""

    def __init__(self, grad_dtype: torch.dtype = torch.float32) -> None:
        self._grad_dtype = grad_dtype
        self._gradients: Tensor | None = None

    def gradients(self, raw: Tensor) -> Tensor:
        size, kept = raw.numel(), self._gradients
        if kept is None or kept.numel() < size:
            self._gradients = kept = raw.new_empty(size, dtype=self._grad_dtype)
        return kept[:size].view_as(raw)

    def ready_(self, logits: Logits) -> Logits:
        return logits

    def score_(self, logits: Logits, ids: Tensor, k: int) -> RowScores:
        return score(logits, ids, k)

    def top_ids(self, logits: Logits, k: int) -> Tensor:
        anything = logits.raw.new_zeros(len(logits.raw), dtype=torch.int64)
        return score(logits, anything, k).top_ids

    def logp_at_(self, logits: Logits, ids: Tensor) -> Tensor:
        return partition_at_(logits, ids)[0].logp

    def support_grad_(
        self, logits: Logits, ids: Tensor, target_logp: Tensor, slopes: Slopes, out: Tensor
    ) -> RowResult:
        return support_grad_(logits, ids, target_logp, slopes, out)

    def full_grad_(self, logits: Logits, target: Logits, route: Route, out: Tensor) -> RowResult:
        if divergences.of_route(route).name in KINDS:
            return full_grad_(logits, target, route, out)
        rows = TorchRows(*logits.raw.shape, logits.raw, is_deep=True)
        own, other = rows.ready_(logits), rows.ready_(target)
        result = _torch_full_grad()(rows, own, other, route, out)
        out.copy_(own.raw)
        return result


@cache
def _torch_full_grad() -> Callable[..., RowResult]:
    """`TorchRows.full_grad_`, compiled once a process on a GPU: not for every chunk anew."""
    full_grad = TorchRows.full_grad_
    return torch.compile(full_grad, dynamic=True) if torch.cuda.is_available() else full_grad
