"""What every rollout engine has to keep; the page that tells how to add one, run as it stands."""

import re
import runpy
from pathlib import Path

import fake_vllm
import pytest
import torch
from test_encode import encoded, policy_and_samples

from dopd_vlm.config import RolloutConfig
from dopd_vlm.rollout import engines, open_engine
from dopd_vlm.rollout.engine import StalePolicyError
from dopd_vlm.rollout.weights import policy_weights
from dopd_vlm.types import Sampling

PAGE = Path(engines.__file__).parent / "ADD_AN_ENGINE.md"
NAMES = ["own", "shortest", "vllm"]


@pytest.fixture(autouse=True)
def registry(monkeypatch, tmp_path):
    """The page's engine beside the built-in ones, for one test; a stand-in is in vLLM's place."""
    fake_vllm.install(monkeypatch)
    built_in = {"own": engines.open_own, "vllm": engines.open_in_process}
    monkeypatch.setattr(engines, "ENGINES", built_in)
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))
    (tmp_path / "my_engine.py").write_text(code)
    runpy.run_path(str(tmp_path / "my_engine.py"))


every_engine = pytest.mark.parametrize("name", NAMES)


def opened(name, kind="text"):
    policy, samples = policy_and_samples(kind)
    if name == "vllm":
        policy.model.to(torch.float32)
    return open_engine(RolloutConfig(engine=name), policy), encoded(policy, samples), policy


def draw(engine, prompts, **settings):
    sampling = Sampling(**{"temperature": 1.0, "max_completion_length": 6, "seed": 3} | settings)
    return engine.generate(prompts, sampling, version=engine.version)


def ids_of(rollouts):
    return [rollout.completion_ids.tolist() for rollout in rollouts]


@every_engine
@pytest.mark.parametrize("kind", ["text", "vl"])
def test_rollouts_come_in_the_order_of_the_prompts(name, kind):
    engine, prompts, policy = opened(name, kind)
    rollouts = draw(engine, prompts, num_generations=2)
    assert [r.uid for r in rollouts] == [p.uid for p in prompts for _ in range(2)]
    for rollout in rollouts:
        ids, logp = rollout.completion_ids, rollout.sampler_logp
        assert 1 <= len(ids) <= 6 and len(ids) == len(logp) and logp.dtype == torch.float32
        assert (logp <= 0).all() and rollout.policy_version == engine.version
        assert (rollout.finish_reason == "stop") == (int(ids[-1]) in policy.eos_ids)
        assert not set(ids[:-1].tolist()) & {*policy.eos_ids, *policy.visual_ids}


def by_uid(rollouts):
    """Completions of each prompt, in order."""
    completions = {}
    for rollout in rollouts:
        completions.setdefault(rollout.uid, []).append(rollout.completion_ids.tolist())
    return completions


@every_engine
def test_draws_depend_on_the_prompt_alone(name):
    engine, prompts, _ = opened(name)
    together = by_uid(draw(engine, prompts, num_generations=2))
    assert len(together) == len(prompts) > 1
    assert by_uid(draw(engine, prompts[::-1], num_generations=2)) == together
    for prompt in prompts:
        assert by_uid(draw(engine, [prompt], num_generations=2)) == {
            prompt.uid: together[prompt.uid]
        }


@every_engine
def test_another_version_is_refused_until_its_weights_are_loaded(name):
    engine, prompts, policy = opened(name)
    sampling = Sampling(max_completion_length=3)
    with pytest.raises(StalePolicyError, match=r"version 0.*version 1.*load the weights"):
        engine.generate(prompts, sampling, version=1)
    engine.load(policy_weights(policy), version=1)
    assert engine.version == 1
    assert {r.policy_version for r in engine.generate(prompts, sampling, version=1)} == {1}
    with pytest.raises(StalePolicyError):
        engine.generate(prompts, sampling, version=0)


@every_engine
def test_rest_and_wake_change_no_draw(name):
    engine, prompts, _ = opened(name)
    before = ids_of(draw(engine, prompts))
    engine.rest()
    engine.wake()
    assert ids_of(draw(engine, prompts)) == before
    engine.close()


def test_new_weights_give_new_samples():
    engine, prompts, policy = opened("own")
    before = ids_of(draw(engine, prompts, temperature=0.0))
    with torch.no_grad():
        policy.head.weight.copy_(policy.head.weight.flip(0))
    engine.load(policy_weights(policy), version=1)
    assert ids_of(draw(engine, prompts, temperature=0.0)) != before


def test_a_setting_that_an_engine_cannot_honour_is_refused_by_name():
    engine, prompts, _ = opened("shortest")
    with pytest.raises(ValueError, match=r"rollout.engine=shortest cannot honour min_p=0.1"):
        draw(engine, prompts, min_p=0.1)


def test_unknown_engines_name_the_near_ones():
    policy, _ = policy_and_samples("text")
    with pytest.raises(ValueError, match=r"unknown rollout.engine 'shortst'; near: shortest"):
        open_engine(RolloutConfig(engine="shortst"), policy)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="engine 'own' exists already"):
        engines.register("own", lambda *parts: engines.open_own(*parts))
