"""What `bench.py loss` compares: our routed loss, the peers', and the bare matrix products.

Every variant is a function of one Inputs that leaves gradients in `hidden.grad` and `head.grad`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dopd_vlm.divergences import generalized_jsd
from dopd_vlm.routed_loss import Head, LossOutput, Student, Target, routed_loss
from dopd_vlm.routed_loss.products_cpu import product, product_, tiles

PEER_CHUNK = 64
LIMIT_CHUNK = 512
"""Rows at a time where no whole line of logits is needed: the fastest found."""
LOGIT_SCALE = 3.0
"""Standard deviation of the random logits, in nats."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Random hidden states [1, N, H] and heads [V, H]; ids sampled from the student."""

    hidden: Tensor
    head: Tensor
    privileged: Tensor
    teacher: Tensor
    teacher_head: Tensor
    ids: Tensor
    mask: Tensor


def make_inputs(
    tokens: int, vocab: int, size: int, dtype: torch.dtype, device: torch.device
) -> Inputs:
    """Targets are noisy copies of the student, so that gaps look like training and a quarter is HT."""
    gen = torch.Generator(device=device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, device=device)

    hidden, head = normal(1, tokens, size), normal(vocab, size) * LOGIT_SCALE / size**0.5
    privileged = hidden + 0.33 * normal(1, tokens, size)
    teacher = hidden + 0.27 * normal(1, tokens, size)
    ids = torch.cat(
        [
            torch.multinomial((rows @ head.T).softmax(-1), 1, generator=gen).squeeze(-1)
            for rows in hidden[0].split(PEER_CHUNK)
        ]
    )
    return Inputs(
        hidden=hidden.to(dtype).requires_grad_(),
        head=head.to(dtype).requires_grad_(),
        privileged=privileged.to(dtype),
        teacher=teacher.to(dtype),
        teacher_head=(head + 0.1 * normal(vocab, size) / size**0.5).to(dtype),
        ids=ids[None],
        mask=torch.ones(1, tokens, dtype=torch.bool, device=device),
    )


def run_ours(inputs: Inputs, name: str) -> LossOutput:
    """Forward and backward of one of our methods, both passes included."""
    output = routed_loss(
        Student(hidden=inputs.hidden, head=Head(weight=inputs.head)),
        {
            "teacher": Target(hidden=inputs.teacher, head=Head(weight=inputs.teacher_head)),
            "self_target": Target(hidden=inputs.privileged),
        },
        inputs.ids,
        inputs.mask,
        name,
    )
    output.loss.backward()
    return output


def _jsd(hidden: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    student = (hidden @ head.T).float().log_softmax(-1)
    target = (teacher @ teacher_head.T).float().log_softmax(-1)
    return generalized_jsd(student, target).sum()


def run_dense(inputs: Inputs) -> None:
    """Full JS of one target by autograd on whole logits."""
    loss = _jsd(inputs.hidden[0], inputs.head, inputs.teacher[0], inputs.teacher_head)
    (loss / inputs.ids.numel()).backward()


def run_checkpoint(inputs: Inputs) -> None:
    """The same by autograd with one checkpoint per chunk of rows."""
    total = inputs.hidden.new_zeros((), dtype=torch.float32)
    pairs = zip(
        inputs.hidden[0].split(PEER_CHUNK), inputs.teacher[0].split(PEER_CHUNK), strict=True
    )
    for rows, teacher in pairs:
        part = checkpoint(
            _jsd, rows, inputs.head, teacher, inputs.teacher_head, use_reentrant=False
        )
        total = total + part
    (total / inputs.ids.numel()).backward()


def run_trl(inputs: Inputs, token_chunk: int | None = None) -> None:
    """TRL's ChunkedDivergenceFunction, at its own tiles or at token_chunk x V."""
    from trl.kernels import chunked_divergence as kernel

    tiles = kernel.TOKEN_CHUNK_SIZE, kernel.VOCAB_CHUNK_SIZE
    if token_chunk is not None:
        kernel.TOKEN_CHUNK_SIZE, kernel.VOCAB_CHUNK_SIZE = token_chunk, len(inputs.head)
    try:
        value, _ = kernel.ChunkedDivergenceFunction.apply(
            inputs.hidden[0], inputs.head, None, inputs.teacher[0], inputs.teacher_head, None,
            0.5, 1.0, 1.0, None, 1.0, None,
        )  # fmt: skip
        value.mean().backward()
    finally:
        kernel.TOKEN_CHUNK_SIZE, kernel.VOCAB_CHUNK_SIZE = tiles


def run_liger(inputs: Inputs, *, is_compiled: bool = False) -> None:
    """Liger's fused linear JSD."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=is_compiled, chunk_size=PEER_CHUNK
    )
    loss(
        inputs.hidden[0], inputs.head, inputs.teacher[0], inputs.teacher_head, inputs.ids[0]
    ).backward()


def run_limit(inputs: Inputs, deep_share: float) -> None:
    """The matrix products of a routed step with trained head alone: (5 + h) of N x H x V."""
    dtype = torch.float32 if inputs.hidden.device.type == "cpu" else inputs.hidden.dtype
    hidden, head = inputs.hidden.detach()[0].to(dtype), inputs.head.detach().to(dtype)
    grad_hidden, grad_head = torch.zeros_like(hidden), torch.zeros_like(head)
    chunks = zip(hidden.split(LIMIT_CHUNK), grad_hidden.split(LIMIT_CHUNK), strict=True)
    for rows, grad in chunks:
        for tile, part in tiles(head, rows):
            product(rows, part), product(rows, part)  # the targets' scores
            logits = product(rows, part)
            product_(logits, part.T, grad, adds=True)
            grad_head[tile].addmm_(logits.T, rows)
    for rows in hidden[: round(deep_share * len(hidden))].split(LIMIT_CHUNK):
        for _, part in tiles(head, rows):
            product(rows, part)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing to measure."""

    run: Callable[[Inputs], object]
    num_targets: int = 1

    def products(self, deep_share: float) -> float:
        """Matrix products of N x H x V that it cannot avoid, with a trained head.

        Logits of the student and of each target, dHidden and dHead; with two targets the routing needs
        both before the teacher's are used, so that they are computed again for the share of deep tokens.
        """
        return 4.0 if self.num_targets == 1 else 5.0 + deep_share


VARIANTS: dict[str, Variant] = {
    "ours dopd": Variant(run=lambda inputs: run_ours(inputs, "dopd"), num_targets=2),
    "ours opd full": Variant(run=lambda inputs: run_ours(inputs, "opd_full")),
    "ours opd top-K": Variant(run=lambda inputs: run_ours(inputs, "opd")),
    "dense autograd": Variant(run=run_dense),
    "checkpoint": Variant(run=run_checkpoint),
    "TRL default": Variant(run=run_trl),
    "TRL tuned": Variant(run=lambda inputs: run_trl(inputs, PEER_CHUNK)),
    "Liger": Variant(run=run_liger),
    "Liger compiled": Variant(run=lambda inputs: run_liger(inputs, is_compiled=True)),
}
"""By name; the limit, `run_limit`, is not among them."""
