"""Properties of the routed loss that training relies on; test_routed_exact.py has its values."""

import weakref
from dataclasses import replace

import pytest
import reference
import torch
from routed_case import WIDER, B, Case, H, V, one_route, small_k
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dopd_vlm.methods import METHODS
from dopd_vlm.routed_loss import Head, Student, Target, routed_loss, target_scores
from dopd_vlm.routed_loss import products_cpu as heads
from dopd_vlm.routing import Thresholds, thresholds
from dopd_vlm.types import Regime

METRIC_SUMS = ["count/tokens", "divergence/all", "gap/all", "prob/self_target", "entropy/student"]


def test_chunk_size_changes_nothing():
    case = Case(11, dtype=torch.float32)
    results = [case.grads(METHODS["dopd"], chunk_size=size) for size in (1, 4, 5, 64, None)]
    for output, d_hidden, d_head in results[1:]:
        torch.testing.assert_close(output.per_token, results[0][0].per_token, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(d_hidden, results[0][1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(d_head, results[0][2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_tiles_of_the_products_change_nothing(weights, monkeypatch):
    """Tiles of one entry, of a few with a short last one, and the whole width, for heads stored in either dtype."""
    case = Case(12, dtype=torch.float32)
    case.head, case.teacher_head = case.head.to(weights), case.teacher_head.to(weights)
    results = []
    for size in (4, 400, 4 << 20):
        monkeypatch.setattr(heads, "PRODUCT_TILE_BYTES", size)
        results.append(case.grads(METHODS["dopd"], chunk_size=5))
    for output, d_hidden, d_head in results[1:]:
        torch.testing.assert_close(output.per_token, results[0][0].per_token, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(d_hidden, results[0][1], rtol=1e-5, atol=1e-6)
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
            given["teacher"] = target_scores(
                case.teacher[rows], case.teacher_head, case.ids[rows], case.mask[rows],
                top_k=method.teacher_top_k, vocab_size=V,
            )  # fmt: skip
            given["self_target"] = target_scores(
                case.privileged[rows], case.head, case.ids[rows], case.mask[rows],
                top_k=method.self_target_top_k,
            )  # fmt: skip
        output = case.run(
            method, hidden[rows], head, rows, thresholds=limits, num_sequences=B, scores=given
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
    case.run(METHODS["dopd"], hidden, head, self_head=own).loss.backward()
    assert all(x.grad is None for x in (*targets, own))
    assert head.grad.abs().max() > 0


def test_the_live_students_head_is_the_default_self_head():
    case = Case(16)
    default = case.grads(METHODS["dopd"])
    given = case.grads(METHODS["dopd"], self_head=case.head.clone())
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
    limits = Thresholds(gap=1e3 if low else 1e-4, q_self=confidence, q_teacher=confidence)
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
    torch.testing.assert_close(scores.top_logp[:, :-1], top, rtol=1e-12, atol=1e-13)
    rest = 1 - top.exp().sum(-1)
    torch.testing.assert_close(scores.top_logp[:, -1].exp(), rest, rtol=1e-12, atol=1e-13)


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


def test_targets_that_no_route_needs_may_be_missing():
    case = Case(26)
    student = Student(hidden=case.hidden, head=Head(weight=case.head))
    teacher = Target(hidden=case.teacher, head=Head(weight=case.teacher_head))
    self_target = Target(hidden=case.privileged)

    def run(method, **targets):
        return routed_loss(student, targets, case.ids, case.mask, method)

    loss = run("opd", teacher=teacher)
    assert set(loss.regime[case.mask].tolist()) == {Regime.HT}
    assert run("opsd", self_target=self_target).loss.item() > 0
    with pytest.raises(ValueError, match="needs hidden states of its teacher"):
        run("dopd", self_target=self_target)
    with pytest.raises(ValueError, match="teacher need its head"):
        run("opd", teacher=replace(teacher, head=None))
    with pytest.raises(ValueError, match=r"unknown target 'techer'; near: teacher"):
        run("opd", techer=teacher)


def test_bad_input_is_refused():
    case = Case(27)
    with pytest.raises(ValueError, match="unknown method"):
        case.run("dodp")
    with pytest.raises(ValueError, match="temperature=0"):
        case.run("opd", temperature=0)
    with pytest.raises(ValueError, match="chunk_size=0"):
        case.run("opd", chunk_size=0)
    wide = target_scores(case.teacher, case.teacher_head, case.ids, case.mask, top_k=3)
    with pytest.raises(ValueError, match=f"vocab_size={V}"):
        case.run("dopd", scores={"teacher": wide})
    small = target_scores(
        case.teacher, case.teacher_head, case.ids, case.mask, top_k=3, vocab_size=V
    )
    with pytest.raises(ValueError, match="top_k=5"):
        case.run(small_k(METHODS["opd"]), scores={"teacher": small})
    case.ids[0, 0] = V
    with pytest.raises(ValueError, match="outside the common"):
        case.run("dopd")


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside it hold at once, and the largest one of them."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.largest, self.known = 0, 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self.known:
                storage = leaf.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
                self.peak = max(self.peak, self.now)
                self.largest = max(self.largest, storage.nbytes())
        return result

    def free(self, size):
        self.now -= size


@pytest.mark.parametrize("name", ["dopd", "opd", "opd_full", "opsd"])
def test_memory_does_not_grow_with_the_tokens(name, monkeypatch):
    """Over inputs and gradients: chunks of logits, and K numbers per token of those that need them."""
    monkeypatch.setattr(heads, "PRODUCT_TILE_BYTES", 4096)
    chunk, vocab, peaks = 8, 2000, []
    for num_tokens in (64, 256):
        case = Case(34, torch.float32, shape=(1, num_tokens), vocab=vocab, rate=1.0)
        hidden, head = case.leaves()
        with PeakBytes() as bytes_:
            case.run(small_k(METHODS[name]), hidden, head, chunk_size=chunk).loss.backward()
        assert bytes_.largest <= 2 * chunk * vocab * 4
        peaks.append(bytes_.peak - hidden.grad.nbytes - head.grad.nbytes)
    # A row of logits is 8000 bytes.
    assert (peaks[1] - peaks[0]) / (256 - 64) < 200
    assert peaks[0] < 6 * chunk * vocab * 4
