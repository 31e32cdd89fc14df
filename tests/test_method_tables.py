"""What defines each built-in method beside the paper's own, and who writes its completions."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from test_step import make_rollouts, make_samples, make_state

from dopd_vlm.config import RolloutConfig
from dopd_vlm.methods import METHODS, method
from dopd_vlm.routers import Scores, router
from dopd_vlm.routers.adaptive import CLIP, STUDENT, TEACHER
from dopd_vlm.routers.visual import DEGRADED, WHOLE
from dopd_vlm.training.completions import answer_rollout, completions, source_of
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.step import Clock, distil_step, train_step
from dopd_vlm.types import Regime, Sampling, View

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()


def scores(pairs=(), entropies=(), seed=0):
    gen = torch.Generator().manual_seed(seed)

    def values():
        return -3 * torch.rand(MASK.shape, generator=gen, dtype=torch.float64) * MASK

    return Scores(
        logp={pair: values() for pair in pairs},
        entropy={pair: -values() for pair in entropies},
        mask=MASK,
        prompts=torch.tensor([0, 1, 0]),
    )


def routed(name, seed=0):
    """(scores, routing) of a method's router, its limits taken from the same tokens."""
    one = router(METHODS[name].router)
    seen = scores(one.pairs, one.entropies, seed)
    flat = Scores(
        logp={pair: value[MASK][None] for pair, value in seen.logp.items()},
        entropy={pair: value[MASK][None] for pair, value in seen.entropy.items()},
        mask=MASK[MASK][None],
        prompts=torch.zeros(1, dtype=torch.int64),
    )
    limits = one.limits(flat, make_state().config.method) if one.limits else None
    return seen, one.route(seen, limits)


def test_minillm_weighs_a_token_by_the_mean_log_ratio_from_there_on():
    seen, routing = routed("minillm")
    for row, mask in enumerate(MASK):
        length = int(mask.sum())
        ratio = [(seen.logp[TEACHER] - seen.logp[STUDENT])[row, t].item() for t in range(length)]
        slow = [math.fsum(ratio[t:]) / (length - t) for t in range(length)]
        assert routing.weight[row, :length].tolist() == pytest.approx(slow, rel=1e-12)


def test_exopd_goes_beyond_the_teacher_along_its_way_from_the_first_student():
    (terms,) = METHODS["exopd"].targets.values()
    assert {(t.policy, t.coefficient) for t in terms} == {("teacher", 1.25), ("base", -0.25)}
    assert METHODS["exopd"].needs_base and METHODS["exopd"].needs_teacher


def test_veto_s_bridge_is_the_teacher_times_a_power_of_the_student():
    """log q = log T + beta log s + const: a token that the student finds improbable is held back."""
    (terms,) = METHODS["veto"].targets.values()
    assert {(t.policy, t.view, t.coefficient) for t in terms} == {
        ("teacher", "plain", 1.0),
        ("student", "plain", 0.5),
    }


def test_eopd_learns_open_tokens_forward_and_others_backward():
    seen, routing = routed("eopd")
    is_open = seen.entropy[TEACHER] > 0.8
    assert torch.equal((routing.route == Regime.HT)[MASK], is_open[MASK])
    assert is_open[MASK].any() and not is_open[MASK].all()
    routes = METHODS["eopd"].routes
    assert (routes[Regime.HT].divergence, routes[Regime.HT].top_k) == ("forward_kl", 16)
    assert routes[Regime.LH].divergence == "reverse_kl"


def test_tip_keeps_the_upper_half_by_a_soft_or():
    seen, routing = routed("tip")
    h = seen.entropy[STUDENT] / seen.entropy[STUDENT][MASK].max()
    d = (seen.logp[TEACHER] - seen.logp[STUDENT]).abs()
    d = d / d[MASK].max()
    soft_or = (1 - (1 - h) * (1 - d))[MASK]
    kept = (routing.route >= 0)[MASK]
    assert kept.sum() == math.ceil(MASK.sum() / 2)
    assert soft_or[kept].min() > soft_or[~kept].max()
    assert (routing.route[~MASK] == -1).all()


def test_reopold_clips_the_reward_and_leaves_out_certain_tokens():
    seen, routing = routed("reopold")
    ratio = seen.logp[TEACHER] - seen.logp[STUDENT]
    kept = routing.route >= 0
    floor = math.log(CLIP) / (1 - CLIP)
    assert torch.equal(routing.weight[kept], ratio[kept].clamp(min=floor))
    assert ratio[MASK].min() < floor  # or nothing was clipped here
    entropy = seen.entropy[STUDENT]
    assert entropy[kept].min() > entropy[MASK & ~kept].max()


def test_aopd_reinforces_what_the_teacher_likes_better_and_imitates_it_elsewhere():
    seen, routing = routed("aopd")
    ratio = seen.logp[TEACHER] - seen.logp[STUDENT]
    up = MASK & (ratio > 0)
    assert (routing.route[up] == Regime.HT).all() and torch.equal(routing.weight[up], ratio[up])
    down = MASK & ~up
    assert (routing.route[down] == Regime.HS).all() and (routing.weight[down] == 1).all()
    assert METHODS["aopd"].routes[Regime.HT].target == "tokens"


def test_va_opd_gives_the_upper_fifth_half_of_a_completion_s_loss():
    seen, routing = routed("va_opd")
    advantage = (seen.logp[WHOLE] - seen.logp[DEGRADED]).clamp(min=0)
    weight = routing.weight
    for row, length in ((0, 5), (2, 4)):
        total = weight[row].sum()
        top = int(advantage[row, :length].argmax())
        assert float(weight[row, top] / total) == pytest.approx(0.5)
    mean = [float(weight[row].sum() / MASK[row].sum()) for row in range(3)]
    assert mean[1] == pytest.approx(1.0)  # without siblings
    assert mean[0] + mean[2] == pytest.approx(2.0)
    seen_mean = [float(advantage[row].sum() / MASK[row].sum()) for row in (0, 2)]
    assert (mean[0] > mean[2]) == (seen_mean[0] > seen_mean[1])


def test_rlcsd_learns_nothing_where_right_and_wrong_hint_say_the_same():
    state = make_state("rlcsd", kind="text")
    samples = make_samples(state, kind="text")
    moved = distil_step(state, samples, make_rollouts(), Clock())
    assert moved.metrics["optim/grad_norm"] > 1e-3
    state = make_state("rlcsd", kind="text")
    same = [replace(s, prompts={**s.prompts, "wrong": s.prompts["privileged"]}) for s in samples]
    still = distil_step(state, same, make_rollouts(), Clock())
    assert still.metrics["optim/grad_norm"] < 1e-9


def test_ar_opd_is_the_privileged_teacher_where_partial_and_full_view_are_one():
    losses = []
    for name in ("ar_opd", "priv_t_to_s"):
        state = make_state(name, kind="text")
        routes = {
            regime: replace(route, top_k=None, support="sampled")
            for regime, route in state.method.routes.items()
        }
        state.method = replace(state.method, routes=routes)
        samples = make_samples(state, kind="text")
        samples = [
            replace(s, prompts={**s.prompts, "partial": s.prompts["privileged"]}) for s in samples
        ]
        losses.append(distil_step(state, samples, make_rollouts(), Clock()).metrics["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_whose_weights_and_views_the_self_distillers_use():
    assert METHODS["opsd"].self_target == "frozen" and not METHODS["opsd"].needs_teacher
    assert METHODS["sdft"].self_target == METHODS["vision_opd"].self_target == "ema"
    assert METHODS["sdft"].self_target_view == "privileged"
    assert (METHODS["s2vopd"].student_view, METHODS["s2vopd"].self_target_view) == (
        "degraded",
        "plain",
    )
    assert METHODS["opcd"].scored_pairs == (("teacher", "privileged"),)


def test_the_recipe_keeps_a_table_s_own_choices_unless_it_names_others():
    assert make_state("sdft").method.self_target == "ema"
    assert make_state("sdft", self_target="live").method.self_target == "live"
    (route,) = set(make_state("sdft").method.routes.values())
    assert (route.top_k, route.support) == (100, "student")


def with_sources(state, shares, **rollout):
    state.method = replace(state.method, completions=shares)
    state.config = replace(
        state.config, rollout=RolloutConfig(num_generations=2, max_completion_length=6, **rollout)
    )
    return state


def placed(state, count=3):
    samples = [tiny.text_sample(f"row {n}") for n in range(count)]
    return [replace(encode_sample(state, s), place=n) for n, s in enumerate(samples)]


def test_sft_and_kd_learn_the_row_s_answer_and_the_end_of_the_turn():
    for name in ("sft", "kd"):
        state = make_state(name, kind="text")
        (sample,) = placed(state, 1)
        rollouts = completions(state, [sample], Sampling(max_completion_length=8, seed=1))
        assert [r.source for r in rollouts] == ["answer"]
        text = state.student.tokenizer.decode(rollouts[0].completion_ids)
        assert text == sample.sample.answer + "<|im_end|>" and rollouts[0].finish_reason == "stop"
        assert answer_rollout(state, sample, 1).finish_reason == "length"


def test_a_row_without_an_answer_is_named():
    state = make_state("sft", kind="text")
    sample = encode_sample(state, replace(tiny.text_sample("lost"), answer=""))
    with pytest.raises(ValueError, match=r"'lost'.*has no answer"):
        answer_rollout(state, sample, 8)


def test_shares_hold_over_rows_and_depend_on_nothing_but_run_step_and_row():
    state = with_sources(make_state("gkd", kind="text"), {"student": 0.25, "answer": 0.75})
    (sample,) = placed(state, 1)
    drawn = [source_of(state, replace(sample, place=n), seed=5) for n in range(2000)]
    share = drawn.count("answer") / len(drawn)
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / len(drawn))
    assert drawn == [source_of(state, replace(sample, place=n), seed=5) for n in range(2000)]
    assert drawn != [source_of(state, replace(sample, place=n), seed=6) for n in range(2000)]


def test_mixed_completions_come_in_the_order_of_the_rows():
    state = with_sources(make_state("gkd", kind="text"), {"student": 1, "teacher": 1, "answer": 1})
    samples = placed(state, 8)
    sampling = state.config.rollout.sampling(seed=3)
    rollouts = completions(state, samples, sampling)
    assert [r.uid for r in rollouts] == [s.sample.uid for s in samples for _ in range(2)]
    assert {r.source for r in rollouts} == {"student", "teacher", "answer"}
    alone = [r for sample in samples for r in completions(state, [sample], sampling)]
    for one, other in zip(rollouts, alone, strict=True):
        assert one.source == other.source and torch.equal(one.completion_ids, other.completion_ids)


def test_answers_do_not_count_as_the_student_s_accuracy():
    state = with_sources(make_state("gkd", kind="text"), {"answer": 1})
    output = train_step(state, placed(state), Clock(), lambda text, sample: 1.0)
    assert "rollout/accuracy" not in output.metrics and output.metrics["loss"] != 0


@pytest.mark.parametrize("shares", [{"student": -1}, {"student": 0.0}, {}, {"studnet": 1.0}])
def test_shares_that_cannot_be_are_refused(shares):
    with pytest.raises(ValueError, match=r"rollout\.sources"):
        RolloutConfig(sources=shares)
    with pytest.raises(ValueError, match="method 'gkd': completions"):
        replace(method("gkd"), completions=shares)


def test_a_view_that_the_rows_lack_is_named_before_a_model_is_loaded(tmp_path):
    from dopd_vlm.train import train

    state = make_state("rlcsd", kind="text")
    config = replace(state.config, output_dir=str(tmp_path), name="x")
    with pytest.raises(
        ValueError, match=r"method.name='rlcsd'.*view 'wrong'.*plain, privileged, partial"
    ):
        train(config, [replace(tiny.text_sample("a"), views={"partial": View(context="b")})])


def test_a_method_that_needs_a_reward_is_refused_without_a_scorer(monkeypatch):
    from dopd_vlm import routers
    from dopd_vlm.train import check_method

    needy = replace(router("uniform"), name="needy", needs_reward=True)
    monkeypatch.setitem(routers.ROUTERS, "needy", needy)
    monkeypatch.setitem(METHODS, "needy", replace(METHODS["opd"], name="needy", router="needy"))
    config = make_state("needy", kind="text").config
    with pytest.raises(ValueError, match=r"method.name='needy' needs a reward.*score_answer"):
        check_method(config, [], has_scorer=False)
    check_method(config, [], has_scorer=True)
