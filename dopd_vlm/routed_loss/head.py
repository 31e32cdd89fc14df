"""An output layer, how it is to be multiplied, and the head of a composed target.

A composed target is log q = sum_k c_k log p_k + const. The log-probs differ from the logits W_k h_k + b_k
by a constant of the token, so that q is the softmax of sum_k c_k (W_k h_k + b_k), over the whole
vocabulary. Terms of one head need no other weight, as sum_k c_k W h_k = W sum_k c_k h_k; different heads
stand side by side, [W_1 W_2] of [c_1 h_1; c_2 h_2]. So q is a hidden state and a head like any other
target, and a top-K is one of q.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
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
        ValueError: a bias besides a Head, or a weight that is not [V, H].
    """
    if isinstance(head, Head):
        if bias is not None:
            raise ValueError("give the bias inside the Head or beside a plain weight, not both")
        return head
    if head.ndim != 2:
        raise ValueError(f"a head weight must be [V, H]; got shape {tuple(head.shape)}")
    return Head(weight=head, bias=bias)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Terms of one head."""

    head: Head
    terms: list[int]
    coefficients: list[float]


def compose_hidden(
    coefficients: Sequence[float], hidden: Sequence[Tensor], heads: Sequence[Head]
) -> Tensor:
    """Hidden states of the composed target, for the head of `compose_head`.  [..., H_k] -> [..., H]

    Args:
        coefficients: c_k, any finite numbers.
        hidden: h_k, [..., H_k] each.
        heads: of each term; terms of one weight share it.

    Returns:
        float32, or float64 where an input is: a difference of bfloat16 states is rounded once, not twice.
        A single term of coefficient 1 comes back as it is. Detached.

    Raises:
        ValueError: a head with a soft cap, whose logits are no product, among several terms.
    """
    if _is_plain(coefficients):
        return hidden[0].detach()
    parts = []
    for block in _blocks(coefficients, heads):
        scale = block.head.logit_scale
        states = [hidden[k].detach() for k in block.terms]
        terms = zip(block.coefficients, states, strict=True)
        parts.append(
            torch.stack(
                [c * scale * h.to(torch.promote_types(h.dtype, torch.float32)) for c, h in terms]
            ).sum(0)
        )
    return torch.cat(parts, -1)


def compose_head(coefficients: Sequence[float], heads: Sequence[Head]) -> Head:
    """The head of the composed target, detached; a copy of the weights only where the terms' heads differ.

    Heads of different widths are cut to the smallest. Errors of `compose_hidden`.
    """
    if _is_plain(coefficients):
        return heads[0].detach()
    blocks = _blocks(coefficients, heads)
    width = min(len(block.head.weight) for block in blocks)
    biases = [
        sum(block.coefficients) * block.head.logit_scale * block.head.bias[:width]
        for block in blocks
        if block.head.bias is not None
    ]
    bias = torch.stack(biases).sum(0) if biases else None
    first = blocks[0].head
    if len(blocks) == 1:
        return replace(first, bias=bias, logit_scale=1.0).detach()
    weight = torch.cat([block.head.weight[:width] for block in blocks], -1)
    return Head(weight=weight, bias=bias, precision=first.precision).detach()


def _is_plain(coefficients: Sequence[float]) -> bool:
    return list(coefficients) == [1.0]


def _blocks(coefficients: Sequence[float], heads: Sequence[Head]) -> list[_Block]:
    blocks: dict[tuple[int, float], _Block] = {}
    for k, (coefficient, head) in enumerate(zip(coefficients, heads, strict=True)):
        if head.softcap is not None:
            raise ValueError(
                f"a composed target needs heads whose logits are products; one has softcap={head.softcap}: "
                "use a target of one term with coefficient 1 for this model"
            )
        # Weights without memory, of a dry run, have no address to tell them apart by.
        key = head.weight.data_ptr() or id(head.weight), head.logit_scale
        block = blocks.setdefault(key, _Block(head=head, terms=[], coefficients=[]))
        block.terms.append(k)
        block.coefficients.append(coefficient)
    return list(blocks.values())
