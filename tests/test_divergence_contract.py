"""What every divergence that routes can name has to keep, built in or a user's own."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from routed_case import B, Case, V, one_route, relative

from dopd_vlm import divergences
from dopd_vlm.divergences import DIVERGENCES, Divergence, divergence, register
from dopd_vlm.routed_loss.torch_kernels import kernel_of


def _squared(student_logp, target_logp, beta):
    """A divergence of a user's own: half the squared distance, without kernel or estimate."""
    return 0.5 * (student_logp.exp() - target_logp.exp()).square().sum(-1)


SQUARED = Divergence(name="squared", value=_squared)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Divergences of a test are gone after it."""
    monkeypatch.setattr(divergences, "DIVERGENCES", dict(DIVERGENCES))
    register(SQUARED)


every_divergence = pytest.mark.parametrize("name", [*DIVERGENCES, "squared"])


def route(name, **fields):
    return one_route(target="teacher", divergence=name, beta=0.3, **fields)


@every_divergence
@pytest.mark.parametrize("top_k", [None, 4])
def test_zero_with_zero_gradient_at_equality(name, top_k):
    case = Case(1, wider=0)
    case.teacher, case.teacher_head = case.hidden.clone(), case.head.clone()
    output, d_hidden, d_head = case.grads(route(name, top_k=top_k))
    assert output.per_token.abs().max() < 1e-12
    assert d_hidden.abs().max() < 1e-12 and d_head.abs().max() < 1e-12


@every_divergence
def test_not_negative(name):
    assert Case(2).grads(route(name))[0].per_token.min() >= 0


def dense(case, name):
    """Value of each token and gradients by autograd through whole float64 logits."""
    hidden, head = case.leaves()
    student = (hidden @ head.T).log_softmax(-1)
    target = (case.teacher @ case.teacher_head[:V].T).log_softmax(-1)
    values = divergence(name).value(student, target, 0.3) * case.mask
    loss = (values.sum(-1) / case.mask.sum(-1)).sum() / B
    loss.backward()
    return values.detach(), hidden.grad, head.grad


@every_divergence
@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_chunks_equal_dense_autograd(name, chunk_size):
    case = Case(3)
    output, *grads = case.grads(route(name), chunk_size=chunk_size)
    values, *slow = dense(case, name)
    assert relative(output.per_token, values) < 1e-10
    assert all(relative(ours, theirs) < 1e-9 for ours, theirs in zip(grads, slow, strict=True))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_kernel_equals_autograd(name):
    case, plain = Case(4), replace(divergence(name), name=f"plain_{name}")
    register(plain)
    assert kernel_of(divergence(name)) and not kernel_of(plain)
    ours, theirs = (case.grads(route(one)) for one in (name, plain.name))
    assert relative(ours[0].per_token, theirs[0].per_token) < 1e-10
    assert all(relative(a, b) < 1e-9 for a, b in zip(ours[1:], theirs[1:], strict=True))
    entropies = [output.metrics["entropy/student"].item() for output in (ours[0], theirs[0])]
    assert entropies[0] == pytest.approx(entropies[1], rel=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_estimate_is_on_average_the_gradient(name):
    case = Case(5, shape=(1, 1))
    probs = (case.hidden @ case.head.T).softmax(-1).flatten()
    average, value = 0.0, 0.0
    for token in range(V):
        case.ids[:] = token
        output, d_hidden, _ = case.grads(route(name, support="sampled"))
        average = average + probs[token] * d_hidden
        value += probs[token] * output.per_token[0, 0]
    full, d_hidden, _ = case.grads(route(name))
    torch.testing.assert_close(average, d_hidden)
    torch.testing.assert_close(value, full.per_token[0, 0])


@every_divergence
def test_no_gradient_reaches_the_target(name):
    case = Case(6)
    targets = [x.requires_grad_() for x in (case.teacher, case.teacher_head)]
    case.grads(route(name))
    assert all(x.grad is None for x in targets)


def test_sampled_without_an_estimate_is_refused_where_the_method_is_made():
    with pytest.raises(ValueError, match=r"'squared' has no one-sample estimate.*reverse_kl"):
        route("squared", support="sampled")


def test_unknown_divergences_are_refused_where_the_method_is_made():
    with pytest.raises(ValueError, match=r"unknown divergence 'jds'; near: jsd"):
        route("jds")


def test_a_name_is_taken_once():
    register(SQUARED)  # the same again is no second one
    with pytest.raises(ValueError, match="'squared' exists already"):
        register(replace(SQUARED, value=partial(_squared)))
