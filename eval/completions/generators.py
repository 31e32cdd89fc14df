"""Messages -> completions: from a local model, with smaller batches when memory runs out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dopd_vlm.models.encoder import EncodedPrompt, Encoder, encode_prompt
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.own import STOP_CHECK_EVERY, generate
from dopd_vlm.types import Message, Rollout

from ..benchmarks.benchmark import Generation

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
        encoded = [encode_or_refuse(policy.encoder, turns, template_kwargs) for turns in prompts]
        good = [prompt for prompt in encoded if isinstance(prompt, EncodedPrompt)]
        completions = iter(complete_encoded(policy, good, generation, seed) if good else ())
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
    policy: Policy, prompts: Sequence[EncodedPrompt], generation: Generation, seed: int
) -> list[Completion]:
    """One completion per prompt, all in one batch, cut before the first stop text.

    Raises:
        ValueError: a setting that the own loop cannot honour.
    """
    if generation.presence_penalty:
        raise ValueError(
            f"presence_penalty={generation.presence_penalty} is not known to the own loop: serve the "
            "model and give --endpoint, or take --profile greedy"
        )
    rollouts = generate(
        policy,
        prompts,
        max_completion_length=generation.max_completion_length,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        seed=seed,
        batch_size=len(prompts),
        has_stopped=_stop_check(policy, generation.stop) if generation.stop else None,
    )
    return [
        _completion(policy, rollout, prompt.text, generation.stop)
        for rollout, prompt in zip(rollouts, prompts, strict=True)
    ]


def _completion(policy: Policy, rollout: Rollout, prompt: str, stop: Sequence[str]) -> Completion:
    whole = _text(policy, rollout.completion_ids)
    text = before_stop(whole, stop)
    return Completion(
        text=text,
        finish_reason=rollout.finish_reason if text == whole else "stop",
        num_tokens=len(rollout.completion_ids),
        prompt=prompt,
    )


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    ends = [text.find(one) for one in stop if one in text]
    return text[: min(ends)] if ends else text


def _stop_check(policy: Policy, stop: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """ids [A, t] -> which of the sequences hold a stop text, bool [A].

    What `before_stop` cuts, it cuts with and without the check: the check only saves the tokens behind.
    """
    # A stop text spans at most as many tokens as it has bytes, so an older one was seen before.
    tail = STOP_CHECK_EVERY + max(len(one.encode()) for one in stop)

    def holds(ids: torch.Tensor) -> bool:
        return any(one in _text(policy, ids) for one in stop)

    def check(ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor([holds(row[-tail:]) and holds(row) for row in ids.cpu()])

    return check


def _text(policy: Policy, ids: torch.Tensor) -> str:
    return policy.tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[return-value]


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
