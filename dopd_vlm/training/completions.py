"""Who writes the completions of a step: the student, the teacher, or the row's answer, in the method's shares.

All completions of a row come from one source, a function of run, step and row: never of process or batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch

from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.rollout.engine import RolloutEngine
from dopd_vlm.rollout.own import generate
from dopd_vlm.rollout.seeds import mixed_seed
from dopd_vlm.rollout.weights import policy_weights
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.types import CompletionSource, Rollout, Sampling


def completions(
    state: TrainState,
    samples: Sequence[EncodedSample],
    sampling: Sampling,
    features: StepFeatures | None = None,
) -> list[Rollout]:
    """`sampling.num_generations` completions of each sample, in order."""
    sources = [source_of(state, sample, sampling.seed) for sample in samples]
    written: dict[int, list[Rollout]] = {}
    for source in dict.fromkeys(sources):
        rows = [row for row, its in enumerate(sources) if its == source]
        rollouts = _written(state, source, [samples[row] for row in rows], sampling, features)
        for place, row in enumerate(rows):
            part = slice(place * sampling.num_generations, (place + 1) * sampling.num_generations)
            written[row] = [replace(rollout, source=source) for rollout in rollouts[part]]
    return [rollout for row in range(len(samples)) for rollout in written[row]]


def source_of(state: TrainState, sample: EncodedSample, seed: int) -> CompletionSource:
    """Whose completions the row gets, drawn by the method's shares."""
    shares = state.method.completions
    random = Random(mixed_seed(seed, sample.place, 0))
    return random.choices(list(shares), list(shares.values()))[0]


def _written(
    state: TrainState,
    source: CompletionSource,
    samples: Sequence[EncodedSample],
    sampling: Sampling,
    features: StepFeatures | None,
) -> list[Rollout]:
    if source == "answer":
        return [
            answer_rollout(state, sample, sampling.max_completion_length)
            for sample in samples
            for _ in range(sampling.num_generations)
        ]
    prompts = [replace(sample.prompts["plain"], number=sample.place) for sample in samples]
    if source == "teacher":
        assert state.teacher is not None
        size = state.config.rollout.batch_size
        with state.accelerator.autocast():
            return generate(state.teacher, prompts, sampling, batch_size=size, features=features)
    return sample_completions(state, prompts, sampling, features)


def sample_completions(
    state: TrainState,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    features: StepFeatures | None = None,
) -> list[Rollout]:
    """Completions by the student as it is now."""
    engine = current_engine(state)
    rollouts = engine.generate(prompts, sampling, version=state.step, features=features)
    engine.rest()
    return rollouts


def current_engine(state: TrainState) -> RolloutEngine:
    """The run's engine with the student's weights of this step."""
    if state.engine.version != state.step:
        state.engine.load(policy_weights(state.student), version=state.step)
    return state.engine


def answer_rollout(state: TrainState, sample: EncodedSample, longest: int) -> Rollout:
    """The row's answer and the end of the turn, as if it had been sampled with certainty.

    Raises:
        ValueError: the row has no answer.
    """
    text = sample.sample.answer
    if not text:
        raise ValueError(
            f"sample {sample.sample.uid!r}{sample.sample.place} has no answer to learn from: give the row one, "
            "or set rollout.sources={student: 1}"
        )
    ids = state.student.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([*ids, state.student.eos_ids[0]], dtype=torch.int64)  # type: ignore[misc]
    return Rollout(
        uid=sample.sample.uid,
        completion_ids=ids[:longest],
        sampler_logp=torch.zeros(min(longest, len(ids))),
        finish_reason="stop" if len(ids) <= longest else "length",
        policy_version=state.step,
    )
