"""Do completions come from the student's weights? A few of another engine's are scored once more.

An engine apart from the trainer computes in other kernels, and may hold weights that arrived wrongly: the
first shows as a small difference, the second as a large one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dopd_vlm.distributed import total_of
from dopd_vlm.models.encoder import EncodedPrompt, collate
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.policy import Policy, output_head
from dopd_vlm.rollout.own import OwnEngine, sampling_logits
from dopd_vlm.rollout.processors import make_warpers
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.types import Rollout, Sampling

ROWS_AGAIN = 4
"""Completions scored again in a step, per process."""
FARTHEST = 20.0
"""Nats that a token counts at most; one that the student's cuts bar would be infinitely far."""
DIFFERENCE_AT_MOST = 0.1
"""Nats a token, on average, that a run takes without a word."""


def logprob_difference(
    state: TrainState, samples: Sequence[EncodedSample], rollouts: Sequence[Rollout]
) -> dict[str, float]:
    """{rollout/logprob_diff: mean of |log-prob as sampled - by the student's own forward|, nats a token}.

    Of the first ROWS_AGAIN completions that the student wrote, on every process. A collective. Empty for
    the own engine, whose weights are the student's, and with penalties, which depend on all tokens before.
    """
    sampling = state.config.rollout.sampling()
    if isinstance(state.engine, OwnEngine) or sampling.has_penalties:
        return {}
    per_sample = len(rollouts) // max(1, len(samples))
    rows = [i for i, rollout in enumerate(rollouts) if rollout.source == "student"][:ROWS_AGAIN]
    prompts = [samples[i // per_sample].prompts["plain"] for i in rows]
    again = [rollouts[i] for i in rows]
    with state.accelerator.autocast():
        parts = rescored_logp(state.student, prompts, again, sampling)
    moved = [
        (r.sampler_logp - part).abs().clamp(max=FARTHEST)
        for r, part in zip(again, parts, strict=True)
    ]
    sums = {
        "moved": sum(float(part.sum()) for part in moved),
        "tokens": float(sum(map(len, moved))),
    }
    total = total_of(state.accelerator, sums)
    return {"rollout/logprob_diff": total["moved"] / total["tokens"]} if total["tokens"] else {}


@torch.no_grad()
def rescored_logp(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    rollouts: Sequence[Rollout],
    sampling: Sampling,
) -> list[Tensor]:
    """Log-probs fp32 [T] of each completion after its prompt, after temperature and cuts; no penalties."""
    warpers = make_warpers(sampling, policy.visual_ids, policy.device)
    parts = []
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        batch = collate([prompt], [rollout.completion_ids], pad_id=policy.pad_id).to(policy.device)
        logits = sampling_logits(completion_hidden(policy, batch)[0], output_head(policy))
        logp = warpers(None, logits).log_softmax(-1)  # type: ignore[arg-type]
        parts.append(logp.gather(-1, batch.completion_ids[0, :, None]).squeeze(-1).float().cpu())
    return parts
