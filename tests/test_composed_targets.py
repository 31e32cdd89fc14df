"""Targets as weighted sums of log-probs: log q = sum_k c_k log p_k, normalised over the whole vocabulary."""

from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch
from routed_case import Case, relative
from test_step import gradients, make_rollouts, make_samples, make_state
from test_step_whole import whole_logits
from torch.nn.utils.rnn import pad_sequence

from dopd_vlm.methods import METHODS, Method
from dopd_vlm.routed_loss import Head, Student, Target, compose_head, compose_hidden, routed_loss
from dopd_vlm.training import targets
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.types import Regime, Route, Term, View

KINDS = {
    "one head": ((2.0, 0), (-0.5, 1)),
    "two heads": ((0.7, 0), (0.6, 2)),
    "three terms": ((1.5, 2), (-1.0, 0), (0.5, 1)),
}
"""(coefficient, number of the term in `terms`) of each composition."""


def terms(seed=0):
    """(hidden, head): two states of one head, one of a wider head with bias and scale."""
    case = Case(seed)
    own = Head(weight=case.head, bias=torch.randn(case.vocab, dtype=torch.float64), logit_scale=0.5)
    wide = len(case.teacher_head)
    teacher = Head(
        weight=case.teacher_head, bias=torch.randn(wide, dtype=torch.float64), logit_scale=2.0
    )
    return case, [(case.hidden, own), (case.privileged, own), (case.teacher, teacher)]


def log_probs(hidden, head, width):
    logits = (hidden @ head.weight.T + (0 if head.bias is None else head.bias)) * head.logit_scale
    return logits[..., :width].log_softmax(-1)


def slow_composition(parts, width):
    """sum_k c_k log p_k, each p_k over the common vocabulary, renormalised."""
    return sum(c * log_probs(hidden, head, width) for c, hidden, head in parts).log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_composed_head_gives_the_weighted_sum_of_log_probs(kind):
    torch.manual_seed(0)
    case, all_terms = terms()
    parts = [(c, *all_terms[k]) for c, k in KINDS[kind]]
    coefficients, hidden, heads = (list(column) for column in zip(*parts, strict=True))
    head = compose_head(coefficients, heads)
    state = compose_hidden(coefficients, hidden, heads)
    expected = slow_composition(parts, case.vocab)
    torch.testing.assert_close(log_probs(state, head, case.vocab), expected, rtol=1e-10, atol=1e-10)


def test_terms_of_one_head_share_its_weight():
    _, all_terms = terms()
    own = all_terms[0][1]
    assert compose_head([2.0, -1.0], [own, own]).weight.data_ptr() == own.weight.data_ptr()


def test_one_term_is_the_target_itself():
    _, ((hidden, head), *_) = terms()
    assert torch.equal(compose_hidden([1.0], [hidden], [head]), hidden)
    assert compose_head([1.0], [head]).logit_scale == head.logit_scale


def test_low_precision_states_are_summed_in_float32():
    hidden = torch.tensor([[1.0]]).bfloat16()
    head = Head(weight=torch.ones(3, 1).bfloat16())
    state = compose_hidden([1.0, 2.0**-12], [hidden, hidden], [head, head])
    assert state.dtype == torch.float32 and float(state) == 1.0 + 2.0**-12


def test_a_soft_cap_is_refused_among_several_terms():
    head = Head(weight=torch.ones(3, 1), softcap=30.0)
    with pytest.raises(ValueError, match=r"softcap=30\.0"):
        compose_head([1.0, -1.0], [head, head])
    assert compose_head([1.0], [head]).softcap == 30.0


CONTRAST = (
    Term(policy="teacher", view="privileged", coefficient=1.5),
    Term(policy="teacher", view="plain", coefficient=-0.5),
)
MIXTURE = (
    Term(policy="teacher", view="privileged", coefficient=0.5),
    Term(policy="self_target", view="plain", coefficient=0.5),
)


def composed_method(parts, **route):
    route = {"divergence": "reverse_kl", "top_k": 5} | route
    table = dict.fromkeys(Regime, Route(target="composed", **route))
    return Method(name="x", routes=table, targets={"composed": parts}, router="uniform")


@pytest.mark.parametrize("route", [{}, {"top_k": None}, {"support": "student"}])
def test_the_top_k_of_a_composed_target_is_its_own(route):
    """The loss on a composed target is that on one whose head gives the renormalised log-probs themselves."""
    torch.manual_seed(0)
    case, all_terms = terms(3)
    parts = [(1.5, *all_terms[0]), (-0.5, *all_terms[2])]
    coefficients, hidden, heads = (list(column) for column in zip(*parts, strict=True))
    whole = Target(
        hidden=slow_composition(parts, case.vocab),
        head=Head(weight=torch.eye(case.vocab, dtype=torch.float64)),
    )
    folded = Target(
        hidden=compose_hidden(coefficients, hidden, heads), head=compose_head(coefficients, heads)
    )
    losses = []
    for target in (folded, whole):
        leaf = case.hidden.clone().requires_grad_()
        student = Student(hidden=leaf, head=Head(weight=case.head))
        output = routed_loss(
            student, {"composed": target}, case.ids, case.mask, composed_method(CONTRAST, **route)
        )
        output.loss.backward()
        losses.append((output.per_token, leaf.grad))
    assert relative(losses[0][0], losses[1][0]) < 1e-9
    assert relative(losses[0][1], losses[1][1]) < 1e-9


def composed_state(parts, **choices):
    state = make_state(**choices)
    state.method = composed_method(parts)
    state.self_target = state.student
    return state


@pytest.mark.parametrize("parts", [CONTRAST, MIXTURE], ids=["contrast", "mixture"])
def test_a_step_learns_the_composed_target(parts):
    """The scores of the sampled tokens, from logits of whole sequences one at a time."""
    state = composed_state(parts, micro=2, score=4)
    samples, rollouts = make_samples(state), make_rollouts()
    policies = {"teacher": state.teacher, "self_target": state.student}
    with torch.no_grad():
        logits = [whole_logits(policies[t.policy], t.view, samples, rollouts) for t in parts]
        micro_batches = targets.score_targets(state, samples, rollouts)
    width = state.vocab_size
    logp = sum(
        t.coefficient * x[..., :width].log_softmax(-1) for t, x in zip(parts, logits, strict=True)
    ).log_softmax(-1)
    ids = pad_sequence([r.completion_ids for r in rollouts], batch_first=True)
    expected = logp.gather(-1, ids[..., None]).squeeze(-1)
    row_of = {id(rollout): row for row, rollout in enumerate(rollouts)}
    for micro in micro_batches:
        for row, rollout in enumerate(micro.rollouts):
            length = len(rollout.completion_ids)
            score = micro.targets["composed"].scores.logp[row, :length]
            slow = expected[row_of[id(rollout)], :length]
            torch.testing.assert_close(score, slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [CONTRAST, MIXTURE], ids=["contrast", "mixture"])
def test_a_composed_step_is_the_same_in_micro_batches_and_moves_the_student_only(parts):
    whole_state = composed_state(parts)
    teacher = [p.clone() for p in whole_state.teacher.model.parameters()]
    whole, grads = gradients(whole_state)
    pieces, piece_grads = gradients(composed_state(parts, micro=2, score=3))
    assert pieces.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-9)
    for key, grad in grads.items():
        assert (piece_grads[key] - grad).norm() <= 1e-6 * grad.norm() + 1e-12, key
    assert all(
        torch.equal(p, old)
        for p, old in zip(whole_state.teacher.model.parameters(), teacher, strict=True)
    )


def forwards(state, monkeypatch) -> Counter:
    """(policy, view) -> forwards that the targets of one batch take."""
    counts: Counter = Counter()
    run = targets._run

    def counted(state, policy, view, *rest):
        counts[policy, view] += 1
        return run(state, policy, view, *rest)

    monkeypatch.setattr(targets, "_run", counted)
    targets.score_targets(state, make_samples(state), make_rollouts())
    return counts


PAIRS = {
    "dopd": {("teacher", "privileged"), ("self_target", "privileged")},
    "opd": {("teacher", "plain")},
    "opsd": {("self_target", "privileged")},
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_method_runs_each_policy_and_view_once_and_no_other(name, monkeypatch):
    state = make_state(name)
    assert set(state.method.scored_pairs) == PAIRS[name]
    assert forwards(state, monkeypatch) == dict.fromkeys(PAIRS[name], 1)


def test_a_pair_of_several_targets_runs_once(monkeypatch):
    state = make_state("dopd")
    routes = {**METHODS["dopd"].routes, Regime.HT: Route(target="contrast", divergence="jsd")}
    state.method = replace(METHODS["dopd"], routes=routes, targets={"contrast": CONTRAST})
    expected = {*PAIRS["dopd"], ("teacher", "plain")}
    assert forwards(state, monkeypatch) == dict.fromkeys(expected, 1)


def test_a_target_may_use_a_view_of_the_row_s_own():
    wrong = Term(policy="teacher", view="wrong", coefficient=-0.5)
    state = composed_state((CONTRAST[0], wrong), kind="text")
    row = replace(tiny.text_sample("a"), views={"wrong": View(context="take 9")})
    assert set(encode_sample(state, row).prompts) == {"plain", "privileged", "wrong"}
    with pytest.raises(ValueError, match="unknown view 'wrong'"):
        encode_sample(state, tiny.text_sample("b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {}}, "unknown target 'composed'"),
        ({"targets": {"composed": ()}}, "at least one term"),
        (
            {"targets": {"composed": (replace(CONTRAST[0], coefficient=float("nan")),)}},
            "finite coefficient",
        ),
        (
            {"targets": {"composed": (replace(CONTRAST[0], policy="techer"),)}},
            "unknown policy 'techer'",
        ),
        ({"targets": {"composed": CONTRAST, "teacher": CONTRAST}}, "choose another name"),
    ],
)
def test_a_target_that_cannot_be_is_refused_where_the_method_is_made(change, message):
    with pytest.raises(ValueError, match=message):
        replace(composed_method(CONTRAST), **change)
