"""Triton rows in the interpreter against float64 autograd and the torch rows; bytes that they move."""

import pytest
import torch
from routed_case import Case, V, one_route, relative, small_k

from dopd_vlm import divergences as d
from dopd_vlm.methods import METHODS
from dopd_vlm.routed_loss import rows
from dopd_vlm.routed_loss.gradients import sampled_slopes, support_slopes
from dopd_vlm.routed_loss.rows import Logits, TorchRows
from dopd_vlm.types import Route

triton = pytest.importorskip("triton", reason="Triton is not installed")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 was not set before Triton", allow_module_level=True)
from dopd_vlm.routed_loss import triton_rows  # noqa: E402
from dopd_vlm.routed_loss.triton_rows import TritonRows  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # NumPy's, of lanes that are masked
C, WIDTH, K = 4, 203, 12
HEADS = {
    "plain": {},
    "warm": {"temperature": 1.3},
    "capped": {"temperature": 0.7, "softcap": 6.0, "scale": 0.9, "bias": True},
}
DIVERGENCES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 1.0)]


def normal(seed, *shape, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_logits(seed, kind, width=WIDTH, **changes) -> Logits:
    options = HEADS[kind] | changes
    if options.get("bias"):
        options["bias"] = normal(seed + 100, width, scale=1.0)
    return Logits(raw=normal(seed, C, width), **options)


def exact(logits: Logits, raw=None, temperature=None) -> torch.Tensor:
    """Log-probs [C, V] in float64 from raw logits."""
    x = logits.raw.double() if raw is None else raw
    if logits.bias is not None:
        x = x + logits.bias.double()
    x = x * logits.scale
    if logits.softcap is not None:
        x = logits.softcap * torch.tanh(x / logits.softcap)
    return (x / (temperature or logits.temperature)).log_softmax(-1)


def parted(logp, ids):
    """Log-probs at ids and of the rest together.  [C, K + 1]"""
    rest = logp.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logp.gather(-1, ids), rest], -1)


def close(ours, theirs, tolerance=2e-6):
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("width", [37, 64, WIDTH, 513])
def test_triton_scores(kind, width):
    logits, ids = make_logits(1, kind, width), torch.tensor([0, 5, width - 1, 9])
    scores = triton_rows.score(logits, ids, K)
    logp = exact(logits)
    close(scores.logp, exact(logits, temperature=1.0).gather(-1, ids[:, None]).squeeze(-1))
    close(scores.loss_logp, logp.gather(-1, ids[:, None]).squeeze(-1))
    assert torch.equal(scores.top_ids, logp.topk(K, -1).indices)
    close(scores.top_logp, parted(logp, scores.top_ids))


@pytest.mark.parametrize("k", [0, 1, 40, WIDTH])
def test_triton_top_k_of_any_size_with_ties(k):
    """Whole numbers: many are equal, and the lowest id comes first, as with the torch rows."""
    logits = Logits(raw=normal(2, C, WIDTH).round())
    torch_rows = TorchRows(C, WIDTH, logits.raw)
    expected = torch_rows.score_(
        Logits(raw=logits.raw.clone()), torch.zeros(C, dtype=torch.int64), k
    )
    scores = TritonRows().score_(logits, torch.zeros(C, dtype=torch.int64), k)
    assert torch.equal(scores.top_ids, expected.top_ids)
    close(scores.top_logp[:, :k], expected.top_logp[:, :k])
    if k < WIDTH:
        close(scores.top_logp[:, k:], expected.top_logp[:, k:])
    assert torch.equal(TritonRows().top_ids(logits, k), expected.top_ids)


def test_triton_minus_infinity_and_a_sure_row():
    raw = normal(3, C, WIDTH)
    raw[0, 20:] = -torch.inf
    raw[1, 7] = 90.0
    ids = torch.tensor([3, 7, 1, 2])
    scores = triton_rows.score(Logits(raw=raw.clone()), ids, K)
    logp = raw.double().log_softmax(-1)
    assert torch.equal(scores.top_ids, logp.topk(K, -1).indices)
    close(scores.loss_logp, logp.gather(-1, ids[:, None]).squeeze(-1))
    close(scores.top_logp.exp(), parted(logp, scores.top_ids).exp())
    close(scores.top_logp[1, -1:], parted(logp, scores.top_ids)[1, -1:], 1e-5)  # e^-80: no 1 - mass


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name, beta", DIVERGENCES)
def test_triton_full_divergences(kind, name, beta):
    route = Route(target="teacher", divergence=name, beta=beta)
    logits, target = (
        make_logits(4, kind),
        make_logits(5, "warm", temperature=HEADS[kind].get("temperature", 1.0)),
    )
    raw = logits.raw.double().requires_grad_()
    value = d.of_route(route).value(exact(logits, raw), exact(target), beta)
    (grad,) = torch.autograd.grad(value.sum(), raw)
    out = torch.empty(C, WIDTH)
    result = triton_rows.full_grad_(logits, target, route, out)
    close(result.value, value.detach())
    assert relative(out * result.factor[:, None], grad) < 1e-4
    logp = exact(logits)
    close(result.entropy, -(logp.exp() * logp).sum(-1))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
@pytest.mark.parametrize("name, beta", DIVERGENCES[:4])
def test_triton_supports(kind, tail, name, beta):
    route = Route(target="teacher", divergence=name, beta=beta, top_k=K, tail=tail)
    logits, target_logp = make_logits(6, kind), exact(make_logits(7, kind))
    ids = target_logp.topk(K, -1).indices
    raw = logits.raw.double().requires_grad_()
    own = parted(exact(logits, raw), ids)
    value = d.partition_divergence(d.of_route(route).at(beta), own, parted(target_logp, ids), tail)
    (grad,) = torch.autograd.grad(value.sum(), raw)
    logp, out = exact(logits), torch.empty(C, WIDTH)
    result = triton_rows.support_grad_(
        logits, ids, parted(target_logp, ids), support_slopes(route), out
    )
    close(result.value, value.detach())
    assert relative(out, grad) < 1e-4
    close(result.entropy, -(logp.exp() * logp).sum(-1))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_triton_sampled_tokens_equal_the_torch_rows(name):
    route = Route(target="teacher", divergence=name, support="sampled")
    raw, ids = normal(8, C, WIDTH), torch.tensor([[3], [7], [1], [2]])
    target_logp = parted(normal(9, C, WIDTH).double().log_softmax(-1), ids)
    expected, grad = raw.clone(), torch.empty(C, WIDTH)
    slow = TorchRows(C, WIDTH, raw).support_grad_(
        Logits(raw=expected), ids, target_logp, sampled_slopes(route), expected
    )
    fast = triton_rows.support_grad_(Logits(raw=raw), ids, target_logp, sampled_slopes(route), grad)
    close(fast.value, slow.value)
    assert relative(grad, expected * slow.factor[:, None]) < 1e-4


@pytest.fixture
def on_triton(monkeypatch):
    """The routed loss on Triton rows, as on a GPU."""
    monkeypatch.setattr(rows, "has_triton_rows", lambda like: True)


@pytest.mark.parametrize(
    "name", ["dopd", "opd", "opd_full", "opd_sampled", "opsd", "dopd_one_objective"]
)
def test_triton_rows_carry_the_whole_loss(name, on_triton, monkeypatch):
    case, method = Case(11, dtype=torch.float32), small_k(METHODS[name])
    output, *grads = case.grads(method, temperature=1.2, chunk_size=5)
    monkeypatch.setattr(rows, "has_triton_rows", lambda like: False)
    expected, *slow = Case(11, dtype=torch.float64).grads(method, temperature=1.2)
    assert relative(output.per_token, expected.per_token) < 1e-5
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert all(relative(ours, exact) < 1e-4 for ours, exact in zip(grads, slow, strict=True))


def test_triton_student_supports_and_a_divergence_without_a_kernel(on_triton, monkeypatch):
    monkeypatch.setattr(d, "DIVERGENCES", dict(d.DIVERGENCES))
    d.register(
        d.Divergence(name="squared", value=lambda s, t, beta: (s.exp() - t.exp()).square().sum(-1))
    )
    methods = (
        one_route(target="teacher", divergence="jsd", top_k=5, support="student"),
        one_route(target="teacher", divergence="squared"),
    )
    for method in methods:
        case = Case(12, dtype=torch.float32)
        output, *grads = case.grads(method)
        with monkeypatch.context() as off:
            off.setattr(rows, "has_triton_rows", lambda like: False)
            expected, *slow = Case(12, dtype=torch.float32).grads(method)
        assert relative(output.per_token, expected.per_token) < 1e-5
        assert all(relative(a, b) < 1e-4 for a, b in zip(grads, slow, strict=True))


class Traffic:
    """Bytes that kernels load and store, lane by lane, while it is on."""

    def __init__(self, monkeypatch):
        from triton.runtime import interpreter

        self.bytes = 0
        builder = type(interpreter.interpreter_builder)
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(this, ptrs, mask, other, *rest):
            self._count(ptrs, mask)
            return load(this, ptrs, mask, other, *rest)

        def counted_store(this, ptrs, value, mask, *rest):
            self._count(ptrs, mask)
            return store(this, ptrs, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", counted_load)
        monkeypatch.setattr(builder, "create_masked_store", counted_store)

    def _count(self, ptrs, mask):
        if ptrs.data.size > 1:  # one number a row is no traffic
            self.bytes += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8

    def per_logit(self, width):
        return self.bytes / (C * width)


WIDE, SUPPORT = 4096, 4
"""As wide as a block, and K as small a share of it as 128 of 151,936."""


@pytest.mark.parametrize("what, most", [("score", 6.0), ("support", 12.0), ("full", 30.0)])
def test_triton_budget_of_bytes_a_logit(what, most, monkeypatch):
    raw, other = normal(13, C, WIDE), normal(14, C, WIDE)
    out = torch.empty(C, WIDE, dtype=torch.bfloat16)
    traffic, ids = Traffic(monkeypatch), torch.arange(C)
    if what == "score":
        triton_rows.score(Logits(raw=raw), ids, SUPPORT)
    elif what == "support":
        support = torch.arange(SUPPORT).expand(C, -1)
        logp = parted(other.double().log_softmax(-1), support)
        route = Route(target="teacher", divergence="reverse_kl", top_k=SUPPORT)
        triton_rows.support_grad_(Logits(raw=raw), support, logp, support_slopes(route), out)
    else:
        route = Route(target="teacher", divergence="jsd")
        triton_rows.full_grad_(Logits(raw=raw), Logits(raw=other), route, out)
    assert most / 2 < traffic.per_logit(WIDE) <= most, traffic.per_logit(WIDE)


def test_a_case_is_wider_than_a_fold():
    assert triton_rows.FOLD < V < WIDTH
