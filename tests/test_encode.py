"""encoder.py and forward.py on tiny random models: alignment, padding, EOS, blocked tokens."""

from dataclasses import replace

import pytest
import tiny
import torch

from dopd_vlm.models.encoder import Batch, collate, encode_prompt
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.prompts import build_prompts

COMPLETIONS = [torch.tensor([5, 9, 11]), torch.tensor([7]), torch.tensor([3, 4, 5, 6, 8])]


def policy_and_samples(kind: str):
    if kind == "text":
        return tiny.text_policy(dtype=torch.float64), [
            tiny.text_sample(u) for u in ("a", "bcd", "e?")
        ]
    samples = [
        tiny.vl_sample("a"),
        tiny.vl_sample("bcd", seed=3, size=(32, 80)),
        tiny.text_sample("no image"),
    ]
    return tiny.vl_policy(dtype=torch.float64), samples


def encoded(policy, samples, view="plain"):
    return [encode_prompt(policy.encoder, build_prompts(s).view(view), uid=s.uid) for s in samples]


def by_the_model(policy, prompt, ids):
    """The model's own forward of one unpadded sequence, positions and all left to it."""
    inputs = {
        "input_ids": torch.cat([prompt.input_ids, ids])[None],
        **prompt.image_tensors,
    }
    for name, values in prompt.token_inputs.items():
        inputs[name] = torch.nn.functional.pad(values, (0, len(ids)))[None]
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state[0]
    return hidden[len(prompt.input_ids) - 1 : -1]


@pytest.mark.parametrize("kind", ["text", "vl"])
@pytest.mark.parametrize("share", [True, False])
def test_sharing_padding_and_company_do_not_change_a_hidden_state(kind, share):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    rows = [0, 1, 0, 2, 0]
    completions = [*COMPLETIONS, torch.tensor([8, 8]), torch.tensor([2, 9, 4, 1])]
    batch = collate([prompts[i] for i in rows], completions, pad_id=policy.pad_id, share=share)
    assert len(batch.prompts["input_ids"]) == (3 if share else 5)
    together = completion_hidden(policy, batch)
    for row, (i, ids) in enumerate(zip(rows, completions, strict=True)):
        alone = by_the_model(policy, prompts[i], ids)
        torch.testing.assert_close(together[row, : len(ids)], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_gradients_through_a_shared_prompt_are_those_of_its_copies(kind):
    policy, samples = policy_and_samples(kind)
    policy.model.requires_grad_(True)
    prompts = encoded(policy, samples)
    listed = [prompts[i] for i in (1, 0, 1)]
    grads = []
    for share in (True, False):
        batch = collate(listed, COMPLETIONS, pad_id=policy.pad_id, share=share)
        hidden = completion_hidden(policy, batch)
        weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
        (hidden * weights * batch.mask[..., None]).sum().backward()
        grads.append({n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None})
        policy.model.zero_grad(set_to_none=True)
    shared, copies = grads
    assert shared.keys() == copies.keys() and len(shared) > 20
    for name, grad in copies.items():
        # Rounding of the RMS norms, which compute in float32 whatever the weights are.
        assert (shared[name] - grad).norm() <= 1e-6 * grad.norm(), name


def test_completion_ids_follow_the_prompt_verbatim():
    policy, samples = policy_and_samples("vl")
    for view in ("plain", "privileged"):
        prompts = encoded(policy, samples, view)
        batch: Batch = collate(prompts, COMPLETIONS, pad_id=policy.pad_id)
        for row, (prompt, ids) in enumerate(zip(prompts, COMPLETIONS, strict=True)):
            real = batch.prompts["attention_mask"][row].bool()
            assert batch.prompts["input_ids"][row, real].tolist() == prompt.input_ids.tolist()
            assert batch.completion_ids[row, batch.mask[row]].tolist() == ids.tolist()


def test_prompt_plus_completion_is_the_template_of_the_finished_conversation():
    policy, samples = policy_and_samples("vl")
    messages = build_prompts(samples[0]).plain
    prompt = encode_prompt(policy.encoder, messages)
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


def test_views_may_differ_in_image_size_and_prompt_length():
    policy, samples = policy_and_samples("vl")
    plain, privileged = (encoded(policy, samples[:1], view)[0] for view in ("plain", "privileged"))
    image_id = policy.model.config.image_token_id
    assert (plain.input_ids == image_id).sum() == 3 * 2
    assert (privileged.input_ids == image_id).sum() == 4 * 3
    assert len(privileged.input_ids) > len(plain.input_ids)


def test_an_image_for_a_text_only_model_names_the_sample():
    policy = tiny.text_policy()
    with pytest.raises(ValueError, match=r"'a'.*text-only"):
        encoded(policy, [tiny.vl_sample("a")])


def test_an_image_token_written_in_the_text_names_the_sample():
    policy = tiny.vl_policy()
    with pytest.raises((ValueError, IndexError, StopIteration)):
        encoded(policy, [tiny.text_sample("<|image_pad|>")])


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_special_tokens_of_the_tokenizer_are_refused_in_a_row_s_text(kind):
    policy, (sample, *_) = policy_and_samples(kind)
    for token in policy.tokenizer.all_special_tokens:
        changed = replace(sample, question=f"what {token} ?")
        with pytest.raises(
            ValueError, match=f"sample 'a': its text holds {token!r}".replace("|", ".")
        ):
            encoded(policy, [changed])


def test_a_prompt_longer_than_the_model_s_context_is_refused_with_both_numbers():
    policy, (sample, *_) = policy_and_samples("text")
    length = len(encoded(policy, [sample])[0].input_ids)
    fits = replace(policy.encoder, context=length)
    messages = build_prompts(sample).plain
    assert len(encode_prompt(fits, messages, uid="a").input_ids) == length
    with pytest.raises(
        ValueError, match=rf"sample 'a': a prompt of {length} tokens.* {length - 1}$"
    ):
        encode_prompt(replace(fits, context=length - 1), messages, uid="a")
    assert policy.encoder.context == policy.model.config.max_position_embeddings
