"""Rows with no, one and several images in one training batch: the same update as one by one."""

from dataclasses import replace

import pytest
import tiny
from test_step import UIDS, make_rollouts, make_state

from dopd_vlm.rollout import generate
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, distil_step
from dopd_vlm.types import Sample, Sampling, View

IMAGES = tuple(tiny.image(*size, seed=i) for i, size in enumerate(((48, 32), (32, 80), (64, 64))))


def rows() -> list[Sample]:
    """No image (but one for the teacher), three images (none for the teacher), one image."""
    text, several, one = (tiny.vl_sample(uid, seed=i) for i, uid in enumerate(UIDS))
    return [
        replace(text, plain=View(), privileged=View(images=IMAGES[:1], context="box 7")),
        replace(several, plain=View(images=IMAGES), privileged=View(context="two of three")),
        one,
    ]


def update(state: TrainState, samples: list[Sample]):
    caught = {}
    state.optimizer.register_step_pre_hook(
        lambda *_: caught.update(
            {n: p.grad.clone() for n, p in state.student.model.named_parameters() if p.grad is not None}
        )
    )  # fmt: skip
    output = distil_step(
        state, [encode_sample(state, s) for s in samples], make_rollouts(), Clock()
    )
    return output, caught


@pytest.mark.parametrize("name", ["dopd", "priv_t_to_priv_s"])
def test_a_mixed_batch_equals_its_rows_one_by_one(name):
    whole, grads = update(make_state(name), rows())
    alone, alone_grads = update(make_state(name, micro=1, score=1), rows())
    assert alone.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-10)
    if whole.thresholds is not None:
        assert vars(alone.thresholds) == pytest.approx(vars(whole.thresholds), rel=1e-9)
    assert grads.keys() == alone_grads.keys()
    assert any("visual" in key and grad.abs().max() > 0 for key, grad in grads.items())
    for key, grad in grads.items():
        # The vision tower's rotary embedding rounds to float32, whatever the model's type.
        assert (alone_grads[key] - grad).norm() <= 1e-5 * grad.norm(), key


def test_each_image_belongs_to_its_own_row():
    state, samples = make_state("opd"), rows()
    before, _ = update(make_state("opd"), samples)
    other = replace(samples[2], plain=View(images=(tiny.image(48, 32, seed=99),)))
    after, _ = update(state, [*samples[:2], other])
    losses = [
        {r.uid: float(out.per_token[i].sum()) for micro, out in zip(step.micro_batches, step.losses, strict=True)
         for i, r in enumerate(micro.rollouts)}
        for step in (before, after)
    ]  # fmt: skip
    changed = {
        uid for uid in losses[0] if losses[0][uid] != pytest.approx(losses[1][uid], rel=1e-9)
    }
    assert changed == {UIDS[2]}


def test_a_mixed_batch_is_sampled_as_its_rows_are():
    state = make_state("opd")
    prompts = [encode_sample(state, s).prompts["plain"] for s in rows()]
    together = generate(state.student, prompts, Sampling(max_completion_length=6))
    for prompt, rollout in zip(prompts, together, strict=True):
        (alone,) = generate(state.student, [prompt], Sampling(max_completion_length=6))
        assert rollout.completion_ids.tolist() == alone.completion_ids.tolist()
