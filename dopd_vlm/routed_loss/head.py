"""Output heads in chunks of rows: hidden states -> logits, and the way back for gradients.

Shapes: C rows of a chunk, H hidden size, V width of the softmax. All products are in the chunk's
dtype (float32, or float64 for float64 input) whatever dtype the weights are stored in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

UPCAST_TILE = 8192
"""Rows of a lower-precision weight that are upcast at a time, so that no full copy exists."""
PRODUCT_TILE_BYTES = 4 << 20
"""Size of the result of one oneDNN product: it lies in the cache when it is copied or added."""
CPU_CHUNK_BYTES = 32 << 20
"""Size of one logits buffer on CPU; less of it makes the matrix products slower."""
CPU_CACHE_BYTES = 1 << 20
"""What element-wise work takes at a time and thread on CPU: about a core's cache."""
CUDA_BLOCK_BYTES = 64 << 20
"""The same on CUDA, where large launches matter more than the cache."""
CUDA_FREE_SHARE = 0.05
"""Share of the free device memory that one logits buffer may take."""
MAX_CUDA_CHUNK_BYTES = 1 << 30


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


class Buffer:
    """Memory that one pass after the other fills with logits.

    Pages that are new to the process cost a twentieth of a loss of 1024 tokens on CPU.
    """

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def take(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[rows, width] with undefined contents, over whatever was taken before."""
        flat, size = self._flat, rows * width
        if flat is None or len(flat) < size or (flat.dtype, flat.device) != (dtype, device):
            self._flat = flat = None  # the old one ends before the new one begins
            self._flat = flat = torch.empty(size, dtype=dtype, device=device)
        return flat[:size].view(rows, width)

    def free(self) -> None:
        """Gives the memory back."""
        self._flat = None


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """How logits become probabilities, and how many rows of them exist at a time."""

    width: int
    """Vocabulary entries it runs over: the smallest of the heads', which may be padded."""
    temperature: float = 1.0
    chunk_size: int | None = None
    """Rows of a buffer of logits; None chooses by memory. Two buffers exist at a time."""
    buffer: Buffer = field(default_factory=Buffer, compare=False)
    """The two, in one."""

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1, or None")

    def rows(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> int:
        """Rows of a buffer, at least 1 and at most num_rows."""
        size = self.chunk_size or default_chunk_size(self.width, dtype, device)
        return max(1, min(size, num_rows))


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


def chunk_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any input is float64, else float32."""
    is_double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if is_double else torch.float32


def default_chunk_size(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows whose logits fill one buffer: a fixed size on CPU, a share of free memory on CUDA."""
    budget = CPU_CHUNK_BYTES
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        budget = cuda_chunk_bytes(free)
    return max(1, budget // (width * dtype.itemsize))


def cuda_chunk_bytes(free: int) -> int:
    """Bytes of one logits buffer on CUDA with so many bytes free."""
    return min(MAX_CUDA_CHUNK_BYTES, max(0, int(free * CUDA_FREE_SHARE)))


def rows_in_cache(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of logits that element-wise work takes at a time."""
    on_cpu = CPU_CACHE_BYTES * torch.get_num_threads()
    return max(
        1, (on_cpu if device.type == "cpu" else CUDA_BLOCK_BYTES) // (width * dtype.itemsize)
    )


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
