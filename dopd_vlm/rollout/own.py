"""The student samples completions: one prefill a prompt, then token by token for all of them.

Shapes: U prompts of a generation batch, B = U x num_generations sequences, T completion tokens, V vocabulary.

An own loop instead of Hugging Face `generate`, which encodes a prompt (and its images) once for
each of its completions, copies all keys and values for each token, and computes finished sequences
until the last one ends. transformers' continuous batching takes text alone.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from dopd_vlm.models.encoder import EncodedPrompt, pad_prompts
from dopd_vlm.models.forward import Prefix, add_room_, can_share, extend_, prefill, select_
from dopd_vlm.models.image_features import StepFeatures, image_inputs
from dopd_vlm.models.policy import Policy, output_head
from dopd_vlm.rollout.engine import Weights, check_version
from dopd_vlm.rollout.processors import Penalties, make_warpers
from dopd_vlm.rollout.seeds import sequence_seed
from dopd_vlm.rollout.stop import CHECK_EVERY, StopTexts
from dopd_vlm.routed_loss.head import Head
from dopd_vlm.routed_loss.softmax import chunk_dtype
from dopd_vlm.types import Rollout, Sampling

DEVICE_CHECK_EVERY = 16
"""Tokens between looks at which sequences have ended: each look waits for the device."""
ROOM = 256
"""Tokens for which a sequence's keys and values get room at a time."""
KEPT_SHARE = 0.75
"""Ended sequences leave the batch when at most this share of it goes on: leaving copies the keys."""


class OwnEngine:
    """Samples from a model in this process; the policy that trains is the policy that samples."""

    def __init__(
        self,
        policy: Policy,
        *,
        batch_size: int = 64,
        autocast: Callable[..., AbstractContextManager[Any]] = nullcontext,
        staleness: int = 0,
    ) -> None:
        """`batch_size` prompts are sampled at once, inside `autocast`."""
        self.policy, self.batch_size, self.staleness = policy, batch_size, staleness
        self._autocast, self._version = autocast, 0

    @property
    def version(self) -> int:
        """The version that the policy was last said to have."""
        return self._version

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        *,
        version: int,
        features: StepFeatures | None = None,
    ) -> list[Rollout]:
        """See `RolloutEngine.generate`; every field of `sampling` is honoured."""
        check_version(self.version, version, self.staleness)
        with self._autocast():
            rollouts = generate(
                self.policy, prompts, sampling, batch_size=self.batch_size, features=features
            )
        return [replace(rollout, policy_version=self.version) for rollout in rollouts]

    def load(self, weights: Weights, *, version: int) -> None:
        """Takes note of the version; the weights are the policy's own and need no copy."""
        self._version = version

    def rest(self) -> None:
        """Nothing to give up: keys and values live as long as a call of `generate`."""

    def wake(self) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Nothing to end."""


def generate(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
    features: StepFeatures | None = None,
) -> list[Rollout]:
    """`num_generations` Rollouts per prompt, in the order of the prompts.

    Batches hold prompts of like length. Image and video marker tokens are never sampled. What is drawn
    does not depend on the batches; the global random state stays as it was. `on_batch` gets the number
    of prompts just finished. `features` holds what images became under the policy's present weights,
    and takes up more.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    rollouts: dict[int, list[Rollout]] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _sample(policy, [prompts[i] for i in rows], sampling, features)
        count = sampling.num_generations
        for place, row in enumerate(rows):
            rollouts[row] = batch[place * count : (place + 1) * count]
        if on_batch is not None:
            on_batch(len(rows))
    return [rollout for i in range(len(prompts)) for rollout in rollouts[i]]


@torch.no_grad()
def _sample(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    features: StepFeatures | None,
) -> list[Rollout]:
    """Rollouts of one batch."""
    head, stop = output_head(policy), StopTexts(policy, sampling.stop)
    owner = torch.arange(len(prompts)).repeat_interleave(sampling.num_generations)
    prefix = _prefix(policy, prompts, owner, min(ROOM, sampling.max_completion_length), features)
    sampler = Sampler(
        head=head,
        warpers=make_warpers(sampling, policy.visual_ids, policy.device),
        penalties=_penalties(policy, prompts, sampling, owner) if sampling.has_penalties else None,
        eos_ids=policy.eos_ids,
        pad_id=policy.pad_id,
    )
    noise = _noise(prompts, sampling).to(policy.device) if sampling.temperature > 0 else None
    length = sampling.max_completion_length
    ids, logp = _decode(policy, sampler, prefix, noise, length, stop if sampling.stop else None)
    uids = [prompts[i].uid for i in owner.tolist()]
    return [
        _rollout(*row, policy.eos_ids, stop)
        for row in zip(uids, ids.cpu(), logp.cpu(), strict=True)
    ]


def _noise(prompts: Sequence[EncodedPrompt], sampling: Sampling) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B, T]: each completion's own, whatever else is in the batch."""
    seeds = [
        sequence_seed(sampling.seed, prompt.uid, prompt.number, index)
        for prompt in prompts
        for index in range(sampling.num_generations)
    ]
    draws = [np.random.default_rng(seed).random(sampling.max_completion_length) for seed in seeds]
    return torch.from_numpy(np.stack(draws))


def _penalties(
    policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, owner: Tensor
) -> Penalties:
    padded = pad_prompts(prompts, pad_id=policy.pad_id)
    ids, mask = (padded[name].to(policy.device) for name in ("input_ids", "attention_mask"))
    penalties = Penalties.of(sampling, ids, mask, len(output_head(policy).weight))
    penalties.select_(owner.to(policy.device))
    return penalties


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """How hidden states become tokens."""

    head: Head
    warpers: LogitsProcessorList
    """What changes the distribution before the draw."""
    penalties: Penalties | None
    """What the tokens so far change."""
    eos_ids: Sequence[int]
    pad_id: int

    def draw(self, hidden: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probs under the very distribution that was drawn from.

        noise: float64 [B] uniform in [0, 1), one number a token, so that a sequence's draw does not
        depend on the others in its batch; None takes the most probable token.
        """
        logits = sampling_logits(hidden, self.head)
        if self.penalties is not None:
            logits = self.penalties.apply(logits)
        scores = self.warpers(None, logits)  # type: ignore[arg-type]
        logp = scores.log_softmax(-1)
        if noise is None:
            token = logp.argmax(-1)
        else:
            cumulated = logp.exp().cumsum(-1, dtype=torch.float64)
            # The first entry above it: an entry of probability 0 is equal to the one before.
            reached = noise.clamp(max=1 - 1e-12)[:, None] * cumulated[:, -1:]
            token = torch.searchsorted(cumulated, reached, right=True).squeeze(-1)
        if self.penalties is not None:
            self.penalties.add_(token)
        return token, logp.gather(-1, token[:, None]).squeeze(-1)


def sampling_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [..., V] as they are drawn from, before penalties, temperature and cuts."""
    # In the weights' type, unlike `heads.logits_`, which takes bfloat16 weights to float32 in tiles:
    # for the few rows of one token that copy would be most of the work. `sampler_logp` belongs to the
    # distribution that was drawn from; the loss scores the tokens again and never reads it.
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logits = logits.to(chunk_dtype(logits)) * head.logit_scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _prefix(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    owner: Tensor,
    room: int,
    features: StepFeatures | None,
) -> Prefix:
    """The prefix of every sequence; each prompt is encoded once where the model allows it."""
    is_shared = can_share(policy)
    listed = prompts if is_shared else [prompts[i] for i in owner.tolist()]
    padded = pad_prompts(listed, pad_id=policy.pad_id)
    inputs = {name: tensor.to(policy.device) for name, tensor in padded.items()}
    prefix = prefill(policy, {**inputs, **image_inputs(policy, listed, features)})
    return add_room_(prefix, owner.to(policy.device), room) if is_shared else prefix


def _decode(
    policy: Policy,
    sampler: Sampler,
    prefix: Prefix,
    noise: Tensor | None,
    max_length: int,
    stop: StopTexts | None,
) -> tuple[Tensor, Tensor]:
    """ids and log-probs, both [B, T]; what follows a sequence's first EOS means nothing."""
    hidden = prefix.last_hidden
    size, device = len(hidden), hidden.device
    ids = torch.full((size, max_length), sampler.pad_id, device=device)
    logp = torch.zeros(size, max_length, device=device)
    alive = torch.arange(size, device=device)
    has_ended = torch.zeros(size, dtype=torch.bool, device=device)
    eos = torch.tensor(sampler.eos_ids, device=device)
    looks = check_every(device)
    for step in range(max_length):
        token, token_logp = sampler.draw(hidden, None if noise is None else noise[alive, step])
        ids[alive, step], logp[alive, step] = token, token_logp.float()
        has_ended |= torch.isin(token, eos)
        if stop is not None and (step + 1) % CHECK_EVERY == 0:
            has_ended |= stop.reached(ids[alive, : step + 1]).to(device)
        if step + 1 == max_length:
            break
        if (step + 1) % looks == 0:
            going = (~has_ended).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            if len(going) <= KEPT_SHARE * len(alive) and can_share(policy):
                prefix, alive = select_(prefix, going), alive[going]
                token, has_ended = token[going], has_ended[going]
                if sampler.penalties is not None:
                    sampler.penalties.select_(going)
        ones = torch.ones_like(token)[:, None]
        hidden, prefix = extend_(policy, prefix, token[:, None], ones)
        hidden = hidden[:, -1]
    return ids, logp


def check_every(device: torch.device) -> int:
    """Tokens between looks at which sequences have ended; on CPU a look costs nothing."""
    return 1 if device.type == "cpu" else DEVICE_CHECK_EVERY


def _rollout(
    uid: str, ids: Tensor, logp: Tensor, eos_ids: Sequence[int], stop: StopTexts
) -> Rollout:
    """Cut after the first EOS, which stays, or where a stop text is complete."""
    ends = torch.isin(ids, torch.tensor(eos_ids)).nonzero()
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    stop_length = stop.length(ids[:length])
    length = stop_length or length
    return Rollout(
        uid=uid,
        completion_ids=ids[:length].clone(),
        sampler_logp=logp[:length].clone(),
        finish_reason="stop" if len(ends) or stop_length else "length",
    )
