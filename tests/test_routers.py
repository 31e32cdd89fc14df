"""Routers: pure functions of scores; what they ask for is computed, and nothing else."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from routed_case import Case
from test_step import gradients, make_rollouts, make_samples, make_state

from dopd_vlm import routers
from dopd_vlm.methods import Method
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.softmax import Softmax
from dopd_vlm.routed_loss.target_scores import entropies
from dopd_vlm.routers.router import everywhere
from dopd_vlm.training import targets
from dopd_vlm.training.step import Clock, distil_step
from dopd_vlm.types import Regime, Route

ROUTE = Route(target="teacher", target_view="plain", divergence="reverse_kl", top_k=5)
STUDENT, PLAIN = ("student", "plain"), ("teacher", "plain")


def method_of(router, monkeypatch, route=ROUTE):
    monkeypatch.setitem(routers.ROUTERS, router.name, router)
    return Method(name="x", routes=dict.fromkeys(Regime, route), router=router.name)


def state_of(router, monkeypatch, route=ROUTE, **sizes):
    state = make_state("opd", kind="text", **sizes)
    state.method = method_of(router, monkeypatch, route)
    return state


def step(state):
    samples = make_samples(state, kind="text")
    return distil_step(state, samples, make_rollouts(), Clock())


def seen_scores(**fields):
    """A router that trains everything and keeps what it was shown."""
    seen = []

    def route(scores, limits):
        seen.append(scores)
        return routers.Routing(route=everywhere(scores.mask))

    return routers.Router(name="seen", route=route, **fields), seen


def test_a_router_sees_what_it_asks_for_over_all_micro_batches(monkeypatch):
    found = []
    for sizes in ({}, {"micro": 1, "score": 2}):
        router, seen = seen_scores(pairs=(STUDENT, PLAIN), entropies=(PLAIN,))
        step(state_of(router, monkeypatch, **sizes))
        (scores,) = seen
        assert set(scores.logp) == {STUDENT, PLAIN} and set(scores.entropy) == {PLAIN}
        assert sorted(scores.mask.sum(-1).tolist()) == [1, 2, 3, 4, 5, 6]
        assert sorted(Counter(scores.prompts.tolist()).values()) == [2, 2, 2] or sizes
        found.append(scores)
    for name in ("logp", "entropy"):
        for pair, whole in getattr(found[0], name).items():
            parts = getattr(found[1], name)[pair]
            ours, theirs = (
                s[m].sort().values for s, m in ((whole, found[0].mask), (parts, found[1].mask))
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def forwards(state, monkeypatch):
    counts, run = Counter(), targets._run

    def counted(state, policy, view, *rest):
        counts[policy, view] += 1
        return run(state, policy, view, *rest)

    monkeypatch.setattr(targets, "_run", counted)
    step(state)
    return counts


def test_each_pair_runs_once_and_others_cost_no_forward(monkeypatch):
    router, _ = seen_scores(pairs=(STUDENT, PLAIN), entropies=(PLAIN,))
    assert forwards(state_of(router, monkeypatch), monkeypatch) == {PLAIN: 1, STUDENT: 1}


def test_a_router_that_asks_for_nothing_costs_nothing(monkeypatch):
    router, _ = seen_scores()
    monkeypatch.setattr(targets, "entropies", None)
    assert forwards(state_of(router, monkeypatch), monkeypatch) == {PLAIN: 1}


@pytest.mark.parametrize("chunk_size", [2, None])
def test_entropies_are_those_of_the_whole_softmax(chunk_size):
    case = Case(4)
    head = Head(weight=case.teacher_head, logit_scale=0.7)
    ours = entropies(
        case.teacher, head, case.mask, Softmax(width=case.vocab, chunk_size=chunk_size)
    )
    logp = (0.7 * case.teacher @ case.teacher_head[: case.vocab].T).log_softmax(-1)
    slow = -(logp.exp() * logp).sum(-1) * case.mask
    torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)


def test_weights_scale_the_gradient_token_by_token(monkeypatch):
    """Loss and gradient are linear in the weight, whatever its sign; a weight of 0 trains nothing."""

    def weighted(factor):
        def route(scores, limits):
            place = torch.arange(scores.mask.shape[1]).double().expand(scores.mask.shape)
            return routers.Routing(route=everywhere(scores.mask), weight=factor * (1 + place))

        return routers.Router(name=f"weighted{factor}", route=route)

    def grads(factor):
        state = make_state("opd")
        state.method = method_of(weighted(factor), monkeypatch)
        output, found = gradients(state)
        return output.metrics["loss"], found

    loss, one = grads(1.0)
    other, minus = grads(-0.25)
    assert other == pytest.approx(-0.25 * loss, rel=1e-9)
    for name, grad in one.items():
        # Both are clipped to the norm 1: directions are compared.
        a, b = grad.flatten(), minus[name].flatten()
        assert (
            abs(float(a @ b) + float(a.norm() * b.norm()))
            <= 1e-6 * float(a.norm() * b.norm()) + 1e-12
        )


def test_tokens_of_no_route_are_not_trained(monkeypatch):
    def route(scores, limits):
        keep = scores.mask & (torch.arange(scores.mask.shape[1]) < 2)
        return routers.Routing(route=everywhere(keep))

    output = step(state_of(routers.Router(name="first_two", route=route), monkeypatch))
    loss = output.losses[0]
    assert (loss.per_token[:, 2:] == 0).all() and (loss.per_token[:, :2].sum() != 0)


def test_the_likelihood_of_tokens_is_cross_entropy(monkeypatch):
    """Forward KL to the target `tokens` is -log p of the completion, and costs no forward."""
    route = Route(target="tokens", divergence="forward_kl", support="sampled")
    router, _ = seen_scores()
    case, method = Case(7), method_of(router, monkeypatch, route)
    output, d_hidden, d_head = case.grads(method)
    hidden, head = case.leaves()
    logp = (hidden @ head.T).log_softmax(-1).gather(-1, case.ids[..., None]).squeeze(-1)
    loss = -((logp * case.mask).sum(-1) / case.mask.sum(-1)).mean()
    loss.backward()
    torch.testing.assert_close(output.loss, loss.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(d_hidden, hidden.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(d_head, head.grad, rtol=1e-9, atol=1e-12)
    assert method.scored_pairs == ()


def test_what_cannot_be_is_refused_where_the_method_is_made():
    with pytest.raises(ValueError, match=r"unknown router 'gop'; near: gap"):
        Method(name="x", routes=dict.fromkeys(Regime, ROUTE), router="gop")
    tokens = Route(target="tokens", divergence="jsd", support="sampled")
    with pytest.raises(ValueError, match="divergence='forward_kl', support='sampled'"):
        Method(name="x", routes=dict.fromkeys(Regime, tokens), router="uniform")
    with pytest.raises(ValueError, match="router 'gap' exists already"):
        routers.register(replace(routers.router("gap"), regimes=()))


def test_a_batch_alone_cannot_answer_a_router_of_other_scores(monkeypatch):
    router, _ = seen_scores(pairs=(STUDENT,))
    with pytest.raises(ValueError, match="give its answer as `routing`"):
        Case(1).run(method_of(router, monkeypatch))
