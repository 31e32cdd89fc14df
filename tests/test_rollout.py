"""rollout.py on tiny random models: EOS, blocked tokens, seeds, batches, and Hugging Face's generate as oracle."""

import math
from dataclasses import replace

import numpy as np
import pytest
import reference
import tiny
import torch
from test_encode import encoded, policy_and_samples
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from dopd_vlm.models.encoder import collate, pad_prompts
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.image_features import image_inputs
from dopd_vlm.rollout import generate
from dopd_vlm.rollout.processors import Penalties, make_warpers
from dopd_vlm.rollout.seeds import mixed_seed, sequence_seed
from dopd_vlm.rollout.stop import CHECK_EVERY
from dopd_vlm.types import Sampling


def drawn(**settings) -> Sampling:
    """Sampling at temperature 1."""
    return Sampling(temperature=1.0, **settings)


@pytest.mark.parametrize("kind", ["text", "vl"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logp_equals_a_rescore_of_the_same_ids(kind, temperature):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    sampling = Sampling(num_generations=3, max_completion_length=9, seed=1, temperature=temperature)
    rollouts = generate(policy, prompts, sampling, batch_size=2)
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
    rollouts = generate(policy, prompts, Sampling(max_completion_length=20))
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
            policy,
            prompts,
            drawn(num_generations=5, max_completion_length=12, seed=3),
            batch_size=size,
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
    rollouts = generate(
        policy, prompt, drawn(num_generations=4000, max_completion_length=1, seed=5)
    )
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
        policy, prompt, drawn(num_generations=2000, max_completion_length=1, seed=5, **cut)
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
    rollout = generate(policy, prompts[:1], Sampling(max_completion_length=9))[0]
    assert rollout.completion_ids[-1] == eos and rollout.finish_reason == "stop"


def test_visual_tokens_are_never_sampled():
    policy, samples = policy_and_samples("vl")
    with torch.no_grad():
        policy.head.weight.zero_()
    sampling = drawn(num_generations=8, max_completion_length=30, seed=2)
    rollouts = generate(policy, encoded(policy, samples), sampling)
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
            for r in generate(policy, prompts, drawn(max_completion_length=8, seed=s))
        ]
        for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_that_fill_up_grow(monkeypatch):
    policy, samples = policy_and_samples("text")
    prompts = encoded(policy, samples)
    whole = generate(policy, prompts, drawn(max_completion_length=20, seed=4))
    monkeypatch.setattr("dopd_vlm.rollout.own.ROOM", 3)
    grown = generate(policy, prompts, drawn(max_completion_length=20, seed=4))
    assert max(len(r.completion_ids) for r in whole) > 9
    for one, other in zip(whole, grown, strict=True):
        assert one.completion_ids.tolist() == other.completion_ids.tolist()
        assert torch.equal(one.sampler_logp, other.sampler_logp)


PENALISED = Sampling(
    temperature=0.8, top_p=0.9, top_k=12, min_p=0.02, presence_penalty=0.7, frequency_penalty=0.4,
    repetition_penalty=1.3, num_generations=3, max_completion_length=14, seed=9,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_every_setting_is_that_of_the_slow_reference(kind):
    policy, samples = policy_and_samples(kind)
    make_eos_likely(policy)
    prompts = encoded(policy, samples)
    rollouts = generate(policy, prompts, PENALISED, batch_size=2)
    lengths = {len(r.completion_ids) for r in rollouts}
    assert len(lengths) > 2
    listed = [p for p in prompts for _ in range(3)]
    batch = collate(listed, [r.completion_ids for r in rollouts], pad_id=policy.pad_id)
    logits = policy.head(completion_hidden(policy, batch))
    logits[..., list(policy.visual_ids)] = -torch.inf
    for row, (prompt, rollout) in enumerate(zip(listed, rollouts, strict=True)):
        ids = rollout.completion_ids.tolist()
        seed = sequence_seed(9, prompt.uid, 0, row % 3)
        noise = np.random.default_rng(seed).random(14)
        for step, token in enumerate(ids):
            probs = reference.sampled_probs(
                logits[row, step].tolist(), prompt.input_ids.tolist(), ids[:step],
                temperature=0.8, top_p=0.9, top_k=12, min_p=0.02, presence=0.7, frequency=0.4, repetition=1.3,
            )  # fmt: skip
            assert reference.drawn_token(probs, noise[step]) == token
            logp = float(rollout.sampler_logp[step])
            assert logp == pytest.approx(math.log(probs[token]), abs=2e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"repetition_penalty": 1.5}, {"presence_penalty": 1.1}, {"frequency_penalty": 0.8}]
)  # fmt: skip
def test_penalties_change_what_is_drawn(settings):
    policy, samples = policy_and_samples("text")
    prompts = encoded(policy, samples)
    plain = generate(policy, prompts, Sampling(max_completion_length=30))
    other = generate(policy, prompts, Sampling(max_completion_length=30, **settings))
    same = [
        a.completion_ids.tolist() == b.completion_ids.tolist()
        for a, b in zip(plain, other, strict=True)
    ]
    assert all(same) is not bool(settings)


def test_the_repetition_penalty_is_transformers_own_and_padding_is_no_token():
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 11, generator=gen, dtype=torch.float64)
    ids = torch.tensor([[0, 0, 4, 5], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    sampling = Sampling(repetition_penalty=1.7)
    penalties = Penalties.of(sampling, ids, mask, 11)
    penalties.add_(torch.tensor([7, 8]))
    theirs = RepetitionPenaltyLogitsProcessor(1.7)
    for row, seen in enumerate(([4, 5, 7], [1, 2, 3, 4, 8])):
        expected = theirs(torch.tensor([seen]), logits[row : row + 1].clone())  # type: ignore[arg-type]
        torch.testing.assert_close(penalties.apply(logits)[row : row + 1], expected)


def test_warpers_are_those_of_transformers_in_the_order_of_vllm():
    sampling = Sampling(temperature=0.5, min_p=0.1, top_k=3, top_p=0.9)
    names = [type(w).__name__ for w in make_warpers(sampling, (1,), torch.device("cpu"))]
    assert names == [
        "SuppressTokensLogitsProcessor", "TemperatureLogitsWarper", "MinPLogitsWarper", "TopKLogitsWarper",
        "TopPLogitsWarper",
    ]  # fmt: skip
    assert not make_warpers(Sampling(), (), torch.device("cpu"))


def test_a_completion_ends_with_the_token_that_completes_a_stop_text():
    policy, samples = policy_and_samples("text")
    prompts = encoded(policy, samples)
    free = Sampling(max_completion_length=40)
    whole = generate(policy, prompts, free)
    texts = [policy.tokenizer.decode(r.completion_ids) for r in whole]
    place = CHECK_EVERY + 3
    stop = texts[0][place : place + 2]
    cut = generate(policy, prompts, replace(free, stop=(stop, "never here")))
    for one, other, text in zip(cut, whole, texts, strict=True):
        at = text.find(stop)
        length = at + len(stop) if at >= 0 else len(other.completion_ids)
        assert one.completion_ids.tolist() == other.completion_ids[:length].tolist()
        assert torch.equal(one.sampler_logp, other.sampler_logp[:length])
        assert one.finish_reason == ("stop" if at >= 0 else other.finish_reason)
    assert len(cut[0].completion_ids) == texts[0].find(stop) + 2


def test_a_draw_is_a_function_of_its_prompt_alone():
    policy, samples = policy_and_samples("text")
    prompts = [replace(p, number=i) for i, p in enumerate(encoded(policy, samples))]
    sampling = drawn(num_generations=2, max_completion_length=6, seed=1)
    whole = generate(policy, prompts, sampling)
    turned = generate(policy, prompts[::-1], sampling)
    alone = [r for p in prompts for r in generate(policy, [p], sampling)]
    ids = [r.completion_ids.tolist() for r in whole]
    assert [r.completion_ids.tolist() for r in alone] == ids
    swapped = [r.completion_ids.tolist() for r in turned]
    assert [swapped[4:6], swapped[2:4], swapped[0:2]] == [ids[0:2], ids[2:4], ids[4:6]]
    other = generate(policy, [replace(prompts[0], number=7)], sampling)
    assert [r.completion_ids.tolist() for r in other] != ids[:2]
    assert ids[0] != ids[1]


def test_seeds_differ_in_every_part():
    parts = [(1, "a", 0, 0), (2, "a", 0, 0), (1, "b", 0, 0), (1, "a", 1, 0), (1, "a", 0, 1)]
    seeds = {sequence_seed(*part) for part in parts}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 2) != mixed_seed(2, 1)


class Syncs(TorchDispatchMode):
    """Counts the calls that make a GPU's host wait: reading a value, or sizes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.WAITS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_no_token_waits_for_the_device(kind, monkeypatch):
    policy, samples = policy_and_samples(kind)
    prompts = encoded(policy, samples)
    policy.model.generation_config.eos_token_id = policy.pad_id  # hardly ever drawn
    monkeypatch.setattr("dopd_vlm.rollout.own.check_every", lambda device: 16)
    counts = []
    for length in (17, 49):
        sampling = replace(PENALISED, max_completion_length=length, num_generations=1)
        with Syncs() as syncs:
            rollouts = generate(policy, prompts, sampling)
        assert max(len(r.completion_ids) for r in rollouts) == length
        counts.append(syncs.count)
    # 32 more tokens: two looks at which sequences have ended, of two calls each.
    assert counts[1] - counts[0] <= 4, counts


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -1.0, "must not be negative"),
        ("top_p", 0.0, r"in \(0, 1\]"),
        ("top_k", -1, "at least 0"),
        ("min_p", 1.5, r"in \[0, 1\]"),
        ("presence_penalty", 3.0, r"in \[-2, 2\]"),
        ("frequency_penalty", -3.0, r"in \[-2, 2\]"),
        ("repetition_penalty", 0.0, "above 0"),
        ("stop", "a", "must be a list of texts"),
        ("stop", ("a", ""), "none empty"),
        ("seed", -1, "at least 0"),
        ("max_completion_length", 0, "at least 1"),
    ],
)
def test_settings_out_of_range_are_named(field, value, message):
    with pytest.raises(ValueError, match=rf"{field}=.*{message}"):
        Sampling(**{field: value})
