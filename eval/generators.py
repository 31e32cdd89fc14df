"""Messages -> completions: from a local model, with smaller batches when memory runs out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dopd_vlm.encode import encode_prompt
from dopd_vlm.models import Policy
from dopd_vlm.rollout import generate
from dopd_vlm.types import Message

from .benchmarks import Generation


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model answered."""

    text: str
    finish_reason: str
    """`stop`, or `length` when it was cut."""
    num_tokens: int
    prompt: str = ""
    """The prompt as rendered, where that is known."""


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
        rollouts = generate(
            policy,
            encoded,
            max_completion_length=generation.max_completion_length,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            seed=seed,
            batch_size=len(encoded),
        )
        return [
            Completion(
                text=policy.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True),  # type: ignore[arg-type]
                finish_reason=rollout.finish_reason,
                num_tokens=len(rollout.completion_ids),
                prompt=prompt.text,
            )
            for rollout, prompt in zip(rollouts, encoded, strict=True)
        ]

    return complete


def halving(complete: Generate) -> Generate:
    """The same generator, which splits a batch in two whenever memory runs out.

    Raises:
        ValueError: a single prompt does not fit.
    """

    def attempt(
        prompts: Sequence[list[Message]], generation: Generation, seed: int
    ) -> Sequence[Completion]:
        try:
            return complete(prompts, generation, seed)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise ValueError(
                    "one prompt alone does not fit into memory: lower max_completion_length or the "
                    "processor's pixel limit"
                ) from error
        # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(prompts) // 2
        first = attempt(prompts[:middle], generation, seed)
        return [*first, *attempt(prompts[middle:], generation, seed + 1)]

    return attempt
