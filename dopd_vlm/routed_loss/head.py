"""An output layer, and how it is to be multiplied."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

HeadPrecision = Literal["auto", "bfloat16", "tf32", "float32"]


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
    precision: HeadPrecision = "auto"
    """Operands of its products; sums and results are float32. auto: bfloat16 for bfloat16 weights on a GPU,
    else float32. float64 inputs are multiplied in float64 whatever this says."""
    operand: Tensor | None = None
    """bfloat16 copy of a float32 weight, for a caller that makes it once a step; None makes one a call."""

    def detach(self) -> "Head":
        """The same head without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)


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
