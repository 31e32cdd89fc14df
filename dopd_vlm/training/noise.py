"""How much of the routing is above the noise of the arithmetic: a few completions are scored once more.

The same completion among other rows gives other last digits, in bfloat16 far more than the last. A gap
that is smaller than this difference tells nothing about teacher and self-target.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dopd_vlm.distributed import gather_rows, total_of
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.routed_loss import LossOutput
from dopd_vlm.routing import high_gaps, privilege_advantage_gap, quantile
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.targets import MicroBatch, score_targets
from dopd_vlm.types import Rollout

ROWS_AGAIN = 2
"""Completions scored again in a step, per process."""
NOISE_QUANTILE = 0.95


def routing_noise(
    state: TrainState, micro_batches: Sequence[MicroBatch], features: StepFeatures | None = None
) -> float | None:
    """Nats by which the arithmetic moves gaps: the 95% quantile of |gap - gap scored again|.

    The first completions are scored again one by one, where they were scored with others, else in
    twos. Without gradient; images are taken from `features`, so no tower runs again. A collective:
    every process calls it. None for a method that does not route by gap, and without tokens.
    """
    if not state.method.by_gap:
        return None
    first = micro_batches[:1]
    samples = [sample for micro in first for sample in micro.samples[:ROWS_AGAIN]]
    rollouts = [rollout for micro in first for rollout in micro.rollouts[:ROWS_AGAIN]]
    size = 2 if state.config.optim.score_batch_size == 1 else 1
    optim = replace(state.config.optim, micro_batch_size=size, score_batch_size=size)
    alone = replace(state, config=replace(state.config, optim=optim))
    again = score_targets(alone, samples * size, rollouts * size, features)
    before = {id(r): gap for r, gap in _gaps(first)}
    moved = [(gap - before[id(r)]).abs() for r, gap in _gaps(again)]
    device = state.accelerator.device
    rows = torch.cat([torch.empty(0, dtype=torch.float64), *moved]).to(device)
    changes = gather_rows(state.accelerator, rows)
    return float(quantile(changes, NOISE_QUANTILE)) if len(changes) else None


def _gaps(micro_batches: Sequence[MicroBatch]) -> list[tuple[Rollout, Tensor]]:
    """The gaps of each completion's tokens, float64 on the CPU."""
    return [
        (rollout, gap[valid])
        for micro in micro_batches
        for rollout, gap, valid in zip(
            micro.rollouts, _gap(micro), micro.batch.mask.cpu(), strict=True
        )
    ]


def _gap(micro: MicroBatch) -> Tensor:
    assert micro.teacher is not None and micro.self_target is not None
    pair = (target.scores.logp.cpu().double() for target in (micro.teacher, micro.self_target))
    return privilege_advantage_gap(*pair)


def noise_metrics(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    losses: Sequence[LossOutput],
    noise: float | None,
) -> dict[str, float]:
    """routing/noise in nats, and routing/alive: the share of high-gap tokens whose gap exceeds it.

    A collective. Without a high-gap token there is no routing/alive; without a noise, neither.
    """
    if noise is None:
        return {}
    sums = {"high": 0.0, "alive": 0.0}
    for micro, output in zip(micro_batches, losses, strict=True):
        gap = _gap(micro)[high_gaps(output.regime).cpu()]
        sums["high"] += len(gap)
        sums["alive"] += float((gap > noise).sum())
    total = total_of(state.accelerator, sums)
    share = {"routing/alive": total["alive"] / total["high"]} if total["high"] else {}
    return {"routing/noise": noise, **share}
