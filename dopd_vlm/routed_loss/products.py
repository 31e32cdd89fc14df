"""The three matrix products of a head: logits, and the gradients of hidden states and weight.

Shapes: C rows of a chunk, H hidden size, V width of the softmax.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.products_cpu import product_, tiles


class Products(Protocol):
    """How one head is multiplied."""

    grad_dtype: torch.dtype
    """Of the gradient of logits that its products take without a cast."""

    def logits_(self, hidden: Tensor, out: Tensor) -> None:
        """Writes h W^T of rows [C, H] into out [C, V], without bias, scale and cap."""
        ...

    def hidden_grad(self, grad_logits: Tensor) -> Tensor:
        """Gradient [C, H] of hidden rows from that of h W^T [C, V]."""
        ...

    def add_head_grad_(self, into: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
        """Adds grad^T h to into [V, H]; hidden: [C, H], with the rows' weights already on it."""
        ...


class ExactProducts:
    """In the dtype of the rows, float32 or float64; bfloat16 weights are taken up tile by tile."""

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        self.grad_dtype = dtype
        self._weight, self._is_tf32 = head.weight.detach(), _is_tf32(head)

    def logits_(self, hidden: Tensor, out: Tensor) -> None:
        with _matmul_precision(self._is_tf32):
            for tile, weight in tiles(self._weight[: out.shape[-1]], hidden):
                product_(hidden, weight, out[:, tile])

    def hidden_grad(self, grad_logits: Tensor) -> Tensor:
        weights = self._weight[: grad_logits.shape[-1]]
        out = grad_logits.new_zeros(len(grad_logits), weights.shape[1])
        with _matmul_precision(self._is_tf32):
            for tile, weight in tiles(weights, grad_logits):
                product_(grad_logits[:, tile], weight.T, out, adds=True)
        return out

    def add_head_grad_(self, into: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
        with _matmul_precision(self._is_tf32):
            into.addmm_(grad_logits.T, hidden)


class Bfloat16Products:
    """bfloat16 operands, float32 sums and results: the tensor cores of a GPU.

    On a CPU the same numbers come from float32 products of rounded operands, which is the exact reference:
    a product of two bfloat16 numbers is a float32 number.
    """

    grad_dtype = torch.bfloat16

    def __init__(self, head: Head) -> None:
        """The head's own bfloat16 copy, or one made here."""
        operand = head.weight.detach() if head.operand is None else head.operand
        self._weight = operand.bfloat16()

    def logits_(self, hidden: Tensor, out: Tensor) -> None:
        _mm_(hidden, self._weight[: out.shape[-1]].T, out)

    def hidden_grad(self, grad_logits: Tensor) -> Tensor:
        weight = self._weight[: grad_logits.shape[-1]]
        out = grad_logits.new_empty(len(grad_logits), weight.shape[1], dtype=torch.float32)
        _mm_(grad_logits, weight, out)
        return out

    def add_head_grad_(self, into: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
        a, b = grad_logits.T.bfloat16(), hidden.bfloat16()
        if into.device.type == "cuda":
            torch.addmm(into, a, b, out_dtype=torch.float32, out=into)  # type: ignore[call-overload]
        else:
            into.addmm_(a.float(), b.float())


def _mm_(a: Tensor, b: Tensor, out: Tensor) -> None:
    a, b = a.bfloat16(), b.bfloat16()
    if out.device.type == "cuda":
        torch.mm(a, b, out_dtype=torch.float32, out=out)  # type: ignore[call-overload]
    else:
        torch.mm(a.float(), b.float(), out=out)


def _is_tf32(head: Head) -> bool:
    """Where it is asked for, and for float32 copies of lower-precision weights, where it loses nothing.

    A bfloat16 or float16 number is a TF32 number, and sums are float32. A gradient of logits is rounded to
    TF32's 10 bits, finer than its rounding to bfloat16 in the end.
    """
    is_low = head.weight.dtype in (torch.bfloat16, torch.float16)
    return head.precision == "tf32" or (head.precision == "auto" and is_low)


@contextmanager
def _matmul_precision(is_tf32: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if is_tf32:
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def products_for(head: Head, dtype: torch.dtype) -> Products:
    """How a head is multiplied with rows of a dtype: by its own precision, whatever the others' is."""
    if dtype != torch.float32:
        return ExactProducts(head, dtype)
    on_cores = head.weight.device.type == "cuda" and head.weight.dtype == torch.bfloat16
    is_bfloat16 = head.precision == "bfloat16" or (head.precision == "auto" and on_cores)
    return Bfloat16Products(head) if is_bfloat16 else ExactProducts(head, dtype)
