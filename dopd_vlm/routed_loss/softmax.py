"""The softmax of rows of logits: its memory, and its parts, the tokens of a support and the rest.

Shapes: C rows, L rows that fit the cache, V vocabulary, K support. Element-wise work goes through the L rows
of a scratch buffer, so that a pass over V reads the cache and not the memory. Sums over V are taken in the
dtype of the logits, what is left after them in float64.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from dopd_vlm.routed_loss.torch_kernels import exp_

CPU_CHUNK_BYTES = 32 << 20
"""Size of one logits buffer on CPU; less of it makes the matrix products slower."""
CPU_CACHE_BYTES = 1 << 20
"""What element-wise work takes at a time and thread on CPU: about a core's cache."""
CUDA_BLOCK_BYTES = 64 << 20
"""The same on CUDA, where large launches matter more than the cache."""
CUDA_FREE_SHARE = 0.05
"""Share of the free device memory that one logits buffer may take."""
MAX_CUDA_CHUNK_BYTES = 5 << 29
LEAST_CUDA_ROWS = 1024
LEAST_SUM, GREATEST_SUM = 1e-15, 1e20
"""Sums of unshifted exponentials in this range lose nothing to under- or overflow in float32."""
LEAST_REST = 1e-38
"""Stands for the mass outside a support where it underflows, so that its logarithm is finite."""


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


def chunk_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any input is float64, else float32."""
    is_double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if is_double else torch.float32


def default_chunk_size(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows whose logits fill one buffer: a fixed size on CPU, a share of free memory on CUDA."""
    if device.type == "cuda":
        return _cuda_chunk_size(width * dtype.itemsize, device)
    return max(1, CPU_CHUNK_BYTES // (width * dtype.itemsize))


@cache
def _cuda_chunk_size(row_bytes: int, device: torch.device) -> int:
    """Decided once a run, so that runs repeat: memory that is free for torch, its own cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return cuda_chunk_rows(free + cached, row_bytes)


def cuda_chunk_rows(free: int, row_bytes: int) -> int:
    """Rows of one logits buffer on CUDA with so many bytes free.

    Fewer than LEAST_CUDA_ROWS would read the head more often than its products are worth.
    """
    budget = min(MAX_CUDA_CHUNK_BYTES, max(0, int(free * CUDA_FREE_SHARE)))
    return max(LEAST_CUDA_ROWS, budget // row_bytes)


def rows_in_cache(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of logits that element-wise work takes at a time."""
    on_cpu = CPU_CACHE_BYTES * torch.get_num_threads()
    return max(
        1, (on_cpu if device.type == "cpu" else CUDA_BLOCK_BYTES) // (width * dtype.itemsize)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """The softmax of rows, taken apart into a support and the rest; float64."""

    logp: Tensor
    """[C, K + 1]; last: all tokens outside the support together"""
    normaliser: Tensor
    """[C, 1] log sum exp(logits)"""


def exponentials_(logits: Tensor, ids: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leaves e = exp(logits - shift) in out, 0 at ids [L, K]; returns its sum and the shift [L, 1].

    The shift costs two passes; on CPU it is left out (None) unless the sum then leaves its range (on a
    GPU, looking at the sum would cost more).
    """
    if logits.device.type == "cpu":
        total = _sum_outside_(exp_(logits, out), ids)
        low, high = total.aminmax()
        if float(low) >= LEAST_SUM and float(high) <= GREATEST_SUM:
            return total, None
    shift = logits.amax(-1, keepdim=True)
    return _sum_outside_(exp_(torch.sub(logits, shift, out=out), out), ids), shift


def _sum_outside_(exponentials: Tensor, ids: Tensor | None) -> Tensor:
    if ids is not None and ids.shape[1]:
        exponentials.scatter_(-1, ids, 0.0)
    return exponentials.sum(-1, keepdim=True)


def log_sum_outside(logits: Tensor, ids: Tensor, scratch: Tensor) -> Tensor:
    """log of the sum of exp(logits) but at ids [C, K], float64.  [C, V] -> [C, 1]; scratch: [L, V]"""
    size = len(scratch)
    sums = [
        exponentials_(lines, at, scratch[: len(lines)])
        for lines, at in zip(logits.split(size), ids.split(size), strict=True)
    ]
    return torch.cat([log_of(total, shift) for total, shift in sums])


def log_of(total: Tensor, shift: Tensor | None) -> Tensor:
    """What `exponentials_` returned as one logarithm, float64.  [L, 1]"""
    log_total = total.double().log()
    return log_total if shift is None else log_total + shift


def partition(logits: Tensor, ids: Tensor, scratch: Tensor) -> Partition:
    """The softmax of rows [C, V] by ids [C, K]; scratch: [L, V]."""
    return partition_of(logits.gather(-1, ids), log_sum_outside(logits, ids, scratch))


def partition_of(picked: Tensor, log_rest: Tensor) -> Partition:
    """picked: logits [C, K] of the support; log_rest: float64 [C, 1] log sum exp of all others."""
    picked = picked.double()
    # A sum over the rest alone: 1 - mass would be noise where the support holds nearly everything.
    normaliser = torch.cat([picked, log_rest], -1).logsumexp(-1, keepdim=True)
    rest_logp = (log_rest - normaliser).clamp(min=math.log(LEAST_REST))
    return Partition(logp=torch.cat([picked - normaliser, rest_logp], -1), normaliser=normaliser)
