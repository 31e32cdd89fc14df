"""training/rescoring.py: an engine with other weights shows in rollout/logprob_diff, the student's own do not."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_step import make_samples, make_state

from dopd_vlm.rollout import OwnEngine
from dopd_vlm.train import Loop
from dopd_vlm.training.rescoring import logprob_difference
from dopd_vlm.training.step import Clock, roll_out, train_step

METRIC = "rollout/logprob_diff"


class Apart:
    """An engine that is not the trainer's: a copy of the student, moved by `noise`."""

    def __init__(self, policy, noise=0.0):
        model = deepcopy(policy.model)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn(weight.shape, generator=random)
        self._own = OwnEngine(replace(policy, model=model))

    def __getattr__(self, name):
        return getattr(self._own, name)


def apart(noise=0.0, **rollout):
    state = make_state()
    config = replace(state.config, rollout=replace(state.config.rollout, **rollout))
    return replace(state, engine=Apart(state.student, noise), config=config)


@pytest.mark.parametrize(
    "cuts", [{}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.01}]
)
def test_the_same_weights_differ_by_rounding_and_others_by_much(cuts):
    for noise, low, high in ((0.0, 0.0, 1e-6), (0.1, 0.05, 20.0)):
        state = apart(noise, **cuts)
        samples = make_samples(state)
        difference = logprob_difference(state, samples, roll_out(state, samples))
        assert low <= difference[METRIC] <= high


def test_the_own_engine_and_penalties_are_not_scored_again():
    for state in (make_state(), apart(0.1, presence_penalty=1.0)):
        samples = make_samples(state)
        assert logprob_difference(state, samples, roll_out(state, samples)) == {}


def test_a_step_logs_it_and_the_loop_warns_once():
    state = apart(0.1)
    metrics = train_step(state, make_samples(state), Clock()).metrics
    assert metrics[METRIC] > 0.1

    said = []
    loop = Loop.__new__(Loop)
    loop.state, loop.is_difference_told = state, False
    loop.tracker = type("Tracker", (), {"say": staticmethod(said.append)})()
    for difference in (0.0, 0.05, metrics[METRIC], 9.0):
        loop.warn_of_difference({METRIC: difference})
    assert len(said) == 1 and "rollout/logprob_diff" in said[0]
