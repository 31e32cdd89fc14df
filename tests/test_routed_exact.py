"""The routed loss and its gradients against dense float64 autograd, over methods, shapes and dtypes."""

from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_case import DENSE_METHODS, Case, V, assert_equals_dense, one_route, relative, small_k
from torch.utils._python_dispatch import TorchDispatchMode

from dopd_vlm.methods import METHODS
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.loss import target_scores
from dopd_vlm.routing import Thresholds
from dopd_vlm.types import Regime


@pytest.mark.parametrize("name", DENSE_METHODS)
@pytest.mark.parametrize("chunk_size", [3, None])
def test_every_method_equals_dense_autograd(name, chunk_size):
    assert_equals_dense(Case(), small_k(METHODS[name]), chunk_size=chunk_size)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("support", ["target", "student", "sampled"])
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
@pytest.mark.parametrize("target", ["teacher", "self_target"])
def test_every_route_equals_dense_autograd(divergence, support, tail, target):
    method = one_route(
        target=target, divergence=divergence, top_k=4, support=support, tail=tail, beta=0.3
    )
    assert_equals_dense(Case(1), method, temperature=1.7)


@pytest.mark.parametrize("beta", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("top_k", [None, V, V + 9])
def test_full_divergences_equal_dense_autograd(beta, top_k):
    method = one_route(target="teacher", divergence="jsd", beta=beta, top_k=top_k)
    assert_equals_dense(Case(2), method, tolerance=1e-10, temperature=0.6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    vocab=st.integers(2, 70),
    hidden=st.integers(1, 9),
    wider=st.integers(0, 5),
    top_k=st.integers(1, 80),
    chunk_size=st.none() | st.integers(1, 9),
    rate=st.floats(0.0, 1.0),
    name=st.sampled_from(["dopd", "dopd_no_teacher", "dopd_one_objective", "opd", "opd_full"]),
)
@pytest.mark.filterwarnings("ignore:the mean privilege gap")
def test_random_shapes_equal_dense_autograd(
    seed, shape, vocab, hidden, wider, top_k, chunk_size, rate, name
):
    case = Case(seed, shape=shape, vocab=vocab, hidden=hidden, wider=wider, rate=rate)
    assert_equals_dense(case, small_k(METHODS[name], top_k), 1e-8, chunk_size=chunk_size)


# Regimes are discrete: the same thresholds on both sides, and none next to a boundary.
LIMITS = (0.81, 0.02, 0.02)
GIVEN = Thresholds(gap=LIMITS[0], q_self=LIMITS[1], q_teacher=LIMITS[2])


@pytest.mark.parametrize("seed", range(3, 13))
@pytest.mark.parametrize("name", ["dopd", "opd_full", "dopd_one_objective", "opd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_inputs(seed, name, dtype):
    """||ours - dense float64|| / ||dense float64|| of loss, values, dHidden and dHead.

    bfloat16 inputs are exact float32 numbers: only their gradients, rounded to bfloat16, are worse.
    """
    case, method = Case(seed, dtype=dtype), small_k(METHODS[name])
    output, *grads = case.grads(method, thresholds=GIVEN, chunk_size=4)
    loss, values, regime, *slow = case.dense(method, limits=LIMITS)
    if method.by_gap:
        assert torch.equal(output.regime, regime)
    assert output.loss.dtype == torch.float32 and grads[1].dtype == dtype
    assert relative(output.loss.detach(), loss) < 1e-6
    assert relative(output.per_token, values) < 1e-6
    for ours, dense in zip(grads, slow, strict=True):
        assert relative(ours, dense) < (1e-2 if dtype == torch.bfloat16 else 1e-6)


class TensorCores(TorchDispatchMode):
    """Rounds the factors of float32 products to bfloat16, as no CUDA device does worse."""

    def __init__(self):
        super().__init__()
        self.precisions = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.precisions.append(torch.backends.cuda.matmul.fp32_precision)
            args = (*args[:-2], *(x.bfloat16().float() for x in args[-2:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["dopd", "opd_full", "dopd_one_objective", "opd"])
def test_products_on_tensor_cores(name):
    """bfloat16 inputs are exact there: loss and values to 1e-6, gradients to the 1% of their own rounding."""
    case, method = Case(3, dtype=torch.bfloat16), small_k(METHODS[name])
    before = torch.backends.cuda.matmul.fp32_precision
    with TensorCores() as cores:
        output, *grads = case.grads(method, thresholds=GIVEN, chunk_size=4)
    assert set(cores.precisions) == {"tf32"}
    assert torch.backends.cuda.matmul.fp32_precision == before
    loss, values, _, *slow = case.dense(method, limits=LIMITS)
    assert relative(output.loss.detach(), loss) < 1e-6
    assert relative(output.per_token, values) < 1e-6
    for ours, dense in zip(grads, slow, strict=True):
        assert relative(ours, dense) < 1e-2


def test_products_of_float32_inputs_stay_float32():
    with TensorCores() as cores:
        Case(3, dtype=torch.float32).grads(small_k(METHODS["dopd"]))
    assert "tf32" not in cores.precisions and cores.precisions


def test_a_tail_with_almost_no_mass():
    """1 - mass would be off by a tenth here, and its logarithm is in the value."""
    case = Case(32, dtype=torch.float32)
    case.teacher *= 3
    method = one_route(target="teacher", divergence="reverse_kl", top_k=12)
    scores = target_scores(
        case.teacher, case.teacher_head, case.ids, case.mask, top_k=12, vocab_size=V
    )
    assert scores.top_logp[:, -1].min().exp() < 1e-6
    output, *grads = case.grads(method)
    exact_output, *exact = as_double(case).grads(method)
    assert relative(output.per_token, exact_output.per_token) < 1e-6
    for ours, double in zip(grads, exact, strict=True):
        assert relative(ours, double) < 2e-6


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
def test_routes_with_supports_of_different_size(tail):
    """Pass 1 keeps the largest; a smaller one takes the left-out tokens into its rest."""
    sizes = {Regime.LH: 3, Regime.LL: 7, Regime.HT: 6, Regime.HS: 2}
    routes = METHODS["dopd"].routes
    method = replace(
        METHODS["dopd"],
        routes={kind: replace(routes[kind], top_k=k, tail=tail) for kind, k in sizes.items()},
    )
    assert_equals_dense(Case(33), method, chunk_size=4)


@pytest.mark.parametrize("shift", [-200.0, 200.0])
@pytest.mark.parametrize("name", ["dopd", "opd_full", "dopd_one_objective"])
def test_logits_far_from_zero(shift, name):
    """A bias that all tokens share changes nothing, though exp of the logits is 0 or infinite."""
    case = Case(30, dtype=torch.float32)
    method = small_k(METHODS[name])
    plain = case.grads(method, thresholds=GIVEN)
    case.bias, case.teacher_bias = torch.full((V,), shift), torch.full((V + 4,), shift)
    shifted = case.grads(method, thresholds=GIVEN)
    for a, b in zip(shifted[1:], plain[1:], strict=True):
        assert relative(a, b) < 2e-4  # at 200 float32 steps by 1.5e-5
    assert shifted[0].loss.item() == pytest.approx(plain[0].loss.item(), rel=1e-4)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_probabilities_that_underflow(divergence):
    """Logits 250 nats apart: e^-250 is 0 in float32, and 0 log 0 must not show."""
    case = Case(31, dtype=torch.float32)
    case.hidden *= 25
    case.teacher *= 25
    method = one_route(target="teacher", divergence=divergence)
    output, *grads = case.grads(method)
    exact_output, *exact = as_double(case).grads(method)
    assert relative(output.per_token, exact_output.per_token) < 1e-5
    for ours, double in zip(grads, exact, strict=True):
        # Where the student is sure, p (log p - log M - KL) is a difference of equals.
        assert relative(ours, double) < 5e-3


def as_double(case):
    for name in ("hidden", "privileged", "teacher", "head", "teacher_head"):
        setattr(case, name, getattr(case, name).double())
    return case


@pytest.mark.parametrize("name", ["dopd", "opd", "opd_full"])
def test_gradcheck(name):
    case = Case(9, shape=(2, 3))
    limits = Thresholds(gap=0.8, q_self=0.02, q_teacher=0.02)

    def loss(hidden, head, bias):
        return case.run(
            small_k(METHODS[name]),
            hidden,
            Head(weight=head, bias=bias),
            thresholds=limits,
            self_head=case.head,
        ).loss

    bias = torch.randn(V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (*case.leaves(), bias.requires_grad_()))


def test_bias_scale_and_softcap():
    case, gen = Case(10), torch.Generator().manual_seed(1)
    bias = torch.randn(V, generator=gen, dtype=torch.float64, requires_grad=True)
    hidden, weight = case.leaves()
    method = small_k(METHODS["dopd_no_teacher"])
    head = Head(weight=weight, bias=bias, logit_scale=0.7, softcap=2.5)
    output = case.run(method, hidden, head, temperature=1.3)
    output.loss.backward()
    slow = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    options = {"bias": slow[2], "scale": 0.7, "softcap": 2.5}
    targets = [
        {
            "teacher": reference.dense_probs(
                case.teacher, case.teacher_head, width=V, temperature=t
            ),
            "self_target": reference.dense_probs(
                case.privileged, slow[1], temperature=t, **options
            ),
        }
        for t in (1.3, 1.0)
    ]
    student = reference.dense_probs(slow[0], slow[1], temperature=1.3, **options)
    loss, _, regime = reference.dense_routed_loss(student, *targets, case.ids, case.mask, method)
    loss.backward()
    assert torch.equal(output.regime, regime)
    for fast, dense in zip((hidden, weight, bias), slow, strict=True):
        assert relative(fast.grad, dense.grad) < 1e-9


def test_one_token_completions():
    case = Case(21, shape=(4, 1))
    assert_equals_dense(case, small_k(METHODS["dopd"]))


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_scores_in_chunks_equal_dense(temperature):
    """17 tokens at chunk size 3: two chunks of both buffers' rows and one of what is left."""
    case = Case(35, rate=1.0, shape=(1, 17))
    # Whole numbers: logits are exact, and many are equal.
    case.teacher, case.teacher_head = case.teacher.round(), case.teacher_head.round()
    scores = target_scores(
        case.teacher, case.teacher_head, case.ids, case.mask, top_k=6, vocab_size=V,
        temperature=temperature, chunk_size=3,
    )  # fmt: skip
    logits = case.teacher[0] @ case.teacher_head[:V].T
    assert scores.top_ids.tolist() == [reference.top_k(row, 6) for row in logits.tolist()]
    probs = reference.dense_probs(case.teacher[0], case.teacher_head[:V], temperature=temperature)
    top = probs.gather(-1, scores.top_ids.long())
    rest = 1 - top.sum(-1, keepdim=True)
    torch.testing.assert_close(scores.top_logp.exp(), torch.cat([top, rest], -1))
    picked = [(logits / t).log_softmax(-1).gather(-1, case.ids.T).T for t in (1.0, temperature)]
    torch.testing.assert_close(scores.logp, picked[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(scores.loss_logp, picked[1], rtol=1e-12, atol=1e-13)


def test_ties_at_the_boundary_of_the_support():
    case = Case(22)
    case.teacher_head[1:V:2] = case.teacher_head[0 : V - 1 : 2].clone()
    method = one_route(target="teacher", divergence="reverse_kl", top_k=5)
    scores = target_scores(
        case.teacher, case.teacher_head, case.ids, case.mask, top_k=5, vocab_size=V
    )
    logits = case.teacher[case.mask] @ case.teacher_head[:V].T
    assert scores.top_ids.tolist() == [reference.top_k(row, 5) for row in logits.tolist()]
    assert_equals_dense(case, method)
