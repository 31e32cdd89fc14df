"""The student samples completions: left-padded batches through Hugging Face `generate`.

Shapes: B sequences of a generation batch, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dopd_vlm.encode import EncodedPrompt, collate
from dopd_vlm.models import Policy
from dopd_vlm.types import Rollout


class SampledLogProbs(LogitsProcessor):
    """Log-prob of each sampled token under the very distribution that was sampled from.

    Keeps one [B, V] at a time, where `output_scores=True` would keep one per token: the last logits
    processor sees the scores, and the stopping criterion that runs after the draw sees the token.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self._logp: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        self._logp = scores.float().log_softmax(-1)
        return scores

    def gather(self, input_ids: Tensor) -> None:
        """Pick the log-prob of the token that was just appended."""
        assert self._logp is not None
        self.rows.append(self._logp.gather(-1, input_ids[:, -1:]).squeeze(-1))


class _AfterDraw(StoppingCriteria):
    """Runs after each drawn token; never stops generation itself."""

    def __init__(self, calls: Sequence[Callable[[Tensor], None]]) -> None:
        self._calls = calls

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        for call in self._calls:
            call(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    *,
    num_generations: int = 1,
    max_completion_length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """`num_generations` Rollouts per prompt, in the order of the prompts; temperature 0 is greedy.

    Batches hold prompts of like length. Image and video marker tokens are never sampled. The draw is
    seeded by `seed` alone and leaves the global random state as it was. `on_batch` gets the number of
    prompts just finished.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    found: dict[int, list[Rollout]] = {}
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rollouts = _generate_batch(
                policy,
                [prompts[i] for i in chosen],
                num_generations,
                max_completion_length,
                _warpers(policy, temperature, top_p, top_k),
                do_sample=temperature > 0,
            )
            found.update(
                {
                    i: rollouts[k * num_generations : (k + 1) * num_generations]
                    for k, i in enumerate(chosen)
                }
            )
            if on_batch is not None:
                on_batch(len(chosen))
    return [rollout for i in range(len(prompts)) for rollout in found[i]]


def _warpers(policy: Policy, temperature: float, top_p: float, top_k: int) -> LogitsProcessorList:
    """Own list in a known order: whatever a checkpoint's generation_config asks for does not apply."""
    warpers = LogitsProcessorList()
    if policy.visual_ids:
        warpers.append(
            SuppressTokensLogitsProcessor(list(policy.visual_ids), device=str(policy.device))
        )
    if temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _generate_batch(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    num_generations: int,
    max_completion_length: int,
    warpers: LogitsProcessorList,
    *,
    do_sample: bool,
) -> list[Rollout]:
    repeated = [prompt for prompt in prompts for _ in range(num_generations)]
    inputs = collate(repeated, pad_id=policy.pad_id, padding_side="left").to(policy.device).inputs
    recorder = SampledLogProbs()
    config = GenerationConfig(
        max_new_tokens=max_completion_length,
        do_sample=do_sample,
        eos_token_id=list(policy.eos_ids),
        pad_token_id=policy.pad_id,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}),
    )
    ids = policy.model.generate(  # type: ignore[operator]
        **inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList([*warpers, recorder]),
        stopping_criteria=StoppingCriteriaList([_AfterDraw([recorder.gather])]),
    )
    completions = ids[:, inputs["input_ids"].shape[1] :].cpu()
    logp = torch.stack(recorder.rows, dim=1).cpu()
    return [
        _rollout(p.uid, c, lp, policy.eos_ids)
        for p, c, lp in zip(repeated, completions, logp, strict=True)
    ]


def _rollout(uid: str, ids: Tensor, logp: Tensor, eos_ids: Sequence[int]) -> Rollout:
    """Cut after the first EOS, which stays; what `generate` filled in behind it goes."""
    ends = torch.isin(ids, torch.tensor(eos_ids)).nonzero()
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return Rollout(
        uid=uid,
        completion_ids=ids[:length].clone(),
        sampler_logp=logp[:length].clone(),
        finish_reason="stop" if len(ends) else "length",
    )
