"""The student samples completions: one prefill a prompt, then token by token for all of them.

Shapes: U prompts of a generation batch, B = U x num_generations sequences, T completion tokens, V vocabulary.

An own loop instead of Hugging Face `generate`, which encodes a prompt (and its pictures) once for
each of its completions, copies all keys and values for each token, and computes finished sequences
until the last one ends. transformers' continuous batching takes text alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dopd_vlm.models.encoder import EncodedPrompt, pad_prompts
from dopd_vlm.models.forward import Prefix, can_share, extend, prefill, select, with_room
from dopd_vlm.models.image_features import StepFeatures, image_inputs
from dopd_vlm.models.policy import Policy, output_head
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.softmax import chunk_dtype
from dopd_vlm.types import Rollout

CUDA_CHECK_EVERY = 16
"""Tokens between looks at which sequences have ended: each look waits for the device."""
STOP_CHECK_EVERY = 8
"""Tokens between looks at whether a sequence holds what it should stop at: they cost a decoded text."""
ROOM = 256
"""Tokens for which a sequence's keys and values get room at a time."""
KEPT_SHARE = 0.75
"""Ended sequences leave the batch when at most this share of it goes on: leaving copies the keys."""


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
    features: StepFeatures | None = None,
    has_stopped: Callable[[Tensor], Tensor] | None = None,
) -> list[Rollout]:
    """`num_generations` Rollouts per prompt, in the order of the prompts; temperature 0 is greedy.

    Batches hold prompts of like length. Image and video marker tokens are never sampled. The draw is
    a function of `seed` and the place among the prompts, whatever the batches; the global random state
    stays as it was. `on_batch` gets the number of prompts just finished. `features` holds what
    pictures became under the policy's present weights, and takes up more. `has_stopped` looks at the
    ids [A, t] of the sequences that go on, every STOP_CHECK_EVERY tokens; where it says so [A], EOS is the
    next token.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    shape = (len(prompts), num_generations, max_completion_length)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(shape, generator=generator, dtype=torch.float64) if temperature > 0 else None
    sampler = Sampler(
        head=output_head(policy),
        warpers=_warpers(policy, temperature, top_p, top_k),
        eos_ids=policy.eos_ids,
        pad_id=policy.pad_id,
    )
    found: dict[int, list[Rollout]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [prompts[i] for i in chosen]
        noise = None if draws is None else draws[chosen].flatten(0, 1).to(policy.device)
        with torch.no_grad():
            room = min(ROOM, max_completion_length)
            prefix = _prefix(policy, batch, num_generations, room, features)
            ids, logp = _decode(policy, sampler, prefix, noise, max_completion_length, has_stopped)
        uids = [prompt.uid for prompt in batch for _ in range(num_generations)]
        rollouts = [
            _rollout(*row, policy.eos_ids) for row in zip(uids, ids.cpu(), logp.cpu(), strict=True)
        ]
        for place, index in enumerate(chosen):
            found[index] = rollouts[place * num_generations : (place + 1) * num_generations]
        if on_batch is not None:
            on_batch(len(chosen))
    return [rollout for i in range(len(prompts)) for rollout in found[i]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """How hidden states become tokens."""

    head: Head
    warpers: LogitsProcessorList
    """What changes the distribution before the draw."""
    eos_ids: Sequence[int]
    pad_id: int

    def draw(self, hidden: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probs under the very distribution that was drawn from.

        noise: float64 [B] uniform in [0, 1), one number a token, so that a sequence's draw does not
        depend on the others in its batch; None takes the most probable token.
        """
        scores = self.warpers(None, _logits(hidden, self.head))  # type: ignore[arg-type]
        logp = scores.log_softmax(-1)
        if noise is None:
            token = logp.argmax(-1)
        else:
            cumulated = logp.exp().cumsum(-1, dtype=torch.float64)
            # The first entry above it: an entry of probability 0 is equal to the one before.
            reached = noise.clamp(max=1 - 1e-12)[:, None] * cumulated[:, -1:]
            token = torch.searchsorted(cumulated, reached, right=True).squeeze(-1)
        return token, logp.gather(-1, token[:, None]).squeeze(-1)


def _logits(hidden: Tensor, head: Head) -> Tensor:
    # In the weights' type, unlike `heads.logits_`, which takes bfloat16 weights to float32 in tiles:
    # for the few rows of one token that copy would be most of the work. `sampler_logp` belongs to the
    # distribution that was drawn from; the loss scores the tokens again and never reads it.
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logits = logits.to(chunk_dtype(logits)) * head.logit_scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _prefix(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    num_generations: int,
    room: int,
    features: StepFeatures | None,
) -> Prefix:
    """The prefix of every sequence; each prompt is encoded once where the model allows it."""
    owner = torch.arange(len(prompts)).repeat_interleave(num_generations)
    is_shared = can_share(policy)
    listed = prompts if is_shared else [prompts[i] for i in owner.tolist()]
    padded = pad_prompts(listed, pad_id=policy.pad_id)
    inputs = {name: tensor.to(policy.device) for name, tensor in padded.items()}
    prefix = prefill(policy, {**inputs, **image_inputs(policy, listed, features)})
    return with_room(prefix, owner.to(policy.device), room) if is_shared else prefix


def _decode(
    policy: Policy,
    sampler: Sampler,
    prefix: Prefix,
    noise: Tensor | None,
    max_length: int,
    has_stopped: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """ids and log-probs, both [B, T]; what stands behind a sequence's first EOS means nothing."""
    hidden = prefix.last_hidden
    size, device = len(hidden), hidden.device
    ids = torch.full((size, max_length), sampler.pad_id, device=device)
    logp = torch.zeros(size, max_length, device=device)
    alive = torch.arange(size, device=device)
    has_ended = torch.zeros(size, dtype=torch.bool, device=device)
    eos = torch.tensor(sampler.eos_ids, device=device)
    check_every = CUDA_CHECK_EVERY if device.type == "cuda" else 1
    for step in range(max_length):
        token, token_logp = sampler.draw(hidden, None if noise is None else noise[alive, step])
        if has_stopped is not None and step and step % STOP_CHECK_EVERY == 0:
            token = token.where(~has_stopped(ids[alive, :step]).to(device), eos[0])
        ids[alive, step], logp[alive, step] = token, token_logp.float()
        has_ended |= torch.isin(token, eos)
        if step + 1 == max_length:
            break
        if (step + 1) % check_every == 0:
            going = (~has_ended).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            if len(going) <= KEPT_SHARE * len(alive) and can_share(policy):
                prefix, alive = select(prefix, going), alive[going]
                token, has_ended = token[going], has_ended[going]
        ones = torch.ones_like(token)[:, None]
        hidden, prefix = extend(policy, prefix, token[:, None], ones)
        hidden = hidden[:, -1]
    return ids, logp


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
