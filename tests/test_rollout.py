"""rollout.py on tiny random models: EOS, blocked tokens, seeds, batches, and Hugging Face's generate as oracle."""

import pytest
import tiny
import torch
from test_encode import encoded, policy_and_samples
from transformers import GenerationConfig

from dopd_vlm.models.encoder import collate, pad_prompts
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.image_features import image_inputs
from dopd_vlm.rollout.own import generate


@pytest.mark.parametrize("kind", ["text", "vl"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logp_equals_a_rescore_of_the_same_ids(kind, temperature):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    rollouts = generate(
        policy,
        prompts,
        num_generations=3,
        max_completion_length=9,
        seed=1,
        batch_size=2,
        temperature=temperature,
    )
    assert [r.uid for r in rollouts] == [s.uid for s in samples for _ in range(3)]
    listed = [p for p in prompts for _ in range(3)]
    batch = collate(listed, [r.completion_ids for r in rollouts], pad_id=policy.pad_id)
    logits = policy.head(completion_hidden(policy, batch)) / temperature
    logits[..., list(policy.visual_ids)] = -torch.inf
    logp = logits.log_softmax(-1).gather(-1, batch.completion_ids[..., None])[..., 0]
    for row, rollout in enumerate(rollouts):
        again = logp[row, : len(rollout.completion_ids)].float()
        torch.testing.assert_close(again, rollout.sampler_logp, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_greedy_completions_are_those_of_hugging_face_generate(kind):
    policy, samples = policy_and_samples(kind)
    make_eos_likely(policy)
    prompts = encoded(policy, samples)
    rollouts = generate(policy, prompts, max_completion_length=20, temperature=0.0)
    inputs = {
        **pad_prompts(prompts, pad_id=policy.pad_id),
        **image_inputs(policy, prompts, None),
    }
    ids = policy.model.generate(
        **inputs,
        generation_config=GenerationConfig(
            max_new_tokens=20, do_sample=False, eos_token_id=list(policy.eos_ids), pad_token_id=policy.pad_id,
            suppress_tokens=list(policy.visual_ids) or None,
        ),
    )[:, inputs["input_ids"].shape[1] :]  # fmt: skip
    for row, rollout in zip(ids, rollouts, strict=True):
        assert row[: len(rollout.completion_ids)].tolist() == rollout.completion_ids.tolist()
    assert "stop" in {r.finish_reason for r in rollouts}


def make_eos_likely(policy) -> None:
    """Ten characters end a sequence as well: some do, at different lengths."""
    policy.model.generation_config.eos_token_id = [*policy.eos_ids, *range(3, 13)]


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_the_draw_does_not_depend_on_batches_or_on_sequences_that_ended(kind):
    policy, samples = policy_and_samples(kind)
    make_eos_likely(policy)
    prompts = encoded(policy, samples)
    whole, parts = (
        generate(
            policy, prompts, num_generations=5, max_completion_length=12, seed=3, batch_size=size
        )
        for size in (3, 1)
    )
    lengths = [len(r.completion_ids) for r in whole]
    assert len(set(lengths)) > 2 and min(lengths) < 12
    for one, other in zip(whole, parts, strict=True):
        assert one.completion_ids.tolist() == other.completion_ids.tolist()
        assert one.finish_reason == other.finish_reason
        torch.testing.assert_close(one.sampler_logp, other.sampler_logp, rtol=1e-5, atol=1e-6)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    policy, samples = policy_and_samples("text")
    prompt = encoded(policy, samples)[:1]
    rollouts = generate(policy, prompt, num_generations=4000, max_completion_length=1, seed=5)
    counts = torch.bincount(
        torch.cat([r.completion_ids for r in rollouts]), minlength=len(policy.head.weight)
    )
    logits = policy.head(completion_hidden(policy, collate(prompt, [torch.tensor([5])], pad_id=0)))
    prob = logits[0, 0].softmax(-1)
    spread = (prob * (1 - prob) / 4000).sqrt()
    assert ((counts / 4000 - prob).abs() <= 4.5 * spread + 1e-9).all()


@pytest.mark.parametrize("cut", [{"top_p": 0.6}, {"top_k": 4}])
def test_tokens_come_from_the_nucleus_or_the_top_k_alone(cut):
    policy, samples = policy_and_samples("text")
    prompt = encoded(policy, samples)[:1]
    hidden = completion_hidden(policy, collate(prompt, [torch.tensor([5])], pad_id=0))
    prob, ids = policy.head(hidden)[0, 0].detach().softmax(-1).sort(descending=True)
    # The nucleus: tokens before which less than top_p lies.
    size = int((prob.cumsum(0) - prob < cut["top_p"]).sum()) if "top_p" in cut else cut["top_k"]
    assert 1 < size < 30
    rollouts = generate(
        policy, prompt, num_generations=2000, max_completion_length=1, seed=5, **cut
    )
    logp = dict(zip(ids[:size].tolist(), (prob[:size] / prob[:size].sum()).log(), strict=True))
    assert {int(r.completion_ids[0]) for r in rollouts} == set(logp)
    for rollout in rollouts[:50]:
        expected = logp[int(rollout.completion_ids[0])]
        assert float(rollout.sampler_logp[0]) == pytest.approx(float(expected), abs=1e-5)


def test_eos_is_kept_even_where_pad_and_eos_are_one_id():
    policy, _ = policy_and_samples("text")
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    prompts = encoded(policy, [tiny.text_sample("a"), tiny.text_sample("bb")])
    eos = policy.eos_ids[0]
    batch = collate(
        prompts, [torch.tensor([5, eos]), torch.tensor([5, 6, 7])], pad_id=policy.pad_id
    )
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    with torch.no_grad():
        policy.head.weight[eos] = 0.0
        policy.head.weight[eos] = 50 * completion_hidden(policy, batch)[0, 0]
    rollout = generate(policy, prompts[:1], max_completion_length=9, temperature=0.0)[0]
    assert rollout.completion_ids[-1] == eos and rollout.finish_reason == "stop"


def test_visual_tokens_are_never_sampled():
    policy, samples = policy_and_samples("vl")
    with torch.no_grad():
        policy.head.weight.zero_()
    rollouts = generate(
        policy, encoded(policy, samples), num_generations=8, max_completion_length=30, seed=2
    )
    ids = torch.cat([r.completion_ids for r in rollouts])
    assert len(ids) > 200 and not torch.isin(ids, torch.tensor(policy.visual_ids)).any()


def test_sampling_is_seeded_and_leaves_the_global_state_alone():
    policy, samples = policy_and_samples("text")
    prompts = encoded(policy, samples)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws = [
        [
            r.completion_ids.tolist()
            for r in generate(policy, prompts, max_completion_length=8, seed=s)
        ]
        for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_that_fill_up_grow(monkeypatch):
    policy, samples = policy_and_samples("text")
    prompts = encoded(policy, samples)
    whole = generate(policy, prompts, max_completion_length=20, seed=4)
    monkeypatch.setattr("dopd_vlm.rollout.own.ROOM", 3)
    grown = generate(policy, prompts, max_completion_length=20, seed=4)
    assert max(len(r.completion_ids) for r in whole) > 9
    for one, other in zip(whole, grown, strict=True):
        assert one.completion_ids.tolist() == other.completion_ids.tolist()
        assert torch.equal(one.sampler_logp, other.sampler_logp)
