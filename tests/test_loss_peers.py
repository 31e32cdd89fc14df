"""The routed loss against TRL's and Liger's kernels where they compute the same thing."""

import pytest
import torch

from dopd_vlm.methods import Method
from dopd_vlm.routed_loss import Head, Student, Target, routed_loss
from dopd_vlm.types import Regime, Route

B, T, V, H = 2, 9, 67, 5


def make_case(dtype):
    gen = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=gen, dtype=torch.float64).to(dtype)

    hidden, head = normal(B, T, H), normal(V, H)
    teacher, teacher_head = normal(B, T, H + 1), normal(V, H + 1)
    ids = torch.randint(0, V, (B, T), generator=gen)
    return hidden.requires_grad_(), head.requires_grad_(), teacher, teacher_head, ids


def ours(case, beta, temperature):
    route = Route(target="teacher", target_view="plain", divergence="jsd", beta=beta)
    method = Method(name="x", routes=dict.fromkeys(Regime, route), router="uniform")
    hidden, head, teacher, teacher_head, ids = case
    mask = torch.ones(B, T, dtype=torch.bool)
    output = routed_loss(
        Student(hidden=hidden, head=Head(weight=head)),
        {"teacher": Target(hidden=teacher, head=Head(weight=teacher_head))},
        ids,
        mask,
        method,
        temperature=temperature,
    )
    return output, torch.autograd.grad(output.loss, (hidden, head))


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_equals_trl(beta, temperature):
    trl = pytest.importorskip("trl.kernels.chunked_divergence")
    case = make_case(torch.float32)
    hidden, head, teacher, teacher_head, _ = case
    value, entropy = trl.ChunkedDivergenceFunction.apply(
        hidden.flatten(0, 1), head, None, teacher.flatten(0, 1), teacher_head, None,
        beta, temperature, 1.0, None, 1.0, None,
    )  # fmt: skip
    # One weight per token: 1 / (T B), as all completions have T tokens.
    theirs = torch.autograd.grad(value.sum() / (B * T), (hidden, head))
    output, grads = ours(case, beta, temperature)
    torch.testing.assert_close(output.per_token.flatten(), value.detach(), rtol=2e-5, atol=1e-6)
    assert output.metrics["entropy/student"].item() == pytest.approx(entropy.sum().item(), rel=1e-5)
    for a, b in zip(grads, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 2e-6


def test_equals_trl_with_bias_scale_and_softcap():
    """TRL caps and scales in the same order: cap tanh(scale (h W^T + b) / cap)."""
    trl = pytest.importorskip("trl.kernels.chunked_divergence")
    hidden, weight, teacher, teacher_weight, ids = make_case(torch.float64)
    gen = torch.Generator().manual_seed(1)
    biases = [torch.randn(V, generator=gen, dtype=torch.float64) for _ in range(2)]
    leaves = (hidden, weight, biases[0].requires_grad_())
    value, _ = trl.ChunkedDivergenceFunction.apply(
        hidden.flatten(0, 1), weight, biases[0], teacher.flatten(0, 1), teacher_weight, biases[1],
        0.5, 1.3, 0.7, 2.5, 1.2, 3.5,
    )  # fmt: skip
    theirs = torch.autograd.grad(value.sum() / (B * T), leaves)
    output = routed_loss(
        Student(
            hidden=hidden,
            head=Head(weight=weight, bias=biases[0], logit_scale=0.7, softcap=2.5),
        ),
        {
            "teacher": Target(
                hidden=teacher,
                head=Head(weight=teacher_weight, bias=biases[1], logit_scale=1.2, softcap=3.5),
            )
        },
        ids,
        torch.ones(B, T, dtype=torch.bool),
        "opd_full",
        temperature=1.3,
    )
    # TRL computes in float32.
    torch.testing.assert_close(
        output.per_token.flatten(), value.detach().double(), rtol=2e-5, atol=1e-6
    )
    for a, b in zip(torch.autograd.grad(output.loss, leaves), theirs, strict=True):
        assert (a - b).norm() / b.norm() < 2e-6


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_equals_liger(beta):
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    case = make_case(torch.float32)
    hidden, head, teacher, teacher_head, ids = case
    loss = liger.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=4
    )
    value = loss(hidden.flatten(0, 1), head, teacher.flatten(0, 1), teacher_head, ids.flatten())
    theirs = torch.autograd.grad(value, (hidden, head))
    output, grads = ours(case, beta, 1.0)
    assert output.loss.item() == pytest.approx(value.item(), rel=1e-5)
    for a, b in zip(grads, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 2e-6
