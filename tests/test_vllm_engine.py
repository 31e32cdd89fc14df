"""rollout/vllm.py against a stand-in for vLLM: what is asked of it, and what is made of its answers."""

import sys
from dataclasses import replace

import fake_vllm
import pytest
import tiny
import torch
from test_encode import encoded

from dopd_vlm.config import RolloutConfig
from dopd_vlm.jsonl import read_lines
from dopd_vlm.rollout import open_engine
from dopd_vlm.rollout.engine import EngineError
from dopd_vlm.rollout.weights import policy_weights
from dopd_vlm.scripts.main import main
from dopd_vlm.types import Sampling


@pytest.fixture
def fake(monkeypatch):
    """vLLM's stand-in."""
    return fake_vllm.install(monkeypatch)


def opened(**options):
    policy = tiny.vl_policy()
    samples = [tiny.vl_sample("a"), tiny.text_sample("no image")]
    engine = open_engine(RolloutConfig(engine="vllm", **options), policy)
    return engine, encoded(policy, samples), policy


def test_each_version_is_drawn_from_its_weights_and_old_caches_are_dropped(fake):
    engine, prompts, policy = opened()
    own = open_engine(RolloutConfig(), policy)
    greedy, before = Sampling(max_completion_length=6), None
    for version in (0, 1):
        rollouts = engine.generate(prompts, greedy, version=version)
        for ours, theirs in zip(
            own.generate(prompts, greedy, version=version), rollouts, strict=True
        ):
            assert ours.completion_ids.tolist() == theirs.completion_ids.tolist() != before
            torch.testing.assert_close(ours.sampler_logp, theirs.sampler_logp)
        before = rollouts[-1].completion_ids.tolist()
        with torch.no_grad():
            policy.head.weight.copy_(policy.head.weight.flip(0))
        engine.load(policy_weights(policy), version=version + 1)
        own.load((), version=version + 1)
    kinds = {"dopd_load", "reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"}
    assert set(fake.last.calls) == kinds and len(fake.last.calls) == 8
    engine.close()
    assert fake.last.calls[-1] == "shutdown"


def test_a_prompt_that_vllm_read_otherwise_is_an_error(fake):
    engine, prompts, _ = opened()
    longer = replace(prompts[0], input_ids=prompts[0].input_ids[:-1])
    with pytest.raises(EngineError, match=r"'a': vLLM read a prompt of \d+ tokens, ours has \d+"):
        engine.generate([longer], Sampling(max_completion_length=2), version=0)


def test_weights_that_did_not_arrive_whole_are_never_drawn_from(fake):
    engine, prompts, _ = opened()
    with pytest.raises(EngineError, match=r"did not take the weights of version 1.*KeyError"):
        engine.load([("no.such.weight", torch.zeros(1))], version=1)
    with pytest.raises(EngineError, match="did not arrive whole"):
        engine.generate(prompts, Sampling(), version=0)


def test_what_vllm_cannot_honour_is_refused_by_name(fake):
    engine, prompts, _ = opened()
    with pytest.raises(ValueError, match=r"rollout.engine=vllm cannot honour temperature=0.001"):
        engine.generate(prompts, Sampling(temperature=0.001), version=0)
    with pytest.raises(ValueError, match=r"engine_options: dtype cannot be set"):
        opened(engine_options={"dtype": "float16"})
    with pytest.raises(ValueError, match=r"does not compute in torch.float64"):
        open_engine(RolloutConfig(engine="vllm"), tiny.text_policy(dtype=torch.float64))
    with pytest.raises(ValueError, match=r"rollout.engine_options"):
        RolloutConfig(engine_options={"seed": 1})


def test_options_reach_vllm_and_the_folder_says_that_qwen3_vl_interleaves(fake, monkeypatch):
    opened(engine_options={"max_model_len": 99}, batch_size=3, num_generations=2)
    arguments = fake.last.arguments
    assert (arguments["max_model_len"], arguments["max_num_seqs"]) == (99, 6)
    assert arguments["logprobs_mode"] == "processed_logprobs"
    rope = fake.last.policy.model.config.get_text_config().rope_parameters
    assert rope["mrope_interleaved"] is True and rope["mrope_section"] == [4, 2, 2]


def test_stop_texts_end_a_completion_where_the_own_engine_ends_it(fake):
    engine, prompts, policy = opened()
    free = engine.generate(prompts[:1], Sampling(max_completion_length=8), version=0)[0]
    letter = policy.tokenizer.decode(free.completion_ids[2:3])
    stopped = engine.generate(
        prompts[:1], Sampling(max_completion_length=8, stop=(letter,)), version=0
    )[0]
    own = open_engine(RolloutConfig(), policy)
    ours = own.generate(prompts[:1], Sampling(max_completion_length=8, stop=(letter,)), version=0)[
        0
    ]
    assert stopped.completion_ids.tolist() == ours.completion_ids.tolist()
    assert stopped.finish_reason == "stop" and len(stopped.completion_ids) <= 3


def test_evaluate_answers_as_the_own_engine_does(fake, tmp_path, capsys):
    policy = tiny.vl_policy()
    policy.model.save_pretrained(tmp_path / "model")
    policy.processor.save_pretrained(tmp_path / "model")
    answers = []
    for engine in ("own", "vllm"):
        options = ["--tasks", "shapes", "--limit", "2", "--max-completion-length", "4"]
        out = ["--engine", engine, "--out", str(tmp_path / engine)]
        assert main(["evaluate", str(tmp_path / "model"), *options, *out]) == 0, capsys.readouterr()
        lines = read_lines(tmp_path / engine / "samples_shapes__plain.jsonl")
        answers.append([line["resps"] for line in lines])
    assert answers[0] == answers[1] and len(answers[0]) == 2
    assert fake.last.arguments["max_num_seqs"] == 32
    refused = ["evaluate", str(tmp_path / "model"), "--tasks", "shapes", "--profile", "qwen3_vl"]
    assert main([*refused, "--engine", "vllm"]) == 2
    assert "one pixel limit" in capsys.readouterr().out


def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("dopd_vlm.rollout.vllm.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install vllm"):
        open_engine(RolloutConfig(engine="vllm"), tiny.text_policy())
