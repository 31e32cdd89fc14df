"""Messages -> completions: from a local model, with smaller batches when memory runs out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dopd_vlm.encode import EncodedPrompt, encode_prompt
from dopd_vlm.models import Policy
from dopd_vlm.rollout import generate
from dopd_vlm.types import Message

from .benchmarks import Generation

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


Generate = Callable[[Sequence[list[Message]], Generation, int], Sequence[Completion]]
"""(prompts of one batch, decoding settings, seed) -> one completion per prompt, in their order."""


def local_generator(policy: Policy, template_kwargs: Mapping[str, Any] | None = None) -> Generate:
    """Completions of a model in this process through the core's rollouts."""

    def complete(
        prompts: Sequence[list[Message]], generation: Generation, seed: int
    ) -> list[Completion]:
        encoded = [
            encode_prompt(policy, messages, uid=str(index), template_kwargs=template_kwargs)
            for index, messages in enumerate(prompts)
        ]
        return complete_encoded(policy, encoded, generation, seed)

    return complete


def complete_encoded(
    policy: Policy, prompts: Sequence[EncodedPrompt], generation: Generation, seed: int
) -> list[Completion]:
    """One completion per prompt, all in one batch."""
    rollouts = generate(
        policy,
        prompts,
        max_completion_length=generation.max_completion_length,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        seed=seed,
        batch_size=len(prompts),
    )
    return [
        Completion(
            text=policy.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True),  # type: ignore[arg-type]
            finish_reason=rollout.finish_reason,
            num_tokens=len(rollout.completion_ids),
            prompt=prompt.text,
        )
        for rollout, prompt in zip(rollouts, prompts, strict=True)
    ]


def halving(
    complete: Callable[[Sequence[Prompt], Generation, int], Sequence[Completion]],
) -> Callable[[Sequence[Prompt], Generation, int], list[Completion]]:
    """The same generator, which halves its batches whenever memory runs out and keeps to that size.

    Raises:
        ValueError: a single prompt does not fit.
    """
    most: int | None = None

    def attempt(prompts: Sequence[Prompt], generation: Generation, seed: int) -> list[Completion]:
        nonlocal most
        made: list[Completion] = []
        while len(made) < len(prompts):
            start = len(made)
            part = prompts[start : start + (most or len(prompts))]
            try:
                made += complete(part, generation, seed + start)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise ValueError(
                        "one prompt alone does not fit into memory: lower max_completion_length or "
                        "the processor's pixel limit"
                    ) from error
                most = (len(part) + 1) // 2
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            if len(made) == start and torch.cuda.is_available():
                torch.cuda.empty_cache()
        return made

    return attempt
