"""Messages -> completions: through a rollout engine, with smaller batches when memory runs out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from dopd_vlm.models.encoder import EncodedPrompt, Encoder, encode_prompt
from dopd_vlm.rollout.engine import RolloutEngine
from dopd_vlm.rollout.stop import before_stop
from dopd_vlm.types import Message, Rollout, Sampling

Prompt = TypeVar("Prompt")
FAILED = "error"
"""`finish_reason` of a completion that a server did not deliver."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model answered."""

    text: str
    finish_reason: str
    """`stop`, `length` when it was cut, or FAILED when there is none."""
    num_tokens: int
    prompt: str = ""
    """The prompt as rendered, where that is known."""
    failure: str = ""
    """Why there is none."""


Generate = Callable[[Sequence[list[Message]], Sampling, Sequence[int]], Sequence[Completion]]
"""(prompts of one batch, decoding settings, a number for each prompt that seeds its draw) -> one
completion per prompt, in their order."""


def engine_generator(
    engine: RolloutEngine, encoder: Encoder, template_kwargs: Mapping[str, Any] | None = None
) -> Generate:
    """Completions through an engine, under whatever weights it holds."""

    def complete(
        prompts: Sequence[list[Message]], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        encoded = [encode_or_refuse(encoder, turns, template_kwargs) for turns in prompts]
        good = [
            replace(prompt, number=number)
            for prompt, number in zip(encoded, numbers, strict=True)
            if isinstance(prompt, EncodedPrompt)
        ]
        completions = iter(complete_encoded(engine, encoder, good, sampling) if good else ())
        return [
            next(completions) if isinstance(prompt, EncodedPrompt) else prompt for prompt in encoded
        ]

    return complete


def encode_or_refuse(
    encoder: Encoder, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None
) -> EncodedPrompt | Completion:
    """The encoded prompt; where the model cannot take it, a failed completion that says why."""
    try:
        return encode_prompt(encoder, messages, template_kwargs=template_kwargs)
    except ValueError as error:
        reason = str(error).removeprefix("sample '': ")
        return Completion(text="", finish_reason=FAILED, num_tokens=0, failure=reason)


def complete_encoded(
    engine: RolloutEngine, encoder: Encoder, prompts: Sequence[EncodedPrompt], sampling: Sampling
) -> list[Completion]:
    """One completion per prompt, cut before the first stop text; a prompt's number seeds its draw."""
    once = replace(sampling, num_generations=1)
    rollouts = engine.generate(prompts, once, version=engine.version)
    return [
        _completion(encoder, rollout, prompt.text, sampling.stop)
        for rollout, prompt in zip(rollouts, prompts, strict=True)
    ]


def _completion(encoder: Encoder, rollout: Rollout, prompt: str, stop: Sequence[str]) -> Completion:
    text = encoder.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
    return Completion(
        text=before_stop(text, stop),  # type: ignore[arg-type]
        finish_reason=rollout.finish_reason,
        num_tokens=len(rollout.completion_ids),
        prompt=prompt,
    )


def halving(
    complete: Callable[[Sequence[Prompt], Sampling, Sequence[int]], Sequence[Completion]],
) -> Callable[[Sequence[Prompt], Sampling, Sequence[int]], list[Completion]]:
    """The same generator, which halves its batches whenever memory runs out and keeps to that size.

    Raises:
        ValueError: a single prompt does not fit.
    """
    most: int | None = None

    def attempt(
        prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        nonlocal most
        completions: list[Completion] = []
        while len(completions) < len(prompts):
            start = len(completions)
            part = slice(start, start + (most or len(prompts)))
            try:
                completions += complete(prompts[part], sampling, numbers[part])
            except torch.OutOfMemoryError as error:
                if len(prompts[part]) == 1:
                    raise ValueError(
                        "one prompt alone does not fit into memory: lower max_completion_length or "
                        "the processor's pixel limit"
                    ) from error
                most = (len(prompts[part]) + 1) // 2
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            if len(completions) == start and torch.cuda.is_available():
                torch.cuda.empty_cache()
        return completions

    return attempt
