"""What is computed on rows of raw logits between the products: scores, values, gradients.

A backend is TorchRows here, or triton_rows.TritonRows on a GPU. Raw logits z are h W^T; every backend sees
x = cap tanh(scale (z + bias) / cap), and probabilities are those of x / temperature.

Shapes: C rows, V width, K support.
"""

import importlib.util
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dopd_vlm.routed_loss.gradients import RowResult, Slopes, full_, on_support_
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.softmax import log_sum_outside, partition, rows_in_cache
from dopd_vlm.routed_loss.top_k import top_k_ids
from dopd_vlm.types import Route


@dataclass(frozen=True, kw_only=True, eq=False)
class Logits:
    """Rows of raw logits, and what makes x / temperature of them."""

    raw: Tensor
    """[C, V], rows contiguous."""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    """Of the loss."""
    slope: Tensor | float = 1.0
    """d (x / temperature) / d z of rows that are x / temperature already."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores:
    """What pass 1 keeps of rows; float64."""

    logp: Tensor
    """[C] of the sampled token at temperature 1, nats."""
    loss_logp: Tensor
    """[C] at the loss temperature."""
    top_ids: Tensor
    """int64 [C, K], most probable first, ties by the lowest id."""
    top_logp: Tensor
    """[C, K + 1] at the loss temperature; last: all other tokens together."""


class Rows(Protocol):
    """A backend. Methods with a trailing underscore use their rows up."""

    def gradients(self, raw: Tensor) -> Tensor:
        """Where the gradients of these rows go, [C, V]."""
        ...

    def ready_(self, logits: Logits) -> Logits:
        """The rows as this backend's other methods want them."""
        ...

    def score_(self, logits: Logits, ids: Tensor, k: int) -> RowScores:
        """Scores of the sampled ids [C], and the top k; of rows that are not ready."""
        ...

    def top_ids(self, logits: Logits, k: int) -> Tensor:
        """Ids of the k most probable tokens.  [C, K]"""
        ...

    def logp_at_(self, logits: Logits, ids: Tensor) -> Tensor:
        """Log-probs at ids [C, K] and that of all others together, float64.  [C, K + 1]"""
        ...

    def support_grad_(
        self, logits: Logits, ids: Tensor, target_logp: Tensor, slopes: Slopes, out: Tensor
    ) -> RowResult:
        """A divergence on a support: its value, and d value / d z in out, but for the result's factor."""
        ...

    def full_grad_(self, logits: Logits, target: Logits, route: Route, out: Tensor) -> RowResult:
        """A full-vocabulary divergence: the same."""
        ...


class TorchRows:
    """By torch, in place: rows become x / temperature, then gradients. Any dtype and device."""

    def __init__(self, lines: int, width: int, like: Tensor, *, is_deep: bool = False) -> None:
        """Element-wise work goes through scratch lines: two where targets' logits are needed."""
        lines = min(lines, rows_in_cache(width, like.dtype, like.device))
        self._scratch = like.new_empty((2 if is_deep else 1, lines, width))

    def gradients(self, raw: Tensor) -> Tensor:
        return raw

    def ready_(self, logits: Logits) -> Logits:
        x = _transform_(logits)
        factor = logits.scale / logits.temperature
        slope: Tensor | float = factor
        if logits.softcap is not None:
            slope = (x / logits.softcap).square_().neg_().add_(1.0).mul_(factor)
        if logits.temperature != 1.0:
            x /= logits.temperature
        return Logits(raw=x, slope=slope)

    def score_(self, logits: Logits, ids: Tensor, k: int) -> RowScores:
        x, ids = _transform_(logits), ids[:, None]
        # Before the division, which may round two neighbours to a tie.
        top_ids = top_k_ids(x, k)
        logp = None
        if logits.temperature != 1.0:
            logp = x.gather(-1, ids) - log_sum_outside(x, ids[:, :0], self._scratch[0])
            x.div_(logits.temperature)
        part = partition(x, top_ids, self._scratch[0])
        loss_logp = x.gather(-1, ids) - part.normaliser
        return RowScores(
            logp=(loss_logp if logp is None else logp).squeeze(-1),
            loss_logp=loss_logp.squeeze(-1),
            top_ids=top_ids,
            top_logp=part.logp,
        )

    def top_ids(self, logits: Logits, k: int) -> Tensor:
        return top_k_ids(logits.raw, k)

    def logp_at_(self, logits: Logits, ids: Tensor) -> Tensor:
        return partition(logits.raw, ids, self._scratch[0]).logp

    def support_grad_(
        self, logits: Logits, ids: Tensor, target_logp: Tensor, slopes: Slopes, out: Tensor
    ) -> RowResult:
        result = on_support_(logits.raw, ids, target_logp, slopes, self._scratch[0])
        return _with_slope_(result, logits)

    def full_grad_(self, logits: Logits, target: Logits, route: Route, out: Tensor) -> RowResult:
        result = full_(logits.raw, target.raw, route, self._scratch)
        return _with_slope_(result, logits)


def _transform_(logits: Logits) -> Tensor:
    x = logits.raw
    if logits.bias is not None:
        x += logits.bias
    if logits.scale != 1.0:
        x *= logits.scale
    if logits.softcap is not None:
        x.div_(logits.softcap).tanh_().mul_(logits.softcap)
    return x


def _with_slope_(result: RowResult, logits: Logits) -> RowResult:
    if isinstance(logits.slope, Tensor):
        logits.raw.mul_(logits.slope)
        return result
    return replace(result, factor=result.factor * logits.slope)


def logits_of(raw: Tensor, head: Head, temperature: float) -> Logits:
    """Raw logits of a head, with what it makes of them."""
    return Logits(
        raw=raw,
        bias=None if head.bias is None else head.bias.detach()[: raw.shape[-1]],
        scale=head.logit_scale,
        softcap=head.softcap,
        temperature=temperature,
    )


def rows_for(
    lines: int,
    width: int,
    like: Tensor,
    *,
    is_deep: bool = False,
    grad_dtype: torch.dtype = torch.float32,
) -> Rows:
    """The backend for rows of `like`'s dtype and device: Triton on a GPU where it is installed.

    grad_dtype: what gradients are stored in, where they do not take the place of the rows.
    """
    if has_triton_rows(like):
        from dopd_vlm.routed_loss.triton_rows import TritonRows

        return TritonRows(grad_dtype)
    return TorchRows(lines, width, like, is_deep=is_deep)


def has_triton_rows(like: Tensor) -> bool:
    """Whether Triton's kernels take these rows."""
    has_triton = importlib.util.find_spec("triton") is not None
    return like.device.type == "cuda" and like.dtype == torch.float32 and has_triton
