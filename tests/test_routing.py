"""routing.py against the slow reference, and the properties that training relies on."""

import math
import warnings
from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vlm import routing
from dopd_vlm.methods import METHODS, Method, adjusted, method
from dopd_vlm.types import Regime, Route

B, T = 5, 13


def make_scores(seed, shape=(B, T)):
    gen = torch.Generator().manual_seed(seed)
    teacher, student = -2.0 * torch.rand(2, *shape, generator=gen, dtype=torch.float64)
    mask = torch.rand(*shape, generator=gen) < 0.7
    mask[:, 0] = True
    return teacher, student, mask


def as_tuple(limits):
    return limits.gap, limits.q_self, limits.q_teacher


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3, 0.9]))
def test_thresholds_and_regimes_equal_the_reference(seed, trim):
    teacher, student, mask = make_scores(seed)
    limits = routing.thresholds(teacher, student, mask, trim)
    slow = reference.thresholds(teacher[mask].tolist(), student[mask].tolist(), trim)
    assert as_tuple(limits) == pytest.approx(slow, rel=1e-12)
    regime = routing.assign_regimes(teacher, student, mask, limits)
    for at in [(b, t) for b in range(B) for t in range(T)]:
        slow_regime = reference.regime(float(teacher[at]), float(student[at]), as_tuple(limits))
        assert int(regime[at]) == (slow_regime if mask[at] else -1)


def test_thresholds_do_not_depend_on_order_shape_or_masked_values():
    teacher, student, mask = make_scores(0)
    limits = routing.thresholds(teacher, student, mask)
    order = torch.randperm(int(mask.sum()), generator=torch.Generator().manual_seed(1))
    flat = (teacher[mask][order][None], student[mask][order][None])
    assert routing.thresholds(*flat, torch.ones(1, len(order), dtype=torch.bool)) == limits
    teacher[~mask], student[~mask] = float("nan"), 999.0
    assert routing.thresholds(teacher, student, mask) == limits


def test_each_regime_by_hand():
    # Threshold gap log 1.5; sum of the mean probabilities 0.8.
    limits = routing.Thresholds(gap=math.log(1.5), q_self=0.3, q_teacher=0.5)
    pairs = [(0.5, 0.4), (0.3, 0.25), (0.6, 0.2), (0.2, 0.6), (0.6, 0.3)]
    q = torch.tensor([pairs], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    regime = routing.assign_regimes(q[..., 0].log(), q[..., 1].log(), mask, limits)
    assert regime.tolist() == [[Regime.LH, Regime.LL, Regime.HT, Regime.HS, -1]]


def test_ties_are_high_and_the_teachers():
    logp = torch.full((1, 3), -0.5, dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    equal_gap = routing.Thresholds(gap=0.25, q_self=0.5, q_teacher=0.5)
    assert routing.assign_regimes(logp, logp - 0.25, mask, equal_gap).tolist() == [[2, 2, 2]]
    half = torch.full((1, 3), 0.5, dtype=torch.float64).log()
    equal_sum = routing.Thresholds(gap=1.0, q_self=0.5, q_teacher=0.5)
    assert routing.assign_regimes(half, half, mask, equal_sum).tolist() == [[0, 0, 0]]


def test_no_gap_is_all_ht_and_warns():
    _, student, mask = make_scores(3)
    limits = routing.thresholds(student, student, mask)
    with pytest.warns(UserWarning, match="routing decides nothing"):
        regime = routing.assign_regimes(student, student, mask, limits)
    assert set(regime[mask].tolist()) == {Regime.HT}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher, student, mask = make_scores(4)
        routing.assign_regimes(teacher, student, mask, routing.thresholds(teacher, student, mask))


def test_swapping_the_targets_swaps_ht_and_hs():
    teacher, student, mask = make_scores(5)
    limits = routing.thresholds(teacher, student, mask)
    swapped_limits = routing.thresholds(student, teacher, mask)
    regime = routing.assign_regimes(teacher, student, mask, limits)
    swapped = routing.assign_regimes(student, teacher, mask, swapped_limits)
    image = {-1: -1, Regime.LH: Regime.LH, Regime.LL: Regime.LL}
    image |= {Regime.HT: Regime.HS, Regime.HS: Regime.HT}
    assert [image[r] for r in regime.flatten().tolist()] == swapped.flatten().tolist()
    assert {Regime.HT, Regime.HS} <= set(regime.flatten().tolist())


def test_statistics():
    teacher = torch.zeros(1, 5, dtype=torch.float64)
    student = -torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0]], dtype=torch.float64)
    mask = torch.ones(1, 5, dtype=torch.bool)
    limits = [
        routing.thresholds(teacher, student, mask, 0.2, statistic=s).gap
        for s in ("mean", "median", 0.25)
    ]
    # quantile(gap, 0.8) = 4 + 0.2 x 96: all but the last are kept.
    assert limits == pytest.approx([2.5, 2.5, 1.75])
    assert routing.thresholds(teacher, student, mask, 0.0).gap == pytest.approx(22.0)


def test_weights_of_sequences_and_tokens():
    _, _, mask = make_scores(6)
    regime = torch.randint(0, 4, mask.shape, generator=torch.Generator().manual_seed(0))
    regime = regime.masked_fill(~mask, -1)
    routes = METHODS["dopd"].routes
    weights = routing.token_weights(regime, routes, mask, 7)
    for b in range(B):
        for t in range(T):
            expected = 0.0
            if mask[b, t]:
                expected = [0.6, 0.3, 1.0, 0.6][regime[b, t]] / (int(mask[b].sum()) * 7)
            assert float(weights[b, t]) == pytest.approx(expected, rel=1e-15)
    uniform = METHODS["opd"].routes
    assert float(routing.token_weights(regime, uniform, mask).sum()) == pytest.approx(1.0)
    by_token = routing.token_weights(regime, uniform, mask, reduction="token-mean")
    assert by_token[mask].unique().tolist() == [pytest.approx(1 / int(mask.sum()))]


def test_the_length_of_a_sequence_counts_tokens_without_a_regime():
    """What is left out of training makes no other token of its sequence heavier."""
    mask = torch.ones(1, 4, dtype=torch.bool)
    routes = method("dopd").routes
    whole = routing.token_weights(torch.tensor([[0, 1, 2, 3]]), routes, mask)
    cut = routing.token_weights(torch.tensor([[0, 1, -1, 3]]), routes, mask)
    assert cut[0, 2] == 0 and torch.equal(cut[0, [0, 1, 3]], whole[0, [0, 1, 3]])
    assert float(whole[0, 2]) == routes[Regime.HT].weight / 4


def test_scores_are_compared_in_float64():
    """Thresholds are float64 means; in the scores' own float32 a token beside them could fall on the other side."""
    gen = torch.Generator().manual_seed(0)
    teacher, student = -2 * torch.rand(2, 1, 4000, generator=gen)
    mask = torch.ones(1, 4000, dtype=torch.bool)
    for place in range(0, 4000, 400):
        pair = teacher[0, place].double(), student[0, place].double()
        q_teacher, q_self = (value.exp().item() for value in pair)
        limits = routing.Thresholds(
            gap=abs(float(pair[0] - pair[1])) * (1 + 1e-12), q_self=q_self, q_teacher=q_teacher
        )
        regime = routing.assign_regimes(teacher, student, mask, limits)
        assert regime[0, place] == Regime.LH
        q_above = replace(limits, q_teacher=q_teacher * (1 + 1e-12))
        assert routing.assign_regimes(teacher, student, mask, q_above)[0, place] == Regime.LL
        at_gap = replace(limits, gap=limits.gap * (1 - 2e-12))
        assert routing.assign_regimes(teacher, student, mask, at_gap)[0, place] >= Regime.HT


def test_micro_batches_add_up_to_the_batch():
    _, _, mask = make_scores(7)
    regime = torch.where(mask, 2, -1)
    routes = METHODS["dopd"].routes
    whole = routing.token_weights(regime, routes, mask)
    parts = [
        routing.token_weights(regime[rows], routes, mask[rows], num_sequences=B)
        for rows in (slice(0, 2), slice(2, B))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_bad_input_is_refused():
    teacher, student, mask = make_scores(8)
    with pytest.raises(ValueError, match="at least one valid token"):
        routing.thresholds(teacher, student, torch.zeros_like(mask))
    with pytest.raises(ValueError, match=r"trim=1.0"):
        routing.thresholds(teacher, student, mask, 1.0)
    with pytest.raises(ValueError, match="mean, median"):
        routing.thresholds(teacher, student, mask, statistic="mode")
    with pytest.raises(ValueError, match="NaN"):
        routing.thresholds(teacher * float("nan"), student, mask)
    with pytest.raises(ValueError, match="token-mean"):
        routing.token_weights(mask.long(), METHODS["dopd"].routes, mask, reduction="mean")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_are_complete_tables(name):
    table = method(name)
    assert table.name == name
    assert set(table.routes) == set(Regime)
    if table.router == "uniform":
        assert len(set(table.routes.values())) == 1
    assert table.scored_pairs or name == "sft"


def test_methods_of_the_paper():
    dopd = METHODS["dopd"].routes
    assert [dopd[r].weight for r in Regime] == [0.6, 0.3, 1.0, 0.6]
    assert [dopd[r].target for r in Regime] == ["teacher", "self_target", "teacher", "self_target"]
    assert [dopd[r].top_k for r in Regime] == [128, 128, None, 128]
    assert METHODS["opd"].teacher_view == "plain"
    assert not METHODS["opd"].needs_self_target
    assert not METHODS["opsd"].needs_teacher
    assert METHODS["priv_t_to_priv_s"].student_view == "privileged"
    assert METHODS["dopd"].teacher_top_k == 128 and METHODS["opd_full"].teacher_top_k is None


def test_unknown_methods_name_the_near_ones():
    with pytest.raises(ValueError, match=r"unknown method 'dpod'; near: dopd"):
        method("dpod")


def test_methods_that_cannot_work_are_refused():
    route = Route(target="teacher", divergence="jsd")
    with pytest.raises(ValueError, match="no route for LL"):
        Method(name="x", routes={r: route for r in Regime if r is not Regime.LL})
    plain = Route(target="teacher", target_view="plain", divergence="jsd")
    with pytest.raises(ValueError, match="2 views"):
        Method(name="x", routes=dict.fromkeys(Regime, plain))


def test_trimming_each_quantity_leaves_out_its_own_largest():
    teacher, student, mask = make_scores(4)
    limits = routing.thresholds(teacher, student, mask, 0.3, trim_of="each")
    for name, values in (("q_teacher", teacher.exp()), ("q_self", student.exp())):
        kept = values[mask][values[mask] <= values[mask].quantile(0.7)]
        assert getattr(limits, name) == pytest.approx(float(kept.mean()), rel=1e-12)
    assert limits.gap == routing.thresholds(teacher, student, mask, 0.3).gap


def test_adjusted_changes_what_it_is_told_and_nothing_by_default():
    for name, chosen in METHODS.items():
        assert adjusted(chosen) == chosen, name
    made = adjusted(
        method("dopd"),
        light_weight=0.5,
        weak_weight=0.1,
        top_k=7,
        support="student",
        tail="truncate",
    )
    assert [made.routes[r].weight for r in Regime] == [0.5, 0.1, 1.0, 0.5]
    assert [made.routes[r].top_k for r in Regime] == [7, 7, None, 7]
    assert (
        made.routes[Regime.LH].support == "student" and made.routes[Regime.HT].support == "target"
    )
    # A regime that the method drops stays dropped; a method without regimes has no such weights.
    assert adjusted(method("dopd_ht"), light_weight=0.5).routes[Regime.LH].weight == 0.0
    assert adjusted(method("opd"), light_weight=0.5) == method("opd")
