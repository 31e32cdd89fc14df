"""Prompts and settings as vLLM takes them, and its answers as Rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.engine import EngineError
from dopd_vlm.rollout.seeds import sequence_seed
from dopd_vlm.rollout.stop import StopTexts
from dopd_vlm.types import Rollout, Sampling

LEAST_TEMPERATURE = 0.01
"""vLLM silently raises values between 0 and this one to it."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One completion as vLLM gave it out."""

    ids: Sequence[int]
    logp: Sequence[float]
    """Of the distribution drawn from (logprobs_mode processed_logprobs)."""


def check_sampling(engine: str, sampling: Sampling) -> None:
    """Raise ValueError for the one thing that vLLM would change in silence."""
    if 0 < sampling.temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"rollout.engine={engine} cannot honour temperature={sampling.temperature!r}: vLLM draws at "
            f"{LEAST_TEMPERATURE} at the least; take 0 (greedy), a higher one, or rollout.engine=own"
        )


def sampling_fields(policy: Policy, prompt: EncodedPrompt, sampling: Sampling) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams for one prompt's completions.

    vLLM seeds the completions of a prompt with seed, seed + 1, ...; the first seed is a function of run,
    step, row and place, as in `own`. EOS ids are the policy's alone, whatever the folder's
    generation_config says; `bad_words` of one token each bar the image markers.
    """
    marks = policy.tokenizer.convert_ids_to_tokens(list(policy.visual_ids))
    seed = sequence_seed(sampling.seed, prompt.uid, prompt.number, 0) >> 1  # room for seed + n
    return {
        "n": sampling.num_generations,
        "max_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": list(sampling.stop),
        "stop_token_ids": list(policy.eos_ids),
        "ignore_eos": True,
        "bad_words": list(marks),
        "seed": seed,
        "logprobs": 0,
    }


def prompt_ids(policy: Policy, prompt: EncodedPrompt) -> list[int]:
    """The prompt's ids with one mark an image, which vLLM widens by the image's size."""
    if not prompt.images:
        return prompt.input_ids.tolist()
    return list(policy.tokenizer.encode(prompt.text, add_special_tokens=False))


def check_echo(prompt: EncodedPrompt, echoed: Sequence[int]) -> None:
    """Raise EngineError unless vLLM read the very prompt that the loss will score."""
    ours = prompt.input_ids.tolist()
    if list(echoed) != ours:
        raise EngineError(
            f"sample {prompt.uid!r}: vLLM read a prompt of {len(echoed)} tokens, ours has {len(ours)}"
            f"{'' if len(echoed) != len(ours) else ' others'}: its processor treats the images or marks of "
            f"this model otherwise; use rollout.engine=own"
        )


def rollout_of(
    policy: Policy, prompt: EncodedPrompt, drawn: Drawn, sampling: Sampling, version: int
) -> Rollout:
    """The completion cut where the own engine would cut it.

    Raises:
        EngineError: no tokens, or not one log-probability a token.
    """
    if not drawn.ids or len(drawn.ids) != len(drawn.logp):
        raise EngineError(
            f"sample {prompt.uid!r}: vLLM gave {len(drawn.ids)} tokens and {len(drawn.logp)} log-probs"
        )
    ids = torch.tensor(drawn.ids, dtype=torch.int64)
    stop_length = StopTexts(policy, sampling.stop).length(ids)
    length = stop_length or len(ids)
    ends = bool(stop_length) or int(ids[-1]) in policy.eos_ids
    return Rollout(
        uid=prompt.uid,
        completion_ids=ids[:length].clone(),
        # Rounding can leave a probability of 1 just above it.
        sampler_logp=torch.tensor(drawn.logp, dtype=torch.float32)[:length].clamp(max=0),
        finish_reason="stop" if ends else "length",
        policy_version=version,
    )
