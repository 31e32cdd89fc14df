"""The step as a whole against the slow reference, and what its options promise: clipping, precision, accuracy."""

from dataclasses import replace
from functools import partial

import pytest
import reference
import tiny
import torch
from test_encode import by_the_model, encoded, policy_and_samples
from test_step import UIDS, gradients, make_rollouts, make_samples, make_state
from torch.nn.utils.rnn import pad_sequence

from dopd_vlm.config import ModelConfig
from dopd_vlm.models.encoder import pad_prompts
from dopd_vlm.models.forward import extend_, prefill
from dopd_vlm.models.image_features import image_inputs
from dopd_vlm.training import step
from dopd_vlm.training.build import build_state, make_accelerator, run_folder
from dopd_vlm.training.step import Clock, NonFiniteLossError, distil_step, train_step


def whole_logits(policy, view, samples, rollouts) -> torch.Tensor:
    """[B, T, V] logits of each completion behind its own prompt, one sequence at a time."""
    prompts = {sample.sample.uid: sample.prompts[view] for sample in samples}
    rows = [policy.head(by_the_model(policy, prompts[r.uid], r.completion_ids)) for r in rollouts]
    return pad_sequence(rows, batch_first=True)


def slow_loss(state, samples, rollouts) -> float:
    """The loss of the step from logits of whole sequences, by the reference."""
    ids = pad_sequence([r.completion_ids for r in rollouts], batch_first=True)
    mask = pad_sequence([torch.ones(len(r.completion_ids)) for r in rollouts], True).bool()
    method, width = state.method, state.vocab_size
    logits = {
        "student": whole_logits(state.student, method.student_view, samples, rollouts),
        "teacher": whole_logits(state.teacher, method.teacher_view, samples, rollouts),
        "self_target": whole_logits(state.student, method.self_target_view, samples, rollouts),
    }
    warm = {
        name: (value[..., :width] / state.config.method.temperature).softmax(-1)
        for name, value in logits.items()
    }
    scored = {name: value[..., :width].softmax(-1) for name, value in logits.items()}
    student, _ = warm.pop("student"), scored.pop("student")
    return float(reference.dense_routed_loss(student, warm, scored, ids, mask, method)[0])


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", ["dopd", "opd", "opd_full", "opsd", "priv_t_to_priv_s"])
def test_the_loss_of_a_step_is_the_reference_s(name, temperature):
    state = make_state(name, micro=2, score=4, temperature=temperature, top_k=5)
    samples, rollouts = make_samples(state), make_rollouts()
    with torch.no_grad():
        expected = slow_loss(state, samples, rollouts)
    output = distil_step(state, samples, rollouts, Clock())
    assert output.metrics["loss"] == pytest.approx(expected, rel=1e-8)


def test_every_completion_keeps_its_own_sample():
    state = make_state(micro=2, score=4)
    output, _ = gradients(state)
    pairs = [
        (sample.sample.uid, rollout.uid)
        for micro in output.micro_batches
        for sample, rollout in zip(micro.samples, micro.rollouts, strict=True)
    ]
    assert sorted(pairs) == sorted((uid, uid) for uid in UIDS for _ in range(2))


def test_gradients_are_clipped_to_the_norm_of_the_recipe():
    state = make_state()
    state.config = replace(state.config, optim=replace(state.config.optim, max_grad_norm=1e-3))
    output, clipped = gradients(state)
    norm = torch.stack([grad.norm() for grad in clipped.values()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert output.metrics["optim/grad_norm"] > 1e-2  # before the cut


def test_a_non_finite_gradient_of_a_finite_loss_updates_nothing():
    state = make_state("opd")
    state.step = 17
    first = next(state.student.model.parameters())
    first.register_hook(lambda grad: grad * torch.inf)
    before = state.student.head.weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"step 17.*gradient norm is (nan|inf)"):
        distil_step(state, make_samples(state), make_rollouts(), Clock())
    assert torch.equal(state.student.head.weight, before)


def test_targets_are_scored_in_the_student_s_precision(monkeypatch):
    """One model as student and teacher in one view: any other arithmetic would show as a divergence."""
    scores = []
    for is_low in (False, True):
        state = make_state("opd", kind="text", same=True)
        state.student.model.float()
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=is_low)
        monkeypatch.setattr(state.accelerator, "autocast", autocast)
        samples = make_samples(state, kind="text")
        output = distil_step(state, samples, make_rollouts(), Clock())
        assert max(float(loss.per_token.abs().max()) for loss in output.losses) < 1e-6
        scores.append(output.micro_batches[0].teacher.scores.logp)
    assert not torch.allclose(*scores, atol=1e-4)  # else it was no other arithmetic


def test_accuracy_asks_about_each_completion_and_its_own_sample(monkeypatch):
    state = make_state("opd")
    samples, rollouts = make_samples(state), make_rollouts()
    monkeypatch.setattr(step, "roll_out", lambda *_: rollouts)
    texts = {step.completion_text(state.student, rollout): rollout.uid for rollout in rollouts}
    asked = []

    def score(text, sample):
        asked.append((texts[text], sample.uid))
        return float(sample.uid == "bcd")

    output = train_step(state, samples, Clock(), score)
    assert asked == [(uid, uid) for uid in UIDS for _ in range(2)]
    assert output.metrics["rollout/accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("wider", ["s", "t"])
def test_the_softmax_has_the_narrower_head_s_width(tmp_path, wider):
    for seed, name in enumerate("st"):
        policy = tiny.text_policy(seed, pad_vocab=3 * (name == wider))
        policy.model.save_pretrained(tmp_path / name)
        policy.processor.save_pretrained(tmp_path / name)
    student, teacher = (ModelConfig(path=str(tmp_path / name)) for name in "st")
    config = replace(make_state().config, name="x", student=student, teacher=teacher)
    state = build_state(config, make_accelerator(config), run_folder(config))
    assert state.vocab_size == len(tiny.tokenizer())


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_tokens_in_several_steps_are_those_in_one(kind):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    ids = torch.randint(5, 90, (len(prompts), 7), generator=torch.Generator().manual_seed(0))
    inputs = {**pad_prompts(prompts, pad_id=policy.pad_id), **image_inputs(policy, prompts, None)}
    prefix, parts = prefill(policy, inputs), []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        part = ids[:, start:end]
        hidden, prefix = extend_(policy, prefix, part, torch.ones_like(part))
        parts.append(hidden)
    for row, (prompt, completion) in enumerate(zip(prompts, ids, strict=True)):
        alone = by_the_model(policy, prompt, completion)[1:]
        torch.testing.assert_close(torch.cat(parts, 1)[row, :-1], alone, rtol=1e-9, atol=1e-9)
