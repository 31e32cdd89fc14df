"""The routed loss against dense float64 autograd, and the properties that training relies on."""

from dataclasses import replace

import pytest
import reference
import torch

from dopd_vlm.heads import Head
from dopd_vlm.methods import METHODS, Method
from dopd_vlm.routed_loss import routed_loss, target_scores
from dopd_vlm.routing import Thresholds, thresholds
from dopd_vlm.types import Regime, Route

B, T, V, H, H_TEACHER, WIDER = 3, 7, 41, 5, 6, 4
METRIC_SUMS = ["count/tokens", "divergence/all", "gap/all", "prob/student", "entropy/student"]


class Case:
    """Random hidden states and heads; the teacher's head is padded by WIDER rows."""

    def __init__(self, seed=0, dtype=torch.float64, rate=0.8, shape=(B, T)):
        gen = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(*size, generator=gen, dtype=torch.float64).to(dtype)

        self.hidden, self.privileged = normal(*shape, H), normal(*shape, H)
        self.teacher = normal(*shape, H_TEACHER)
        self.head, self.teacher_head = normal(V, H), normal(V + WIDER, H_TEACHER)
        self.ids = torch.randint(0, V, shape, generator=gen)
        self.mask = torch.rand(*shape, generator=gen) < rate
        self.mask[:, 0] = True

    def leaves(self):
        return self.hidden.clone().requires_grad_(), self.head.clone().requires_grad_()

    def run(self, method, hidden=None, head=None, rows=slice(None), **options):
        return routed_loss(
            self.hidden[rows] if hidden is None else hidden,
            self.head if head is None else head,
            self.privileged[rows],
            self.teacher[rows],
            self.teacher_head,
            self.ids[rows],
            self.mask[rows],
            method,
            **options,
        )

    def grads(self, method, **options):
        hidden, head = self.leaves()
        output = self.run(method, hidden, head, **options)
        output.loss.backward()
        return output, hidden.grad, head.grad

    def dense(self, method, temperature=1.0, limits=None, count=None):
        hidden, head = (x.double().clone().requires_grad_() for x in (self.hidden, self.head))
        student = reference.dense_probs(hidden, head, temperature=temperature)

        def probs(at):
            return {
                "teacher": reference.dense_probs(
                    self.teacher.double(), self.teacher_head.double(), width=V, temperature=at
                ),
                "student": reference.dense_probs(
                    self.privileged.double(), self.head.double(), temperature=at
                ),
            }

        loss, values, regime = reference.dense_routed_loss(
            student, probs(temperature), probs(1.0), self.ids, self.mask, method, limits, count
        )
        loss.backward()
        return loss.detach(), values, regime, hidden.grad, head.grad


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def small_k(table, k=5):
    routes = {
        r: replace(x, top_k=min(x.top_k, k) if x.top_k else None) for r, x in table.routes.items()
    }
    return replace(table, routes=routes)


def one_route(**fields):
    return Method(name="x", routes_by_gap=False, routes=dict.fromkeys(Regime, Route(**fields)))


def assert_equals_dense(case, method, tolerance=1e-9, temperature=1.0, **options):
    output, d_hidden, d_head = case.grads(method, temperature=temperature, **options)
    loss, values, regime, slow_hidden, slow_head = case.dense(method, temperature)
    assert relative(output.per_token, values) < tolerance
    assert output.loss.item() == pytest.approx(loss.item(), rel=10 * tolerance, abs=1e-12)
    assert relative(d_hidden, slow_hidden) < tolerance
    assert relative(d_head, slow_head) < tolerance
    if method.routes_by_gap:
        assert torch.equal(output.regime, regime)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("chunk_size", [3, None])
def test_every_method_equals_dense_autograd(name, chunk_size):
    assert_equals_dense(Case(), small_k(METHODS[name]), chunk_size=chunk_size)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("support", ["target", "student", "sampled"])
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
@pytest.mark.parametrize("target", ["teacher", "student"])
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


@pytest.mark.parametrize("seed", range(3, 8))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision_inputs(seed, dtype, tolerance):
    case = Case(seed, dtype=dtype)
    method = small_k(METHODS["dopd"])
    # Regimes are discrete: the same thresholds on both sides, and none next to a boundary.
    limits = (0.81, 0.02, 0.02)
    given = Thresholds(gap=limits[0], q_student=limits[1], q_teacher=limits[2])
    output, d_hidden, d_head = case.grads(method, thresholds=given, chunk_size=4)
    loss, values, regime, slow_hidden, slow_head = case.dense(method, limits=limits)
    assert torch.equal(output.regime, regime)
    assert output.loss.dtype == torch.float32 and d_head.dtype == dtype
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert relative(output.per_token, values) < 2e-5
    assert relative(d_hidden, slow_hidden) < tolerance
    assert relative(d_head, slow_head) < tolerance


@pytest.mark.parametrize("name", ["dopd", "opd", "opd_full"])
def test_gradcheck(name):
    case = Case(9, shape=(2, 3))
    limits = Thresholds(gap=0.8, q_student=0.02, q_teacher=0.02)

    def loss(hidden, head, bias):
        return case.run(
            small_k(METHODS[name]),
            hidden,
            head,
            student_bias=bias,
            thresholds=limits,
            privileged_head=case.head,
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
            "student": reference.dense_probs(case.privileged, slow[1], temperature=t, **options),
        }
        for t in (1.3, 1.0)
    ]
    student = reference.dense_probs(slow[0], slow[1], temperature=1.3, **options)
    loss, _, regime = reference.dense_routed_loss(student, *targets, case.ids, case.mask, method)
    loss.backward()
    assert torch.equal(output.regime, regime)
    for fast, dense in zip((hidden, weight, bias), slow, strict=True):
        assert relative(fast.grad, dense.grad) < 1e-9


def test_chunk_size_changes_nothing():
    case = Case(11, dtype=torch.float32)
    results = [case.grads(METHODS["dopd"], chunk_size=size) for size in (1, 4, 5, 64, None)]
    for output, d_hidden, d_head in results[1:]:
        torch.testing.assert_close(output.per_token, results[0][0].per_token, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(d_hidden, results[0][1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(d_head, results[0][2], rtol=1e-5, atol=1e-6)


def test_masked_tokens_are_as_if_dropped():
    case = Case(12)
    before = case.grads(METHODS["dopd"])
    for tensor in (case.hidden, case.privileged, case.teacher):
        tensor[~case.mask] = float("nan")
    case.ids[~case.mask] = -100
    after = case.grads(METHODS["dopd"])
    assert torch.equal(before[0].loss, after[0].loss)
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
    assert (after[1][~case.mask] == 0).all()
    assert (after[0].regime[~case.mask] == -1).all()


@pytest.mark.parametrize("cached", [False, True])
def test_one_batch_equals_its_micro_batches(cached):
    case, method = Case(13), small_k(METHODS["dopd"])
    whole, d_hidden, d_head = case.grads(method)
    scores = [
        target_scores(h, w, case.ids, case.mask, vocab_size=V)
        for h, w in ((case.teacher, case.teacher_head), (case.privileged, case.head))
    ]
    limits = thresholds(scores[0].logp, scores[1].logp, case.mask)
    hidden, head = case.leaves()
    outputs = []
    for rows in (slice(0, 1), slice(1, B)):
        given = {}
        if cached:
            given["teacher_scores"] = target_scores(
                case.teacher[rows], case.teacher_head, case.ids[rows], case.mask[rows],
                top_k=method.teacher_top_k, vocab_size=V,
            )  # fmt: skip
            given["privileged_scores"] = target_scores(
                case.privileged[rows], case.head, case.ids[rows], case.mask[rows],
                top_k=method.self_target_top_k,
            )  # fmt: skip
        output = case.run(
            method, hidden[rows], head, rows, thresholds=limits, num_sequences=B, **given
        )
        output.loss.backward()
        outputs.append(output)
    assert sum(o.loss.item() for o in outputs) == pytest.approx(whole.loss.item(), rel=1e-13)
    torch.testing.assert_close(hidden.grad, d_hidden, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(head.grad, d_head, rtol=1e-12, atol=1e-15)
    for name in METRIC_SUMS:
        total = sum(o.metrics[name].item() for o in outputs)
        assert total == pytest.approx(whole.metrics[name].item(), rel=1e-12)


@pytest.mark.parametrize("name", ["priv_s_to_s", "dopd_no_teacher"])
def test_zero_at_equality(name):
    case = Case(14)
    case.privileged = case.hidden.clone()
    output, d_hidden, d_head = case.grads(small_k(METHODS[name]))
    assert output.per_token.abs().max() < 1e-12
    assert d_hidden.abs().max() < 1e-12 and d_head.abs().max() < 1e-12


def test_no_gradient_reaches_a_target():
    case = Case(15)
    targets = [x.requires_grad_() for x in (case.privileged, case.teacher, case.teacher_head)]
    own = case.head.clone().requires_grad_()
    hidden, head = case.leaves()
    case.run(METHODS["dopd"], hidden, head, privileged_head=own).loss.backward()
    assert all(x.grad is None for x in (*targets, own))
    assert head.grad.abs().max() > 0


def test_the_live_students_head_is_the_default_self_head():
    case = Case(16)
    default = case.grads(METHODS["dopd"])
    given = case.grads(METHODS["dopd"], privileged_head=case.head.clone())
    assert torch.equal(default[2], given[2])


def test_a_frozen_head_gets_no_gradient():
    case = Case(17)
    hidden, _ = case.leaves()
    output = case.run(METHODS["dopd"], hidden, case.head)
    output.loss.backward()
    assert torch.equal(hidden.grad, case.grads(METHODS["dopd"])[1])
    with torch.no_grad():
        assert not case.run(METHODS["dopd"], *case.leaves()).loss.requires_grad


def test_padded_vocabulary_entries_get_no_mass():
    case = Case(18)
    before = case.grads(METHODS["dopd"])
    case.teacher_head[V:] = 1e3
    after = case.grads(METHODS["dopd"])
    assert torch.equal(before[2], after[2])
    case.head = torch.cat([case.head, torch.full((WIDER + 2, H), 1e3, dtype=torch.float64)])
    case.teacher_head = case.teacher_head[:V]
    _, d_hidden, d_head = case.grads(METHODS["dopd"])
    torch.testing.assert_close(d_hidden, before[1])
    assert (d_head[V:] == 0).all() and d_head.shape == case.head.shape


@pytest.mark.parametrize("regime", list(Regime))
def test_one_regime_only_and_its_gradient(regime):
    """Thresholds that send all tokens to one side leave other regimes empty."""
    case, method = Case(19), small_k(METHODS["dopd"])
    low = regime in (Regime.LH, Regime.LL)
    confidence = {Regime.LH: 0.0, Regime.LL: 2.0}.get(regime, 0.5)
    limits = Thresholds(gap=1e3 if low else 1e-4, q_student=confidence, q_teacher=confidence)
    output, d_hidden, _ = case.grads(method, thresholds=limits)
    present = {Regime.LH: 1, Regime.LL: 1}.get(regime, 2)
    assert len(set(output.regime[case.mask].tolist())) == present
    assert (d_hidden[output.regime == regime].abs().amax(-1) > 0).all()


def test_an_empty_batch_still_backpropagates_zeros():
    case = Case(20)
    case.mask[:] = False
    output, d_hidden, d_head = case.grads(METHODS["dopd"])
    assert output.loss.item() == 0.0
    assert (d_hidden == 0).all() and (d_head == 0).all()
    assert (output.regime == -1).all()


def test_one_token_completions():
    case = Case(21, shape=(4, 1))
    assert_equals_dense(case, small_k(METHODS["dopd"]))


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


def test_a_second_backward_gives_the_same_gradient():
    case = Case(28)
    hidden, head = case.leaves()
    loss = case.run(METHODS["dopd"], hidden, head).loss
    first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    second = torch.autograd.grad(3.0 * loss, (hidden, head))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3.0 * a, b, rtol=1e-13, atol=1e-15)


def test_target_scores_equal_dense():
    case = Case(23)
    scores = target_scores(
        case.teacher, case.teacher_head, case.ids, case.mask, top_k=6, temperature=1.9, chunk_size=4
    )
    for temperature, logp in ((1.0, scores.logp), (1.9, scores.loss_logp)):
        dense = reference.dense_probs(case.teacher, case.teacher_head, temperature=temperature)
        picked = dense.gather(-1, case.ids[..., None]).squeeze(-1).log() * case.mask
        torch.testing.assert_close(logp, picked, rtol=1e-12, atol=1e-13)
    top = dense[case.mask].log().gather(-1, scores.top_ids.long())
    torch.testing.assert_close(scores.top_logp, top, rtol=1e-12, atol=1e-13)


def test_sampled_gradient_is_that_of_the_full_kl_on_average():
    case = Case(24, shape=(1, 1))
    method = one_route(target="teacher", divergence="reverse_kl", support="sampled")
    probs = (case.hidden @ case.head.T).softmax(-1).flatten()
    average = 0.0
    for token in range(V):
        case.ids[:] = token
        average = average + probs[token] * case.grads(method)[1]
    full = case.grads(one_route(target="teacher", divergence="reverse_kl"))[1]
    torch.testing.assert_close(average, full)


def test_metrics_are_sums():
    case = Case(25)
    output = case.run(METHODS["dopd"])
    metrics = {name: value.item() for name, value in output.metrics.items()}
    names = [regime.name.lower() for regime in Regime]
    assert metrics["count/tokens"] == case.mask.sum() == sum(metrics[f"count/{n}"] for n in names)
    by_regime = sum(metrics[f"divergence/{n}"] for n in names)
    assert metrics["divergence/all"] == pytest.approx(by_regime)
    assert metrics["divergence/all"] == pytest.approx(output.per_token.sum().item())
    probs = reference.dense_probs(case.hidden, case.head)[case.mask]
    assert metrics["entropy/student"] == pytest.approx(-(probs * probs.log()).sum().item())
    assert not any(value.requires_grad for value in output.metrics.values())


def test_hidden_states_that_no_route_needs_may_be_none():
    case = Case(26)
    loss = routed_loss(
        case.hidden, case.head, None, case.teacher, case.teacher_head, case.ids, case.mask, "opd"
    )
    assert set(loss.regime[case.mask].tolist()) == {Regime.HT}
    args = (case.hidden, case.head, case.privileged, None, None, case.ids, case.mask)
    assert routed_loss(*args, "opsd").loss.item() > 0
    with pytest.raises(ValueError, match="needs teacher_hidden"):
        routed_loss(*args, "dopd")
    with pytest.raises(ValueError, match="needs teacher_head"):
        routed_loss(*args[:3], case.teacher, None, *args[5:], "opd")


def test_bad_input_is_refused():
    case = Case(27)
    with pytest.raises(ValueError, match="unknown method"):
        case.run("dodp")
    with pytest.raises(ValueError, match="temperature=0"):
        case.run("opd", temperature=0)
    wide = target_scores(case.teacher, case.teacher_head, case.ids, case.mask, top_k=3)
    with pytest.raises(ValueError, match=f"vocab_size={V}"):
        case.run("dopd", teacher_scores=wide)
    small = target_scores(
        case.teacher, case.teacher_head, case.ids, case.mask, top_k=3, vocab_size=V
    )
    with pytest.raises(ValueError, match="top_k=5"):
        case.run(small_k(METHODS["opd"]), teacher_scores=small)
    case.ids[0, 0] = V
    with pytest.raises(ValueError, match="outside the common"):
        case.run("dopd")
