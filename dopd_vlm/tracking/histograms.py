"""Compact histograms of a step's tokens: the gap, and q_T against q_S. Counts add up over processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dopd_vlm.routing import privilege_advantage_gap
from dopd_vlm.training.step import StepOutput

GAP_RANGE = (1e-6, 30.0)
"""Nats; what lies outside is counted in the first and the last bin."""
GAP_BINS = 60
"""Evenly spaced in log gap."""
PROBABILITY_BINS = 25
"""Evenly spaced in [0, 1], for each of q_S and q_T."""


def gap_edges() -> Tensor:
    """The GAP_BINS + 1 borders between bins, nats."""
    low, high = torch.tensor(GAP_RANGE, dtype=torch.float64).log().tolist()
    return torch.linspace(low, high, GAP_BINS + 1, dtype=torch.float64).exp()


def histogram_record(output: StepOutput, accelerator: Accelerator) -> dict[str, Any] | None:
    """Counts over the valid tokens of all processes; None for a method that does not route by gap.

    {"gap_edges": [GAP_BINS + 1], "gap_counts": [GAP_BINS], "q_counts": [q_T bin][q_S bin],
    "threshold": {"gap", "q_self", "q_teacher"}}. A collective: every process calls it.
    """
    if output.thresholds is None:
        return None
    pairs = [torch.empty(0, 2, dtype=torch.float64)]
    for micro in output.micro_batches:
        assert micro.teacher is not None and micro.self_target is not None
        scores = torch.stack([micro.teacher.scores.logp, micro.self_target.scores.logp], -1)
        pairs.append(scores[micro.batch.mask.to(scores.device)].double().cpu())
    gap, joint = token_counts(torch.cat(pairs))
    counts = torch.cat([gap, joint.flatten()]).to(accelerator.device)
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts, "sum")
    assert isinstance(counts, Tensor)
    gap, joint = counts[:GAP_BINS], counts[GAP_BINS:].view(PROBABILITY_BINS, PROBABILITY_BINS)
    return {
        "gap_edges": [float(f"{edge:.6g}") for edge in gap_edges().tolist()],
        "gap_counts": gap.tolist(),
        "q_counts": joint.tolist(),
        "threshold": output.thresholds.record(),
    }


def token_counts(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [N, 2] of teacher and self-target -> int64 [GAP_BINS] and [q_T, q_S] bins."""
    gap = privilege_advantage_gap(logp[:, 0], logp[:, 1])
    at = torch.bucketize(gap, gap_edges()[1:-1], right=True)
    bins = (logp.exp() * PROBABILITY_BINS).long().clamp(0, PROBABILITY_BINS - 1)
    joint = torch.bincount(
        bins[:, 0] * PROBABILITY_BINS + bins[:, 1], minlength=PROBABILITY_BINS**2
    )
    return torch.bincount(at, minlength=GAP_BINS), joint.view(PROBABILITY_BINS, PROBABILITY_BINS)
