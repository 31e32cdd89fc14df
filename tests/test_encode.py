"""encode.py, rollout.py and scores.py on tiny random models: alignment, padding, EOS, blocked tokens."""

import pytest
import tiny
import torch

from dopd_vlm.encode import collate, encode_prompt
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import generate
from dopd_vlm.scores import completion_hidden

COMPLETIONS = [torch.tensor([5, 9, 11]), torch.tensor([7]), torch.tensor([3, 4, 5, 6, 8])]


def policy_and_samples(kind: str):
    if kind == "text":
        return tiny.text_policy(dtype=torch.float64), [
            tiny.text_sample(u) for u in ("a", "bcd", "e?")
        ]
    samples = [
        tiny.vl_sample("a"),
        tiny.vl_sample("bcd", seed=3, size=(32, 80)),
        tiny.text_sample("no picture"),
    ]
    return tiny.vl_policy(dtype=torch.float64), samples


def encoded(policy, samples, view="plain"):
    return [encode_prompt(policy, build_prompts(s).view(view), uid=s.uid) for s in samples]


@pytest.mark.parametrize("kind", ["text", "vl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_company_do_not_change_a_hidden_state(kind, side):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    batch = collate(prompts, COMPLETIONS, pad_id=policy.pad_id, padding_side=side)
    if side == "left":  # position ids follow the mask, as in generation
        batch.inputs["position_ids"] = left_positions(policy, batch)
    together = completion_hidden(policy, batch)
    for row, (prompt, ids) in enumerate(zip(prompts, COMPLETIONS, strict=True)):
        alone = completion_hidden(policy, collate([prompt], [ids], pad_id=policy.pad_id))
        torch.testing.assert_close(together[row, : len(ids)], alone[0], rtol=1e-9, atol=1e-9)


def left_positions(policy, batch):
    model = policy.backbone
    if "mm_token_type_ids" in batch.inputs:
        return model.get_rope_index(
            batch.inputs["input_ids"], batch.inputs["mm_token_type_ids"],
            image_grid_thw=batch.inputs["image_grid_thw"], attention_mask=batch.inputs["attention_mask"],
        )[0]  # fmt: skip
    return (batch.inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_sampled_logp_equals_a_rescore_of_the_same_ids(kind):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    rollouts = generate(
        policy, prompts, num_generations=2, max_completion_length=6, seed=1, batch_size=2
    )
    assert [r.uid for r in rollouts] == [s.uid for s in samples for _ in range(2)]
    twice = [p for p in prompts for _ in range(2)]
    batch = collate(twice, [r.completion_ids for r in rollouts], pad_id=policy.pad_id)
    logits = policy.head(completion_hidden(policy, batch))
    logits[..., list(policy.visual_ids)] = -torch.inf
    logp = logits.log_softmax(-1).gather(-1, batch.completion_ids[..., None])[..., 0]
    for row, rollout in enumerate(rollouts):
        again = logp[row, : len(rollout.completion_ids)].float()
        torch.testing.assert_close(again, rollout.sampler_logp, rtol=1e-4, atol=1e-5)


def test_completion_ids_follow_the_prompt_verbatim_and_positions_point_before_them():
    policy, samples = policy_and_samples("vl")
    for view in ("plain", "privileged"):
        prompts = encoded(policy, samples, view)
        batch = collate(prompts, COMPLETIONS, pad_id=policy.pad_id)
        for row, ids in enumerate(COMPLETIONS):
            where = batch.positions[row, : len(ids)] + 1
            assert batch.inputs["input_ids"][row, where].tolist() == ids.tolist()
            assert batch.mask[row].sum() == len(ids)


def test_prompt_plus_completion_is_the_template_of_the_finished_conversation():
    policy, samples = policy_and_samples("vl")
    messages = build_prompts(samples[0]).plain
    prompt = encode_prompt(policy, messages)
    answer = policy.tokenizer("2 cats", add_special_tokens=False, return_tensors="pt")["input_ids"][
        0
    ]
    ids = torch.cat([prompt.input_ids, answer, torch.tensor([policy.tokenizer.eos_token_id])])
    finished = policy.processor.apply_chat_template(
        [*messages, {"role": "assistant", "content": "2 cats"}], tokenize=False
    )
    images = list(samples[0].plain.images)
    whole = policy.processor(text=[finished.removesuffix("\n")], images=images, return_tensors="pt")
    assert whole["input_ids"][0].tolist() == ids.tolist()


def test_views_may_differ_in_picture_size_and_prompt_length():
    policy, samples = policy_and_samples("vl")
    plain, privileged = (encoded(policy, samples[:1], view)[0] for view in ("plain", "privileged"))
    image_id = policy.model.config.image_token_id
    assert (plain.input_ids == image_id).sum() == 3 * 2
    assert (privileged.input_ids == image_id).sum() == 4 * 3
    assert len(privileged.input_ids) > len(plain.input_ids)


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


def test_a_picture_for_a_text_only_model_names_the_sample():
    policy = tiny.text_policy()
    with pytest.raises(ValueError, match=r"'a'.*text-only"):
        encoded(policy, [tiny.vl_sample("a")])


def test_an_image_token_written_in_the_text_names_the_sample():
    policy = tiny.vl_policy()
    with pytest.raises((ValueError, IndexError, StopIteration)):
        encoded(policy, [tiny.text_sample("<|image_pad|>")])
