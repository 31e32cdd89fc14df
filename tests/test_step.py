"""One optimizer step on tiny models: invariance to layout, no gradient into targets, zero at equality."""

from dataclasses import astuple, replace

import pytest
import tiny
import torch
from accelerate import Accelerator

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.methods import METHODS, configured_method, method
from dopd_vlm.models.policy import checkpoint_activations_
from dopd_vlm.rollout import OwnEngine
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, NonFiniteLossError, distil_step, roll_out
from dopd_vlm.training.targets import arranged
from dopd_vlm.types import Regime, Rollout, View

UIDS = ("a", "bcd", "ef")
LENGTHS = (3, 1, 5, 4, 2, 6)


def make_state(
    name: str = "dopd",
    *,
    kind: str = "vl",
    same: bool = False,
    micro: int = 8,
    score: int = 8,
    pad_vocab: int = 3,
    **choices,
) -> TrainState:
    make = tiny.vl_policy if kind == "vl" else tiny.text_policy
    student = make(0, dtype=torch.float64)
    student.model.requires_grad_(True)
    teacher = student if same else make(1, hidden_size=48, pad_vocab=pad_vocab, dtype=torch.float64)
    config = RunConfig(
        student=ModelConfig(path="s"), teacher=ModelConfig(path="t"), data=DataConfig(train="x"),
        optim=OptimConfig(micro_batch_size=micro, score_batch_size=score, learning_rate=1e-3),
        rollout=RolloutConfig(num_generations=2, max_completion_length=6), method=MethodConfig(name=name, **choices),
    )  # fmt: skip
    chosen = configured_method(config)
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-3)
    return TrainState(
        config=config, accelerator=Accelerator(cpu=True), student=student, teacher=teacher,
        self_target=student if chosen.needs_self_target else None, method=chosen, optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), engine=OwnEngine(student),
        vocab_size=student.head.weight.shape[0], base=student if same else make(2, dtype=torch.float64),
    )  # fmt: skip


def make_samples(state: TrainState, *, context: str = "box 1 2 3", kind: str = "vl"):
    if kind == "text":
        texts = [tiny.text_sample(uid, context=context) for uid in UIDS]
        return [encode_sample(state, with_views(s, state)) for s in texts]
    sizes = {} if context else {"privileged_size": (48, 32)}
    samples = [
        tiny.vl_sample(uid, seed=i * 2, context=context, **sizes) for i, uid in enumerate(UIDS)
    ]
    return [encode_sample(state, with_views(s, state)) for s in samples]


def with_views(sample, state):
    """The sample with every further view that the method asks for."""
    names = set(state.method.views) - {"plain", "privileged"}
    images = sample.plain.images
    return replace(sample, views={n: View(images=images, context=f"{n} it is") for n in names})


def make_rollouts(seed: int = 0) -> list[Rollout]:
    gen = torch.Generator().manual_seed(seed)
    return [
        Rollout(
            uid=UIDS[i // 2], completion_ids=torch.randint(0, 90, (n,), generator=gen),
            sampler_logp=torch.zeros(n), finish_reason="length",
        )
        for i, n in enumerate(LENGTHS)
    ]  # fmt: skip


def gradients(state: TrainState):
    """Gradients of one step: read before the optimizer consumes them."""
    caught = {}
    state.optimizer.register_step_pre_hook(
        lambda *_: caught.update(
            {
                n: p.grad.clone()
                for n, p in state.student.model.named_parameters()
                if p.grad is not None
            }
        )
    )
    output = distil_step(state, make_samples(state), make_rollouts(), Clock())
    return output, caught


@pytest.mark.parametrize("name", ["dopd", "opd", "opsd", "priv_t_to_priv_s"])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (4, 5)])
def test_one_batch_equals_its_micro_batches(name, sizes):
    whole, grads = gradients(make_state(name))
    parts, part_grads = gradients(make_state(name, micro=sizes[0], score=sizes[1]))
    if name == "dopd":
        assert astuple(parts.thresholds) == pytest.approx(astuple(whole.thresholds), rel=1e-9)
    assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-10)
    assert grads.keys() == part_grads.keys() and len(grads) > 20
    for key, grad in grads.items():
        # Rounding of the RMS norms, which compute in float32 whatever the weights are.
        assert (part_grads[key] - grad).norm() <= 1e-6 * grad.norm() + 1e-12, key


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("kind", ["vl", "text"])
def test_every_method_takes_a_step_and_moves_the_student_only(name, kind):
    state = make_state(name, kind=kind)
    assert state.teacher is not None
    before = {n: p.clone() for n, p in state.student.model.named_parameters()}
    teacher = {n: p.clone() for n, p in state.teacher.model.named_parameters()}
    output = distil_step(state, make_samples(state, kind=kind), make_rollouts(), Clock())
    assert output.metrics["loss"] != 0 and output.metrics["optim/grad_norm"] > 0
    assert any(not torch.equal(p, before[n]) for n, p in state.student.model.named_parameters())
    assert all(
        torch.equal(p, teacher[n]) and p.grad is None
        for n, p in state.teacher.model.named_parameters()
    )


MOVE_AT_EQUALITY = {"sft", "veto"}
"""The first knows no other model, the second's target T s^beta is then sharper than both."""


@pytest.mark.parametrize("name", sorted(set(METHODS) - MOVE_AT_EQUALITY))
def test_loss_and_gradient_are_zero_when_models_and_views_coincide(name):
    state = make_state(name, same=True)
    samples = make_samples(state, context="")
    samples = [replace(s, prompts=dict.fromkeys(s.prompts, s.prompts["plain"])) for s in samples]
    with pytest.warns(UserWarning, match="gap") if method(name).by_gap else _nothing():
        output = distil_step(state, samples, make_rollouts(), Clock())
    assert abs(output.metrics["loss"]) < 1e-12
    assert output.metrics["optim/grad_norm"] < 1e-9


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_a_non_finite_loss_names_step_and_sample_and_updates_nothing():
    state = make_state("opd")
    assert state.teacher is not None
    state.step = 17
    samples = make_samples(state)
    bad = samples[1].prompts["plain"]
    bad.image_tensors["pixel_values"].fill_(torch.nan)
    before = state.student.head.weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"step 17.*bcd"):
        distil_step(state, samples, make_rollouts(), Clock())
    assert torch.equal(state.student.head.weight, before)


def test_thresholds_come_from_the_whole_batch_and_regimes_are_exhaustive():
    output, _ = gradients(make_state("dopd", micro=2, score=3))
    shares = [output.metrics[f"share/{name}"] for name in ("lh", "ll", "ht", "hs")]
    assert sum(shares) == pytest.approx(1.0) and sum(s > 0 for s in shares) >= 2
    gaps = []
    for micro, loss in zip(output.micro_batches, output.losses, strict=True):
        assert micro.teacher is not None and micro.self_target is not None
        gap = (micro.teacher.scores.logp - micro.self_target.scores.logp).abs()
        high = (loss.regime >= 2)[micro.batch.mask]
        gaps.append((gap[micro.batch.mask], high))
    gap, high = (torch.cat(part) for part in zip(*gaps, strict=True))
    assert torch.equal(high, gap >= output.thresholds.gap)
    keep = gap[gap <= gap.quantile(0.95)]
    assert output.thresholds.gap == pytest.approx(float(keep.mean()), rel=1e-9)


def tokens_of(output):
    """Per-token divergence and regime of the whole batch, flat, masked tokens left out, in one order."""
    parts = []
    for micro, loss in zip(output.micro_batches, output.losses, strict=True):
        assert micro.teacher is not None and micro.self_target is not None
        gap = (micro.teacher.scores.logp - micro.self_target.scores.logp).abs()
        mask = micro.batch.mask
        length = mask.sum(-1, keepdim=True).expand_as(mask)
        parts.append([part[mask] for part in (loss.per_token, loss.regime, gap, length)])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def test_reductions_divide_as_they_say():
    for reduction in ("sequence-mean", "token-mean"):
        state = make_state(micro=2, reduction=reduction)
        output, _ = gradients(state)
        value, regime, _, length = tokens_of(output)
        table = torch.tensor([state.method.routes[r].weight for r in Regime], dtype=torch.float64)
        divisor = length * len(LENGTHS) if reduction == "sequence-mean" else sum(LENGTHS)
        expected = (table[regime] * value / divisor).sum()
        assert output.metrics["loss"] == pytest.approx(float(expected), rel=1e-9)


def test_outliers_that_are_not_trained_leave_the_loss_and_nothing_else():
    whole, _ = gradients(make_state(trim=0.2))
    output, _ = gradients(make_state(trim=0.2, train_outliers=False))
    assert output.thresholds.gap == whole.thresholds.gap
    value, regime, gap, _ = tokens_of(output)
    before, before_regime, _, _ = tokens_of(whole)
    is_out = gap > gap.quantile(0.8)
    assert 0 < is_out.sum() < len(gap) and (before[is_out] > 0).all()
    assert (value[is_out] == 0).all() and (regime[is_out] == -1).all()
    assert torch.equal(regime[~is_out], before_regime[~is_out])
    torch.testing.assert_close(value[~is_out], before[~is_out])


def test_the_gap_threshold_may_be_fixed():
    output, _ = gradients(make_state(gap_threshold=0.5))
    _, regime, gap, _ = tokens_of(output)
    assert torch.equal(regime >= 2, gap >= 0.5)


@pytest.mark.parametrize(
    "choice", [{"statistic": "median"}, {"statistic": 0.9}, {"trim_of": "each"}]
)
def test_statistics_reach_the_thresholds(choice):
    assert gradients(make_state(**choice))[0].thresholds != gradients(make_state())[0].thresholds


@pytest.mark.parametrize(
    "choice", [{"support": "student"}, {"tail": "renormalise"}, {"tail": "truncate"}, {"top_k": 3}]
)
def test_support_and_tail_change_the_top_k_regimes_alone(choice):
    plain, _ = gradients(make_state(top_k=5))
    output, _ = gradients(make_state(**{"top_k": 5, **choice}))
    value, regime, _, _ = tokens_of(output)
    before, before_regime, _, _ = tokens_of(plain)
    assert torch.equal(regime, before_regime)
    is_deep = regime == Regime.HT
    torch.testing.assert_close(value[is_deep], before[is_deep])
    assert not torch.isclose(value[~is_deep], before[~is_deep]).all()


def test_the_order_of_rows_puts_prompts_or_lengths_together_whichever_is_cheaper():
    state = make_state()
    samples = make_samples(state)
    rows = [(samples[i // 2], rollout) for i, rollout in enumerate(make_rollouts())]
    by_prompt = arranged(rows, 2, "plain")
    assert [s.sample.uid for s, _ in by_prompt] == ["ef", "ef", "bcd", "bcd", "a", "a"]
    by_length = arranged(rows, 1, "plain")
    assert sorted(len(r.completion_ids) for _, r in by_length) == sorted(LENGTHS)
    # A short prompt and one long completion each: lengths matter more.
    long = [replace(r, completion_ids=torch.ones(n, dtype=torch.int64)) for (_, r), n in
            zip(rows, (500, 1, 500, 1, 500, 1), strict=True)]  # fmt: skip
    lengths = [len(r.completion_ids) for _, r in
               arranged([(s, r) for (s, _), r in zip(rows, long, strict=True)], 3, "plain")]  # fmt: skip
    assert lengths == [500] * 3 + [1] * 3


@pytest.mark.parametrize("kind", ["vl", "text"])
def test_checkpointed_layers_run_twice_and_give_the_same_gradient(kind):
    calls, found = [], []
    for is_on in (False, True):
        state = make_state("opd", kind=kind)
        optim = replace(state.config.optim, gradient_checkpointing=is_on)
        state.config = replace(state.config, optim=optim)
        if is_on:
            checkpoint_activations_(state.student.model)
        samples = make_samples(state, kind=kind)
        mlp = next(m for n, m in state.student.model.named_modules() if n.endswith("layers.0.mlp"))
        count = []
        mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        caught = {}
        state.optimizer.register_step_pre_hook(
            lambda *_, caught=caught, state=state: caught.update(
                {n: p.grad.clone() for n, p in state.student.model.named_parameters() if p.grad is not None}
            )
        )  # fmt: skip
        distil_step(state, samples, make_rollouts(), Clock())
        calls.append(len(count))
        found.append(caught)
        assert not state.student.model.training
    # Prompts and completions apart, or all in one and once more in the backward.
    assert calls == [2, 2]
    for name, grad in found[0].items():
        assert (found[1][name] - grad).norm() <= 1e-6 * grad.norm() + 1e-12, name


def test_the_engine_rests_once_the_rollouts_are_drawn(monkeypatch):
    state, rests = make_state("opd", kind="text"), []
    monkeypatch.setattr(state.engine, "rest", lambda: rests.append(True))
    assert roll_out(state, make_samples(state, kind="text"))
    assert rests == [True]
