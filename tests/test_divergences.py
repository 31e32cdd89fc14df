"""divergences.py against the slow reference, published values, and properties."""

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vlm import divergences as d
from dopd_vlm.routed_loss.top_k import top_k_ids

B, T, V = 2, 3, 11
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TAILS = ["bucket", "renormalise", "truncate"]
TOP_K = {
    "forward_kl": d.top_k_forward_kl,
    "reverse_kl": d.top_k_reverse_kl,
    "jsd": d.top_k_jsd,
}
SLOW = {
    "forward_kl": reference.forward_kl,
    "reverse_kl": reference.reverse_kl,
    "jsd": reference.jsd,
}


def make_logp(seed, scale=2.0, shape=(B, T, V)):
    gen = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(*shape, generator=gen, dtype=torch.float64), -1)


def slow_values(function, student, target):
    pairs = zip(student.exp().view(-1, V), target.exp().view(-1, V), strict=True)
    values = [function(s.tolist(), t.tolist()) for s, t in pairs]
    return torch.tensor(values, dtype=torch.float64).view(B, T)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_equals_the_reference(beta):
    s, t = make_logp(0), make_logp(1)
    slow = slow_values(lambda p, q: reference.jsd(p, q, beta), s, t)
    close(d.generalized_jsd(s, t, beta), slow)


def test_kls_equal_the_reference():
    s, t = make_logp(0), make_logp(1)
    close(d.forward_kl(s, t), slow_values(reference.forward_kl, s, t))
    close(d.reverse_kl(s, t), slow_values(reference.reverse_kl, s, t))


@pytest.mark.parametrize("name", TOP_K)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("support", ["target", "student"])
@pytest.mark.parametrize("k", [1, 4, V - 1, V, V + 5])
def test_top_k_equals_the_reference(name, tail, support, k):
    s, t = make_logp(2), make_logp(3)

    def slow(p, q):
        return reference.top_k_divergence(SLOW[name], p, q, k, support, tail)

    close(TOP_K[name](s, t, k, support=support, tail=tail), slow_values(slow, s, t), 1e-11)


def test_published_values():
    # TRL tests/experimental/test_gkd_trainer.py and test_self_distillation_trainer_behavior.py:
    # 0.8 log 9 = 1.757780; with M = (0.5, 0.5), log 2 - H(0.1) = 0.368064;
    # 0.5 log(0.5 / 0.8) + 0.5 log(0.5 / 0.2) = 0.223144.
    s, t = torch.tensor([0.1, 0.9]).log(), torch.tensor([0.9, 0.1]).log()
    assert d.generalized_jsd(s, t, 0.0).item() == pytest.approx(1.757780, abs=2e-6)
    assert d.generalized_jsd(s, t, 1.0).item() == pytest.approx(1.757780, abs=2e-6)
    assert d.generalized_jsd(s, t, 0.5).item() == pytest.approx(0.368064, abs=2e-6)
    s, t = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log()
    assert d.forward_kl(s, t).item() == pytest.approx(0.223144, abs=2e-6)
    # The support of TRL's case is given, tokens 0 and 1; in the target they are not the top 2.
    s, t = torch.tensor([0.5, 0.3]).log(), torch.tensor([0.2, 0.6]).log()
    renormalised = d.support_divergence(d.forward_kl, s, t, "renormalise")
    assert renormalised.item() == pytest.approx(0.290788, abs=2e-6)
    assert d.support_divergence(d.forward_kl, s, t, "bucket").item() == pytest.approx(
        0.232630, abs=2e-6
    )


@pytest.mark.parametrize("name", TOP_K)
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_zero_value_and_gradient_at_equality(name, tail):
    logits = make_logp(4).requires_grad_()
    value = TOP_K[name](logits.log_softmax(-1), logits.detach().log_softmax(-1), 3, tail=tail)
    value.sum().backward()
    assert value.abs().max() < 1e-12
    assert logits.grad.abs().max() < 1e-12


def test_truncated_support_has_a_gradient_at_equality():
    logits = make_logp(4).requires_grad_()
    value = d.top_k_reverse_kl(logits.log_softmax(-1), logits.detach(), 3, tail="truncate")
    value.sum().backward()
    assert value.abs().max() < 1e-12
    assert logits.grad.abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_bounded_by_the_coin_entropy(beta):
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert d.generalized_jsd(make_logp(0), make_logp(1, scale=50.0), beta).max() <= bound + 1e-12


def test_jsd_swaps_sides_with_beta():
    s, t = make_logp(0), make_logp(1)
    close(d.generalized_jsd(s, t, 0.3), d.generalized_jsd(t, s, 0.7))


def test_jsd_is_finite_where_both_tails_underflow():
    logits = torch.tensor([[0.0, -120.0]], requires_grad=True)
    target = torch.log_softmax(torch.tensor([[0.0, -110.0]]), -1)
    d.generalized_jsd(torch.log_softmax(logits, -1), target).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", TOP_K)
@pytest.mark.parametrize("tail", TAILS)
def test_gradient_matches_finite_differences(name, tail):
    logits, target = make_logp(5, shape=(3, V)).requires_grad_(), make_logp(6, shape=(3, V))
    assert torch.autograd.gradcheck(
        lambda x: TOP_K[name](torch.log_softmax(x, -1), target, 4, tail=tail), logits
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(BETAS), st.floats(0.1, 8.0))
def test_divergences_are_not_negative(seed, beta, scale):
    s, t = make_logp(seed, scale), make_logp(seed + 1, scale)
    assert d.generalized_jsd(s, t, beta).min() >= -1e-12
    assert d.top_k_jsd(s, t, 3, beta=beta).min() >= -1e-9
    # Lumping the tail together loses information (data processing inequality).
    assert (d.top_k_jsd(s, t, 3, beta=beta) <= d.generalized_jsd(s, t, beta) + 1e-9).all()


@pytest.mark.parametrize("vocab, k", [(5, 2), (40, 39), (3000, 7), (3001, 1), (3000, 2999)])
def test_top_k_ids_break_ties_by_the_lowest_id(vocab, k):
    gen = torch.Generator().manual_seed(vocab)
    scores = torch.randint(0, max(2, vocab // 5), (4, vocab), generator=gen).float()
    expected = [reference.top_k(row.tolist(), k) for row in scores]
    assert top_k_ids(scores, k).tolist() == expected


@pytest.mark.parametrize("vocab, k", [(3000, 7), (3001, 16)])
def test_top_k_ids_without_ties(vocab, k):
    scores = torch.randn(5, vocab, generator=torch.Generator().manual_seed(k))
    assert torch.equal(top_k_ids(scores, k), scores.topk(k, -1).indices)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        d.generalized_jsd(make_logp(0), make_logp(1), beta)


def test_bad_options_are_refused():
    s, t = make_logp(0), make_logp(1)
    with pytest.raises(ValueError, match="at least one"):
        d.top_k_reverse_kl(s, t, 0)
    with pytest.raises(ValueError, match="bucket"):
        d.top_k_reverse_kl(s, t, 2, tail="none")
    with pytest.raises(ValueError, match="target or student"):
        d.top_k_reverse_kl(s, t, 2, support="teacher")


@given(
    seed=st.integers(0, 99), k=st.integers(1, V - 1), support=st.sampled_from(["target", "student"])
)
def test_the_pure_top_k_and_the_search_of_the_loss_agree_on_ties(seed, k, support):
    student, target = (make_logp(seed + i).mul(2).round() for i in range(2))
    ids = top_k_ids(target if support == "target" else student, k)
    expected = d.support_divergence(
        d.reverse_kl, student.gather(-1, ids), target.gather(-1, ids), "truncate"
    )
    value = d.top_k_reverse_kl(student, target, k, support=support, tail="truncate")
    close(value, expected)
