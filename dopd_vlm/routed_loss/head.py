"""Output heads in chunks of rows: hidden states -> logits, and the way back for gradients.

Shapes: C rows of a chunk, H hidden size, V width of the softmax. All products are in the chunk's
dtype (float32, or float64 for float64 input) whatever dtype the weights are stored in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

UPCAST_TILE = 8192
"""Rows of a lower-precision weight that are upcast at a time, so that no full copy exists."""
PRODUCT_TILE_BYTES = 4 << 20
"""Size of the result of one oneDNN product: it lies in the cache when it is copied or added."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """An output layer: logits = cap tanh(scale (h W^T + b) / cap), or scale (h W^T + b)."""

    weight: Tensor
    """[V, H], floating point."""
    bias: Tensor | None = None
    """[V]"""
    logit_scale: float = 1.0
    """Multiplies the logits (Cohere's logit_scale, 1 / Granite's logits_scaling)."""
    softcap: float | None = None
    """Gemma's final_logit_softcapping."""

    def detach(self) -> "Head":
        """The same head without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(
            weight=self.weight.detach(),
            bias=bias,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
        )


def as_head(head: Tensor | Head, bias: Tensor | None = None) -> Head:
    """A weight (and bias) as a Head; a Head as it is.

    Raises:
        ValueError: a bias beside a Head, or a weight that is not [V, H].
    """
    if isinstance(head, Head):
        if bias is not None:
            raise ValueError("give the bias inside the Head or beside a plain weight, not both")
        return head
    if head.ndim != 2:
        raise ValueError(f"a head weight must be [V, H]; got shape {tuple(head.shape)}")
    return Head(weight=head, bias=bias)


@contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Lets CUDA multiply float32 copies of weights of that dtype on its tensor cores, where they lose nothing.

    A bfloat16 or float16 number is a TF32 number, and sums are float32. A gradient of logits is rounded to
    TF32's 10 bits, finer than its rounding to bfloat16 in the end.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if dtype in (torch.bfloat16, torch.float16):
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_onednn(rows: Tensor) -> bool:
    return HAS_ONEDNN and rows.device.type == "cpu" and rows.dtype == torch.float32


def tiles(weight: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A weight by entries, in the dtype of the rows [C, ...] that are to be multiplied with it."""
    size = len(weight) if weight.dtype == rows.dtype else UPCAST_TILE
    if _is_onednn(rows):
        size = min(size, max(1, PRODUCT_TILE_BYTES // (max(1, len(rows)) * rows.itemsize)))
    for start in range(0, len(weight), size):
        tile = slice(start, min(start + size, len(weight)))
        yield tile, weight[tile].to(rows.dtype)


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.T of one dtype.  [C, H], [L, H] -> [C, L]"""
    if _is_onednn(rows):
        # torch.mm calls MKL, which takes a third to a half more time for a few hundred rows. The operator that
        # reaches oneDNN without a copy of the weight is inductor's.
        return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return rows @ weight.T


def product_(rows: Tensor, weight: Tensor, out: Tensor, *, adds: bool = False) -> None:
    """Writes `product` into out [C, L], or adds it."""
    if not _is_onednn(rows):
        out.addmm_(rows, weight.T, beta=int(adds))  # with beta 0 what was there is not read
    elif adds:
        out += product(rows, weight)
    else:
        out.copy_(product(rows, weight))


def logits_(rows: Tensor, head: Head, out: Tensor) -> Tensor:
    """Writes the logits of rows [C, H] into out [C, V], of the same dtype, and returns it."""
    width = out.shape[-1]
    for tile, weight in tiles(head.weight.detach()[:width], rows):
        product_(rows, weight, out[:, tile])
    if head.bias is not None:
        out += head.bias.detach()[:width]
    if head.logit_scale != 1.0:
        out *= head.logit_scale
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)
    return out


def softcap_slope(logits: Tensor, head: Head) -> Tensor | None:
    """d logits / d uncapped logits, [C, V]; None without a soft cap."""
    if head.softcap is None:
        return None
    return (logits / head.softcap).square_().neg_().add_(1.0)


def hidden_grad(grad_logits: Tensor, head: Head) -> Tensor:
    """Gradient [C, H] of hidden rows from that of raw logits [C, V]."""
    weights = head.weight.detach()[: grad_logits.shape[-1]]
    out = grad_logits.new_zeros(len(grad_logits), weights.shape[1])
    for tile, weight in tiles(weights, grad_logits):
        product_(grad_logits[:, tile], weight.T, out, adds=True)
    return out
