"""Every family behind its real processor: alignment, leak, sharing, rollouts, training, evaluation, checkpoint."""

import pickle
import re
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_families
import torch
from tiny_families import FAMILIES
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.data import coords
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.models import families
from dopd_vlm.models.encoder import collate, encode_prompt
from dopd_vlm.models.families import Family, family_of, register
from dopd_vlm.models.forward import can_share, completion_hidden
from dopd_vlm.models.policy import load_policy, output_head
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import generate
from dopd_vlm.train import train
from dopd_vlm.training.build import check_coords
from dopd_vlm.types import Sample, Sampling

every_family = pytest.mark.parametrize("name", FAMILIES)
visual_families = pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.is_visual])


def samples(name: str) -> list[Sample]:
    """Two questions whose teacher sees more; of an image family, other images of other sizes."""
    if FAMILIES[name].is_visual:
        return [tiny.vl_sample("ab", seed=3, size=(70, 40)), tiny.vl_sample("c", seed=5)]
    return [tiny.text_sample("abc"), tiny.text_sample("d")]


def encoded(name: str, views=("plain", "privileged")):
    encoder = tiny_families.policy(name).encoder
    return [
        encode_prompt(encoder, build_prompts(sample).view(view), uid=sample.uid)
        for sample in samples(name)
        for view in views
    ]


def completions(count: int) -> list[torch.Tensor]:
    return [torch.arange(5, 9 + length) for length in range(count)]


@torch.no_grad()
def by_the_model(policy, prompt, ids):
    """The model's own forward of one unpadded sequence, positions and masks all left to it."""
    inputs = {"input_ids": torch.cat([prompt.input_ids, ids])[None], **prompt.image_tensors}
    for name, values in prompt.token_inputs.items():
        inputs[name] = torch.nn.functional.pad(values, (0, len(ids)))[None]
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state[0]
    return hidden[len(prompt.input_ids) - 1 : -1]


@every_family
def test_a_padded_batch_aligns_with_the_model_s_own_forward(name):
    policy, prompts = tiny_families.policy(name), encoded(name)
    ids = completions(len(prompts))
    with torch.no_grad():
        hidden = completion_hidden(policy, collate(prompts, ids, pad_id=policy.pad_id))
    for row, (prompt, completion) in enumerate(zip(prompts, ids, strict=True)):
        expected = by_the_model(policy, prompt, completion)
        torch.testing.assert_close(hidden[row, : len(completion)], expected, rtol=1e-4, atol=1e-5)


@every_family
def test_sharing_a_prompt_equals_the_whole_forward_or_is_off(name):
    policy, prompts = tiny_families.policy(name), encoded(name)
    assert can_share(policy) == FAMILIES[name].shares
    rows, ids = [0, 1, 0, 2, 0], completions(5)
    hidden = []
    for share in (can_share(policy), False):
        batch = collate([prompts[row] for row in rows], ids, pad_id=policy.pad_id, share=share)
        with torch.no_grad():
            hidden.append(completion_hidden(policy, batch)[batch.mask])
    torch.testing.assert_close(*hidden, rtol=1e-4, atol=1e-5)


@every_family
def test_no_privileged_byte_reaches_the_plain_prompt(name):
    before = encoded(name, ("plain",))
    encoder = tiny_families.policy(name).encoder
    for sample, prompt in zip(samples(name), before, strict=True):
        hidden = replace(
            sample, privileged=replace(sample.privileged, context="secret 7"), answer="9"
        )
        after = encode_prompt(encoder, build_prompts(hidden).plain, uid=sample.uid)
        assert after.text == prompt.text and torch.equal(after.input_ids, prompt.input_ids)
        for key, tensor in prompt.image_tensors.items():
            assert torch.equal(after.image_tensors[key], tensor)


@visual_families
def test_an_image_token_in_a_row_s_text_is_refused_with_the_uid(name):
    encoder, sample = tiny_families.policy(name).encoder, samples(name)[0]
    token = encoder.tokenizer.convert_ids_to_tokens(encoder.image_token_id)
    for mark in {token, encoder.processor.image_token}:
        # In the context: in a question, `<image>` is where a row places its image.
        bad = replace(sample, privileged=replace(sample.privileged, context=f"see {mark} ?"))
        with pytest.raises(
            ValueError, match=r"'ab'.*(a special token of|written in the text of the row)"
        ):
            encode_prompt(encoder, build_prompts(bad).privileged, uid=bad.uid)


@every_family
def test_a_row_without_an_image_loses_none_of_its_turns(name):
    encoder = tiny_families.policy(name).encoder
    turns = ({"role": "user", "content": "so far?"}, {"role": "assistant", "content": "four"})
    sample = replace(tiny.text_sample("xyz", context="add 7"), system="be brief", history=turns)
    prompt = encode_prompt(encoder, build_prompts(sample).privileged, uid="xyz")
    for said in ("be brief", "so far?", "four", "what is xyz?", "add 7"):
        assert said in prompt.text
    assert encoder.tokenizer.decode(prompt.input_ids) == prompt.text


@every_family
def test_an_encoder_needs_no_model_and_travels_to_other_processes(name):
    encoder = tiny_families.policy(name).encoder
    copied = pickle.loads(pickle.dumps(encoder))
    for sample, prompt in zip(samples(name), encoded(name, ("plain",)), strict=True):
        again = encode_prompt(copied, build_prompts(sample).plain, uid=sample.uid)
        assert again.text == prompt.text and torch.equal(again.input_ids, prompt.input_ids)
        assert prompt.token_inputs.keys() == set(encoder.family.token_inputs)
        assert all(v.shape == prompt.input_ids.shape for v in prompt.token_inputs.values())
        assert again.image_tensors.keys() == prompt.image_tensors.keys()
        assert len(prompt.images) == len(sample.plain.images)


@every_family
def test_greedy_rollouts_are_the_whole_forward_s_choice(name):
    policy, prompts = tiny_families.policy(name), encoded(name)
    rollouts = generate(policy, prompts, Sampling(max_completion_length=20))
    ids = [rollout.completion_ids for rollout in rollouts]
    with torch.no_grad():
        batch = collate(prompts, ids, pad_id=policy.pad_id, share=False)
        hidden, head = completion_hidden(policy, batch), output_head(policy)
    logits = hidden @ head.weight.T
    logits[..., list(policy.visual_ids)] = -torch.inf
    taken = logits.gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    assert (logits.amax(-1) - taken)[batch.mask].max() < 1e-4
    assert max(map(len, ids)) > 16  # longer than Gemma's window


@every_family
def test_two_steps_evaluation_and_a_plain_checkpoint(name, tmp_path):
    for seed, folder in enumerate(("s", "t")):
        policy = tiny_families.policy(name, seed)
        policy.model.save_pretrained(tmp_path / folder)
        policy.processor.save_pretrained(tmp_path / folder)
    config = RunConfig(
        name="family", output_dir=str(tmp_path),
        student=ModelConfig(path=str(tmp_path / "s")), teacher=ModelConfig(path=str(tmp_path / "t")),
        rollout=RolloutConfig(max_completion_length=6, num_generations=2),
        optim=OptimConfig(max_steps=2, batch_size=2, micro_batch_size=3, learning_rate=1e-3),
        data=DataConfig(train="memory"), method=MethodConfig(name="dopd", top_k=16),
    )  # fmt: skip
    # The recipe's default numbers for places are not those of these two.
    is_told = name in ("qwen2_5_vl", "llava_onevision")
    with pytest.warns(UserWarning, match=r"set data\.coords=") if is_told else nullcontext():
        run = train(config, samples(name))
    assert run.step == 2
    auto = AutoModelForImageTextToText if FAMILIES[name].is_visual else AutoModelForCausalLM
    again = auto.from_pretrained(run.run_dir / "checkpoint")
    AutoProcessor.from_pretrained(run.run_dir / "checkpoint")
    before = tiny_families.policy(name, 0).model.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in again.state_dict().items())
    student = load_policy(
        ModelConfig(path=str(run.run_dir / "checkpoint")), device="cpu", trainable=False
    )
    assert evaluate(student, "shapes", samples=samples(name)).n == 2


@pytest.mark.parametrize(
    ("name", "numbers", "forms", "told"),
    [
        ("llava_onevision", "qwen3", ["boxes"], "norm1"),
        ("qwen2_5_vl", "qwen3", [("boxes", "both")], "qwen2_5"),
        ("qwen2_vl", "qwen3", ["boxes"], None),  # two names for the same numbers
        ("llava_onevision", "qwen3", [("boxes", "drawn")], None),
        ("smolvlm", "qwen3", ["boxes"], None),
    ],
)
def test_places_in_another_family_s_numbers_are_told(name, numbers, forms, told):
    family = tiny_families.policy(name).family
    data = DataConfig(train="memory", coords=numbers, annotations=forms)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_coords(data, family)
    assert [f"set data.coords={told}" in str(w.message) for w in caught] == [True] * bool(told)


def test_every_family_s_coords_are_known_ones():
    for family in families.FAMILIES:
        assert set(family.coords) <= set(coords.FAMILIES), family.name


def test_an_unknown_family_is_refused_at_load_and_a_record_lets_it_in(tmp_path, monkeypatch):
    from transformers import PaliGemmaConfig

    config = PaliGemmaConfig()
    with pytest.raises(
        ValueError, match=r"'paligemma' has no record in dopd_vlm/models/families.py"
    ):
        family_of(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ADD_A_FAMILY"):
        load_policy(ModelConfig(path=str(tmp_path)), device="cpu", trainable=False)
    monkeypatch.setattr("dopd_vlm.models.families.FAMILIES", ())
    record = register(Family(name="PaliGemma", model_types=("paligemma",)))
    assert family_of(config) is record
    with pytest.raises(ValueError, match="has a record already"):
        register(replace(record, name="other"))


def test_the_page_runs(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)
    text = (Path(families.__file__).parent / "ADD_A_FAMILY.md").read_text(encoding="utf-8")
    for code in re.findall(r"(?ms)^```python\n(.*?)^```$", text):
        exec(compile(code, "ADD_A_FAMILY.md", "exec"), {})
    assert families.FAMILIES[0].model_types == ("my_vlm",)
    for family in families.FAMILIES[1:]:
        assert all(f"`{kind}`" in text for kind in family.model_types), family.name
